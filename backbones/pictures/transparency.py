"""Colours behind transparency: what no eye sees must not reach what it sees.

Files keep any colour where alpha is 0, and resizing, or a network, mixes it into its neighbours. So it is replaced first by
the colour of what is visible around it:

    weight = min(1, 2 alpha / (the largest alpha within 2 pixels)),    0 where alpha is 0
    colour = weight colour + (1 - weight) (colours around, averaged by weight)

The average is taken over 2 x 2 pixels, and over twice as many where these have no weight, and so on (push and pull). A picture
of one alpha, whatever it is, keeps its colours.
"""

import torch
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
    weight = torch.where(alpha > 0, (2 * alpha / largest.clamp(min=1e-9)).clamp(max=1), 0)
    seen = weight.amax((1, 2, 3), keepdim=True) > 0
    if bool((weight == 1).all()):
        return colour
    return torch.where(seen, _spread(colour, weight), colour)


def _spread(colour: Tensor, weight: Tensor) -> Tensor:
    """weight colour + (1 - weight) around, around being the same of the picture at half its size."""
    height, width = colour.shape[-2:]
    if height == width == 1 or bool((weight == 1).all()):
        return colour
    sums = F.avg_pool2d(torch.cat([colour * weight, weight], 1), 2, ceil_mode=True, count_include_pad=False)
    around = sums[:, :-1] / sums[:, -1:].clamp(min=1e-9)
    around = _spread(around, (4 * sums[:, -1:]).clamp(max=1))
    around = F.interpolate(around, scale_factor=2.0, mode="bilinear", align_corners=False)[..., :height, :width]
    return colour.lerp(around, 1 - weight)
