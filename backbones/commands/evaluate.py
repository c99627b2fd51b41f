"""`dosde evaluate --pairs FOLDER` or `--compare FILE...`."""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import backbones
from backbones import whole

from .options import (
    DEFAULTS,
    NEEDS_IMAGES,
    Unusable,
    about,
    add_backbones,
    add_solver,
    check_images,
    check_seed,
    flag,
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
    from backbones.evaluation import Pairs

    from .options import Commands

_METRICS = "psnr, ssim, lpips, lpips_vgg, dists, clipiqa, musiq, maniqa, topiq"  # of backbones.pictures.metrics, without torch


def add(commands: "Commands") -> argparse.ArgumentParser:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "evaluate",
        usage="dosde evaluate --pairs FOLDER [--results FOLDER] [-o FILE] [...]\n"
        "       dosde evaluate --hr FOLDER [--lr FOLDER] [--results FOLDER] [-o FILE] [...]\n"
        "       dosde evaluate --compare FILE... [--across KEY,...]",
        help="measure upscaled pictures against the truth, and compare such measurements",
        description="Upscale the pictures of low resolution in a folder, or take the results of any tool, and measure them "
        "against those of high resolution: PSNR and SSIM of brightness as the field reports them, LPIPS, DISTS, and metrics of "
        "pyiqa.",
        epilog="docs/evaluate.md says what is measured, how, and what the file of -o holds.",
    )
    _add_evaluation(parser.add_argument)
    add_solver(parser)
    add_backbones(parser)
    # So that a given option is known from one left out: each use of the command refuses those that it has no use for.
    parser.set_defaults(**dict.fromkeys(DEFAULTS))
    return parser


def _add_evaluation(add: Callable[..., object]) -> None:
    add("--pairs", type=path_of, metavar="FOLDER", help="hr/ and perhaps lr/ in it, or itself pictures, as data sets have them")
    add("--hr", type=path_of, metavar="FOLDER", help="instead of --pairs: pictures of high resolution")
    add("--lr", type=path_of, metavar="FOLDER", help="with --hr: pictures of low resolution (default: made, bicubic)")
    add("--results", type=path_of, metavar="FOLDER", help="pictures to measure: NAME, NAMExSCALE or NAME_xSCALE")
    add("-o", "--out", type=path_of, metavar="FILE", help="JSON: protocol, means, every picture")
    add("--metrics", metavar="NAME,...", help=f"of {_METRICS} (default: psnr,ssim)")
    add("--metric-weights", type=path_of, metavar="FOLDER", help="of lpips, lpips_vgg, dists (default: those of pyiqa)")
    add("--border", type=whole_number, metavar="PIXELS", help="cut off for PSNR and SSIM at each side (default: the scale)")
    add("--crop", type=whole_number, metavar="PIXELS", help="measure a square in the middle (default: whole pictures)")
    add("--nfe", type=whole_number, metavar="CALLS", help="of --results: network calls a picture, for the protocol")
    add("--compare", nargs="+", type=path_of, metavar="FILE", help="files of -o: one table, if their protocols agree")
    add("--across", metavar="KEY,...", help="keys of the protocol that may differ in --compare, such as nfe")


def run(arguments: argparse.Namespace) -> int:
    """Measures or compares; returns the exit status."""
    _check_use(arguments)
    return _measure(arguments) if arguments.compare is None else _compare(arguments)


def _check_use(arguments: argparse.Namespace) -> None:
    """Refuses options that are for another use of the command."""
    given = {option: value for option, value in vars(arguments).items() if value is not None and option != "run"}
    measuring = {"pairs", "hr", "lr", "out", "metrics", "metric_weights", "border", "crop", "scale", "seed", "results", "nfe"}
    known = {"compare", "pairs", "hr"} & set(given)
    require(bool(known), "--pairs", None, "a folder of pictures is needed, or --compare and files, or --hr", "none")
    for option, value in given.items():
        why = None
        if "compare" in given:
            why = None if option in ("compare", "across") else "--compare takes --across alone"
        elif option == "across":
            why = "it is for --compare"
        elif option == "lr" and "hr" not in given:
            why = "it is for --hr"
        elif option == "hr" and "pairs" in given:
            why = "it is for use without --pairs"
        elif "results" in given:
            why = None if option in measuring else "with --results nothing is upscaled"
        elif option == "nfe":
            why = "it is for --results, otherwise --steps says it"
        require(why is None, flag(option), value, why or "")


def _compare(arguments: argparse.Namespace) -> int:
    from backbones import evaluation

    with flags():
        print(evaluation.compare(arguments.compare, [] if arguments.across is None else arguments.across.split(",")))
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    seed, nfe = arguments.seed, arguments.nfe
    for option, default in DEFAULTS.items():
        if getattr(arguments, option) is None:
            setattr(arguments, option, default)
    whole = "a whole number from 1 to 64 is needed"
    require(arguments.scale in range(1, 65), "--scale", arguments.scale, whole, f"{arguments.scale:g}")
    require(nfe is None or nfe >= 0, "--nfe", nfe, "a number from 0 is needed")
    check_seed(arguments.seed)
    check_images("evaluate")
    solver = solver_of(arguments, "evaluate") if arguments.results is None else None
    from tqdm import tqdm

    from backbones import evaluation
    from backbones.pictures import metrics

    scale = int(arguments.scale)
    border = scale if arguments.border is None else arguments.border
    names = list(dict.fromkeys(["psnr", "ssim"] if arguments.metrics is None else arguments.metrics.split(",")))
    device = "auto" if solver is None else str(solver.options.get("device", "auto"))
    try:
        with flags():
            metrics.check_metrics(names)
            pairs = evaluation.found(
                arguments.pairs, scale, arguments.crop, arguments.results, hr=arguments.hr, lr=arguments.lr
            )
            evaluation.check_border(pairs, border)
            if arguments.out is not None:
                evaluation.check_out(arguments.out)
                _check_no_input(arguments.out, pairs, solver.options.get("weights") if solver else None)
                evaluation.check_ours(arguments.out)
            by = metrics.metrics(names, border, backbones.device(device), arguments.metric_weights)
    except ImportError as error:
        raise Unusable(f"dosde evaluate {NEEDS_IMAGES} ({error})") from None
    except OSError as error:
        raise Unusable(f"--pairs, --hr, --lr, --results: {error}") from None
    one = len(pairs.hr) == 1
    upscaled, method = None, dict[str, object](results=str(arguments.results))
    if solver is not None:
        backbone = loaded(solver, "evaluate", one)
        upscaled, method = partial(solver.upscaled, backbone, progress=one), about(solver, backbone)
        seed, nfe = solver.seed, solver.steps
    warn_above_bars()

    rows: dict[str, evaluation.Row] = {}
    failed: dict[str, str] = {}
    made = partial(evaluation.document, pairs, by, rows, failed, border=border, seed=seed, nfe=nfe, method=method)
    before: dict[str, evaluation.Row] = {}
    if arguments.out is not None:
        with flags():
            before = evaluation.resumed(arguments.out, made(complete=False))
    for text in pairs.unpaired_lines():
        print(line_of(text), file=sys.stderr)
    start = saved = time.perf_counter()
    widths = [max(map(len, ("picture", *pairs.hr))), *(max(10, len(name)) for name in names)]
    print(evaluation.line(["picture", *names], widths))
    try:
        for name in tqdm(pairs.hr, unit="picture", disable=one):
            try:
                row = before.get(name)
                if row is None or row.files != evaluation.files_digest(pairs, name):
                    row = evaluation.measured(pairs, name, by, upscaled)
                rows[name] = row
            except Exception as error:  # whatever is wrong with a picture costs that picture alone
                failed[name] = reason_of(error)
                tqdm.write(f"failed  {line_of(name)}: {failed[name]}", file=sys.stderr)
            else:
                cells = (f"{value:.4f}" for value in rows[name].values.values())
                tqdm.write(evaluation.line([line_of(name), *cells], widths))
            if arguments.out is not None and (time.perf_counter() - saved > 1 or len(rows) == 1):
                _saved(arguments.out, made(complete=False))  # for a crash; an error shows at the end
                saved = time.perf_counter()
    except KeyboardInterrupt as stop:
        kept = bool(rows) and arguments.out is not None and _saved(arguments.out, made(complete=False)) is None
        what = f"{len(rows)} of {len(pairs.hr)} are in {arguments.out}, marked incomplete; the same command goes on from here"
        print(f"stopped; {what if kept else 'nothing was written'}", file=sys.stderr)
        return status_of(stop)
    if rows:
        print(evaluation.line(["mean", *(f"{value:.4f}" for value in evaluation.means(rows).values())], widths))
    print(f"{len(rows)} measured, {len(failed)} failed in {time.perf_counter() - start:.1f} s", flush=True)
    if arguments.out is not None:
        full = _saved(arguments.out, made(complete=True))
        if full is not None:
            print(f"dosde evaluate: error: --out: {full}", file=sys.stderr)
            return 1
        print(f"wrote   {arguments.out}")
    return 1 if failed else 0


def _check_no_input(out: Path, pairs: "Pairs", weights: object) -> None:
    """Unusable where the file of results would replace what is read, by whatever name."""
    read = [path for of in (pairs.hr, pairs.lr, pairs.results) if of for files in of.values() for path in files]
    read += [*pairs.unpaired, *([Path(str(weights))] if weights else [])]
    place = whole.identity(out)
    replaced = next((path for path in read if place is not None and whole.identity(path) == place), None)
    require(replaced is None, "--out", out, f"it is an input too ({replaced}); another name is needed")


def _saved(out: Path, made: dict[str, object]) -> OSError | None:
    """Writes the results; returns the error that kept them from being written."""
    from backbones import evaluation

    try:
        evaluation.write(out, made)
    except OSError as error:
        return error
    return None
