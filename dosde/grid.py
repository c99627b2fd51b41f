"""Grids: functions (process, steps) -> times, steps + 1 of them, decreasing.

The first time may be t1, where a = 0 (lam infinite); the last may be 0. Grids laid in lam need a scalar eta and a finite
lam_max, and end with the time of lam_min followed by t = 0, as is usual: the last of the steps goes from lam_min to 0. With
many steps that is a long one after short ones, which an expansion in lam of order above 1 extrapolates badly (`method` warns);
expand in `expansion.log_lam` on them, whose last step is of order 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .process import Process

Grid = Callable[[Process, int], Tensor]


def uniform(process: Process, steps: int) -> Tensor:
    """Uniform in t from t1 to 0: the default."""
    return torch.linspace(process.t1, 0, steps + 1, dtype=torch.float64, device="cpu")


def log_lam(lam_max: float = 80.0, lam_min: float = 0.03) -> Grid:
    """Uniform in log lam from lam_max (or lam(t1), if that is less) to lam_min, then t = 0."""
    return karras(lam_max, lam_min, rho=math.inf)


def karras(lam_max: float = 80.0, lam_min: float = 0.03, rho: float = 7.0) -> Grid:
    """Uniform in lam^(1/rho) from lam_max (or lam(t1), if that is less) to lam_min, then t = 0 (Karras et al. 2022, Eq. 5)."""
    if not 0 < lam_min < lam_max < math.inf:
        raise ValueError(f"lam_min, lam_max: {lam_min}, {lam_max}; 0 < lam_min < lam_max < inf is needed")
    if not rho > 0:
        raise ValueError(f"rho: {rho}; a positive power is needed")

    def grid(process: Process, steps: int) -> Tensor:
        end = torch.zeros(1, dtype=torch.float64, device="cpu")
        most = min(lam_max, float(process(process.t1).lam.max()))
        x = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")
        if math.isinf(rho):
            lams = torch.exp((1 - x) * math.log(most) + x * math.log(lam_min))
        else:
            lams = ((1 - x) * most ** (1 / rho) + x * lam_min ** (1 / rho)) ** rho
        return torch.cat([process.time(lams.clamp(max=most)), end])

    return grid


def respaced(T: int) -> Grid:
    """ResShift's: of a table of T steps the indices floor(i T/steps), i = steps - 1 .. 0, then t = 0.

    Index 0 is kept, and the last one, T - 1, only if steps = T.

    >>> import dosde
    >>> respaced(15)(dosde.process.resshift(), 4) * 15
    tensor([12.,  8.,  4.,  1.,  0.], dtype=torch.float64)
    """

    def grid(process: Process, steps: int) -> Tensor:
        if not 2 <= steps <= T:
            raise ValueError(f"steps: {steps}; 2 to T = {T} is needed on a respaced table")
        indices = [i * T // steps for i in reversed(range(steps))]
        return torch.tensor([*(i + 1 for i in indices), 0], dtype=torch.float64, device="cpu") / T

    return grid
