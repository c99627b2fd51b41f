"""What was tried for few steps, and what each part of the recommendation is worth: one change at a time.

    python benchmarks/ablation.py       (about five minutes)

Geometric mean over the problems of `suite.tuned` of the sliced 2-Wasserstein error, as in few_step.py; tau = 0 unless said.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import report
import suite
import torch
from suite import Problem, geometric_mean
from torch import Tensor

import dosde
from dosde import expansion, grid, matching, method, presets
from dosde.grid import Grid
from dosde.process import Process
from dosde.step import Array, Method

STEPS = (2, 3, 5, 10)
PROCESS = Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))


def score(problems: list[Problem], steps: int, how: Method | None, times: Grid | None, order: int, tau: float) -> float:
    """None: those of the preset."""
    errors = []
    for problem in problems:
        keywords = presets.few_step(problem.scale, tau)
        x0 = dosde.solve(
            problem.model(PROCESS),
            problem.x_hat0.float().expand(1024, -1),
            steps,
            min(order, steps),
            process=PROCESS,
            method=how or keywords["method"],
            grid=times or keywords["grid"],
            noise=torch.Generator().manual_seed(0),
        )
        errors.append(problem.error(x0) if bool(x0.isfinite().all()) else math.inf)
    return geometric_mean(errors)


@contextlib.contextmanager
def constants(
    spread: float = matching.SPREAD, ridge: float = matching.RIDGE, centre: float = matching.CENTRE, inflate: bool = True
) -> Iterator[None]:
    """The module with other constants, or with every q = 1: the noise of the marginal in every state."""
    before, fit = (matching.SPREAD, matching.RIDGE, matching.CENTRE), matching._fit

    def uninflated(base: Array, columns: Array, target: Array, share: Array, first: Array) -> Array:
        if columns.shape[-1] == 1:
            return np.ones((len(base), 1))
        # What is carried is fixed: it goes to the base, and a column of zeros keeps q at 1.
        return fit(base + columns[..., 0], np.concatenate([0 * columns[..., :1], columns[..., 1:]], -1), target, share, first)

    matching.SPREAD, matching.RIDGE, matching.CENTRE = spread, ridge, centre
    if not inflate:
        matching._fit = uninflated
    matching._widths.cache_clear()
    matching._remembered.cache_clear()
    try:
        yield
    finally:
        matching.SPREAD, matching.RIDGE, matching.CENTRE = before
        matching._fit = fit
        matching._widths.cache_clear()
        matching._remembered.cache_clear()


Row = tuple[str, dict[int, float]]


def measure(problems: list[Problem]) -> list[Row]:
    rows: list[Row] = []

    def add(name: str, how: Method | None = None, times: Grid | None = None, order: int = 3, tau: float = 0.0) -> None:
        with np.errstate(all="ignore"):
            rows.append((name, {n: score(problems, n, how, times, order, tau) for n in STEPS}))
        print(f"{name:60s}", *(f"{v:.3f}" for v in rows[-1][1].values()), flush=True)

    add("few_step")
    add("few_step, tau 1/2", tau=0.5)
    add("few_step, tau 1", tau=1.0)
    for order in (1, 2, 4, 10):
        add(f"order {order}", order=order)
    for spread in (0.05, 0.3, 0.8):
        with constants(spread=spread):
            add(f"widths spread by {spread:g}")
    with constants(spread=0.05, centre=1.0):
        add("one width, s: a Gaussian reference")
    for centre in (1.0, 2.0):
        with constants(centre=centre):
            add(f"widths about {centre:g} s")
    for ridge in (0.01, 0.2):
        with constants(ridge=ridge):
            add(f"ridge {ridge:g}")
    with constants(inflate=False):
        add("q = 1: no inflation of the noise")
        add("q = 1, tau 1", tau=1.0)
    add_scaled(rows, problems)
    for name, times in {
        "uniform in t": grid.uniform,
        "log lam, 80 to 0.03": grid.log_lam(),
        "Karras, 80 to 0.03": grid.karras(),
    }.items():
        add(f"grid: {name}", times=times)
    per_problem(rows, problems)
    return rows


def add_scaled(rows: list[Row], problems: list[Problem]) -> None:
    """A scale that is wrong by a factor."""
    for factor in (0.5, 0.67, 1.5, 2.0):
        by_steps = {}
        for n in STEPS:
            errors = []
            for problem in problems:
                how = presets.few_step(problem.scale * factor)
                errors.append(score([problem], n, how["method"], how["grid"], 3, 0.0))
            by_steps[n] = geometric_mean(errors)
        rows.append((f"scale wrong by a factor of {factor:g}", by_steps))
        print(f"{rows[-1][0]:60s}", *(f"{v:.3f}" for v in by_steps.values()), flush=True)


def per_problem(rows: list[Row], problems: list[Problem]) -> None:
    """Methods and grids that need the scale of each problem."""
    ode, adams = method.ode, method.adams

    def polynomial(variable: str, corrected: bool, sde: bool, order: int, wide: float, even: bool) -> None:
        by_steps = {}
        for n in STEPS:
            errors = []
            for p in problems:
                s = wide * p.scale
                v = {"v": expansion.v(s), "sqrt v": expansion.sqrt_v(s), "log lam": expansion.log_lam, "lam": expansion.lam}[
                    variable
                ]
                how = functools.partial(adams if sde else ode, variable=v, corrector=corrected)
                errors.append(score([p], n, how, grid.angle(s) if even else grid.few_step(p.scale), order, 0.0))
            by_steps[n] = geometric_mean(errors)
        name = f"{'SDE' if sde else 'ODE'} {order} in {variable}{', corrector' * corrected}"
        name += f", {'angle grid' if even else 'same grid'}{f', both with {wide:g} s' if wide != 1 else ''}"
        rows.append((name, by_steps))
        print(f"{name:60s}", *(f"{v:.3f}" for v in by_steps.values()), flush=True)

    for variable in ("lam", "log lam", "v", "sqrt v"):
        polynomial(variable, False, False, 2, 1.0, False)
    polynomial("v", True, False, 2, 1.0, False)
    polynomial("v", True, False, 3, 1.0, False)
    polynomial("v", True, False, 2, 1.5, True)
    polynomial("v", False, True, 2, 1.5, True)
    polynomial("v", True, True, 2, 1.5, True)
    made_of: dict[str, Callable[[Problem], Grid]] = {
        "grid: angle": lambda p: grid.angle(p.scale),
        "grid: angle with 1.5 s": lambda p: grid.angle(1.5 * p.scale),
        "start at lam = 30 s": lambda p: scaled_start(p.scale, 30.0),
        "start at lam = 8 s": lambda p: scaled_start(p.scale, 8.0),
    }
    for name, made in made_of.items():
        by_steps = {n: geometric_mean([score([p], n, None, made(p), 3, 0.0) for p in problems]) for n in STEPS}
        rows.append((name, by_steps))
        print(f"{name:60s}", *(f"{v:.3f}" for v in by_steps.values()), flush=True)


def scaled_start(scale: float, top: float) -> Grid:
    """The grid of the preset for one call more, from its second time on, at lam = top s: the first call sees x_hat0 + lam z."""

    def times(process: Process, steps: int) -> Tensor:
        whole = grid.few_step(scale)(process, steps + 1)
        lams = (process(whole).lam / scale)[1:-1]
        # The angles of 2 s, stretched so that they begin at top.
        angles = torch.atan(lams / 2)
        last, first = angles[-1], math.atan(top / 2)
        angles = last + (angles - last) * ((first - last) / (angles[0] - last) if steps > 1 else 0)
        return torch.cat([process.time(2 * scale * torch.tan(angles)), whole[-1:]])

    return times


def table(rows: list[Row]) -> str:
    """Markdown, as it stands in benchmarks/results/ablation.md."""
    lines = [[name, *(f"{by_steps[n] if n in by_steps else by_steps[str(n)]:.3f}" for n in STEPS)] for name, by_steps in rows]  # type: ignore[index]
    return report.table(["calls", *map(str, STEPS)], lines)


REPORT = report.Report("ablation", {("benchmarks/results/ablation.md", "ablation"): lambda numbers: table(numbers["rows"])})


def main() -> None:
    out = report.parser(__doc__).parse_args().out
    torch.set_num_threads(1)
    begun = time.monotonic()
    rows = measure(suite.tuned())
    print(f"{time.monotonic() - begun:.0f} s")
    REPORT.write({"command": "python benchmarks/ablation.py", "rows": rows}, out)


if __name__ == "__main__":
    main()
