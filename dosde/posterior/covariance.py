"""The covariance C of a prior, diagonal in some basis, and that of x0 given y = x0 + sigma eps: (C^-1 + sigma^-2)^-1."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dosde import check
from dosde.check import require
from dosde.recipe import ByValue


def _same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True, eq=False, repr=False)
class Covariance(ByValue):
    """C = pixels diag(variance) modes, with an orthonormal map to modes and its inverse: Fourier, cosine or eigenvectors.

    Args:
        variance: of each mode, a number or a tensor that broadcasts against modes; positive.
        modes: pixels -> modes. Default: none, the elements of x are independent.
        pixels: modes -> pixels.
    """

    variance: Tensor | float
    modes: Callable[[Tensor], Tensor] = _same
    pixels: Callable[[Tensor], Tensor] = _same

    def __post_init__(self) -> None:
        variance = check.values("variance", self.variance, "a positive number, or a tensor of them,").detach().clone()
        ok = variance.numel() > 0 and bool(((variance > 0) & variance.isfinite()).all())
        require(ok, "variance", self.variance, "positive finite values are needed")
        object.__setattr__(self, "variance", variance)
        for name in ("modes", "pixels"):
            value = getattr(self, name)
            check.function(name, value, "a function of a tensor is needed", check.form(value))

    def given(self, v: Tensor, sigma2: Tensor) -> Tensor:
        """The product (C^-1 + 1/sigma^2)^-1 v."""
        variance = torch.as_tensor(self.variance, device=v.device).to(v)
        return self.pixels(variance / (1 + variance / sigma2) * self.modes(v))


@check.typed
def full(matrix: Tensor) -> Covariance:
    """A covariance matrix (d, d), positive definite, over the last dimension of x.

    >>> full(torch.eye(3)).given(torch.ones(1, 3), torch.tensor(1.0))
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    values = check.values("matrix", matrix, "a symmetric positive definite matrix (d, d)")
    square = values.ndim == 2 and values.shape[0] == values.shape[1] > 0 and bool(values.isfinite().all())
    ok = square and torch.allclose(values, values.mT)
    needed = "a symmetric positive definite matrix (d, d) is needed"
    require(ok, "matrix", matrix, needed, f"shape {tuple(values.shape)}")
    variance, vectors = torch.linalg.eigh(values)
    require(bool(variance[0] > 0), "matrix", matrix, needed, f"its least eigenvalue is {float(variance[0]):g}")
    return Covariance(variance, functools.partial(_product, vectors.mT), functools.partial(_product, vectors))


def _product(rows: Tensor, x: Tensor) -> Tensor:
    return x @ rows.to(x).mT
