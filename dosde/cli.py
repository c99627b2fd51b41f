"""The command line: `dosde upscale INPUT... -o OUT`.

Exit status: 0 all done (or kept), 1 some file failed (each is named, the rest is done), 2 a wrong argument (nothing is done),
130 stopped by the keyboard.
"""

import argparse
import io
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from . import __version__, method

if TYPE_CHECKING:
    from backbones import Backbone

METHODS: dict[str, tuple[method.Method, int | None]] = {
    "dos": (method.dos, 3),
    "adams": (method.adams, None),
    "ode": (method.ode, None),
    "resshift": (method.resshift, 1),
}
_NEEDS_IMAGES = "dosde upscale needs the extra 'images' (in the repository: pip install '.[images]')"


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point."""
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dosde", description="Diffusion that starts from a known source.")
    parser.add_argument("--version", action="version", version=f"dosde {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    upscale = commands.add_parser(
        "upscale",
        help="upscale pictures",
        description="Upscale pictures, or all pictures in a folder, in a few model calls each.",
        epilog="Each INPUT gives NAME_xSCALE.png in the folder OUT (or exactly OUT, if that is a file name with a suffix and "
        "there is one INPUT). Grey, alpha, 16 bits, colour profile and EXIF orientation are kept. An output that exists stays "
        "unless --overwrite is given, so that a stopped run can be resumed.",
    )
    upscale.add_argument("inputs", nargs="+", type=_path, metavar="INPUT", help="a picture, or a folder of pictures")
    upscale.add_argument("-o", "--out", type=_path, required=True, metavar="OUT", help="a folder, or a file for one INPUT")
    upscale.add_argument("--scale", type=float, default=4.0, help="how many times as large, at least 1 (default: 4)")
    upscale.add_argument("--steps", type=int, default=5, help="model calls a picture (default: 5)")
    upscale.add_argument("--order", type=int, help="order of the solver, 1 to --steps (default: 3, or --steps if less)")
    upscale.add_argument("--method", choices=METHODS, default="dos", help="solver (default: dos, the paper's)")
    upscale.add_argument("--seed", type=int, default=0, help="of the noise; each picture has it afresh (default: 0)")
    upscale.add_argument("--backbone", default="gaussian", metavar="NAME", help="the model (default: gaussian)")
    upscale.add_argument("--overwrite", action="store_true", help="make outputs anew that exist")
    upscale.set_defaults(run=lambda arguments: _upscale(arguments, upscale.error))
    return parser


def _path(name: str) -> Path:
    if not name:
        raise argparse.ArgumentTypeError("an empty name; a file or a folder is needed")
    return Path(name)


def _upscale(arguments: argparse.Namespace, fail: Callable[[str], NoReturn]) -> int:
    how, most = METHODS[arguments.method]
    steps, limit = arguments.steps, arguments.steps if most is None else min(most, arguments.steps)
    order = arguments.order if arguments.order is not None else min(3, limit)
    if not 1 <= arguments.scale <= 64:
        fail(f"--scale: {arguments.scale:g}; a number from 1 to 64 is needed")
    if steps < 1:
        fail(f"--steps: {steps}; a positive number is needed")
    if not 1 <= order <= limit:
        fail(f"--order: {order}; 1 to {limit} is needed with --method {arguments.method} --steps {steps}")
    if not 0 <= arguments.seed < 2**63:
        fail(f"--seed: {arguments.seed}; a number from 0 to 2^63 - 1 is needed")
    try:
        import PIL  # noqa: F401
        from tqdm import tqdm

        import backbones
        from backbones import images
    except ImportError as error:
        fail(f"{_NEEDS_IMAGES} ({error})")
    try:
        backbone = backbones.load(arguments.backbone)
    except ValueError as error:
        fail(f"--{error}")
    try:
        jobs = _jobs(arguments.inputs, arguments.out, arguments.scale, images.SUFFIXES, fail)
    except OSError as error:
        fail(f"INPUT, --out: {error}")
    warnings.showwarning = lambda message, *_, **__: tqdm.write(f"warning: {message}", file=sys.stderr)

    kept, failed, start = 0, [], time.perf_counter()
    bar = tqdm(jobs, unit="picture", disable=len(jobs) < 2)
    for source, target in bar:
        try:
            if target.is_file() and not arguments.overwrite:
                kept, said = kept + 1, f"kept    {target} (exists; --overwrite makes it anew)"
            else:
                size = _one(backbone, source, target, arguments, order, how, progress=len(jobs) == 1)
                said = f"wrote   {target} ({size})"
        except Exception as error:  # whatever is wrong with a file costs that file alone
            failed.append(source)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if isinstance(error, MemoryError) or "allocate memory" in reason:
                reason = "not enough memory for a picture of this size at this scale"
            tqdm.write(f"failed  {source}: {reason}", file=sys.stderr)
        else:
            tqdm.write(said)
    done = len(jobs) - kept - len(failed)
    print(f"{done} written, {kept} kept, {len(failed)} failed in {time.perf_counter() - start:.1f} s", flush=True)
    return 1 if failed else 0


def _jobs(
    inputs: Sequence[Path], out: Path, scale: float, suffixes: Sequence[str], fail: Callable[[str], NoReturn]
) -> list[tuple[Path, Path]]:
    """(source, target) for every picture, in a predictable order."""
    sources: list[Path] = []
    for given in inputs:
        if given.is_dir():
            if out.is_dir() and given.samefile(out):
                fail(f"--out: {out}; another folder than INPUT is needed, or results would be taken for pictures next time")
            found = sorted(p for p in given.iterdir() if p.suffix.lower() in suffixes and p.name[0] != "." and not p.is_dir())
            if not found:
                fail(f"INPUT: {given}; a folder with pictures ({' '.join(suffixes)}) is needed")
            sources += found
        elif given.exists():
            sources.append(given)
        else:
            fail(f"INPUT: {given}; no such file or folder")
    sources = list({p.resolve(): p for p in reversed(sources)}.values())[::-1]  # each once, however it is named
    if out.suffix.lower() in suffixes and not out.is_dir():
        if len(sources) > 1 or inputs[0].is_dir():
            fail(f"--out: {out}; a folder is needed for a folder or several pictures")
        targets = [out]
    else:
        if len(sources) == 1 and not out.is_dir() and 2 < len(out.suffix) < 6 and out.suffix[1].isalpha():
            fail(f"--out: {out}; a folder, or a file that ends in {' '.join(suffixes)}, is needed")
        if out.exists() and not out.is_dir():
            fail(f"--out: {out}; it exists and is not a folder")
        ending = f"_x{scale:.12g}.png"
        same = Counter(p.stem for p in sources)
        # Names that differ in their suffix only (a.jpg, a.png) keep it, or one would overwrite the other.
        names = [p.stem + (p.suffix.replace(".", "_") if same[p.stem] > 1 else "") + ending for p in sources]
        targets = [out / name for name in names]
        for name, count in Counter(names).items():
            if count > 1:
                fail(f"INPUT: {count} pictures would be written as {out / name}; give them one by one")
    for source, target in zip(sources, targets, strict=True):
        if target.exists() and source.exists() and source.samefile(target):
            fail(f"--out: {target}; it is the input itself")
    folder = targets[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        fail(f"--out: {folder}; a folder that can be written to is needed")
    return list(zip(sources, targets, strict=True))


def _one(
    backbone: "Backbone",
    source: Path,
    target: Path,
    arguments: argparse.Namespace,
    order: int,
    how: method.Method,
    progress: bool,
) -> str:
    """Upscales one file; returns its sizes in words."""
    from backbones import images, upscale

    picture = images.read(source)
    images.check(target, picture)
    noise = torch.Generator().manual_seed(arguments.seed)
    colour = upscale(
        backbone, picture.colour, arguments.scale, arguments.steps, order, noise=noise, method=how, progress=progress
    )
    alpha = picture.alpha
    if alpha is not None:
        alpha = torch.nn.functional.interpolate(alpha, colour.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    images.write(target, images.Picture(colour, alpha, picture.bits, picture.profile))
    before, after = picture.colour.shape, colour.shape
    return f"{before[3]}x{before[2]} -> {after[3]}x{after[2]}"
