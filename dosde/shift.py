"""Shifting sequences: t -> eta in [0, 1], non-decreasing: how far the clean picture has moved to the source (Eq. 1).

A shift is any function of a float64 tensor t. It may return a field, a tensor that broadcasts against x (one eta a
channel, say): give `cosine` or `linear` a tensor t1 for that. `Shift` also carries t1, where eta reaches 1 and a solve
starts; for a bare function `Process` finds it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import check
from ._pchip import pchip
from .check import describe, require
from .recipe import ByValue, maker


@dataclass(frozen=True, eq=False, repr=False)
class Shift(ByValue):
    """eta(t), and the time t1 in (0, 1] at which all of eta has reached 1.

    Args:
        eta: a float64 tensor t -> eta.
        t1: 1 if eta never reaches 1.
        rest: t -> 1 - eta, with the digits that the subtraction loses where eta is close to 1.
    """

    eta: Callable[[Tensor], Tensor]
    t1: float = 1.0
    rest: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        _check_t1(self.t1)

    def __call__(self, t: Tensor) -> Tensor:
        return self.eta(t)

    def __repr__(self) -> str:
        rest = "" if self.rest is None else f", {describe(self.rest)}"
        return f"dosde.shift.Shift({describe(self.eta)}, t1={self.t1:g}{rest})"


@maker
def none() -> Shift:
    """Plain diffusion: eta = 0. A solve still starts from x_hat0."""
    return Shift(torch.zeros_like)


@maker
def cosine(t1: float | Tensor = 0.5) -> Shift:
    """The shift of the paper (Eq. 4): eta = (1 - cos(pi t / t1)) / 2 on [0, t1], 1 after.

    Args:
        t1: a time in (0, 1], or a tensor of times that broadcasts against x.

    Raises:
        ValueError: for a time outside (0, 1].

    >>> import torch
    >>> cosine(0.5)(torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64))
    tensor([0.0000, 0.5000, 1.0000, 1.0000], dtype=torch.float64)
    """
    t1 = _check_t1(t1)
    # sin^2 and cos^2 of the half angle: the same numbers, exact to the last digits near t = 0 and t = t1.
    return Shift(
        lambda t: torch.sin(math.pi / 2 * (t / t1).clamp(max=1)) ** 2,
        float(t1.max()),
        lambda t: torch.sin(math.pi / 2 * ((t1 - t) / t1).clamp(min=0)) ** 2,
    )


@maker
def linear(t1: float | Tensor = 1.0) -> Shift:
    """A straight line: eta = t / t1 on [0, t1], 1 after. The argument is that of `cosine`."""
    t1 = _check_t1(t1)
    return Shift(lambda t: (t / t1).clamp(max=1), float(t1.max()))


@maker
def from_table(etas: Tensor | Sequence[float]) -> Shift:
    """The monotone cubics through eta(0) = 0 and a table of T values, index i at t = (i + 1)/T.

    Args:
        etas: 1-D, in [0, 1], not decreasing.

    Raises:
        ValueError: for another table.
    """
    values = check.table("etas", etas, "eta must lie in [0, 1]", falling=False)
    nodes = torch.arange(len(values) + 1, dtype=torch.float64, device="cpu") / len(values)
    ones = (values == 1).nonzero()
    t1 = nodes[1 + int(ones[0])].item() if len(ones) else 1.0
    return Shift(pchip(nodes, torch.cat([values.new_zeros(1), values])), t1)


@maker
def exponential(T: int = 15, eta_min: float = 0.02**2, eta_max: float = 0.99**2, p: float = 0.3) -> Shift:
    """ResShift's sequence: sqrt(eta_i) = sqrt(eta_min) b^(T - 1)(i/(T - 1))^p, i = 0..T-1, ending at eta_max.

    Its published settings are T = 15 with eta_min = 0.02^2 and T = 4 with eta_min = 0.1^2.
    """
    require(T >= 2, "T", T, "at least two steps are needed")
    ordered, shown = 0 < eta_min < eta_max <= 1, f"{eta_min}, {eta_max}"
    require(ordered, "eta_min, eta_max", (eta_min, eta_max), "0 < eta_min < eta_max <= 1 is needed", shown)
    require(0 < p < math.inf, "p", p, "a positive power is needed")
    power = (torch.arange(T, dtype=torch.float64, device="cpu") / (T - 1)) ** p
    return from_table(eta_min * (eta_max / eta_min) ** power)


def _check_t1(t1: float | Tensor) -> Tensor:
    values = torch.as_tensor(t1, dtype=torch.float64, device="cpu").detach()
    require(values.numel() > 0 and bool(((values > 0) & (values <= 1)).all()), "t1", t1, "times in (0, 1] are needed")
    return values
