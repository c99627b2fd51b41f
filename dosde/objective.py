"""Objectives: what a network of each prediction type should return, and the weights of its squared error.

    loss = mean of w(t) |net(x_t, x_hat0, t) - target|^2,      x_t = process.sample(x0, x_hat0, t, z)

An error of the network is one of x_theta: |x_theta - x0|^2 = p^2 |net - target|^2, p that of `prediction.to_x0`.
"""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from .method import Coefficient, resshift
from .prediction import Predicts, to_x0
from .process import HALF, Marginal, Process
from .solve import plan


def target(predicts: Predicts, process: Process, x0: Tensor, x_hat0: Tensor, t: float | Tensor, z: Tensor) -> Tensor:
    """What `predicts` names (see `prediction`), at x_t = process.sample(x0, x_hat0, t, z).

    x0, x_hat0, z: one shape; t: one time, or one a sample (shape (batch,)). Written in z, so that a small sigma costs no
    digits. Errors: ValueError for another name, for vp_eps and v at sigma = 0, and for flow at b = 0 (of a process with noise).
    """
    if predicts not in get_args(Predicts):
        raise ValueError(f"predicts: {predicts!r}; one of {', '.join(get_args(Predicts))}")
    if x0.dtype in HALF:
        return target(predicts, process, x0.float(), x_hat0.float(), t, z.float()).to(x0.dtype)
    m = process._over_batch(t, x0)
    b, alpha, sigma = (c.to(x0) for c in (m.b, m.alpha, m.sigma))
    if predicts == "x0":
        return x0
    if predicts == "residual":
        return x_hat0 - x0
    if predicts == "eps":
        return z
    if predicts == "sigma_eps":
        return sigma * z
    if predicts == "flow":
        if process.noise_free:
            return x_hat0 - x0
        if not (m.b > 0).all():
            raise ValueError(f"t: {t}; there is no flow where b = 0")
        return x_hat0 - x0 + sigma / b * z
    if not (m.sigma > 0).all():
        raise ValueError(f"t: {t}; there is no {predicts} where sigma = 0")
    vp_eps = z + b / sigma * (x_hat0 - x0)
    return vp_eps if predicts == "vp_eps" else alpha * vp_eps - sigma * x0


def plain_weight(predicts: Predicts, m: Marginal) -> Tensor:
    """ResShift's plain w: 1, but 1/sigma^2 for sigma_eps, whose loss is thereby that of eps."""
    if predicts not in get_args(Predicts):
        raise ValueError(f"predicts: {predicts!r}; one of {', '.join(get_args(Predicts))}")
    return 1 / m.sigma**2 if predicts == "sigma_eps" else torch.ones_like(m.sigma)


def bound_weights(predicts: Predicts, process: Process, times: Tensor | Sequence[float]) -> Tensor:
    """ResShift's weighted w: that of the variational bound of the chain (Eq. 3), for each of decreasing times but the last.

    KL(q(x_t | x_s, x_hat0, x0) || q(x_t | x_s, x_hat0, x_theta)) = w |x_theta - x0|^2, w = new^2/(2 noise^2) of the step of
    `method.resshift`; times p^2 for the network. A last step without noise, to sigma = 0, takes that of the step before.
    Errors: ValueError if it has none before, or where x0 does not follow from what is predicted.
    """
    if len(times) < 2:
        raise ValueError(f"times: {len(times)} of them; at least two are needed")
    noise: Coefficient = 0.0
    weights: list[Tensor] = []
    for step in plan(process, len(times) - 1, 1, method=resshift, grid=times):
        if isinstance(step.noise, Tensor) or step.noise:
            noise = step.noise
        elif not weights:
            raise ValueError(f"times: {times}; no step has noise, so the bound is infinite; two steps are needed")
        on_value = to_x0(predicts, process(step.t))[0]
        weights.append((on_value * step.new[0] / noise) ** 2 / 2)
    return torch.stack(weights)
