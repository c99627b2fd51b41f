"""The model of the loop, watched or with its graph, and the arithmetic of a solve that gradients flow through."""

import functools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from . import check
from .noise import Noise
from .placement import state_dtype
from .prediction import Denoiser
from .step import Coefficient, Step

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which torch.compile around it calls as it is: its loop is host code. A compiled model stays compiled."""

    disabled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:  # nothing was compiled; the import takes a second
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]
        return disabled[0](*args, **kwargs)

    return called


class Through:
    """The model of a differentiable solve; a call is model(step, x, past).

    Args:
        model: (x, x_hat0, t) -> x_theta.
        x_hat0: the source.
        dtype: what the model gets x in.
        times: of the steps.
        checkpoint: whether each call is made again for its gradient, so that the memory is that of one call.
    """

    def __init__(
        self,
        model: Callable[[Tensor, Tensor, Tensor], Tensor],
        x_hat0: Tensor,
        dtype: torch.dtype,
        times: Tensor,
        checkpoint: bool,
    ) -> None:
        self.model, self.x_hat0, self.dtype, self.checkpoint = model, x_hat0, dtype, checkpoint
        self.times, self.numbers = times.unbind(), times.tolist()
        self._totals: list[Tensor] = []

    def __call__(self, step: int, x: Tensor, past: deque[Tensor]) -> Tensor:
        arguments = x.to(self.dtype), self.x_hat0, self.times[step]
        if self.checkpoint:
            from torch.utils.checkpoint import checkpoint

            x_theta: Tensor = checkpoint(self.model, *arguments, use_reentrant=False)
        else:
            x_theta = self.model(*arguments)
        check.output(x_theta, x, step, self.numbers[step])
        self._totals.append(check.total(x_theta.detach()))
        return x_theta

    def finish(self, x: Tensor) -> None:
        """Refused if an output or the result is not finite; inside torch.func nobody knows."""
        totals = [*self._totals, check.total(x.detach())]
        if not any(map(check.transformed, totals)):
            check.finite(totals[:-1], totals[-1], self.numbers)


def watched(
    model: Callable[..., Tensor],
    x_hat0: Tensor,
    plan: Sequence[Step],
    more: Mapping[str, Any] | None,
    differentiable: bool | str,
) -> check.Watched | Through:
    """The model of the loop. A Denoiser gets the state as it is, a bare model gets it in the dtype of x_hat0."""
    dtype = x_hat0.dtype
    if isinstance(model, Denoiser):
        dtype = state_dtype(x_hat0)
        for step in plan:  # ValueError where the prediction is undefined
            model.coefficients(step.t, x_hat0.device, dtype)
    times = torch.tensor([step.t for step in plan], dtype=torch.float64, device="cpu")
    model = functools.partial(model, **more) if more else model
    if differentiable:
        return Through(model, x_hat0, dtype, times, differentiable == "checkpoint")
    return check.Watched(model, x_hat0, dtype, times)


def outside() -> AbstractContextManager[object]:
    """Outside of the grad, jvp and vmap of torch.func that run now: what a plan is made of has nothing to do with them."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return nullcontext()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    cleared: AbstractContextManager[object] = temporarily_clear_interpreter_stack()
    return cleared


def advanced(x: Tensor, source: Tensor, past: Iterable[Tensor], step: Step, draw: Noise) -> Tensor:
    """The state keep x + hat x_hat0 + sum new x_theta + noise z, as a new tensor: the same numbers as `solve.advanced`."""
    x = added(x * step.keep, source, step.hat)
    for x_theta, weight in zip(past, step.new, strict=False):
        x = added(x, x_theta, weight)
    if isinstance(step.noise, Tensor) or step.noise:
        x = added(x, check.noise(draw(step.u, step.u_next, x), x), step.noise)
    return x


def added(x: Tensor, y: Tensor, c: Coefficient) -> Tensor:
    """x + c y."""
    return torch.addcmul(x, y.to(x.dtype), c) if isinstance(c, Tensor) else torch.add(x, y.to(x.dtype), alpha=c)
