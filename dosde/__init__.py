"""Solvers for diffusion that starts from a known source: domain-shift SDEs, and every linear Gaussian path like them.

    x0 = dosde.solve(model, x_hat0, steps=5, order=3)

schedule, shift -> Process -> plan of Steps (method, grid) -> solve. Each module begins with the equations that it computes.
"""

from . import (
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
]
__version__ = "0.1.0"
