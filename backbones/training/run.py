"""The folder of a run: what lies in it, whether it can go on, and what has to go first."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.weights import Tensors, read_safetensors
from dosde import check
from dosde.check import Refused

from .config import Config, difference
from .state import every

FREE = ("out", "log_every", "accumulate", "data.workers", "checkpoint.every", "checkpoint.keep", *(
    f"validation.{key}" for key in ("every", "pictures", "count", "crop", "steps", "order", "method", "scale")
))  # fmt: skip
"""Keys that may differ in a run that is resumed; and steps, where the learning rate is constant."""


@dataclass(frozen=True)
class Earlier:
    """The checkpoint from which a run goes on."""

    step: int
    path: Path
    tensors: Tensors


def earlier(out: Path, start: str, config: Config) -> Earlier | None:
    """The checkpoint from which a run goes on, if it does. Nothing is written.

    Args:
        out: the folder of the run.
        start: "new" (an empty folder is needed), "resume" (from the last checkpoint, if there is one) or "overwrite".
        config: the config of the run.

    Raises:
        Refused: the folder, or the config of the run in it, does not permit this start.
    """
    check.one_of("start", start, ("new", "resume", "overwrite"))
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise Refused("out", out, f"{'it' if there == out else there} exists and is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Refused("out", out, "a folder that can be written to is needed")
    found = every(out)
    if start == "new" and out.is_dir() and any(out.iterdir()):
        content = f"a run with a checkpoint of step {found[-1][0]}" if found else "files"
        raise Refused("out", out, "--resume goes on with it, --overwrite starts anew", f"{out} holds {content}")
    if start == "overwrite":
        starts = {"model": config.model.weights, "sd21": config.sd21.weights, "resshift": config.resshift.weights}
        for key, source in ((f"{table}.weights", weights) for table, weights in starts.items()):
            if source and Path(source).resolve().is_relative_to(out.resolve()):
                raise Refused(key, source, "something outside of out, which --overwrite deletes, is needed", source)
    if start != "resume" or not found:
        return None
    step, path = found[-1]
    tensors, metadata = read_safetensors(path)
    _check_same(path, metadata, config)
    return Earlier(step, path, tensors)


def _check_same(path: Path, metadata: Mapping[str, str], config: Config) -> None:
    """Refused unless a checkpoint is of a run with this config, but for keys that are free."""
    try:
        before: dict[str, Any] = json.loads(metadata["config"])
    except (KeyError, ValueError):
        needed = "a checkpoint of `dosde train` is needed"
        raise Refused("checkpoint", path, needed, f"{path} is none of this command") from None
    free = FREE + (("steps",) if config.optimizer.decay == "constant" else ())
    differs = difference(config.plain(), before, free)
    if differs is not None:
        key, here, there = differs
        raise Refused(
            key, here, f"{there!r} is needed, as in the run that is resumed (or --overwrite, or another out)", repr(here)
        )
    if config.steps < int(metadata["step"]):
        raise Refused("steps", config.steps, f"the run that is resumed has done {metadata['step']}")


def prepare(out: Path, start: str) -> None:
    """Makes the folder, and deletes in it what a run that starts anew, or from a checkpoint, has no use for.

    Raises:
        Refused: the folder cannot be written to.
    """
    try:
        if start == "overwrite":
            for name in ("checkpoints", "validation", "tensorboard", "pipeline"):
                shutil.rmtree(out / name, ignore_errors=True)
            for name in ("log.jsonl", "weights.safetensors"):
                (out / name).unlink(missing_ok=True)
        for part in (out / "checkpoints").glob(".*.part"):  # a run that was killed while it wrote left them
            part.unlink()
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused("out", out, f"a folder that can be written to is needed ({error.strerror})") from None
