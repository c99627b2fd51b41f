"""40 plans, by process, grid and method: what tests/data/plans.npz has of version 0.1.0, and tests/test_plans.py compares.

python tests/plans.py tests/data/plans.npz        records them
"""

import sys
import warnings
from functools import partial

import numpy as np
import torch

import dosde
from dosde import expansion, grid, method, presets, schedule, shift
from dosde.process import Process, flow, resshift

CHANNELS = torch.tensor([0.3, 0.5, 0.85], dtype=torch.float64).reshape(3, 1, 1)
SCALES = torch.linspace(0.1, 0.3, 12, dtype=torch.float64).reshape(1, 3, 4)
PROCESSES = {
    "sd": Process(schedule.scaled_linear(), shift.cosine(0.5)),
    "linear": Process(schedule.linear(), shift.linear(0.7)),
    "plain": Process(schedule.cosine(), shift.none()),
    "resshift": resshift(),
    "dossr": presets.dossr()[0],
    "channels": Process(schedule.scaled_linear(), shift.cosine(CHANNELS)),
    "flow": flow(0.5),
    "flow_without_noise": flow(),
}
EVERYWHERE = {
    "dos": (method.dos, grid.uniform, 5, 3),
    "adams_log": (partial(method.adams, variable=expansion.log_lam), grid.log_lam(), 7, 3),
    "ode_corrected": (partial(method.ode, corrector=True), grid.karras(), 6, 2),
    "matched": (method.matched(0.2), grid.few_step(0.2), 4, 3),
    "matched_noisy": (method.matched(0.3, 0.7), grid.angle(0.3), 6, 3),
    "er_sde": (partial(method.adams, tau=method.er_sde), grid.uniform, 5, 2),
}
SQRT_V = partial(method.adams, variable=expansion.sqrt_v(0.3), tau=0.3, corrector=True, denoise=True)
ONCE = {
    "plain-dos": (method.dos, grid.karras(), 5, 2),
    "plain-ddpm": (method.resshift, grid.karras(), 5, 1),
    "plain-chain": (partial(method.adams, tau=method.chain, denoise=True), grid.karras(), 8, 3),
    "plain-srk": (method.srk, grid.two_stage(grid.karras()), 9, 2),
    "plain-ode_v": (partial(method.ode, variable=expansion.v(0.4)), grid.angle(0.4), 6, 4),
    "plain-sqrt_v": (SQRT_V, grid.angle(0.3), 6, 3),
    "resshift-released": (method.resshift, presets.resshift()[1], 15, 1),
    "dossr-released": (method.dos, presets.dossr()[1], 5, 3),
    "channels-dos": (method.dos, grid.uniform, 5, 3),
    "channels-ode_log": (partial(method.ode, corrector=True, variable=expansion.log_lam), grid.uniform, 5, 2),
    "channels-matched": (method.matched(0.2), grid.uniform, 5, 3),
    "sd-field_of_scales": (method.matched(SCALES), grid.few_step(0.2), 4, 3),
    "flow-flow": (method.flow, grid.uniform, 5, 2),
    "flow_without_noise-flow": (method.flow, grid.uniform, 5, 2),
    "flow-ode": (method.ode, grid.uniform, 5, 2),
    "sd-half": (partial(method.adams, tau=0.5), grid.uniform, 5, 4),
}
CASES = {f"{p}-{name}": case for p in ("sd", "linear", "resshift", "dossr") for name, case in EVERYWHERE.items()} | ONCE


def numbers(name: str) -> np.ndarray:
    """All coefficients of a plan in one row of float64, those of a field one after the other."""
    own, on, steps, order = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = dosde.plan(PROCESSES[name.split("-")[0]], steps, order, method=own, grid=on)
    values = [(s.t, s.t_next, s.u, s.u_next, s.keep, s.hat, s.noise, *s.new) for s in plan]
    return np.concatenate([np.asarray(v, dtype=np.float64).reshape(-1) for row in values for v in row])


if __name__ == "__main__":
    np.savez_compressed(sys.argv[1], **{name: numbers(name) for name in CASES})
