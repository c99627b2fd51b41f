"""Colours behind transparency: what no eye sees must not reach what it sees.

Files keep any colour where alpha is 0, and resizing, or a network, mixes it into its neighbours. So it is replaced first by
the colour of what is visible around it:

    filled = weight colour + (1 - weight) around,    weight = min(1, 2 alpha / (the largest alpha within 2 pixels))

around being the same, filled, of the picture at half its size, whose pixels are averages of 2 x 2 by alpha. The weight is 0
where alpha is 0. A picture of one alpha, whatever it is, keeps its colours.
"""

import torch.nn.functional as F
from torch import Tensor


def filled(colour: Tensor, alpha: Tensor | None) -> Tensor:
    """The colours, where nothing hidden is left; colour itself where nothing is hidden, or all.

    Args:
        colour: (batch, channels, height, width).
        alpha: (batch, 1, height, width) in [0, 1], or None.
    """
    if alpha is None:
        return colour
    largest = F.max_pool2d(alpha, 5, 1, 2)
    weight = (2 * alpha / largest.clamp(min=1e-9)).clamp(max=1)
    if colour.shape[-2:] == (1, 1) or bool((weight == 1).all()) or not bool(alpha.any()):
        return colour
    less, sums = (F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in (alpha, colour * alpha))
    around = filled(sums / less.clamp(min=1e-9), less)
    around = F.interpolate(around, scale_factor=2.0, mode="bilinear", align_corners=False)
    return colour.lerp(around[..., : colour.shape[-2], : colour.shape[-1]], 1 - weight)
