"""The options of a backbone, declared once: in the annotations of the keywords of its `load`.

The module of a `load` imports torch when `load` is called, so that the command line knows all options without it.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
L = TypeVar("L")


@dataclass(frozen=True)
class Option:
    """What the command line says of a keyword of `load`, in the annotation of the keyword:

        def load(*, tile: Annotated[int | str | None, Option("side of the tiles", side, metavar="PIXELS")] = "auto") -> Mine:

    Name, type and default are those of the keyword; "none" stands for None where the type has it.

    Args:
        help: a few words; the default belongs to them.
        parse: text -> value; a ValueError of it refuses the text, and says what is needed.
        metavar: a word for the value.
        choices: all values, if they are few.
        flag: the name on the command line, where it is another than that of the keyword.
    """

    help: str
    parse: Callable[[str], Any] = str
    metavar: str | None = None
    choices: Sequence[str] | None = None
    flag: str | None = None


DTYPES = ("float32", "float16", "bfloat16")


def side(text: str) -> int | str:
    """The side of tiles, from text."""
    if text in ("auto", "none"):
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number of pixels, 'auto' or 'none' is needed") from None


def amount(text: str) -> float:
    """Bytes, from text such as 6G, 500MiB or 1e9."""
    needed = "a number of bytes above 0, such as 6G or 500M, is needed"
    units = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
    number, unit = text.lower().removesuffix("b").removesuffix("i"), ""
    if number[-1:] in units:
        number, unit = number[:-1], number[-1:]
    try:
        size = float(number) * units[unit]
    except ValueError:
        raise ValueError(needed) from None
    if not 0 < size < float("inf"):
        raise ValueError(needed)
    return size


# Options that backbones have in common.
TILE = Option("side of the tiles in the output, 'auto' or 'none' (default: auto)", side, metavar="PIXELS")
DTYPE = Option("default: bfloat16 on a GPU, float32 on the CPU", choices=("auto", *DTYPES))
DEVICE = Option("cpu, cuda, cuda:1, mps (default: a GPU if there is one)", metavar="NAME")


@dataclass(frozen=True)
class Declared:
    """An option as a `load` declares it. required: it has no default; optional: None is a value."""

    name: str
    option: Option
    required: bool
    optional: bool

    @property
    def flag(self) -> str:
        """The name on the command line, without its dashes."""
        return self.option.flag or self.name.replace("_", "-")


def options(load: Callable[..., Any]) -> Mapping[str, Declared]:
    """The options that a `load` declares, by keyword, in its order."""
    found = {}
    parameters = inspect.signature(load).parameters
    try:
        hints = typing.get_type_hints(load, include_extras=True)
    except NameError:  # of a type that is imported for type checkers alone: what `load` returns
        hints = inspect.get_annotations(inspect.unwrap(load))
    for name, hint in hints.items():
        for option in getattr(hint, "__metadata__", ()):
            if isinstance(option, Option):
                required = parameters[name].default is inspect.Parameter.empty
                found[name] = Declared(name, option, required, NoneType in typing.get_args(hint.__origin__))
    return found


def loads(name: str) -> Callable[[Callable[P, L]], Callable[P, L]]:
    """Decorates the `load` of a backbone, so that what it returns knows the call: the name, and what is not the default."""

    def decorate(load: Callable[P, L]) -> Callable[P, L]:
        signature = inspect.signature(load)

        @functools.wraps(load)
        def called(*args: P.args, **kwargs: P.kwargs) -> L:
            backbone = load(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            changed = {key: value for key, value in given.items() if value != signature.parameters[key].default}
            object.__setattr__(backbone, "_call", (name, changed))  # backbones are frozen dataclasses
            return backbone

        return called

    return decorate
