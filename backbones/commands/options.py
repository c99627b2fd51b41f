"""Options that commands share: those of the solver, and those that the backbones declare beside their `load`."""

import argparse
import hashlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import backbones
from backbones.option import Declared, Option, options

if TYPE_CHECKING:
    import torch

    from backbones.backbone import Backbone

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULTS = {"scale": 4.0, "steps": None, "seed": 0}
METHODS: dict[str, int | None] = {"dos": 3, "adams": None, "ode": None, "resshift": 1}
"""Methods of `dosde.method`, each with its highest order; None is any."""
FEW_STEP = "few_step"  # presets.few_step: the method and the times follow from the backbone's residual scale
NEEDS_IMAGES = "needs the extra 'images' (in the repository: pip install '.[images]')"
WITH_DIFFUSERS = ("sd21", "resshift", "gan")
NEEDS_SD21 = "the backbones sd21, resshift and gan need the extra 'sd21' (in the repository: pip install '.[sd21]')"


_BACKBONE = (
    "embedded, gaussian, sd21, resshift, gan, or package.module:name (default: embedded; with --weights what they are of)"
)


class Unusable(Exception):
    """What stops a command before it has done anything, in one line: before torch is there, or no argument's fault."""


class Terminated(KeyboardInterrupt):
    """A signal that ends the process, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


def status_of(stop: KeyboardInterrupt) -> int:
    """The exit status: 130 by the keyboard, 143 by SIGTERM."""
    return stop.status if isinstance(stop, Terminated) else 130


def require(ok: bool, argument: str, value: object, needed: str, shown: str | None = None) -> None:
    """Unusable unless ok, in the words of `dosde.check.require`, which needs torch."""
    if not ok:
        raise Unusable(f"{argument}: {value if shown is None else shown}; {needed}")


# -- The parser -------------------------------------------------------------------------------------------------------------


def add_solver(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the solver, and --backbone."""
    add = parser.add_argument
    add("--scale", type=number, default=DEFAULTS["scale"], help="how many times as large, at least 1 (default: 4)")
    add(
        "--steps",
        type=whole_number,
        default=DEFAULTS["steps"],
        help="model calls a picture (default: 5; resshift: as in training; gan: 1)",
    )
    add("--order", type=whole_number, help="order of the solver, 1 to --steps (default: 3, or --steps if less)")
    add("--method", choices=[*METHODS, FEW_STEP], help="solver (default: the backbone's)")
    add("--seed", type=whole_number, default=DEFAULTS["seed"], help="of the noise; each picture has it afresh (default: 0)")
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
        named = {"dest": name, "type": _parsed(option), "metavar": option.metavar, "choices": option.choices}
        groups[title].add_argument(f"--{first.flag}", help=help_of(having).replace("%", "%%"), **named)


def _parsed(option: Option) -> Callable[[str], Any]:
    """What parses the text of an option; a refusal says what is legal, where argparse would say the name of a function."""

    def parsed(text: str) -> Any:
        try:
            return option.parse(text)
        except ValueError as error:
            builtin = isinstance(option.parse, type)  # int, float: their words are about Python
            needed = f"{'a whole number' if option.parse is int else 'a number'} is needed" if builtin else str(error)
            raise argparse.ArgumentTypeError(f"invalid value: {text!r}; {needed or option.help}") from None

    return parsed


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


def number(text: str) -> float:
    """A number, from text."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid float value: {text!r}; a number is needed") from None


def whole_number(text: str) -> int:
    """A whole number, from text."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}; a whole number is needed") from None


def path_of(name: str) -> Path:
    """A file or a folder, from text."""
    if not name:
        raise argparse.ArgumentTypeError("an empty name; a file or a folder is needed")
    try:
        ok = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        ok = False
    if not ok:
        raise argparse.ArgumentTypeError(f"{name!r}; a name that this system can write is needed")
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
    from dosde.check import Refused

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

    def upscaled(self, backbone: "Backbone", picture: "torch.Tensor", progress: bool) -> "torch.Tensor":
        """A picture, upscaled; each has the noise of the seed afresh."""
        import torch

        noise = torch.Generator().manual_seed(self.seed)
        how = {**self.on(backbone), "noise": noise, "progress": progress}
        with _memory(self.name):
            return backbones.upscale(backbone, picture, self.scale, self.steps, self.order, **how)

    def on(self, backbone: "Backbone") -> dict[str, Any]:
        """Method and grid."""
        from dosde import method, presets

        if self.how == FEW_STEP and backbone.residual_scale is not None:
            return presets.few_step(backbone.residual_scale)
        how = getattr(method, self.how) if self.how in METHODS else backbone.method
        return {"method": how, "grid": backbone.grid}


def solver_of(arguments: argparse.Namespace, command: str) -> Solver:
    """The solver, checked as far as it can be before anything loads.

    Raises:
        Refused, Unusable: for an option that is wrong, and where the packages for pictures are missing.
    """
    how, most = arguments.method, METHODS.get(arguments.method)
    scale, steps, order = arguments.scale, arguments.steps, arguments.order
    name, options = _backbone(arguments)
    steps = _usual_steps(name, options) if steps is None else steps
    needed = "the backbone gan calls its network once, without a solver; leave it out"
    require(name != "gan" or how is None, "--method", how, needed)
    require(name != "gan" or steps == 1, "--steps", steps, needed)
    limit = steps if most is None else min(most, steps)
    if order is None and how is not None:
        order = min(3, limit)
    require(0 < scale <= 64, "--scale", scale, "a number above 0, up to 64, is needed", f"{scale:g}")
    require(steps >= 1, "--steps", steps, "a positive number is needed")
    chosen = f"--steps {steps}" if how is None else f"--method {how} --steps {steps}"
    require(order is None or 1 <= order <= limit, "--order", order, f"1 to {limit} is needed with {chosen}")
    check_seed(arguments.seed)
    check_images(command)
    return Solver(scale, steps, order, how, arguments.seed, name, options)


def _usual_steps(name: str, options: Mapping[str, Any]) -> int:
    """The steps where the user gives none: ResShift's networks were trained with a number of them, a GAN has one call."""
    if name != "resshift":
        return 1 if name == "gan" else 5
    from backbones.resshift import folders

    return folders.steps_of(Path(options["weights"])) or 5


def _memory(backbone: str) -> AbstractContextManager[None]:
    """Memory that is used again rather than given back, for the large backbones: see `backbones.sd21.malloc`."""
    if backbone not in WITH_DIFFUSERS:
        return nullcontext()
    from backbones.sd21 import malloc

    return malloc.kept()


def check_seed(seed: int) -> None:
    """Refuses what no generator takes."""
    require(0 <= seed < 2**63, "--seed", seed, "a number from 0 to 2^63 - 1 is needed")


def check_images(command: str) -> None:
    """Unusable without the packages for pictures."""
    try:
        import imagecodecs  # noqa: F401
        import PIL  # noqa: F401
        import tifffile  # noqa: F401
        import tqdm  # noqa: F401
    except ImportError as error:
        raise Unusable(f"dosde {command} {NEEDS_IMAGES} ({error})") from None


def _backbone(arguments: argparse.Namespace) -> tuple[str, dict[str, object]]:
    """The name of the backbone, and the keywords of its `load`: those that were given."""
    given = {name: value for name in declared() if (value := getattr(arguments, name)) is not None}
    chosen = _chosen(arguments.backbone, given.get("weights"))
    if ":" in chosen:
        return chosen, given
    known = chosen in backbones.NAMES
    require(known, "--backbone", None, f"one of {', '.join(backbones.NAMES)}, or package.module:name, is needed", repr(chosen))
    for name, value in given.items():
        having = declared()[name]
        if chosen not in having:
            needed = f"needs --backbone {' or '.join(having)}, and the backbone is {chosen}"
            raise Unusable(f"{flag(name)}: {needed}")
        if value == "none" and having[chosen].optional:
            given[name] = None
    weights = Path(str(given.get("weights") or "."))
    special = weights.exists() and not (weights.is_file() or weights.is_dir())  # a named pipe would be waited for
    require(not special, "--weights", weights, "a file or a folder is needed", f"{weights} is neither")
    for name, having in declared().items():
        if chosen in having and having[chosen].required and name not in given:
            require(False, flag(name), None, f"the backbone {chosen} needs {having[chosen].option.help}", "none")
    return chosen, given


def _chosen(asked: str | None, weights: Any) -> str:
    """The name of the backbone: as asked, or as the weights say, or the usual one."""
    if weights is None:
        return asked or "embedded"
    from backbones.training import backbone

    with flags():
        return backbone.chosen(Path(weights), asked) or asked or backbones.named_by(weights)


def _loader(name: str) -> Any:
    """The `load` of a backbone, one of ours or "package.module:name"."""
    if ":" not in name:
        return backbones.module(name).load
    from backbones.training import backbone

    return backbone.loader(name)


def loaded(solver: Solver, command: str, one: bool) -> "Backbone":
    """The backbone, which has been checked to take the solver.

    Args:
        solver: what the options say.
        command: its name, for messages.
        one: there is one picture, so the bars are of its steps.

    Raises:
        Refused: for an option that the backbone does not take.
        Unusable: where packages are missing.
    """
    from dosde.check import Refused
    from dosde.plan import plan

    name, scale = solver.name, solver.scale
    with flags():
        load = _loader(name)
        own = {"progress": one} if "progress" in inspect.signature(load).parameters else {}
        try:
            backbone: Backbone = load(**solver.options, **own)
        except ImportError as error:
            needs = NEEDS_SD21 if name in WITH_DIFFUSERS else f"dosde {command} {NEEDS_IMAGES}"
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
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            plan(backbone.process, solver.steps, solver.order, **solver.on(backbone))
    except Refused as error:
        raise error.under(flag(error.argument)) if error.argument in ("order", "steps", "method") else error from None
    if told:  # in the words of Python; each picture would tell it again
        few = "" if backbone.residual_scale is None else ", or --method few_step"
        said = f"--steps {solver.steps} of this method amplifies errors of the network or the noise; better take --order 1"
        print(f"warning: {said}, fewer steps{few}", file=sys.stderr)
        warnings.filterwarnings("ignore", "(order|scale): ", UserWarning)
    return backbone


def about(solver: Solver, backbone: "Backbone") -> dict[str, object]:
    """What upscales, for the record; of the weights the name, and a digest of their file."""
    import torch

    from dosde import __version__
    from dosde.check import describe
    from dosde.plan import default_order

    given = dict(solver.options)
    ships = getattr(backbones.module(solver.name), "WEIGHTS", None) if solver.name in backbones.NAMES else None
    weights = given.pop("weights", ships)
    path = None if weights is None else Path(str(weights)).resolve()
    method = solver.on(backbone)["method"]
    usual = min(default_order(method), solver.steps)
    return {
        "backbone": solver.name,
        "weights": None if path is None else path.name,
        "sha256": digest_of(path) if path is not None and path.is_file() else None,
        "steps": solver.steps,
        "order": usual if solver.order is None else solver.order,
        "method": describe(method),
        "options": given,
        "dosde": __version__,
        "torch": torch.__version__,
    }


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- Messages ---------------------------------------------------------------------------------------------------------------


def reason_of(error: Exception) -> str:
    """Why a picture failed, in one line."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, MemoryError) or "allocate memory" in reason:
        return "not enough memory for a picture of this size at this scale"
    return line_of(reason)


def line_of(text: object, most: int = 1000) -> str:
    """A text, such as the name of a file, in one line: what cannot be printed is escaped, the middle of a long one left out."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return line if len(line) <= most else f"{line[: most - 205]} ... {line[-200:]}"


def warn_above_bars() -> None:
    """Shows warnings in one line, above the bars of tqdm."""
    from tqdm import tqdm

    warnings.showwarning = lambda message, *_, **__: tqdm.write(f"warning: {message}", file=sys.stderr)
