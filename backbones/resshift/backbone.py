"""ResShiftPipeline as a backbone of `dosde upscale`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import dosde
from backbones import backbone
from backbones.backbone import DTYPES
from backbones.pictures import io as images
from backbones.sd21.backbone import ordered, quiet
from backbones.sd21.tiles import Tiles, check_tile
from dosde import check
from dosde.check import Refused
from dosde.noise import Noise
from dosde.solve import Model

from .stages import Prepared, sizes

if TYPE_CHECKING:
    from .pipeline import ResShiftPipeline


@dataclass(frozen=True)
class Conditioning:
    """What the later stages need of a picture.

    Args:
        prepared: the LQ picture and x_hat0.
        tiles: the tiles of each stage.
        size: (height, width) of the result.
        grey: whether the picture has one channel.
    """

    prepared: Prepared
    tiles: Tiles
    size: list[int]
    grey: bool


@dataclass(frozen=True, repr=False)
class ResShift(backbone.Loaded):
    """The backbone `resshift`: a `ResShiftPipeline` with some arguments of its call."""

    pipe: "ResShiftPipeline"
    residual: float
    mask: Tensor | None
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
        """For few_step; None for a network that was distilled to a number of steps, which few_step does not know."""
        return self.residual if self.pipe.config.distilled_steps is None else None

    def grid(self, process: dosde.Process, steps: int) -> Tensor:
        """The grid of the pipeline's scheduler: that of the release, for any number of steps."""
        times: Tensor = self.pipe.scheduler.times(self.pipe.check_steps(steps))
        return times

    @property
    def method(self) -> dosde.method.Method:
        """The method of the pipeline's scheduler, with its order as the default."""
        scheduler = self.pipe.scheduler
        return ordered(scheduler.method, scheduler.order_for(scheduler.config.solver_order))

    def encode(self, picture: Tensor, scale: float, noise: Noise | None = None) -> tuple[Tensor, Conditioning]:
        """x_hat0, and what the later stages need; nothing in it is drawn."""
        tiles = self.pipe.tiles_for(picture.shape, scale, self.tile, self.max_memory)
        mask = None if self.mask is None else self.mask.expand(len(picture), -1, -1, -1)
        made = self.pipe.prepare(picture.expand(-1, 3, -1, -1), scale, mask, tiles=tiles)
        size = sizes(picture.shape, scale, self.pipe.scale)[1]
        return made.x_hat0, Conditioning(made, tiles, size, picture.shape[1] == 1)

    def denoiser(self, conditioning: Conditioning) -> Model:
        """The U-Net for this picture."""
        return self.pipe.denoiser(conditioning.prepared.lq, tile=conditioning.tiles.solve)

    def decode(self, x0: Tensor, conditioning: Conditioning) -> Tensor:
        """The picture; grey where it was grey."""
        picture = self.pipe.finish(x0, conditioning.prepared, conditioning.size, tile=conditioning.tiles.decode).cpu()
        return images.luma(picture) if conditioning.grey else picture


def loaded(
    weights: str | Path,
    tile: int | str | None,
    dtype: str,
    device: str,
    max_memory: float | None,
    mask: str | Path | None,
    residual_scale: float | None,
    progress: bool,
) -> ResShift:
    """What `load` returns, whose keywords these are."""
    from .pipeline import ResShiftPipeline  # which imports diffusers

    quiet()
    if Path(weights).is_file():
        needed = "a folder is needed; `dosde convert U-NET AUTOENCODER -o FOLDER` writes one from the two released files"
        raise Refused("weights", weights, needed)
    place = backbone.device(device)
    kind = DTYPES.get(dtype, torch.float32 if place.type == "cpu" else torch.bfloat16)
    pipe = ResShiftPipeline.from_pretrained(weights, dtype=kind)
    check_tile(pipe.multiple, tile)
    pipe.set_progress_bar_config(disable=not progress)
    pipe.to(place)
    known = None if mask is None else _mask(Path(mask))
    pipe.check_mask(known, () if known is None else known.shape)
    residual = check.scale(pipe.scheduler.config.scale if residual_scale is None else residual_scale)
    return ResShift(pipe, float(residual), known, tile, max_memory)


def _mask(path: Path) -> Tensor:
    """The mask in a picture, (1, 1, height, width), 1 where it is white."""
    try:
        return (images.read(path).colour.mean(1, keepdim=True) > 0.5).float()
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:120]
        raise Refused("mask", path, "a picture is needed", f"{path} cannot be read ({said})") from None
