"""Monotone C1 interpolation of a table: cubic Hermite pieces with the slopes of Fritsch and Butland (PCHIP).

The same curve as `scipy.interpolate.PchipInterpolator`, in torch, so that it is differentiable in the argument and the
core does not depend on scipy.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def pchip(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """The interpolant through the nodes (x, y), both 1-D float64, x increasing; constant outside [x[0], x[-1]].

    It passes through every node exactly, and is monotone wherever the table is.
    """
    width = x.diff()
    secant = y.diff() / width
    slope = torch.empty_like(y)
    left, right = secant[:-1], secant[1:]
    w1, w2 = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    same = left * right > 0
    slope[1:-1] = torch.where(same, (w1 + w2) * left * right / torch.where(same, w1 * right + w2 * left, 1.0), 0.0)
    slope[0] = _end_slope(width[0], width[1], secant[0], secant[1])
    slope[-1] = _end_slope(width[-1], width[-2], secant[-1], secant[-2])

    def curve(t: Tensor) -> Tensor:
        t = t.clamp(x[0], x[-1])
        i = torch.searchsorted(x, t.detach().contiguous(), right=True).clamp(1, len(x) - 1) - 1
        w = width[i]
        s = (t - x[i]) / w
        # The Hermite basis is exactly (1, 0, 0, 0) and (0, 1, 0, 0) at the ends of a piece: nodes are exact.
        start, end = (1 + 2 * s) * (1 - s) ** 2, s**2 * (3 - 2 * s)
        rise, fall = s * (1 - s) ** 2, s**2 * (s - 1)
        return start * y[i] + end * y[i + 1] + w * (rise * slope[i] + fall * slope[i + 1])

    return curve


def _end_slope(w0: Tensor, w1: Tensor, s0: Tensor, s1: Tensor) -> Tensor:
    """The three-point slope at an end, kept within the bounds of monotone pieces."""
    slope = ((2 * w0 + w1) * s0 - w0 * s1) / (w0 + w1)
    slope = torch.where(slope * s0 > 0, slope, 0.0)
    return torch.where((s0 * s1 < 0) & (slope.abs() > 3 * s0.abs()), 3 * s0, slope)
