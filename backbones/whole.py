"""Files and folders that are there as a whole or not at all.

    with whole.file(path) as part:      with whole.folder(path) as part:
        part.write_bytes(data)              (part / "a.json").write_text(text)

A writer fills a hidden name beside the place, which no other writer has; when the block ends that name takes the place in one
move (os.replace), and when the block raises it goes. So a reader sees the old content or the new one, and of two writers the
last one stays. A killed process can leave its hidden name, `.dosde-TOKEN.part`; `sweep` removes it once it is ten minutes old.
"""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

_OLD = 600  # seconds without a write, after which a hidden name has no writer any more


def _beside(path: Path) -> Path:
    """A hidden name in the same folder, for one writer alone. Its length does not depend on the name of the file."""
    return path.with_name(f".dosde-{secrets.token_hex(8)}.part")


@contextlib.contextmanager
def file(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, to be written in the block, which then takes the place of `path`.

    The folder must exist. The permissions are those of any new file, whatever the library that writes it thinks of them.

    Args:
        path: the file to write; one that exists is replaced.

    Raises:
        OSError: where the file cannot be made or moved. Then `path` is as it was.
    """
    part = _beside(path)
    with contextlib.suppress(OSError):  # the name that earlier versions left when they were killed
        path.with_name(f".{path.name}.part").unlink(missing_ok=True)
    try:
        part.touch(exist_ok=False)
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)  # safetensors, as tempfile does, leaves a file to its owner alone
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, to be filled in the block, which then takes the place of `path`.

    Args:
        path: the folder to make, behind any link. Folders above it are made; one that exists must be empty at the end.

    Raises:
        OSError: where the folder cannot be made or moved. Then `path` is as it was.
    """
    path = path.resolve()
    part = _beside(path)
    try:
        part.mkdir(parents=True)
        sweep(part.parent)  # a folder may hold gigabytes
        yield part
        if path.is_dir():
            path.rmdir()  # which removes an empty folder only
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check(path: Path) -> None:
    """Finds out, without a trace, whether `file` could write here.

    Raises:
        OSError: where it could not.
    """
    check_name(path)
    part = _beside(path)
    part.touch(exist_ok=False)
    part.unlink()


def identity(path: Path) -> tuple[int, int] | None:
    """What file it is, whatever it is called: equal for links, for letters of another case where that is one name, for `..`.

    None where there is no such file.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def within(path: Path, folder: Path) -> bool:
    """Whether a path, which need not exist, is a folder or lies in it, whatever they are called."""
    place = identity(folder)
    real = Path(os.path.realpath(path))
    return place is not None and any(identity(above) == place for above in (real, *real.parents))


def check_name(path: Path) -> None:
    """Finds out whether a file could have this name, without one that is too long.

    Raises:
        OSError: where it could not.
    """
    with contextlib.suppress(FileNotFoundError):
        path.lstat()


def sweep(folder: Path) -> None:
    """Removes the hidden names that killed processes left in a folder: those without a write for ten minutes."""
    for part in folder.glob(".dosde-*.part"):
        with contextlib.suppress(OSError):  # another process was faster, or it may not be removed: nothing depends on it
            newest = max(inside.stat().st_mtime for inside in (part, *part.rglob("*")))
            if time.time() - newest > _OLD:
                shutil.rmtree(part) if part.is_dir() else part.unlink()
