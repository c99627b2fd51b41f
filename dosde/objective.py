"""Objectives: what a network of each prediction type should return, and the weights of its squared error.

    loss = mean of w(t) |net(x_t, x_hat0, t) - target|^2,      x_t = process.sample(x0, x_hat0, t, z)

An error of the network is an error of x_theta: |x_theta - x0|^2 = k^2 |net - target|^2, with the k of `prediction.to_x0`:

    the paper (Eq. 8)          loss(net, "eps", ...)                                      mean |net - eps|^2
    the released DoSSR         loss(net, "vp_eps", ..., norm="l1", of="x0")               mean |x_theta - x0|
    weighted losses of x0      loss(net, kind, ..., of="x0", weight=w)                    mean w |x_theta - x0|^2
    ResShift                   loss(net, kind, ..., weight=plain_weight or bound_weights) mean w |net - target|^2
    rectified flow (FlowIE)    loss(net, "flow", process.flow(), ...)                     mean |net - (x_hat0 - x0)|^2

eps is all noise at a = 0: t from below t1 there, or a weight of u, with which the loss of x0 is that of eps.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from . import check
from .check import Refused, describe, require
from .method import resshift
from .plan import plan
from .prediction import TRAINED, Predicts, known, row, to_x0
from .process import HALF, Marginal, Process
from .step import Coefficient

_EPSILON = torch.finfo(torch.float64).eps


@check.typed
def target(predicts: Predicts, process: Process, x0: Tensor, x_hat0: Tensor, t: float | Tensor, z: Tensor) -> Tensor:
    """The value of a kind of prediction at x_t = process.sample(x0, x_hat0, t, z): what a network should return there.

    It follows from the row of the kind (see `prediction`) and is written in z, so that a small sigma costs no digits.

    Args:
        predicts: the kind.
        process: the process.
        x0: the target picture.
        x_hat0: the source, in the shape of x0.
        t: one time, or one for each sample, (batch,).
        z: the noise, in the shape of x0.

    Raises:
        ValueError: for another kind, for vp_eps and v at sigma = 0, and for flow at b = 0 (of a process with noise).
    """
    known("predicts", predicts, TRAINED)
    check.alike(x0=x0, x_hat0=x_hat0, z=z)
    if x0.dtype in HALF:
        return target(predicts, process, x0.float(), x_hat0.float(), t, z.float()).to(x0.dtype)
    m = process.over_batch(t, x0)
    if predicts == "eps" or (predicts == "flow" and process.noise_free):  # where c = 0 too, and the row is 0 = 0
        return z if predicts == "eps" else x_hat0 - x0
    c, p, q, r = row(predicts, m)
    name = {"flow": "b"}.get(predicts, "sigma") if isinstance(predicts, str) else "c"
    require(
        bool((c != 0).all()),
        "t",
        t,
        f"there is no {predicts if isinstance(predicts, str) else describe(predicts)} where {name} = 0",
    )
    # c target = (p + q a) x0 + (q b + r) x_hat0 + q sigma z. In x_hat0 - x0, since at small sigma both are large but for it.
    on_residual = q * m.b + r
    on_x0 = p + q * m.a + on_residual
    on_x0 = torch.where(on_x0.abs() <= 4 * _EPSILON * p.abs(), 0.0, on_x0)  # 0 but for rounding
    on_z, on_residual, on_x0 = ((v / c).to(x0) for v in (q * m.sigma, on_residual, on_x0))
    return on_z * z + on_residual * (x_hat0 - x0) + on_x0 * x0


@check.typed
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
    """The loss of what a network returned at x_t = process.sample(x0, x_hat0, t, z). Half precision is computed in float32.

    Args:
        value: the output of the network, in the shape of x0. Gradients flow through it.
        predicts: the kind of prediction that the output is.
        process: the process.
        x0: the target picture.
        x_hat0: the source, in the shape of x0.
        t: one time, or one for each sample, (batch,).
        z: the noise, in the shape of x0.
        norm: l2, the mean square over the elements of a sample, or l1, the mean magnitude.
        of: "net" compares value with `target`; "x0" compares the x_theta that follows from value with x0.
        weight: w, a number, one for each sample, or a tensor that broadcasts against x0.

    Returns:
        The loss of each sample, (batch,).

    Raises:
        ValueError: for other names, other shapes, or where target or x_theta is undefined.

    >>> import torch, dosde
    >>> process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
    >>> x0, x_hat0, z = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    >>> x = process.sample(x0, x_hat0, 0.25, z)
    >>> loss(0.5 * z, "eps", process, x0, x_hat0, 0.25, z)
    tensor([0.2500, 0.2500])
    """
    require(norm in ("l2", "l1"), "norm", norm, "l2 or l1 is needed")
    require(of in ("net", "x0"), "of", of, "net or x0 is needed")
    shapes = [tuple(v.shape) for v in (value, x0, x_hat0, z)]
    require(len(set(shapes)) == 1, "value, x0, x_hat0, z", shapes, "one shape is needed", f"shapes {shapes}")
    if value.dtype in HALF or x0.dtype in HALF:
        value, x0, x_hat0, z = (v.float() for v in (value, x0, x_hat0, z))
    error = value - target(predicts, process, x0, x_hat0, t, z)
    if of == "x0":
        error = to_x0(predicts, process.over_batch(t, x0))[0].to(x0) * error
    w = (weight if isinstance(weight, Tensor) else torch.as_tensor(weight, dtype=torch.float64, device=x0.device)).to(x0)
    if w.ndim == 1:
        w = w.reshape(-1, *[1] * (x0.ndim - 1))
    return (w * (error**2 if norm == "l2" else error.abs())).flatten(1).mean(1)


@check.typed
def plain_weight(predicts: Predicts, m: Marginal) -> Tensor:
    """The plain w of ResShift: 1, and 1/sigma^2 for sigma_eps, whose loss is then that of eps."""
    known("predicts", predicts, TRAINED)
    return 1 / m.sigma**2 if predicts == "sigma_eps" else torch.ones_like(m.sigma)


@check.typed
def bound_weights(predicts: Predicts, process: Process, times: Tensor | Sequence[float]) -> Tensor:
    """The weighted w of ResShift, from the variational bound of the chain (Eq. 3), at each of decreasing times but the last.

    KL(q(x_t | x_s, x_hat0, x0) || q(x_t | x_s, x_hat0, x_theta)) = w |x_theta - x0|^2, with w = new^2/(2 noise^2) of the step
    of `method.resshift`, times the square of the factor from value to x0. A last step without noise, to sigma = 0, takes the
    weight of the step before.

    Raises:
        ValueError: if no step before has noise, or where x0 does not follow from the prediction.
    """
    shape = tuple(check.values("times", times, "decreasing times").shape)
    require(len(shape) == 1 and shape[0] >= 2, "times", times, "at least two are needed", f"shape {shape}")
    noise: Coefficient = 0.0
    weights: list[Tensor] = []
    for step in plan(process, len(times) - 1, 1, method=resshift, grid=times):
        if isinstance(step.noise, Tensor) or step.noise:
            noise = step.noise
        elif not weights:
            raise Refused("times", times, "no step has noise, so the bound is infinite; two steps are needed")
        on_value = to_x0(predicts, process(step.t))[0]
        weights.append((on_value * step.new[0] / noise) ** 2 / 2)
    return torch.stack(weights)
