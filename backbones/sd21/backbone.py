"""DoSSRPipeline as a backbone of `dosde upscale`."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import dosde
from backbones import backbone
from backbones.backbone import DTYPES
from backbones.option import amount as amount
from backbones.pictures import io as images
from dosde.check import Refused
from dosde.noise import Noise
from dosde.process import Marginal
from dosde.recipe import maker
from dosde.solve import Model
from dosde.step import Method, Step

from .stages import Prepared
from .tiles import Tiles, check_tile, free

if TYPE_CHECKING:
    from .pipeline import DoSSRPipeline


@dataclass(frozen=True)
class Conditioning:
    """What the later stages need of a picture.

    Args:
        prepared: I, hint and x_hat0.
        tiles: the tiles of each stage.
        grey: whether the picture has one channel.
    """

    prepared: Prepared
    tiles: Tiles
    grey: bool


@dataclass(frozen=True, repr=False)
class DoSSR(backbone.Loaded):
    """The backbone `sd21`: a `DoSSRPipeline` with some arguments of its call."""

    pipe: "DoSSRPipeline"
    context: Tensor
    negative: Tensor | None
    guidance_scale: float
    color_fix: str
    source: str
    tile: int | str | None
    max_memory: float | None

    least_scale = 0.0

    @property
    def process(self) -> dosde.Process:
        """The process of the pipeline's scheduler."""
        process: dosde.Process = self.pipe.scheduler.process
        return process

    @property
    def residual_scale(self) -> float | None:
        """`scale` of the pipeline's scheduler."""
        scale: float | None = self.pipe.scheduler.config.scale
        return scale

    def grid(self, process: dosde.Process, steps: int) -> Tensor:
        """The grid of the pipeline's scheduler."""
        times: Tensor = self.pipe.scheduler.times(steps)
        return times

    @property
    def method(self) -> dosde.method.Method:
        """The method of the pipeline's scheduler, with its order as the default."""
        scheduler = self.pipe.scheduler
        return ordered(scheduler.method, scheduler.order_for(scheduler.config.solver_order))

    def encode(self, picture: Tensor, scale: float, noise: Noise | None = None) -> tuple[Tensor, Conditioning]:
        """x_hat0, and what the later stages need; the noise is for a source that is sampled, before the solve."""
        rgb = backbone.check(picture, scale, self.least_scale).expand(-1, 3, -1, -1)
        tiles = self.pipe.tiles_for(rgb.shape, scale, self.tile, self.max_memory, self.negative is not None)
        made = self.pipe.prepare(rgb, scale, self.source, generator=noise, tiles=tiles)
        return made.x_hat0, Conditioning(made, tiles, picture.shape[1] == 1)

    def denoiser(self, conditioning: Conditioning) -> Model:
        """U-Net and ControlNet for this picture."""
        hint, tile = conditioning.prepared.hint, conditioning.tiles.solve
        return self.pipe.denoiser(hint, self.context, self.negative, self.guidance_scale, tile=tile)

    def decode(self, x0: Tensor, conditioning: Conditioning) -> Tensor:
        """The picture, in the colours of I; grey where it was grey."""
        picture = self.pipe.finish(x0, conditioning.prepared.reference, self.color_fix, tile=conditioning.tiles.decode).cpu()
        return images.luma(picture) if conditioning.grey else picture


@maker
def ordered(method: Method, order: int) -> Method:
    """A method with a default for its order; it prints as this call."""
    usual = order

    def chosen(marginals: Sequence[Marginal], order: int = usual) -> list[Step]:
        return method(marginals, order)

    return chosen


def loaded(
    weights: str | Path,
    tile: int | str | None,
    dtype: str,
    device: str,
    prompt: str,
    negative_prompt: str,
    guidance_scale: float,
    color_fix: str,
    source: str,
    max_memory: float | None,
    progress: bool,
) -> DoSSR:
    """What `load` returns, whose keywords these are."""
    from .pipeline import DoSSRPipeline  # which imports diffusers

    quiet()
    if not -1e6 < guidance_scale < 1e6:
        raise Refused("guidance", guidance_scale, "a number is needed, 1 for none")
    place = backbone.device(device)
    kind = DTYPES.get(dtype, torch.float32 if place.type == "cpu" else torch.bfloat16)
    if Path(weights).is_file():
        pipe = DoSSRPipeline.from_single_file(weights, dtype=kind)
    else:
        pipe = DoSSRPipeline.from_pretrained(weights, dtype=kind)
    check_tile(pipe.multiple, tile)
    if tile == "auto" and max_memory is None:
        free(place)  # which needs psutil: no picture is to blame where that is missing
    pipe.set_progress_bar_config(disable=not progress)
    pipe.to(place)
    with torch.no_grad():
        context = pipe.encode_prompt(prompt)
        negative = pipe.encode_prompt(negative_prompt, "negative_prompt") if guidance_scale != 1 else None
    return DoSSR(pipe, context, negative, guidance_scale, color_fix, source, tile, max_memory)


def quiet() -> None:
    """No bars of the loading where no terminal shows them; they cannot be set for one call."""
    if not sys.stderr.isatty():
        for library in ("diffusers", "transformers"):
            importlib.import_module(f"{library}.utils.logging").disable_progress_bar()
