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

from . import check
from .check import require
from .process import Process
from .recipe import maker
from .srk import two_stage as two_stage

Grid = Callable[[Process, int], Tensor]
"""(process, steps) -> times."""


def uniform(process: Process, steps: int) -> Tensor:
    """Uniform in t from t1 to 0: the default."""
    return torch.linspace(process.t1, 0, steps + 1, dtype=torch.float64, device="cpu")


@maker
def log_lam(lam_max: float = 80.0, lam_min: float = 0.03) -> Grid:
    """Uniform in log lam from lam_max (or lam(t1), if that is less) to lam_min, then t = 0."""
    return _between(lam_max, lam_min, math.inf)


@maker
def karras(lam_max: float = 80.0, lam_min: float = 0.03, rho: float = 7.0) -> Grid:
    """Uniform in lam^(1/rho) from lam_max (or lam(t1), if that is less) to lam_min, then t = 0 (Karras et al. 2022, Eq. 5)."""
    require(rho > 0, "rho", rho, "a positive power is needed")
    return _between(lam_max, lam_min, rho)


def _between(lam_max: float, lam_min: float, rho: float) -> Grid:
    ordered, shown = 0 < lam_min < lam_max < math.inf, f"{lam_min}, {lam_max}"
    require(ordered, "lam_min, lam_max", (lam_min, lam_max), "0 < lam_min < lam_max < inf is needed", shown)

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


@maker
def respaced(T: int) -> Grid:
    """The grid of ResShift: of a table of T steps the indices floor(i T/steps), i = steps - 1 .. 0, then t = 0.

    Index 0 is always among them; the last index, T - 1, is only if steps = T.

    >>> import dosde
    >>> respaced(15)(dosde.process.resshift(), 4) * 15
    tensor([12.,  8.,  4.,  1.,  0.], dtype=torch.float64)
    """

    def grid(process: Process, steps: int) -> Tensor:
        require(2 <= steps <= T, "steps", steps, f"2 to T = {T} is needed on a respaced table")
        indices = [i * T // steps for i in reversed(range(steps))]
        return torch.tensor([*(i + 1 for i in indices), 0], dtype=torch.float64, device="cpu") / T

    return grid


@maker
def table(T: int) -> Grid:
    """For a network that was trained on a table of few noise levels, such as ResShift's: any number of steps, all within it.

    Up to T steps are at indices of the table, as even as they can be, from T - 1 to 0; then t = 0. With T steps that is the
    published grid. More steps also lie between indices, none below the first one, whose noise is the least that the network
    knows. Their lam grow by steps that are each the same factor longer, beginning with the step from the first index to t = 0:
    an expansion of high order would multiply errors if that one were long and those before it short.

    >>> import dosde
    >>> table(15)(dosde.process.resshift(), 3) * 15
    tensor([15.,  8.,  1.,  0.], dtype=torch.float64)
    """
    require(T >= 2, "T", T, "at least two steps are needed")

    def grid(process: Process, steps: int) -> Tensor:
        end = torch.zeros(1, dtype=torch.float64, device="cpu")
        if steps <= T:
            index = torch.linspace(T - 1, 0, check.count("steps", steps), dtype=torch.float64, device="cpu").round()
            return torch.cat([(index + 1) / T, end])
        least, most = float(process(1 / T).lam), float(process(1.0).lam)
        lams = _growing(steps, most / least) * least
        inner = process.time(lams[1:-1].flip(0))
        return torch.cat([end + 1, inner, end + 1 / T, end])

    return grid


def _growing(count: int, total: float) -> Tensor:
    """The sums 1, 1 + g, 1 + g + g^2, ..., with the g for which the last, of `count` summands, is the total."""
    powers = torch.arange(count, dtype=torch.float64, device="cpu")
    low, high = 0.0, max(total, 1.0)
    for _ in range(100):
        g = (low + high) / 2
        low, high = (g, high) if float((g**powers).sum()) < total else (low, g)
    return (high**powers).cumsum(0)


@maker
def angle(scale: float | Tensor) -> Grid:
    """Even steps of the angle: lam = s tan(theta), theta uniform from t1 to t = 0.

    Args:
        scale: s, the scale of the residual; of a field the root mean square counts.
    """

    def levels(steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")

    return _angles(scale, levels)


@maker
def few_step(scale: float | Tensor) -> Grid:
    """The grid of `presets.few_step`: t1, then lam from (3/4) n^1.6 s to (1/5 + 1/n) s, evenly in the angle of 2 s, then 0.

    These numbers are for a process with lam from infinity to 0; angles are mapped to the range of another. The first step is
    short, since at lam = infinity only the mean is to be learnt. The last step does not get short as steps grow, since errors
    of the model at small lam are not corrected any more. benchmarks/tune.py found the constants.
    """

    def levels(steps: int) -> Tensor:
        first, last = (2 / math.pi * math.atan(lam / 2) for lam in (0.75 * steps**1.6, 0.2 + 1 / steps))
        inner = torch.linspace(first, last, max(steps - 1, 0), dtype=torch.float64, device="cpu")
        return torch.cat([inner.new_ones(1), inner, inner.new_zeros(1)])

    return _angles(2 * check.scale(scale), levels)


def _angles(scale: float | Tensor, levels: Callable[[int], Tensor]) -> Grid:
    """lam = s tan(theta), theta from that of t1 to that of t = 0 by the given parts of the way, 1 to 0."""
    s = float(check.scale(scale).square().mean().sqrt())

    def grid(process: Process, steps: int) -> Tensor:
        shown = f"eta is a field of shape {process.field_shape}, and grids in the angle need one lam"
        require(not process.field_shape, "grid", process, "pass grid=times, decreasing from t1", shown)
        most, least = (math.atan(float(process(t).lam.max()) / s) for t in (process.t1, 0.0))
        lams = s * torch.tan(least + levels(steps)[1:-1] * (most - least))
        ends = torch.tensor([process.t1, 0.0], dtype=torch.float64, device="cpu")
        return torch.cat([ends[:1], process.time(lams), ends[1:]])

    return grid
