"""Linear measurements A as pairs of functions (A, A^T), on batches x of shape (batch, ...), with

    <A x, v> = <x, A^T v>    for all x and v

A^T is the adjoint and not a pseudo-inverse. `methods` looks at this equation once, on the first x0 that it sees.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dosde import check
from dosde.check import Refused, RefusedType, require
from dosde.recipe import ByValue

Map = Callable[[Tensor], Tensor]
_NEEDED = "an Operator, a pair of functions (A, A^T) or posterior.linear(A, shape) is needed"


@dataclass(frozen=True, eq=False, repr=False)
class Operator(ByValue):
    """A linear map of batches and its adjoint. Calling it applies A; B @ A applies A first.

    Args:
        forward: x -> A x.
        adjoint: v -> A^T v, in the shape of x.
    """

    forward: Map
    adjoint: Map

    def __post_init__(self) -> None:
        for name in ("forward", "adjoint"):
            value = getattr(self, name)
            check.function(name, value, "a function of a tensor is needed", check.form(value))

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def __matmul__(self, first: "Operator") -> "Operator":
        if not isinstance(first, Operator):
            return NotImplemented
        both = functools.partial(_after, self.forward, first.forward)
        return Operator(both, functools.partial(_after, first.adjoint, self.adjoint))


class Physics(Protocol):
    """A linear measurement of deepinv."""

    def A(self, x: Tensor) -> Tensor: ...
    def A_adjoint(self, y: Tensor) -> Tensor: ...


def as_operator(value: Operator | tuple[Map, Map] | Physics) -> Operator:
    """An `Operator`, a pair (A, A^T), or an object with .A and .A_adjoint as those of deepinv.

    Raises:
        TypeError: for anything else, an A without an adjoint too.
    """
    if isinstance(value, Operator):
        return value
    if isinstance(value, tuple | list):
        if len(value) != 2 or not all(callable(part) and not isinstance(part, type) for part in value):
            raise RefusedType("operator", value, _NEEDED)
        return Operator(*value)
    forward, adjoint = getattr(value, "A", None), getattr(value, "A_adjoint", None)
    if callable(forward) and callable(adjoint):
        return Operator(forward, adjoint)
    shown = check.form(value) if callable(forward) or not callable(value) else check.describe(value)
    if callable(forward) or (callable(value) and not isinstance(value, type)):
        shown += ", without an adjoint"
    raise RefusedType("operator", value, _NEEDED, shown)


# -- Ready-made -------------------------------------------------------------------------------------------------------------


@check.typed
def linear(function: Map, shape: Sequence[int]) -> Operator:
    """A linear function as an operator: its adjoint by automatic differentiation.

    Args:
        function: x -> A x, of torch operations; it must be linear.
        shape: the shape of one x, without the batch.

    >>> half = linear(lambda x: x[:, ::2], (4,))
    >>> half.adjoint(torch.ones(1, 2))
    tensor([[1., 0., 1., 0.]])
    """
    return Operator(function, functools.partial(_pulled, function, _sizes("shape", shape), 1))


@check.typed
def downsampling(size: Sequence[int], to: Sequence[int]) -> Operator:
    """Antialiased bicubic interpolation (Keys, a = -1/2) of pictures (batch, channels, *size) to smaller ones (..., *to).

    It is how this package and Pillow make low-resolution pictures, with its exact adjoint.

    >>> A = downsampling((64, 64), (16, 16))
    >>> A(torch.ones(1, 3, 64, 64)).shape, A.adjoint(torch.ones(1, 3, 16, 16)).shape
    (torch.Size([1, 3, 16, 16]), torch.Size([1, 3, 64, 64]))
    """
    size, to = _sizes("size", size, 2), _sizes("to", to, 2)
    smaller = to[0] <= size[0] and to[1] <= size[1]
    require(smaller, "to", to, f"a (height, width) of at most size = {size} is needed")
    function = functools.partial(_resized, size, to)
    return Operator(function, functools.partial(_pulled, function, size, 2))


@check.typed
def blur(kernel: Tensor, borders: str = "reflect") -> Operator:
    """The convolution of each channel of pictures (batch, channels, height, width) with a kernel.

    Args:
        kernel: 2-D, of odd height and width.
        borders: "reflect" or "circular". The picture must be larger than half the kernel.

    >>> blur(torch.full((3, 3), 1 / 9), "circular")(torch.ones(1, 3, 8, 8)).shape
    torch.Size([1, 3, 8, 8])
    """
    check.one_of("borders", borders, ("reflect", "circular"))
    kernel = _numbers("kernel", kernel)
    odd = kernel.ndim == 2 and all(n % 2 for n in kernel.shape)
    require(odd, "kernel", kernel, "a 2-D tensor of odd height and width is needed", f"shape {tuple(kernel.shape)}")
    function = functools.partial(_convolved, kernel.flip(0, 1), borders)
    return Operator(function, functools.partial(_pulled, function, (), 0))


@check.typed
def mask(seen: Tensor) -> Operator:
    """What is seen of x: seen * x, with 1 where an element was measured and 0 elsewhere. The rest of a measurement is unused.

    Args:
        seen: it broadcasts against x.
    """
    times = functools.partial(_times, _numbers("seen", seen))
    return Operator(times, times)


@check.typed
def grey(weights: Sequence[float] = (0.299, 0.587, 0.114)) -> Operator:
    """The weighted sum of the channels of pictures (batch, channels, ...): the luminance of RGB by default."""
    try:
        w = _numbers("weights", torch.as_tensor(weights, dtype=torch.float64, device="cpu"))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise RefusedType("weights", weights, "one number for each channel is needed") from None
    require(w.ndim == 1, "weights", weights, "one number for each channel is needed")
    return Operator(functools.partial(_grey, w), functools.partial(_spread, w))


@check.typed
def matrix(rows: Tensor) -> Operator:
    """A matrix (m, d) on the last dimension of x, (batch, ..., d) -> (batch, ..., m).

    >>> matrix(torch.tensor([[1.0, 2.0]]))(torch.ones(1, 2))
    tensor([[3.]])
    """
    rows = _numbers("rows", rows)
    require(rows.ndim == 2, "rows", rows, "a matrix (m, d) is needed", f"shape {tuple(rows.shape)}")
    return Operator(functools.partial(_product, rows), functools.partial(_product, rows.mT))


# The maps are functions with names, not closures, so that an operator can be compared, copied and pickled.


def _after(second: Map, first: Map, x: Tensor) -> Tensor:
    return second(first(x))


def _pulled(function: Map, size: tuple[int, ...], trailing: int, v: Tensor) -> Tensor:
    """The adjoint of a linear function at v. Of the shape of x, `size` replaces the last `trailing` dimensions of v's."""
    shape = (len(v), *size) if trailing == 1 else (*v.shape[: v.ndim - trailing], *size)
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros(shape, dtype=v.dtype, device=v.device, requires_grad=True)
        return torch.autograd.grad(function(x), x, v.detach().clone())[0]


def _resized(size: tuple[int, int], to: tuple[int, int], x: Tensor) -> Tensor:
    if x.ndim != 4 or tuple(x.shape[-2:]) != size:
        raise Refused("size", size, f"{tuple(x.shape[-2:])}, that of x0 of shape {tuple(x.shape)}, is needed")
    return F.interpolate(x, to, mode="bicubic", antialias=True, align_corners=False)


def _convolved(kernel: Tensor, borders: str, x: Tensor) -> Tensor:
    high, wide = kernel.shape[0] // 2, kernel.shape[1] // 2
    planes = F.pad(x.flatten(0, 1)[:, None], (wide, wide, high, high), mode=borders)
    return F.conv2d(planes, kernel.to(x)[None, None]).reshape(x.shape)


def _times(seen: Tensor, x: Tensor) -> Tensor:
    return seen.to(x) * x


def _grey(weights: Tensor, x: Tensor) -> Tensor:
    return (_beside(weights, x) * x).sum(1, keepdim=True)


def _spread(weights: Tensor, v: Tensor) -> Tensor:
    return _beside(weights, v) * v


def _beside(weights: Tensor, x: Tensor) -> Tensor:
    return weights.to(x).reshape(-1, *[1] * (x.ndim - 2))


def _product(rows: Tensor, x: Tensor) -> Tensor:
    return x @ rows.to(x).mT


def _numbers(argument: str, values: Tensor) -> Tensor:
    """Finite values, as floats, of the operator's own."""
    ok = values.numel() > 0 and not values.is_complex() and bool(values.isfinite().all())
    require(ok, argument, values, "finite real values are needed", None if values.numel() else "empty")
    floating = values.is_floating_point()
    return (values if floating else values.to(torch.get_default_dtype())).detach().clone()


def _sizes(argument: str, values: Sequence[int], count: int | None = None) -> tuple[Any, ...]:
    needed = "positive integers are needed" if count is None else "(height, width), positive integers, is needed"
    try:
        found = tuple(check.count(argument, n) for n in values)
    except (TypeError, ValueError):
        raise RefusedType(argument, values, needed) from None
    require(len(found) == count if count else bool(found), argument, values, needed)
    return found
