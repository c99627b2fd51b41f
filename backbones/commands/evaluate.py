"""`dosde evaluate --pairs FOLDER` or `--compare FILE...`."""

import argparse
import hashlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import backbones
from backbones import embedded, evaluation
from backbones.backbone import Backbone
from backbones.pictures import metrics
from dosde import __version__
from dosde.check import Refused, describe, require
from dosde.plan import default_order

from .options import (
    DEFAULTS,
    NEEDS_IMAGES,
    Solver,
    Unusable,
    add_backbones,
    add_solver,
    check_images,
    check_seed,
    flag,
    flags,
    loaded,
    path_of,
    reason_of,
    solver_of,
    warn_above_bars,
)

if TYPE_CHECKING:
    from .options import Commands


def add(commands: "Commands") -> argparse.ArgumentParser:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "evaluate",
        usage="dosde evaluate --pairs FOLDER [--results FOLDER] [-o FILE] [...]\n"
        "       dosde evaluate --compare FILE... [--across KEY,...]",
        help="measure upscaled pictures against the truth, and compare such measurements",
        description="Upscale the pictures of low resolution in a folder, or take the results of any tool, and measure them "
        "against those of high resolution: PSNR and SSIM of brightness as the field reports them, and metrics of pyiqa.",
        epilog="docs/evaluate.md says what is measured, how, and what the file of -o holds.",
    )
    _add_evaluation(parser.add_argument)
    add_solver(parser)
    add_backbones(parser)
    # So that a given option is known from one left out: each use of the command refuses those that it has no use for.
    parser.set_defaults(**dict.fromkeys(DEFAULTS))
    return parser


def _add_evaluation(add: Callable[..., object]) -> None:
    add("--pairs", type=path_of, metavar="FOLDER", help="hr/ and perhaps lr/ in it, or itself pictures of high resolution")
    add("--results", type=path_of, metavar="FOLDER", help="pictures to measure: NAME, NAMExSCALE or NAME_xSCALE")
    add("-o", "--out", type=path_of, metavar="FILE", help="JSON: protocol, means, every picture")
    add("--metrics", metavar="NAME,...", help="of psnr, ssim, lpips, clipiqa, musiq, maniqa, topiq (default: psnr,ssim)")
    add("--border", type=int, metavar="PIXELS", help="cut off for PSNR and SSIM at each side (default: the scale)")
    add("--crop", type=int, metavar="PIXELS", help="measure a square in the middle (default: whole pictures)")
    add("--nfe", type=int, metavar="CALLS", help="of --results: network calls a picture, for the protocol")
    add("--compare", nargs="+", type=path_of, metavar="FILE", help="files of -o: one table, if their protocols agree")
    add("--across", metavar="KEY,...", help="keys of the protocol that may differ in --compare, such as nfe")


def run(arguments: argparse.Namespace) -> int:
    """Measures or compares; returns the exit status."""
    _check_use(arguments)
    try:
        return _measure(arguments) if arguments.compare is None else _compare(arguments)
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130


def _check_use(arguments: argparse.Namespace) -> None:
    """Refuses options that are for another use of the command."""
    given = {option: value for option, value in vars(arguments).items() if value is not None and option != "run"}
    about = {"pairs", "out", "metrics", "border", "crop", "scale", "seed", "results", "nfe"}
    if "compare" not in given and "pairs" not in given:
        raise Refused("--pairs", None, "a folder of pictures is needed, or --compare and files", "none")
    for option, value in given.items():
        why = None
        if "compare" in given:
            why = None if option in ("compare", "across") else "--compare takes --across alone"
        elif option == "across":
            why = "it is for --compare"
        elif "results" in given:
            why = None if option in about else "with --results nothing is upscaled"
        elif option == "nfe":
            why = "it is for --results, otherwise --steps says it"
        if why is not None:
            raise Refused(flag(option), value, why, str(value))


def _compare(arguments: argparse.Namespace) -> int:
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

    scale = int(arguments.scale)
    border = scale if arguments.border is None else arguments.border
    names = list(dict.fromkeys(["psnr", "ssim"] if arguments.metrics is None else arguments.metrics.split(",")))
    device = "auto" if solver is None else str(solver.options.get("device", "auto"))
    try:
        with flags():
            metrics.check_metrics(names)
            pairs = evaluation.found(arguments.pairs, scale, arguments.crop, arguments.results)
            evaluation.check_border(pairs, border)
            if arguments.out is not None:
                evaluation.check_out(arguments.out)
            by = metrics.metrics(names, border, backbones.device(device))
    except ImportError as error:
        raise Unusable(f"dosde evaluate {NEEDS_IMAGES} ({error})") from None
    except OSError as error:
        raise Unusable(f"--pairs, --results: {error}") from None
    one = len(pairs.hr) == 1
    upscaled, about = None, dict[str, object](results=str(arguments.results))
    if solver is not None:
        backbone = loaded(solver, "evaluate", one)
        upscaled, about = partial(solver.upscaled, backbone, progress=one), _about(solver, backbone)
        seed, nfe = solver.seed, solver.steps
    warn_above_bars()

    rows, failed, start = {}, {}, time.perf_counter()
    widths = [max(map(len, ("picture", *pairs.hr))), *(max(10, len(name)) for name in names)]
    print(evaluation.line(["picture", *names], widths))
    for name in tqdm(pairs.hr, unit="picture", disable=one):
        try:
            rows[name] = evaluation.measured(pairs, name, by, upscaled)
        except Exception as error:  # whatever is wrong with a picture costs that picture alone
            failed[name] = reason_of(error)
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


def _about(solver: Solver, backbone: Backbone) -> dict[str, object]:
    """What upscales, for the record; of the weights the name, and a digest of their file."""
    given = dict(solver.options)
    weights = given.pop("weights", embedded.WEIGHTS if solver.name == "embedded" else None)
    path = None if weights is None else Path(str(weights)).resolve()
    digest = None
    if path is not None and path.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    method = solver.on(backbone)["method"]
    usual = min(default_order(method), solver.steps)
    return {
        "backbone": solver.name,
        "weights": None if path is None else path.name,
        "sha256": digest,
        "steps": solver.steps,
        "order": usual if solver.order is None else solver.order,
        "method": describe(method),
        "options": given,
        "dosde": __version__,
        "torch": torch.__version__,
    }
