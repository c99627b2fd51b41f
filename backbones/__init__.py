"""Models for dosde: closed-form ones, and adapters of networks, one family a module. Nothing heavy loads before its use.

An image backbone turns a low-resolution picture into a source, denoises towards the picture it could come from, and turns the
result into a picture again. `dosde upscale` runs any of `NAMES`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

import dosde
from dosde.solve import Model

NAMES = ("gaussian",)


class Backbone(Protocol):
    """What upscales pictures. Pictures are (batch, channels, height, width) in [0, 1], with 1 or 3 channels."""

    @property
    def process(self) -> dosde.Process:
        """The process that its model was made for."""

    def encode(self, picture: Tensor, scale: float) -> tuple[Tensor, Any]:
        """x_hat0, and whatever `denoiser` needs to know of the picture."""

    def denoiser(self, conditioning: Any) -> Model:
        """(x, x_hat0, t) -> x_theta for this picture."""

    def decode(self, x0: Tensor) -> Tensor:
        """The picture of x0."""


def load(name: str) -> Backbone:
    """A backbone by name. Errors: ValueError for another name than one of `NAMES`."""
    if name == "gaussian":
        from .photo import StationaryGaussian

        return StationaryGaussian()
    raise ValueError(f"backbone: {name!r}; one of {', '.join(NAMES)}")


def upscale(
    backbone: Backbone,
    picture: Tensor,
    scale: float = 4,
    steps: int = 5,
    order: int = 3,
    *,
    noise: torch.Generator | Sequence[torch.Generator] | None = None,
    **how: Any,
) -> Tensor:
    """The picture, `scale` times as large, in `steps` model calls. `how`: method, grid, callback, progress of `dosde.solve`."""
    x_hat0, conditioning = backbone.encode(picture, scale)
    model = backbone.denoiser(conditioning)
    x0 = dosde.solve(model, x_hat0, steps, order, process=backbone.process, noise=noise, **how)
    return backbone.decode(x0)
