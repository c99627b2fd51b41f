"""What a backbone is: it turns a picture into a source, denoises, and turns the result into a picture; `upscale` runs one."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

import dosde
from dosde.check import Refused, require
from dosde.solve import Model


class Backbone(Protocol):
    """What upscales pictures. Pictures are (batch, channels, height, width) in [0, 1], with 1 or 3 channels."""

    least_scale: float
    """Scales above it are possible, and it itself, if it is above 0."""

    @property
    def process(self) -> dosde.Process:
        """The process that its model was made for."""

    @property
    def residual_scale(self) -> float | None:
        """For `dosde.presets.few_step`: std of x0 given x_hat0, per element; None where it is not known beforehand."""

    def grid(self, process: dosde.Process, steps: int) -> Tensor:
        """The times that suit its model."""

    @property
    def method(self) -> dosde.step.Method:
        """The solver that suits its model; if `order` has a default there, that is the order."""

    def encode(self, picture: Tensor, scale: float, noise: Any = None) -> tuple[Tensor, Any]:
        """x_hat0, and whatever the rest needs to know of the picture. noise: for a source that is drawn, before the solve."""

    def denoiser(self, conditioning: Any) -> Model:
        """(x, x_hat0, t) -> x_theta for this picture."""

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

    `order` and `how` (method, grid, callback, progress): of `dosde.solve`; method and grid default to those of the backbone.
    """
    with torch.no_grad():
        x_hat0, conditioning = backbone.encode(picture, scale, noise)
        model = backbone.denoiser(conditioning)
        how = {"grid": backbone.grid, "method": backbone.method, **how}
        x0 = dosde.solve(model, x_hat0, steps, order, process=backbone.process, noise=noise, **how)
        return backbone.decode(x0, conditioning)


def check(picture: Tensor, scale: float) -> None:
    """Refuses what `upscale` cannot take: a backbone that has no better checks calls it first in `encode`.

    Args:
        picture: (batch, 1 or 3, height, width), with at least one pixel.
        scale: finite, at least 1.

    Raises:
        Refused: for anything else.
    """
    ok = picture.ndim == 4 and picture.shape[1] in (1, 3) and picture.numel() > 0
    require(ok, "picture", picture, "(batch, 1 or 3, height, width) is needed", f"shape {tuple(picture.shape)}")
    require(1 <= scale < math.inf, "scale", scale, "a number of at least 1 is needed")


def device(name: str) -> torch.device:
    """Errors: ValueError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise Refused(
            "device", name, "auto, cpu, or one that is here, is needed", f"{name} ({str(error).splitlines()[0]})"
        ) from None
