"""Colour fixes: the detail of a result with the colours of its reference. Tensors are (batch, channels, height, width).

wavelet: high(content) + low(style), low being the blurs by outer([1, 2, 1], [1, 2, 1]) / 16 at dilations 1, 2, 4, ... in turn,
the border pixels repeated. The high frequencies of the levels telescope to x - low(x), and blurs are linear, so it is

    content + low(style - content)

adain: (content - mean(content)) std(style) / std(content) + mean(style) with std^2 = variance + 1e-5, by image and channel.

Half precision is computed in, and comes back as, float32. Nothing here is differentiated.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dosde.check import Refused

Fix = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def wavelet(content: Tensor, style: Tensor, levels: int = 5) -> Tensor:
    """High frequencies of content, low ones of style; `levels` blurs reach 2^levels - 1 pixels to each side.

    It needs memory for the result and one plane of it.

    Args:
        content: (batch, channels, height, width).
        style: in the shape of content.
        levels: at least 1.

    Raises:
        Refused: for levels below 1, and shapes that differ or are no pictures.
    """
    if levels < 1:
        raise Refused("levels", levels, "at least 1 is needed")
    content, style = _alike(content, style)
    result = style - content
    spare = torch.empty_like(result[0, 0])
    for plane in (plane for picture in result for plane in picture):  # views, whatever the strides
        for level in range(levels):
            _blur(plane, spare, 2**level, 0)
            _blur(spare, plane, 2**level, 1)
    return result.add_(content)


@torch.no_grad()
def adain(content: Tensor, style: Tensor) -> Tensor:
    """Content with the mean and standard deviation of style, by image and channel; the variance is unbiased.

    Raises:
        Refused: for shapes that differ or are no pictures.
    """
    content, style = _alike(content, style)
    correction = min(1, content[0, 0].numel() - 1)  # a picture of one pixel has variance 0, not 0/0
    (var_c, mean_c), (var_s, mean_s) = (
        torch.var_mean(x, (-2, -1), correction=correction, keepdim=True) for x in (content, style)
    )
    return (content - mean_c).mul_(((var_s + 1e-5) / (var_c + 1e-5)).sqrt()).add_(mean_s)


@torch.no_grad()
def none(content: Tensor, style: Tensor) -> Tensor:
    """Content as it is.

    Raises:
        Refused: for shapes that differ or are no pictures.
    """
    return _alike(content, style)[0]


COLOUR_FIXES: dict[str, Fix] = {"wavelet": wavelet, "adain": adain, "none": none}


def _alike(content: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """Both, checked, in float32 or float64."""
    if content.ndim != 4 or content.numel() == 0:
        raise Refused("content", content, "(batch, channels, height, width) is needed", f"shape {tuple(content.shape)}")
    if style.shape != content.shape:
        raise Refused("style", style, f"that of content, {tuple(content.shape)}, is needed", f"shape {tuple(style.shape)}")
    dtype = torch.promote_types(torch.promote_types(content.dtype, style.dtype), torch.float32)
    return content.to(dtype), style.to(dtype)


def _blur(x: Tensor, out: Tensor, reach: int, axis: int) -> None:
    """out[i] = x[i]/2 + (x[i - reach] + x[i + reach])/4, indices clamped to the plane."""
    n = x.shape[axis]
    inner, edge = max(n - reach, 0), min(n, reach)
    torch.mul(x, 0.5, out=out)
    out.narrow(axis, n - inner, inner).add_(x.narrow(axis, 0, inner), alpha=0.25)
    out.narrow(axis, 0, inner).add_(x.narrow(axis, n - inner, inner), alpha=0.25)
    out.narrow(axis, 0, edge).add_(x.narrow(axis, 0, 1), alpha=0.25)
    out.narrow(axis, n - edge, edge).add_(x.narrow(axis, n - 1, 1), alpha=0.25)
