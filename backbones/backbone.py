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
`backbones.option`.
"""

import math
import numbers
import os
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

import dosde
from backbones.pictures.values import unit
from dosde.check import Refused, describe, require
from dosde.solve import Model

from .option import DEVICE as DEVICE
from .option import DTYPE as DTYPE
from .option import DTYPES as NAMES_OF_DTYPES
from .option import TILE as TILE
from .option import Declared as Declared
from .option import Option as Option
from .option import loads as loads
from .option import options as options

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in NAMES_OF_DTYPES}


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


def _shown(value: object) -> str:
    return repr(os.fspath(value)) if isinstance(value, os.PathLike) else describe(value)
