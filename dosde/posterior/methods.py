"""The methods: a denoiser of the prior, a measurement = A x0 + s n and s make a denoiser of the posterior.

With x0 = D(y, sigma), J = dD/dy and the residual r = measurement - A x0, all compute

    x0 + V A^T (s^2 + A V A^T)^-1 r

The inverse is by conjugate gradients, a fixed number of them, so that nothing waits for the device. At sigma = 0 all are x0.
A posterior has the attribute `sigma_max` of its denoiser. If there is none, the methods with J have 1000, since they multiply
its rounding errors by sigma^2: that is large for data of std 1, so give a denoiser of larger data its `sigma_max`.

By Tweedie's second formula sigma^2 J is the covariance of x0 given y, and J is symmetric, for an exact denoiser.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dosde import check
from dosde.check import Refused, RefusedType, require
from dosde.interop.denoiser import called
from dosde.recipe import maker

from .covariance import Covariance
from .operators import Map, Operator, Physics, as_operator

Denoiser = Callable[..., Any]
"""(y, sigma, **kwargs) -> x0, sigma of shape (batch,)."""
LARGEST = 1e3  # sigma for methods with J if the denoiser names no `sigma_max`: rounding errors of J grow with sigma^2
Linear = Operator | tuple[Map, Map] | Physics


@maker
def diffpir(
    denoiser: Denoiser, measurement: Tensor, operator: Linear, noise: float, weight: float = 1.0, iterations: int = 20
) -> Denoiser:
    """The proximal step of DiffPIR (Zhu et al. 2023, arXiv 2305.08995).

        argmin_x |A x - measurement|^2 / s^2 + weight |x - D(y, sigma)|^2 / sigma^2

    V = sigma^2 / weight: the prior is not asked for the covariance of x0 given y, and V is too large where sigma is above its
    std. The mean it finds is good; the law is too wide or too narrow by what weight says. Cost: a network call, no VJP.

    Args:
        denoiser: (y, sigma, **kwargs) -> x0 of the prior, sigma of shape (batch,).
        measurement: A x0 + s n; of the batch, or of a batch of 1 for all samples.
        operator: A with its adjoint: an `Operator`, a pair of functions (A, A^T), or a linear physics of deepinv.
        noise: s, the std of n's factor, positive.
        weight: of the prior, positive.
        iterations: of conjugate gradients; each applies A and A^T.
    """
    prior = _prior(denoiser, measurement, operator, noise, iterations)
    require(0 < weight < math.inf, "weight", weight, "a positive number is needed")

    def posterior(y: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        x0, r, s2 = prior.estimate(y, sigma, kwargs)
        unit = weight + s2  # V and s^2 are both in this unit, since sigma may be very large
        ratio = s2 / unit
        return x0 + prior.solved(lambda v: ratio * v, r, weight / unit)[1]

    return prior.limited(posterior)


@maker
def pigdm(
    denoiser: Denoiser, measurement: Tensor, operator: Linear, noise: float, std: float = 1.0, iterations: int = 20
) -> Denoiser:
    """PiGDM (Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems").

        x0 + sigma^2 J^T A^T (s^2 + r^2 A A^T)^-1 (measurement - A x0),        r^2 = sigma^2 c^2 / (sigma^2 + c^2)

    The inverse takes x0 given y as white, with the variance it has for white Gaussian data of std c. The paper has c = 1.
    Cost: a network call and a VJP.

    Args:
        denoiser: as in `diffpir`.
        measurement: as in `diffpir`.
        operator: as in `diffpir`.
        noise: as in `diffpir`.
        std: c, that of the data, or of their strongest mode: where the data vary more than c, the guidance overshoots.
        iterations: as in `diffpir`.
    """
    prior = _prior(denoiser, measurement, operator, noise, iterations)
    require(0 < std < math.inf, "std", std, "a positive number is needed")

    def posterior(y: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        with prior.differentiable(y, sigma, kwargs) as (x0, r, s2, pulled):
            white = std**2 / (1 + std**2 / s2)
            u, _ = prior.solved(lambda v: white * v, r)
            return x0 + pulled(prior.operator.adjoint(u))

    return prior.limited(posterior, LARGEST)


@maker
def mmps(denoiser: Denoiser, measurement: Tensor, operator: Linear, noise: float, iterations: int = 8) -> Denoiser:
    """Moment matching posterior sampling (Rozet et al. 2024, arXiv 2405.13712).

        x0 + V A^T (s^2 + A V A^T)^-1 (measurement - A x0),        V = sigma^2 J^T

    Right for every Gaussian prior, if there are as many iterations as measured numbers (or as V and A need: often far fewer).
    Cost: a network call and `iterations` VJPs.

    Args:
        denoiser: as in `diffpir`. Gradients must pass through it.
        measurement: as in `diffpir`.
        operator: as in `diffpir`.
        noise: as in `diffpir`.
        iterations: of conjugate gradients. Each is a VJP, and applies A and A^T.
    """
    prior = _prior(denoiser, measurement, operator, noise, iterations)

    def posterior(y: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        with prior.differentiable(y, sigma, kwargs) as (x0, r, _, pulled):
            return x0 + prior.solved(pulled, r)[1]

    return prior.limited(posterior, LARGEST)


@maker
def jacobian_free(
    denoiser: Denoiser, measurement: Tensor, operator: Linear, noise: float, covariance: Covariance, iterations: int = 20
) -> Denoiser:
    """The covariance of the prior instead of the Jacobian of its denoiser, as azula's JFPS has it.

        x0 + V A^T (s^2 + A V A^T)^-1 (measurement - A x0),        V = (C^-1 + sigma^-2)^-1

    Right for Gaussian priors of covariance C. A spectrum of pictures, measured on some, serves as C. Cost: a network call, no
    VJP.

    Args:
        denoiser: as in `diffpir`.
        measurement: as in `diffpir`.
        operator: as in `diffpir`.
        noise: as in `diffpir`.
        covariance: C, a `Covariance`: of variances, in a basis if need be, or `full(matrix)`.
        iterations: as in `diffpir`.
    """
    prior = _prior(denoiser, measurement, operator, noise, iterations)

    def posterior(y: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        x0, r, s2 = prior.estimate(y, sigma, kwargs)
        return x0 + prior.solved(lambda v: covariance.given(v, s2), r)[1]

    return prior.limited(posterior)


@maker
def dps(denoiser: Denoiser, measurement: Tensor, operator: Linear, noise: float, weight: float = 1.0) -> Denoiser:
    """Guidance by the gradient of the residual, after DPS (Chung et al. 2023, arXiv 2209.14687, Algorithm 1).

        x0 + weight sigma^2 J^T A^T r / max(s^2, mean r^2),        r = measurement - A x0

    DPS steps along the gradient of |r|^2 by weight/|r| after each of its 1,000 steps of DDPM, which belongs to that sampler.
    For a denoiser it is the gradient of the logarithm of N(measurement; A x0, s^2), where s^2 is at least the mean square of
    r. It knows no variance of x0 given y: its law is right for no prior, and in few calls it overshoots. It is here for
    comparison. Cost: a network call and a VJP.

    Args:
        denoiser: as in `mmps`.
        measurement: as in `diffpir`.
        operator: as in `diffpir`.
        noise: as in `diffpir`.
        weight: of the guidance, positive.
    """
    prior = _prior(denoiser, measurement, operator, noise, 1)
    require(0 < weight < math.inf, "weight", weight, "a positive number is needed")

    def posterior(y: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        with prior.differentiable(y, sigma, kwargs) as (x0, r, _, pulled):
            square = r.square().flatten(1).mean(1).clamp(min=prior.noise**2).reshape(-1, *[1] * (r.ndim - 1))
            return x0 + weight * pulled(prior.operator.adjoint(r / square))

    return prior.limited(posterior, LARGEST)


# -- What they share --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Prior:
    """A denoiser and a measurement. looked: the shapes of x0 at which the adjoint was looked at."""

    denoiser: Denoiser
    measurement: Tensor
    operator: Operator
    noise: float
    iterations: int
    looked: set[tuple[int, ...]] = field(default_factory=set)

    def limited(self, posterior: Denoiser, most: float | None = None) -> Denoiser:
        """The posterior with the largest sigma of the prior, or `most` if that names none."""
        most = getattr(self.denoiser, "sigma_max", most)
        if most is not None:
            posterior.sigma_max = most  # type: ignore[attr-defined]
        return posterior

    def estimate(self, y: Tensor, sigma: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """The prior's x0, the residual, and sigma^2 of each sample."""
        s2 = _squared(sigma, y)
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        x0 = called(self.denoiser, y, sigma, kwargs).to(y.dtype)
        return x0, self.residual(x0), s2.to(y.dtype)

    @contextlib.contextmanager
    def differentiable(self, y: Tensor, sigma: Tensor, kwargs: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor, Tensor, Map]]:
        """The same, and v -> sigma^2 J^T v."""
        s2 = _squared(sigma, y)
        with torch.inference_mode(False):
            dtype = torch.promote_types(y.dtype, torch.float32)
            y = y.detach().to(dtype, copy=True).requires_grad_()
            with torch.enable_grad():
                tracked = called(self.denoiser, y, sigma.clone(), kwargs).to(dtype)
            if not tracked.requires_grad:
                needed = "one that gradients pass through is needed (not under torch.no_grad, nothing detached)"
                raise Refused("denoiser", self.denoiser, needed)
            x0, s2 = tracked.detach(), s2.to(dtype)

            def pulled(v: Tensor) -> Tensor:
                return s2 * torch.autograd.grad(tracked, y, v, retain_graph=True)[0]

            yield x0, self.residual(x0), s2, pulled

    def residual(self, x0: Tensor) -> Tensor:
        """What was measured less A x0."""
        with torch.no_grad():
            try:
                seen = self.operator(x0)
            except Refused:
                raise
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                shown = f"fails for x0 of shape {tuple(x0.shape)} ({str(error).splitlines()[0][:150]})"
                raise Refused("operator", self.operator, "a linear map of x0 is needed", shown) from None
            if not isinstance(seen, Tensor):
                raise RefusedType("operator", seen, "a tensor is needed", f"returned {check.form(seen)}")
            ok = self.measurement.shape in (seen.shape, (1, *seen.shape[1:]))
            needed = f"{tuple(seen.shape)}, that of A x0, is needed"
            require(ok, "measurement", self.measurement, needed, f"shape {tuple(self.measurement.shape)}")
            if tuple(x0.shape) not in self.looked:
                self.look(x0, seen)
                self.looked.add(tuple(x0.shape))
            return self.measurement.to(seen) - seen

    def look(self, x0: Tensor, seen: Tensor) -> None:
        """Refuses an adjoint for which <A x0, A x0> is not <x0, A^T A x0>."""
        back = self.operator.adjoint(seen)
        shape = tuple(back.shape) if isinstance(back, Tensor) else ()
        needed = f"A^T A x0 must have the shape of x0, {tuple(x0.shape)}"
        require(shape == tuple(x0.shape), "operator", self.operator, needed, f"returned {check.form(back)}")
        left, right = float(seen.double().square().sum()), float((x0.double() * back.double()).sum())
        needed = "an adjoint, <A x, v> = <x, A^T v>, is needed, and no pseudo-inverse"
        ok = abs(left - right) <= 1e-3 * max(abs(left), abs(right)) or not math.isfinite(left)
        require(ok, "operator", self.operator, needed, f"<A x, A x> = {left:g}, <x, A^T A x> = {right:g}")

    def solved(self, covariance: Map, r: Tensor, unit: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """u = (unit s^2 + A V A^T)^-1 r by conjugate gradients, and V A^T u; covariance: v -> V v, in the same unit."""

        def dot(v: Tensor, w: Tensor) -> Tensor:
            return (v * w).flatten(1).sum(1).reshape(-1, *[1] * (v.ndim - 1))

        def beside(c: Tensor, v: Tensor) -> Tensor:
            return c.reshape(-1, *[1] * (v.ndim - 1))

        u, p, rr = torch.zeros_like(r), r, dot(r, r)
        least = rr * torch.finfo(r.dtype).eps ** 2
        lifted: Tensor | None = None
        for _ in range(self.iterations):
            q = covariance(self.operator.adjoint(p))
            mapped = self._scaled(unit, p) + self.operator(q)
            curved = dot(p, mapped)
            # A sample that has converged stays, and so does one whose J^T A^T is not positive, which no exact J is.
            going = (curved > 0) & (rr > least)
            step = torch.where(going, rr / torch.where(going, curved, 1.0), 0.0)
            moved = beside(step, q) * q
            lifted = moved if lifted is None else lifted + moved
            u, r = u + step * p, r - step * mapped
            last, rr = rr, dot(r, r)
            p = r + torch.where(going, rr / torch.where(going, last, 1.0), 0.0) * p
        assert lifted is not None
        return u, lifted

    def _scaled(self, unit: float | Tensor, p: Tensor) -> Tensor:
        c = unit.reshape(-1, *[1] * (p.ndim - 1)) if isinstance(unit, Tensor) else unit
        return self.noise**2 * c * p


def _squared(sigma: Tensor, y: Tensor) -> Tensor:
    """sigma^2 of each sample, to multiply y with."""
    if not isinstance(y, Tensor) or not y.is_floating_point() or y.ndim < 1:
        raise RefusedType("y", y, "a floating tensor (batch, ...) is needed", check.form(y))
    if not isinstance(sigma, Tensor) or sigma.shape != (len(y),):
        shown = f"shape {tuple(sigma.shape)}" if isinstance(sigma, Tensor) else None
        raise RefusedType("sigma", sigma, f"a tensor of shape ({len(y)},), one sigma a sample, is needed", shown)
    return sigma.reshape(-1, *[1] * (y.ndim - 1)).square()


def _prior(denoiser: Denoiser, measurement: Tensor, operator: Linear, noise: float, iterations: int) -> _Prior:
    ok = measurement.is_floating_point() and measurement.ndim >= 1 and measurement.numel() > 0
    require(ok, "measurement", measurement, "a floating tensor (batch, ...) is needed", check.form(measurement))
    finite = bool(measurement.isfinite().all())
    require(finite, "measurement", measurement, "finite values are needed", "holds NaN or infinity")
    require(0 < noise < math.inf, "noise", noise, "a positive std is needed (that of rounding to 8 bits of [-1, 1] is 0.0023)")
    return _Prior(denoiser, measurement, as_operator(operator), float(noise), check.count("iterations", iterations))
