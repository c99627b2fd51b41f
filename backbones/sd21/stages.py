"""The stages between which DoSSR solves: preprocess, encode, the model, decode, colour fix.

    preprocess      I = clamp(RRDBNet(LR)), brought to the size of the output: hint, source and reference of the colours
    hint            mode of hint_encoder(2 I - 1), times 0.18215: what the ControlNet sees
    source          mode (or a sample) of vae's posterior of 2 I - 1, times 0.18215: x_hat0
    solve           `dosde.solve` with x_theta from U-Net and ControlNet
    decode          (vae.decode(x0 / 0.18215) + 1) / 2
    fix_colour      the low frequencies, or mean and variance, of I

Each is a method that can be called, and replaced, alone. Sides of any length: pictures are continued by mirroring up to what
the networks halve, and cut back at the end.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

import dosde
from backbones.pictures import colour
from backbones.pictures import io as images
from backbones.pictures.tiling import boxes, tiled
from dosde import check
from dosde.noise import as_noise

from . import malloc
from .tiles import Tiles
from .tiles import tiles as tiles_of

PROMPT = "clean, high-resolution, 8k"  # the release's


@dataclass(frozen=True)
class Prepared:
    """What a solve needs of a picture: I, the hint latent, x_hat0."""

    reference: Tensor
    hint: Tensor
    x_hat0: Tensor


class Stages:
    """The stages of a pipeline that has these networks."""

    vae: Any
    hint_encoder: Any
    unet: Any
    controlnet: Any
    scheduler: Any  # DoSDEScheduler
    preprocessor: Any
    _execution_device: torch.device
    _compared: tuple[Any, bool] | None

    @property
    def factor(self) -> int:
        """Pixels of the output a side of a latent."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def multiple(self) -> int:
        """What a side of the output is brought to a multiple of: as often as VAE and U-Net halve it."""
        return self.factor * int(2 ** (len(self.unet.config.block_out_channels) - 1))

    def latent_shape(self, shape: Sequence[int], scale: float) -> tuple[int, ...]:
        """Of x_hat0, for pictures of a shape (batch, channels, height, width)."""
        sides = [-(-max(1, round(side * scale)) // self.multiple) * self.multiple // self.factor for side in shape[-2:]]
        return (shape[0], int(self.vae.config.latent_channels), *sides)

    def costs(self, guided: bool = False) -> dict[str, float]:
        """Bytes a pixel of the output of each stage, in the order that they run."""
        vae, unet = self.vae, self.unet
        first, wide = vae.config.block_out_channels[0], unet.config.block_out_channels[0]
        cost = {
            "encode": 12.0 * first * vae.dtype.itemsize,
            "solve": 520.0 * wide * (2 if guided else 1) / self.factor**2,
            "decode": 15.0 * first * vae.dtype.itemsize,
        }
        if self.preprocessor is not None:
            net = self.preprocessor
            cost = {"preprocess": 115.0 * net.config.num_feat * net.dtype.itemsize / net.config.scale**2} | cost
        return cost

    def tiles_for(
        self,
        shape: Sequence[int],
        scale: float,
        tile: int | str | None = "auto",
        max_memory: float | None = None,
        guided: bool = False,
    ) -> Tiles:
        """The tiles for pictures of a shape (batch, channels, height, width). max_memory: bytes, beside the weights.

        Errors: ValueError for a tile, or a memory, that is too small.
        """
        grows = 1 if self.preprocessor is None else self.preprocessor.config.scale
        numbers: dict[str, Any] = {"multiple": self.multiple, "grows": grows, "device": self._execution_device}
        return tiles_of(shape, scale, tile, max_memory, costs=self.costs(guided), **numbers)

    def preprocess(self, picture: Tensor, scale: float = 4, *, tile: int | None = None) -> Tensor:
        """I in [0, 1], (batch, 3, round(height x scale), round(width x scale)), float32, of a picture in [0, 1]."""
        size = [max(1, round(side * scale)) for side in picture.shape[-2:]]
        larger = picture.to(self._execution_device, torch.float32)
        if self.preprocessor is not None:
            net, grows = self.preprocessor, self.preprocessor.config.scale
            side = None if tile is None else max(16, tile // grows)

            def run(x: Tensor) -> Tensor:
                return net(x.to(net.dtype)).float()  # type: ignore[no-any-return]

            larger = self._staged("preprocess", run, net, [larger], side, grows, 1)
        larger = larger.clamp(0, 1) if larger is picture else larger.clamp_(0, 1)
        if list(larger.shape[-2:]) != size:
            larger = torch.nn.functional.interpolate(larger, size, mode="bicubic", antialias=True, align_corners=False)
            larger.clamp_(0, 1)
        return larger

    def hint(self, reference: Tensor, *, tile: int | None = None) -> Tensor:
        """The hint latent (batch, 4, height / 8, width / 8), float32, of I, whose sides are multiples of `multiple`."""
        return self._mode(self.moments(self.hint_encoder, "hint", reference, tile))

    def source(
        self, reference: Tensor, source: str | Tensor = "mode", *, generator: Any = None, tile: int | None = None
    ) -> Tensor:
        """x_hat0 (batch, 4, height / 8, width / 8), float32, of I.

        source: "mode" of the VAE's posterior, as in training; "sample", as the release infers, with noise from the generator;
        or the noise itself, a tensor in the shape of x_hat0.
        """
        return self.latent(self.moments(self.vae, "source", reference, tile), source, generator)

    def denoiser(
        self,
        hint: Tensor,
        context: Tensor,
        negative: Tensor | None = None,
        guidance_scale: float = 1.0,
        *,
        conditioning_scale: float = 1.0,
        tile: int | None = None,
    ) -> dosde.Denoiser:
        """U-Net and ControlNet as a model for `dosde.solve`.

        With `negative`, guided: out(negative) + guidance_scale (out(context) - out(negative)), two passes in one batch.
        """
        guided = negative is not None and guidance_scale != 1
        dtype, batch = self.unet.dtype, hint.shape[0]
        context = context.expand(batch, -1, -1)
        if guided:
            assert negative is not None
            context = torch.cat([negative.expand(batch, -1, -1), context])
        hint = hint.to(dtype)
        side = None if tile is None else tile // self.factor
        halved = self.multiple // self.factor

        def net(x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
            timestep = torch.full((), self.scheduler.model_time(t), dtype=torch.float32, device=x.device)

            def whole(x: Tensor, hint: Tensor) -> Tensor:
                if guided:
                    x, hint = torch.cat([x, x]), torch.cat([hint, hint])
                down, middle = self.controlnet(
                    x,
                    timestep,
                    encoder_hidden_states=context,
                    controlnet_cond=hint,
                    conditioning_scale=conditioning_scale,
                    return_dict=False,
                )
                out: Tensor = self.unet(
                    x,
                    timestep,
                    encoder_hidden_states=context,
                    down_block_additional_residuals=down,
                    mid_block_additional_residual=middle,
                    return_dict=False,
                )[0]
                out = out.float()
                if guided:
                    without, with_prompt = out.chunk(2)
                    out = without + guidance_scale * (with_prompt - without)
                return out

            return self._tiled("tiles", whole, [x.to(dtype), hint], side, 1, halved)

        return dosde.Denoiser(net, self.scheduler.process, predicts=self.scheduler.predicts)

    def decode(self, latent: Tensor, *, tile: int | None = None) -> Tensor:
        """The picture (batch, 3, height, width) of a latent, float32, about [0, 1] but not clamped."""

        def run(z: Tensor) -> Tensor:
            picture: Tensor = self.vae.decode(z.to(self.vae.dtype), return_dict=False)[0]
            return picture.float()

        z = latent / self.vae.config.scaling_factor
        side = None if tile is None else tile // self.factor
        return self._staged("decode", run, self.vae, [z], side, self.factor, 1).add_(1).div_(2)

    def fix_colour(self, picture: Tensor, reference: Tensor, how: str = "wavelet") -> Tensor:
        """The picture in the colours of the reference: wavelet, adain or none. Not clamped."""
        return colour.COLOUR_FIXES[how](picture, reference)

    def latent(self, moments: Tensor, source: str | Tensor, generator: Any) -> Tensor:
        mean, log_variance = moments.chunk(2, 1)
        if isinstance(source, str) and source == "mode":
            return self._mode(moments)
        noise = as_noise(generator)(0.0, 0.0, mean) if isinstance(source, str) else source.to(mean)
        x_hat0 = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise
        return x_hat0 * float(self.vae.config.scaling_factor)

    def _mode(self, moments: Tensor) -> Tensor:
        return moments.chunk(2, 1)[0] * float(self.vae.config.scaling_factor)

    def moments(self, encoder: torch.nn.Module, name: str, reference: Tensor, tile: int | None) -> Tensor:
        """Mean and log variance of the posterior, joined, float32."""
        if any(side % self.multiple for side in reference.shape[-2:]):
            raise ValueError(
                f"reference: {tuple(reference.shape)}; sides that are multiples of {self.multiple} are needed (images.mirrored)"
            )

        def run(picture: Tensor) -> Tensor:
            kind: Any = encoder.dtype
            picture = (2 * picture - 1).to(kind)
            moments = encoder(picture) if encoder is self.hint_encoder else self.vae.encode(picture).latent_dist.parameters
            return moments.float()  # type: ignore[no-any-return]

        return self._staged(name, run, encoder, [reference], tile, Fraction(1, self.factor), self.factor)

    def _staged(
        self,
        name: str,
        run: Callable[..., Tensor],
        module: torch.nn.Module,
        inputs: Sequence[Tensor],
        tile: int | None,
        scale: int | Fraction,
        multiple: int,
    ) -> Tensor:
        """A stage, in tiles, and again in a wider type where float16 overflows. Errors: ValueError for NaN or infinity."""
        lay_out(module)
        malloc.trim()
        out = self._tiled(name, run, inputs, tile, scale, multiple)
        malloc.trim()
        if out.isfinite().all():
            return out
        dtype = module.dtype
        if dtype == torch.float16:
            wide = out.device.type == "cpu" or (out.device.type == "cuda" and torch.cuda.is_bf16_supported())
            torch.nn.Module.to(module, torch.bfloat16 if wide else torch.float32)
            warnings.warn(f"{name}: float16 overflows here; run in {str(module.dtype)[6:]} from now on", stacklevel=3)
            return self._staged(name, run, module, inputs, tile, scale, multiple)
        raise ValueError(f"{name}: NaN or infinity in its output ({str(dtype)[6:]}); are the weights whole?")

    def _tiled(
        self,
        name: str,
        run: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        tile: int | None,
        scale: int | Fraction,
        multiple: int,
    ) -> Tensor:
        """run(*inputs) in tiles, blended over the middle half of a quarter of the tile, with a progress bar."""
        height, width = inputs[0].shape[-2:]
        if tile is None or (height <= tile and width <= tile):
            return run(*inputs)
        overlap = max(multiple, tile // (4 * multiple) * multiple)
        with self._bar(len(boxes(height, width, tile, overlap, multiple)), name) as bar:
            return tiled(run, inputs, tile, overlap, scale, multiple, lambda *_: bar.update())

    def _bar(self, total: int, name: str) -> Any:
        """A progress bar, as `set_progress_bar_config` wants them."""
        from tqdm import tqdm

        return tqdm(total=total, **{"desc": name, "leave": False, **getattr(self, "_progress_bar_config", {})})

    def prepare(
        self,
        picture: Tensor,
        scale: float = 4,
        source: str | Tensor = "mode",
        *,
        generator: Any = None,
        tiles: Tiles = Tiles(),  # noqa: B008
    ) -> Prepared:
        """Everything before the solve, of pictures (batch, 3, height, width) in [0, 1]."""
        reference = self.preprocess(picture, scale, tile=tiles.preprocess)
        padded = images.mirrored(reference, self.multiple)
        if self._one_encoder():
            moments = self.moments(self.vae, "encode", padded, tiles.encode)
            return Prepared(reference, self._mode(moments), self.latent(moments, source, generator))
        hint = self.hint(padded, tile=tiles.encode)
        return Prepared(reference, hint, self.source(padded, source, generator=generator, tile=tiles.encode))

    def finish(self, x0: Tensor, reference: Tensor, color_fix: str = "wavelet", *, tile: int | None = None) -> Tensor:
        """Everything after the solve: a picture in [0, 1] of the reference's shape, float32."""
        height, width = reference.shape[-2:]
        picture = self.decode(x0, tile=tile)[..., :height, :width]
        return self.fix_colour(picture, reference, color_fix).clamp_(0, 1)

    def _one_encoder(self) -> bool:
        """Whether hint encoder and VAE hold equal weights (where fine-tuning starts), so that one pass serves both."""
        own, theirs = (_plain(module).state_dict() for module in (self.hint_encoder, self.vae))
        if not own.keys() <= theirs.keys():  # a VAE of another kind
            return False
        pairs = [(tensor, theirs[name]) for name, tensor in own.items()]
        if any(tensor.is_meta for pair in pairs for tensor in pair):  # offloaded, module by module
            return False
        versions = tuple((t.data_ptr(), check.writes(t)) for pair in pairs for t in pair)
        if self._compared is None or self._compared[0] != versions:
            # On the host: with model offload one may be on the device, and the other not.
            self._compared = versions, all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)
        return self._compared[1]


def _plain(module: Any) -> torch.nn.Module:
    """What torch.compile made it of, if it did."""
    plain: torch.nn.Module = getattr(module, "_orig_mod", module)
    return plain


def lay_out(module: torch.nn.Module) -> None:
    """Channels last in the half types, which is faster. Not in float32: there PyTorch's group norm loses digits in it."""
    layout = torch.contiguous_format if module.dtype == torch.float32 else torch.channels_last
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
