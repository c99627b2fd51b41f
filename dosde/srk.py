"""Stochastic Runge-Kutta of strong order 1.5 for additive noise (Roessler 2010, SRA1): two model calls a step.

On dm = x_theta du + dW with h = u_t - u_s, and the stage m' at u' = u_s + 3/4 h:

    m' = m_s + 3/4 h x_theta(m_s) + 3/2 I/h           I = int (W - W_s) du over the step
    m_t = m_s + h (x_theta(m_s) + 2 x_theta(m')) / 3 + W_t - W_s

The noise 3/2 I/h at the stage and the rest of W_t - W_s after it are independent, with variances 3/4 h and h/4. So both halves
are ordinary steps on the clock, and the first one is Solver-1. The scheme is a method, a grid and a noise that belong together:

    solve(model, x_hat0, steps=20, order=2, method=srk, grid=two_stage(grid.log_lam()), noise=Stages(Brownian(0)))
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import check, expansion
from .check import Refused, require
from .process import Marginal, Process
from .recipe import maker
from .step import Coefficient, Step, stacked, steps


@check.typed
def srk(marginals: Sequence[Marginal], order: int = 2) -> list[Step]:
    """The method: strong order 1.5 with the noise of `Stages`, weak order 2 with any.

    Every second time must be a stage, as in a grid of `two_stage`. With an odd number of steps the last one, to t = 0, is of
    order 1.

    Raises:
        ValueError: if a stage is not at 3/4 of its step on the clock, if order is neither 2 nor (for one step) 1, or if eta is
            a field.
    """
    m = stacked(marginals)
    u, rho = m.u, expansion.ratio(m.lam)
    n = len(rho) // 2 * 2
    require(order == 2 or (order == 1 and not n), "order", order, "srk keeps order = 2 outputs")
    _one_clock(tuple(m.lam.shape[1:]), "srk")
    expected = u[0:n:2] + 0.75 * (u[2 : n + 1 : 2] - u[0:n:2])
    shown = "every second time must lie at 3/4 of its step on the clock u, before t = 0"
    require(torch.allclose(u[1:n:2], expected, rtol=1e-6, atol=0), "grid", m.t, "use grid.two_stage", shown)
    shares = torch.stack([1 - rho**2, torch.zeros_like(rho)])
    shares[:, 1:n:2] *= 8 / 3
    shares[1, 1:n:2] = -5 / 8 * shares[0, 1:n:2]
    return steps(m, rho, shares[:order])


@maker
def two_stage(grid: Callable[[Process, int], Tensor]) -> Callable[[Process, int], Tensor]:
    """The grid: for 2 k steps, k steps of the given grid, each with its stage at 3/4 of the way on the clock u.

    For 2 k + 1 steps it has k + 1 steps of the given grid. The last one, to t = 0, has no stage.

    Raises:
        ValueError: for an even number of steps and a grid that ends at t = 0, or an odd one and a grid that ends above.
    """

    def staged(process: Process, steps: int) -> Tensor:
        times = torch.as_tensor(grid(process, (steps + 1) // 2), dtype=torch.float64, device="cpu")
        pairs = steps // 2
        _one_clock(process.field_shape, "two_stage")
        u = process(times).u
        if steps % 2 and not u[-1].isinf():
            needed = "an even number is needed, or one that ends at 0"
            raise Refused("steps", steps, needed, f"{steps} with a grid that ends above t = 0")
        if u[pairs].isinf():
            needed = "an odd number is needed, or a grid that ends above"
            raise Refused("steps", steps, needed, f"{steps} with a grid that ends at t = 0")
        stages = process.time((u[:pairs] + 0.75 * (u[1 : pairs + 1] - u[:pairs])) ** -0.5)
        both = torch.stack([times[:pairs], stages], 1).reshape(-1)
        return torch.cat([both, times[pairs:]])

    return staged


class Stages:
    """The noise, on one Brownian path. One solve after the other may use it, but not two at a time.

    The stage of a step from u over h gets 3/2 I/h, and the second half gets the rest of the increment. I is taken from some
    increments of the path: a part of std h^1.5/(points sqrt 12) is left out. That makes a floor of strong order 1, about
    1/(3.5 points) of the error of a method of order 1.

    Args:
        path: (u, u_next, like) -> z, increments of one Brownian motion: `noise.Brownian`.
        points: the number of increments that make I.
    """

    def __init__(self, path: Callable[[Coefficient, Coefficient, Tensor], Tensor], points: int = 64) -> None:
        check.function("path", path, "(u, u_next, like) -> z is needed, such as noise.Brownian(0)")
        ok = isinstance(points, int) and not isinstance(points, bool) and points >= 1
        require(ok, "points", points, "a positive integer is needed")
        self.path, self.points = path, points
        self._rest: Tensor | None = None  # of the noise of a step, after its stage
        self._u: float | None = None  # the clock that the solve has reached

    def __repr__(self) -> str:
        return f"dosde.srk.Stages({self.path!r}, points={self.points})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stages) and (self.path, self.points) == (other.path, other.points)

    def __hash__(self) -> int:
        return hash((self.path, self.points))

    def __call__(self, u: Coefficient, u_next: Coefficient, like: Tensor) -> Tensor:
        if isinstance(u, Tensor) or isinstance(u_next, Tensor):
            shape = tuple(u.shape) if isinstance(u, Tensor) else u
            raise Refused("noise", self, "one clock is needed", f"Stages needs one clock, and u is a field of shape {shape}")
        begins = u != self._u or u == u_next  # not where the last call ended: the start of another solve
        self._u = u_next
        if begins:
            self._rest = None
            return self.path(u, u_next, like)
        if self._rest is not None:
            rest, self._rest = self._rest, None
            return rest
        h = (u_next - u) * 4 / 3
        ends = [u + h * i / self.points for i in range(self.points + 1)]
        whole, area = torch.zeros_like(like), torch.zeros_like(like)
        for v, w in itertools.pairwise(ends):
            increment = self.path(v, w, like) * math.sqrt(w - v)
            whole += increment
            area += (u + h - (v + w) / 2) * increment
        stage = 1.5 * area / h
        self._rest = (whole - stage) / math.sqrt(h / 4)
        return stage / math.sqrt(3 * h / 4)


def _one_clock(field: tuple[int, ...], what: str) -> None:
    require(not field, "process", field, f"{what} needs one clock", f"eta is a field of shape {field}")
