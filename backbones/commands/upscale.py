"""`dosde upscale INPUT... -o OUT`."""

import argparse
import errno
import hashlib
import json
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from backbones import whole

from .options import (
    Unusable,
    about,
    add_backbones,
    add_solver,
    declared,
    digest_of,
    flags,
    line_of,
    loaded,
    path_of,
    reason_of,
    require,
    solver_of,
    status_of,
    warn_above_bars,
    whole_number,
)

if TYPE_CHECKING:
    import torch

    from .options import Commands

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what the next picture meets as well
_ABOUT_RUN = ("inputs", "out", "recursive", "overwrite", "run", "method", "order", "steps", "backbone")  # or in `about`


def add(commands: "Commands") -> argparse.ArgumentParser:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "upscale",
        usage="dosde upscale INPUT... -o OUT [--scale 4] [--steps 5] [...]",
        help="upscale pictures",
        description="Upscale pictures, or all pictures in a folder, in a few model calls each.",
        epilog="Each INPUT gives NAME_xSCALE.png in the folder OUT (or exactly OUT, if that is a file name with a suffix and "
        "there is one INPUT). Grey, alpha, 16 bits, colour profile and EXIF orientation are kept. A result that exists stays "
        "unless --overwrite is given, so that a stopped run can be resumed.",
    )
    parser.add_argument("inputs", nargs="+", type=path_of, metavar="INPUT", help="a picture, or a folder of pictures")
    parser.add_argument("-o", "--out", type=path_of, required=True, metavar="OUT", help="a folder, or a file for one INPUT")
    add_solver(parser)
    quality = "1 to 100, of one result in JPEG (default: 95) or WebP (default: without loss)"
    parser.add_argument("--quality", type=whole_number, metavar="N", help=quality)
    parser.add_argument("--recursive", action="store_true", help="take folders inside INPUT too; OUT gets the same folders")
    parser.add_argument("--overwrite", action="store_true", help="make outputs anew that exist")
    add_backbones(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Upscales; returns the exit status."""
    solver = solver_of(arguments, "upscale")
    from tqdm import tqdm

    try:
        found = _found(arguments.inputs, arguments.out, arguments.recursive)
        jobs = _jobs(arguments.inputs, found, arguments.out, arguments.scale)
    except OSError as error:
        raise Unusable(f"INPUT, --out: {error}") from None
    _check_outputs(jobs, solver.options.get("weights"))
    from backbones.pictures import io as images

    with flags():
        images.check_quality(arguments.quality, [target for _, target in jobs])
    one = len(jobs) == 1
    backbone = loaded(solver, "upscale", one)
    folder = jobs[0][1].parent if one else arguments.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unusable(f"--out: {error}") from None
    require(os.access(folder, os.W_OK | os.X_OK), "--out", folder, "a folder that can be written to is needed")
    for place in {target.parent for _, target in jobs}:
        whole.sweep(place)
    warn_above_bars()
    made = {**about(solver, backbone), **_others(arguments, solver.options.get("weights"))}

    for note in found.notes():
        print(note)
    failed = len(found.unread)
    for place, reason in found.unread:
        print(f"failed  {line_of(place)}: {reason}", file=sys.stderr)
    written, kept, left, start = set[tuple[int, int] | None](), 0, 0, time.perf_counter()
    try:
        with tqdm(jobs, unit="picture", disable=one) as bar:
            for i, (source, target) in enumerate(bar):
                try:
                    require(
                        whole.identity(target) not in written, "--out", target, "another picture of this run was written there"
                    )
                    if target.is_file() and not arguments.overwrite:
                        said = f"kept    {line_of(target)} ({_kept(source, target, made)})"
                        kept += 1
                    else:
                        upscaled = partial(solver.upscaled, backbone, progress=one)
                        size = _one(source, target, made, upscaled, solver.scale, arguments.quality, arguments.overwrite)
                        written.add(whole.identity(target))
                        said = f"wrote   {line_of(target)} ({size})"
                except Exception as error:  # whatever is wrong with a file costs that file alone
                    failed += 1
                    tqdm.write(f"failed  {line_of(source)}: {reason_of(error)}", file=sys.stderr)
                    if isinstance(error, OSError) and error.errno in _FULL:
                        left = len(jobs) - i - 1
                        break
                else:
                    tqdm.write(said)
    except KeyboardInterrupt as stop:
        goes_on = "the same command goes on from here"
        if arguments.overwrite:
            goes_on = (
                f"{len(written)} of {len(jobs)} are written; with --overwrite the same command starts again, without it goes on"
            )
        print(f"stopped; {goes_on}", file=sys.stderr)
        return status_of(stop)
    not_tried = f", {left} not tried" if left else ""
    print(f"{len(written)} written, {kept} kept, {failed} failed{not_tried} in {time.perf_counter() - start:.1f} s", flush=True)
    if left:
        goes_on = "without --overwrite, the same command" if arguments.overwrite else "the same command"
        print(f"stopped: nothing more can be written to {line_of(folder)}; {goes_on} goes on from here", file=sys.stderr)
    return 1 if failed else 0


# -- What is upscaled, and where to -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """The pictures of all inputs, each with the folder under OUT that its result belongs to, and what was found beside them.

    Args:
        pictures: (file, folder under OUT).
        others: by folder, the number of files that are not pictures.
        nested: by folder, the number of folders in it that are passed over.
        unread: what cannot be looked into, and why.
    """

    pictures: list[tuple[Path, Path]] = field(default_factory=list)
    others: Counter[Path] = field(default_factory=Counter)
    nested: Counter[Path] = field(default_factory=Counter)
    unread: list[tuple[Path, str]] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What is passed over, a line for each input folder."""
        lines = []
        for folder in sorted({*self.others, *self.nested}):
            files, folders = self.others[folder], self.nested[folder]
            said = []
            if files:
                said.append("1 file is not a picture" if files == 1 else f"{files} files are not pictures")
            if folders:
                said.append(f"{folders} folder{' is' if folders == 1 else 's are'} passed over ({_NESTED})")
            lines.append(f"note    {line_of(folder)}: {', '.join(said)}")
        return lines


_NESTED = "--recursive takes folders, but not links to them"


def _found(inputs: Sequence[Path], out: Path, recursive: bool) -> _Found:
    """All pictures, in a predictable order.

    Raises:
        Unusable: for an input that is not there, a folder without pictures, and a folder of results among the inputs.
        OSError: for a folder that cannot be read.
    """
    for given in inputs:
        require(os.path.lexists(given), "INPUT", given, "no such file or folder")
    from backbones.pictures import io as images

    suffixes = " ".join(images.SUFFIXES)
    found = _Found()
    for given in inputs:
        if given.is_dir():
            needed = "another folder than INPUT is needed, or results would be taken for pictures next time"
            require(not (out.is_dir() and given.samefile(out)), "--out", out, needed)
            needed = f"a folder outside {given} is needed with --recursive, or results would be taken for pictures next time"
            require(not (recursive and whole.within(out, given)), "--out", out, needed)
            before = len(found.pictures)
            _look(given, recursive, found)
            more = f"; folders inside it are passed over ({_NESTED})" if found.nested[given] else ""
            require(len(found.pictures) > before, "INPUT", given, f"a folder with pictures ({suffixes}) is needed{more}")
        else:
            found.pictures.append((given, Path()))
    return found


def _look(root: Path, recursive: bool, found: _Found) -> None:
    """Adds what is in a folder. Hidden names are left out. No link to a folder is followed, since it may lead back."""
    from backbones.pictures import io as images

    left = [root]
    while left:
        folder = left.pop()
        try:
            inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        except OSError as error:
            if folder == root:
                raise
            found.unread.append((folder, error.strerror or "it cannot be read"))
            continue
        folders = []
        for path in inside:
            mode = _mode(path)
            if mode is not None and stat.S_ISDIR(mode):
                if recursive and not path.is_symlink():
                    folders.append(path)
                else:
                    found.nested[root] += 1
            elif path.suffix.lower() in images.SUFFIXES and (mode is None or stat.S_ISREG(mode)):
                found.pictures.append((path, folder.relative_to(root)))  # a link to nothing is named when its turn comes
            else:
                found.others[root] += 1
        left += reversed(folders)


def _mode(path: Path) -> int | None:
    """Type and permissions of what a path leads to; None where that is nothing, or a circle."""
    try:
        return path.stat().st_mode
    except OSError:
        return None


def _jobs(inputs: Sequence[Path], found: _Found, out: Path, scale: float) -> list[tuple[Path, Path]]:
    """(source, target) for every picture."""
    from backbones.pictures.formats import WRITTEN

    # The same picture under the same name is one job; under another name it has a result of its own.
    same = {(os.path.realpath(path), path.name, below): (path, below) for path, below in reversed(found.pictures)}
    pictures = list(same.values())[::-1]
    if out.suffix.lower() in WRITTEN and not out.is_dir():
        several = len(pictures) > 1 or inputs[0].is_dir()
        require(not several, "--out", out, "a folder is needed for a folder or several pictures")
        return [(pictures[0][0], out)]
    file = len(pictures) == 1 and not out.is_dir() and 2 < len(out.suffix) < 6 and out.suffix[1].isalpha()
    require(not file, "--out", out, f"a folder, or a file that ends in {' '.join(WRITTEN)}, is needed")
    require(out.is_dir() or not os.path.lexists(out), "--out", out, "it exists and is not a folder")
    jobs: list[tuple[Path, Path]] = []
    for place in dict.fromkeys(below for _, below in pictures):
        sources = [path for path, below in pictures if below == place]
        jobs += zip(sources, (out / place / name for name in _names(sources, scale)), strict=True)
    for target, count in Counter(target for _, target in jobs).items():
        alike = ", ".join(str(source) for source, other in jobs if other == target)
        shown = f"{count} pictures would be written as {target} ({alike})"
        require(count == 1, "INPUT", target, "give each of them another OUT", shown)
    return jobs


def _names(sources: Sequence[Path], scale: float) -> list[str]:
    """The names of the results. Sources that differ in their suffix alone (a.jpg, a.png) keep it, so none replaces another."""
    same = Counter(p.stem for p in sources)
    suffixes = [p.suffix.replace(".", "_") if same[p.stem] > 1 else "" for p in sources]
    return [f"{p.stem}{suffix}_x{scale:.12g}.png" for p, suffix in zip(sources, suffixes, strict=True)]


def _check_outputs(jobs: Sequence[tuple[Path, Path]], weights: object) -> None:
    """Unusable where a result would replace what is read, by whatever name."""
    inputs = {whole.identity(source): source for source, _ in jobs}
    if isinstance(weights, str | os.PathLike):
        inputs[whole.identity(Path(weights))] = Path(weights)
    inputs.pop(None, None)
    for source, target in jobs:
        replaced = inputs.get(whole.identity(target))
        own = replaced is not None and whole.identity(source) == whole.identity(replaced)
        needed = "it is the input itself" if own else f"it is an input too ({replaced}); another OUT is needed"
        require(replaced is None, "--out", target, needed)


# -- One picture ------------------------------------------------------------------------------------------------------------


def _one(
    source: Path,
    target: Path,
    made: Mapping[str, object],
    upscaled: "Callable[[torch.Tensor], torch.Tensor]",
    scale: float,
    quality: int | None,
    overwrite: bool,
) -> str:
    """Upscales one file; returns its sizes in words."""
    from tqdm import tqdm

    from backbones.pictures import io as images
    from backbones.pictures.resize import bicubic

    text = _text(source, made)
    if target.exists() and not target.is_file():
        raise ValueError(f"{target} exists and is not a file; another OUT is needed")
    picture = images.read(source)
    height, width = (max(1, round(side * scale)) for side in picture.colour.shape[-2:])
    images.check(target, picture, (height, width))
    if picture.frames > 1:
        tqdm.write(
            f"note    {line_of(source)}: it has {picture.frames} frames or pages, and the first is taken", file=sys.stderr
        )
    colour = upscaled(picture.visible)
    alpha = picture.alpha
    if alpha is not None:
        alpha = bicubic(alpha, colour.shape[-2:]).clamp(0, 1)
    if target.is_file() and not overwrite:  # another process was faster
        _kept(source, target, made)
    images.write(target, images.Picture(colour, alpha, picture.bits, picture.profile), quality, text)
    before, after = picture.colour.shape, colour.shape
    return f"{before[3]}x{before[2]} -> {after[3]}x{after[2]}"


def _others(arguments: argparse.Namespace, weights: object) -> dict[str, object]:
    """What decides a result beside `about`: options such as scale and seed, whichever the command has, and a folder's files."""
    known = {*_ABOUT_RUN, *declared()}
    others = {name: value for name, value in vars(arguments).items() if name not in known}
    folder = Path(str(weights))
    if weights is not None and folder.is_dir():  # gigabytes: known by size and time
        files = [(path.relative_to(folder).as_posix(), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
        listed = json.dumps([(name, found.st_size, found.st_mtime_ns) for name, found in files])
        others["files"] = hashlib.sha256(listed.encode()).hexdigest()
    return others


def _text(source: Path, made: Mapping[str, object]) -> str:
    """What a result says of itself: the digest of its source, and what made it."""
    if not stat.S_ISREG(source.stat().st_mode):  # a named pipe would be waited for
        raise ValueError("it is not a file")
    chosen = {name: value for name, value in made.items() if name not in ("dosde", "torch")}
    return json.dumps({"source": digest_of(source), **chosen}, default=str)


def _kept(source: Path, target: Path, made: Mapping[str, object]) -> str:
    """Why a result that exists is kept, in words.

    Raises:
        ValueError: where it is the result of another picture, or of other options.
    """
    from backbones.pictures import note

    try:
        old = json.loads(note.read(target) or "null")
        new = json.loads(_text(source, made))
    except (OSError, ValueError):
        old, new = None, {}
    if not isinstance(old, dict):
        return "exists, does not say what it was made of; --overwrite makes it anew"
    if old.get("source") != new["source"]:
        raise ValueError(f"{target} is the result of another picture; another OUT is needed, or --overwrite")
    for name in new:
        if old.get(name) != new[name]:
            one, other = (json.dumps(value) for value in (old.get(name), new[name]))
            raise ValueError(f"{target} was made with other options ({name}: {one}, not {other}); --overwrite makes it anew")
    return "exists; --overwrite makes it anew"
