"""The stages between which ResShift solves: encode, the model, decode. The runner of networks and tiles is that of `sd21`.

encode      x_hat0 = the autoencoder's latent (not quantised) of the LQ picture, enlarged by bicubic interpolation
solve       `dosde.solve` with x_theta = U-Net(x / sqrt(sigma^2 + 1), index, LQ): `Net`
decode      the picture of the nearest codes
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.sd21.stages import Bar, in_tiles, staged
from dosde import presets

_DISTANCES = 1 << 24  # that are held at once when codes are looked for


@dataclass(frozen=True)
class Prepared:
    """What a solve needs of a picture.

    Args:
        lq: the LQ picture in [-1, 1], with the mask of inpainting as another channel; its sides are padded.
        x_hat0: the source of the solve.
        reference: the LQ picture in [0, 1] before it was padded.
        mask: (batch, 1, height, width), 1 where the picture is to be made; None without inpainting.
    """

    lq: Tensor
    x_hat0: Tensor
    reference: Tensor
    mask: Tensor | None


def reflected(picture: Tensor, multiple: int) -> Tensor:
    """The picture continued to the right and below to sides that are multiples, by reflection about its last pixels."""
    for axis in (-2, -1):
        side = picture.shape[axis]
        if side % multiple:
            period = max(2 * (side - 1), 1)
            index = torch.arange(-(-side // multiple) * multiple, device=picture.device) % period
            picture = picture.index_select(axis, torch.where(index < side, index, period - index))
    return picture


def enlarged(picture: Tensor, factor: int) -> Tensor:
    """The picture, `factor` times as large, by the interpolation that the networks were trained with (a = -3/4)."""
    return F.interpolate(picture, scale_factor=factor, mode="bicubic") if factor > 1 else picture


def encode(vqvae: Any, picture: Tensor, factor: int, tile: int | None, bar: Bar) -> Tensor:
    """The latent of a picture, float32.

    Args:
        vqvae: the autoencoder.
        picture: in [-1, 1], sides that are multiples of `factor`.
        factor: pixels a side of a latent.
        tile: side of the tiles of the picture.
        bar: makes the progress bar.
    """

    def run(picture: Tensor) -> Tensor:
        latent: Tensor = vqvae.encode(picture.to(vqvae.dtype), return_dict=False)[0]
        return latent.float()

    latent = staged("encode", run, vqvae, picture, tile, Fraction(1, factor), factor, bar)
    return latent * float(vqvae.config.scaling_factor)


def decode(vqvae: Any, x0: Tensor, factor: int, tile: int | None, bar: Bar) -> Tensor:
    """The picture of a latent, float32, about [0, 1] but not clamped; tile: in the latent."""

    def run(z: Tensor) -> Tensor:
        codes = quantised(z.float(), vqvae.quantize.embedding.weight).to(vqvae.dtype)
        picture: Tensor = vqvae.decode(codes, force_not_quantize=True, return_dict=False)[0]
        return picture.float()

    return staged("decode", run, vqvae, x0 / vqvae.config.scaling_factor, tile, factor, 1, bar).add_(1).div_(2)


def quantised(z: Tensor, codebook: Tensor) -> Tensor:
    """The nearest codes. Distances are float32 in any dtype of the network: rounded to 8 bits, they find other codes."""
    codebook = codebook.to(z.device, z.dtype)
    vectors = z.movedim(1, -1).flatten(0, -2)
    nearest = [
        torch.cdist(some, codebook, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        for some in torch.split(vectors, max(1, _DISTANCES // len(codebook)))
    ]
    return codebook[torch.cat(nearest)].reshape(*z.shape[:1], *z.shape[2:], z.shape[1]).movedim(-1, 1).contiguous()


@dataclass(frozen=True, eq=False)
class Net:
    """The U-Net for pictures with these LQ pictures, (x, x_hat0, t) -> what the scheduler's `predicts` says.

    Args:
        unet: a SwinUNet.
        scheduler: a DoSDEScheduler.
        lq: LQ pictures, with the mask of inpainting as another channel.
        tile: side of the tiles of x.
        bar: makes the progress bar.
    """

    unet: Any
    scheduler: Any
    lq: Tensor
    tile: int | None
    bar: Bar

    def __call__(self, x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
        """The output of the U-Net, float32."""
        timestep = torch.full((), self.scheduler.model_time(t), dtype=torch.float32, device=x.device)
        x = x * presets.resshift_input_scale(self.scheduler.process(t)).item()
        dtype, reduction = self.unet.dtype, 2 ** len(self.unet.config.lq_widths)

        def whole(x: Tensor, lq: Tensor) -> Tensor:  # tiles are cut from tensors of one size: pixels of LQ as channels
            out: Tensor = self.unet(x, timestep, F.pixel_shuffle(lq, reduction))
            return out.float()

        inputs = [x.to(dtype), F.pixel_unshuffle(self.lq.to(dtype), reduction)]
        return in_tiles("tiles", whole, inputs, self.tile, 1, int(self.unet.multiple), self.bar)


def costs(vqvae: Any, unet: Any) -> dict[str, float]:
    """Bytes a pixel of the output of each stage, in the order in which they run: see `backbones.sd21.tiles`.

    The U-Net needs 160 C bytes a latent, C its first width, measured on the CPU at full size in float32.
    """
    first, wide = vqvae.config.block_out_channels[0], unet.config.widths[0]
    factor = 2 ** (len(vqvae.config.block_out_channels) - 1)
    return {
        "encode": 12.0 * first * vqvae.dtype.itemsize,
        "solve": 200.0 * wide / factor**2,
        "decode": 15.0 * first * vqvae.dtype.itemsize,
    }


def sizes(shape: Sequence[int], scale: float, factor: int) -> tuple[list[int], list[int]]:
    """Sides of the LQ picture that the networks see, and of the output.

    They enlarge by `factor`. For a smaller scale the result is made smaller, for a larger one the LQ picture larger before.
    """
    grown = [max(1, round(side * max(1.0, scale / factor))) for side in shape[-2:]]
    return grown, [max(1, round(side * scale)) for side in shape[-2:]]
