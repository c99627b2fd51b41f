"""What "package.module:name" names: a network, a degradation, a backbone of a user's, in any module that Python finds.

Modules are looked for first in the folder where the command runs, as `python -m` does.
"""

import contextlib
import difflib
import functools
import importlib
import os
import re
import sys
import traceback
from typing import Any

from dosde.check import Refused

LEGAL = '"package.module:name"'


def is_name(text: str) -> bool:
    """Whether a text has the form package.module:name."""
    return re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", text) is not None


def found(argument: str, name: str) -> Any:
    """The thing that a name names.

    Args:
        argument: the argument or the key that has the name, for errors.
        name: "package.module:name".

    Raises:
        Refused: in one line that names the module, where it cannot be imported, whatever it does, or has no such name.
    """
    if not is_name(name) or ".py:" in name:
        hint = ", without .py" if ".py" in name else ""
        raise Refused(argument, name, f"{LEGAL} of something importable is needed{hint}")
    module, _, attribute = name.partition(":")
    with contextlib.suppress(OSError):  # the folder is gone
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
    if module not in sys.modules:
        importlib.invalidate_caches()  # for a file that was written a moment ago
    try:
        place = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the module does
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            shown = f"{name!r}; there is no module {error.name}, neither in {os.getcwd()} nor installed"
        else:
            shown = f"{name!r}; the module {module} fails: {said(error)}"
        raise Refused(argument, name, f"{LEGAL} of something importable is needed", shown) from None
    try:
        return functools.reduce(getattr, attribute.split("."), place)
    except AttributeError:
        near = difflib.get_close_matches(attribute, dir(place), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        shown = f"{name!r}; the module {module} has no {attribute}{hint}"
        raise Refused(argument, name, f"{LEGAL} of something importable is needed", shown) from None


def said(error: BaseException) -> str:
    """An error of somebody else's code in one line, with the place where it was raised."""
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {text}"  # which says the place
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    place = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"
