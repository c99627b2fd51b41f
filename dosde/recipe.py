"""Things that say which call made them.

A maker returns a function: a schedule, a shift, a grid, a method, a variable. Decorated with `maker`, it returns that function
as a `Made`, which remembers the call. Printing it shows the call; equal calls make equal things, which hash, pickle and copy.

    >>> from dosde import shift
    >>> shift.cosine(0.3), shift.cosine(0.3) == shift.cosine(t1=0.3)
    (dosde.shift.cosine(t1=0.3), True)
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from .check import describe, typed

P = ParamSpec("P")
R = TypeVar("R")


def maker(function: Callable[P, R]) -> Callable[P, R]:
    """A function that returns functions, as one whose results say which call made them.

    Arguments of a type that the annotations do not allow are refused. Tensors are copied: what is made does not change when
    the caller writes to them.
    """

    made = typed(function)

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = inspect.signature(function).bind(*args, **kwargs)
        except TypeError:  # a word too much or too few: Python says it better, with the name of the function
            return function(*args, **kwargs)
        bound.apply_defaults()
        bound.arguments.update({name: _copied(value) for name, value in bound.arguments.items()})
        return cast(R, Made(make, bound, cast(Callable[..., Any], made(*bound.args, **bound.kwargs))))

    return make


class Made:
    """The function that a maker returned, with the call that made it.

    Attributes of the function are attributes of it, and so are the arguments of the call.
    """

    def __init__(self, maker: Callable[..., Any], call: inspect.BoundArguments, function: Callable[..., Any]) -> None:
        self._maker, self._call = maker, call
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._call.arguments and not hasattr(self.__wrapped__, name):
            return self._call.arguments[name]
        return getattr(self.__wrapped__, name)

    @functools.cached_property
    def _key(self) -> object:
        return self._maker, key(self._call.arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Made) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __reduce__(self) -> tuple[object, ...]:
        return _remade, (self._maker, self._call.args, self._call.kwargs)

    def __repr__(self) -> str:
        shown = [f"{name}={describe(value)}" for name, value in self._changed()]
        return f"{self._maker.__module__}.{self._maker.__qualname__}({', '.join(shown)})"

    def _changed(self) -> list[tuple[str, object]]:
        """The arguments that are not the defaults, by name."""
        named: list[tuple[str, object]] = []
        for name, parameter in inspect.signature(self._maker).parameters.items():
            value = self._call.arguments[name]
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named += value.items()
            elif parameter.default is inspect.Parameter.empty or key(value) != key(parameter.default):
                named.append((name, value))
        return named


class ByValue:
    """A frozen dataclass that holds tensors: equality and hash by what they hold, and a short repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        fields = dataclasses.fields(cast(Any, self))
        return f"{type(self).__name__}({', '.join(f'{f.name}={describe(getattr(self, f.name))}' for f in fields)})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and key(self) == key(other)

    def __hash__(self) -> int:
        return hash(key(self))


def key(value: object) -> object:
    """A value as something to compare and hash by: tensors by dtype, shape and content, all else by its parts or itself."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
        return ("tensor", str(value.dtype), tuple(value.shape), content.numpy().tobytes())
    if isinstance(value, np.ndarray):
        return ("array", str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, Mapping):
        return tuple((name, key(part)) for name, part in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(key(part) for part in value)
    if isinstance(value, functools.partial):
        return ("partial", value.func, key(value.args), key(value.keywords))
    if isinstance(value, ByValue):
        return (type(value), *(key(getattr(value, field.name)) for field in dataclasses.fields(cast(Any, value))))
    return value


def _copied(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return torch.Size(value) if isinstance(value, torch.Size) else tuple(value) if isinstance(value, list) else value


def _remade(maker: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    return maker(*args, **kwargs)
