"""Gaussian targets x0 | x_hat0 ~ N(mean, C): closed-form x_theta, and the exact law of what a solver makes of them.

All is done mode by mode in an orthonormal basis in which C is diagonal: the identity, eigenvectors, or Fourier and cosine
modes for stationary pictures. With x = a x0 + b x_hat0 + sigma eps and C = diag(c),

    x_theta = mean + a c / (a^2 c + sigma^2) (x - a mean - b x_hat0)

which is affine in x. So is every step, and the output of a plan is Gaussian: running the solver once on the stack
[mean; response to each noise draw] gives its mean and its variance in each mode exactly, with no Monte Carlo.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import dosde
from dosde.check import Refused
from dosde.recipe import ByValue
from dosde.solve import Model
from dosde.step import Coefficient


@dataclass(frozen=True, eq=False, repr=False)
class Basis(ByValue):
    """An orthogonal map of the last `dims` dimensions of x to modes, and its inverse.

    Args:
        modes: pixels -> modes.
        pixels: modes -> pixels.
        dims: how many dimensions, from the last, it maps.
    """

    modes: Callable[[Tensor], Tensor]
    pixels: Callable[[Tensor], Tensor]
    dims: int

    def check(self, process: dosde.Process) -> None:
        """Refuses an eta that is a field over the dimensions of the map: modes would mix its elements."""
        if self.dims and any(n != 1 for n in process.field_shape[-self.dims :]):
            shown = f"eta is a field of shape {process.field_shape}, which varies over the modes' dimensions"
            raise Refused("process", process, "one eta for all modes is needed", shown)


@dataclass(frozen=True, eq=False, repr=False)
class Gaussian(ByValue):
    """N(mean, C), C = diag(variance) in the basis.

    Args:
        mean: in modes; it broadcasts against them.
        variance: the same.
        basis: from pixels to modes.
    """

    mean: Tensor
    variance: Tensor
    basis: Basis

    def model(self, process: dosde.Process) -> Model:
        """(x, x_hat0, t) -> E[x0 | x_t = x], exact."""

        self.basis.check(process)

        def x_theta(x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
            m = process(t)
            a, b, sigma = (v.to(x) for v in (m.a, m.b, m.sigma))
            mean, variance = self.mean.to(x.device), self.variance.to(x.device)
            gain = a * variance / (a**2 * variance + sigma**2)
            modes = mean + gain * (self.basis.modes(x - b * x_hat0) - a * mean)
            return self.basis.pixels(modes).to(x.dtype)

        return x_theta

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Draws of x0, in pixels."""
        z = torch.randn(shape, generator=generator, dtype=self.variance.dtype, device=self.variance.device)
        return self.basis.pixels(self.mean + self.variance.sqrt() * self.basis.modes(z))

    def at(self, process: dosde.Process, t: float, x_hat0: Tensor) -> "Gaussian":
        """The law of x_t: N(a mean + b x_hat0, a^2 C + sigma^2)."""
        m = process(t)
        return Gaussian(m.a * self.mean + m.b * self.basis.modes(x_hat0), m.a**2 * self.variance + m.sigma**2, self.basis)

    def law(self, process: dosde.Process, x_hat0: Tensor, **how: Any) -> "Gaussian":
        """The law of `dosde.solve(self.model(process), x_hat0, process=process, **how)`, exact.

        Args:
            process: see `dosde.solve`.
            x_hat0: one sample, float64, without a batch dimension.
            how: steps, order, method, grid.
        """
        self.basis.check(process)
        source = self.basis.modes(x_hat0).to(torch.float64)
        steps = how.get("steps", 5)
        draws = iter(range(1, steps + 2))

        def rows(first: Tensor) -> Tensor:
            """A stack whose row 0 is the mean's and whose other rows, one a draw, are zero."""
            return torch.cat([first[None], first.new_zeros(steps + 1, *first.shape)])

        def x_theta(x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
            m = process(t)
            gain = m.a * self.variance / (m.a**2 * self.variance + m.sigma**2)
            offset = self.mean - gain * (m.a * self.mean + m.b * source)
            return gain * x + rows(offset.expand(source.shape))

        def unit(u: Coefficient, u_next: Coefficient, like: Tensor) -> Tensor:
            z = torch.zeros_like(like)
            z[next(draws)] = 1
            return z

        stack = dosde.solve(x_theta, rows(source), process=process, noise=unit, **how)
        return Gaussian(stack[0], (stack[1:] ** 2).sum(0), self.basis)


def diagonal(mean: Tensor, variance: Tensor) -> Gaussian:
    """Independent elements: mean and variance broadcast against x."""
    return Gaussian(mean, _checked(variance), Basis(_same, _same, 0))


def full(mean: Tensor, covariance: Tensor) -> Gaussian:
    """A full covariance (d, d) over the last dimension of x; mean (..., d)."""
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or not covariance.allclose(covariance.mT):
        raise Refused("covariance", covariance, "a symmetric (d, d) matrix is needed", f"shape {tuple(covariance.shape)}")
    variance, vectors = torch.linalg.eigh(covariance)
    least = float(variance.min())
    if least < -100 * torch.finfo(variance.dtype).eps * float(variance.abs().max()):
        raise Refused("covariance", covariance, "none may be negative", f"eigenvalue {least:g}")
    basis = Basis(partial(_times, vectors), partial(_times, vectors.mT), 1)
    return Gaussian(mean @ vectors, variance.clamp(min=0), basis)


def fourier(mean: Tensor, spectrum: Tensor) -> Gaussian:
    """A stationary periodic picture: mean (..., H, W) in pixels, spectrum (..., H, W) the variance at each `fft2` frequency.

    The spectrum must be that of a real field, symmetric under f -> -f. Modes are those of the Hartley transform
    (real plus imaginary part of the orthonormal FFT), which is orthogonal and its own inverse.
    """
    mirrored = spectrum.flip(-2, -1).roll((1, 1), (-2, -1))
    if not spectrum.allclose(mirrored):
        shown = "not symmetric under f -> -f, so not that of a real picture"
        raise Refused("spectrum", spectrum, "a symmetric one is needed", shown)
    return Gaussian(hartley(mean), _checked(spectrum), Basis(hartley, hartley, 2))


def cosine(mean: Tensor, spectrum: Tensor) -> Gaussian:
    """A stationary picture with mirrored borders: mean (..., H, W) in pixels, spectrum (..., H, W) the variance by DCT mode."""
    return Gaussian(dct2(mean), _checked(spectrum), Basis(dct2, idct2, 2))


# The maps of bases are functions with names, not closures, so that a Gaussian can be copied and pickled.


def _same(x: Tensor) -> Tensor:
    return x


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    return x @ matrix.to(x)


def hartley(x: Tensor) -> Tensor:
    """The orthonormal Hartley transform of the last two dimensions, which is its own inverse."""
    modes = torch.fft.fft2(x, norm="ortho")
    real: Tensor = modes.real + modes.imag
    return real


def dct2(x: Tensor) -> Tensor:
    """The orthonormal DCT-II of the last two dimensions."""
    return _dct(_dct(x).mT).mT


def idct2(modes: Tensor) -> Tensor:
    """The inverse of dct2."""
    return _idct(_idct(modes).mT).mT


def _dct(x: Tensor) -> Tensor:
    """The DCT of the last dimension, by an FFT of the same length (Makhoul 1980)."""
    n = x.shape[-1]
    reordered = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    modes: Tensor = (torch.fft.fft(reordered) * _twiddle(n, x)).real
    return modes * _norms(n, x)


def _idct(modes: Tensor) -> Tensor:
    n = modes.shape[-1]
    scaled = modes / _norms(n, modes)
    mirrored = torch.cat([scaled.new_zeros(*scaled.shape[:-1], 1), scaled[..., 1:].flip(-1)], -1)
    reordered = torch.fft.ifft(torch.complex(scaled, -mirrored) / _twiddle(n, modes)).real
    x = torch.empty_like(modes)
    x[..., ::2], x[..., 1::2] = reordered[..., : (n + 1) // 2], reordered[..., (n + 1) // 2 :].flip(-1)
    return x


def _twiddle(n: int, like: Tensor) -> Tensor:
    angle = -torch.pi * torch.arange(n, dtype=like.dtype, device=like.device) / (2 * n)
    return torch.polar(torch.ones_like(angle), angle)


def _norms(n: int, like: Tensor) -> Tensor:
    norms = torch.full((n,), (2 / n) ** 0.5, dtype=like.dtype, device=like.device)
    norms[0] = (1 / n) ** 0.5
    return norms


def _checked(variance: Tensor) -> Tensor:
    if not (variance.isfinite() & (variance >= 0)).all():
        raise Refused("variance", variance, "variances >= 0 are needed", "values that are negative or not finite")
    return variance
