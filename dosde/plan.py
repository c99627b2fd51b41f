"""A plan: process, grid, method -> Plan, a list of Steps. All coefficients of a solve are here, in float64, before it begins.

>>> import dosde
>>> process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
>>> print(*plan(process, steps=3, order=2), sep="\\n")
t 0.5000 -> 0.3333:  x = +0 x +0.5491 x_hat0 +0.183 x_theta[0] +0.6811 z
t 0.3333 -> 0.1667:  x = +0.1142 x +0.1616 x_hat0 +0.6521 x_theta[0] +0.4345 z
t 0.1667 -> 0.0000:  x = +0 x +0 x_hat0 +1.214 x_theta[0] -0.214 x_theta[-1] +0 z
"""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from . import check
from . import grid as _grid
from . import method as _method
from .check import Refused, RefusedType
from .grid import Grid
from .law import law, sensitivity
from .process import Marginal, Process
from .step import Method, Plan, Step

Times = Tensor | Sequence[float]
"""steps + 1 decreasing times in [0, 1]."""


@torch.no_grad()
def plan(
    process: Process,
    steps: int = 5,
    order: int | None = None,
    *,
    method: Method = _method.dos,
    grid: Grid | Times | None = None,
) -> Plan:
    """The steps that `solve` would apply. Printed, they show the method.

    Args:
        process: the process.
        steps: the number of model calls.
        order: 1 to steps. Default: as in `solve`.
        method: (marginals, order) -> steps.
        grid: (process, steps) -> times, or steps + 1 decreasing times. Default: uniform in t from t1 to 0.

    Raises:
        ValueError: for a grid that does not go from noise to data, or an order that the method does not have.
        TypeError: for an argument of another type.
    """
    if not isinstance(process, Process):
        raise RefusedType("process", process, "a dosde.Process is needed")
    points = marginals(process, check.count("steps", steps), grid)
    return applied(method, points, order, getattr(grid, "scale", None))


def applied(method: Method, marginals: Sequence[Marginal], order: int | None, scale: object = None) -> Plan:
    """The steps that a method returns for these marginals, checked.

    Args:
        method: the method.
        marginals: one for each time of the grid.
        order: None is the method's.
        scale: std of x0 given x_hat0, where the grid was made for one.
    """
    steps = len(marginals) - 1
    check.function("method", method, "a function (marginals, order) -> steps is needed, such as dosde.method.dos")
    order = min(default_order(method), steps) if order is None else check.order(order, steps)
    made = method(marginals, order)
    check.plan(made, method, steps, order, Step)
    plan = Plan(made, marginals)
    with torch.no_grad():  # coefficients of a user's method may carry a graph
        check.amplification(sensitivity(plan), order)
    scale = getattr(method, "scale", scale)
    if isinstance(scale, int | float) and marginals[0].sigma.any() and not marginals[0].a.ndim:
        check.spread(float(law(plan, scale).std), float(scale), steps)
    return plan


def default_order(method: Method) -> int:
    """The order of a method, where the user gives none."""
    parameter = inspect.signature(method).parameters.get("order")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else 3


def marginals(process: Process, steps: int, grid: Grid | Times | None = None) -> list[Marginal]:
    """The marginals of a process at the times of a grid, checked."""
    times = check.times(_grid.uniform if grid is None else grid, process, steps)
    m = process(times.reshape(-1, *[1] * len(process.field_shape)))
    name, lam = ("lam", m.lam) if m.sigma.any() else ("b/a", m.b / m.a)  # without noise the source is what fades
    check.falling(grid, times, name, lam.reshape(steps + 1, -1), process.t1)
    silent = (m.sigma[:-1] <= 0) & (m.lam[:-1] < torch.inf)  # a bridge begins at its source, at lam = infinity
    if m.sigma.any() and silent.any():
        i = int(silent.reshape(steps, -1).any(1).nonzero()[0])
        raise Refused("grid", grid, "only the last time may", f"time {times[i]:g} at index {i} has sigma = 0")
    return [Marginal(*row) for row in zip(m.t.unbind(), m.a.unbind(), m.b.unbind(), m.sigma.unbind(), strict=True)]
