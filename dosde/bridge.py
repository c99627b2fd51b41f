"""Bridges: plain diffusion x_t = alpha x0 + sigma eps pinned at its end, in the letters of the domain shift.

With r(t) = (alpha_1 sigma_t / (sigma_1 alpha_t))^2, the part of the noise that x_1 tells of, x_t given x0 and x_1 = x_hat0 is

    a = alpha (1 - r)       b = r alpha / alpha_1       sigma' = sigma sqrt(1 - r)

so that at t = 1 the state is the source itself, a = 0 and sigma' = 0. These are

    Brownian bridge, BBDM    alpha = 1, sigma = k sqrt(t):      schedule.ve(lambda t: k * torch.sqrt(t))
    I2SB (Liu et al. 2023)   alpha = 1, sigma^2 = int_0^t beta  schedule.ve(...)
    DDBM VE (Zhou et al. 2024)   alpha = 1, sigma = s t         schedule.ve(lambda t: s * t)
    DDBM VP                  any VP schedule with alpha_1 > 0   schedule.linear(), ...
    GOUB (Yue et al. 2024)   to_source: the diffusion relaxes to x_hat0, b = 1 - a; any VP schedule, sigma times its lambda.
                             UniDB (2025) is it in the limit of an endless penalty.

lam = sigma' / a is infinite at t = 1. The first step from there is x_t = a x_theta + b x_hat0 + sigma' z for every method: the
noise of the source is drawn then ("booting noise" of DBIM, Zheng et al. 2025), and the ODE begins after it.
"""

import torch
from torch import Tensor

from .recipe import maker
from .schedule import Schedule
from .shift import Shift


def _parts(plain: Schedule, to_source: bool, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a, b and sigma'."""
    alpha, sigma = plain(t)
    alpha_1, sigma_1 = plain(torch.ones((), dtype=t.dtype, device=t.device))
    r = torch.where(t < 1, (alpha_1 * sigma / (sigma_1 * alpha)) ** 2, 1.0)
    a = alpha * (1 - r)
    rest = torch.where(r < 1, 1 - r, 1.0)  # elsewhere no root is taken of 0, which has no derivative
    return a, 1 - a if to_source else alpha / alpha_1 * r, torch.where(r < 1, sigma * rest.sqrt(), 0.0)


@maker
def schedule(plain: Schedule, to_source: bool = False) -> Schedule:
    """(a + b, sigma') of the bridge of a plain diffusion."""

    def bridge(t: Tensor) -> tuple[Tensor, Tensor]:
        a, b, sigma = _parts(plain, to_source, t)
        return a + b, sigma

    return bridge


@maker
def shift(plain: Schedule, to_source: bool = False) -> Shift:
    """eta = b / (a + b) of the bridge of a plain diffusion."""

    def eta(t: Tensor) -> Tensor:
        a, b, _ = _parts(plain, to_source, t)
        return torch.where(t < 1, b / (a + b), 1.0)

    def rest(t: Tensor) -> Tensor:
        a, b, _ = _parts(plain, to_source, t)
        return a / (a + b)

    return Shift(eta, 1.0, rest)
