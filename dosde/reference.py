"""The reverse SDE integrated by torchsde, knowing nothing of the step formulas: what the solvers are checked against.

    reverse_sde   Eq. 7 in t:     dx = (f x + h x_hat0 - g^2 score) dt + g dw,   t from t_start down to t_end
    collapsed     on the clock u:  dm = x_theta du + dW_u,   m = u (x - b x_hat0)/a,   on a given Brownian path

Both use small fixed Euler steps of torchsde and need the extra `reference`.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .check import Refused
from .noise import Brownian
from .process import Process
from .solve import Model


class _SDE:
    """A drift and an additive noise level, functions of time, as torchsde wants them."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, drift: Callable[[Tensor, Tensor], Tensor], level: Callable[[Tensor], Tensor]) -> None:
        self.drift, self.level = drift, level

    def f(self, time: Tensor, y: Tensor) -> Tensor:
        return self.drift(time, y)

    def g(self, time: Tensor, y: Tensor) -> Tensor:
        return self.level(time).to(y).expand_as(y)


@torch.no_grad()
def reverse_sde(
    model: Model,
    process: Process,
    x: Tensor,
    x_hat0: Tensor,
    t_start: float,
    t_end: float,
    steps: int = 1000,
    seed: int = 0,
) -> Tensor:
    """The state x at t_end of Eq. 7 from x at t_start < t1, by `steps` Euler steps in t. x, x_hat0: (batch, d).

    f, h and g are derivatives of the process, and the score is Eq. 9.
    """
    import torchsde

    if not 0 <= t_end < t_start:
        raise Refused("t_start, t_end", t_start, "0 <= t_end < t_start is needed", f"{t_start}, {t_end}")

    def drift(time: Tensor, y: Tensor) -> Tensor:
        t = t_start - time.to(torch.float64)  # torchsde goes forward; d/dtime = -d/dt
        score = process.score(y, x_hat0, model(y, x_hat0, t), t)
        f, h, g = (v.to(y) for v in (process.f(t), process.h(t), process.g(t)))
        return -(f * y + h * x_hat0 - g**2 * score)

    sde = _SDE(drift, lambda time: process.g(t_start - time.to(torch.float64)))
    span = t_start - t_end
    # Python's random state seeds torchsde's own Brownian motion unless an entropy is given.
    path = torchsde.BrownianInterval(0.0, span, size=x.shape, dtype=x.dtype, device=x.device, entropy=seed)
    ends = torch.tensor([0.0, span], dtype=torch.float64, device="cpu")
    result: Tensor = torchsde.sdeint(sde, x, ends, bm=path, method="euler", dt=span / steps)[-1]
    return result


@torch.no_grad()
def collapsed(
    model: Model,
    process: Process,
    x_hat0: Tensor,
    times: Tensor,
    path: Brownian,
    substeps: int = 10,
) -> Tensor:
    """The state x at times[-1] of the collapsed SDE on `path`, by `substeps` Euler steps in u in each interval of `times`.

    It starts as `solve` does, at x = (a + b) x_hat0 + sigma z.

    Args:
        model: (x, x_hat0, t) -> x_theta.
        process: the process.
        x_hat0: (batch, d).
        times: float64, decreasing, from t1 or below to a time above 0.
        path: the Brownian path on the clock u.
        substeps: Euler steps in each interval.
    """
    import torchsde

    marginals = [process(t) for t in times]
    first = marginals[0]
    u0 = float(first.u)
    # m = u (x - b x_hat0)/a with u/a = a/sigma^2, which is finite at a = 0.
    start = first.alpha * x_hat0 + first.sigma * path(0.0, u0, x_hat0)
    m = first.a / first.sigma**2 * (start - first.b * x_hat0)
    bm = _Path(path, x_hat0)
    for p, q in pairwise(marginals):

        def drift(u: Tensor, m: Tensor) -> Tensor:
            if u == 0:  # eta = 1, where x is what it started from
                return model(start, x_hat0, first.t)
            # The t of this u, and x = b x_hat0 + sigma^2/a m there.
            t = process.time(u.to(torch.float64) ** -0.5)
            n = process(t)
            return model(n.b.to(m) * x_hat0 + (n.sigma**2 / n.a).to(m) * m, x_hat0, t)

        ends = torch.stack([p.u, q.u])
        sde = _SDE(drift, lambda u: torch.ones((), dtype=torch.float64, device="cpu"))
        m = torchsde.sdeint(sde, m, ends, bm=bm, method="euler", dt=float(q.u - p.u) / substeps)[-1]
    last = marginals[-1]
    end: Tensor = last.b * x_hat0 + last.sigma**2 / last.a * m
    return end


class _Path:
    """A `Brownian` in torchsde's interface: increments between two clock readings."""

    levy_area_approximation = "none"

    def __init__(self, path: Brownian, like: Tensor) -> None:
        self.path, self.like = path, like
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device

    def __call__(self, ta: Any, tb: Any, return_U: bool = False, return_A: bool = False) -> Tensor:
        ta, tb = float(ta), float(tb)
        if ta == tb:
            return torch.zeros_like(self.like)
        return math.sqrt(tb - ta) * self.path(ta, tb, self.like)
