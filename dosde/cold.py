"""Cold diffusion (Bansal et al. 2022): a known degradation D(x0, t) in place of noise, D(x0, 0) = x0, from x_hat0 = D(x0, 1).

    Algorithm 1 (naive)    x_t = D(x_theta, t)
    Algorithm 2            x_t = x_s - D(x_theta, s) + D(x_theta, t),      x_theta = model(x_s, x_hat0, s)

No x_t is random, and D is any function: there is no process here. Where D(x0, t) = x0 + t e with one e for all x0, Algorithm 2
stays on D(x0, t) whatever the model returns: what it gets wrong cancels. For D(x0, t) = (1 - t) x0 + t x_hat0 it is a step of
Euler's on the rectified flow (`method.flow`) with the velocity x_hat0 - x_theta.

The model learns x0 from D(x0, t), by the mean of |model(degrade(x0, t), x_hat0, t) - x0| over x0 and t.
"""

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from . import check
from .check import Refused
from .placement import state_dtype
from .progress import with_progress
from .recipe import maker
from .solve import Callback, Model

Degrade = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def solve(
    model: Model,
    x_hat0: Tensor,
    degrade: Degrade,
    steps: int = 5,
    *,
    grid: Tensor | Sequence[float] | None = None,
    naive: bool = False,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """The x0 of Algorithm 2, or of the naive Algorithm 1, from x_hat0 in `steps` model calls.

    Args:
        model: (x, x_hat0, t) -> x_theta, as in `dosde.solve`.
        x_hat0: the degraded picture, which stands for D(x0, t) at the first time; floating, shape (batch, ...).
        degrade: (x0, t) -> D(x0, t) in the shape of x0, with t as the model gets it: `blur`, `interpolation`, or another.
        steps: the number of model calls.
        grid: steps + 1 decreasing times in [0, 1]. Default: uniform from 1 to 0.
        naive: Algorithm 1 instead of 2.
        callback: as in `dosde.solve`.
        progress: as in `dosde.solve`.

    Returns:
        The state at the last time in the shape, dtype and device of x_hat0.

    Raises:
        ValueError: before the first model call for a wrong argument, or where D(x_hat0, 0) is not x_hat0; afterwards as in
            `dosde.solve`.
        TypeError: for an argument of another type.

    >>> import torch
    >>> x0 = torch.rand(1, 3, 16, 16)
    >>> degrade = blur(std=2.0)
    >>> x_hat0 = degrade(x0, torch.tensor(1.0))
    >>> torch.allclose(solve(lambda x, x_hat0, t: x0, x_hat0, degrade), x0, atol=1e-5)
    True
    """
    for name, value in (("model", model), ("degrade", degrade), ("callback", callback)):
        if value is not None or name != "callback":
            check.function(name, value, "a function is needed", check.form(value))
    even = torch.linspace(1, 0, check.count("steps", steps) + 1, dtype=torch.float64, device="cpu")
    times = check.times(even if grid is None else grid, None, steps)
    check.source(x_hat0)
    source = x_hat0.to(state_dtype(x_hat0))
    _check_start(degrade, source)
    x, sums, levels = source, [], times.tolist()
    for i, (s, t) in enumerate(with_progress(list(pairwise(times)), progress)):
        x_theta = model(x.to(x_hat0.dtype, copy=True), x_hat0, s)
        check.output(x_theta, x, i, levels[i])
        sums.append(check.total(x_theta))
        if callback is not None:
            callback(i, s, x.clone(), x_theta)
        estimate = x_theta.detach().to(x.dtype)
        x = _degraded(degrade, estimate, t) if naive else x - _degraded(degrade, estimate, s) + _degraded(degrade, estimate, t)
    check.finite(sums, check.total(x), levels[:-1], "degrade")
    return x.to(x_hat0.dtype, copy=True)


def interpolation(x_hat0: Tensor) -> Degrade:
    """The path of the rectified flow: D(x0, t) = (1 - t) x0 + t x_hat0. t is one time, or one for each sample."""

    def degrade(x0: Tensor, t: Tensor) -> Tensor:
        part = _over_batch(t, x0).to(x0)
        return (1 - part) * x0 + part * x_hat0.to(x0)

    return degrade


@maker
def blur(std: float | Callable[[Tensor], Tensor]) -> Degrade:
    """A Gaussian blur of std t times the given one over the last two dimensions of x0. t is one time, or one for each sample.

    The cosine modes k = 0 .. N - 1 of N pixels are attenuated by exp(-(pi k std/N)^2/2), which is the kernel on a picture that
    is reflected at its borders. Means are kept, and blurs of std p and q in a row are one of sqrt(p^2 + q^2), without edges or
    cut tails.

    Args:
        std: in pixels, or a function t -> std.

    Raises:
        ValueError: for a std that is negative or not finite, or an x0 of fewer than two dimensions.
    """
    if not callable(std) and not (isinstance(std, int | float) and 0 <= std < math.inf):
        raise Refused("std", std, "a number of pixels >= 0, or a function of t, is needed")

    def degrade(x0: Tensor, t: Tensor) -> Tensor:
        if x0.ndim < 2 + torch.as_tensor(t).ndim:
            raise Refused(
                "x0", tuple(x0.shape), "pictures (..., height, width), one a time t, are needed", f"shape {tuple(x0.shape)}"
            )
        t = _over_batch(t, x0)
        s = torch.as_tensor(std(t), dtype=torch.float64, device="cpu") if callable(std) else std * t
        if not ((s >= 0) & s.isfinite()).all():
            raise Refused(
                "std",
                s.flatten().tolist(),
                "finite values >= 0 are needed",
                f"{s.flatten().tolist()} at t = {t.flatten().tolist()}",
            )
        down, across = (_smoother(n, s).to(x0) for n in x0.shape[-2:])
        with torch.autocast(x0.device.type, enabled=False):  # under which D(x0, 0) would not be x0
            return down @ x0 @ across.mT

    return degrade


def _smoother(n: int, std: Tensor) -> Tensor:
    """The (..., n, n) matrix that blurs n pixels; std is 0-dim or (..., 1, 1)."""
    k = torch.arange(n, dtype=torch.float64, device="cpu")[:, None]
    return _modes(n).mT @ (torch.exp(-((math.pi / n * k * std) ** 2) / 2) * _modes(n))


@functools.lru_cache(maxsize=8)
def _modes(n: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of n pixels."""
    k, i = torch.arange(n, dtype=torch.float64, device="cpu")[:, None], torch.arange(n, dtype=torch.float64, device="cpu")
    modes = torch.cos(math.pi / n * k * (i + 0.5)) * math.sqrt(2 / n)
    modes[0] /= math.sqrt(2)
    return modes


def _over_batch(t: float | Tensor, x: Tensor) -> Tensor:
    """One time, or one a sample, in float64 on the host, to broadcast against x."""
    t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
    if t.ndim > 1 or (t.ndim and len(t) != len(x)):
        raise Refused("t", tuple(t.shape), f"one time, or {len(x)} of them (one a sample)", f"shape {tuple(t.shape)}")
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t


def _check_start(degrade: Degrade, source: Tensor) -> None:
    same = _degraded(degrade, source, torch.zeros((), dtype=torch.float64, device="cpu"))
    if not torch.allclose(same, source, rtol=1e-3, atol=1e-3 * float(source.abs().max())):
        most = float((same - source).abs().max())
        raise Refused("degrade", most, "D(x, 0) = x is needed", f"D(x, 0) differs from x by up to {most:.3g} for x = x_hat0")


def _degraded(degrade: Degrade, x0: Tensor, t: Tensor) -> Tensor:
    value = degrade(x0, t)
    if not isinstance(value, Tensor) or value.shape != x0.shape or value.device != x0.device or not value.is_floating_point():
        raise Refused("degrade", value, f"{check.form(x0)} is needed", f"returned {check.form(value)} at t = {float(t):g}")
    return value.to(x0.dtype)
