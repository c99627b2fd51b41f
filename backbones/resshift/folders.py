"""Folders of a ResShiftPipeline: checked before they are loaded."""

import json
from pathlib import Path
from typing import Any

from backbones.sd21 import folders, parts
from dosde.check import Refused

_CONVERTED = "a folder written by `dosde convert RESSHIFT.pth AUTOENCODER.pth -o FOLDER` is needed"


def index_of(folder: Path) -> dict[str, Any]:
    """The content of model_index.json; empty where there is none that can be read."""
    try:
        content = json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_resshift(folder: Path) -> bool:
    """Whether a folder is that of a ResShiftPipeline."""
    return index_of(folder).get("_class_name") == "ResShiftPipeline"


def steps_of(folder: Path) -> int | None:
    """The number of steps that the network in a folder was distilled to, or of the table that it was trained on.

    None where the folder does not say it.
    """
    try:
        trained = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["num_train_timesteps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    steps = index_of(folder).get("distilled_steps") or trained
    return steps if isinstance(steps, int) and steps > 0 else None


def checked(name: str | Path, **hub: Any) -> Path:
    """The folder of a ResShiftPipeline; arguments as in `backbones.sd21.folders.checked`.

    Raises:
        Refused: it is no whole ResShiftPipeline.
    """
    folder = Path(name) if Path(name).exists() else folders.of_hub(str(name), "weights", **hub)
    if not folder.is_dir():
        raise Refused("weights", folder, _CONVERTED)
    if not is_resshift(folder):
        kind = index_of(folder).get("_class_name")
        raise Refused(
            "weights", folder, _CONVERTED, f"{folder} is of a {kind}" if kind else f"{folder} has no model_index.json"
        )
    for component in ("unet", "vqvae", "scheduler"):
        if not folders.has(folder, component):
            raise Refused("weights", folder, _CONVERTED, f"{folder} lacks {component}/, which its model_index.json names")
        if component != "scheduler":
            parts.files_of(folder, component)
    return folder


def config_of(folder: Path, component: str) -> dict[str, Any]:
    """The configuration of a component.

    Raises:
        Refused: it cannot be read.
    """
    path = folder / component / "config.json"
    try:
        return {name: value for name, value in json.loads(path.read_text()).items() if name[0] != "_"}
    except (OSError, ValueError, AttributeError) as error:
        raise Refused("weights", path, _CONVERTED, f"{path} cannot be read ({error})") from None
