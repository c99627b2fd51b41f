"""The loop: a plan of coefficients, computed before, applied by a loop that decides nothing.

The state is float32 (float64 for float64 input) whatever the dtype of the model: rounding it to bf16 each step would cost
more than the error of the solver. Nothing in the loop waits for the device.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from . import check, through
from . import method as _method
from .grid import Grid
from .noise import Noise, as_noise
from .placement import placed, state_dtype
from .plan import Times, applied, marginals
from .process import Marginal, Process
from .progress import with_progress
from .step import Coefficient, Method, Step

Model = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, x_hat0, t) -> x_theta."""
Callback = Callable[[int, Tensor, Tensor, Tensor], object]
"""(step, t, x, x_theta) -> anything."""


@through.eager
def solve(
    model: Model,
    x_hat0: Tensor,
    steps: int = 5,
    order: int | None = None,
    *,
    process: Process | None = None,
    method: Method = _method.dos,
    grid: Grid | Times | None = None,
    noise: Noise | torch.Generator | Sequence[torch.Generator] | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    spread: float | Tensor = 0.0,
    model_kwargs: Mapping[str, Any] | None = None,
    differentiable: bool | Literal["checkpoint"] = False,
) -> Tensor:
    """A sample of x0 given x_hat0, in `steps` model calls: the reverse domain-shift SDE (Eq. 7), or its ODE, solved.

    The solve starts at (a + b) x_hat0 + sigma z: x_hat0 replaces the unknown x0 of the marginal. That is exactly right where
    the grid starts at eta = 1. No graph for gradients is kept, unless the solve is differentiable.

    Args:
        model: (x, x_hat0, t) -> x_theta, the estimate of x0 in the shape of x; t is a 0-dim float64 tensor on the host. It
            must return new memory each time, since outputs are kept for later steps, and write to neither argument. A
            `Denoiser` makes a model of a network and carries its process.
        x_hat0: the source (the low-resolution image brought to the shape of x0), floating, shape (batch, ...).
        steps: the number of model calls.
        order: 1 to steps (`method.dos`: to 3). Default: the order of the method, if it has one, or 3, and at most steps.
        process: needed if the model has none.
        method: `method.dos` (the paper's solvers), `method.adams`, `method.ode`, ..., or any (marginals, order) -> steps.
            **presets.few_step(scale) is method and grid for few calls.
        grid: (process, steps) -> times, or steps + 1 decreasing times. Default: uniform in t from t1 to 0.
        noise: a torch.Generator, a list with one for each sample, or (u, u_next, like) -> z. Default: torch's own generator.
        callback: called as callback(step, t, x, x_theta) after each model call, with copies. It can collect them for a
            trajectory.
        progress: show a tqdm bar.
        spread: std of x0 given x_hat0, a number or a field, for a solve that starts where a > 0. Its first state is then
            N((a + b) x_hat0, sigma^2 + a^2 spread^2); without it, it is too narrow by the residual.
        model_kwargs: further keywords of each model call: model(x, x_hat0, t, **model_kwargs).
        differentiable: whether gradients reach x_hat0, the parameters of the model, spread, and whatever the noise depends on.
            The numbers are the same, bit for bit; the memory is that of all model calls, or with "checkpoint" of one, which
            is then made again for its gradient. Coefficients of a method of one's own may carry a graph; those of the methods
            here, and so the times of a grid, do not. It serves inside torch.func, too.

    Returns:
        The state at the last time, x0 where that is 0, in the shape, dtype and device of x_hat0.

    Raises:
        ValueError: before the first model call for a wrong argument. Afterwards for a model that returns another shape or
            device, or writes to its arguments or to an earlier output (at once), or returns NaN or infinity (at the end, with
            its step).
        TypeError: for an argument, or an output of the model, of the wrong type.

    >>> import torch, dosde
    >>> process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
    >>> x_hat0 = torch.zeros(1, 3, 16, 16)
    >>> model = lambda x, x_hat0, t: torch.full_like(x, 0.25)
    >>> x0 = solve(model, x_hat0, steps=5, order=3, process=process)
    >>> torch.allclose(x0, torch.full_like(x0, 0.25))
    True
    """
    check.function("model", model, "a function (x, x_hat0, t) -> x_theta is needed", check.form(model))
    if callback is not None:
        check.function("callback", callback, "a function (step, t, x, x_theta) is needed")
    check.keywords("model_kwargs", model_kwargs)
    check.spread_of(spread, x_hat0)
    check.differentiable(differentiable, x_hat0)
    process = check.process(model, process, Process)
    with torch.set_grad_enabled(bool(differentiable)):
        with through.outside():
            points = marginals(process, check.count("steps", steps), grid)
            made = applied(method, points, order, getattr(grid, "scale", None))
        check.source(x_hat0, process.field_shape)
        draw, source = as_noise(noise), x_hat0.to(state_dtype(x_hat0))
        plan: Sequence[Step] = placed(made, source)
        watched = through.watched(model, x_hat0, plan, model_kwargs, differentiable)
        advance = through.advanced if differentiable else advanced

        x = start(points[0], plan[0], source, draw, spread)
        past: deque[Tensor] = deque(maxlen=max(len(step.new) for step in plan))
        for i, step in enumerate(with_progress(plan, progress)):
            past.appendleft(watched(i, x, past))
            if callback is not None:
                callback(i, watched.times[i], x.clone(), past[0].clone())
            x = advance(x, source, past, step, draw)
        watched.finish(x)
        return x.to(x_hat0.dtype)


def start(m: Marginal, first: Step, source: Tensor, draw: Noise, spread: float | Tensor = 0.0) -> Tensor:
    """The first state, (a + b) x_hat0 + sigma z, with sigma^2 + a^2 spread^2 for sigma^2."""
    if isinstance(spread, Tensor) or spread:
        m = replace(m, sigma=torch.sqrt(m.sigma**2 + (m.a * torch.as_tensor(spread, dtype=torch.float64, device="cpu")) ** 2))
    if not m.sigma.any():
        return source * m.alpha.to(source)
    zero = 0.0 if isinstance(first.u, float) else torch.zeros_like(first.u)
    return noised(m, source, check.noise(draw(zero, first.u, source), source))


def noised(m: Marginal, source: Tensor, z: Tensor) -> Tensor:
    """The sum (a + b) x_hat0 + sigma z."""
    alpha: Coefficient = m.alpha.to(source) if m.alpha.ndim else m.alpha.item()
    return through.added(z.to(source.dtype) * m.sigma.to(source), source, alpha)


def advanced(x: Tensor, source: Tensor, past: Iterable[Tensor], step: Step, draw: Noise) -> Tensor:
    """The state keep x + hat x_hat0 + sum new x_theta + noise z, in the memory of x. past: x_theta, the newest first."""
    x = x.detach().mul_(step.keep)  # a model that guides by gradients may have asked for those of x
    _add(x, source, step.hat)
    for x_theta, weight in zip(past, step.new, strict=False):
        _add(x, x_theta, weight)
    if isinstance(step.noise, Tensor) or step.noise:
        _add(x, check.noise(draw(step.u, step.u_next, x), x), step.noise)
    return x


def _add(x: Tensor, y: Tensor, c: Coefficient) -> None:
    if isinstance(c, Tensor):
        x.addcmul_(y.to(x.dtype), c)
    else:
        x.add_(y, alpha=c)
