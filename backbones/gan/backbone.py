"""An RRDBNet as a backbone: one call makes the picture, whatever the state.

There is no diffusion here. The process is formal: its single step, from eta = 1 to t = 0, has x_0 = x_theta, so what the
network returns is what the solve returns. A seed changes nothing, and other numbers of steps are refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import dosde
from backbones import backbone
from backbones.backbone import DTYPES
from backbones.pictures import io as images
from backbones.pictures.resize import bicubic
from backbones.pictures.tiling import least, tiled
from backbones.sd21 import rrdb
from backbones.weights import aligned
from dosde.check import Refused
from dosde.solve import Model
from dosde.step import Method

_TILE = 768  # about 1,800 bytes a pixel at 64 features: 1.1 GB
_OVERLAP = 32  # pixels of the input, of which a quarter at each end has no weight


class Conditioning(NamedTuple):
    """What encode knows of a picture and the later stages need."""

    picture: Tensor
    made: tuple[int, int]
    size: tuple[int, int]
    grey: bool
    device: torch.device


@dataclass(frozen=True, repr=False)
class GAN(backbone.Loaded):
    """The backbone `gan`.

    Args:
        network: in evaluation mode, on the device where it is to run.
        tile: a side above which the output is made in tiles, None for never. They overlap by 32 pixels of the input. The
            network sees further than that, so they change the result a little.
    """

    network: rrdb.RRDBNet
    tile: int | None = _TILE

    least_scale = 0.0
    residual_scale = None

    def __post_init__(self) -> None:
        channels = self.network.config.in_channels, self.network.config.out_channels
        if channels != (3, 3):
            raise Refused("network", self.network, "3 channels in and out are needed", f"{channels[0]} in, {channels[1]} out")
        smallest = least(_OVERLAP, self.network.fold) * self.network.scale
        if self.tile is not None and self.tile < smallest:
            raise Refused("tile", self.tile, f"{smallest} or more is needed, or the overlap makes tiles of little else")

    @property
    def process(self) -> dosde.Process:
        """A formal one."""
        return dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))

    def grid(self, process: dosde.Process, steps: int) -> Tensor:
        """The single step."""
        if steps != 1:
            raise Refused("steps", steps, "1 is needed: the backbone gan calls its network once")
        return dosde.grid.uniform(process, 1)

    @property
    def method(self) -> Method:
        """Any method has the same single step."""
        return dosde.method.dos

    def encode(self, picture: Tensor, scale: float, noise: object = None) -> tuple[Tensor, Conditioning]:
        """A source of the size of the network's result, which nothing reads; and the picture."""
        picture = backbone.check(picture, scale, self.least_scale)
        h, w = picture.shape[-2:]
        place = self.network.conv_first.weight.device
        colour = images.mirrored(picture.to(place).expand(-1, 3, -1, -1), self.network.fold).contiguous()
        sides = [self.network.scale * side for side in colour.shape[-2:]]
        size = max(1, round(h * scale)), max(1, round(w * scale))
        made = Conditioning(
            colour, (self.network.scale * h, self.network.scale * w), size, picture.shape[1] == 1, picture.device
        )
        return colour.new_zeros(len(colour), 3, *sides), made

    def denoiser(self, conditioning: Conditioning) -> Model:
        """The network's picture, in tiles where it is large."""
        net, fold, picture = self.network, self.network.fold, conditioning.picture
        side = max(picture.shape[-2:]) if self.tile is None else self.tile // net.scale // fold * fold
        overlap = min(_OVERLAP, side - fold) // fold * fold

        def x_theta(x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
            given = picture.to(net.conv_first.weight.dtype)
            return tiled(net, (given,), side, overlap, net.scale, fold).to(x.dtype)

        return x_theta

    def decode(self, x0: Tensor, conditioning: Conditioning) -> Tensor:
        """The picture: cut, brought to its size, in [0, 1], grey where it was grey."""
        height, width = conditioning.made
        picture = x0[..., :height, :width].clamp(0, 1)
        picture = images.luma(picture) if conditioning.grey else picture
        if conditioning.size != conditioning.made:
            picture = bicubic(picture, conditioning.size).clamp(0, 1)
        return picture.to(conditioning.device)


def loaded(weights: str | Path, tile: int | str | None, dtype: str, device: str) -> GAN:
    """What `load` returns, whose keywords these are."""
    if dtype != "auto" and dtype not in DTYPES:
        raise Refused("dtype", dtype, f"auto, {', '.join(DTYPES)}, is needed")
    if isinstance(tile, str) and tile != "auto":
        raise Refused("tile", tile, "a number of pixels, 'auto' or None is needed")
    try:
        network = rrdb.load(weights)
    except Refused as error:
        if error.argument == "checkpoint":
            raise
        raise Refused("checkpoint", weights, error.needed, f"{error.argument}: {error.shown}") from None
    place = backbone.device(device)
    kind = DTYPES.get(dtype, torch.float32 if place.type == "cpu" else torch.bfloat16)
    aligned(network.to(place, kind).eval().requires_grad_(False))
    usual = max(_TILE, least(_OVERLAP, network.fold) * network.scale)
    return GAN(network, usual if isinstance(tile, str) else tile)
