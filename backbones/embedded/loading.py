"""`load` of the backbone `embedded`: its keywords are the options of the command line. It imports torch when it is called."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from backbones.option import DEVICE, DTYPE, TILE, Option, loads

if TYPE_CHECKING:
    from .backbone import Embedded

ABOUT = "a small network"
WEIGHTS = Path(__file__).with_name("weights.safetensors")
"""What ships, trained by configs/embedded.toml. docs/embedded.md has its measure."""


@loads("embedded")
def load(
    weights: Annotated[str | Path, Option("a .safetensors file", metavar="PATH")] = WEIGHTS,
    *,
    tile: Annotated[int | str | None, TILE] = "auto",
    dtype: Annotated[str, DTYPE] = "auto",
    device: Annotated[str, DEVICE] = "auto",
) -> "Embedded":
    """The backbone in a file that `save` wrote; by default in the file that ships.

    Args:
        weights: the file.
        tile: see `Embedded`; "auto" is 2048 pixels, or more where the overlap of the network needs more.
        dtype: of the network; "auto" is bfloat16 on a GPU, float32 on the CPU.
        device: "auto" is a GPU where there is one.

    Raises:
        Refused: in one line that names the argument, or the file and the tensor in it.
    """
    from .backbone import loaded

    return loaded(weights, tile, dtype, device)
