"""What a backbone is: it turns a picture into a source, denoises, and turns the result into a picture; `upscale` runs one.

A backbone of your own is any object with the members of `Backbone`, in any file:

    class Mine:
        least_scale, residual_scale = 1.0, None
        process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
        method = staticmethod(dosde.method.dos)
        grid = staticmethod(dosde.grid.uniform)

        def encode(self, picture, scale, noise=None):        # -> x_hat0, and what the next two need to know
        def denoiser(self, conditioning):                    # -> a function (x, x_hat0, t) -> x_theta
        def decode(self, x0, conditioning):                  # -> the picture

    larger = backbones.upscale(Mine(), picture, scale=4, steps=5)

A backbone of the command line also has a module with `ABOUT`, a few words, and `load`, whose keywords are its options: see
`Option`.
"""

import functools
import inspect
import math
import numbers
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

import dosde
from backbones.pictures.values import unit
from dosde.check import Refused, describe, require
from dosde.solve import Model

P = ParamSpec("P")
L = TypeVar("L", bound="Loaded")


class Backbone(Protocol):
    """What upscales pictures: (batch, channels, height, width) in [0, 1], float32, with 1 or 3 channels."""

    least_scale: float
    """The least scale that is possible; 0 means that every scale above 0 is."""

    @property
    def process(self) -> dosde.Process:
        """The process that the model was trained for."""

    @property
    def residual_scale(self) -> float | None:
        """For `dosde.presets.few_step`: the std of x0 given x_hat0, per element; None where it is not known beforehand."""

    def grid(self, process: dosde.Process, steps: int) -> Tensor:
        """The times that suit the model."""

    @property
    def method(self) -> dosde.step.Method:
        """The solver that suits the model. If its parameter `order` has a default, that is the order."""

    def encode(self, picture: Tensor, scale: float, noise: Any = None) -> tuple[Tensor, Any]:
        """x_hat0, and the conditioning: whatever `denoiser` and `decode` need to know of the picture.

        Args:
            picture: (batch, 1 or 3, height, width) in [0, 1].
            scale: how many times as large the result is.
            noise: the noise of the solve, for a source that is drawn.
        """

    def denoiser(self, conditioning: Any) -> Model:
        """The model (x, x_hat0, t) -> x_theta for this picture."""

    def decode(self, x0: Tensor, conditioning: Any) -> Tensor:
        """The picture of x0."""


def upscale(
    backbone: Backbone,
    picture: Tensor,
    scale: float = 4,
    steps: int = 5,
    order: int | None = None,
    *,
    noise: torch.Generator | Sequence[torch.Generator] | None = None,
    **how: Any,
) -> Tensor:
    """The picture, `scale` times as large, in `steps` model calls.

    Args:
        backbone: what `load` returns, or an object of yours with the members of `Backbone`.
        picture: (batch, 1 or 3, height, width), floating in [0, 1], uint8 or uint16 (`backbones.pictures.values`).
        scale: at least 1, or what the backbone's `least_scale` says.
        steps: model calls.
        order: the order of the solver. None is the backbone's.
        noise: a generator, or a list of them, one a sample.
        how: further keywords of `dosde.solve`: method and grid (the backbone's by default), callback, progress.

    Returns:
        (batch, channels, round(height scale), round(width scale)) in [0, 1].

    Raises:
        ValueError: for what the backbone cannot take, and as `dosde.solve` does.
    """
    picture = check(picture, scale, backbone.least_scale)
    with torch.no_grad():
        x_hat0, conditioning = backbone.encode(picture, scale, noise)
        model = backbone.denoiser(conditioning)
        how = {"grid": backbone.grid, "method": backbone.method, **how}
        x0 = dosde.solve(model, x_hat0, steps, order, process=backbone.process, noise=noise, **how)
        return backbone.decode(x0, conditioning)


def check(picture: Tensor, scale: float, least: float = 1.0) -> Tensor:
    """The picture as every backbone takes it, float32 in [0, 1]; refused for what none takes. `encode` may call it first.

    Args:
        picture: (batch, 1 or 3, height, width), with at least one pixel: floating in [0, 1], uint8 or uint16.
        scale: finite, at least `least`; above 0, where that is 0.
        least: the `least_scale` of the backbone.

    Raises:
        Refused: for anything else.
    """
    if isinstance(picture, Tensor):
        ok = picture.ndim == 4 and picture.shape[1] in (1, 3) and picture.numel() > 0
        require(ok, "picture", picture, "(batch, 1 or 3, height, width) is needed", f"shape {tuple(picture.shape)}")
    needed = f"a number of at least {least:g} is needed" if least else "a number above 0 is needed"
    given: object = scale
    number = isinstance(given, numbers.Real) and not isinstance(given, bool)
    require(number and max(least, 1e-9) <= scale < math.inf, "scale", scale, needed)
    return unit("picture", picture)


def device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises:
        Refused: for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        shown = f"{name} ({str(error).splitlines()[0]})"
        raise Refused("device", name, "auto, cpu, or one that is here, is needed", shown) from None


# -- What `load` returns ----------------------------------------------------------------------------------------------------


class Loaded:
    """A backbone that prints as the call that loaded it: backbones.load('embedded', tile=256)."""

    def __repr__(self) -> str:
        name, options = getattr(self, "_call", (None, vars(self)))
        shown = ", ".join(f"{key}={_shown(value)}" for key, value in options.items())
        if name is None:  # it was made without `load`
            return f"{type(self).__name__}({shown})"
        return f"backbones.load({name!r}{', ' if shown else ''}{shown})"


def loads(name: str) -> Callable[[Callable[P, L]], Callable[P, L]]:
    """Decorates the `load` of a backbone, so that what it returns knows the call: the name, and what is not the default."""

    def decorate(load: Callable[P, L]) -> Callable[P, L]:
        signature = inspect.signature(load)

        @functools.wraps(load)
        def called(*args: P.args, **kwargs: P.kwargs) -> L:
            backbone = load(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            changed = {key: value for key, value in given.items() if value != signature.parameters[key].default}
            object.__setattr__(backbone, "_call", (name, changed))  # backbones are frozen dataclasses
            return backbone

        return called

    return decorate


def _shown(value: object) -> str:
    return repr(os.fspath(value)) if isinstance(value, os.PathLike) else describe(value)


# -- Options ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """What the command line says of a keyword of `load`, in the annotation of the keyword:

        def load(*, tile: Annotated[int | str | None, Option("side of the tiles", side, metavar="PIXELS")] = "auto") -> Mine:

    Name, type and default are those of the keyword; "none" stands for None where the type has it.

    Args:
        help: a few words; the default belongs to them.
        parse: text -> value; a ValueError of it refuses the text.
        metavar: a word for the value.
        choices: all values, if they are few.
        flag: the name on the command line, where it is another than that of the keyword.
    """

    help: str
    parse: Callable[[str], Any] = str
    metavar: str | None = None
    choices: Sequence[str] | None = None
    flag: str | None = None


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def side(text: str) -> int | str:
    """The side of tiles, from text."""
    return text if text in ("auto", "none") else int(text)


# Options that backbones have in common.
TILE = Option("side of the tiles in the output, 'auto' or 'none' (default: auto)", side, metavar="PIXELS")
DTYPE = Option("default: bfloat16 on a GPU, float32 on the CPU", choices=("auto", *DTYPES))
DEVICE = Option("cpu, cuda, cuda:1, mps (default: a GPU if there is one)", metavar="NAME")


@dataclass(frozen=True)
class Declared:
    """An option as a `load` declares it. required: it has no default; optional: None is a value."""

    name: str
    option: Option
    required: bool
    optional: bool

    @property
    def flag(self) -> str:
        """The name on the command line, without its dashes."""
        return self.option.flag or self.name.replace("_", "-")


def options(load: Callable[..., Backbone]) -> Mapping[str, Declared]:
    """The options that a `load` declares, by keyword, in its order."""
    found = {}
    parameters = inspect.signature(load).parameters
    for name, hint in typing.get_type_hints(load, include_extras=True).items():
        for option in getattr(hint, "__metadata__", ()):
            if isinstance(option, Option):
                required = parameters[name].default is inspect.Parameter.empty
                found[name] = Declared(name, option, required, NoneType in typing.get_args(hint.__origin__))
    return found
