"""The stages between which DoSSR solves: preprocess, encode, the model, decode, colour fix.

    preprocess      I = clamp(RRDBNet(LR)), brought to the size of the output: hint, source and reference of the colours
    hint            mode of hint_encoder(2 I - 1), times 0.18215: what the ControlNet sees
    source          mode (or a sample) of vae's posterior of 2 I - 1, times 0.18215: x_hat0
    solve           `dosde.solve` with x_theta from U-Net and ControlNet: `Net`
    decode          (vae.decode(x0 / 0.18215) + 1) / 2
    fix_colour      the low frequencies, or mean and variance, of I

Here they are functions of the networks that they run; `DoSSRPipeline` has each as a method, with its own networks. A stage runs
in tiles where it gets a side for them: `tile`, in pixels of its input. `bar` makes its progress bar from a total and a name.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from backbones.pictures.resize import bicubic
from backbones.pictures.tiling import boxes, tiled
from dosde import check
from dosde.check import Refused
from dosde.noise import as_noise

from . import malloc

Bar = Callable[[int, str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Prepared:
    """What a solve needs of a picture.

    Args:
        reference: I, (batch, 3, height, width).
        hint: the hint latent, in the shape of x_hat0.
        x_hat0: the source of the solve.
    """

    reference: Tensor
    hint: Tensor
    x_hat0: Tensor


# -- Running a network ------------------------------------------------------------------------------------------------------


def staged(
    name: str,
    run: Callable[..., Tensor],
    module: Any,
    picture: Tensor,
    tile: int | None,
    scale: int | Fraction,
    multiple: int,
    bar: Bar,
) -> Tensor:
    """run(picture), in tiles, and again in a wider type where float16 overflows.

    Args:
        name: the name of the stage.
        run: calls the network.
        module: the network.
        picture: its input.
        tile: side of the tiles; None: the picture whole.
        scale: pixels of the output a pixel of the input.
        multiple: sides of tiles are multiples of it.
        bar: makes the progress bar.

    Raises:
        Refused: there is NaN or infinity in the output.
    """
    lay_out(module)
    malloc.trim()
    out = in_tiles(name, run, [picture], tile, scale, multiple, bar)
    malloc.trim()
    if out.isfinite().all():
        return out
    dtype = module.dtype
    if dtype == torch.float16:
        wide = out.device.type == "cpu" or (out.device.type == "cuda" and torch.cuda.is_bf16_supported())
        torch.nn.Module.to(module, torch.bfloat16 if wide else torch.float32)
        check.warn(name, dtype, f"run in {str(module.dtype)[6:]} from now on", "float16 overflows here")
        return staged(name, run, module, picture, tile, scale, multiple, bar)
    raise Refused(name, out, "are the weights whole?", f"NaN or infinity in its output ({str(dtype)[6:]})")


def in_tiles(
    name: str,
    run: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    tile: int | None,
    scale: int | Fraction,
    multiple: int,
    bar: Bar,
) -> Tensor:
    """run(*inputs) in tiles, blended over the middle half of a quarter of the tile; arguments as in `staged`."""
    height, width = inputs[0].shape[-2:]
    if tile is None or (height <= tile and width <= tile):
        return run(*inputs)
    overlap = max(multiple, tile // (4 * multiple) * multiple)
    count = len(boxes(height, width, tile, overlap, multiple))
    with bar(count, name) as shown, malloc.usual():  # tiles are there to need little memory
        return tiled(run, inputs, tile, overlap, scale, multiple, lambda *_: shown.update())


def lay_out(module: torch.nn.Module) -> None:
    """Channels last in the half types, which is faster. Not in float32: there PyTorch's group norm loses digits in it."""
    layout = torch.contiguous_format if module.dtype == torch.float32 else torch.channels_last
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


# -- The stages -------------------------------------------------------------------------------------------------------------


def preprocess(net: Any, picture: Tensor, scale: float, device: torch.device, tile: int | None, bar: Bar) -> Tensor:
    """I in [0, 1], (batch, 3, round(height x scale), round(width x scale)), float32, of a picture in [0, 1].

    Args:
        net: RRDBNet, or None: the picture is only interpolated.
        picture: (batch, 3, height, width).
        scale: how many times as large I is.
        device: the device of I.
        tile: side of the tiles of the picture.
        bar: makes the progress bar.
    """
    size = [max(1, round(side * scale)) for side in picture.shape[-2:]]
    larger = picture.to(device, torch.float32)
    if net is not None:

        def run(x: Tensor) -> Tensor:
            return net(x.to(net.dtype)).float()  # type: ignore[no-any-return]

        larger = staged("preprocess", run, net, larger, tile, net.config.scale, 1, bar)
    larger = larger.clamp(0, 1) if larger is picture else larger.clamp_(0, 1)
    if list(larger.shape[-2:]) != size:
        larger = bicubic(larger, size).clamp_(0, 1)
    return larger


def moments(encoder: Any, name: str, reference: Tensor, factor: int, tile: int | None, bar: Bar) -> Tensor:
    """Mean and log variance of the posterior of an encoder, joined, float32.

    Args:
        encoder: an AutoencoderKL, or the encoder of one alone.
        name: the name of the stage.
        reference: pictures in [0, 1].
        factor: pixels a side of a latent.
        tile: side of the tiles.
        bar: makes the progress bar.
    """

    def run(picture: Tensor) -> Tensor:
        picture = (2 * picture - 1).to(encoder.dtype)
        out = encoder.encode(picture).latent_dist.parameters if hasattr(encoder, "encode") else encoder(picture)
        return out.float()  # type: ignore[no-any-return]

    return staged(name, run, encoder, reference, tile, Fraction(1, factor), factor, bar)


def mode(moments: Tensor, scaling: float) -> Tensor:
    """The latent of a posterior's mean. scaling: 0.18215, or what the configuration of the VAE says."""
    return moments.chunk(2, 1)[0] * scaling


def sample(moments: Tensor, noise: Tensor, scaling: float) -> Tensor:
    """The latent of a posterior's sample, with this noise."""
    mean, log_variance = moments.chunk(2, 1)
    return (mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise) * scaling


def latent(moments: Tensor, source: str | Tensor, generator: Any, scaling: float) -> Tensor:
    """x_hat0 of a posterior: its "mode", a "sample" with noise of a generator, or a sample with the noise `source`."""
    if isinstance(source, Tensor):
        return sample(moments, source.to(moments), scaling)
    if source == "mode":
        return mode(moments, scaling)
    return sample(moments, as_noise(generator)(0.0, 0.0, moments.chunk(2, 1)[0]), scaling)


@dataclass(frozen=True, eq=False)
class Net:
    """U-Net and ControlNet for pictures with these hints and prompts, (x, x_hat0, t) -> what the scheduler's `predicts` says.

    Args:
        unet: the U-Net.
        controlnet: the ControlNet.
        scheduler: a DoSDEScheduler.
        hint: hint latents, in the shape of x.
        context: embedded prompts, (batch, tokens, width); of a guided model the negative ones, then the others.
        guidance_scale: None: not guided; else out(negative) + guidance_scale (out(prompt) - out(negative)), in one batch.
        conditioning_scale: a factor on the residuals of the ControlNet.
        tile: side of the tiles of x.
        multiple: sides of x are multiples of it.
        bar: makes the progress bar.
    """

    unet: Any
    controlnet: Any
    scheduler: Any
    hint: Tensor
    context: Tensor
    guidance_scale: float | None
    conditioning_scale: float
    tile: int | None
    multiple: int
    bar: Bar

    def __call__(self, x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
        """The output of the U-Net, float32."""
        timestep = torch.full((), self.scheduler.model_time(t), dtype=torch.float32, device=x.device)

        def whole(x: Tensor, hint: Tensor) -> Tensor:
            return self._whole(x, hint, timestep)

        return in_tiles("tiles", whole, [x.to(self.hint.dtype), self.hint], self.tile, 1, self.multiple, self.bar)

    def _whole(self, x: Tensor, hint: Tensor, timestep: Tensor) -> Tensor:
        if self.guidance_scale is not None:
            x, hint = torch.cat([x, x]), torch.cat([hint, hint])
        down, middle = self.controlnet(
            x,
            timestep,
            encoder_hidden_states=self.context,
            controlnet_cond=hint,
            conditioning_scale=self.conditioning_scale,
            return_dict=False,
        )
        out: Tensor = self.unet(
            x,
            timestep,
            encoder_hidden_states=self.context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        out = out.float()
        if self.guidance_scale is not None:
            without, with_prompt = out.chunk(2)
            out = without + self.guidance_scale * (with_prompt - without)
        return out


def decode(vae: Any, x0: Tensor, factor: int, tile: int | None, bar: Bar) -> Tensor:
    """The picture (batch, 3, height, width) of a latent, float32, about [0, 1] but not clamped; tile: in the latent."""

    def run(z: Tensor) -> Tensor:
        picture: Tensor = vae.decode(z.to(vae.dtype), return_dict=False)[0]
        return picture.float()

    return staged("decode", run, vae, x0 / vae.config.scaling_factor, tile, factor, 1, bar).add_(1).div_(2)


# -- What they cost, and what may be shared -----------------------------------------------------------------------------------


def costs(vae: Any, unet: Any, preprocessor: Any, guided: bool) -> dict[str, float]:
    """Bytes a pixel of the output of each stage, in the order in which they run: see `backbones.sd21.tiles`."""
    first, wide = vae.config.block_out_channels[0], unet.config.block_out_channels[0]
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    cost = {
        "encode": 12.0 * first * vae.dtype.itemsize,
        "solve": 520.0 * wide * (2 if guided else 1) / factor**2,
        "decode": 15.0 * first * vae.dtype.itemsize,
    }
    if preprocessor is not None:
        net = preprocessor
        cost = {"preprocess": 115.0 * net.config.num_feat * net.dtype.itemsize / net.config.scale**2} | cost
    return cost


Compared = tuple[Any, bool]


def one_encoder(hint_encoder: Any, vae: Any, before: Compared | None) -> Compared | None:
    """Whether hint encoder and VAE hold equal weights (where fine-tuning starts), so that one pass serves both.

    Args:
        hint_encoder: the hint encoder.
        vae: the VAE.
        before: what this function returned before. Weights that nothing has written to since are not compared again.

    Returns:
        What the weights were, and whether they are equal; None where they cannot be compared.
    """
    own, theirs = (_plain(module).state_dict() for module in (hint_encoder, vae))
    if not own.keys() <= theirs.keys():  # a VAE of another kind
        return None
    pairs = [(tensor, theirs[name]) for name, tensor in own.items()]
    if any(tensor.is_meta for pair in pairs for tensor in pair):  # offloaded, module by module
        return None
    versions = tuple((t.data_ptr(), check.writes(t)) for pair in pairs for t in pair)
    if before is not None and before[0] == versions:
        return before
    # On the host: with model offload one may be on the device, and the other not.
    return versions, all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


def _plain(module: Any) -> torch.nn.Module:
    """The module that torch.compile wraps, if it does."""
    plain: torch.nn.Module = getattr(module, "_orig_mod", module)
    return plain
