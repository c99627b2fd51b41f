"""Solvers for diffusion that starts from a known source: domain-shift SDEs, and every linear Gaussian path like them.

    x0 = dosde.solve(model, x_hat0, steps=5, order=3)

schedule, shift -> Process -> plan of Steps (method, grid) -> solve. Each module begins with the equations that it computes.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import (
        bridge,
        check,
        cold,
        expansion,
        grid,
        interop,
        matching,
        method,
        noise,
        objective,
        posterior,
        prediction,
        presets,
        process,
        schedule,
        shift,
        srk,
        step,
        tables,
    )
    from .check import Refused
    from .law import law
    from .plan import plan
    from .prediction import Denoiser
    from .process import Marginal, Process
    from .solve import solve

__all__ = [
    "Denoiser",
    "Marginal",
    "Process",
    "Refused",
    "bridge",
    "check",
    "cold",
    "expansion",
    "grid",
    "interop",
    "law",
    "matching",
    "method",
    "noise",
    "objective",
    "plan",
    "posterior",
    "prediction",
    "presets",
    "process",
    "schedule",
    "shift",
    "solve",
    "srk",
    "step",
    "tables",
]
__version__ = "0.1.0"

# Modules load at their first use, so that the command line answers without torch.
_HOMES = {
    "Denoiser": "prediction",
    "Marginal": "process",
    "Process": "process",
    "Refused": "check",
    "law": "law",
    "plan": "plan",
    "solve": "solve",
}
"""The module of each name that is no module itself."""


class _Package(types.ModuleType):
    """`dosde.law`, `dosde.plan` and `dosde.solve` are the functions, though modules have these names too."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, types.ModuleType) and _HOMES.get(name) == name:  # an import has just loaded the module
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A public name, or a module, loaded now."""
        home = _HOMES.get(name, name)
        missing = AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name.startswith("_"):
            raise missing
        try:
            module = importlib.import_module(f".{home}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{home}":
                raise
            raise missing from None
        value = module if home == name and name not in _HOMES else getattr(module, name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
