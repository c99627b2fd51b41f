"""Derivatives of schedule and shift, by automatic differentiation: f, h, g of the forward SDE (Eq. 6), and the velocity.

f = d log a / dt,   h = db/dt - f b,   g^2 = d sigma^2/dt - 2 f sigma^2
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .check import Refused, require

if TYPE_CHECKING:
    from .process import Marginal, Process
    from .schedule import Schedule

# Derivatives at t = 0 are taken here instead: the same numbers in float64, but sqrt has a derivative.
_TINY = 1e-100


def coefficients(process: "Process", t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(f, h, g) at t, float64.

    Raises:
        ValueError: where a = 0, or where schedule or shift has no derivative.
    """
    process(t)  # the error messages of a bad t
    field = torch.zeros(process.field_shape, dtype=torch.float64, device="cpu")
    with torch.inference_mode(False), torch.enable_grad():
        # One time an element of the field, so that the gradient of a sum is the derivative of each element.
        time = torch.as_tensor(t, dtype=torch.float64, device="cpu").detach().clone().clamp(min=_TINY) + field
        time.requires_grad_()
        m = process.marginal(time)
        da, db, dsigma = (_derivative(v, time) for v in (m.a, m.b, m.sigma))
        near = m if m.sigma.requires_grad and m.a.requires_grad else process.marginal(time * 0.999)
    a, b, sigma = m.a.detach(), m.b.detach(), m.sigma.detach()
    needed = f"f, h and g are infinite where a = 0, which is so from t1 = {process.t1:g} on"
    require(bool((a > 0).all()), "t", t, needed)
    tracked = all(v.requires_grad or torch.equal(v, w) for v, w in ((m.a, near.a), (m.sigma, near.sigma)))
    if not tracked or not (da.isfinite() & db.isfinite() & dsigma.isfinite()).all():
        needed = "schedule or shift has no derivative there: make them of torch operations (sigma near t = 0 of expm1)"
        raise Refused("t", t, needed)
    f = da / a
    return f, db - f * b, torch.sqrt((2 * sigma * (dsigma - f * sigma)).clamp(min=0))


def velocity(schedule: "Schedule") -> Callable[["Marginal"], tuple[Tensor, ...]]:
    """The kind d x_t / d t = alpha' x0 + sigma' eps of a flow between data and noise on a schedule, for Denoiser(predicts=...).

    On `schedule.flow()` it is the kind `velocity`; on alpha = cos, sigma = sin of pi t / 2 it is pi/2 times v.
    """

    def own(m: "Marginal") -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            t = m.t.detach().clone().requires_grad_()
            alpha, sigma = schedule(t)
            d_alpha, d_sigma = (_derivative(v, t) for v in (alpha, sigma))
        return m.sigma, m.sigma * d_alpha - m.alpha * d_sigma, d_sigma, torch.zeros_like(m.sigma)

    return own


def _derivative(value: Tensor, time: Tensor) -> Tensor:
    """d value/d time, elementwise."""
    if not value.requires_grad:
        return torch.zeros_like(time)
    derivative = torch.autograd.grad(value.sum(), time, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(time) if derivative is None else derivative
