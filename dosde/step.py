"""One step of a plan, from time s to t:

    x_t = keep x_s + hat x_hat0 + sum_i new_i x_theta_i + noise z,      x_theta_0 the newest output

and the steps that follow from two choices, a ratio c in [0, 1] and the shares w_i of a_t for past outputs:

    keep = c sigma_t / sigma_s     hat = b_t - keep b_s     new_i = a_t w_i     noise = sigma_t sqrt(1 - c^2)

With rho = lam_t / lam_s and sum w_i = 1 - c rho, x_s on the marginal of s and x_theta = x0 give x_t on the marginal of t. c = 1
is the probability-flow ODE, c = rho the reverse SDE (Eq. 11), c = rho^(tau^2) has tau times its noise; the posterior of the
chain of Eq. 3 is another such c. A method is a choice of c and w: see `method`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .check import RefusedType, require
from .process import Marginal
from .recipe import ByValue

Coefficient = float | Tensor
"""A number, or a float64 tensor where eta is a field."""
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Step(ByValue):
    """One step, from time t to t_next on the clock u. Coefficients are floats, or float64 tensors where eta is a field.

    A step without noise has the float 0 there, and draws none.
    """

    t: float
    t_next: float
    u: Coefficient
    u_next: Coefficient
    keep: Coefficient
    hat: Coefficient
    new: tuple[Coefficient, ...]
    noise: Coefficient

    def __str__(self) -> str:
        new = " ".join(f"{_number(w)} x_theta[{-i}]" for i, w in enumerate(self.new))
        terms = f"{_number(self.keep)} x {_number(self.hat)} x_hat0 {new} {_number(self.noise)} z"
        return f"t {self.t:.4f} -> {self.t_next:.4f}:  x = {terms}"


class Plan(list[Step]):
    """The steps of a solve, with the marginals at their steps + 1 times."""

    def __init__(self, steps: Iterable[Step], marginals: Sequence[Marginal]) -> None:
        super().__init__(steps)
        self.marginals = tuple(marginals)

    def __reduce__(self) -> tuple[object, ...]:
        return Plan, (list(self), self.marginals)


Method = Callable[[Sequence[Marginal], int], list[Step]]
"""(marginals, order) -> steps, one marginal for each time of the grid."""


def stacked(marginals: Sequence[Marginal], noise_free: bool = False) -> Marginal:
    """The marginals at all times as one, with a leading dimension of times.

    Raises:
        ValueError: for a process without noise, unless `noise_free` allows it.
    """
    if not isinstance(marginals, Sequence) or not all(isinstance(m, Marginal) for m in marginals) or len(marginals) < 2:
        raise RefusedType("marginals", marginals, "a list of at least two, process(t) at decreasing times, is needed")
    m = Marginal(*(torch.stack([getattr(m, name) for m in marginals]) for name in ("t", "a", "b", "sigma")))
    graph = any(v.requires_grad for v in (m.a, m.b, m.sigma))
    advice = "only a method of one's own, written in torch, takes coefficients through which gradients flow"
    require(not graph, "process", None, advice, "its schedule or shift carries a graph")
    needed = "only method.flow solves such a one"
    require(noise_free or bool(m.sigma.any()), "method", None, needed, "the process has no noise (sigma = 0)")
    return m


def kept(m: Marginal, ratio: Tensor) -> Tensor:
    """c, which is 0 in a step from the source itself (a = 0 and sigma = 0, of a bridge): there is no old noise to keep."""
    return torch.where((m.sigma[:-1] > 0) | (m.a[:-1] > 0), ratio, 0.0)


def steps(m: Marginal, ratio: Tensor, shares: Tensor, level: Tensor | None = None) -> list[Step]:
    """The steps between stacked marginals: the equations above.

    Args:
        m: n + 1 marginals, `stacked`.
        ratio: c of each step, (n, *field).
        shares: w, (order, n, *field), of the newest output first.
        level: std of the noise that x_t has after each step, (n, *field). Default: sigma_t.
    """
    a, b, sigma, c, w = (v.numpy() for v in (m.a, m.b, m.sigma, kept(m, ratio), shares))
    after = sigma[1:] if level is None else level.numpy()
    a, b, sigma, c = (_raised(v, after.ndim) for v in (a, b, sigma, c))

    keep = c * after / np.where(sigma[:-1] > 0, sigma[:-1], 1.0)
    hat = b[1:] - keep * b[:-1]
    new = a[1:] * w
    noise = after * np.sqrt((1 - c) * (1 + c))

    past = [_trimmed(row[: n + 1]) for n, row in enumerate(zip(*map(_column, new), strict=True))]
    drawn = [z if isinstance(z, float) or z.any() else 0.0 for z in _column(noise)]
    t, u = m.t.reshape(len(m.t), -1)[:, 0].tolist(), _column(m.u.numpy())
    return list(map(Step, t[:-1], t[1:], u[:-1], u[1:], _column(keep), _column(hat), past, drawn))


def _raised(values: Array, ndim: int) -> Array:
    """With dimensions of 1 after the first, for a field to broadcast against."""
    return values.reshape(len(values), *[1] * (ndim - values.ndim), *values.shape[1:])


def _column(values: Array) -> list[Coefficient]:
    """One coefficient a step: floats, or tensors where there is a field."""
    return values.tolist() if values.ndim == 1 else [torch.from_numpy(row) for row in values]


def _trimmed(new: tuple[Coefficient, ...]) -> tuple[Coefficient, ...]:
    """Without the oldest outputs that have no weight, so that the loop does not touch them."""
    while len(new) > 1 and isinstance(new[-1], float) and new[-1] == 0:
        new = new[:-1]
    return new


def _number(value: Coefficient) -> str:
    if isinstance(value, float):
        return f"{value:+.4g}"
    return f"[{float(value.detach().min()):+.4g} .. {float(value.detach().max()):+.4g}]"
