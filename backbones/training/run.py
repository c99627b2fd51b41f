"""The folder of a run: what lies in it, whether a run can start or go on there, and what has to go first."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.weights import Tensors, read_safetensors
from dosde import check
from dosde.check import Refused

from . import record
from .config import Config, difference, filled, inputs
from .state import every

FREE = ("out", "log_every", "accumulate", "data.workers", "checkpoint.every", "checkpoint.keep", *(
    f"validation.{key}" for key in ("every", "pictures", "count", "crop", "steps", "order", "method", "scale")
))  # fmt: skip
"""Keys that may differ in a run that is resumed; and steps, where the learning rate is constant."""


@dataclass(frozen=True)
class Earlier:
    """The checkpoint from which a run goes on. validated: whether the validation after its step, if any, was made."""

    step: int
    path: Path
    tensors: Tensors
    validated: bool


def earlier(out: Path, start: str, config: Config) -> Earlier | None:
    """The checkpoint from which a run goes on, if it does. Nothing is written.

    Args:
        out: the folder of the run.
        start: "new" (an empty folder is needed), "resume" (from the last checkpoint, if there is one) or "overwrite".
        config: the config of the run.

    Raises:
        Refused: the folder, or the config of the run in it, does not permit this start; or what the run reads is what it
            writes.
    """
    check.one_of("start", start, ("new", "resume", "overwrite"))
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise Refused("out", out, f"{'it' if there == out else there} exists and is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Refused("out", out, "a folder that can be written to is needed")
    _check_inputs(out, config)
    known = record.read(out)
    ours = set() if known is None else known.names
    found = [
        (step, path) for step, path in every(out) if f"{record.CHECKPOINTS}/{path.name}" in ours or record.is_checkpoint(path)
    ]  # a checkpoint that somebody copied here is read, but never removed
    if start == "new" and out.is_dir() and any(out.iterdir()):
        content = f"a run with a checkpoint of step {found[-1][0]}" if found else "files" if known is None else "a run"
        anew = "--overwrite starts anew" + ("" if found or known else " and leaves what no run wrote")
        raise Refused("out", out, f"--resume goes on with it, {anew}", f"{out} holds {content}")
    step, path = found[-1] if start == "resume" and found else (0, None)
    if (name := record.foreign(out, known, result_of(config), step)) is not None:
        needed = "move it away, or take another folder"
        raise Refused("out", out, needed, f"{out} holds {name}, which the run would write and no run is known to have written")
    if path is None:
        return None
    tensors, metadata = read_safetensors(path)
    _check_same(path, metadata, config)
    return Earlier(step, path, tensors, metadata.get("validated") != "no")


def result_of(config: Config) -> str | None:
    """The name of the result in the folder of a run; None where a function of one's own writes it."""
    if config.task in ("sd21", "resshift"):
        return record.PIPELINE
    return None if config.model.save else record.WEIGHTS


def _check_inputs(out: Path, config: Config) -> None:
    """Refused where something that the config names to be read is, or holds, what the run writes, by any name."""
    places = [out / name for name in (record.NAME, record.LOG, record.WEIGHTS, *record.FOLDERS)]
    resolved = [place.resolve() for place in places]
    for key, name in inputs(config):
        path = Path(name)
        for place in places:
            if within(path, place):
                raise Refused(key, name, "something that the run does not write is needed", f"{name} is in {place}")
        if path.is_file():
            continue
        if key != "sd21.cache" and within(out, path):
            needed = f"a folder that does not hold out, {out}, is needed, or the run reads what it writes"
            raise Refused(key, name, needed, name)
        for link in _links(path):
            if any(link.resolve().is_relative_to(place) for place in resolved):
                raise Refused(key, name, "a folder without links to what the run writes is needed", f"{name} holds {link}")


def within(path: Path, folder: Path) -> bool:
    """Whether a path is a folder, or something in it, by any of their names."""
    path, folder = path.resolve(), folder.resolve()
    there = folder.exists()
    return any(p == folder or (there and p.exists() and p.samefile(folder)) for p in (path, *path.parents))


def _links(folder: Path) -> Iterator[Path]:
    """The links in a folder and the folders in it."""
    for place, _, _ in os.walk(folder):
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            yield from (Path(entry.path) for entry in entries if entry.is_symlink())


def _check_same(path: Path, metadata: Mapping[str, str], config: Config) -> None:
    """Refused unless a checkpoint is of a run with this config, but for keys that are free."""
    try:
        before: dict[str, Any] = json.loads(metadata["config"])
    except (KeyError, ValueError):
        needed = "a checkpoint of `dosde train` is needed"
        raise Refused("checkpoint", path, needed, f"{path} is none of this command") from None
    with contextlib.suppress(ValueError):  # of a version with other keys, which is compared as it stands
        before = filled(before).plain()
    free = FREE + (("steps",) if config.optimizer.decay == "constant" else ())
    differs = difference(config.plain(), before, free)
    if differs is not None:
        key, here, there = differs
        raise Refused(
            key, here, f"{there!r} is needed, as in the run that is resumed (or --overwrite, or another out)", repr(here)
        )
    if config.steps < int(metadata["step"]):
        raise Refused("steps", config.steps, f"the run that is resumed has done {metadata['step']}")


def prepare(out: Path, start: str) -> record.Record:
    """Makes the folder and its record, and removes what the run in it wrote, if a new one takes its place.

    Raises:
        Refused: the folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        made = record.begun(out, record.read(out))
        if start == "overwrite":
            made.remove(list(made.names))
        return made
    except OSError as error:
        raise Refused("out", out, f"a folder that can be written to is needed ({error.strerror})") from None
