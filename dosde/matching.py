"""Weights for few steps: those that give Gaussian data of a spread of widths the right law.

In y = (x - b x_hat0)/a, the state of every process is x0 + lam eps. Along a direction in which x0 is Gaussian with std w
about a mean mu, x_theta - mu = w^2/(w^2 + lam^2) (y - mu), so all that a solver computes is a linear map of its draws of noise,

    y_k - mu = Y_k(w) . z,     x_theta_k - mu = w^2/(w^2 + lam_k^2) Y_k(w) . z,     exact law: |Y_k(w)|^2 = w^2 + lam_k^2

A step sets y_t = q (c rho y_s + lam_t sqrt(1 - c^2) z) + sum_i w_i x_theta_i, sum w_i = 1 - q c rho. Given how the state and
the outputs respond to noise so far, its inflation q and its weights are those that minimise, by Gauss-Newton,

    E_w [(|Y_t(w)| - sqrt(w^2 + lam_t^2))^2] / (1 + lam_t^2) + ridge^2 ((q - 1)^2 + sum_i>0 w_i^2)

in units of s, the scale, for log w ~ N(., spread^2) with E w^2 = 1. For one width alone a polynomial in
v = s^2/(s^2 + lam^2) is exact, but posteriors of pictures mix widths by factors. Errors of earlier steps are in Y, so each
step corrects what the last one left: no corrector is needed. The ridge is about the part of the residual by which networks err.

In the last step to lam = 0 the state has no weight: the result is made of outputs of the model alone, and directions of no
width get no noise. A single step has one output, which tells no width: there the missing noise is white.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from .expansion import Array

SPREAD = 0.5  # std of log width; from 0.3 to 0.8 makes little difference (docs/few_steps.md)
RIDGE = 0.05
_ENDLESS = 1e8  # what lam = infinity is taken for, in units of s: no output tells anything there
_MOST = 65  # scales for which plans are computed; between them they are interpolated


def plan(lams: Tensor, scale: Tensor, c: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Inflations q (steps, *field) and weights (order, steps, *field), newest output first.

    lams   (steps + 1, *field), decreasing, the first may be infinite and the last 0
    scale  s, of a shape that broadcasts against the field
    c      (steps, *field), how much of the old noise a step keeps (1: no new noise)

    Where lam_t = 0, q is 0, but of a single step the std of the white noise of its result.
    """
    steps = len(lams) - 1
    shape = torch.Size(np.broadcast_shapes(lams.shape[1:], scale.shape))
    s = scale.expand(shape).reshape(-1).numpy()
    if lams.ndim == 1 and len(np.unique(s)) > _MOST:
        knots = np.geomspace(s.min(), s.max(), _MOST)
        q, w = _plans(lams[:, None].numpy() / knots, c[:, None].expand(-1, _MOST).numpy(), order)
        rows = np.concatenate([q[None], w]).reshape(-1, _MOST)
        both = np.stack([np.interp(np.log(s), np.log(knots), row) for row in rows]).reshape(order + 1, steps, -1)
        q, w = both[0], both[1:]
    else:
        full = [_spread(v, shape).reshape(len(v), -1).numpy() for v in (lams, c)]
        columns, back = np.unique(np.concatenate([full[0] / s, full[1]]), axis=1, return_inverse=True)
        q, w = _plans(columns[: steps + 1], columns[steps + 1 :], order)
        q, w = q[..., back.reshape(-1)], w[..., back.reshape(-1)]
    unit = torch.where(_spread(lams[-1:], shape) == 0, scale, 1.0)  # a last q is in units of s
    result = torch.from_numpy(q.reshape(steps, *shape).copy())
    result[-1:] *= unit
    return result, torch.from_numpy(w.reshape(order, steps, *shape).copy())


def _spread(v: Tensor, shape: torch.Size) -> Tensor:
    """(n, *field) as (n, *shape)."""
    return v.reshape(len(v), *[1] * (len(shape) - v.ndim + 1), *v.shape[1:]).expand(len(v), *shape)


def _plans(lams: Array, c: Array, order: int) -> tuple[Array, Array]:
    """For each column of lams (steps + 1, E) and c (steps, E): q (steps, E) and weights (order, steps, E)."""
    if lams.shape[1] > _MOST:
        return _computed(lams, c, order)
    return _remembered(lams.tobytes(), c.tobytes(), lams.shape, order)


@functools.lru_cache(maxsize=64)
def _remembered(lams: bytes, c: bytes, shape: tuple[int, int], order: int) -> tuple[Array, Array]:
    """`_computed` for few columns, which solve after solve on one grid asks for."""
    return _computed(np.frombuffer(lams).reshape(shape), np.frombuffer(c).reshape(-1, shape[1]), order)


def _computed(lams: Array, c: Array, order: int) -> tuple[Array, Array]:
    steps, count = c.shape
    width2, p = _widths()
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = np.where(np.isinf(lams[1:]), 1.0, lams[1:] / lams[:-1])
        only = 1 / lams[0] if steps == 1 else 0.0
    lams = np.minimum(lams, _ENDLESS)
    draws = steps + 1 if (c < 1).any() else 1
    q, weights = np.zeros((steps, count)), np.zeros((order, steps, count))
    y = np.zeros((count, len(p), draws))  # Y_k of the columns, by width and draw
    y[..., 0] = lams[0, :, None]
    outputs: list[Array] = []
    for k in range(steps):
        lam_s, lam_t, keep = (v[:, None] for v in (lams[k], lams[k + 1], c[k]))
        outputs = [(width2 / (width2 + lam_s**2))[..., None] * y, *outputs[: order - 1]]
        newest = outputs[0]
        level = np.where(lam_t > 0, lam_t, 1.0 if steps == 1 else 0.0)  # 0: the result has no part of the state
        carried = (keep * level / lam_s)[..., None] * (y - newest)
        if draws > 1:
            carried[..., k + 1] += level * np.sqrt(1 - keep**2)
        columns = np.stack([carried, *(output - newest for output in outputs[1:])], -1)
        solution = _fit(newest, columns, np.sqrt(width2 + lam_t**2), p / (1 + lam_t**2))
        solution[:, 0] *= level[:, 0] > 0
        y = newest + np.einsum("emdc,ec->emd", columns, solution)
        q[k] = solution[:, 0]
        weights[1 : len(outputs), k] = solution[:, 1:].T
        weights[0, k] = 1 - q[k] * c[k] * np.where(lams[k + 1] > 0, rho[k], only) - solution[:, 1:].sum(1)
    return q, weights


def _fit(base: Array, columns: Array, target: Array, share: Array) -> Array:
    """The coefficients (E, n) with |base + columns @ coefficients| nearest the target, and not far from 1, 0, ..., 0."""
    plain = np.eye(1, columns.shape[-1])
    solution = np.repeat(plain, len(base), 0)
    ridge = RIDGE**2 * np.eye(columns.shape[-1])
    for _ in range(1 if base.shape[-1] == 1 else 4):  # with one draw the problem is linear
        y = base + np.einsum("emdc,ec->emd", columns, solution)
        std = np.sqrt((y**2).sum(-1)) + 1e-300
        slope = np.einsum("emd,emdc->emc", y / std[..., None], columns)
        matrix = np.einsum("emc,em,emb->ecb", slope, share, slope) + ridge
        side = np.einsum("emc,em,em->ec", slope, share, target - std)
        side -= RIDGE**2 * (solution - plain)
        solution = solution + np.linalg.solve(matrix, side[..., None])[..., 0]
    return solution


@functools.lru_cache
def _widths() -> tuple[Array, Array]:
    """w^2 and its probabilities: log-normal, with mean square 1."""
    x, p = np.polynomial.hermite_e.hermegauss(16)
    p = p / p.sum()
    return np.exp(2 * SPREAD * x) / math.fsum(p * np.exp(2 * SPREAD * x)), p
