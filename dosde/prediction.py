"""Kinds of prediction: the output of a network, and the x_theta (the estimate of x0) that follows.

Every kind of prediction is a row (c, p, q, r) of coefficients of the marginal m = (a, b, sigma) with alpha = a + b:

    c value = p x0 + q x + r x_hat0

    x0         x0 itself
    eps        (x - a x0 - b x_hat0) / sigma                    the paper's noise (Eq. 29)
    vp_eps     (x - alpha x0) / sigma                           the noise of plain diffusion, no x_hat0 in it:
                                                                what the released DoSSR network predicts
    v          alpha vp_eps - sigma x0                          the velocity of plain diffusion
    score      -eps / sigma                                     Eq. 9
    residual   x_hat0 - x0                                      what the shift adds to x0
    sigma_eps  x - a x0 - b x_hat0                              the noise as it stands in x
    velocity   (x - (alpha + sigma) x0) / sigma                 eps - x0 where alpha + sigma = 1 (`schedule.flow`, eta = 0):
                                                                what SD 3, FLUX and Sana predict
    flow       (x - alpha x0) / b                               the velocity of the rectified flow, x_hat0 - x0 + (sigma/b) eps,
                                                                by a network that need not see x_hat0

ResShift's four are x0 (its xstart), residual, eps (epsilon) and sigma_eps (epsilon_scale: kappa sqrt(eta) eps).

A kind of one's own is such a row, a function m -> (c, p, q, r) in the place of a name: Denoiser(net, process, predicts=row).

x0 follows where p is not 0: so not from eps, sigma_eps or score where a = 0 (the start of a domain-shift process), nor from
vp_eps where alpha = 0. With x = a x0 + b x_hat0 + sigma z the row is also the target of the training (`objective.target`).
"""

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import check
from .check import Refused, require
from .process import HALF, Marginal, Process
from .recipe import ByValue
from .sde import velocity as velocity

Own = Callable[[Marginal], tuple[Tensor | float, ...]]
"""m -> (c, p, q, r), the row of a kind."""
Kind = Literal["x0", "eps", "vp_eps", "v", "score", "residual", "sigma_eps", "velocity", "flow"] | Own
Predicts = Literal["x0", "eps", "vp_eps", "v", "residual", "sigma_eps", "velocity", "flow"] | Own
Net = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, x_hat0, t) -> prediction."""


class Row(NamedTuple):
    """The coefficients of c value = p x0 + q x + r x_hat0, float64 tensors of the shape of m.a."""

    c: Tensor
    p: Tensor
    q: Tensor
    r: Tensor


KINDS: dict[str, Own] = {
    "x0": lambda m: (1, 1, 0, 0),
    "eps": lambda m: (m.sigma, -m.a, 1, -m.b),
    "vp_eps": lambda m: (m.sigma, -m.alpha, 1, 0),
    "v": lambda m: (m.sigma, -(m.alpha**2 + m.sigma**2), m.alpha, 0),
    "score": lambda m: (-(m.sigma**2), -m.a, 1, -m.b),
    "residual": lambda m: (1, -1, 0, 1),
    "sigma_eps": lambda m: (1, -m.a, 1, -m.b),
    "velocity": lambda m: (m.sigma, -(m.alpha + m.sigma), 1, 0),
    "flow": lambda m: (m.b, -m.alpha, 1, 0),
}
"""The table of kinds."""
TRAINED = tuple(kind for kind in KINDS if kind != "score")  # what a Denoiser and an objective take
_VANISHING = {"eps": "a", "sigma_eps": "a", "score": "a", "vp_eps": "alpha", "flow": "alpha"}  # where p = 0
_INSTEAD = {"eps": "predict vp_eps, v or x0 instead, or start below t1", "vp_eps": "predict v or x0 instead"}
_INSTEAD |= {"sigma_eps": _INSTEAD["eps"], "flow": "predict x0 instead"}
_THEIR_NAMES = "diffusers' epsilon is vp_eps here, v_prediction v, sample x0, flow_prediction velocity; "
_THEIR_NAMES += "ResShift's epsilon eps, epsilon_scale sigma_eps"


@check.typed
def row(kind: Kind, m: Marginal) -> Row:
    """The row of a kind on a marginal."""
    values = (KINDS[kind] if isinstance(kind, str) else kind)(m)
    require(isinstance(values, tuple) and len(values) == 4, "kind", kind, "a function m -> (c, p, q, r) is needed")
    return Row(*(torch.as_tensor(v, dtype=torch.float64, device="cpu").expand(m.a.shape) for v in values))


def known(argument: str, kind: object, names: Collection[str] = tuple(KINDS), hint: str = "") -> None:
    """Refused unless it is one of the names, or a row."""
    if not callable(kind) or isinstance(kind, type):
        check.one_of(argument, kind, names, hint)


@check.typed
def to_x0(source: Kind, m: Marginal) -> tuple[Tensor, Tensor, Tensor]:
    """The coefficients (k, q, r) of x0 = k value + q x + r x_hat0.

    Raises:
        ValueError: where x0 does not follow from the value.
    """
    known("source", source)
    c, p, q, r = row(source, m)
    kind = source if isinstance(source, str) else check.describe(source)
    kind = "eps" if kind == "score" else kind
    _require(p, _VANISHING.get(kind, "p"), m, f"x0 does not follow from {kind}; {_INSTEAD.get(kind, 'start below that time')}")
    if source == "flow":  # at b = 0 it is infinite, but where x holds x0 alone
        _require(m.b + (m.sigma == 0), "b", m, f"x0 does not follow from flow; {_INSTEAD['flow']}")
    return c / p, -q / p, -r / p


@check.typed
def convert(value: Tensor, x: Tensor, x_hat0: Tensor, m: Marginal, source: Kind, target: Kind) -> Tensor:
    """The `target` that belongs to the `source` prediction `value` at x on the marginal m.

    Args:
        value: the prediction, a tensor of the shape of x and x_hat0.
        x: the state.
        x_hat0: the source picture.
        m: the marginal of x.
        source: the kind of the value.
        target: the kind to return.

    Raises:
        ValueError: for another kind, or where the target is undefined.
    """
    known("source", source)
    known("target", target)
    check.alike(value=value, x=x, x_hat0=x_hat0)
    if source == target:
        return value
    if x.dtype in HALF:
        return convert(value.float(), x.float(), x_hat0.float(), m, source, target).to(x.dtype)
    have, want = row(source, m), row(target, m)
    _require(
        want.c, "b" if target == "flow" else "sigma", m, f"there is no {check.describe(target) if callable(target) else target}"
    )
    # want.c value' = k (have.c value) + (want.q - k have.q) x + (want.r - k have.r) x_hat0. Two kinds of noise have one p, and
    # need no x0, which does not follow from them at a = 0.
    if torch.equal(want.p, have.p) and torch.equal(want.r, have.r):
        k = torch.ones_like(want.p)
    else:
        to_x0(source, m)  # refused where have.p = 0
        k = want.p / have.p
    coefficients = (k * have.c, want.q - k * have.q, want.r - k * have.r)
    on_value, on_x, on_source = ((v / want.c).to(x) for v in coefficients)
    return on_value * value + on_x * x + on_source * x_hat0


@check.typed
def combine(value: Tensor, x: Tensor, x_hat0: Tensor, coefficients: tuple[float | Tensor, ...]) -> Tensor:
    """x_theta = k value + q x + r x_hat0 in the dtype of x, with the (k, q, r) of `to_x0`."""
    on_value, on_x, on_source = coefficients
    x_theta = x * on_x + value.to(x.dtype) * on_value
    if isinstance(on_source, Tensor) or on_source:
        x_theta += x_hat0.to(x.dtype) * on_source
    return x_theta


@dataclass(frozen=True, eq=False, repr=False)
class Denoiser(ByValue):
    """A network as a model: (x, x_hat0, t) -> x_theta, computed in the dtype of x.

    Args:
        net: (x, x_hat0, t) -> prediction in the shape of x. It gets x in the dtype of x_hat0, and t as a 0-dim float64 tensor
            on the host. `schedule.table_index` is the index of a time in a table.
        process: the process that the network was trained on.
        predicts: what the network returns, a kind of `dosde.prediction` or a row of one's own.

    Raises:
        ValueError: for another kind, or one that is undefined on a process without noise.

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
        check.function("net", self.net, "a function (x, x_hat0, t) -> tensor is needed")
        if not isinstance(self.process, Process):
            raise check.RefusedType("process", self.process, "a dosde.Process is needed")
        known("predicts", self.predicts, TRAINED, f" ({_THEIR_NAMES})")
        if self.process.noise_free and isinstance(self.predicts, str) and self.predicts not in ("x0", "flow"):
            hint = "flow is its velocity" if self.predicts == "residual" else "there is no noise to predict"
            shown = f"{self.predicts!r} on a process with sigma = 0"
            raise Refused("predicts", self.predicts, f"x0 or flow is needed ({hint})", shown)

    def __repr__(self) -> str:
        net = type(self.net).__qualname__ if isinstance(self.net, torch.nn.Module) else check.describe(self.net)
        return f"dosde.Denoiser({net}, {self.process!r}, predicts={check.describe(self.predicts)})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "coefficients"}

    @functools.cached_property
    def coefficients(self) -> Callable[[float, torch.device, torch.dtype], tuple[float | Tensor, ...]]:
        """The coefficients of `to_x0` at (t, device, dtype), remembered."""
        return functools.lru_cache(maxsize=4096)(self._coefficients)

    def _coefficients(self, t: float, device: torch.device, dtype: torch.dtype) -> tuple[float | Tensor, ...]:
        """Floats, or tensors on the device where eta is a field."""
        parts = to_x0(self.predicts, self.process(t))
        return tuple(c.to(device, dtype) if c.ndim else c.item() for c in parts)

    def __call__(self, x: Tensor, x_hat0: Tensor, t: Tensor, **model_kwargs: Any) -> Tensor:
        value = self.net(x.to(x_hat0.dtype), x_hat0, t, **model_kwargs)
        check.net(value, x, float(t))
        if self.predicts == "x0":
            return value
        return combine(value, x, x_hat0, self.coefficients(float(t), x.device, x.dtype))


def _require(value: Tensor, name: str, m: Marginal, consequence: str) -> None:
    """Refused at a time where the value, which is 0 exactly where `name` is, vanishes."""
    vanishes = value == 0
    if vanishes.any():
        t = torch.where(vanishes, m.t, -1.0).max().item()
        require(False, "t", t, f"{name} = 0 there, where {consequence}", f"{t:g}")
