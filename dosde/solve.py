"""solve(): plan all coefficients of a solve in float64 on the host, then apply them in a loop that decides nothing.

The state is float32 (float64 for float64 input) whatever the dtype of the model: rounding it to bf16 each step would cost
more than the error of the solver. Nothing in the loop waits for the device.
"""

import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from . import grid as _grid
from . import method as _method
from .grid import Grid
from .method import Coefficient, Method, Step
from .noise import Noise, as_noise
from .prediction import Denoiser
from .process import Marginal, Process

Model = Callable[[Tensor, Tensor, Tensor], Tensor]
Callback = Callable[[int, Tensor, Tensor, Tensor], object]
Times = Tensor | Sequence[float]
T = TypeVar("T")


@torch.no_grad()
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
) -> Tensor:
    """A sample of x0 given x_hat0, in `steps` model calls: the reverse domain-shift SDE (Eq. 7), or its ODE, solved.

    model     (x, x_hat0, t) -> x_theta, the estimate of x0 in the shape of x; t is a 0-dim float64 tensor on the host. It must
              not write to x, which is the state of the loop, nor to what it returned: outputs are kept for later steps.
              A `Denoiser` makes one of a network and carries its process.
    x_hat0    the source (the low-resolution image brought to the shape of x0), floating, shape (batch, ...).
    order     1 to steps (`method.dos`: to 3). Default: that of the method, if it has one, or 3; at most steps.
    process   needed if the model has none.
    method    `method.dos` (the paper's solvers), `method.adams`, `method.ode`, ..., or any (marginals, order) -> steps.
              **presets.few_step(scale) is method and grid for few calls.
    grid      (process, steps) -> times, or steps + 1 decreasing times. Default: uniform in t from t1 to 0.
    noise     a torch.Generator, a list of them (one a sample), or (u, u_next, like) -> z. Default: torch's own generator.
    callback  called as callback(step, t, x, x_theta) after each model call, with a copy of x: collect them for a trajectory.
    progress  show a tqdm bar.

    Returns the state at the last time, x0 where that is 0, in the shape, dtype and device of x_hat0. The solve starts at
    (a + b) x_hat0 + sigma z: the unknown x0 of the marginal is replaced by x_hat0, exactly right where the grid starts at
    eta = 1.

    Errors: ValueError or TypeError before the first model call for a wrong argument; afterwards for a model that returns
    another shape or device, or writes to x or to an earlier output (at once), or NaN or infinity (at the end, naming the step).

    >>> import torch, dosde
    >>> process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
    >>> x_hat0 = torch.zeros(1, 3, 16, 16)
    >>> model = lambda x, x_hat0, t: torch.full_like(x, 0.25)
    >>> x0 = solve(model, x_hat0, steps=5, order=3, process=process)
    >>> torch.allclose(x0, torch.full_like(x0, 0.25))
    True
    """
    if not callable(model) or isinstance(model, type):
        raise TypeError(f"model: {_described(model)}; a function (x, x_hat0, t) -> x_theta is needed")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: {callback!r}; a function (step, t, x, x_theta) is needed")
    process = _process_of(model, process)
    marginals = _marginals(process, _count("steps", steps), grid)
    plan = _plan(marginals, order, method)
    _check_source(x_hat0, process)
    draw = as_noise(noise)

    source = x_hat0.to(_state_dtype(x_hat0))
    if isinstance(model, Denoiser):
        for step in plan:  # ValueError where the prediction type is undefined
            model.coefficients(step.t, source.device, source.dtype)
    shapes = {tuple(c.shape) for c in (plan[-1].keep, plan[-1].hat, *plan[-1].new) if isinstance(c, Tensor)}
    for shape in shapes:
        _check_field("method: its scale, or eta, is a field", shape, x_hat0)
    if shapes:
        plan = [_placed(step, source) for step in plan]
    # A Denoiser converts in the dtype of the state and casts for its network; a bare model gets its own dtype.
    dtype = source.dtype if isinstance(model, Denoiser) else x_hat0.dtype
    x = _start(marginals[0], plan[0], source, draw)
    kept = max(len(step.new) for step in plan)
    past: list[Tensor] = []
    versions: list[int] = []
    sums: list[Tensor] = []
    for i, (step, t) in enumerate(_with_progress(list(zip(plan, _times(plan), strict=True)), progress)):
        del past[kept - 1 :], versions[kept - 1 :]
        before = _version(x)
        x_theta = model(x.to(dtype), x_hat0, t)
        if _version(x) != before:
            raise ValueError(f"model: wrote to x at step {i}, t = {step.t:g}; x is the state of the solve, work on a copy")
        if versions != [_version(output) for output in past]:
            raise ValueError(f"model: wrote to an earlier output at step {i}, t = {step.t:g}; return a new tensor each time")
        _check_output(x_theta, x, i, step.t)
        if x.requires_grad or x_theta.requires_grad:  # a model that guides by gradients
            x, x_theta = x.detach(), x_theta.detach()
        sums.append(_sum(x_theta))  # looked at once, after the loop: no waiting for the device
        if x_theta.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
            x_theta = x_theta.clone()  # a model that returns its input
        past.insert(0, x_theta)
        versions.insert(0, _version(x_theta))
        if callback is not None:
            callback(i, t, x.clone(), x_theta)
        _advance(x, source, past, step, draw)
    _check_finite(sums, _sum(x), [step.t for step in plan])
    return x.to(x_hat0.dtype)


@torch.no_grad()
def plan(
    process: Process,
    steps: int = 5,
    order: int | None = None,
    *,
    method: Method = _method.dos,
    grid: Grid | Times | None = None,
) -> list[Step]:
    """The steps that `solve` would apply. Printed, they show the method.

    >>> import dosde
    >>> process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
    >>> print(*plan(process, steps=3, order=2), sep="\\n")
    t 0.5000 -> 0.3333:  x = +0 x +0.5491 x_hat0 +0.183 x_theta[0] +0.6811 z
    t 0.3333 -> 0.1667:  x = +0.1142 x +0.1616 x_hat0 +0.6521 x_theta[0] +0.4345 z
    t 0.1667 -> 0.0000:  x = +0 x +0 x_hat0 +1.214 x_theta[0] -0.214 x_theta[-1] +0 z
    """
    if not isinstance(process, Process):
        raise TypeError(f"process: {process!r}; a dosde.Process is needed")
    return _plan(_marginals(process, _count("steps", steps), grid), order, method)


def _plan(marginals: Sequence[Marginal], order: int | None, method: Method) -> list[Step]:
    steps = len(marginals) - 1
    order = None if order is None else _count("order", order)
    if order is not None and order > steps:
        raise ValueError(f"order: {order} with steps = {steps}; 1 to {steps} is needed, a step can use only what came before")
    if not callable(method) or isinstance(method, type):
        raise TypeError(f"method: {method!r}; a function (marginals, order) -> steps is needed, such as dosde.method.dos")
    order = min(_default_order(method), steps) if order is None else order
    plan = method(marginals, order)
    if not isinstance(plan, list) or len(plan) != steps or not all(isinstance(step, Step) for step in plan):
        raise ValueError(f"method: returned {_described(plan)}; a list of {steps} Steps is needed")
    for i, step in enumerate(plan):
        if not 1 <= len(step.new) <= min(i + 1, order + 1):
            raise ValueError(
                f"method: step {i} has {len(step.new)} weights; 1 to {min(i + 1, order + 1)} is needed, the outputs kept"
            )
    return plan


def _default_order(method: Method) -> int:
    parameter = inspect.signature(method).parameters.get("order")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else 3


def _marginals(process: Process, steps: int, grid: Grid | Times | None) -> list[Marginal]:
    """One marginal a time of the grid, checked."""
    made: object = _grid.uniform if grid is None else grid
    try:
        made = made(process, steps) if callable(made) else made
    except TypeError as error:
        raise TypeError(
            f"grid: {grid!r} fails as (process, steps) -> times ({error}); grid.karras(), say, is needed"
        ) from error
    try:
        times = torch.as_tensor(made, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"grid: {made!r}; a function (process, steps) -> times, such as grid.karras(), or {steps + 1} times are needed"
        ) from error
    if times.shape != (steps + 1,):
        raise ValueError(f"grid: times of shape {tuple(times.shape)} with steps = {steps}; {steps + 1} times are needed")
    if not (times[-1] >= 0 and times[0] <= 1 and (times[1:] < times[:-1]).all()):
        raise ValueError(f"grid: times {times.tolist()}; they must decrease, within [0, 1]")
    m = process(times.reshape(-1, *[1] * len(process.field_shape)))
    name, lam = ("lam", m.lam) if m.sigma.any() else ("b/a", m.b / m.a)  # without noise the source is what fades
    lam = lam.reshape(steps + 1, -1)
    moves = (lam[1:] < lam[:-1]).any(1)  # of a field, some element is enough: the others stand still
    if not moves.all() or lam[-1].isinf().any():
        i = int((~moves).nonzero()[0]) + 1 if not moves.all() else steps
        raise ValueError(
            f"grid: time {times[i]:g} at index {i} has {name} = {float(lam[i].max()):g}; {name} must fall from one time to the "
            f"next, so only the first time may have a = 0 ({name} infinite): start at t1 = {process.t1:g} or below"
        )
    if m.sigma.any() and not (m.sigma[:-1] > 0).all():
        i = int((m.sigma[:-1].reshape(steps, -1) <= 0).any(1).nonzero()[0])
        raise ValueError(f"grid: time {times[i]:g} at index {i} has sigma = 0; only the last time may")
    return [Marginal(*row) for row in zip(m.t.unbind(), m.a.unbind(), m.b.unbind(), m.sigma.unbind(), strict=True)]


def _start(m: Marginal, first: Step, source: Tensor, draw: Noise) -> Tensor:
    if not m.sigma.any():
        return source * m.alpha.to(source)
    zero = 0.0 if isinstance(first.u, float) else torch.zeros_like(first.u)
    return _noised(m, source, _checked_noise(draw(zero, first.u, source), source))


def _noised(m: Marginal, source: Tensor, z: Tensor) -> Tensor:
    """(a + b) x_hat0 + sigma z."""
    x = z.to(source.dtype) * m.sigma.to(source)
    _add(x, source, m.alpha.to(source) if m.alpha.ndim else m.alpha.item())
    return x


def _state_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _times(plan: Sequence[Step]) -> tuple[Tensor, ...]:
    return torch.tensor([step.t for step in plan], dtype=torch.float64, device="cpu").unbind()


def _placed(step: Step, like: Tensor) -> Step:
    """Fields of coefficients brought to the device and dtype of the state, once."""

    def place(c: Coefficient) -> Coefficient:
        return c.to(like) if isinstance(c, Tensor) else c

    return replace(step, keep=place(step.keep), hat=place(step.hat), noise=place(step.noise), new=tuple(map(place, step.new)))


def _advance(x: Tensor, source: Tensor, past: Sequence[Tensor], step: Step, draw: Noise) -> None:
    """x becomes keep x + hat x_hat0 + sum new x_theta + noise z, in place."""
    x.mul_(step.keep)
    _add(x, source, step.hat)
    for x_theta, weight in zip(past, step.new, strict=False):
        _add(x, x_theta, weight)
    if isinstance(step.noise, Tensor) or step.noise:
        _add(x, _checked_noise(draw(step.u, step.u_next, x), x), step.noise)


def _add(x: Tensor, y: Tensor, c: Coefficient) -> None:
    if isinstance(c, Tensor):
        x.addcmul_(y.to(x.dtype), c)
    else:
        x.add_(y, alpha=c)


def _with_progress(items: list[T], progress: bool) -> Sequence[T]:
    if not progress:
        return items
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    return tqdm(items, desc="solve", unit="step")  # type: ignore[no-any-return]


# -- What users can get wrong ---------------------------------------------------------------------------------------------


def _count(name: str, value: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: {value!r}; a positive integer is needed") from None
    if isinstance(value, bool) or count < 1:
        raise ValueError(f"{name}: {value!r}; a positive integer is needed")
    return count


def _process_of(model: Model, process: Process | None) -> Process:
    own = getattr(model, "process", None)
    own = own if isinstance(own, Process) else None
    if process is None and own is None:
        raise ValueError("process: None, and the model carries none; pass process=dosde.Process(schedule, shift)")
    if process is not None and not isinstance(process, Process):
        raise TypeError(f"process: {process!r}; a dosde.Process is needed")
    if process is not None and own is not None and process != own:
        raise ValueError("process: differs from the model's own process; leave it out, or pass a model without one")
    return process or own  # type: ignore[return-value]


def _check_source(x_hat0: Tensor, process: Process) -> None:
    _check_tensor(x_hat0)
    _check_field("process: eta is a field", process.field_shape, x_hat0)


def _check_tensor(x_hat0: Tensor) -> None:
    if not isinstance(x_hat0, Tensor) or not x_hat0.is_floating_point():
        raise TypeError(f"x_hat0: {_described(x_hat0)}; a floating tensor is needed")
    if x_hat0.ndim < 1 or x_hat0.numel() == 0:
        raise ValueError(f"x_hat0: {_described(x_hat0)}; a batch of at least one element is needed")
    if not bool(_sum(x_hat0).isfinite()):
        raise ValueError(f"x_hat0: {_described(x_hat0)} holds NaN or infinity; finite values are needed")


def _check_field(what: str, shape: tuple[int, ...], x_hat0: Tensor) -> None:
    if len(shape) > x_hat0.ndim or any(f not in (1, n) for f, n in zip(shape[::-1], x_hat0.shape[::-1], strict=False)):
        raise ValueError(f"{what} of shape {shape}; one that broadcasts against x_hat0, {tuple(x_hat0.shape)}, is needed")


def _check_output(x_theta: Tensor, x: Tensor, i: int, t: float) -> None:
    if not isinstance(x_theta, Tensor):
        raise TypeError(f"model: returned {_described(x_theta)} at step {i}, t = {t:g}; a tensor is needed")
    if x_theta.shape != x.shape or x_theta.device != x.device:
        raise ValueError(
            f"model: returned {_described(x_theta)} at step {i}, t = {t:g}; shape {tuple(x.shape)} on {x.device} is needed"
        )
    if not x_theta.is_floating_point():
        raise TypeError(f"model: returned {_described(x_theta)} at step {i}, t = {t:g}; floats are needed")


def _sum(x: Tensor) -> Tensor:
    """In at least float32: NaN and infinity stay in a sum, which is far cheaper than isfinite().all()."""
    return x.sum(dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _checked_noise(z: Tensor, like: Tensor) -> Tensor:
    if not isinstance(z, Tensor) or z.shape != like.shape or z.device != like.device or not z.is_floating_point():
        raise ValueError(f"noise: returned {_described(z)}; a floating tensor like x_hat0, {_described(like)}, is needed")
    return z


def _check_finite(sums: Sequence[Tensor], last: Tensor, times: Sequence[float], other: str = "noise") -> None:
    finite = torch.stack([*sums, last]).isfinite().tolist()
    if not all(finite):
        i = finite.index(False)
        if i == len(times):
            raise ValueError(
                f"{other}: the result is not finite, though every output of the model was; finite values are needed"
            )
        raise ValueError(f"model: returned NaN or infinity at step {i}, t = {times[i]:g}; finite values are needed")


def _version(x: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count it."""
    return 0 if x.is_inference() else x._version


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"a {type(value).__name__}"
