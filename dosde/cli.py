"""The command line: `dosde upscale INPUT... -o OUT`, `dosde evaluate --pairs FOLDER` or `--compare FILE...`,
`dosde convert CHECKPOINT -o FOLDER`, `dosde train --config FILE`.

Exit status: 0 all done (or kept), 1 some file failed (each is named, the rest is done) or a conversion or a training did,
2 a wrong argument or config, or results that must not be compared (nothing is done), 130 stopped by the keyboard.
"""

import argparse
import hashlib
import io
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from . import __version__, method, presets
from .solve import _default_order, plan

if TYPE_CHECKING:
    from backbones import Backbone

_DEFAULTS = {"scale": 4.0, "steps": 5, "seed": 0}
METHODS: dict[str, tuple[method.Method, int | None]] = {
    "dos": (method.dos, 3),
    "adams": (method.adams, None),
    "ode": (method.ode, None),
    "resshift": (method.resshift, 1),
}
_FEW_STEP = "few_step"  # presets.few_step: the method and the times follow from the backbone's residual scale
_NEEDS_IMAGES = "needs the extra 'images' (in the repository: pip install '.[images]')"
_NEEDS_SD21 = "the backbone sd21 needs the extra 'sd21' (in the repository: pip install '.[sd21]')"
_NEEDS_TRAIN = "dosde train needs the extra 'train' (in the repository: pip install '.[train]')"
# Options that not every backbone has, as `load` of these names them.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "embedded": ("weights", "tile", "dtype", "device"),
    "sd21": (
        *("weights", "prompt", "negative_prompt", "guidance_scale", "color_fix", "source", "tile", "max_memory"),
        *("dtype", "device"),
    ),
}


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
        usage="dosde upscale INPUT... -o OUT [--scale 4] [--steps 5] [...]",
        help="upscale pictures",
        description="Upscale pictures, or all pictures in a folder, in a few model calls each.",
        epilog="Each INPUT gives NAME_xSCALE.png in the folder OUT (or exactly OUT, if that is a file name with a suffix and "
        "there is one INPUT). Grey, alpha, 16 bits, colour profile and EXIF orientation are kept. An output that exists stays "
        "unless --overwrite is given, so that a stopped run can be resumed.",
    )
    upscale.add_argument("inputs", nargs="+", type=_path, metavar="INPUT", help="a picture, or a folder of pictures")
    upscale.add_argument("-o", "--out", type=_path, required=True, metavar="OUT", help="a folder, or a file for one INPUT")
    _add_solver(upscale.add_argument)
    upscale.add_argument("--overwrite", action="store_true", help="make outputs anew that exist")
    _add_backbones(upscale)
    upscale.set_defaults(run=lambda arguments: _upscale(arguments, upscale.error))
    evaluate = commands.add_parser(
        "evaluate",
        usage="dosde evaluate --pairs FOLDER [--results FOLDER] [-o FILE] [...]\n"
        "       dosde evaluate --compare FILE... [--across KEY,...]",
        help="measure upscaled pictures against the truth, and compare such measurements",
        description="Upscale the pictures of low resolution in a folder, or take the results of any tool, and measure them "
        "against those of high resolution: PSNR and SSIM of brightness as the field reports them, and metrics of pyiqa.",
        epilog="docs/evaluate.md says what is measured, how, and what the file of -o holds.",
    )
    _add_evaluation(evaluate.add_argument)
    _add_solver(evaluate.add_argument)
    _add_backbones(evaluate)
    # So that a given option is known from one left out: each use of the command refuses those that it has no use for.
    evaluate.set_defaults(**dict.fromkeys(_DEFAULTS), run=lambda arguments: _evaluate(arguments, evaluate.error))
    convert = commands.add_parser(
        "convert",
        usage="dosde convert [CHECKPOINT] -o OUT [...]",
        help="weights of DoSSR or DiffBIR: released checkpoint to diffusers folder, and back",
        description="Convert a checkpoint in the released layout (dossr_default.ckpt, DiffBIR v1; .ckpt or .safetensors) to a "
        "folder in diffusers' layout, or such a folder to a checkpoint: a round trip is exact. Without CHECKPOINT, build the "
        "folder where fine-tuning starts from --base and --preprocessor.",
    )
    convert.add_argument("checkpoint", nargs="?", type=_path, metavar="CHECKPOINT", help="a file, or a folder to convert back")
    convert.add_argument(
        "-o", "--out", type=_path, required=True, metavar="OUT", help="a folder, or a .safetensors or .ckpt file for a folder"
    )
    convert.add_argument(
        "--base", metavar="FOLDER", help="SD 2.1-base in diffusers' layout: tokenizer, and what CHECKPOINT lacks"
    )
    convert.add_argument(
        "--preprocessor", type=_path, metavar="FILE", help="an RRDBNet (Real-ESRGAN, BSRGAN, LDL: .pth, .safetensors)"
    )
    convert.add_argument(
        "--original-config", type=_path, metavar="YAML", help="the release's, for num_head_channels (default: 64)"
    )
    convert.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="of the weights (default: as in CHECKPOINT)"
    )
    convert.set_defaults(run=lambda arguments: _convert(arguments, convert.error))
    train = commands.add_parser(
        "train",
        usage="dosde train --config FILE [--resume | --overwrite]",
        help="train or fine-tune a network, on one machine or many",
        description="Train what a config (TOML) says: a pixel network, or DoSSR's ControlNet. Checkpoints, log and result go "
        "to the folder `out` of the config.",
        epilog="Several processes, on this machine or others: accelerate launch -m dosde train --config FILE. The keys of a "
        "config are in docs/training.md, examples in configs/.",
    )
    train.add_argument("--config", type=_path, required=True, metavar="FILE", help="see docs/training.md")
    start = train.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on from the last checkpoint in `out`, if there is one")
    start.add_argument("--overwrite", action="store_true", help="start anew, and delete the run in `out`")
    train.set_defaults(run=lambda arguments: _train(arguments, train.error))
    return parser


def _add_evaluation(add: Callable[..., object]) -> None:
    add("--pairs", type=_path, metavar="FOLDER", help="hr/ and perhaps lr/ in it, or itself pictures of high resolution")
    add("--results", type=_path, metavar="FOLDER", help="pictures to measure: NAME, NAMExSCALE or NAME_xSCALE")
    add("-o", "--out", type=_path, metavar="FILE", help="JSON: protocol, means, every picture")
    add("--metrics", metavar="NAME,...", help="of psnr, ssim, lpips, clipiqa, musiq, maniqa, topiq (default: psnr,ssim)")
    add("--border", type=int, metavar="PIXELS", help="cut off for PSNR and SSIM at each side (default: the scale)")
    add("--crop", type=int, metavar="PIXELS", help="measure a square in the middle (default: whole pictures)")
    add("--nfe", type=int, metavar="CALLS", help="of --results: network calls a picture, for the protocol")
    add("--compare", nargs="+", type=_path, metavar="FILE", help="files of -o: one table, if their protocols agree")
    add("--across", metavar="KEY,...", help="keys of the protocol that may differ in --compare, such as nfe")


def _add_solver(add: Callable[..., object]) -> None:
    add("--scale", type=float, default=_DEFAULTS["scale"], help="how many times as large, at least 1 (default: 4)")
    add("--steps", type=int, default=_DEFAULTS["steps"], help="model calls a picture (default: 5)")
    add("--order", type=int, help="order of the solver, 1 to --steps (default: 3, or --steps if less)")
    add("--method", choices=[*METHODS, _FEW_STEP], help="solver (default: the backbone's)")
    add("--seed", type=int, default=_DEFAULTS["seed"], help="of the noise; each picture has it afresh (default: 0)")
    add("--backbone", metavar="NAME", help="the model: embedded, gaussian or sd21 (default: embedded, sd21 with --weights)")


def _add_backbones(parser: argparse.ArgumentParser) -> None:
    networks = "the backbones embedded (a small network) and sd21 (DoSSR: SD 2.1 with a ControlNet)"
    _add_networks(parser.add_argument_group(networks).add_argument)
    _add_sd21(parser.add_argument_group("the backbone sd21").add_argument)


def _add_networks(add: Callable[..., object]) -> None:
    """Defaults are those of `load` of the backbones, so that a given option is known from one left out."""
    add(
        "--weights",
        metavar="PATH",
        help="sd21: a folder written by `dosde convert`, or a checkpoint in the released layout; embedded: a .safetensors file",
    )
    add("--tile", type=_tile, metavar="PIXELS", help="side of the tiles in the output, 'auto' or 'none' (default: auto)")
    add("--dtype", choices=("auto", "float32", "float16", "bfloat16"), help="default: bfloat16 on a GPU, float32 on the CPU")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")


def _add_sd21(add: Callable[..., object]) -> None:
    """Defaults are those of `backbones.sd21.backbone.load`, so that a given option is known from one left out."""
    add("--prompt", help="default: the release's, 'clean, high-resolution, 8k'")
    add("--negative-prompt", metavar="PROMPT", help="for a guidance other than 1 (default: empty)")
    add("--guidance", dest="guidance_scale", type=float, metavar="SCALE", help="1: none, half the work (default)")
    add("--color-fix", choices=("wavelet", "adain", "none"), help="default: wavelet")
    add("--source", choices=("mode", "sample"), help="x_hat0: mode of the VAE's posterior, or a sample (default: mode)")
    add(
        "--max-memory",
        type=_bytes,
        metavar="SIZE",
        help="for auto tiles, such as 6G, beside the weights (default: 80%% of what is free)",
    )


def _tile(text: str) -> int | str:
    return text if text in ("auto", "none") else int(text)


def _bytes(text: str) -> float:
    units = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
    number, unit = text.lower().removesuffix("b").removesuffix("i"), ""
    if number[-1:] in units:
        number, unit = number[:-1], number[-1:]
    size = float(number) * units[unit]
    if not 0 < size < float("inf"):
        raise ValueError
    return size


def _path(name: str) -> Path:
    if not name:
        raise argparse.ArgumentTypeError("an empty name; a file or a folder is needed")
    return Path(name)


@dataclass(frozen=True)
class _Solver:
    """What the options of the solver and the backbone say. how: None is the backbone's method; order: None is its own."""

    scale: float
    steps: int
    order: int | None
    how: str | None
    seed: int
    name: str
    options: dict[str, object]

    def upscaled(self, backbone: "Backbone", picture: torch.Tensor, progress: bool) -> torch.Tensor:
        """Each picture has the noise of the seed afresh."""
        from backbones import upscale

        noise = torch.Generator().manual_seed(self.seed)
        how = self.on(backbone)
        return upscale(backbone, picture, self.scale, self.steps, self.order, noise=noise, progress=progress, **how)

    def on(self, backbone: "Backbone") -> dict[str, Any]:
        """Method and grid."""
        if self.how == _FEW_STEP and backbone.residual_scale is not None:
            return presets.few_step(backbone.residual_scale)
        how = METHODS[self.how][0] if self.how in METHODS else backbone.method
        return {"method": how, "grid": backbone.grid}


def _solver(arguments: argparse.Namespace, command: str, fail: Callable[[str], NoReturn]) -> _Solver:
    """Checked as far as it can be before anything loads."""
    how, (_, most) = arguments.method, METHODS.get(arguments.method, (None, None))
    steps, limit = arguments.steps, arguments.steps if most is None else min(most, arguments.steps)
    order = arguments.order
    if order is None and how is not None:
        order = min(3, limit)
    if not 0 < arguments.scale <= 64:
        fail(f"--scale: {arguments.scale:g}; a number above 0, up to 64, is needed")
    if steps < 1:
        fail(f"--steps: {steps}; a positive number is needed")
    if order is not None and not 1 <= order <= limit:
        chosen = "" if how is None else f"--method {how} "
        fail(f"--order: {order}; 1 to {limit} is needed with {chosen}--steps {steps}")
    _check_seed(arguments.seed, fail)
    _check_images(command, fail)
    return _Solver(arguments.scale, steps, order, how, arguments.seed, *_options(arguments, fail))


def _check_seed(seed: int, fail: Callable[[str], NoReturn]) -> None:
    if not 0 <= seed < 2**63:
        fail(f"--seed: {seed}; a number from 0 to 2^63 - 1 is needed")


def _check_images(command: str, fail: Callable[[str], NoReturn]) -> None:
    try:
        import PIL  # noqa: F401
        import tqdm  # noqa: F401

        import backbones  # noqa: F401
    except ImportError as error:
        fail(f"dosde {command} {_NEEDS_IMAGES} ({error})")


def _loaded(solver: _Solver, command: str, one: bool, fail: Callable[[str], NoReturn]) -> "Backbone":
    """The backbone, which has been checked to take the solver. one: there is one picture, so the bars are of its steps."""
    import backbones

    options = {**solver.options, "progress": one} if solver.name == "sd21" else solver.options
    try:
        backbone = backbones.load(solver.name, **options)
    except ImportError as error:
        fail(f"{_NEEDS_SD21 if solver.name == 'sd21' else f'dosde {command} {_NEEDS_IMAGES}'} ({error})")
    except ValueError as error:
        argument, _, rest = str(error).partition(":")
        argument = "weights" if argument == "checkpoint" else argument
        fail(f"--{argument.replace('_', '-')}:{rest}")
    if solver.scale < backbone.least_scale:
        fail(f"--scale: {solver.scale:g}; {backbone.least_scale:g} to 64 is needed with --backbone {solver.name}")
    if solver.how == _FEW_STEP and backbone.residual_scale is None:
        fail(f"--method: {_FEW_STEP}; a backbone that knows its residual scale is needed, and {solver.name} does not")
    try:
        plan(backbone.process, solver.steps, solver.order, **solver.on(backbone))
    except ValueError as error:
        argument, _, rest = str(error).partition(":")
        fail(f"--{argument}:{rest}" if argument in ("order", "steps", "method") else str(error))
    return backbone


def _options(arguments: argparse.Namespace, fail: Callable[[str], NoReturn]) -> tuple[str, dict[str, object]]:
    """The backbone, and its options: those that were given."""
    every = dict.fromkeys(option for options in _OPTIONS.values() for option in options)
    given = {option: value for option in every if (value := getattr(arguments, option, None)) is not None}
    if given.get("tile") == "none":
        given["tile"] = None
    name = arguments.backbone or ("sd21" if "weights" in given else "embedded")
    for option in given:
        if option not in _OPTIONS.get(name, ()):
            having = " or ".join(other for other, options in _OPTIONS.items() if option in options)
            fail(f"{_flag(option)}: needs --backbone {having}, and the backbone is {name}")
    if name == "sd21" and "weights" not in given:
        fail("--weights: none; the backbone sd21 needs a folder written by `dosde convert`")
    return name, given


def _flag(option: str) -> str:
    return "--" + option.replace("_scale", "").replace("_", "-")


def _reason(error: Exception) -> str:
    """In one line."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, MemoryError) or "allocate memory" in reason:
        return "not enough memory for a picture of this size at this scale"
    return reason


def _warn_above_bars() -> None:
    from tqdm import tqdm

    warnings.showwarning = lambda message, *_, **__: tqdm.write(f"warning: {message}", file=sys.stderr)


def _upscale(arguments: argparse.Namespace, fail: Callable[[str], NoReturn]) -> int:
    solver = _solver(arguments, "upscale", fail)
    from tqdm import tqdm

    try:
        jobs = _jobs(arguments.inputs, arguments.out, arguments.scale, fail)
    except OSError as error:
        fail(f"INPUT, --out: {error}")
    one = len(jobs) == 1
    backbone = _loaded(solver, "upscale", one, fail)
    folder = jobs[0][1].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out: {error}")
    if not os.access(folder, os.W_OK | os.X_OK):
        fail(f"--out: {folder}; a folder that can be written to is needed")
    _warn_above_bars()

    kept, failed, start = 0, [], time.perf_counter()
    bar = tqdm(jobs, unit="picture", disable=one)
    for source, target in bar:
        try:
            if target.is_file() and not arguments.overwrite:
                kept, said = kept + 1, f"kept    {target} (exists; --overwrite makes it anew)"
            else:
                size = _one(source, target, lambda picture: solver.upscaled(backbone, picture, one))
                said = f"wrote   {target} ({size})"
        except Exception as error:  # whatever is wrong with a file costs that file alone
            failed.append(source)
            tqdm.write(f"failed  {source}: {_reason(error)}", file=sys.stderr)
        else:
            tqdm.write(said)
    done = len(jobs) - kept - len(failed)
    print(f"{done} written, {kept} kept, {len(failed)} failed in {time.perf_counter() - start:.1f} s", flush=True)
    return 1 if failed else 0


def _jobs(inputs: Sequence[Path], out: Path, scale: float, fail: Callable[[str], NoReturn]) -> list[tuple[Path, Path]]:
    """(source, target) for every picture, in a predictable order."""
    from backbones.pictures import io as images

    suffixes = images.SUFFIXES
    sources: list[Path] = []
    for given in inputs:
        if given.is_dir():
            if out.is_dir() and given.samefile(out):
                fail(f"--out: {out}; another folder than INPUT is needed, or results would be taken for pictures next time")
            found = images.listed(given)
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
    return list(zip(sources, targets, strict=True))


def _one(source: Path, target: Path, upscaled: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Upscales one file; returns its sizes in words."""
    from backbones.pictures import io as images

    picture = images.read(source)
    images.check(target, picture)
    colour = upscaled(picture.colour)
    alpha = picture.alpha
    if alpha is not None:
        alpha = images.resized(alpha, colour.shape[-2:])
    images.write(target, images.Picture(colour, alpha, picture.bits, picture.profile))
    before, after = picture.colour.shape, colour.shape
    return f"{before[3]}x{before[2]} -> {after[3]}x{after[2]}"


def _evaluate(arguments: argparse.Namespace, fail: Callable[[str], NoReturn]) -> int:
    _check_use(arguments, fail)
    try:
        return _measure(arguments, fail) if arguments.compare is None else _compare(arguments, fail)
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130


def _check_use(arguments: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """Options that are for another use of evaluate."""
    given = {option: value for option, value in vars(arguments).items() if value is not None and option != "run"}
    if "compare" not in given and "pairs" not in given:
        fail("--pairs: none; a folder of pictures is needed, or --compare and files")
    about = {"pairs", "out", "metrics", "border", "crop", "scale", "seed"}
    for option, value in given.items():
        if "compare" in given and option not in ("compare", "across"):
            fail(f"{_flag(option)}: {value}; --compare takes --across alone")
        if "compare" not in given and option == "across":
            fail(f"--across: {value}; it is for --compare")
        if "compare" not in given and "results" in given and option not in about | {"results", "nfe"}:
            fail(f"{_flag(option)}: {value}; with --results nothing is upscaled")
    if "nfe" in given and "results" not in given:
        fail(f"--nfe: {arguments.nfe}; it is for --results, otherwise --steps says it")


def _compare(arguments: argparse.Namespace, fail: Callable[[str], NoReturn]) -> int:
    from backbones import evaluation

    try:
        print(evaluation.compare(arguments.compare, [] if arguments.across is None else arguments.across.split(",")))
    except ValueError as error:
        fail(f"--{error}")
    return 0


def _measure(arguments: argparse.Namespace, fail: Callable[[str], NoReturn]) -> int:
    seed, nfe = arguments.seed, arguments.nfe
    for option, value in _DEFAULTS.items():
        if getattr(arguments, option) is None:
            setattr(arguments, option, value)
    if arguments.scale not in range(1, 65):
        fail(f"--scale: {arguments.scale:g}; a whole number from 1 to 64 is needed")
    if nfe is not None and nfe < 0:
        fail(f"--nfe: {nfe}; a number from 0 is needed")
    _check_seed(arguments.seed, fail)
    _check_images("evaluate", fail)
    solver = _solver(arguments, "evaluate", fail) if arguments.results is None else None
    from tqdm import tqdm

    import backbones
    from backbones import evaluation
    from backbones.pictures import metrics

    scale = int(arguments.scale)
    border = scale if arguments.border is None else arguments.border
    names = list(dict.fromkeys(["psnr", "ssim"] if arguments.metrics is None else arguments.metrics.split(",")))
    device = "auto" if solver is None else str(solver.options.get("device", "auto"))
    try:
        metrics.check_metrics(names)
        pairs = evaluation.found(arguments.pairs, scale, arguments.crop, arguments.results)
        evaluation.check_border(pairs, border)
        if arguments.out is not None:
            evaluation.check_out(arguments.out)
        by = metrics.metrics(names, border, backbones.device(device))
    except ImportError as error:
        fail(f"dosde evaluate {_NEEDS_IMAGES} ({error})")
    except ValueError as error:
        fail(f"--{error}")
    except OSError as error:
        fail(f"--pairs, --results: {error}")
    one = len(pairs.hr) == 1
    upscaled, about = None, dict[str, object](results=str(arguments.results))
    if solver is not None:
        backbone = _loaded(solver, "evaluate", one, fail)
        upscaled, about = partial(solver.upscaled, backbone, progress=one), _about(solver, backbone)
        seed, nfe = solver.seed, solver.steps
    _warn_above_bars()

    rows, failed, start = {}, {}, time.perf_counter()
    widths = [max(map(len, ("picture", *pairs.hr))), *(max(10, len(name)) for name in names)]
    print(evaluation.line(["picture", *names], widths))
    for name in tqdm(pairs.hr, unit="picture", disable=one):
        try:
            rows[name] = evaluation.measured(pairs, name, by, upscaled)
        except Exception as error:  # whatever is wrong with a picture costs that picture alone
            failed[name] = _reason(error)
            tqdm.write(f"failed  {name}: {failed[name]}", file=sys.stderr)
        else:
            tqdm.write(evaluation.line([name, *(f"{value:.4f}" for value in rows[name].values.values())], widths))
    if rows:
        print(evaluation.line(["mean", *(f"{value:.4f}" for value in evaluation.means(rows).values())], widths))
    print(f"{len(rows)} measured, {len(failed)} failed in {time.perf_counter() - start:.1f} s", flush=True)
    if arguments.out is not None:
        made = evaluation.document(pairs, by, rows, failed, border=border, seed=seed, nfe=nfe, method=about)
        try:
            evaluation.write(arguments.out, made)
        except OSError as error:
            print(f"dosde evaluate: error: --out: {error}", file=sys.stderr)
            return 1
        print(f"wrote   {arguments.out}")
    return 1 if failed else 0


def _about(solver: _Solver, backbone: "Backbone") -> dict[str, object]:
    """What upscales, for the record: of the weights the name, and what their file holds."""
    from backbones import embedded

    given = dict(solver.options)
    weights = given.pop("weights", embedded.WEIGHTS if solver.name == "embedded" else None)
    path = None if weights is None else Path(str(weights)).resolve()
    digest = None
    if path is not None and path.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    usual = min(_default_order(solver.on(backbone)["method"]), solver.steps)
    return {
        "backbone": solver.name,
        "weights": None if path is None else path.name,
        "sha256": digest,
        "steps": solver.steps,
        "order": usual if solver.order is None else solver.order,
        "method": solver.how or "that of the backbone",
        "options": given,
        "dosde": __version__,
        "torch": torch.__version__,
    }


def _convert(arguments: argparse.Namespace, fail: Callable[[str], NoReturn]) -> int:
    source, out = arguments.checkpoint, arguments.out
    try:
        from backbones.sd21 import convert
    except ImportError as error:
        fail(f"{_NEEDS_SD21} ({error})")
    try:
        if source is not None and source.is_dir():
            for option in ("base", "preprocessor", "original_config", "dtype"):
                if getattr(arguments, option) is not None:
                    fail(f"--{option.replace('_', '-')}: only for a conversion to a folder, and CHECKPOINT is a folder")
            convert.to_checkpoint(source, out)
        else:
            convert.check_out(out)
            if source is not None:
                made = convert.parts_of_checkpoint(source, arguments.original_config, arguments.preprocessor, arguments.base)
            elif arguments.base is None or arguments.preprocessor is None:
                fail("CHECKPOINT: none; one is needed, or --base and --preprocessor, to start fine-tuning from")
            else:
                made = convert.start(arguments.base, arguments.preprocessor)
            dtype = None if arguments.dtype is None else convert.DTYPES[arguments.dtype]
            convert.to_folder(made, out, dtype=dtype, tokenizer=convert.tokenizer_folder(arguments.base))
    except (ValueError, OSError) as error:
        print(f"dosde convert: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"wrote   {out}")
    return 0


def _train(arguments: argparse.Namespace, fail: Callable[[str], NoReturn]) -> int:
    rank = os.environ.get("RANK", "0")
    start = "resume" if arguments.resume else "overwrite" if arguments.overwrite else "new"
    try:
        import accelerate  # noqa: F401
        import safetensors  # noqa: F401
        import tqdm  # noqa: F401

        from backbones.training import config, loop
    except ImportError as error:
        fail(f"{_NEEDS_TRAIN} ({error})")
    try:
        result = loop.train(config.load(arguments.config), start=start)
    except (ValueError, OSError, loop.Stopped) as error:
        which = "" if rank == "0" else f" (process {rank})"
        print(f"dosde train: error{which}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print("stopped; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    if rank == "0":
        print(f"wrote   {result}")
    return 0
