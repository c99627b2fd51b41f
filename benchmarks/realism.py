"""How much a picture looks like photographs at the frequencies that its low-resolution picture has lost, and where it is flat:

    spectrum   mean |10 log10(P/P_truth)| in dB, P the power of Y in rings of frequencies from half the Nyquist frequency of the
               low-resolution picture to that of the picture. Noise of the right power passes
    texture    sliced 2-Wasserstein distance between 8x8 patches of Y above the low-resolution picture's Nyquist frequency, over
               their std in the truth. Noise of the right power does not pass: patches of photographs are flat or full of edges
    grain      RMS difference of neighbours of Y where the truth is flat (a tenth of its 8x8 blocks), over that of the truth

0 is the best of the first two, a picture that has nothing there has 1 of texture. Neither asks whether the detail is in its
place. Of grain, 1 is the truth's; what rounding to 8 bits makes of the difference is added to both.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.pictures import io as images

_RINGS, _DIRECTIONS, _PATCH = 96, 128, 8
_ROUNDING = 2 * (1 / 255) ** 2 / 6


def spectrum_error(picture: Tensor, truth: Tensor, scale: int) -> float:
    """In dB. picture, truth: (1, 3, height, width) in [0, 1]."""
    frequency, ours = radial(picture)
    _, theirs = radial(truth)
    lost = frequency >= 0.25 / scale
    return float(np.abs(10 * np.log10(ours[lost] / theirs[lost])).mean())


def radial(picture: Tensor) -> tuple[Any, Any]:
    """(frequencies in cycles a pixel, mean power of Y of each ring up to 1/2), under a Hann window."""
    y = images.luma(picture)[0, 0].double().numpy()
    h, w = y.shape
    window = np.hanning(h)[:, None] * np.hanning(w)
    power = np.abs(np.fft.fft2((y - y.mean()) * window)) ** 2 / (window**2).sum()
    rho = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w))
    ring = np.minimum((rho * 2 * _RINGS).astype(int), _RINGS)  # the last: corners, which no ring has whole
    mean = np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
    return (np.arange(_RINGS) + 0.5) / (2 * _RINGS), mean[:_RINGS] + 1e-12


def texture_error(picture: Tensor, truth: Tensor, scale: int) -> float:
    """See the module. picture, truth: (1, 3, height, width) in [0, 1]."""
    ours, theirs = (_projected(p, scale) for p in (picture, truth))
    return float(((ours - theirs) ** 2).mean().sqrt() / (theirs**2).mean().sqrt())


def grain(picture: Tensor, truth: Tensor) -> float:
    """See the module. picture, truth: (1, 3, height, width) in [0, 1]."""
    ours, theirs = (_roughness(p) for p in (picture, truth))
    flat = theirs <= theirs.quantile(0.1)
    return float(((ours[flat].mean() + _ROUNDING) / (theirs[flat].mean() + _ROUNDING)).sqrt())


def _roughness(picture: Tensor) -> Tensor:
    """The mean square difference of neighbours in each block, across and down."""
    blocks = images.luma(picture)[0, 0].double().unfold(0, _PATCH, _PATCH).unfold(1, _PATCH, _PATCH)
    return (blocks.diff(dim=-1) ** 2).mean((-2, -1)) + (blocks.diff(dim=-2) ** 2).mean((-2, -1))


def _projected(picture: Tensor, scale: int) -> Tensor:
    """(directions, patches), each row in order."""
    y = images.luma(picture)[0, 0].double()
    h, w = y.shape
    wide = torch.cat([torch.cat([y, y.flip(1)], 1), torch.cat([y.flip(0), y.flip(0).flip(1)], 1)])  # no edge at the border
    rho = torch.hypot(torch.fft.fftfreq(2 * h, dtype=torch.float64)[:, None], torch.fft.fftfreq(2 * w, dtype=torch.float64))
    passed = ((rho * 2 * scale - 0.75) * 2).clamp(0, 1)  # from 3/4 to 5/4 of the Nyquist frequency
    high = torch.fft.ifft2(torch.fft.fft2(wide) * passed).real[:h, :w]
    patches = high.unfold(0, _PATCH, 2).unfold(1, _PATCH, 2).reshape(-1, _PATCH**2)
    projected: Tensor = _directions() @ patches.mT
    return projected.sort(-1).values


@functools.cache
def _directions() -> Tensor:
    p = torch.randn(_DIRECTIONS, _PATCH**2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    unit: Tensor = p / p.norm(dim=1, keepdim=True)
    return unit
