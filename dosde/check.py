"""What users can get wrong, and the one voice that says so.

    raise Refused("steps", 0, "a positive integer is needed")          steps: 0; a positive integer is needed

A refusal names the argument, shows its value in a few words, and says what is legal. Whoever catches one reads `.argument`,
`.value` and `.needed`, and never the text.
"""

import reprlib
import sys
import types
import warnings

from torch import Tensor

_OURS = ("dosde", "backbones")
_BETWEEN = (*_OURS, "torch")  # what may stand between a warning and the line of the user: torch wraps `solve`

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 120
_repr.maxlist = _repr.maxtuple = _repr.maxset = _repr.maxdict = 6


class Refused(ValueError):
    """An argument that cannot be used: `argument: value; needed`.

    Args:
        argument: the name of the argument, as the user knows it.
        value: what it was.
        needed: what is legal, a clause: "a positive integer is needed".
        shown: the value in words, where `shown(value)` does not say what matters.
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
    """A value in a few words: a tensor by dtype, shape and device, all else by its repr, shortened."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    return _repr.repr(value)


def warn(argument: str, value: object, advice: str, shown: str | None = None) -> None:
    """A UserWarning in the form of a refusal, at the line of the user's that led here."""
    frame: types.FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(f"{argument}: {describe(value) if shown is None else shown}; {advice}", stacklevel=level - 1)
