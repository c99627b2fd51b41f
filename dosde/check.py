"""Refusals: everything that users can get wrong, said in one voice.

    raise Refused("steps", 0, "a positive integer is needed")          steps: 0; a positive integer is needed

A refusal names the argument, shows its value in a few words, and says what is legal. Whoever catches one reads `.argument`,
`.value` and `.needed`, and never the text.
"""

import collections.abc
import functools
import inspect
import itertools
import math
import numbers
import operator
import os
import reprlib
import sys
import types
import typing
import warnings
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .process import Process

_PACKAGES = ("dosde", "backbones", "torch")  # what may stand between a warning and the user: torch wraps `solve`
P = TypeVar("P")
S = TypeVar("S")
R = TypeVar("R")
A = ParamSpec("A")

_AMPLIFICATION = 10  # of errors of the model, above which a user is told; the paper's solver has 2.9 at 5 steps, 13 at 20
_NARROW, _WIDE = 0.8, 1.25  # std of the result over the right one, outside which a user is told
_SMALL = 6  # as many entries of a list or a tensor are shown

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 120
_repr.maxlist = _repr.maxtuple = _repr.maxset = _repr.maxdict = _SMALL


class Refused(ValueError):
    """An argument that cannot be used: `argument: value; needed`.

    Args:
        argument: the name of the argument, as the user knows it.
        value: what it was.
        needed: what is legal, a clause: "a positive integer is needed".
        shown: the value in words, where `describe(value)` does not say what matters.
    """

    def __init__(self, argument: str, value: object, needed: str, shown: str | None = None) -> None:
        self.argument, self.value, self.needed = argument, value, needed
        self.shown = describe(value) if shown is None else shown
        super().__init__(f"{argument}: {self.shown}; {needed}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.argument, self.value, self.needed, self.shown)

    def under(self, argument: str) -> "Refused":
        """The same refusal under the name by which another interface knows the argument: "--steps" for "steps"."""
        return type(self)(argument, self.value, self.needed, self.shown)


class RefusedType(Refused, TypeError):
    """A `Refused` of a value of the wrong type, which is a TypeError too."""


def describe(value: object) -> str:
    """A value in a few words: a large tensor by its form, a function by its name, all else by its repr, shortened."""
    if isinstance(value, Tensor):
        small = value.numel() <= _SMALL and value.device.type == "cpu"
        return str(value.item()) if small and not value.ndim else f"tensor({value.tolist()})" if small else form(value)
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, functools.partial):
        options = "".join(f", {name}={describe(part)}" for name, part in value.keywords.items())
        return f"functools.partial({', '.join(map(describe, (value.func, *value.args)))}{options})"
    if type(value) in (list, tuple) and any(isinstance(part, Tensor) for part in cast(Sequence[object], value)):
        parts = [describe(part) for part in cast(Sequence[object], value)[:_SMALL]]
        return f"({', '.join(parts)}{', ...' if len(cast(Sequence[object], value)) > _SMALL else ''})"
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    return repr(value) if type(value).__module__.startswith("dosde") else _repr.repr(value)


def form(value: object) -> str:
    """The type of a value, and of a tensor dtype, shape and device."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"a {type(value).__name__}"


def warn(argument: str, value: object, advice: str, shown: str | None = None) -> None:
    """A UserWarning in the form of a refusal, at the line of the user's that led here."""
    frame: types.FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PACKAGES:
        frame, level = frame.f_back, level + 1
    warnings.warn(f"{argument}: {describe(value) if shown is None else shown}; {advice}", stacklevel=level)


# -- Types of arguments -----------------------------------------------------------------------------------------------------


def typed(function: Callable[A, R]) -> Callable[A, R]:
    """The function, which refuses arguments of a type that its annotations do not allow, by their names.

    Looked at are numbers, whole numbers, truth values, tensors, functions, and classes of this package, or None and unions of
    them. Anything else in an annotation is the business of the function.
    """

    @functools.cache
    def kinds() -> dict[str, tuple[tuple[object, ...], str]]:
        hints = typing.get_type_hints(function)
        found = {name: _kinds(hints[name]) for name in inspect.signature(function).parameters if name in hints}
        return {name: (kind, _named(kind)) for name, kind in found.items() if kind}

    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: A.args, **kwargs: A.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # a word too much or too few: Python says it better, with the name of the function
            return function(*args, **kwargs)
        for name, value in given.items():
            allowed, needed = kinds().get(name, ((), ""))
            if allowed and not any(_is(value, kind) for kind in allowed):
                raise RefusedType(name, value, needed)
        return function(*args, **kwargs)

    return checked


_NAMES: dict[object, str] = {
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    Tensor: "a tensor",
    Callable: "a function",
    None: "None",
}


def _kinds(hint: object) -> tuple[object, ...]:
    """What an annotation allows; nothing where one part of it is not known here."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    found: list[object] = []
    for part in parts:
        origin = typing.get_origin(part)
        ours = isinstance(part, type) and part.__module__.startswith("dosde")
        if part in (float, int, bool, Tensor) or ours:
            found.append(part)
        elif part is type(None):
            found.append(None)
        elif origin is Callable or origin is collections.abc.Callable:
            found.append(Callable)
        else:
            return ()
    return tuple(found)


def _named(kinds: tuple[object, ...]) -> str:
    names = [_NAMES.get(kind) or f"a dosde.{cast(type, kind).__name__}" for kind in kinds]
    return f"{' or '.join(names)} is needed"


def _is(value: object, kind: object) -> bool:
    if kind is None:
        return value is None
    if kind is Callable:
        return callable(value) and not isinstance(value, type)
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    if kind is int:
        return _whole(value) is not None
    if kind is float:
        return _number(value)
    return isinstance(value, cast(type, kind))


def _whole(value: object) -> int | None:
    """A whole number that fits a float; None for anything else."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        number = operator.index(cast(Any, value))
    except TypeError:
        return None
    return number if abs(number) <= 2**53 else None


def _number(value: object) -> bool:
    """A real number, as Python, numpy or torch has it."""
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0 and not isinstance(value.item(), bool | complex)
    if not isinstance(value, numbers.Real):
        return False
    try:
        float(value)  # which a whole number may be too large for
    except OverflowError:
        return False
    return True


# -- Numbers, names, functions ----------------------------------------------------------------------------------------------


def require(ok: bool, argument: str, value: object, needed: str, shown: str | None = None) -> None:
    """Refused unless ok."""
    if not ok:
        raise Refused(argument, value, needed, shown)


def count(argument: str, value: object, least: int = 1) -> int:
    """An integer of at least 1, or 0."""
    number, needed = _whole(value), "a positive integer is needed" if least else "an integer >= 0 is needed"
    if number is None:
        raise (Refused if isinstance(value, bool) else RefusedType)(argument, value, needed)
    require(number >= least, argument, value, needed)
    return number


def one_of(argument: str, value: object, names: Collection[str], hint: str = "") -> None:
    """One of some names."""
    if not isinstance(value, str) or value not in names:
        raise Refused(argument, value, f"one of {', '.join(names)}{hint} is needed")


def function(argument: str, value: object, needed: str, shown: str | None = None) -> None:
    """A function, and no class that was not called."""
    if not callable(value) or isinstance(value, type):
        raise RefusedType(argument, value, needed, shown)


def within(values: Tensor, low: float, high: float) -> bool:
    """All of low <= values <= high, and finite."""
    if not values.numel():
        return True
    least, most = torch.aminmax(values.detach())
    return low <= least.item() and most.item() <= high and most.item() < math.inf


def values(argument: str, value: object, needed: str) -> Tensor:
    """A real number, or some of them, as a float64 tensor on the host."""
    try:
        if torch.as_tensor(value).is_complex():
            raise TypeError
        return torch.as_tensor(value, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise RefusedType(argument, value, f"{needed} is needed") from None


def betas(beta_min: float, beta_max: float, T: int) -> None:
    """The first and the last beta of a table of T steps."""
    ordered, shown = 0 < beta_min < beta_max < 1, f"{beta_min}, {beta_max}"
    require(ordered, "beta_min, beta_max", (beta_min, beta_max), "0 < beta_min < beta_max < 1 is needed", shown)
    require(T >= 1, "T", T, "a positive number of steps is needed")


def alike(**tensors: Tensor) -> None:
    """Tensors of shapes that broadcast."""
    try:
        np.broadcast_shapes(*(v.shape for v in tensors.values()))
    except ValueError:
        shown = ", ".join(str(tuple(v.shape)) for v in tensors.values())
        raise Refused(", ".join(tensors), tensors, "one shape is needed", shown) from None


def spread_of(value: object, x_hat0: object) -> None:
    """A number >= 0, or a field of them that broadcasts against the source."""
    s = values("spread", value, "a number, or a tensor that broadcasts against x_hat0,")
    require(within(s, 0, math.inf), "spread", value, "finite values >= 0 are needed")
    if s.ndim and isinstance(x_hat0, Tensor):
        field("spread", "it is a field", tuple(s.shape), x_hat0)


def differentiable(value: object, x_hat0: object) -> None:
    """True, False or "checkpoint"; not False inside torch.func."""
    ok = isinstance(value, bool) or value == "checkpoint"
    require(ok, "differentiable", value, 'True, False or "checkpoint" is needed')
    if isinstance(x_hat0, Tensor) and not value:
        require(not transformed(x_hat0), "differentiable", value, "True is needed inside torch.func (vmap, grad, jvp)")


def keywords(argument: str, value: object) -> None:
    """Keywords by name, or None."""
    ok = value is None or (isinstance(value, Mapping) and all(isinstance(name, str) for name in value))
    if not ok:
        raise RefusedType(argument, value, "a mapping of names to values is needed")


def tau(value: object) -> None:
    """A part of the noise."""
    ok = isinstance(value, numbers.Real) and 0 <= float(value) <= 1
    require(ok and not isinstance(value, bool), "tau", value, "a number from 0 (the ODE) to 1 (the reverse SDE) is needed")


def scale(value: float | Tensor | Sequence[float]) -> Tensor:
    """A positive number, or a field of them, as a float64 tensor of its own."""
    try:
        if isinstance(value, bool) or torch.as_tensor(value).is_complex():
            raise TypeError
        s = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise RefusedType("scale", value, "a positive number, or a tensor of them, is needed") from None
    if s.numel() == 0 or not ((s > 0) & s.isfinite()).all():
        spread = f", least {s.min():g}, largest {s.max():g}" if s.numel() > 1 else ""
        raise Refused(
            "scale", value, "positive finite values are needed", f"{value if s.ndim == 0 else tuple(s.shape)}{spread}"
        )
    return s


def scale_number(value: float | Tensor) -> float:
    """One positive number."""
    s = scale(value)
    needed = "one positive number is needed (method.matched takes a field)"
    require(s.numel() == 1, "scale", value, needed, f"shape {tuple(s.shape)}")
    return s.item()


def table(argument: str, values: Tensor | Sequence[float], ends: str, falling: bool, least: int = 2) -> Tensor:
    """A 1-D table as a float64 tensor of its own: strictly falling in (0, 1) with a last 0 allowed, or rising in [0, 1]."""
    try:
        rows = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise RefusedType(argument, values, "a 1-D table of at least two values is needed") from None
    ok = rows.ndim == 1 and len(rows) >= least
    require(ok, argument, values, "a 1-D table of at least two values is needed", f"shape {tuple(rows.shape)}")
    bad = ~((rows > 0) & (rows < 1) if falling else (rows >= 0) & (rows <= 1))
    bad[-1] &= not (falling and rows[-1] == 0)
    if bad.any():
        i = int(bad.nonzero()[0])
        raise Refused(argument, values, ends, f"value {rows[i].item()} at index {i}")
    wrong = rows.diff() >= 0 if falling else rows.diff() < 0
    if wrong.any():
        i = int(wrong.nonzero()[0])
        needed = "it must decrease" if falling else "it must not decrease"
        raise Refused(argument, values, needed, f"{rows[i].item()} then {rows[i + 1].item()} at index {i}")
    return rows


def process(model: object, given: P | None, kind: type[P]) -> P:
    """The process given, or the one that the model carries."""
    own = getattr(model, "process", None)
    own = own if isinstance(own, kind) else None
    if given is None and own is None:
        raise Refused("process", None, "pass process=dosde.Process(schedule, shift)", "None, and the model carries none")
    if given is not None and not isinstance(given, kind):
        raise RefusedType("process", given, "a dosde.Process is needed")
    if given is not None and own is not None and given != own:
        raise Refused("process", given, "leave it out, or pass a model without one", "differs from the model's own process")
    return cast(P, given or own)


def path(process: "Process") -> None:
    """Schedule and shift of a process: eta and lam must not fall as t rises, and many times at once must be each alone."""
    needed = "functions of a tensor of times, t -> (alpha, sigma) and t -> eta, are needed"
    try:
        probe = [process(i / 32) for i in range(33)]
    except Refused:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise RefusedType("schedule, shift", process, needed, f"fail at a time ({error})") from None
    for m, n in itertools.pairwise(probe):
        between = f"decreases between t = {m.t:g} and {n.t:g}"
        rises = bool((n.b * m.alpha >= m.b * n.alpha * (1 - 1e-12)).all())
        require(rises, "shift", process.shift, "it must not decrease", f"eta {between}")
        rises = bool((n.sigma * m.a >= m.sigma * n.a * (1 - 1e-12)).all())
        require(rises, "schedule", process.schedule, "it must not decrease", f"sigma/a {between}")
    two = torch.tensor([0.25, 0.5], dtype=torch.float64, device="cpu").reshape(-1, *[1] * len(process.field_shape))
    try:
        both = process(two)
    except Refused:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        shown = f"fail at a tensor of two times ({error})"
        raise RefusedType("schedule, shift", process, "torch operations are needed", shown) from None
    for i, t in enumerate((0.25, 0.5)):
        one = process(t)
        for v, w in ((both.a, one.a), (both.b, one.b), (both.sigma, one.sigma)):
            ok = v.shape == (2, *process.field_shape) and torch.allclose(v[i], w)
            needed = f"a field must broadcast against times of shape {tuple(two.shape)}"
            require(ok, "shift", process.shift, needed, "at two times it is not what it is at each")


def times(grid: object, process: object, steps: int) -> Tensor:
    """What a grid, or a list of times, says: steps + 1 decreasing times in [0, 1], as a float64 tensor."""
    value, instead = grid, "a function (process, steps) -> times, such as grid.karras(), or "
    try:
        value = grid(process, steps) if callable(grid) else grid
    except TypeError as error:
        shown = f"{describe(grid)} fails as (process, steps) -> times ({error})"
        raise RefusedType("grid", grid, "grid.karras(), say, is needed", shown) from error
    try:
        t = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise RefusedType("grid", value, f"{instead}{steps + 1} times are needed") from None
    shown = f"times of shape {tuple(t.shape)} with steps = {steps}"
    require(t.shape == (steps + 1,), "grid", value, f"{steps + 1} times are needed", shown)
    falls = bool(t[-1] >= 0 and t[0] <= 1 and (t[1:] < t[:-1]).all())
    require(falls, "grid", value, "they must decrease, within [0, 1]", f"times {_repr.repr(t.tolist())}")
    return t


def falling(grid: object, times: Tensor, name: str, lam: Tensor, t1: float) -> None:
    """Refused unless lam, (times, elements), falls: for a field in some element, the others may stand still."""
    moves = (lam[1:] < lam[:-1]).any(1)
    if moves.all() and not lam[-1].isinf().any():
        return
    i = int((~moves).nonzero()[0]) + 1 if not moves.all() else len(moves)
    needed = (
        f"{name} must fall from one time to the next, so only the first time may have a = 0 ({name} infinite): "
        f"start at t1 = {t1:g} or below"
    )
    raise Refused("grid", grid, needed, f"time {times[i]:g} at index {i} has {name} = {float(lam[i].max()):g}")


def order(value: int, steps: int) -> int:
    """An order from 1 to steps."""
    k = count("order", value)
    require(
        k <= steps, "order", value, f"1 to {steps} is needed, a step can use only what came before", f"{k} with steps = {steps}"
    )
    return k


def plan(value: object, method: object, steps: int, order: int, kind: type[S]) -> None:
    """The return value of a method: a list of steps, with finite coefficients of outputs that the loop keeps."""
    if not isinstance(value, list) or len(value) != steps or not all(isinstance(step, kind) for step in value):
        raise Refused("method", method, f"a list of {steps} Steps is needed", f"returned {form(value)}")
    for i, step in enumerate(value):
        most, shown = min(i + 1, order + 1), f"step {i} has {len(step.new)} weights"
        require(1 <= len(step.new) <= most, "method", method, f"1 to {most} is needed, the outputs kept", shown)
        parts = (step.keep, step.hat, *step.new, step.noise)
        finite = all(bool(part.isfinite().all()) if isinstance(part, Tensor) else math.isfinite(part) for part in parts)
        if not finite:
            raise Refused("method", method, "finite coefficients are needed", f"step {i} is {step}")


# -- Tensors of the problem ---------------------------------------------------------------------------------------------------


def source(x_hat0: Tensor, field_shape: tuple[int, ...] = ()) -> None:
    """A floating batch of finite values, that a field of eta broadcasts against."""
    if not isinstance(x_hat0, Tensor) or not x_hat0.is_floating_point():
        raise RefusedType("x_hat0", x_hat0, "a floating tensor is needed", form(x_hat0))
    if x_hat0.layout != torch.strided or x_hat0.is_meta:
        raise RefusedType("x_hat0", x_hat0, "a dense tensor with values is needed", f"{form(x_hat0)}, {x_hat0.layout}")
    ok = x_hat0.ndim >= 1 and x_hat0.numel() > 0
    require(ok, "x_hat0", x_hat0, "a batch of at least one element is needed", form(x_hat0))
    ok = transformed(x_hat0) or bool(total(x_hat0).isfinite())
    require(ok, "x_hat0", x_hat0, "finite values are needed", f"{form(x_hat0)} holds NaN or infinity")
    field("process", "eta is a field", field_shape, x_hat0)


def field(argument: str, what: str, shape: tuple[int, ...], x_hat0: Tensor) -> None:
    """A field that broadcasts against the source."""
    if len(shape) > x_hat0.ndim or any(f not in (1, n) for f, n in zip(shape[::-1], x_hat0.shape[::-1], strict=False)):
        needed = f"one that broadcasts against x_hat0, {tuple(x_hat0.shape)}, is needed"
        raise Refused(argument, shape, needed, f"{what} of shape {shape}")


def noise(z: Tensor, x: Tensor) -> Tensor:
    """The return value of a noise: a floating tensor like x."""
    if not isinstance(z, Tensor) or z.shape != x.shape or z.device != x.device or not z.is_floating_point():
        raise Refused("noise", z, f"a floating tensor like x_hat0, {form(x)}, is needed", f"returned {form(z)}")
    return z


def output(x_theta: Tensor, x: Tensor, step: int, t: float) -> None:
    """The return value of a model: floats of the shape of x, on its device."""
    shown = f"returned {form(x_theta)} at step {step}, t = {t:g}"
    if not isinstance(x_theta, Tensor):
        raise RefusedType("model", x_theta, "a tensor is needed", shown)
    if x_theta.shape != x.shape or x_theta.device != x.device:
        raise Refused("model", x_theta, f"shape {tuple(x.shape)} on {x.device} is needed", shown)
    if not x_theta.is_floating_point():
        raise RefusedType("model", x_theta, "floats are needed", shown)


def total(x: Tensor) -> Tensor:
    """The sum in at least float32. NaN and infinity stay in it, and it is far cheaper than isfinite().all()."""
    return x.sum(dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def net(value: object, x: Tensor, t: float) -> None:
    """The return value of a network: a floating tensor of the shape of x."""
    if not isinstance(value, Tensor) or value.shape != x.shape or not value.is_floating_point():
        what = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else form(value)
        raise Refused("net", value, f"a floating tensor of shape {tuple(x.shape)} is needed", f"returned {what} at t = {t:g}")


def amplification(sensitivity: Tensor, order: int) -> None:
    """Warns of a plan that multiplies errors of the model: its sensitivity to each step, (steps, *field)."""
    each = sensitivity.abs()
    most = float(each.sum(0).max())
    if most > _AMPLIFICATION:
        worst = int(each.reshape(len(each), -1).amax(1).argmax())
        advice = (
            f"it multiplies errors of the model by up to {most:.0f}, those of step {worst} most, since it extrapolates from "
            "outputs that lie close together. Take **presets.few_step(scale), order=1, or adams with variable=expansion.log_lam"
        )
        warn("order", order, advice, f"{order} with {len(each)} steps")


def spread(std: float, scale: float, steps: int) -> None:
    """Warns of a plan whose result has the wrong std, relative to the right one, on Gaussian data of the scale."""
    if not _NARROW <= std <= _WIDE:
        more = ", or more steps" if std < 1 else ""
        advice = f"the plan gives Gaussian data of this std {std:.3g} of it. Take **presets.few_step({scale:g}){more}"
        warn("scale", scale, advice, f"{scale:g} with {steps} steps")


def finite(totals: Sequence[Tensor], last: Tensor, times: Sequence[float], other: str = "noise") -> None:
    """The totals of all outputs of a model, and of the result: if that alone is not finite, `other` is to blame."""
    good = torch.stack([*totals, last]).isfinite().tolist()
    if all(good):
        return
    i = good.index(False)
    if i == len(times):
        shown = "the result is not finite, though every output of the model was"
        raise Refused(other, math.nan, "finite values are needed", shown)
    shown = f"returned NaN or infinity at step {i}, t = {times[i]:g}"
    raise Refused("model", math.nan, "finite values are needed", shown)


def transformed(x: Tensor) -> bool:
    """Whether a tensor is inside vmap, grad or jvp of torch.func, where it has no values to look at."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def writes(x: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count it."""
    return 0 if x.is_inference() else x._version


class Watched:
    """The model of one solve, watched: it must return new finite tensors like x, and write to none that the loop keeps.

    A call is model(step, x, past), where past is a deque of the outputs that the loop keeps. `finish` looks at values, once,
    so that no step waits for the device.
    """

    def __init__(self, model: Callable[[Tensor, Tensor, Tensor], Tensor], x_hat0: Tensor, dtype: torch.dtype, times: Tensor):
        self.model, self.x_hat0, self.dtype = model, x_hat0, dtype
        self.times, self.numbers = times.unbind(), times.tolist()
        self._totals: list[Tensor] = []
        self._reused: list[tuple[int, int]] = []  # steps whose outputs lie in the same memory
        self._writes: list[int] = []  # to x_theta of earlier steps, the newest first

    def __call__(self, step: int, x: Tensor, past: deque[Tensor]) -> Tensor:
        before, t = (writes(x), writes(self.x_hat0)), self.numbers[step]
        x_theta = self.model(x.to(self.dtype), self.x_hat0, self.times[step])
        if writes(x) != before[0]:
            shown = f"wrote to x at step {step}, t = {t:g}"
            raise Refused("model", self.model, "x is the state of the solve, work on a copy", shown)
        if writes(self.x_hat0) != before[1]:
            shown = f"wrote to x_hat0 at step {step}, t = {t:g}"
            raise Refused("model", self.model, "x_hat0 is the source of all steps, work on a copy", shown)
        if any(writes(output) != n for output, n in zip(past, self._writes, strict=False)):
            shown = f"wrote to an earlier output at step {step}, t = {t:g}"
            raise Refused("model", self.model, "return a new tensor each time", shown)
        output(x_theta, x, step, t)
        require(not transformed(x_theta), "differentiable", False, "True is needed inside torch.func (vmap, grad, jvp)")
        kept = itertools.islice(past, None if past.maxlen is None else past.maxlen - 1)  # for this step, beside the new one
        for age, earlier in enumerate(kept, 1):
            if x_theta.data_ptr() == earlier.data_ptr() != 0:
                self._reused.append((step, step - age))
        x_theta = x_theta.detach()  # of a model that guides by gradients
        self._totals.append(total(x_theta))
        if x_theta.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
            x_theta = x_theta.clone()  # of a model that returns its input
        self._writes = [writes(x_theta), *self._writes[: len(past)]]
        return x_theta

    def finish(self, x: Tensor) -> None:
        """Refused if an output was not finite, or overwrote an earlier one, or the result x is not finite."""
        finite(self._totals, total(x), self.numbers)
        for step, earlier in self._reused:
            # A buffer of a graph or a runtime, which counts no writes; a model may return one tensor that stays as it is.
            if not bool(self._totals[step] == self._totals[earlier]):
                shown = f"returned the memory of an earlier output at step {step}, t = {self.numbers[step]:g}"
                raise Refused("model", self.model, "return a copy of a static buffer", shown)
