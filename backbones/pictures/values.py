"""Numbers of pictures: which types and ranges are taken, in one place, wherever pictures come in as tensors or arrays.

    uint8: value / 255      uint16: value / 65535      floating: as it is, in [0, 1]

Rounding may lead out of [0, 1] by a little, so 0.01 more is taken, and cut off; metrics take 0.5 more, since results overshoot.
All else is refused: 0 to 255 in floating numbers, integers of other types, NaN and infinity.
"""

import math

import torch
from torch import Tensor

from dosde.check import RefusedType, form, require

TYPES = "uint8, uint16, or floating in [0, 1], is needed"
_MOST = {torch.uint8: 255, torch.uint16: 65535}


def unit(argument: str, picture: object, shown: str | None = None, slack: float = 0.01) -> Tensor:
    """A picture in [0, 1], float32, on its device.

    Args:
        argument: its name, for messages.
        picture: a tensor of any shape.
        shown: what it is, for messages.
        slack: how far floating numbers may lie outside of [0, 1].

    Raises:
        RefusedType: for what is no tensor, and other types.
        Refused: for NaN, infinity and other ranges, and for a tensor without an element.
    """
    if not isinstance(picture, Tensor):
        needed = "a tensor is needed (backbones.pictures.io: of_array and of_pil make one)"
        raise RefusedType(argument, picture, needed, form(picture))
    shown = shown or form(picture)
    most = _MOST.get(picture.dtype)
    if most is None and not picture.is_floating_point():
        raise RefusedType(argument, picture, TYPES, shown)
    if picture.is_meta or picture.layout != torch.strided:
        raise RefusedType(argument, picture, "a dense tensor with values is needed", f"{shown}, {picture.layout}")
    require(picture.numel() > 0, argument, picture, "at least one pixel is needed", shown)
    if most is not None:
        return picture.to(torch.float32) / most
    values = picture.to(torch.float32)
    least, largest = (float(v) for v in values.detach().aminmax())  # NaN, where there is one
    finite = math.isfinite(least) and math.isfinite(largest)
    require(finite, argument, picture, "values in [0, 1] are needed", f"{shown}, holds NaN or infinity")
    inside = -slack <= least <= largest <= 1 + slack
    require(inside, argument, picture, "values in [0, 1] are needed", f"{shown}, from {least:g} to {largest:g}")
    return values if least >= 0 and largest <= 1 else values.clamp(0, 1)
