"""Antialiased bicubic interpolation: all resizing of pictures in `backbones` but for the random resizes of `degradation`.

The kernel is that of Keys with a = -1/2, stretched by the factor where the picture becomes smaller (torch's `antialias=True`).
Without antialiasing torch takes a = -3/4, so that is another interpolation, also where the picture becomes larger.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def bicubic(picture: Tensor, size: Sequence[int]) -> Tensor:
    """The picture in another size; it overshoots at edges, so values may leave the range of the input.

    Args:
        picture: (batch, channels, height, width), floating.
        size: (height, width) of the result.

    Returns:
        (batch, channels, *size), in the dtype of the picture; gradients pass.
    """
    return F.interpolate(picture, tuple(size), mode="bicubic", antialias=True, align_corners=False)
