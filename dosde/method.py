"""Methods: functions (marginals, order) -> list[Step]. A step from time s to t is

    x_t = keep x_s + hat x_hat0 + sum_i new_i x_theta_i + noise z,      x_theta_0 the newest output

and with c in [0, 1], rho = lam_t / lam_s, all but `matched`, and `flow` where sigma = 0, satisfy

    keep = c sigma_t / sigma_s     hat = b_t - keep b_s     sum new = a_t (1 - c rho)     noise = sigma_t sqrt(1 - c^2)

so that x_s on the marginal of s and x_theta = x0 give x_t on the marginal of t. c = 1 is the probability-flow ODE, c = rho the
reverse SDE (Eq. 11), c = rho^(tau^2) has tau times its noise; the posterior of the chain of Eq. 3 is another such c. A method
chooses c and how sum new is divided among past outputs (`expansion.weights`, `matching.plan`); the first steps, which have no
past, are of lower order.

A corrector takes the step to t once more with the output at t, with the same z. It changes x_t by a sum of outputs, so that
the next step can add keep times that sum to its own: it costs no call, and one more output is kept.
"""

import numbers
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import expansion, matching
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
Psi = Callable[[Marginal], Tensor]


def dos(marginals: Sequence[Marginal], order: int) -> list[Step]:
    """The paper's DoS-SDE Solver-1, 2, 3 (Eq. 41-49, Algorithms 1-3, with z for the misprinted x_hat0 in the noise).

    Expansion orders 1, 2, 2: the third solver keeps the two-point first derivative. Strong order 1, weak order at most 2.
    Errors: ValueError for an order above 3.
    """
    if order > 3:
        raise ValueError(f"order: {order}; dos has orders 1 to 3, adams has any")
    m = _stacked(marginals)
    c = expansion.ratio(m.lam)
    return _steps(m, order, c, expansion.weights(m.lam, order, power=2, taylor=True))


def adams(
    marginals: Sequence[Marginal],
    order: int,
    variable: Variable = expansion.lam,
    tau: float | Psi = 1.0,
    corrector: bool = False,
    denoise: bool = False,
) -> list[Step]:
    """x_theta expanded to any order k by the polynomial through the last k outputs: the reverse SDE, its ODE, and between.

    variable   what it is a polynomial in: functools.partial(adams, variable=dosde.expansion.log_lam).
    tau        the noise, as a part of that of the reverse SDE: 0 the ODE, 1 the SDE. Or a function psi of the marginal
               with c = psi_t / psi_s: 1 is the ODE, lam the SDE, others `er_sde` and `chain`.
    corrector  correct each step, to order k + 1, with the evaluation that the next one makes anyway.
    denoise    return the last x_theta as it is, if the grid ends at sigma = 0, instead of an extrapolation: order 1 there.

    Expansion order k. As for every such method of an SDE, strong order 1 and weak order at most 2; for the ODE, order k, or
    k + 1 with the corrector. Errors: ValueError for a tau outside [0, 1], or a psi that falls as lam rises.
    """
    m = _stacked(marginals)
    return _steps(m, order, *_multistep(m, order, variable, tau, corrector, denoise))


def ode(
    marginals: Sequence[Marginal],
    order: int,
    variable: Variable = expansion.lam,
    corrector: bool = False,
    denoise: bool = False,
) -> list[Step]:
    """`adams` with tau = 0: the probability-flow ODE. Order k, k + 1 with the corrector; noise enters at the start only."""
    m = _stacked(marginals)
    return _steps(m, order, *_multistep(m, order, variable, 0.0, corrector, denoise))


def er_sde(m: Marginal) -> Tensor:
    """psi of the extended reverse-time SDE, phi = lam (exp(lam^0.3) + 10) (Cui et al. 2023), for the tau of `adams`."""
    return torch.exp((m.lam**0.3).clamp(max=600)) + 10


def chain(m: Marginal) -> Tensor:
    """psi of the chain of Eq. 3, sigma/alpha, for the tau of `adams`: at order 1, for one eta, that is `resshift`."""
    return m.sigma / m.alpha


def flow(
    marginals: Sequence[Marginal],
    order: int,
    variable: Variable = expansion.eta,
    corrector: bool = False,
    denoise: bool = False,
) -> list[Step]:
    """The rectified flow dx/deta = E[x_hat0 + kappa z - x0 | x_t] on `process.flow`: the only method of one without noise.

    The probability-flow ODE with the source as the noise: `ode` for sigma := b, b := 0, of which lam = b/a. Order 1 is
    Euler's step, x_t = x_s + (t - s) v, v what the `flow` prediction is. Higher orders, correctors and `denoise` as for
    `ode`; the variable is eta. On a uniform eta the first step, of order 1, and v = (x - x_theta)/eta near
    eta = 0 leave order 2 to the whole; order k is had where eta starts and ends slowly: process.flow(shift=shift.cosine(1.0)).

    Errors: ValueError for a process with sigma neither 0 nor in proportion to b.
    """
    m = _together(marginals)
    if not ((m.b[:-1] > 0).all() and torch.allclose(m.sigma[1:] * m.b[:-1], m.sigma[:-1] * m.b[1:], rtol=1e-9, atol=0)):
        raise ValueError("method: flow needs sigma = 0, or sigma in proportion to b, as process.flow has; take ode")
    m = Marginal(m.t, m.a, torch.zeros_like(m.b), m.b)
    return _steps(m, order, *_multistep(m, order, variable, 0.0, corrector, denoise))


def srk(marginals: Sequence[Marginal], order: int = 2) -> list[Step]:
    """The stochastic Runge-Kutta scheme of strong order 1.5 for additive noise (Roessler 2010, SRA1): two calls a step.

    On dm = x_theta du + dW, h = u_t - u_s, with the stage m' at u' = u_s + 3/4 h:

        m' = m_s + 3/4 h x_theta(m_s) + 3/2 I/h       m_t = m_s + h (x_theta(m_s) + 2 x_theta(m')) / 3 + W_t - W_s

    I the integral of W - W_s. Its noise 3/2 I/h at the stage and the rest after it are independent with variances 3/4 h and
    h/4, so both halves are ordinary steps on the clock, the first one Solver-1. Give the grid by `grid.two_stage`, which sets
    every second time at the stage, and an even number of steps; with an odd one the last, to t = 0, is of first order. In
    law any noise serves; strong order 1.5 on one path needs 3/2 I/h itself: `noise.Stages`. Weak order 2.
    Errors: ValueError if a stage is not at 3/4 of its step on the clock, order is neither 2 nor (one step) 1, or eta a field.
    """
    m = _stacked(marginals)
    u, rho = m.u, expansion.ratio(m.lam)
    n = len(rho) // 2 * 2
    if order not in (1, 2) or (n and order == 1):
        raise ValueError(f"order: {order}; srk keeps order = 2 outputs")
    if m.lam.ndim > 1:
        raise ValueError(f"process: eta is a field of shape {tuple(m.lam.shape[1:])}; srk needs one clock")
    expected = u[0:n:2] + 0.75 * (u[2 : n + 1 : 2] - u[0:n:2])
    if not torch.allclose(u[1:n:2], expected, rtol=1e-6, atol=0):
        raise ValueError("grid: every second time must lie at 3/4 of its step on the clock u, before t = 0: use grid.two_stage")
    shares = torch.stack([1 - rho**2, torch.zeros_like(rho)])
    shares[:, 1:n:2] *= 8 / 3
    shares[1, 1:n:2] = -5 / 8 * shares[0, 1:n:2]
    return _steps(m, order, rho, shares[:order])


def matched(scale: float | Tensor, tau: float = 0.0) -> Method:
    """Weights that give Gaussian data of about the std `scale` the right law in few calls: see `matching`.

    scale: std of x0 given x_hat0, a positive number or a field that broadcasts against x. tau: noise, 0 the ODE, 1 the
    reverse SDE. Meant for 2 to 20 steps, order 3; unlike the other methods it lets the noise of a state differ from sigma_t
    by a factor, since a Gaussian widens what starts at lam = infinity. Where eta is a field, each of its values is
    planned by itself, up to 0.2 ms each at 10 steps; a field of scales is interpolated.
    Errors: TypeError or ValueError for a scale that is not positive or a tau outside [0, 1].
    """
    s = expansion.checked_scale(scale)
    _check_tau(tau)

    def method(marginals: Sequence[Marginal], order: int) -> list[Step]:
        m = _stacked(marginals)
        c = expansion.ratio(m.lam) ** tau**2
        inflation, shares, rest = matching.plan(m.lam, s, c, order)
        return _steps(m, order, c, shares, inflation, rest)

    return method


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
    return _steps(m, order, c, (1 - c * expansion.ratio(m.lam))[None])


def _multistep(
    m: Marginal, order: int, variable: Variable, tau: float | Psi, corrector: bool, denoise: bool
) -> tuple[Tensor, Tensor]:
    """The ratios c, (steps, *field), and the shares of a_t for past outputs of `adams`."""
    rho = expansion.ratio(m.lam)
    c, power = _noise_level(m, rho, tau)
    shares = expansion.weights(m.lam, order, power, variable)
    if denoise:
        first = torch.zeros_like(shares[:, -1])
        first[0] = 1
        shares[:, -1] = torch.where(m.sigma[-1] == 0, first, shares[:, -1])
    if not corrector:
        return c, shares
    # With the corrector's weights V of the step to t, the state at t should have been x_t + sum (V - shares) x_theta.
    change = expansion.weights(m.lam, order + 1, power, variable, implicit=True)
    change[1:] -= shares
    folded = torch.cat([shares, torch.zeros_like(shares[:1])])
    folded[:, 1:] += (c * rho)[1:] * change[:, :-1]
    return c, folded


def _noise_level(m: Marginal, rho: Tensor, tau: float | Psi) -> tuple[Tensor, Array]:
    """c of each step, and the power p with c rho = rho^p: within a step any noise is that of such a p."""
    if not callable(tau):
        _check_tau(tau)
        return rho**tau**2, np.asarray(1 + tau**2)
    psi = tau(m)
    if not isinstance(psi, Tensor) or psi.shape != m.lam.shape:
        raise TypeError(f"tau: {tau!r} returns a {type(psi).__name__}; a tensor of the shape of m.lam is needed")
    c = torch.where(m.lam[1:].isinf(), 1.0, psi[1:] / psi[:-1])
    wrong = ~((c >= 0) & (c <= 1 + 1e-9)).reshape(len(c), -1).all(1)
    if wrong.any():
        i = int(wrong.nonzero()[0])
        ends = [f"{psi[j].min():g}" for j in (i, i + 1)]
        raise ValueError(
            f"tau: {tau!r} goes from {ends[0]} to {ends[1]} in step {i}; a function of the marginal that is never NaN and "
            "does not rise as lam falls is needed"
        )
    c = c.clamp(max=1)
    inside = (rho > 0) & (rho < 1) & (c > 0)
    return c, torch.where(inside, 1 + c.log() / rho.log(), torch.where(c > 0, 1.0, 2.0)).numpy()


def _check_tau(tau: object) -> None:
    if isinstance(tau, bool) or not isinstance(tau, numbers.Real) or not 0 <= float(tau) <= 1:
        raise ValueError(f"tau: {tau!r}; a number from 0 (the ODE) to 1 (the reverse SDE) is needed")


def _stacked(marginals: Sequence[Marginal]) -> Marginal:
    """One marginal with a leading dimension of times. ValueError for a process without noise."""
    m = _together(marginals)
    if not m.sigma.any():
        raise ValueError("method: the process has no noise (sigma = 0), and only method.flow solves such a one")
    return m


def _together(marginals: Sequence[Marginal]) -> Marginal:
    return Marginal(*(torch.stack([getattr(m, name) for m in marginals]) for name in ("t", "a", "b", "sigma")))


def _steps(
    m: Marginal, order: int, ratio: Tensor, shares: Tensor, inflation: Tensor | None = None, rest: Tensor | None = None
) -> list[Step]:
    """The plan of the given ratio c, (steps, *field), and shares of a_t for past outputs, (order, steps, *field).

    With an inflation, (steps, *field), the noise that a state carries and gets is so many times sigma_t, and in the
    last step a_t times the rest, (*field), more.
    """
    a, b, sigma, u, c, w = (v.numpy() for v in (m.a, m.b, m.sigma, m.u, ratio, shares))
    if not np.isfinite(w).all():
        raise ValueError("variable: the expansion has weights that are not finite; it must tell the lam of the grid apart")
    amplification = np.abs(w).sum(0).reshape(len(c), -1).max(1)
    worst = amplification.argmax()
    if amplification[worst] > _AMPLIFICATION:
        warnings.warn(
            f"order: {order}; step {worst} multiplies errors of the model by up to {amplification[worst]:.0f}: it "
            "extrapolates far from outputs that lie close together. A lower order, a grid without such a jump, or "
            "another variable (adams, ode: expansion.log_lam) avoids that",
            stacklevel=6,
        )
    level = sigma[1:]  # of the noise of x_t
    if inflation is not None and rest is not None:
        a, b, sigma, c = (_raised(v, inflation.ndim) for v in (a, b, sigma, c))
        level = sigma[1:] * inflation.numpy()
        level[-1] += a[-1] * rest.numpy()
    keep = c * level / sigma[:-1]
    hat = b[1:] - keep * b[:-1]
    noise = _column(level * np.sqrt((1 - c) * (1 + c)))
    noise = [level if isinstance(level, float) or level.any() else 0.0 for level in noise]
    t, clock = m.t.reshape(len(m.t), -1)[:, 0].tolist(), _column(u)
    rows = zip(*(_column(row) for row in a[1:] * w), strict=True)
    past = [_trimmed(row[: n + 1]) for n, row in enumerate(rows)]
    return list(map(Step, t[:-1], t[1:], clock[:-1], clock[1:], _column(keep), _column(hat), past, noise))


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
    return f"[{float(value.min()):+.4g} .. {float(value.max()):+.4g}]"
