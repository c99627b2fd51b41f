"""Options that commands share: the solver, the backbone, what they make of them, and how errors and warnings are shown."""

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from dosde import method, presets
from dosde.plan import plan

if TYPE_CHECKING:
    from backbones import Backbone

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULTS = {"scale": 4.0, "steps": 5, "seed": 0}
METHODS: dict[str, tuple[method.Method, int | None]] = {
    "dos": (method.dos, 3),
    "adams": (method.adams, None),
    "ode": (method.ode, None),
    "resshift": (method.resshift, 1),
}
FEW_STEP = "few_step"  # presets.few_step: the method and the times follow from the backbone's residual scale
NEEDS_IMAGES = "needs the extra 'images' (in the repository: pip install '.[images]')"
NEEDS_SD21 = "the backbone sd21 needs the extra 'sd21' (in the repository: pip install '.[sd21]')"
# Options that not every backbone has, as `load` of these names them.
OPTIONS: dict[str, tuple[str, ...]] = {
    "embedded": ("weights", "tile", "dtype", "device"),
    "sd21": (
        *("weights", "prompt", "negative_prompt", "guidance_scale", "color_fix", "source", "tile", "max_memory"),
        *("dtype", "device"),
    ),
}


def add_solver(add: Callable[..., object]) -> None:
    add("--scale", type=float, default=DEFAULTS["scale"], help="how many times as large, at least 1 (default: 4)")
    add("--steps", type=int, default=DEFAULTS["steps"], help="model calls a picture (default: 5)")
    add("--order", type=int, help="order of the solver, 1 to --steps (default: 3, or --steps if less)")
    add("--method", choices=[*METHODS, FEW_STEP], help="solver (default: the backbone's)")
    add("--seed", type=int, default=DEFAULTS["seed"], help="of the noise; each picture has it afresh (default: 0)")
    add("--backbone", metavar="NAME", help="the model: embedded, gaussian or sd21 (default: embedded, sd21 with --weights)")


def add_backbones(parser: argparse.ArgumentParser) -> None:
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


def path_of(name: str) -> Path:
    if not name:
        raise argparse.ArgumentTypeError("an empty name; a file or a folder is needed")
    return Path(name)


@dataclass(frozen=True)
class Solver:
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
        if self.how == FEW_STEP and backbone.residual_scale is not None:
            return presets.few_step(backbone.residual_scale)
        how = METHODS[self.how][0] if self.how in METHODS else backbone.method
        return {"method": how, "grid": backbone.grid}


def solver_of(arguments: argparse.Namespace, command: str, fail: Callable[[str], NoReturn]) -> Solver:
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
    check_seed(arguments.seed, fail)
    check_images(command, fail)
    return Solver(arguments.scale, steps, order, how, arguments.seed, *_options(arguments, fail))


def check_seed(seed: int, fail: Callable[[str], NoReturn]) -> None:
    if not 0 <= seed < 2**63:
        fail(f"--seed: {seed}; a number from 0 to 2^63 - 1 is needed")


def check_images(command: str, fail: Callable[[str], NoReturn]) -> None:
    try:
        import PIL  # noqa: F401
        import tqdm  # noqa: F401

        import backbones  # noqa: F401
    except ImportError as error:
        fail(f"dosde {command} {NEEDS_IMAGES} ({error})")


def loaded(solver: Solver, command: str, one: bool, fail: Callable[[str], NoReturn]) -> "Backbone":
    """The backbone, which has been checked to take the solver. one: there is one picture, so the bars are of its steps."""
    import backbones

    options = {**solver.options, "progress": one} if solver.name == "sd21" else solver.options
    try:
        backbone = backbones.load(solver.name, **options)
    except ImportError as error:
        fail(f"{NEEDS_SD21 if solver.name == 'sd21' else f'dosde {command} {NEEDS_IMAGES}'} ({error})")
    except ValueError as error:
        argument, _, rest = str(error).partition(":")
        argument = "weights" if argument == "checkpoint" else argument
        fail(f"--{argument.replace('_', '-')}:{rest}")
    if solver.scale < backbone.least_scale:
        fail(f"--scale: {solver.scale:g}; {backbone.least_scale:g} to 64 is needed with --backbone {solver.name}")
    if solver.how == FEW_STEP and backbone.residual_scale is None:
        fail(f"--method: {FEW_STEP}; a backbone that knows its residual scale is needed, and {solver.name} does not")
    try:
        plan(backbone.process, solver.steps, solver.order, **solver.on(backbone))
    except ValueError as error:
        argument, _, rest = str(error).partition(":")
        fail(f"--{argument}:{rest}" if argument in ("order", "steps", "method") else str(error))
    return backbone


def _options(arguments: argparse.Namespace, fail: Callable[[str], NoReturn]) -> tuple[str, dict[str, object]]:
    """The backbone, and its options: those that were given."""
    every = dict.fromkeys(option for options in OPTIONS.values() for option in options)
    given = {option: value for option in every if (value := getattr(arguments, option, None)) is not None}
    if given.get("tile") == "none":
        given["tile"] = None
    name = arguments.backbone or ("sd21" if "weights" in given else "embedded")
    for option in given:
        if option not in OPTIONS.get(name, ()):
            having = " or ".join(other for other, options in OPTIONS.items() if option in options)
            fail(f"{flag(option)}: needs --backbone {having}, and the backbone is {name}")
    if name == "sd21" and "weights" not in given:
        fail("--weights: none; the backbone sd21 needs a folder written by `dosde convert`")
    return name, given


def flag(option: str) -> str:
    return "--" + option.replace("_scale", "").replace("_", "-")


def reason_of(error: Exception) -> str:
    """In one line."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, MemoryError) or "allocate memory" in reason:
        return "not enough memory for a picture of this size at this scale"
    return reason


def warn_above_bars() -> None:
    from tqdm import tqdm

    warnings.showwarning = lambda message, *_, **__: tqdm.write(f"warning: {message}", file=sys.stderr)
