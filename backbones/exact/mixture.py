"""Gaussian mixtures p(x0) = sum_k w_k N(mean_k, C_k): closed-form x_theta, and conditioning on a linear observation.

With x = a x0 + b x_hat0 + sigma eps, component k gives x the covariance a^2 C_k + sigma^2, so that

    x_theta = sum_k p_k(x) [mean_k + a C_k (a^2 C_k + sigma^2)^-1 d_k],   d_k = x - b x_hat0 - a mean_k,
    p_k(x) proportional to w_k N(d_k; 0, a^2 C_k + sigma^2)

finite at a = 0 and at sigma = 0 (if C_k is regular). Given y = A x0 + noise, a mixture stays one: that is the posterior of
super-resolution when A downsamples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import dosde
from dosde.check import Refused
from dosde.recipe import ByValue
from dosde.solve import Model


@dataclass(frozen=True, eq=False, repr=False)
class Mixture(ByValue):
    """sum_k weights_k N(means_k, covariances_k).

    Args:
        weights: (K,) or (batch, K), >= 0 with the sum 1.
        means: (K, d) or (batch, K, d).
        covariances: (K, d, d).
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        k, d = self.covariances.shape[0], self.covariances.shape[-1]
        if self.covariances.shape != (k, d, d) or self.means.shape[-2:] != (k, d) or self.weights.shape[-1] != k:
            raise Refused(
                "weights, means, covariances",
                (self.weights, self.means, self.covariances),
                "(K,), (K, d), (K, d, d) are needed, the first two with a batch or without",
                f"shapes {tuple(self.weights.shape)}, {tuple(self.means.shape)}, {tuple(self.covariances.shape)}",
            )
        if not (self.weights >= 0).all() or not torch.allclose(self.weights.sum(-1), self.weights.new_ones(())):
            raise Refused("weights", self.weights, "they must be >= 0 and sum to 1", str(self.weights.tolist()))

    def model(self, process: dosde.Process) -> Model:
        """(x, x_hat0, t) -> E[x0 | x_t = x] for x of shape (batch, d), exact."""
        if process.field_shape and process.field_shape[-1] != 1:
            shown = f"eta is a field of shape {process.field_shape}, which varies over the data's dimension"
            raise Refused("process", process, "one eta for all dimensions is needed", shown)
        mean_given = self.mean_given()

        def x_theta(x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
            m = process(t)
            a, b, sigma = (v.to(x) for v in (m.a, m.b, m.sigma))
            return mean_given(x - b * x_hat0, a, sigma)

        return x_theta

    def mean_given(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """(d, a, sigma) -> E[x0 | a x0 + sigma eps = d] for d of shape (batch, d), exact."""
        values, vectors = torch.linalg.eigh(self.covariances)
        values = values.clamp(min=0)
        joined = vectors.mT.flatten(0, 1)  # (K d, d): all bases under each other, for one product
        shape = values.shape

        def mean(d: Tensor, a: Tensor, sigma: Tensor) -> Tensor:
            c, basis, means = values.to(d), joined.to(d), self.means.to(d)
            variance = a**2 * c + sigma**2
            modes = ((d @ basis.mT).unflatten(-1, shape)) - a * torch.einsum("...kd,ked->...ke", means, basis.view(*shape, -1))
            log_p = self.weights.to(d).log() - (variance.log() + modes**2 / variance).sum(-1) / 2
            p = log_p.softmax(-1)[..., None]
            result: Tensor = (p * means).sum(-2) + (p * (a * c / variance) * modes).flatten(-2) @ basis
            return result

        return mean

    def given(self, y: Tensor, A: Tensor, noise: float) -> "Mixture":
        """The mixture of x0 | y, y = A x0 + noise z, for a batch of y (batch, m); A (m, d), noise > 0 a std."""
        if not noise > 0:
            raise Refused("noise", noise, "a positive std is needed")
        if A.ndim != 2 or A.shape[1] != self.means.shape[-1] or y.shape[-1] != A.shape[0]:
            raise Refused(
                "A, y",
                (A, y),
                f"(m, {self.means.shape[-1]}), (batch, m) are needed",
                f"shapes {tuple(A.shape)}, {tuple(y.shape)}",
            )
        cross = self.covariances @ A.mT
        seen = A @ cross + noise**2 * torch.eye(len(A), dtype=A.dtype)
        root = torch.linalg.cholesky(seen)
        residual = y[:, None] - self.means @ A.mT
        gain = torch.cholesky_solve(cross.mT, root).mT
        covariances = self.covariances - gain @ cross.mT
        scaled = torch.linalg.solve_triangular(root, residual[..., None], upper=False)[..., 0]
        log_p = self.weights.log() - (scaled**2).sum(-1) / 2 - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        means = self.means + torch.einsum("kij,bkj->bki", gain, residual)
        return Mixture(log_p.softmax(-1), means, (covariances + covariances.mT) / 2)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of x0, (count, d): of one mixture, or one of each in the batch (count = batch)."""
        weights = self.weights.expand(count, -1)
        k = torch.multinomial(weights, 1, generator=generator)[:, 0]
        means = self.means.expand(count, *self.means.shape[-2:])[torch.arange(count), k]
        values, vectors = torch.linalg.eigh(self.covariances)
        z = torch.randn(means.shape, generator=generator, dtype=means.dtype)
        return means + torch.einsum("bij,bj->bi", vectors[k], values[k].clamp(min=0).sqrt() * z)
