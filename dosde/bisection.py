"""Bisection: the inverse of a rising t -> lam, and the first time at which eta is 1."""

from collections.abc import Callable

import torch
from torch import Tensor


def inverse(lam_at: Callable[[Tensor], Tensor], lam: Tensor, least: Tensor, t1: float) -> Tensor:
    """The times in [0, t1] at which lam has these values; 0 where it is the least."""
    low, high = torch.full_like(lam, 1e-300), torch.full_like(lam, t1)
    for _ in range(80):  # first the exponent of t, then its digits
        middle = torch.where(high > 2 * low, low.sqrt() * high.sqrt(), (low + high) / 2)
        below = lam_at(middle) < lam
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(lam > least, high, 0.0)


def first_time_of_one(eta: Callable[[Tensor], Tensor]) -> float:
    """The least t with eta(t) = 1 everywhere; 1 if there is none."""
    low, high = 0.0, 1.0
    for _ in range(52):
        middle = (low + high) / 2
        if (eta(torch.tensor(middle, dtype=torch.float64, device="cpu")) == 1).all():
            high = middle
        else:
            low = middle
    return high
