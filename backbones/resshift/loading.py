"""`load` of the backbone `resshift`: its keywords are the options of the command line. It imports torch when it is called."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from backbones.option import DEVICE, DTYPE, TILE, Option, amount, loads

if TYPE_CHECKING:
    from .backbone import ResShift

ABOUT = "ResShift or SinSR: a Swin U-Net"


@loads("resshift")
def load(
    weights: Annotated[str | Path, Option("a folder written by `dosde convert`", metavar="PATH")],
    *,
    tile: Annotated[int | str | None, TILE] = "auto",
    dtype: Annotated[str, DTYPE] = "auto",
    device: Annotated[str, DEVICE] = "auto",
    max_memory: Annotated[
        float | None,
        Option("for auto tiles, such as 6G, beside the weights (default: 80% of what is free)", amount, metavar="SIZE"),
    ] = None,
    mask: Annotated[
        str | Path | None,
        Option("for a network that inpaints: a picture that is white where the image is unknown", metavar="FILE"),
    ] = None,
    residual_scale: Annotated[
        float | None,
        Option("for few_step: std of x0 - x_hat0 in the latents (default: 0.4, an estimate)", float, metavar="STD"),
    ] = None,
    progress: bool = True,
) -> "ResShift":
    """The model in a folder, ready to run.

    Args:
        weights: a folder of `dosde convert`.
        tile: "auto", a side in pixels of the output, or None for the picture whole.
        dtype: "auto" is bfloat16 on a GPU, float32 on the CPU.
        device: "auto" is a GPU where there is one.
        max_memory: bytes that "auto" may use beside the weights.
        mask: for a network that inpaints, a picture of the size of the inputs.
        residual_scale: std of x0 given x_hat0 per element of the latents, for `presets.few_step`; None: that of the folder.
        progress: whether bars are shown.

    Raises:
        ValueError: an argument, or a file, cannot be used.
    """
    from .backbone import loaded

    return loaded(weights, tile, dtype, device, max_memory, mask, residual_scale, progress)
