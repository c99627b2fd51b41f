"""`load` of the backbone `sd21`: its keywords are the options of the command line. It imports torch when it is called."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from backbones.option import DEVICE, DTYPE, TILE, Option, amount, loads

from .prompts import PROMPT

if TYPE_CHECKING:
    from .backbone import DoSSR

ABOUT = "DoSSR: SD 2.1 with a ControlNet"
COLOUR_FIXES = ("wavelet", "adain", "none")
"""The names of `backbones.pictures.colour.COLOUR_FIXES`, which needs torch."""


@loads("sd21")
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
    color_fix: Annotated[str, Option("default: wavelet", choices=COLOUR_FIXES)] = "wavelet",
    source: Annotated[
        str, Option("x_hat0: mode of the VAE's posterior, or a sample (default: mode)", choices=("mode", "sample"))
    ] = "mode",
    max_memory: Annotated[
        float | None,
        Option("for auto tiles, such as 6G, beside the weights (default: 80% of what is free)", amount, metavar="SIZE"),
    ] = None,
    progress: bool = True,
) -> "DoSSR":
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
    from .backbone import loaded

    return loaded(
        weights, tile, dtype, device, prompt, negative_prompt, guidance_scale, color_fix, source, max_memory, progress
    )
