"""The samplers of the field, from their published formulas, for comparison at the same number of model calls.

Every process here is y = x0 + lam eps after the collapse y = (x - b x_hat0)/a, so a sampler takes and returns y, on decreasing
noise levels lam. With ell = -log lam, h = ell_t - ell_s, z = (1 + tau^2) h, the exponential integrators all compute

    y_t = e^-z y_s + sum_i w_i m_i + lam_t sqrt(1 - e^(-2 tau^2 h)) noise,        m_i = x_theta at the nodes i
    sum_i w_i s_i^k = J_k,   J_k = int_0^1 z e^(-z (1 - s)) s^k ds,               s = (ell - ell_s)/h

tau = 0 is the probability-flow ODE, tau = 1 the reverse SDE. A method is a choice of nodes (past ones; in a corrector also
the new one) and of which moments J it replaces, as the table of `Moments` says. The others are written out.

All begin with lower orders, and a step that ends at lam = 0 returns x_theta, as the published codes do or must: their higher
orders are not finite there. That first step of order 1 leaves a multistep method without a corrector of global order 2
unless it is short (h of the order of the others squared); the orders said here are those with such a start.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

Model = Callable[[Tensor, float], Tensor]  # (y, lam) -> x_theta
Draw = Callable[[], Tensor]  # unit normal in the shape of y
Sampler = Callable[[Model, Tensor, Sequence[float], Draw], Tensor]  # (model, y at lams[0], lams, draw) -> y at lams[-1]
Array = np.ndarray[Any, np.dtype[np.float64]]
Moments = Callable[[float, int], Array]  # (z, number of nodes) -> J_0, J_1, ...


@dataclass(frozen=True)
class Peer:
    """A sampler. calls: steps -> model calls of a run that ends at lam = 0."""

    name: str
    sample: Sampler
    stochastic: bool
    calls: Callable[[int], int]


# -- Exponential integrators: DPM-Solver++, UniPC, SA-Solver ------------------------------------------------------------


def exact(z: float, count: int) -> Array:
    """J_k by quadrature, since the closed form cancels for small z. Good to float64 for |z| < 60."""
    s, ds = _quadrature()
    return np.array([np.sum(z * np.exp(-z * (1 - s)) * s**k * ds) for k in range(count)])


def bh1(z: float, count: int) -> Array:
    """UniPC with B(h) = h, and SA-Solver at few steps: two nodes take J_1 = z/2, which grows with the step without bound."""
    return np.array([-math.expm1(-z), z / 2]) if count == 2 else exact(z, count)


def bh2(z: float, count: int) -> Array:
    """UniPC with B(h) = e^h - 1, and the midpoint form of DPM-Solver++ 2M: two nodes take J_1 = J_0/2."""
    return np.array([-math.expm1(-z), -math.expm1(-z) / 2]) if count == 2 else exact(z, count)


def taylor(z: float, count: int) -> Array:
    """DPM-Solver++ 3M SDE: its second difference is m''/2 but is weighted as m'', so J_2/2, which leaves second order."""
    moments = exact(z, count)
    moments[2:] /= 2
    return moments


def taylor_midpoint(z: float, count: int) -> Array:
    """DPM-Solver++ 3: the same, begun with the midpoint form."""
    return bh2(z, count) if count < 3 else taylor(z, count)


def exponential(moments: Moments, predictor: int, corrector: int = 0, tau: float = 0) -> Sampler:
    """A predictor of so many nodes, a corrector of so many with the new one, which reuses the next evaluation and the noise."""

    def sample(model: Model, y: Tensor, lams: Sequence[float], draw: Draw) -> Tensor:
        ells = [-math.log(lam) if lam > 0 else math.inf for lam in lams]
        start, outputs = y, list[Tensor]()
        fixed = y.new_zeros(())  # what a step adds besides the outputs

        def step(n: int, newest: int, count: int) -> Tensor:
            h = ells[n + 1] - ells[n]
            nodes = range(newest, max(newest - count, -1), -1)
            w = _weights([(ells[i] - ells[n]) / h for i in nodes], moments((1 + tau**2) * h, len(nodes)))
            return sum((c * outputs[i] for c, i in zip(w.tolist(), nodes, strict=True)), fixed)

        for n, (s, t) in enumerate(pairwise(lams)):
            outputs.append(model(y, s))
            if t == 0:
                return outputs[-1]
            start = step(n - 1, n, corrector) if corrector and n else y
            h = ells[n + 1] - ells[n]
            fixed = math.exp(-(1 + tau**2) * h) * start
            if tau:
                fixed = fixed + t * math.sqrt(-math.expm1(-2 * tau**2 * h)) * draw()
            y = step(n, n, predictor)
        return y

    return sample


# -- Adams-Bashforth in the noise: DEIS ---------------------------------------------------------------------------------


def deis(order: int, log: bool) -> Sampler:
    """y_t = y_s + int eps_theta dlam, eps_theta by Lagrange's polynomial in lam (rhoAB; in VE tAB too), or in log lam."""

    def sample(model: Model, y: Tensor, lams: Sequence[float], draw: Draw) -> Tensor:
        noises: list[Tensor] = []  # newest first
        for n, (s, t) in enumerate(pairwise(lams)):
            x0 = model(y, s)
            if t == 0:
                return x0
            noises = [(y - x0) / s, *noises[: order - 1]]
            nodes, h = lams[n::-1][:order], math.log(s / t)
            if log:
                w = t * _weights([math.log(s / lam) / h for lam in nodes], exact(-h, len(nodes)))
            else:
                w = (t - s) * _weights([(lam - s) / (t - s) for lam in nodes], 1 / np.arange(1, len(nodes) + 1))
            y = sum((c * noise for c, noise in zip(w.tolist(), noises, strict=True)), y)
        return y

    return sample


# -- ER-SDE-Solver ------------------------------------------------------------------------------------------------------


def er_scale(lam: float) -> float:
    """phi = lam (e^(lam^0.3) + 10), the published choice; phi = lam is the ODE, phi = lam^2 the reverse SDE."""
    return lam * (math.exp(lam**0.3) + 10)


def er_sde(order: int, phi: Callable[[float], float] = er_scale, points: int = 100) -> Sampler:
    """With r = phi_t/phi_s, backward differences m', m'' in lam:

    y_t = r y_s + (1 - r) m + (lam_t - lam_s + phi_t I_0) m' + ((lam_t - lam_s)^2/2 + phi_t I_1) m'' + noise
    I_k = int_t^s (lam - lam_s)^k / phi dlam, noise variance lam_t^2 - r^2 lam_s^2

    The integrals are the published sums at the left ends of 100 intervals. They leave first order, with a small constant;
    with exact integrals orders 2 and 3 are second, since m' stays a two-point difference. phi overflows at lam > 3e9.
    """

    def sample(model: Model, y: Tensor, lams: Sequence[float], draw: Draw) -> Tensor:
        past: list[Tensor] = []  # m, m', m'' of the step before
        for n, (s, t) in enumerate(pairwise(lams)):
            new = [model(y, s)]
            if t == 0:
                return new[0]
            for k in range(min(len(past), order - 1)):
                new.append((k + 1) * (new[k] - past[k]) / (s - lams[n - k - 1]))
            r, width = phi(t) / phi(s), (s - t) / points
            at = [t + i * width for i in range(points)]
            y = r * y + (1 - r) * new[0] + math.sqrt(max(0, t**2 - (r * s) ** 2)) * draw()
            for k in range(1, len(new)):
                integral = sum((lam - s) ** (k - 1) / phi(lam) for lam in at) * width
                y = y + ((t - s) ** k / k + phi(t) * integral) * new[k]
            past = new
        return y

    return sample


# -- Single-step methods of two calls -----------------------------------------------------------------------------------


def heun(model: Model, y: Tensor, lams: Sequence[float], draw: Draw) -> Tensor:
    """Karras et al., algorithm 1: the trapezoidal rule in lam."""
    for s, t in pairwise(lams):
        x0 = model(y, s)
        if t == 0:
            return x0
        slope = (y - x0) / s
        guess = y + (t - s) * slope
        y = y + (t - s) / 2 * (slope + (guess - model(guess, t)) / t)
    return y


def dpm_2s(model: Model, y: Tensor, lams: Sequence[float], draw: Draw) -> Tensor:
    """DPM-Solver++ 2S: the midpoint rule in log lam."""
    for s, t in pairwise(lams):
        x0 = model(y, s)
        if t == 0:
            return x0
        middle = math.sqrt(s * t)
        x0 = model(middle / s * y + (1 - middle / s) * x0, middle)
        y = t / s * y + (1 - t / s) * x0
    return y


def _weights(nodes: Sequence[float], moments: Array) -> Array:
    """w with sum_i w_i nodes_i^k = moments_k."""
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments)


@functools.cache
def _quadrature() -> tuple[Array, Array]:
    x, w = np.polynomial.legendre.leggauss(32)
    return (x + 1) / 2, w / 2


def _one(steps: int) -> int:
    return steps


def _two(steps: int) -> int:
    return 2 * steps - 1


PEERS: tuple[Peer, ...] = (
    Peer("euler", exponential(exact, 1), False, _one),  # = DDIM = DPM-Solver++ 1
    Peer("euler ancestral", exponential(exact, 1, tau=1), True, _one),  # = DDPM = SDE-DPM-Solver++ 1
    Peer("heun", heun, False, _two),
    Peer("dpm++ 2s", dpm_2s, False, _two),
    Peer("dpm++ 2m", exponential(bh2, 2), False, _one),
    Peer("dpm++ 3m", exponential(taylor_midpoint, 3), False, _one),
    Peer("dpm++ 2m sde", exponential(bh2, 2, tau=1), True, _one),
    Peer("dpm++ 2m sde heun", exponential(exact, 2, tau=1), True, _one),
    Peer("dpm++ 3m sde", exponential(taylor, 3, tau=1), True, _one),
    Peer("deis 2", deis(2, log=False), False, _one),
    Peer("deis 3", deis(3, log=False), False, _one),
    Peer("deis log 2", deis(2, log=True), False, _one),
    Peer("deis log 3", deis(3, log=True), False, _one),
    Peer("unipc 2 bh1", exponential(bh1, 2, 3), False, _one),
    Peer("unipc 2 bh2", exponential(bh2, 2, 3), False, _one),
    Peer("unipc 3 bh1", exponential(bh1, 3, 4), False, _one),  # = SA-Solver 3+3 at tau 0
    Peer("unipc 3 bh2", exponential(bh2, 3, 4), False, _one),
    Peer("sa 2+1 tau 0", exponential(bh1, 2, 2), False, _one),  # steps of predictor + corrector, as its paper counts them
    Peer("sa 2+1 tau 1", exponential(bh1, 2, 2, tau=1), True, _one),
    Peer("sa 3+3 tau 1", exponential(bh1, 3, 4, tau=1), True, _one),
    Peer("er-sde 1", er_sde(1), True, _one),
    Peer("er-sde 2", er_sde(2), True, _one),
    Peer("er-sde 3", er_sde(3), True, _one),
)
