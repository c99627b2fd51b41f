"""The nonlinear integral of a step, with x_theta expanded in a chosen variable.

On the path from s to t, with the weight w = (lam_t / lam)^p that grows from rho^p to 1 (rho = lam_t / lam_s), the exact
solution contains a_t times

    I = int x_theta dw,        p = 2 for the reverse SDE (Eq. 11, 38),    p = 1 for the probability-flow ODE,

p = 1 + tau^2 for noise of tau times that of the reverse SDE, which may differ from step to step.

x_theta is replaced by a polynomial in v = v(lam) through the last outputs, in Newton's form

    x_theta ~ sum_k [v_0, ..., v_k] prod_{j < k} (v - c_j)

with divided differences [...] on the nodes v_0 (newest), v_1, ... The centres c_j = v_j give Lagrange's polynomial: order k
for k nodes. The centres c_j = v_0 give the paper's expansion (Eq. 39-49): a Taylor polynomial at s whose derivatives are
those differences, so that its second term keeps a first derivative of first order. With one more node in front, that of t, they
are the weights of a corrector.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import check
from .recipe import Made, maker
from .step import Array

Variable = Callable[[Tensor], Tensor]
"""lam -> v, strictly monotone."""

_ENDLESS = 40.0  # -log w at which a path from lam = infinity may begin: e^-40 of the weight is left out
_CHUNK = 256  # elements of a field at once: the quadrature takes some 25 KiB of memory for each
_SPAN = 2.0  # a panel of the quadrature covers lam ratios up to e^2; 16 nodes there are exact to float64


def lam(lam: Tensor) -> Tensor:
    """The variable of the paper: v = lam."""
    return lam


def log_lam(lam: Tensor) -> Tensor:
    """The variable of DPM-Solver: v = log lam. A step that ends at lam = 0 is of first order in it."""
    return lam.log()


@maker
def v(scale: float) -> Variable:
    """A bounded variable, finite at lam = infinity: v = s^2 / (s^2 + lam^2), for grids with even steps in it (`grid.angle`).

    For Gaussian data of std s, x_theta is affine in v at a fixed y = (x - b x_hat0)/a.
    """
    s = check.scale_number(scale)
    return lambda lam: 1 / (1 + (lam / s) ** 2)


@maker
def sqrt_v(scale: float) -> Variable:
    """The square root of `v`. For Gaussian data of std s, x_theta is affine in it along a path of the ODE."""
    s = check.scale_number(scale)
    return lambda lam: (1 + (lam / s) ** 2) ** -0.5


def eta(lam: Tensor) -> Tensor:
    """The shift of the rectified flow, where lam = b/a: v = lam / (1 + lam). It is the time if the shift is linear."""
    return 1 / (1 + 1 / lam)


def weights(
    lams: Tensor, order: int, power: float | Array, variable: Variable = lam, taylor: bool = False, implicit: bool = False
) -> Tensor:
    """W[i, n], the weight in I of the i-th newest output at step n. W.sum(0) = 1 - rho^p.

    A node drops out, and the order with it, where it does not exist, where its variable is infinite, or where it coincides with
    the next newer one because the clock stands still. Where v(lam_t) is infinite the step is of order 1.

    Args:
        lams: (steps + 1, *field) float64, lam at the times of the grid, decreasing. It may start infinite and end at 0.
        order: the number of nodes.
        power: p, or one for each step, (steps, *field).
        variable: v(lam).
        taylor: the centres of the paper, c_j = v_0, instead of Lagrange's.
        implicit: the first node is the end of the step, lam_t. Then these are the weights of a corrector, and W[0] is the
            weight of the output at t. Where v(lam_t) is infinite that node is missing, and W[1:] are the weights of the step.

    Returns:
        (order, steps, *field), float64.
    """
    order = check.count("order", order)
    if lams[0].numel() > _CHUNK:
        each = np.broadcast_to(np.asarray(power, dtype=np.float64), lams[1:].shape).reshape(len(lams) - 1, -1)
        columns = lams.reshape(len(lams), -1)
        count = math.ceil(columns.shape[1] / _CHUNK)
        parts = zip(columns.tensor_split(count, 1), np.array_split(each, count, 1), strict=True)
        whole = [weights(one, order, p, variable, taylor, implicit) for one, p in parts]
        return torch.cat(whole, -1).reshape(order, *lams[1:].shape)
    if lams.ndim > 1 or not (isinstance(variable, Made) or variable in (lam, log_lam, eta)):
        return torch.from_numpy(_weights(lams, order, power, variable, taylor, implicit))
    powers = power if isinstance(power, float | int) else power.tobytes()
    return torch.from_numpy(_remembered(lams.numpy().tobytes(), order, powers, variable, taylor, implicit).copy())


def _along(variable: Variable, lams: Tensor) -> Array:
    """v at some lam, checked."""
    v: object = variable(lams)
    if not isinstance(v, Tensor) or v.shape != lams.shape:
        shown = f"{check.describe(variable)} returns {check.form(v)}"
        raise check.RefusedType("variable", variable, "a function lam -> v, a tensor of the shape of lam, is needed", shown)
    return v.numpy()


@functools.lru_cache(maxsize=256)
def _remembered(lams: bytes, order: int, power: float | bytes, variable: Variable, taylor: bool, implicit: bool) -> Array:
    """The `_weights` of a scalar eta, remembered, since one solve after the other asks for the same grid.

    Only for variables of this package: another may change between two calls.
    """
    powers = np.frombuffer(power) if isinstance(power, bytes) else power
    return _weights(torch.frombuffer(bytearray(lams), dtype=torch.float64), order, powers, variable, taylor, implicit)


def _weights(lams: Tensor, order: int, power: float | Array, variable: Variable, taylor: bool, implicit: bool) -> Array:
    rho = ratio(lams).numpy()
    power = np.broadcast_to(np.asarray(power, dtype=np.float64), rho.shape)
    total = 1 - rho**power
    result = np.zeros((order, *rho.shape))
    first = 1 if implicit else 0  # the index in W of the output at s
    result[first] = total
    steps = len(rho)
    if order == 1 or (steps == 1 and not implicit):
        return result

    lam, v = lams.numpy(), _along(variable, lams)
    finite = np.isfinite(v)
    exists = finite[:-1] & (v[:-1] != v[1:])  # a node, and not the same as the next newer one
    nodes, live = [v[:-1]], [finite[:-1] & finite[1:]]
    for k in range(1, min(order - first, steps)):
        older, known = np.zeros_like(rho), np.zeros_like(exists)
        older[k:], known[k:] = v[: steps - k], exists[: steps - k]
        nodes.append(older)
        live.append(live[-1] & known)
    if implicit:
        usable = exists & finite[1:]
        nodes, live = [v[1:], *nodes], [usable, *(usable & known for known in live)]
        result[0], result[1] = np.where(live[1], total, 0.0), np.where(live[1], 0.0, total)

    # The points of the quadrature: lam = lam_t e^tau, tau from 0 to log(lam_s / lam_t). Where lam_t = 0, lam is 0 on all of
    # (0, 1] in w and any length serves; where lam_s is infinite a predictor has one node, and nothing to integrate.
    with np.errstate(all="ignore"):  # what is 0 * inf or 1/0 here belongs to nodes that are not live
        length = np.where((rho > 0) & (rho < 1), -np.log(rho), 1.0)
        if implicit:
            length = np.where(np.isinf(lam[:-1]), _ENDLESS / power, length)
        x, dx = _panels(max(1, math.ceil(length.max() / _SPAN)), rho.ndim)
        tau = length * x
        dw = dx * np.exp(-power * tau)
        dw *= total / dw.sum(0)
        path = _along(variable, torch.from_numpy(lam[1:] * np.exp(tau)))

        for k in range(1, len(nodes)):
            dw = dw * (path - nodes[0 if taylor else k - 1])
            moment = dw.sum(0)
            for i in range(k + 1):
                gaps = math.prod(nodes[i] - nodes[j] for j in range(k + 1) if j != i)
                result[i] += np.where(live[k], moment / gaps, 0.0)
    return result


def ratio(lams: Tensor) -> Tensor:
    """rho = lam_t / lam_s of each step, 1 where both are infinite (nothing is learnt, no noise is spent)."""
    return torch.where(lams[1:].isinf(), 1.0, lams[1:] / lams[:-1])


@functools.lru_cache
def _panels(count: int, trailing: int) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights of 16 points on each of `count` equal panels of [0, 1], to broadcast over steps."""
    x, w = np.polynomial.legendre.leggauss(16)
    column = (-1, *[1] * trailing)
    nodes = (np.arange(count)[:, None] + (x + 1) / 2) / count
    return nodes.reshape(column), np.tile(w / (2 * count), count).reshape(column)
