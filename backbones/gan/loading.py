"""`load` of the backbone `gan`: its keywords are the options of the command line. It imports torch when it is called."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from backbones.option import DEVICE, DTYPE, TILE, Option, loads

if TYPE_CHECKING:
    from .backbone import GAN

ABOUT = "an RRDBNet: Real-ESRGAN, BSRGAN, LDL, ESRGAN"


@loads("gan")
def load(
    weights: Annotated[str | Path, Option("a file of an RRDBNet, as its authors released it", metavar="PATH")],
    *,
    tile: Annotated[int | str | None, TILE] = "auto",
    dtype: Annotated[str, DTYPE] = "auto",
    device: Annotated[str, DEVICE] = "auto",
) -> "GAN":
    """The network in a .safetensors or .pth file, ready to run.

    Args:
        weights: the file; names of tensors may be those of Real-ESRGAN, BSRGAN or the first ESRGAN.
        tile: see `GAN`; "auto" is 768 pixels.
        dtype: of the network; "auto" is bfloat16 on a GPU, float32 on the CPU.
        device: "auto" is a GPU where there is one.

    Raises:
        Refused: in one line that names the argument, or the file and the tensor in it.
    """
    from .backbone import loaded

    return loaded(weights, tile, dtype, device)
