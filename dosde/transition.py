"""Laws of x_t given x_s: of the forward SDE (5), and of the paper's chain (Eq. 3)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .check import describe, require
from .recipe import ByValue

if TYPE_CHECKING:
    from .process import Marginal


@dataclass(frozen=True, eq=False, repr=False)
class Transition(ByValue):
    """The law of x_t given two or three of (x_s, x0, x_hat0): mean = sum of coefficient times tensor, and a std."""

    on_x: Tensor
    on_x0: Tensor
    on_x_hat0: Tensor
    std: Tensor


def of_sde(m: "Marginal", n: "Marginal") -> Transition:
    """x_t | x_s, x_hat0 under the forward SDE, from the marginals of s and t."""
    require(bool((m.a > 0).all()), "s", m.t, "the SDE cannot be followed from where a = 0")
    k = n.a / m.a
    return Transition(k, torch.zeros_like(k), n.b - k * m.b, _root_of_difference(n.sigma, k * m.sigma))


def of_chain(m: "Marginal", n: "Marginal") -> Transition:
    """x_t | x_s, x0, x_hat0 in the chain, from the marginals of s and t."""
    require(bool((m.alpha > 0).all()), "s", m.t, "the chain cannot be followed from where alpha = 0")
    k = n.alpha / m.alpha
    rises = bool((n.sigma >= k * m.sigma * (1 - 1e-9)).all())
    needed = "sigma/alpha falls between them, and the chain of Eq. 3 needs it to rise"
    require(rises, "s, t", (m.t, n.t), needed, f"{describe(m.t)}, {describe(n.t)}")
    return Transition(k, n.a - k * m.a, n.b - k * m.b, _root_of_difference(n.sigma, k * m.sigma))


def _root_of_difference(p: Tensor, q: Tensor) -> Tensor:
    return torch.sqrt(((p - q) * (p + q)).clamp(min=0))
