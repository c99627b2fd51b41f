"""Weights for few steps: those that give Gaussian data of a spread of widths the right law.

In y = (x - b x_hat0)/a, the state of every process is x0 + lam eps. Along a direction in which x0 is Gaussian with std w
about a mean mu, x_theta - mu = w^2/(w^2 + lam^2) (y - mu), so all that a solver computes is a linear map of its draws of noise,

    y_k - mu = Y_k(w) . z,     x_theta_k - mu = w^2/(w^2 + lam_k^2) Y_k(w) . z,     exact law: |Y_k(w)|^2 = w^2 + lam_k^2

A step sets y_t = q (c rho y_s + lam_t sqrt(1 - c^2) z) + sum_i w_i x_theta_i, sum w_i = 1 - q c rho. From the response of the
state and the outputs to noise so far, its inflation q and its weights are nearly (after four Gauss-Newton steps) those of least

    E_w [(|Y_t(w)| - sqrt(w^2 + lam_t^2))^2] / (1 + lam_t^2) + ridge^2 ((q - 1)^2 + sum_i>0 w_i^2)

in units of the rms of w, for log w ~ N(., spread^2): posteriors of pictures mix widths by factors, and a polynomial in some
v(lam) has one bend for all of them. The rms is 1.5 of the scale s, since what is wide is what counts in the error. Errors of
earlier steps are in Y, so each step corrects what the last one left: no corrector is needed. The ridge is about the part of
the residual by which networks err.

Others fit Gaussian data too: times by frequency (Benita, Elad and Keshet 2025, arXiv 2502.00180; 2026, 2602.07715), or the
covariance of each step by products with the Jacobian (Schioppa and Salimans 2026, 2605.13910). A network of the std of x0 given
x_hat0 by pixel (Scholz and Turner 2025, 2507.09212) is a field of s.

In the last step to lam = 0 the state has no weight: the result is made of outputs of the model alone, and directions of no
width get no noise. Only where one output is all there is to go by (order 1, or one step) the state, or new noise, makes up for
the std that is missing: y_t = x_theta + r (c (y_s - x_theta)/lam_s + sqrt(1 - c^2) z).
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from .expansion import ratio
from .step import Array

CENTRE = 1.5  # rms width over the scale
SPREAD = 0.5  # std of log width (docs/few_steps.md has what 0.3 and 0.8 do)
RIDGE = 0.05
_ENDLESS = 1e8  # what lam = infinity is taken for, in units of widths: no output tells anything there
_MOST = 65  # scales for which plans are computed; between them they are interpolated
_CHUNK = 1024  # columns at once, where eta is a field of many values

Plans = tuple[Array, Array, Array]  # q (steps, E), weights (order, steps, E) with zeros for the newest output, r (E,)


def plan(lams: Tensor, scale: Tensor, c: Tensor, order: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inflation q, the weights and the rest r of a plan.

    Args:
        lams: (steps + 1, *field), decreasing. The first may be infinite and the last 0.
        scale: s, of a shape that broadcasts against the field.
        c: (steps, *field), the part of the old noise that a step keeps. At 1 there is no new noise.
        order: the number of outputs that a step uses.

    Returns:
        q (steps, *field); weights (order, steps, *field), newest output first; r of the last step (*field), in units of x0.
    """
    shape = torch.Size(np.broadcast_shapes(lams.shape[1:], scale.shape))
    s = CENTRE * scale.expand(shape).reshape(-1).numpy()
    levels, kept = (_spread(v, shape).reshape(len(v), -1).numpy() for v in (lams, c))
    if lams.ndim == 1 and len(np.unique(s)) > _MOST:
        knots = np.geomspace(s.min(), s.max(), _MOST)
        parts = _plans(lams[:, None].numpy() / knots, c[:, None].expand(-1, _MOST).numpy(), order)
        q, w, r = (np.apply_along_axis(lambda row: np.interp(np.log(s), np.log(knots), row), -1, part) for part in parts)
    else:
        columns, back = np.unique(np.concatenate([levels / s, kept]), axis=1, return_inverse=True)
        q, w, r = (part[..., back.reshape(-1)] for part in _plans(columns[: len(lams)], columns[len(lams) :], order))
    blind = np.isinf(levels[-2]) | (len(c) == 1)  # nothing is known of the width: that of the scale itself
    r = r * np.where(blind, s / CENTRE, s)
    rho = _spread(ratio(lams), shape).reshape(len(c), -1).numpy()
    kappa = kept * q * rho
    kappa[-1] += kept[-1] * r / levels[-2]
    w[0] = 1 - kappa - w.sum(0)
    steps = len(c)
    return (
        torch.from_numpy(q).reshape((steps, *shape)),
        torch.from_numpy(w).reshape((order, steps, *shape)),
        torch.from_numpy(r).reshape(shape),
    )


def _spread(v: Tensor, shape: torch.Size) -> Tensor:
    """(n, *field) as (n, *shape)."""
    return v.reshape(len(v), *[1] * (len(shape) - v.ndim + 1), *v.shape[1:]).expand(len(v), *shape)


def _plans(lams: Array, c: Array, order: int) -> Plans:
    """The plans of all columns of lams (steps + 1, E), in units of the rms width, and c (steps, E)."""
    if lams.shape[1] <= _MOST:
        q, w, r = _remembered(lams.tobytes(), c.tobytes(), lams.shape, order)
        return q.copy(), w.copy(), r.copy()
    parts = [_computed(lams[:, i : i + _CHUNK], c[:, i : i + _CHUNK], order) for i in range(0, lams.shape[1], _CHUNK)]
    q, w, r = (np.concatenate(part, -1) for part in zip(*parts, strict=True))
    return q, w, r


@functools.lru_cache(maxsize=64)
def _remembered(lams: bytes, c: bytes, shape: tuple[int, int], order: int) -> Plans:
    """The plans of few columns, remembered, since one solve after the other asks for the same grid."""
    return _computed(np.frombuffer(lams).reshape(shape), np.frombuffer(c).reshape(-1, shape[1]), order)


def _computed(lams: Array, c: Array, order: int) -> Plans:
    steps, count = c.shape
    lams = np.minimum(lams, _ENDLESS)
    width2, p = _widths()
    draws = steps + 1 if (c < 1).any() else 1
    q, weights, r = np.zeros((steps, count)), np.zeros((order, steps, count)), np.zeros(count)
    y = np.zeros((count, len(p), draws))  # Y_k of the columns, by width and draw
    y[..., 0] = lams[0, :, None]
    outputs: list[Array] = []
    for k in range(steps):
        lam_s, lam_t, kept = (v[:, None] for v in (lams[k], lams[k + 1], c[k]))
        outputs = [(width2 / (width2 + lam_s**2))[..., None] * y, *outputs[: order - 1]]
        newest = outputs[0]
        alone = (lam_t == 0) & ((len(outputs) == 1) | (lam_s == _ENDLESS))
        level = np.where(alone, 1.0, lam_t)
        carried = (kept * level / lam_s)[..., None] * (y - newest)
        if draws > 1:
            carried[..., k + 1] += level * np.sqrt(1 - kept**2)
        columns = np.stack([carried, *(output - newest for output in outputs[1:])], -1)
        solution = _fit(newest, columns, np.sqrt(width2 + lam_t**2), p / (1 + lam_t**2), np.where(alone, 0.0, 1.0))
        y = newest + np.einsum("emdc,ec->emd", columns, solution)
        q[k] = np.where(lam_t[:, 0] > 0, solution[:, 0], 0.0)
        r = np.where(alone[:, 0], solution[:, 0], 0.0)
        weights[1 : len(outputs), k] = solution[:, 1:].T
    return q, weights, r


def _fit(base: Array, columns: Array, target: Array, share: Array, first: Array) -> Array:
    """The coefficients (E, n) with |base + columns @ coefficients| nearest the target, and not far from first, 0, ..., 0."""
    plain = np.zeros((len(base), columns.shape[-1]))
    plain[:, :1] = first
    solution = plain.copy()
    solution[:, 0] = 1  # the side on which the std is sought, where the first is 0
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
