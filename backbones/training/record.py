"""Which files in the folder of a run are the run's: a record of them, OUT/run.jsonl, written before each file.

    {"dosde train": "0.1.0"}                          the first line; without it a folder is no run's
    {"file": "checkpoints/00001000.safetensors"}      the run writes it
    {"removed": "checkpoints/00001000.safetensors"}   the run has removed it

Nothing else in the folder is ever removed or replaced, whatever its name. A link is never the run's, and none is followed. A
folder without a record is a run of an earlier version where a checkpoint in it says so; its files are known by what they hold.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import dosde
from backbones import whole
from backbones.weights import metadata, training

NAME, LOG, WEIGHTS = "run.jsonl", "log.jsonl", "weights.safetensors"
CHECKPOINTS, VALIDATION, BOARD, PIPELINE = FOLDERS = ("checkpoints", "validation", "tensorboard", "pipeline")
_KEY = "dosde train"
# What a writer that was killed leaves: of this version, and of earlier ones.
_PART = re.compile(r"\.dosde-[0-9a-f]{16}\.part|\.\d{8,}\.safetensors\.part")
_PICTURE = re.compile(r"(\d{8,})_.+_\d+\.png")


class Record:
    """The files of the run in a folder, by their names in it ("checkpoints/00001000.safetensors").

    Args:
        out: the folder, in which there is a record.
        names: what the record says.
    """

    def __init__(self, out: Path, names: Iterable[str]) -> None:
        self.out, self.names = out, set(names)

    def add(self, *names: str) -> None:
        """Says that the run writes files; before it does."""
        self._note("file", [name for name in names if name not in self.names])
        self.names.update(names)

    def remove(self, names: Iterable[str]) -> None:
        """Removes files of the run, and the folders that they leave empty."""
        removed = [name for name in names if name in self.names]
        for name in removed:
            if _plain(self.out, name):
                (self.out / name).unlink(missing_ok=True)
        above = {folder for name in removed for folder in PurePosixPath(name).parents}
        for folder in sorted(above - {PurePosixPath()}, key=lambda folder: -len(folder.parts)):
            with contextlib.suppress(OSError):  # it is not empty
                (self.out / folder).rmdir()
        self._note("removed", removed)
        self.names.difference_update(removed)

    def add_folder(self, name: str) -> None:
        """Says that all files in a folder, which the run has just made, are the run's."""
        self.add(*(path.relative_to(self.out).as_posix() for path in sorted((self.out / name).rglob("*")) if path.is_file()))

    def within(self, folder: str) -> list[str]:
        """The files of the run in one of its folders."""
        return sorted(name for name in self.names if name.startswith(f"{folder}/"))

    def _note(self, what: str, names: list[str]) -> None:
        if names:
            with (self.out / NAME).open("a") as file:
                file.write("".join(json.dumps({what: name}) + "\n" for name in names))
                file.flush()
                os.fsync(file.fileno())


def read(out: Path) -> Record | None:
    """The record in a folder, with those of its files that are there; None where no run is known in it."""
    names = _recorded(out)
    if names is None:
        names = set(_of_earlier_versions(out))
        if not names:
            return None
    return Record(out, {name for name in names if _plain(out, name)})


def begun(out: Path, known: Record | None) -> Record:
    """Writes the record of a run that begins or goes on, and removes what a killed writer left of it.

    Args:
        out: the folder; it exists.
        known: the record that was read there.

    Raises:
        OSError: the folder cannot be written to.
    """
    if known is not None:
        for folder in (out, out / CHECKPOINTS, out / VALIDATION):
            if not folder.is_symlink() or folder == out:
                for part in folder.glob(".*.part"):
                    if _PART.fullmatch(part.name) and not part.is_symlink() and part.is_file():
                        part.unlink()
    names = set() if known is None else known.names
    lines = [{_KEY: dosde.__version__}, *({"file": name} for name in sorted(names))]
    with whole.file(out / NAME) as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Record(out, names)


def foreign(out: Path, known: Record | None, result: str | None, first: int) -> str | None:
    """What stands in a folder where a run is to write, and is none of its files: the first such name, or None.

    Args:
        out: the folder.
        known: the record that was read there.
        result: the name that the result is going to have, if it is known.
        first: the step from which the run goes on; a step before is not written again.
    """
    ours = set() if known is None else known.names
    for name in FOLDERS:
        if (out / name).is_symlink() or ((out / name).exists() and not (out / name).is_dir()):
            return name
    record = out / NAME
    if os.path.lexists(record) and (record.is_symlink() or _recorded(out) is None):
        return NAME
    for written in (LOG, result):
        if written == PIPELINE:
            for path in sorted((out / PIPELINE).rglob("*")):
                inside = path.relative_to(out).as_posix()
                if inside not in ours and (path.is_symlink() or not any(own.startswith(f"{inside}/") for own in ours)):
                    return inside
        elif written is not None and written not in ours and os.path.lexists(out / written):
            return written
    for folder, form in ((CHECKPOINTS, re.compile(r"(\d{8,})\.safetensors")), (VALIDATION, _PICTURE)):
        for path in sorted((out / folder).glob("*")):
            match, name = form.fullmatch(path.name), f"{folder}/{path.name}"
            if match and int(match[1]) > first and name not in ours:
                return name
    return None


def _plain(out: Path, name: str) -> bool:
    """Whether a file is there, and no link leads to it. The folder itself may be one."""
    place = out
    for part in PurePosixPath(name).parts:
        place = place / part
        if place.is_symlink():
            return False
    return place.is_file()


def _recorded(out: Path) -> set[str] | None:
    """The names in the record of a folder, or None."""
    try:
        first, *lines = (out / NAME).read_text().splitlines()
        if _KEY not in json.loads(first):
            return None
    except (OSError, ValueError, TypeError):
        return None
    names: set[str] = set()
    for line in lines:
        with contextlib.suppress(ValueError, AttributeError):  # cut off where the run was killed
            said = json.loads(line)
            names.difference_update([said.get("removed")])
            name = said.get("file")
            if isinstance(name, str) and _inside(name):
                names.add(name)
    return names


def _inside(name: str) -> bool:
    """Whether a run writes files of such a name; a record may come from anywhere."""
    parts = PurePosixPath(name).parts
    return name in (LOG, WEIGHTS) or (len(parts) > 1 and parts[0] in FOLDERS and ".." not in parts)


def _of_earlier_versions(out: Path) -> Iterator[str]:
    """The files of a run of a version that kept no record."""
    checkpoints = [path for path in (out / CHECKPOINTS).glob("*.safetensors") if is_checkpoint(path)]
    if not checkpoints or (out / CHECKPOINTS).is_symlink():
        return
    yield from (f"{CHECKPOINTS}/{path.name}" for path in checkpoints)
    if _is_log(out / LOG):
        yield LOG
    if (out / WEIGHTS).is_file() and training(out / WEIGHTS) is not None:
        yield WEIGHTS
    yield from (f"{VALIDATION}/{path.name}" for path in (out / VALIDATION).glob("*.png") if _PICTURE.fullmatch(path.name))
    yield from (f"{BOARD}/{path.name}" for path in (out / BOARD).glob("events.out.tfevents.*"))


def is_checkpoint(path: Path) -> bool:
    """Whether a file says that it is the checkpoint of a training, of the step in its name."""
    try:
        return path.stem.isascii() and int(path.stem) == int(metadata(path)["step"]) and training(path) is not None
    except (ValueError, KeyError):
        return False


def _is_log(path: Path) -> bool:
    """Whether all whole lines of a file are those of a log of a training."""
    rows = ({"step", "loss", "lr", "grad_norm"}, {"step", "solve_steps", "psnr", "ssim"})
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()[:-1]]
    except (OSError, ValueError):
        return False
    return bool(lines) and all(isinstance(line, dict) and any(keys <= line.keys() for keys in rows) for line in lines)
