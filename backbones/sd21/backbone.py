"""DoSSRPipeline as a backbone of `dosde upscale`."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

import dosde
from backbones import backbone
from backbones.backbone import DEVICE, DTYPE, DTYPES, TILE, Option
from backbones.pictures import io as images
from backbones.pictures.colour import COLOUR_FIXES
from dosde.check import Refused
from dosde.noise import Noise
from dosde.process import Marginal
from dosde.recipe import maker
from dosde.solve import Model
from dosde.step import Method, Step

from .stages import PROMPT, Prepared
from .tiles import Tiles, check_tile, free

if TYPE_CHECKING:
    from .pipeline import DoSSRPipeline

ABOUT = "DoSSR: SD 2.1 with a ControlNet"


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
        rgb = picture.expand(-1, 3, -1, -1)
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


def amount(text: str) -> float:
    """Bytes, from text such as 6G, 500MiB or 1e9."""
    units = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
    number, unit = text.lower().removesuffix("b").removesuffix("i"), ""
    if number[-1:] in units:
        number, unit = number[:-1], number[-1:]
    size = float(number) * units[unit]
    if not 0 < size < float("inf"):
        raise ValueError
    return size


@backbone.loads("sd21")
def load(
    weights: Annotated[
        str | Path,
        Option("a folder written by `dosde convert`, or a checkpoint in the released layout", metavar="PATH"),
    ],
    *,
    tile: Annotated[int | str | None, TILE] = "auto",
    dtype: Annotated[str, DTYPE] = "auto",
    device: Annotated[str, DEVICE] = "auto",
    prompt: Annotated[str, Option(f"default: the release's, {PROMPT!r}")] = PROMPT,
    negative_prompt: Annotated[str, Option("for a guidance other than 1 (default: empty)", metavar="PROMPT")] = "",
    guidance_scale: Annotated[float, Option("1: none, half the work (default)", float, metavar="SCALE", flag="guidance")] = 1.0,
    color_fix: Annotated[str, Option("default: wavelet", choices=tuple(COLOUR_FIXES))] = "wavelet",
    source: Annotated[
        str, Option("x_hat0: mode of the VAE's posterior, or a sample (default: mode)", choices=("mode", "sample"))
    ] = "mode",
    max_memory: Annotated[
        float | None,
        Option("for auto tiles, such as 6G, beside the weights (default: 80% of what is free)", amount, metavar="SIZE"),
    ] = None,
    progress: bool = True,
) -> DoSSR:
    """The model in a folder (or a checkpoint file in the released layout), ready to run.

    Args:
        weights: a folder of `dosde convert`, or a checkpoint.
        device: "auto" is a GPU where there is one.
        dtype: "auto" is bfloat16 on a GPU, float32 on the CPU.
        prompt: the prompt.
        negative_prompt: for a guidance other than 1.
        guidance_scale: 1: without guidance.
        color_fix: "wavelet", "adain" or "none".
        source: "mode" or "sample" of the VAE's posterior.
        tile: "auto", a side in pixels of the output, or None for the picture whole.
        max_memory: bytes that "auto" may use beside the weights.
        progress: whether bars are shown.

    Raises:
        ValueError: an argument, or a file, cannot be used.
    """
    from .pipeline import DoSSRPipeline  # which imports diffusers; the command reads the options without it

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
