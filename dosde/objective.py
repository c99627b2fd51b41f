"""Objectives: what a network of each prediction type should return, and the weights of its squared error.

    loss = mean of w(t) |net(x_t, x_hat0, t) - target|^2,      x_t = process.sample(x0, x_hat0, t, z)

An error of the network is one of x_theta: |x_theta - x0|^2 = p^2 |net - target|^2, p that of `prediction.to_x0`. With `loss`:

    the paper (Eq. 8)          loss(net, "eps", ...)                                      mean |net - eps|^2
    the released DoSSR         loss(net, "vp_eps", ..., norm="l1", of="x0")               mean |x_theta - x0|
    weighted losses of x0      loss(net, kind, ..., of="x0", weight=w)                    mean w |x_theta - x0|^2
    ResShift                   loss(net, kind, ..., weight=plain_weight or bound_weights) mean w |net - target|^2
    rectified flow (FlowIE)    loss(net, "flow", process.flow(), ...)                     mean |net - (x_hat0 - x0)|^2

eps is all noise at a = 0: t from below t1 there, or a weight of u, with which the loss of x0 is that of eps.
"""

from collections.abc import Sequence
from typing import Literal, get_args

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


def loss(
    value: Tensor,
    predicts: Predicts,
    process: Process,
    x0: Tensor,
    x_hat0: Tensor,
    t: float | Tensor,
    z: Tensor,
    *,
    norm: Literal["l2", "l1"] = "l2",
    of: Literal["net", "x0"] = "net",
    weight: float | Tensor = 1.0,
) -> Tensor:
    """The loss of each sample, (batch,), of what a network returned at x_t = process.sample(x0, x_hat0, t, z); see above.

    value   the network's output, which `predicts` names, in the shape of x0; gradients flow through it.
    t       one time, or one a sample.
    norm    l2, the mean square over the elements of a sample, or l1, the mean magnitude.
    of      net: value against `target`. x0: the x_theta that follows from value against x0.
    weight  w: a number, one a sample, or a tensor that broadcasts against x0.

    In float32 for half precision. Errors: ValueError for other names, other shapes, or where target or x_theta is undefined.

    >>> import torch, dosde
    >>> process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
    >>> x0, x_hat0, z = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    >>> x = process.sample(x0, x_hat0, 0.25, z)
    >>> loss(0.5 * z, "eps", process, x0, x_hat0, 0.25, z)
    tensor([0.2500, 0.2500])
    """
    if norm not in ("l2", "l1"):
        raise ValueError(f"norm: {norm!r}; l2 or l1 is needed")
    if of not in ("net", "x0"):
        raise ValueError(f"of: {of!r}; net or x0 is needed")
    if not value.shape == x0.shape == x_hat0.shape == z.shape:
        shapes = [tuple(v.shape) for v in (value, x0, x_hat0, z)]
        raise ValueError(f"value, x0, x_hat0, z: shapes {shapes}; one shape is needed")
    if value.dtype in HALF or x0.dtype in HALF:
        value, x0, x_hat0, z = (v.float() for v in (value, x0, x_hat0, z))
    error = value - target(predicts, process, x0, x_hat0, t, z)
    if of == "x0":
        error = to_x0(predicts, process._over_batch(t, x0))[0].to(x0) * error
    w = torch.as_tensor(weight).to(x0)
    if w.ndim == 1:
        w = w.reshape(-1, *[1] * (x0.ndim - 1))
    return (w * (error**2 if norm == "l2" else error.abs())).flatten(1).mean(1)


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
