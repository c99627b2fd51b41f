"""Options that commands share: those of the solver, and those that the backbones declare beside their `load`."""

import argparse
import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import backbones
from backbones.backbone import Backbone, Declared, options
from dosde import method, presets
from dosde.check import Refused, require
from dosde.plan import plan

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULTS = {"scale": 4.0, "steps": 5, "seed": 0}
METHODS: dict[str, tuple[method.Method, int | None]] = {
    "dos": (method.dos, 3),
    "adams": (method.adams, None),
    "ode": (method.ode, None),
    "resshift": (method.resshift, 1),
}
"""Methods by name, each with its highest order; None is any."""
FEW_STEP = "few_step"  # presets.few_step: the method and the times follow from the backbone's residual scale
NEEDS_IMAGES = "needs the extra 'images' (in the repository: pip install '.[images]')"
NEEDS_SD21 = "the backbone sd21 needs the extra 'sd21' (in the repository: pip install '.[sd21]')"


_BACKBONE = "embedded, gaussian, sd21, or package.module:name (default: embedded; with --weights what they are of, or sd21)"


class Unusable(Exception):
    """What stops a command before it has done anything, in one line, and is no argument's fault."""


# -- The parser -------------------------------------------------------------------------------------------------------------


def add_solver(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the solver, and --backbone."""
    add = parser.add_argument
    add("--scale", type=float, default=DEFAULTS["scale"], help="how many times as large, at least 1 (default: 4)")
    add("--steps", type=int, default=DEFAULTS["steps"], help="model calls a picture (default: 5)")
    add("--order", type=int, help="order of the solver, 1 to --steps (default: 3, or --steps if less)")
    add("--method", choices=[*METHODS, FEW_STEP], help="solver (default: the backbone's)")
    add("--seed", type=int, default=DEFAULTS["seed"], help="of the noise; each picture has it afresh (default: 0)")
    add("--backbone", metavar="NAME", help=_BACKBONE)


def add_backbones(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the backbones, in a group for each set of backbones that share options.

    They have no defaults here, so that an option that the user gives is known from one left out.
    """
    groups: dict[str, Any] = {}
    for name, having in declared().items():
        title = _title(tuple(having))
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        first = next(iter(having.values()))
        option = first.option
        named = {"dest": name, "type": option.parse, "metavar": option.metavar, "choices": option.choices}
        groups[title].add_argument(f"--{first.flag}", help=help_of(having).replace("%", "%%"), **named)


@cache
def declared() -> Mapping[str, Mapping[str, Declared]]:
    """The options of all backbones, by keyword and backbone; those that several backbones have come first."""
    found: dict[str, dict[str, Declared]] = {}
    for backbone in backbones.NAMES:
        for name, one in options(backbones.module(backbone).load).items():
            found.setdefault(name, {})[backbone] = one
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def help_of(having: Mapping[str, Declared]) -> str:
    """The help of an option; where the backbones say different things of it, those of each."""
    texts = {backbone: one.option.help for backbone, one in having.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{backbone}: {text}" for backbone, text in reversed(texts.items()))


def _title(having: tuple[str, ...]) -> str:
    if len(having) == 1:
        return f"the backbone {having[0]}"
    return "the backbones " + " and ".join(f"{name} ({backbones.module(name).ABOUT})" for name in having)


def table() -> str:
    """The options of the backbones as a table, for docs/upscale.md."""
    rows = ["| option | backbones | |", "|---|---|---|"]
    for having in declared().values():
        first = next(iter(having.values()))
        choices = first.option.choices
        value = "\\|".join(choices) if choices else first.option.metavar or first.flag.upper()
        rows.append(f"| `--{first.flag} {value}` | {', '.join(f'`{name}`' for name in having)} | {help_of(having)} |")
    return "\n".join(rows)


def path_of(name: str) -> Path:
    """A file or a folder, from text."""
    if not name:
        raise argparse.ArgumentTypeError("an empty name; a file or a folder is needed")
    return Path(name)


# -- What the options say ---------------------------------------------------------------------------------------------------


def flag(argument: str) -> str:
    """The name of an argument on the command line."""
    if argument == "checkpoint":  # as files of tensors call themselves
        return "--weights"
    having = declared().get(argument)
    return f"--{next(iter(having.values())).flag if having else argument.replace('_', '-')}"


@contextmanager
def flags() -> Iterator[None]:
    """Refusals of an argument as refusals of its option."""
    try:
        yield
    except Refused as error:
        raise error.under(flag(error.argument)) from error


@dataclass(frozen=True)
class Solver:
    """What the options of the solver and the backbone say.

    Args:
        scale: how many times as large.
        steps: model calls a picture.
        order: None is that of the method.
        how: a name of `METHODS`, or few_step; None is the backbone's method.
        seed: of the noise.
        name: the backbone.
        options: the keywords of its `load` that the user gives.
    """

    scale: float
    steps: int
    order: int | None
    how: str | None
    seed: int
    name: str
    options: dict[str, object]

    def upscaled(self, backbone: Backbone, picture: torch.Tensor, progress: bool) -> torch.Tensor:
        """A picture, upscaled; each has the noise of the seed afresh."""
        noise = torch.Generator().manual_seed(self.seed)
        how = {**self.on(backbone), "noise": noise, "progress": progress}
        with _memory(self.name):
            return backbones.upscale(backbone, picture, self.scale, self.steps, self.order, **how)

    def on(self, backbone: Backbone) -> dict[str, Any]:
        """Method and grid."""
        if self.how == FEW_STEP and backbone.residual_scale is not None:
            return presets.few_step(backbone.residual_scale)
        how = METHODS[self.how][0] if self.how in METHODS else backbone.method
        return {"method": how, "grid": backbone.grid}


def solver_of(arguments: argparse.Namespace, command: str) -> Solver:
    """The solver, checked as far as it can be before anything loads.

    Raises:
        Refused: for an option that is wrong.
        Unusable: where the packages for pictures are missing.
    """
    how, (_, most) = arguments.method, METHODS.get(arguments.method, (None, None))
    scale, steps, order = arguments.scale, arguments.steps, arguments.order
    limit = steps if most is None else min(most, steps)
    if order is None and how is not None:
        order = min(3, limit)
    require(0 < scale <= 64, "--scale", scale, "a number above 0, up to 64, is needed", f"{scale:g}")
    require(steps >= 1, "--steps", steps, "a positive number is needed")
    chosen = f"--steps {steps}" if how is None else f"--method {how} --steps {steps}"
    require(order is None or 1 <= order <= limit, "--order", order, f"1 to {limit} is needed with {chosen}")
    check_seed(arguments.seed)
    check_images(command)
    return Solver(scale, steps, order, how, arguments.seed, *_backbone(arguments))


def _memory(backbone: str) -> AbstractContextManager[None]:
    """Memory that is used again rather than given back, for the backbone sd21: see `backbones.sd21.malloc`."""
    if backbone != "sd21":
        return nullcontext()
    from backbones.sd21 import malloc

    return malloc.kept()


def check_seed(seed: int) -> None:
    """Refuses what no generator takes."""
    require(0 <= seed < 2**63, "--seed", seed, "a number from 0 to 2^63 - 1 is needed")


def check_images(command: str) -> None:
    """Unusable without the packages for pictures."""
    try:
        import PIL  # noqa: F401
        import tqdm  # noqa: F401
    except ImportError as error:
        raise Unusable(f"dosde {command} {NEEDS_IMAGES} ({error})") from None


def _backbone(arguments: argparse.Namespace) -> tuple[str, dict[str, object]]:
    """The name of the backbone, and the keywords of its `load`: those that were given."""
    given = {name: value for name in declared() if (value := getattr(arguments, name)) is not None}
    chosen = _chosen(arguments.backbone, given.get("weights"))
    if ":" in chosen:
        return chosen, given
    for name, value in given.items():
        having = declared()[name]
        if chosen not in having:
            needed = f"needs --backbone {' or '.join(having)}, and the backbone is {chosen}"
            raise Unusable(f"{flag(name)}: {needed}")
        if value == "none" and having[chosen].optional:
            given[name] = None
    for name, having in declared().items():
        if chosen in having and having[chosen].required and name not in given:
            one = having[chosen]
            raise Refused(flag(name), None, f"the backbone {chosen} needs {one.option.help}", "none")
    return chosen, given


def _chosen(asked: str | None, weights: Any) -> str:
    """The name of the backbone: as asked, or as the weights say, or the usual one."""
    if weights is None:
        return asked or "embedded"
    from backbones.training import backbone

    with flags():
        return backbone.chosen(Path(weights), asked) or "sd21"


def _loader(name: str) -> Any:
    """The `load` of a backbone, one of ours or "package.module:name"."""
    if ":" not in name:
        return backbones.module(name).load
    from backbones.training import backbone

    return backbone.loader(name)


def loaded(solver: Solver, command: str, one: bool) -> Backbone:
    """The backbone, which has been checked to take the solver.

    Args:
        solver: what the options say.
        command: its name, for messages.
        one: there is one picture, so the bars are of its steps.

    Raises:
        Refused: for an option that the backbone does not take.
        Unusable: where packages are missing.
    """
    name, scale = solver.name, solver.scale
    with flags():
        load = _loader(name)
        own = {"progress": one} if "progress" in inspect.signature(load).parameters else {}
        try:
            backbone: Backbone = load(**solver.options, **own)
        except ImportError as error:
            needs = NEEDS_SD21 if name == "sd21" else f"dosde {command} {NEEDS_IMAGES}"
            raise Unusable(f"{needs} ({error})") from None
        except ValueError as error:
            if isinstance(error, Refused):
                raise
            raise Unusable(str(error)) from None
    least = f"{backbone.least_scale:g} to 64 is needed with --backbone {name}"
    require(scale >= backbone.least_scale, "--scale", scale, least, f"{scale:g}")
    if solver.how == FEW_STEP and backbone.residual_scale is None:
        raise Refused("--method", None, f"a backbone that knows its residual scale is needed, and {name} does not", FEW_STEP)
    try:
        plan(backbone.process, solver.steps, solver.order, **solver.on(backbone))
    except Refused as error:
        raise error.under(flag(error.argument)) if error.argument in ("order", "steps", "method") else error from None
    return backbone


# -- Messages ---------------------------------------------------------------------------------------------------------------


def reason_of(error: Exception) -> str:
    """Why a picture failed, in one line."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, MemoryError) or "allocate memory" in reason:
        return "not enough memory for a picture of this size at this scale"
    return reason


def warn_above_bars() -> None:
    """Shows warnings in one line, above the bars of tqdm."""
    from tqdm import tqdm

    warnings.showwarning = lambda message, *_, **__: tqdm.write(f"warning: {message}", file=sys.stderr)
