"""Methods: functions (marginals, order) -> list[Step]. A step from time s to t is

    x_t = keep x_s + hat x_hat0 + sum_i new_i x_theta_i + noise z,      x_theta_0 the newest output

and with c in [0, 1], rho = lam_t / lam_s, every one of them satisfies

    keep = c sigma_t / sigma_s     hat = b_t - keep b_s     sum new = a_t (1 - c rho)     noise = sigma_t sqrt(1 - c^2)

so that x_s on the marginal of s and x_theta = x0 give x_t on the marginal of t. c = rho is the reverse SDE (Eq. 11), c = 1 its
probability-flow ODE; between lies the posterior of the chain of Eq. 3. A method chooses c and how sum new is divided among
past outputs (`expansion.weights`); the first steps, which have no past, are of lower order.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import expansion
from .expansion import Array, Variable
from .process import Marginal

Coefficient = float | Tensor

_AMPLIFICATION = 50  # sum |new| / a_t above which a user is told; the paper's solvers stay below 21 on their grids


@dataclass(frozen=True, slots=True)
class Step:
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


Method = Callable[[Sequence[Marginal], int], list[Step]]


def dos(marginals: Sequence[Marginal], order: int) -> list[Step]:
    """The paper's DoS-SDE Solver-1, 2, 3 (Eq. 41-49, Algorithms 1-3, with z for the misprinted x_hat0 in the noise).

    Expansion orders 1, 2, 2: the third solver keeps the two-point first derivative. Strong order 1, weak order at most 2.
    Errors: ValueError for an order above 3.
    """
    if order > 3:
        raise ValueError(f"order: {order}; dos has orders 1 to 3, adams has any")
    m = _stacked(marginals)
    return _steps(m, expansion.ratio(m.lam), expansion.weights(m.lam, order, power=2, taylor=True))


def adams(marginals: Sequence[Marginal], order: int, variable: Variable = expansion.lam) -> list[Step]:
    """The reverse SDE with x_theta expanded to any order k by the polynomial through the last k outputs.

    Expansion order k. As for every such method of an SDE, strong order 1 and weak order at most 2. Another variable:
    functools.partial(adams, variable=dosde.expansion.log_lam).
    """
    m = _stacked(marginals)
    return _steps(m, expansion.ratio(m.lam), expansion.weights(m.lam, order, power=2, variable=variable))


def ode(marginals: Sequence[Marginal], order: int, variable: Variable = expansion.lam) -> list[Step]:
    """The probability-flow ODE, order k from the polynomial through the last k outputs. Noise enters at the start only."""
    m = _stacked(marginals)
    rho = expansion.ratio(m.lam)
    return _steps(m, torch.ones_like(rho), expansion.weights(m.lam, order, power=1, variable=variable))


def resshift(marginals: Sequence[Marginal], order: int = 1) -> list[Step]:
    """The posterior q(x_t | x_s, x_hat0, x0 = x_theta) of the paper's chain (Eq. 3): c = alpha_s sigma_t / (alpha_t sigma_s).

    On its process, where c = sqrt(eta_t/eta_s), the published sampler of ResShift; at eta = 0 that of DDPM, which is dos of
    order 1 there. Errors: ValueError for an order above 1.
    """
    if order > 1:
        raise ValueError(f"order: {order}; resshift has order 1 only")
    m = _stacked(marginals)
    c = m.alpha[:-1] * m.sigma[1:] / (m.alpha[1:] * m.sigma[:-1])
    if not (c <= 1 + 1e-9).all():
        raise ValueError("method: resshift needs sigma/alpha to rise with t, as the chain of Eq. 3 does; take dos or ode")
    c = c.clamp(max=1)
    return _steps(m, c, (1 - c * expansion.ratio(m.lam))[None])


def _stacked(marginals: Sequence[Marginal]) -> Marginal:
    """One marginal with a leading dimension of times."""
    return Marginal(*(torch.stack([getattr(m, name) for m in marginals]) for name in ("t", "a", "b", "sigma")))


def _steps(m: Marginal, ratio: Tensor, shares: Tensor) -> list[Step]:
    """The plan of the given ratio c, (steps, *field), and shares of a_t for past outputs, (order, steps, *field)."""
    a, b, sigma, u = m.a.numpy(), m.b.numpy(), m.sigma.numpy(), m.u.numpy()
    c, w = ratio.numpy(), shares.numpy()
    if not np.isfinite(w).all():
        raise ValueError("variable: the expansion has weights that are not finite; it must tell the lam of the grid apart")
    amplification = np.abs(w).sum(0).reshape(len(c), -1).max(1)
    worst = amplification.argmax()
    if amplification[worst] > _AMPLIFICATION:
        warnings.warn(
            f"order: {len(w)}; step {worst} multiplies errors of the model by up to {amplification[worst]:.0f}: it "
            "extrapolates far from outputs that lie close together. A lower order, a grid without such a jump, or "
            "another variable (adams, ode: expansion.log_lam) avoids that",
            stacklevel=6,
        )
    keep = c * sigma[1:] / sigma[:-1]
    hat = b[1:] - keep * b[:-1]
    noise = _column(sigma[1:] * np.sqrt((1 - c) * (1 + c)))
    noise = [level if isinstance(level, float) or level.any() else 0.0 for level in noise]
    t, clock = m.t.reshape(len(m.t), -1)[:, 0].tolist(), _column(u)
    rows = zip(*(_column(row) for row in a[1:] * w), strict=True)
    past = [_trimmed(row[: n + 1]) for n, row in enumerate(rows)]
    return list(map(Step, t[:-1], t[1:], clock[:-1], clock[1:], _column(keep), _column(hat), past, noise))


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
    return f"[{float(value.min()):+.4g} .. {float(value.max()):+.4g}]"
