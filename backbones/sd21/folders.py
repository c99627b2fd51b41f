"""Folders in diffusers' layout: checked before they are loaded."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from backbones import kinds, weights
from backbones.weights import Tensors
from dosde.check import Refused, require

from . import parts

UNUSED = "released.safetensors"  # tensors of the released layout that no component uses
OF_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")  # what diffusers users tell the hub
_CONVERTED = "a folder written by `dosde convert` is needed"
_LEFT = "stabilityai/stable-diffusion-2-1-base"


def checked(name: str | Path, variant: str | None = None, **hub: Any) -> Path:
    """The folder of a DoSSRPipeline.

    Args:
        name: the folder, or the id of a repository of the hub.
        variant: the variant of the weights, as diffusers names it.
        hub: what the hub is told, some of `OF_HUB`.

    Raises:
        Refused: it is no whole DoSSRPipeline.
    """
    folder = Path(name) if Path(name).exists() else of_hub(str(name), "weights", variant, **hub)
    if not folder.is_dir():
        kind = kinds.kind_of(folder) if folder.is_file() else None
        needed = _CONVERTED if kind else f"a folder is needed (a checkpoint file: `dosde convert {folder} -o FOLDER`)"
        raise Refused("weights", folder, needed, f"{folder} is {kind.what}" if kind else None)
    index = folder / "model_index.json"
    if not index.is_file():
        kind = kinds.kind_of(folder)
        shown = f"{folder} is {kind.what}" if kind else f"{folder} has no model_index.json"
        raise Refused("weights", folder, kind.needed if kind and "is its result" in kind.needed else _CONVERTED, shown)
    try:
        components = json.loads(index.read_text())
        named = {n: v for n, v in components.items() if n[0] != "_" and isinstance(v, list) and v[0] is not None}
    except (ValueError, AttributeError, IndexError, TypeError) as error:
        raise Refused("weights", index, _CONVERTED, f"{index} is not the index of a pipeline ({error})") from None
    if variant is not None:
        variant_for(folder, variant)
    for component in ("vae", "hint_encoder", "unet", "controlnet", "scheduler"):
        if component not in named:
            of = components.get("_class_name")
            of = "" if of == "DoSSRPipeline" else f" is of {of}, and"
            raise Refused("weights", index, _CONVERTED, f"{index}{of} names no {component}")
    for component in named:
        if not has(folder, component):
            raise Refused("weights", folder, _CONVERTED, f"{folder} lacks {component}/, which its model_index.json names")
        if component not in ("scheduler", "tokenizer"):
            parts.files_of(folder, component, variant)
    return folder


def variant_for(folder: Path, asked: str | None) -> str | None:
    """The variant that diffusers is to load: the one that is asked for, or the only one of a component without other weights.

    Raises:
        Refused: no component has it, or the components have others.
    """
    places = [place for place in sorted(folder.iterdir()) if place.is_dir()]
    if asked is not None:
        found = sorted({name for place in places for name in parts.variants(place)})
        needed = f"one of {', '.join(found)} is needed" if found else f"None is needed: {folder} has no variants"
        require(asked in found, "variant", asked, needed)
        return asked
    needed_ones = sorted({own for place in places if (own := parts.variant_of(place)) is not None})
    require(len(needed_ones) < 2, "variant", needed_ones, f"one for all components of {folder} is needed")
    return needed_ones[0] if needed_ones else None


def of_hub(name: str, argument: str, variant: str | None = None, **hub: Any) -> Path:
    """A snapshot of a repository of the hub.

    Args:
        name: its id.
        argument: the argument that named it, for errors.
        variant: the variant of the weights that is wanted.
        hub: what the hub is told, some of `OF_HUB`.

    Raises:
        Refused: there is no such folder or id.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    gone = (
        f" ({_LEFT} has left the hub: pass a folder of SD 2.1-base in diffusers' layout, or the id of a copy of it)"
        if "stable-diffusion-2-1" in name
        else ""
    )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise Refused(argument, name, f"no such folder{gone}", name)
    if Path(name).suffix.lower() in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"):  # a file that is not there, and no id
        raise Refused(argument, name, "no such file", name)
    try:
        ignored = ["*.ckpt", "*.bin", "*.msgpack", "*.onnx*", *([] if variant else ["*.fp16.*"])]
        return Path(snapshot_download(name, ignore_patterns=ignored, **hub))
    except (OSError, ValueError, HFValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise Refused(argument, name, f"no such folder, and the hub does not give it: {reason}{gone}", name) from None


def has(folder: Path, component: str) -> bool:
    """Whether a folder has a component."""
    return (folder / component).is_dir()


def unused(folder: Path) -> Tensors:
    """The released tensors that no component uses, of `write_unused`."""
    return weights.read(folder / UNUSED) if (folder / UNUSED).is_file() else {}


def write_unused(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes the released tensors that no component uses, so that a conversion back is exact."""
    weights.write(folder / UNUSED, tensors)


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turns the errors of the libraries that load a folder into one line that names it."""
    try:
        yield
    except (OSError, RuntimeError, TypeError, KeyError, ValueError) as error:
        if isinstance(error, Refused) and error.argument == "weights":
            raise
        said = " ".join(str(error).split())[:300]
        raise Refused("weights", folder, _CONVERTED, f"{folder} cannot be loaded: {said or type(error).__name__}") from error


@contextmanager
def no_talk_of_pickles() -> Iterator[None]:
    """While the block runs, diffusers is silent about .bin files, which it reads as data."""
    logger = logging.getLogger("diffusers.models.modeling_utils")

    def other(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return not ("unsafe serialization" in said or "An error occurred while trying to fetch" in said)

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON as diffusers does."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
