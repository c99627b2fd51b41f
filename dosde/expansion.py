"""The nonlinear integral of a step, with x_theta expanded in a chosen variable.

On the path from s to t, with the weight w = (lam_t / lam)^p that grows from rho^p to 1 (rho = lam_t / lam_s), the exact
solution contains a_t times

    I = int x_theta dw,        p = 2 for the reverse SDE (Eq. 11, 38),    p = 1 for the probability-flow ODE.

x_theta is replaced by a polynomial in v = v(lam) through the last outputs, in Newton's form

    x_theta ~ sum_k [v_0, ..., v_k] prod_{j < k} (v - c_j)

with divided differences [...] on the nodes v_0 (newest), v_1, ... The centres c_j = v_j give Lagrange's polynomial: order k
for k nodes. The centres c_j = v_0 give the paper's expansion (Eq. 39-49): a Taylor polynomial at s whose derivatives are
those differences, so that its second term keeps a first derivative of first order.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Variable = Callable[[Tensor], Tensor]

_SPAN = 2.0  # a panel of the quadrature covers lam ratios up to e^2; 16 nodes there are exact to float64


def lam(lam: Tensor) -> Tensor:
    """v = lam: the paper's variable."""
    return lam


def log_lam(lam: Tensor) -> Tensor:
    """v = log lam: that of DPM-Solver. A step that ends at lam = 0 is of first order in it."""
    return lam.log()


def weights(lams: Tensor, order: int, power: int, variable: Variable = lam, taylor: bool = False) -> Tensor:
    """W[i, n]: the weight in I of step n of the i-th newest output; W.sum(0) = 1 - rho^p.

    lams: (steps + 1, *field) float64, lam at the times of the grid, decreasing, may start infinite and end at 0.
    Returns (order, steps, *field). Nodes that do not exist, whose variable is infinite, or that coincide with the next newer
    one (a clock that stands still) drop out, and the order with them; likewise where v(lam_t) is infinite.
    """
    s, t = lams[:-1], lams[1:]
    rho = ratio(lams)
    total = 1 - rho**power
    result = torch.zeros(order, *s.shape, dtype=torch.float64)
    result[0] = total
    if order == 1:
        return result

    v = variable(lams)
    finite = v.isfinite()
    moved = torch.ones_like(finite)
    moved[:-1] = lams[:-1] != lams[1:]
    nodes, live = [v[:-1]], [finite[:-1] & finite[1:]]
    for k in range(1, min(order, len(s))):
        older = torch.zeros_like(s)
        older[k:] = v[: len(s) - k]
        exists = torch.zeros_like(live[0])
        exists[k:] = (finite & moved)[: len(s) - k]
        nodes.append(older)
        live.append(live[-1] & exists)

    # The points of the quadrature: lam = lam_t e^tau, tau from 0 to log(lam_s / lam_t). Where lam_t = 0, lam is 0 on all of
    # (0, 1] in w and any length serves; where lam_s is infinite there is one node and nothing to integrate.
    length = torch.where((rho > 0) & (rho < 1), -rho.log(), 1.0)
    x, dx = _panels(max(1, math.ceil(float(length.max()) / _SPAN)))
    column = [-1] + [1] * s.ndim
    tau = length * x.reshape(column)
    dw = dx.reshape(column) * torch.exp(-power * tau)
    dw = dw * (total / dw.sum(0))
    path = variable(t * tau.exp())

    product = torch.ones_like(path)
    for k in range(1, len(nodes)):
        product = product * (path - nodes[0 if taylor else k - 1])
        moment = (dw * product).sum(0)
        for i in range(k + 1):
            gaps = [nodes[i] - nodes[j] for j in range(k + 1) if j != i]
            term = moment / functools.reduce(torch.mul, gaps)
            result[i] += torch.where(live[k], term, 0.0)
    return result


def ratio(lams: Tensor) -> Tensor:
    """rho = lam_t / lam_s of each step, 1 where both are infinite (nothing is learnt, no noise is spent)."""
    return torch.where(lams[1:].isinf(), 1.0, lams[1:] / lams[:-1])


@functools.lru_cache
def _panels(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights of 16 points on each of `count` equal panels of [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(16)
    start = torch.arange(count, dtype=torch.float64)[:, None]
    nodes = (start + (torch.from_numpy(x) + 1) / 2) / count
    return nodes.reshape(-1), (torch.from_numpy(w) / (2 * count)).repeat(count)
