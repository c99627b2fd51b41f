"""`dosde upscale INPUT... -o OUT`."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from backbones import whole
from backbones.pictures import io as images
from backbones.pictures.formats import WRITTEN
from backbones.pictures.resize import bicubic
from dosde.check import require

from .options import Unusable, add_backbones, add_solver, flags, loaded, path_of, reason_of, solver_of, warn_above_bars

if TYPE_CHECKING:
    from .options import Commands


def add(commands: "Commands") -> argparse.ArgumentParser:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "upscale",
        usage="dosde upscale INPUT... -o OUT [--scale 4] [--steps 5] [...]",
        help="upscale pictures",
        description="Upscale pictures, or all pictures in a folder, in a few model calls each.",
        epilog="Each INPUT gives NAME_xSCALE.png in the folder OUT (or exactly OUT, if that is a file name with a suffix and "
        "there is one INPUT). Grey, alpha, 16 bits, colour profile and EXIF orientation are kept. An output that exists stays "
        "unless --overwrite is given, so that a stopped run can be resumed.",
    )
    parser.add_argument("inputs", nargs="+", type=path_of, metavar="INPUT", help="a picture, or a folder of pictures")
    parser.add_argument("-o", "--out", type=path_of, required=True, metavar="OUT", help="a folder, or a file for one INPUT")
    add_solver(parser)
    quality = "1 to 100, of one result in JPEG (default: 95) or WebP (default: without loss)"
    parser.add_argument("--quality", type=int, metavar="N", help=quality)
    parser.add_argument("--overwrite", action="store_true", help="make outputs anew that exist")
    add_backbones(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Upscales; returns the exit status."""
    solver = solver_of(arguments, "upscale")
    from tqdm import tqdm

    try:
        jobs = _jobs(arguments.inputs, arguments.out, arguments.scale)
    except OSError as error:
        raise Unusable(f"INPUT, --out: {error}") from None
    with flags():
        images.check_quality(arguments.quality, [target for _, target in jobs])
    one = len(jobs) == 1
    backbone = loaded(solver, "upscale", one)
    folder = jobs[0][1].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unusable(f"--out: {error}") from None
    require(os.access(folder, os.W_OK | os.X_OK), "--out", folder, "a folder that can be written to is needed")
    whole.sweep(folder)
    warn_above_bars()

    kept, failed, start = 0, [], time.perf_counter()
    bar = tqdm(jobs, unit="picture", disable=one)
    for source, target in bar:
        try:
            if target.is_file() and not arguments.overwrite:
                kept, said = kept + 1, f"kept    {target} (exists; --overwrite makes it anew)"
            else:
                size = _one(source, target, solver.scale, arguments.quality, lambda x: solver.upscaled(backbone, x, one))
                said = f"wrote   {target} ({size})"
        except Exception as error:  # whatever is wrong with a file costs that file alone
            failed.append(source)
            tqdm.write(f"failed  {source}: {reason_of(error)}", file=sys.stderr)
        else:
            tqdm.write(said)
    done = len(jobs) - kept - len(failed)
    print(f"{done} written, {kept} kept, {len(failed)} failed in {time.perf_counter() - start:.1f} s", flush=True)
    return 1 if failed else 0


def _jobs(inputs: Sequence[Path], out: Path, scale: float) -> list[tuple[Path, Path]]:
    """(source, target) for every picture, in a predictable order."""
    suffixes = " ".join(images.SUFFIXES)
    sources: list[Path] = []
    for given in inputs:
        if given.is_dir():
            needed = "another folder than INPUT is needed, or results would be taken for pictures next time"
            require(not (out.is_dir() and given.samefile(out)), "--out", out, needed)
            found, _ = images.listed(given)
            require(bool(found), "INPUT", given, f"a folder with pictures ({suffixes}) is needed")
            sources += found
        else:
            require(given.exists(), "INPUT", given, "no such file or folder")
            sources.append(given)
    sources = list({p.resolve(): p for p in reversed(sources)}.values())[::-1]  # each once, however it is named
    if out.suffix.lower() in WRITTEN and not out.is_dir():
        several = len(sources) > 1 or inputs[0].is_dir()
        require(not several, "--out", out, "a folder is needed for a folder or several pictures")
        targets = [out]
    else:
        file = len(sources) == 1 and not out.is_dir() and 2 < len(out.suffix) < 6 and out.suffix[1].isalpha()
        require(not file, "--out", out, f"a folder, or a file that ends in {' '.join(WRITTEN)}, is needed")
        require(out.is_dir() or not out.exists(), "--out", out, "it exists and is not a folder")
        targets = [out / name for name in _names(sources, scale)]
        for target, count in Counter(targets).items():
            shown = f"{count} pictures would be written as {target}"
            require(count == 1, "INPUT", target, "give them one by one", shown)
    for source, target in zip(sources, targets, strict=True):
        same = target.exists() and source.exists() and source.samefile(target)
        require(not same, "--out", target, "it is the input itself")
    return list(zip(sources, targets, strict=True))


def _names(sources: Sequence[Path], scale: float) -> list[str]:
    """The names of the results. Sources that differ in their suffix alone (a.jpg, a.png) keep it, so none replaces another."""
    same = Counter(p.stem for p in sources)
    suffixes = [p.suffix.replace(".", "_") if same[p.stem] > 1 else "" for p in sources]
    return [f"{p.stem}{suffix}_x{scale:.12g}.png" for p, suffix in zip(sources, suffixes, strict=True)]


def _one(
    source: Path, target: Path, scale: float, quality: int | None, upscaled: Callable[[torch.Tensor], torch.Tensor]
) -> str:
    """Upscales one file; returns its sizes in words."""
    from tqdm import tqdm

    picture = images.read(source)
    height, width = (max(1, round(side * scale)) for side in picture.colour.shape[-2:])
    images.check(target, picture, (height, width))
    if picture.frames > 1:
        tqdm.write(f"note    {source}: it has {picture.frames} frames or pages, and the first is taken", file=sys.stderr)
    colour = upscaled(picture.visible)
    alpha = picture.alpha
    if alpha is not None:
        alpha = bicubic(alpha, colour.shape[-2:]).clamp(0, 1)
    images.write(target, images.Picture(colour, alpha, picture.bits, picture.profile), quality)
    before, after = picture.colour.shape, colour.shape
    return f"{before[3]}x{before[2]} -> {after[3]}x{after[2]}"
