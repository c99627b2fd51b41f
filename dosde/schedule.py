"""Noise schedules: t -> (alpha, sigma), with t in [0, 1] and t = 0 the clean end.

A schedule is any function of a float64 tensor t that returns (alpha, sigma), composed of torch operations so that
`Process` can differentiate it. The variance-preserving (VP) ones here satisfy alpha^2 + sigma^2 = 1 and are written in
B(t) = -log alpha^2, from which sigma = sqrt(-expm1(-B)) keeps all its digits down to t = 0.

A network that was trained on a table of T steps knows that table: give it to `from_alphas_cumprod`. `linear` and
`scaled_linear` are the continuous-time limits of the tables of the same name: alpha differs from them by less than half a
per cent up to t = 1/2, and by up to four at t = 1.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import check
from ._pchip import pchip
from .check import require
from .recipe import maker

Schedule = Callable[[Tensor], tuple[Tensor, Tensor]]
"""t -> (alpha, sigma)."""


@maker
def linear(beta_min: float = 1e-4, beta_max: float = 0.02, T: int = 1000) -> Schedule:
    """DDPM: beta(t) is linear in t, B(t) = T int_0^t beta.

    Args:
        beta_min: the first beta of a table of T steps.
        beta_max: the last beta.
        T: the number of steps of the table.

    Raises:
        ValueError: unless 0 < beta_min < beta_max < 1 and T >= 1.

    >>> import torch
    >>> alpha, sigma = linear()(torch.tensor(0.5, dtype=torch.float64))
    >>> print(f"{alpha:.4f} {sigma:.4f}")
    0.2812 0.9597
    """
    check.betas(beta_min, beta_max, T)
    return _vp(lambda t: T * t * (beta_min + (beta_max - beta_min) * t / 2))


@maker
def scaled_linear(beta_min: float = 0.00085, beta_max: float = 0.012, T: int = 1000) -> Schedule:
    """Stable Diffusion: sqrt(beta(t)) is linear in t, B(t) = T int_0^t beta. The arguments are those of `linear`."""
    check.betas(beta_min, beta_max, T)
    p = math.sqrt(beta_min)
    q = math.sqrt(beta_max) - p
    return _vp(lambda t: T * t * (p * p + p * q * t + (q * t) ** 2 / 3))


@maker
def cosine(s: float = 0.008) -> Schedule:
    """Improved DDPM (Nichol and Dhariwal 2021): alpha = cos(w0 + w t) / cos(w0), w0 + w = pi/2, w0 = w s.

    Raises:
        ValueError: unless the offset s is positive and finite.
    """
    require(0 < s < math.inf, "s", s, "a positive offset is needed")
    w0 = math.pi / 2 * s / (1 + s)

    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        w = math.pi / 2 / (1 + s) * t
        q = 2 * torch.sin(w / 2) ** 2 + math.tan(w0) * torch.sin(w)  # 1 - alpha, without cancellation
        q = torch.where(t < 1, q, 1.0)
        return 1 - q, torch.sqrt(q * (2 - q))

    return schedule


@maker
def from_alphas_cumprod(table: Tensor | Sequence[float]) -> Schedule:
    """The VP schedule through a table of alpha^2, index i at t = (i + 1)/T.

    B is interpolated by monotone cubics through every node and through B(0) = 0. So it is continuously differentiable, with
    alpha = 1 and sigma = 0 at t = 0. Where the last entry is 0 (zero terminal SNR), B is infinite there, and in the last
    interval alpha^2 falls linearly.

    Args:
        table: 1-D, strictly decreasing, within (0, 1), but for a last entry of 0. A diffusers scheduler has it as
            `scheduler.alphas_cumprod`.

    Raises:
        ValueError: for another table.
    """
    values = check.table("table", table, "alpha^2 must lie strictly between 0 and 1; the last may be 0", falling=True)
    T, ends = len(values), bool(values[-1] == 0)
    finite = values[: T - ends]
    require(len(finite) >= 2, "table", table, "at least two values above 0 are needed", f"{len(finite)} above 0")
    nodes = torch.arange(len(finite) + 1, dtype=torch.float64, device="cpu") / T
    B = pchip(nodes, torch.cat([values.new_zeros(1), -finite.log()]))
    if not ends:
        return _vp(B)

    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        (alpha, sigma), last = _vp(B)(t), t > nodes[-1]
        left = torch.where(last, finite[-1] * (T - T * t), 0.5)  # alpha^2 there; elsewhere no root of it is taken
        return torch.where(last, left.sqrt(), alpha), torch.where(last, (1 - left).sqrt(), sigma)

    return schedule


def zero_terminal_snr(table: Tensor | Sequence[float]) -> Tensor:
    """A table of alpha^2 shifted and scaled so that it ends at 0 and begins as before (Lin et al. 2024, Algorithm 1).

    It is what `rescale_betas_zero_snr` of diffusers' schedulers does, but for their last entry of 2^-24. Networks of it
    predict v or x0, since eps tells nothing of x0 at alpha = 0.

    Raises:
        ValueError: for a table that `from_alphas_cumprod` does not take.
    """
    alpha = check.table("table", table, "alpha^2 must lie strictly between 0 and 1; the last may be 0", falling=True).sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


@maker
def flow(shift: float = 1.0) -> Schedule:
    """The rectified flow between data and noise: alpha = 1 - s, sigma = s (SD 3, FLUX, Sana), from t = 1, noise alone.

    Its networks predict the kind `velocity`, eps - x0. The flow from a source to data is `process.flow`.

    Args:
        shift: s = shift t / (1 + (shift - 1) t), as diffusers' FlowMatchEulerDiscreteScheduler has it. It moves times only.

    Raises:
        ValueError: unless it is positive and finite.
    """
    require(0 < shift < math.inf, "shift", shift, "a positive number is needed")

    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        rest = 1 + (shift - 1) * t
        return (1 - t) / rest, shift * t / rest

    return schedule


@check.typed
def table_index(t: float | Tensor, T: int = 1000) -> int:
    """The index at which a network that was trained on a table of T steps is called at time t: the nearest, at least 0.

    Index i is at t = (i + 1)/T, so that times below 1/(2 T) are nearest to none: they get index 0, the least noise.

    >>> table_index(0.25), table_index(1.0), table_index(0.0)
    (249, 999, 0)
    """
    time = check.values("t", t, "a time in [0, 1]")
    require(time.ndim == 0 and 0 <= float(time) <= 1, "t", t, "a time in [0, 1] is needed")
    return max(round(time.item() * check.count("T", T)) - 1, 0)


@maker
def ve(sigma: Callable[[Tensor], Tensor]) -> Schedule:
    """Variance-exploding: alpha = 1, and a function sigma(t) that increases from sigma(0) = 0."""
    return lambda t: (torch.ones_like(t), sigma(t))


@maker
def with_shift(shift: Callable[[Tensor], Tensor], kappa: float, power: float = 0.5) -> Schedule:
    """Noise that grows with the shift: alpha = 1, sigma = kappa eta^power. ResShift has power 1/2, the noisy flow 1.

    Raises:
        ValueError: for a kappa below 0, or a power that is not positive.
    """
    require(0 <= kappa < math.inf, "kappa", kappa, "a number >= 0 is needed")
    require(0 < power < math.inf, "power", power, "a positive power is needed")
    return lambda t: (torch.ones_like(t), kappa * shift(t) ** power)


@maker
def scaled(schedule: Schedule, noise: float | Tensor) -> Schedule:
    """A schedule with its sigma times a number or a field that broadcasts against x: noise that differs by pixel (UPSR)."""

    field = check.values("noise", noise, "a number, or a field of them,")
    require(check.within(field, 0, math.inf), "noise", noise, "finite values >= 0 are needed")

    def more(t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule(t)
        return alpha, sigma * field

    return more


def _vp(B: Callable[[Tensor], Tensor]) -> Schedule:
    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        b = B(t)
        return torch.exp(-b / 2), torch.sqrt(-torch.expm1(-b))

    return schedule
