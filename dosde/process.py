"""The domain-shift process: a linear Gaussian path from a target x0 through a source x_hat0 to noise.

With a = alpha (1 - eta), b = alpha eta (both of the schedule and the shift):

    marginal (Eq. 2)        x_t | x0, x_hat0 ~ N(a x0 + b x_hat0, sigma^2 I)
    forward SDE (5), (6)    dx = (f x + h x_hat0) dt + g dw
                            f = d log a / dt,   h = db/dt - f b,   g^2 = d sigma^2/dt - 2 f sigma^2
    score (9)               -(x - a x_theta - b x_hat0) / sigma^2
    reverse SDE (7)         dx = (f x + h x_hat0 - g^2 score) dt + g dw

h is written for any a, b: with a = alpha (1 - eta) it is alpha/(1 - eta) d eta/dt, the paper's. Two clocks follow:
lam = sigma/a, which rises with t from 0, and u = 1/lam^2, on which the reverse SDE has unit noise.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import bisection, check, sde, transition
from . import bridge as _bridge
from . import shift as _shift
from .check import Refused, RefusedType, describe, require
from .recipe import ByValue
from .schedule import Schedule, ve, with_shift
from .transition import Transition as Transition

_brownian = ve(torch.sqrt)
HALF = (torch.float16, torch.bfloat16)  # what is computed in float32 and rounded at the end


@dataclass(frozen=True, eq=False, repr=False)
class Marginal(ByValue):
    """The law of x_t at time t: x_t | x0, x_hat0 ~ N(a x0 + b x_hat0, sigma^2 I) (Eq. 2).

    All entries are float64 tensors on the host, 0-dim for one time without a field; times and fields of eta or sigma broadcast.
    """

    t: Tensor
    a: Tensor
    b: Tensor
    sigma: Tensor

    @property
    def lam(self) -> Tensor:
        """The noise level of (x - b x_hat0)/a about x0: sigma / a. It is infinite where a = 0, with or without noise."""
        return torch.where(self.a > 0, self.sigma / self.a, math.inf)

    @property
    def u(self) -> Tensor:
        """The clock of the reverse Brownian motion: 1 / lam^2. It is 0 where a = 0, and infinite at sigma = 0."""
        return torch.where(self.a > 0, (self.a / self.sigma) ** 2, 0.0)

    @property
    def alpha(self) -> Tensor:
        """The scale of the schedule: a + b."""
        return self.a + self.b


@dataclass(frozen=True, eq=False, repr=False)
class Process(ByValue):
    """A domain-shift process of a noise schedule t -> (alpha, sigma) and a shift t -> eta.

    Two processes are equal if their schedules and shifts are, which is so if equal calls made them.

    Args:
        schedule: t -> (alpha, sigma), made of torch operations.
        shift: t -> eta, likewise; each of them may return a field.

    Raises:
        ValueError: if, on a probe of times, eta leaves [0, 1], eta or lam decreases, or alpha, sigma are not finite and >= 0.
        TypeError: if schedule or shift is no function of a tensor of times.

    >>> import dosde
    >>> process = Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
    >>> m = process(0.25)
    >>> print(f"a {m.a:.3f}, b {m.b:.3f}, sigma {m.sigma:.3f}, lam {m.lam:.3f}")
    a 0.411, b 0.411, sigma 0.570, lam 1.387
    """

    schedule: Schedule
    shift: Callable[[Tensor], Tensor] = field(default_factory=_shift.cosine)

    def __post_init__(self) -> None:
        for name in ("schedule", "shift"):
            check.function(name, getattr(self, name), "a function of t is needed")
        check.path(self)
        if not hasattr(self.shift, "t1"):
            object.__setattr__(self, "shift", _shift.Shift(self.shift, bisection.first_time_of_one(self._eta)))

    def __repr__(self) -> str:
        return f"dosde.Process({describe(self.schedule)}, {describe(self.shift)})"

    @property
    def t1(self) -> float:
        """The time at which a solve starts: where eta has reached 1 everywhere, or 1."""
        t1: float = self.shift.t1  # type: ignore[attr-defined]
        return t1

    @functools.cached_property
    def noise_free(self) -> bool:
        """Whether sigma = 0 at all times, as on the rectified flow: x_t is made of x0 and x_hat0 alone, and lam is 0."""
        return not any(self(t).sigma.any() for t in (self.t1, self.t1 / 2))

    @functools.cached_property
    def field_shape(self) -> tuple[int, ...]:
        """The shape of a, b and sigma at one time: () unless eta or sigma is a field."""
        return tuple(self.marginal(torch.tensor(0.5, dtype=torch.float64, device="cpu")).a.shape)

    def __call__(self, t: float | Tensor) -> Marginal:
        """The marginal at t in [0, 1]. A tensor t broadcasts against the field of eta, if there is one."""
        t = check.values("t", t, "a time, or a tensor of them,")
        require(check.within(t, 0, 1), "t", t, "times in [0, 1] are needed")
        return self.marginal(t)

    def marginal(self, t: Tensor) -> Marginal:
        """The same for a float64 tensor of times that are known to be in [0, 1]. Gradients flow to t."""
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in self.schedule(t))
        if not (check.within(alpha, 0, math.inf) and check.within(sigma, 0, math.inf)):
            shown = f"alpha = {describe(alpha)}, sigma = {describe(sigma)} at t = {describe(t)}"
            raise Refused("schedule", self.schedule, "both must be finite and >= 0", shown)
        eta = self._eta(t)
        rest = getattr(self.shift, "rest", None)
        rest = 1 - eta if rest is None else rest(t)
        zero = torch.zeros_like(eta) + torch.zeros_like(sigma) + torch.zeros_like(alpha)  # one shape
        return Marginal(t, alpha * rest + zero, alpha * eta + zero, sigma + zero)

    def _eta(self, t: Tensor) -> Tensor:
        eta = torch.as_tensor(self.shift(t), dtype=torch.float64, device="cpu")
        if not check.within(eta, 0, 1):
            i = int((~((eta >= 0) & (eta <= 1))).reshape(-1).nonzero()[0])
            at = (t + torch.zeros_like(eta)).reshape(-1)[i].item()
            shown = f"eta = {eta.reshape(-1)[i].item()} at t = {at:g}"
            raise Refused("shift", self.shift, "eta must lie in [0, 1]", shown)
        return eta + torch.zeros_like(t)

    # -- The forward SDE ------------------------------------------------------------------------------------------

    def f(self, t: float | Tensor) -> Tensor:
        """The drift on x, d log a / dt (Eq. 6). Refused where a = 0, since it is infinite there."""
        return sde.coefficients(self, t)[0]

    def h(self, t: float | Tensor) -> Tensor:
        """The drift on x_hat0, alpha/(1 - eta) d eta/dt (Eq. 6). Refused where a = 0, since it is infinite there."""
        return sde.coefficients(self, t)[1]

    def g(self, t: float | Tensor) -> Tensor:
        """The noise, sqrt(d sigma^2/dt - 2 f sigma^2) (Eq. 6). Refused where a = 0, since it is infinite there."""
        return sde.coefficients(self, t)[2]

    @check.typed
    def score(self, x: Tensor, x_hat0: Tensor, x_theta: Tensor, t: float | Tensor) -> Tensor:
        """The score, -(x - a x_theta - b x_hat0) / sigma^2 (Eq. 9). Refused where sigma = 0."""
        check.alike(x=x, x_hat0=x_hat0, x_theta=x_theta)
        if x.dtype in HALF:
            return self.score(x.float(), x_hat0.float(), x_theta.float(), t).to(x.dtype)
        m = self.over_batch(t, x)
        require(bool((m.sigma > 0).all()), "t", t, "the score is infinite where sigma = 0")
        return -(x - m.a.to(x) * x_theta - m.b.to(x) * x_hat0) / m.sigma.to(x) ** 2

    # -- Forward sampling and transitions --------------------------------------------------------------------------

    @check.typed
    def sample(self, x0: Tensor, x_hat0: Tensor, t: float | Tensor, z: Tensor) -> Tensor:
        """A state x_t = a x0 + b x_hat0 + sigma z (Eq. 2), z ~ N(0, I). t is one time, or one for each sample, (batch,)."""
        check.alike(x0=x0, x_hat0=x_hat0, z=z)
        if x0.dtype in HALF:
            return self.sample(x0.float(), x_hat0.float(), t, z.float()).to(x0.dtype)
        m = self.over_batch(t, x0)
        return m.a.to(x0) * x0 + m.b.to(x0) * x_hat0 + m.sigma.to(x0) * z

    def transition(self, s: float | Tensor, t: float | Tensor) -> Transition:
        """The law of x_t | x_s, x_hat0 under the forward SDE (5), s <= t. Refused where a_s = 0.

        The chain of Eq. 3 has the same marginals, but not the same joint law: see `chain`.
        """
        return transition.of_sde(*self._ordered(s, t))

    def chain(self, s: float | Tensor, t: float | Tensor) -> Transition:
        """The law of x_t | x_s, x0, x_hat0 in the paper's chain (Eq. 3), s <= t.

        Its noise is that of plain diffusion, sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2, and it needs x0. Marginals (2)
        agree with those of the SDE; the joint law of (x_s, x_t) does not, since there a, not alpha, carries x_s on.
        """
        return transition.of_chain(*self._ordered(s, t))

    def _ordered(self, s: float | Tensor, t: float | Tensor) -> tuple[Marginal, Marginal]:
        m, n = self(s), self(t)
        ordered, shown = bool((m.t <= n.t).all()), f"{describe(s)}, {describe(t)}"
        require(ordered, "s, t", (s, t), "s <= t is needed, the forward direction", shown)
        return m, n

    # -- Times ----------------------------------------------------------------------------------------------------

    def over_batch(self, t: float | Tensor, x: Tensor) -> Marginal:
        """The marginal at one time, or at one for each sample of x (t of shape (batch,)), to broadcast against x."""
        if not x.is_floating_point() or not x.ndim:
            raise RefusedType("x", x, "a floating batch is needed", check.form(x))
        t = check.values("t", t, "a time, or a tensor of them,")
        ok = t.ndim == 0 or t.shape == x.shape[:1] or t.ndim == x.ndim > 1
        require(ok, "t", t, f"one time, or {x.shape[0]} of them (one a sample)", f"shape {tuple(t.shape)}")
        return self(t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim == 1 else t)

    def time(self, lam: float | Tensor) -> Tensor:
        """The time in [0, t1] at which lam has this value: the inverse of t -> lam, by bisection.

        Raises:
            ValueError: for a field eta, or a value that lam does not take.
        """
        shown = f"eta is a field of shape {self.field_shape}, so lam has no single inverse"
        require(not self.field_shape, "lam", lam, "give times", shown)
        shown = "sigma = 0 at all times of this process, and so is lam"
        require(not self.noise_free, "lam", lam, "give times, or grid.uniform", shown)
        lam = check.values("lam", lam, "a noise level, or a tensor of them,")
        least, most = self(0.0).lam, self(self.t1).lam
        inside = bool(((lam >= least) & (lam <= most)).all())
        require(inside, "lam", lam, f"this process has lam from {least:g} at t = 0 to {most:g} at t1")
        return bisection.inverse(lambda t: self(t).lam, lam, least, self.t1)


@check.typed
def resshift(T: int = 15, kappa: float = 2.0, eta_min: float = 0.02**2, eta_max: float = 0.99**2, p: float = 0.3) -> Process:
    """The process of ResShift: a = 1 - eta, b = eta, sigma = kappa sqrt(eta), with T etas at t = 1/T .. 1.

    Args:
        T: the number of steps of its table.
        kappa: the scale of the noise, positive.
        eta_min: the first eta.
        eta_max: the last eta.
        p: the power of `shift.exponential`.
    """
    require(kappa > 0, "kappa", kappa, "a positive number is needed")
    eta = _shift.exponential(T, eta_min, eta_max, p)
    return Process(with_shift(eta, kappa, 0.5), eta)


@check.typed
def flow(kappa: float = 0.0, shift: Callable[[Tensor], Tensor] | None = None) -> Process:
    """The rectified flow from the source (FlowIE): x_t = (1 - eta) x0 + eta (x_hat0 + kappa z).

    Its paths are straight lines from x0 to the source, or to the source with noise of std kappa. Without noise `method.flow`
    alone solves it.

    With a network that sees x_t alone the ODE ends in the law of x0. A network that also sees x_hat0 can tell x0 from x_t =
    (1 - eta) x0 + eta x_hat0, and its flow is E[x0 | x_hat0] from the first step on. With kappa > 0 this is a process as
    others here, whose ODE ends in the law of x0 given x_hat0.

    Args:
        kappa: std of the noise at the source, at least 0.
        shift: eta. Default: `shift.linear()`, so that eta = t.

    >>> m = flow()(0.25)
    >>> print(f"a {m.a}, b {m.b}, sigma {m.sigma}")
    a 0.75, b 0.25, sigma 0.0
    """
    require(0 <= kappa < math.inf, "kappa", kappa, "a number >= 0 is needed")
    eta = _shift.linear() if shift is None else shift
    return Process(with_shift(eta, kappa, 1.0), eta)


@check.typed
def bridge(schedule: Schedule | None = None, to_source: bool = False) -> Process:
    """The bridge from x0 to the source of a plain diffusion on `schedule`, pinned at x_hat0 at t = 1 without noise.

    Its equations, and the published bridges that it is, are in `dosde.bridge`.

    Args:
        schedule: t -> (alpha, sigma) with sigma(0) = 0. Default: Brownian motion, alpha = 1, sigma = sqrt(t).
        to_source: whether the diffusion relaxes to x_hat0 (GOUB) and not to 0 (DDBM).

    >>> m = bridge()(0.25)
    >>> print(f"a {m.a}, b {m.b}, sigma {m.sigma:.3f}")
    a 0.75, b 0.25, sigma 0.433
    """
    plain = _brownian if schedule is None else schedule
    return Process(_bridge.schedule(plain, to_source), _bridge.shift(plain, to_source))
