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

from ._pchip import pchip


@dataclass(frozen=True)
class Shift:
    """eta(t), and the time t1 in (0, 1] at which all of it has reached 1 (1 if it never does).

    `rest` may give 1 - eta with the digits that the subtraction loses where eta is close to 1.
    """

    eta: Callable[[Tensor], Tensor]
    t1: float = 1.0
    rest: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        _check_t1(self.t1)

    def __call__(self, t: Tensor) -> Tensor:
        return self.eta(t)


def none() -> Shift:
    """eta = 0: plain diffusion, with x_hat0 as the picture that the solve starts from."""
    return Shift(torch.zeros_like)


def cosine(t1: float | Tensor = 0.5) -> Shift:
    """Eq. 4: eta = (1 - cos(pi t / t1)) / 2 on [0, t1], 1 after.

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


def linear(t1: float | Tensor = 1.0) -> Shift:
    """eta = t / t1 on [0, t1], 1 after."""
    t1 = _check_t1(t1)
    return Shift(lambda t: (t / t1).clamp(max=1), float(t1.max()))


def from_table(etas: Tensor | Sequence[float]) -> Shift:
    """eta through a table, index i at t = (i + 1)/T, and eta(0) = 0; monotone cubics between."""
    values = torch.as_tensor(etas, dtype=torch.float64, device="cpu").detach()
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"etas: shape {tuple(values.shape)}; a 1-D table of at least two values is needed")
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ValueError(f"etas: value {values[i].item()} at index {i}; eta must lie in [0, 1]")
    if not (values.diff() >= 0).all():
        i = int((values.diff() < 0).nonzero()[0])
        raise ValueError(f"etas: {values[i].item()} then {values[i + 1].item()} at index {i}; it must not decrease")
    nodes = torch.arange(len(values) + 1, dtype=torch.float64, device="cpu") / len(values)
    ones = (values == 1).nonzero()
    t1 = nodes[1 + int(ones[0])].item() if len(ones) else 1.0
    return Shift(pchip(nodes, torch.cat([values.new_zeros(1), values])), t1)


def exponential(T: int = 15, eta_min: float = 0.02**2, eta_max: float = 0.99**2, p: float = 0.3) -> Shift:
    """ResShift's sequence: sqrt(eta_i) = sqrt(eta_min) b^(T - 1)(i/(T - 1))^p, i = 0..T-1, ending at eta_max.

    Its published settings are T = 15 with eta_min = 0.02^2 and T = 4 with eta_min = 0.1^2.
    """
    if T < 2:
        raise ValueError(f"T: {T}; at least two steps are needed")
    if not 0 < eta_min < eta_max <= 1:
        raise ValueError(f"eta_min, eta_max: {eta_min}, {eta_max}; 0 < eta_min < eta_max <= 1 is needed")
    if not 0 < p < math.inf:
        raise ValueError(f"p: {p}; a positive power is needed")
    power = (torch.arange(T, dtype=torch.float64, device="cpu") / (T - 1)) ** p
    return from_table(eta_min * (eta_max / eta_min) ** power)


def _check_t1(t1: float | Tensor) -> Tensor:
    values = torch.as_tensor(t1, dtype=torch.float64, device="cpu").detach()
    if values.numel() == 0 or not ((values > 0) & (values <= 1)).all():
        raise ValueError(f"t1: {t1}; times in (0, 1] are needed")
    return values
