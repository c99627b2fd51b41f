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
from .tables import respaced as respaced
from .tables import table as table

Grid = Callable[[Process, int], Tensor]
"""(process, steps) -> times."""


@check.typed
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
    require(0 < rho < math.inf, "rho", rho, "a positive power is needed (log_lam is its limit)")
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
def graded_start(order: int, grid: Grid = uniform) -> Grid:
    """A grid whose first step is cut into `order` ever longer ones, so that a multistep method keeps its order.

    Its first step has order 1 and an error of h^2, its second one order 2 and an error of h^3. From a finite lam these errors
    stay, and `method.ode` of any order k is of order 2 (3 with the corrector). Of N steps of the given grid the first one is
    cut at the parts N^(1 - (k + 1)/(j + 1)) of its time, j = 1 .. k, so that the step of order j has an error of N^-(k + 1).
    Outputs that lie so close together magnify errors of the model: a plan that does so much warns.

    Args:
        order: k, that of the method, or one more with the corrector.
        grid: what is cut. With `steps` calls it has steps - order + 1 steps, at least 2.

    >>> import dosde
    >>> process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
    >>> graded_start(3)(process, 6)
    tensor([0.5000, 0.4688, 0.4213, 0.3750, 0.2500, 0.1250, 0.0000],
           dtype=torch.float64)
    """
    k = check.count("order", order)
    check.function("grid", grid, "a function (process, steps) -> times is needed, such as grid.karras()")

    def graded(process: Process, steps: int) -> Tensor:
        require(steps > k, "steps", steps, f"at least {k + 1} is needed with graded_start({k})")
        whole = steps - k + 1
        times = check.times(grid, process, whole)
        j = torch.arange(1, k + 1, dtype=torch.float64, device="cpu")
        cuts = torch.maximum(whole ** (1 - (k + 1) / (j + 1)), 1e-6 * j)  # nearer outputs would differ by rounding
        return torch.cat([times[:1], torch.lerp(times[0], times[1], cuts), times[2:]])

    return graded


@maker
def angle(scale: float | Tensor) -> Grid:
    """Even steps of the angle: lam = s tan(theta), theta uniform from t1 to t = 0.

    For Gaussian data of std s it is the "tangent law", which is optimal for DDIM's KL divergence (Sun, Poor and Zhang 2026,
    arXiv 2601.13602). In units of s it is the schedule `kl_optimal` of ComfyUI and AUTOMATIC1111.

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
