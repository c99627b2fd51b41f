"""Methods: functions (marginals, order) -> list[Step], for the steps of `step`. Each chooses two things:

    c       the part of the old noise that a step keeps: 1 the probability-flow ODE, rho = lam_t/lam_s the reverse SDE (Eq. 11)
    shares  the division of the weight 1 - c rho among past outputs (`expansion.weights`, `matching.plan`)

The first steps, which have no past, are of lower order. `matched`, and `flow` where sigma = 0, are the exceptions: see there.

A corrector takes the step to t once more with the output at t, with the same z. It changes x_t by a sum of outputs, so that
the next step can add keep times that sum to its own: it costs no call, and one more output is kept.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import check, expansion, matching
from .check import Refused, RefusedType, require
from .expansion import Variable
from .process import Marginal
from .recipe import maker
from .srk import srk as srk
from .step import Array, kept, stacked, steps
from .step import Coefficient as Coefficient
from .step import Method as Method
from .step import Step as Step

Psi = Callable[[Marginal], Tensor]
"""A function of the marginal, for the tau of `adams`."""


@maker
def using(method: Method, **options: Any) -> Method:
    """A method with some of its options set: using(adams, tau=0.5, corrector=True).

    It does what functools.partial does. It also prints as this call, and equals what an equal call makes.

    Raises:
        TypeError: for an option that the method does not have.
    """
    check.function("method", method, "a function (marginals, order) -> steps is needed, such as dosde.method.dos")
    known = list(inspect.signature(method).parameters)[2:]
    for name, value in options.items():
        if name not in known:
            legal = f"one of {', '.join(known)} is needed" if known else "there are none"
            raise RefusedType(name, value, f"{check.describe(method)} has no such option, {legal}")
    return functools.partial(method, **options)


@check.typed
def dos(marginals: Sequence[Marginal], order: int) -> list[Step]:
    """The paper's DoS-SDE Solver-1, 2, 3 (Eq. 41-49, Algorithms 1-3, with z for the misprinted x_hat0 in the noise).

    The orders of the expansion are 1, 2 and 2: the third solver keeps the two-point first derivative. The strong order is 1,
    the weak order at most 2.

    Raises:
        ValueError: for an order above 3.
    """
    require(order <= 3, "order", order, "dos has orders 1 to 3, adams has any")
    m = stacked(marginals)
    c = expansion.ratio(m.lam)
    return steps(m, c, expansion.weights(m.lam, order, power=2, taylor=True))


@check.typed
def adams(
    marginals: Sequence[Marginal],
    order: int,
    variable: Variable = expansion.lam,
    tau: float | Psi = 1.0,
    corrector: bool = False,
    denoise: bool = False,
) -> list[Step]:
    """The reverse SDE, its ODE, or a process between them, with x_theta expanded to any order k.

    x_theta is replaced by the polynomial through the last k outputs, so that the order of the expansion is k. The strong order
    of every such method of the SDE is 1 and its weak order at most 2. Orders on the ODE are those of `ode`.

    Args:
        marginals: one for each time of the grid.
        order: k, at least 1.
        variable: the variable of the polynomial, such as `expansion.log_lam`.
        tau: the noise, as a part of the noise of the reverse SDE: 0 is the ODE, 1 the SDE. A function psi of the marginal
            stands for c = psi_t / psi_s: 1 is the ODE, lam the SDE, `er_sde` and `chain` are others.
        corrector: correct each step, to order k + 1, with the evaluation that the next step makes anyway.
        denoise: return the last x_theta, if the grid ends at sigma = 0, instead of an extrapolation. The last step is of
            order 1 then.

    Raises:
        ValueError: for a tau outside [0, 1], or a psi that falls as lam rises.
    """
    m = stacked(marginals)
    return steps(m, *_multistep(m, order, variable, tau, corrector, denoise))


@check.typed
def ode(
    marginals: Sequence[Marginal],
    order: int,
    variable: Variable = expansion.lam,
    corrector: bool = False,
    denoise: bool = False,
) -> list[Step]:
    """The probability-flow ODE: `adams` with tau = 0. The order is k, or k + 1 with the corrector.

    That is so from lam = infinity. From a finite lam the first step, of order 1, leaves its error, and the order is 2, or 3
    with the corrector, unless `grid.graded_start` cuts the first step. Noise enters at the start only. The options are those
    of `adams`.
    """
    m = stacked(marginals)
    return steps(m, *_multistep(m, order, variable, 0.0, corrector, denoise))


def er_sde(m: Marginal) -> Tensor:
    """psi = exp(lam^0.3) + 10, for the tau of `adams`: the extended reverse-time SDE (Cui et al. 2023), phi = lam psi."""
    return torch.exp((m.lam**0.3).clamp(max=600)) + 10


def chain(m: Marginal) -> Tensor:
    """psi = sigma/alpha, for the tau of `adams`: the chain of Eq. 3. At order 1 and a constant eta it is `resshift`."""
    return m.sigma / m.alpha


@check.typed
def flow(
    marginals: Sequence[Marginal],
    order: int,
    variable: Variable = expansion.eta,
    corrector: bool = False,
    denoise: bool = False,
) -> list[Step]:
    """The rectified flow dx/deta = E[x_hat0 + kappa z - x0 | x_t] on `process.flow`: the only method without noise.

    It is the probability-flow ODE with the source as the noise, `ode` for sigma := b and b := 0, so that lam = b/a. Order 1 is
    Euler's step, x_t = x_s + (t - s) v, where v is the `flow` prediction. Higher orders, the corrector and `denoise` are those
    of `ode`, in the variable eta.

    On a uniform eta the first step has order 1, and v = (x - x_theta)/eta is not smooth at eta = 0, so that the whole has
    order 2. Order k needs an eta that starts and ends slowly: process.flow(shift=shift.cosine(1.0)).

    Raises:
        ValueError: for a process whose sigma is neither 0 nor in proportion to b.
    """
    m = stacked(marginals, noise_free=True)
    proportional = torch.allclose(m.sigma[1:] * m.b[:-1], m.sigma[:-1] * m.b[1:], rtol=1e-9, atol=0)
    shown = "flow needs sigma = 0, or sigma in proportion to b, as process.flow has"
    require(bool((m.b[:-1] > 0).all()) and proportional, "method", flow, "take ode", shown)
    m = Marginal(m.t, m.a, torch.zeros_like(m.b), m.b)
    return steps(m, *_multistep(m, order, variable, 0.0, corrector, denoise))


@maker
def matched(scale: float | Tensor, tau: float = 0.0) -> Method:
    """Weights that give Gaussian data of about the std `scale` the right law in few calls: see `matching`.

    It is meant for 2 to 20 steps and order 3. Unlike the other methods it lets the noise of a state differ from sigma_t by a
    factor, since a Gaussian widens what starts at lam = infinity. Where eta is a field, each of its values gets a plan of its
    own, which takes up to 0.2 ms at 10 steps; a field of scales is interpolated.

    Args:
        scale: std of x0 given x_hat0, a positive number or a field that broadcasts against x.
        tau: the noise, 0 the ODE, 1 the reverse SDE.

    Raises:
        ValueError: for a scale that is not positive, or a tau outside [0, 1].
        TypeError: for a scale that is no number and no tensor.
    """
    s = check.scale(scale)
    check.tau(tau)

    def method(marginals: Sequence[Marginal], order: int) -> list[Step]:
        m, order = stacked(marginals), check.count("order", order)
        c = kept(m, expansion.ratio(m.lam) ** tau**2)
        inflation, shares, rest = matching.plan(m.lam, s, c, order)
        a, sigma = (v.reshape(len(v), *[1] * (inflation.ndim - v.ndim), *v.shape[1:]) for v in (m.a, m.sigma))
        level = sigma[1:] * inflation
        level[-1] += a[-1] * rest
        return steps(m, c, shares, level)

    return method


@check.typed
def resshift(marginals: Sequence[Marginal], order: int = 1) -> list[Step]:
    """The posterior q(x_t | x_s, x_hat0, x0 = x_theta) of the paper's chain (Eq. 3): c = alpha_s sigma_t / (alpha_t sigma_s).

    On `process.resshift`, where c = sqrt(eta_t/eta_s), it is the published sampler of ResShift. At eta = 0 it is the sampler
    of DDPM, which equals `dos` of order 1 there.

    Raises:
        ValueError: for an order above 1, or a process whose sigma/alpha falls as t rises.
    """
    require(order == 1, "order", order, "resshift has order 1 only")
    m = stacked(marginals)
    c = kept(m, m.alpha[:-1] * m.sigma[1:] / (m.alpha[1:] * m.sigma[:-1]))
    shown = "resshift needs sigma/alpha to rise with t, as the chain of Eq. 3 does"
    require(bool((c <= 1 + 1e-9).all()), "method", resshift, "take dos or ode", shown)
    c = c.clamp(max=1)
    return steps(m, c, (1 - c * expansion.ratio(m.lam))[None])


def _multistep(
    m: Marginal, order: int, variable: Variable, tau: float | Psi, corrector: bool, denoise: bool
) -> tuple[Tensor, Tensor]:
    """The ratios c, (steps, *field), and the shares of a_t for past outputs of `adams`."""
    rho = expansion.ratio(m.lam)
    c, power = _noise_level(m, rho, tau)
    shares = expansion.weights(m.lam, order, power, variable)
    needed = "the expansion must have finite weights, so it must tell the lam of the grid apart"
    require(bool(shares.isfinite().all()), "variable", variable, needed)
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
        check.tau(tau)
        return rho**tau**2, np.asarray(1 + tau**2)
    psi = tau(m)
    if not isinstance(psi, Tensor) or psi.shape != m.lam.shape:
        shown = f"{check.describe(tau)} returns {check.form(psi)}"
        raise RefusedType("tau", tau, "a tensor of the shape of m.lam is needed", shown)
    c = torch.where(m.lam[1:].isinf(), 1.0, psi[1:] / psi[:-1])
    wrong = ~((c >= 0) & (c <= 1 + 1e-9)).reshape(len(c), -1).all(1)
    if wrong.any():
        i = int(wrong.nonzero()[0])
        shown = f"{check.describe(tau)} goes from {psi[i].min():g} to {psi[i + 1].min():g} in step {i}"
        needed = "a function of the marginal that is never NaN and does not rise as lam falls is needed"
        raise Refused("tau", tau, needed, shown)
    c = c.clamp(max=1)
    inside = (rho > 0) & (rho < 1) & (c > 0)
    return c, torch.where(inside, 1 + c.log() / rho.log(), torch.where(c > 0, 1.0, 2.0)).numpy()
