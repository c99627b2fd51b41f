"""What a network predicts, and the x_theta (the estimate of x0) that follows.

With m = (a, b, sigma) at t, alpha = a + b, and x = a x0 + b x_hat0 + sigma eps:

    x0         x0 itself
    eps        (x - a x0 - b x_hat0) / sigma                    the paper's noise (Eq. 29)
    vp_eps     (x - alpha x0) / sigma                           the noise of plain diffusion, no x_hat0 in it:
                                                                what the released DoSSR network predicts
    v          alpha vp_eps - sigma x0                          the velocity of plain diffusion
    residual   x_hat0 - x0                                      what the shift adds to x0
    flow       (x - alpha x0) / b                               the velocity of the rectified flow, x_hat0 - x0 + (sigma/b) eps,
                                                                by a network that need not see x_hat0
    sigma_eps  x - a x0 - b x_hat0                              the noise as it stands in x
    score      -eps / sigma                                     Eq. 9

ResShift's four are x0 (its xstart), residual, eps (epsilon) and sigma_eps (epsilon_scale: kappa sqrt(eta) eps).

x0 cannot be had from eps, sigma_eps or score where a = 0 (the start of a domain-shift process); from vp_eps where alpha = 0;
from flow where b = 0. At sigma = 0 there is no noise to be told from x.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .process import HALF, Marginal, Process

Kind = Literal["x0", "eps", "vp_eps", "v", "score", "residual", "sigma_eps", "flow"]
Predicts = Literal["x0", "eps", "vp_eps", "v", "residual", "sigma_eps", "flow"]
Net = Callable[[Tensor, Tensor, Tensor], Tensor]


def convert(value: Tensor, x: Tensor, x_hat0: Tensor, m: Marginal, source: Kind, target: Kind) -> Tensor:
    """The `target` that belongs to the `source` prediction `value` at x on the marginal m.

    value, x, x_hat0: tensors of one shape. Errors: ValueError where the target is undefined (see above).
    """
    for name, kind in (("source", source), ("target", target)):
        if kind not in get_args(Kind):
            raise ValueError(f"{name}: {kind!r}; one of {', '.join(get_args(Kind))}")
    if source == target:
        return value
    if x.dtype in HALF:
        return convert(value.float(), x.float(), x_hat0.float(), m, source, target).to(x.dtype)
    if source == "score":
        return convert(-m.sigma.to(x) * value, x, x_hat0, m, "eps", target)
    if target == "score":
        _require(m.sigma, "sigma", m, "the score is infinite")
        return convert(value, x, x_hat0, m, source, "eps") / -m.sigma.to(x)
    if (source, target) == ("eps", "sigma_eps"):  # these two need no x0, which does not follow from them at a = 0
        return m.sigma.to(x) * value
    if (source, target) == ("sigma_eps", "eps"):
        _require(m.sigma, "sigma", m, "there is no eps")
        return value / m.sigma.to(x)
    on_value, on_x, on_source = (c.to(x) for c in to_x0(source, m))
    x0 = on_value * value + on_x * x + on_source * x_hat0
    if target == "x0":
        return x0
    if target == "residual":
        return x_hat0 - x0
    a, b, alpha, sigma = (c.to(x) for c in (m.a, m.b, m.alpha, m.sigma))
    if target == "sigma_eps":
        return x - a * x0 - b * x_hat0
    if target == "flow":
        _require(m.b, "b", m, "there is no flow")
        return (x - alpha * x0) / b
    _require(m.sigma, "sigma", m, f"there is no {target}")
    if target == "eps":
        return (x - a * x0 - b * x_hat0) / sigma
    vp_eps = (x - alpha * x0) / sigma
    return vp_eps if target == "vp_eps" else alpha * vp_eps - sigma * x0


def to_x0(source: Kind, m: Marginal) -> tuple[Tensor, Tensor, Tensor]:
    """(p, q, r) with x0 = p value + q x + r x_hat0. Errors: ValueError where x0 does not follow from the value."""
    zero = torch.zeros_like(m.a)
    if source == "x0":
        return torch.ones_like(m.a), zero, zero
    if source == "residual":
        return -torch.ones_like(m.a), zero, torch.ones_like(m.a)
    if source in ("eps", "sigma_eps"):
        _require(m.a, "a", m, f"x0 does not follow from {source}; predict vp_eps, v or x0 instead, or start below t1")
        return -(m.sigma if source == "eps" else 1) / m.a, 1 / m.a, -m.b / m.a
    if source == "vp_eps":
        _require(m.alpha, "alpha", m, "x0 does not follow from vp_eps; predict v or x0 instead")
        return -m.sigma / m.alpha, 1 / m.alpha, zero
    if source == "v":
        norm = m.alpha**2 + m.sigma**2
        return -m.sigma / norm, m.alpha / norm, zero
    if source == "flow":
        _require(m.alpha, "alpha", m, "x0 does not follow from flow; predict x0 instead")
        _require(m.b + (m.sigma == 0), "b", m, "x0 does not follow from flow; predict x0 instead")
        return -m.b / m.alpha, 1 / m.alpha, zero
    raise ValueError(f"source: {source!r}; one of {', '.join(get_args(Predicts))}")


def combine(value: Tensor, x: Tensor, x_hat0: Tensor, coefficients: tuple[float | Tensor, ...]) -> Tensor:
    """p value + q x + r x_hat0 in the dtype of x, with the (p, q, r) of `to_x0`."""
    on_value, on_x, on_source = coefficients
    x_theta = x * on_x + value.to(x.dtype) * on_value
    if isinstance(on_source, Tensor) or on_source:
        x_theta += x_hat0.to(x.dtype) * on_source
    return x_theta


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network as a model: (x, x_hat0, t) -> x_theta, computed in the dtype of x.

    net(x, x_hat0, t) gets x in the dtype of x_hat0 and t as a 0-dim float64 tensor on the host, and returns what `predicts`
    names, in the shape of x. A table of T steps has the index T t - 1.

    >>> import torch, dosde
    >>> process = dosde.Process(dosde.schedule.linear(), dosde.shift.cosine())
    >>> model = Denoiser(lambda x, x_hat0, t: torch.zeros_like(x), process, predicts="v")
    >>> dosde.solve(model, torch.ones(1, 3, 8, 8), steps=4, order=2).shape
    torch.Size([1, 3, 8, 8])
    """

    net: Net
    process: Process
    predicts: Predicts = "vp_eps"

    def __post_init__(self) -> None:
        if not callable(self.net):
            raise TypeError(f"net: {self.net!r}; a function (x, x_hat0, t) -> tensor is needed")
        if not isinstance(self.process, Process):
            raise TypeError(f"process: {self.process!r}; a dosde.Process is needed")
        if self.predicts not in get_args(Predicts):
            kinds = ", ".join(get_args(Predicts))
            hint = (
                "diffusers' epsilon is vp_eps here, v_prediction v, sample x0; ResShift's epsilon eps, epsilon_scale sigma_eps"
            )
            raise ValueError(f"predicts: {self.predicts!r}; one of {kinds} ({hint})")
        if self.process.noise_free and self.predicts not in ("x0", "flow"):
            hint = "flow is its velocity" if self.predicts == "residual" else "there is no noise to predict"
            raise ValueError(f"predicts: {self.predicts!r} on a process with sigma = 0; x0 or flow is needed ({hint})")

    @functools.cached_property
    def coefficients(self) -> Callable[[float, torch.device, torch.dtype], tuple[float | Tensor, ...]]:
        """Those of `to_x0` at (t, device, dtype), remembered."""
        return functools.lru_cache(maxsize=4096)(self._coefficients)

    def _coefficients(self, t: float, device: torch.device, dtype: torch.dtype) -> tuple[float | Tensor, ...]:
        """Floats, or tensors on the device where eta is a field."""
        parts = to_x0(self.predicts, self.process(t))
        return tuple(c.to(device, dtype) if c.ndim else c.item() for c in parts)

    def __call__(self, x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
        value = self.net(x.to(x_hat0.dtype), x_hat0, t)
        if not isinstance(value, Tensor) or value.shape != x.shape or not value.is_floating_point():
            what = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(f"net: returned {what} at t = {float(t):g}; a floating tensor of shape {tuple(x.shape)} is needed")
        if self.predicts == "x0":
            return value
        return combine(value, x, x_hat0, self.coefficients(float(t), x.device, x.dtype))


def _require(value: Tensor, name: str, m: Marginal, consequence: str) -> None:
    if not (value > 0).all():
        t = torch.where(value > 0, -1.0, m.t).max().item()  # one where it is so
        raise ValueError(f"t: {t:g}; {name} = 0 there, where {consequence}")
