"""The lists over which properties are tested, and what many tests use: a process, a model, tensors, generators, wrong calls.

A new schedule, shift, grid or method is tested by adding it to its list.
"""

from functools import partial

import pytest
import torch

import dosde
from dosde import expansion, grid, method, schedule, shift
from dosde.check import Refused, RefusedType
from dosde.process import Process, resshift

DOUBLE = torch.float64
PROCESS = Process(schedule.scaled_linear(), shift.cosine(0.5))
"""The process that a test takes if any will do."""


def tensor(values):
    return torch.tensor(values, dtype=DOUBLE)


def randn(*shape):
    """Other values at every call, the same in every run: the seed is set before each test."""
    return torch.randn(*shape, dtype=DOUBLE)


def seeded(seed=0):
    """A generator of random numbers."""
    return torch.Generator().manual_seed(seed)


def model(x, x_hat0, t):
    """For `solve`: neither linear nor the same at all times."""
    return torch.tanh(1.3 * x + 0.4) * 0.5 - 0.2 * x_hat0 * t


def wrong_calls(cases):
    """A test of calls that are refused. cases: {name: (call, ValueError or TypeError, pattern of the one line)}."""

    @pytest.mark.parametrize("name", cases)
    def test(name):
        call, kind, message = cases[name]
        with pytest.raises(kind, match=message) as caught:
            call()
        refused = caught.value
        assert type(refused) is {ValueError: Refused, TypeError: RefusedType}[kind]
        assert str(refused) == f"{refused.argument}: {refused.shown}; {refused.needed}"
        assert "\n" not in str(refused)
        assert len(str(refused)) < 400

    return test


TABLE = torch.cumprod(1 - torch.linspace(0.001, 0.03, 200, dtype=torch.float64), 0)
ETAS = torch.linspace(0, 1, 200, dtype=torch.float64) ** 1.5
CHANNELS = torch.tensor([0.3, 0.5, 0.85], dtype=torch.float64).reshape(3, 1, 1)
PIXELS = torch.linspace(0.2, 1.0, 12, dtype=torch.float64).reshape(1, 3, 4)

SCHEDULES = {
    "scaled_linear": schedule.scaled_linear(),
    "linear": schedule.linear(),
    "cosine": schedule.cosine(),
    "table": schedule.from_alphas_cumprod(TABLE),
    "ve": schedule.ve(lambda t: 3 * t),
}
SHIFTS = {
    "none": shift.none(),
    "cosine": shift.cosine(0.5),
    "cosine_late": shift.cosine(0.9),
    "linear": shift.linear(0.7),
    "table": shift.from_table(ETAS),
    "bare": lambda t: (2 * t).clamp(max=1) ** 2,
}
FIELDS = {
    "channels": shift.cosine(CHANNELS),
    "pixels": shift.linear(PIXELS),
}
PROCESSES = {f"{s}-{e}": Process(SCHEDULES[s], SHIFTS[e]) for s in SCHEDULES for e in SHIFTS}
PROCESSES["resshift"] = resshift()
PROCESSES["resshift4"] = resshift(T=4, eta_min=0.01)
PROCESSES["dossr"] = dosde.presets.dossr()[0]
FIELD_PROCESSES = {f"{s}-{e}": Process(SCHEDULES[s], FIELDS[e]) for s in ("scaled_linear", "ve") for e in FIELDS}


METHODS = {
    "dos": method.dos,
    "adams": method.adams,
    "adams_log": partial(method.adams, variable=expansion.log_lam),
    "adams_v": partial(method.adams, variable=expansion.v(0.7)),
    "adams_half": partial(method.adams, tau=0.5),
    "adams_er": partial(method.adams, tau=method.er_sde),
    "adams_chain": partial(method.adams, tau=method.chain),
    "adams_corrected": partial(method.adams, corrector=True),
    "adams_sqrt_v_denoised": partial(method.adams, variable=expansion.sqrt_v(0.3), tau=0.3, corrector=True, denoise=True),
    "ode": method.ode,
    "ode_corrected": partial(method.ode, variable=expansion.v(0.4), corrector=True),
    "ode_log": partial(method.ode, variable=expansion.log_lam),
    "ode_v": partial(method.ode, variable=expansion.v(0.7)),
    "resshift": method.resshift,
}
MOST = {"dos": 3, "resshift": 1}  # the highest order of a method, where there is one

GRIDS = {
    "uniform": grid.uniform,
    "log_lam": grid.log_lam(),
    "karras": grid.karras(),
    "angle": grid.angle(0.3),
    "few_step": grid.few_step(0.2),
    "times": lambda process, steps: torch.linspace(0.9, 0.05, steps + 1, dtype=torch.float64) * process.t1,
}
