"""Few steps: ours and the field's samplers at the same number of model calls, on problems whose laws are known exactly.

    python benchmarks/few_step.py                       (under 15 minutes on 2 cores; --quick, on a part, under one)
    python benchmarks/few_step.py --process resshift    (what the methods gain on ResShift's process)

Each number is a geometric mean over the problems of `suite` of the sliced 2-Wasserstein error in units of the residual scale.
Ours run through `dosde.solve` on a domain-shift process; peers run on y = (x - b x_hat0)/a, from x_hat0 + lam z. Every peer
has its best grid at each number of calls and each error of the model: of `GRIDS`, the one of least error on a part of the
problems. Errors of the model are smooth in x and lam, of 2% and 5% of the residual. The solvers of the paper are judged where
their grid ends, at lam = 0.03, against the exact law there.
"""

import functools
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report
import suite
import torch
from peers import PEERS, Peer
from suite import Problem, excess, geometric_mean
from torch import Tensor

import dosde
from dosde import expansion, grid, method, presets
from dosde.process import Process

CALLS = (1, 2, 3, 4, 5, 7, 10, 15, 20)
COMPARED = (3, 5, 7, 10)
SAMPLES, SEARCH = 2048, 256  # of each problem: for the numbers, for the choice of a peer's grid
PROCESS = Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))

Sample = Callable[[Problem, int, int], tuple[Tensor, float]]  # (problem, calls, samples) -> y and the lam it ends at


@dataclass(frozen=True)
class Row:
    """A method of ours. released: it ends at lam > 0."""

    name: str
    sample: Sample
    stochastic: bool


def solved(how: Callable[[Problem], dict[str, Any]], order: int | None = None, process: Process = PROCESS) -> Sample:
    def sample(problem: Problem, calls: int, count: int) -> tuple[Tensor, float]:
        source = problem.x_hat0.float().expand(count, -1)
        most = None if order is None else min(order, calls)
        noise = torch.Generator().manual_seed(0)
        return dosde.solve(problem.model(process), source, calls, most, process=process, noise=noise, **how(problem)), 0.0

    return sample


def released(order: int) -> Sample:
    def sample(problem: Problem, calls: int, count: int) -> tuple[Tensor, float]:
        process, times = presets.dossr(calls)
        source = problem.x_hat0.float().expand(count, -1)
        noise = torch.Generator().manual_seed(0)
        x = dosde.solve(problem.model(process), source, calls, min(order, calls), process=process, grid=times, noise=noise)
        end = process(times[-1])
        return (x - end.b * source) / end.a, float(end.lam)

    return sample


def preset(problem: Problem, tau: float) -> dict[str, Any]:
    return presets.few_step(problem.scale, tau)


def lead(problem: Problem) -> dict[str, Any]:
    s = 1.5 * problem.scale
    return {"method": functools.partial(method.ode, variable=expansion.v(s), corrector=True), "grid": grid.angle(s)}


OURS = (
    Row("few_step", solved(functools.partial(preset, tau=0.0)), False),
    Row("few_step, tau 1/2", solved(functools.partial(preset, tau=0.5)), True),
    Row("few_step, tau 1", solved(functools.partial(preset, tau=1.0)), True),
    Row("few_step, order 2", solved(functools.partial(preset, tau=0.0), 2), False),
    Row("few_step, scale x 1/2", solved(lambda p: presets.few_step(p.scale / 2)), False),
    Row("few_step, scale x 2", solved(lambda p: presets.few_step(p.scale * 2)), False),
    Row("ode 2 in v, corrector, angle grid", solved(lead, 2), False),
    *(Row(f"Solver-{k}, released grid", released(k), True) for k in (1, 2, 3)),
)


def grids(calls: int, scale: float) -> list[tuple[str, list[float]]]:
    """The grids that peers choose from: lam from `top` to `end` (in units of the scale), then 0."""
    result = []
    for top in (4.0, 10.0, 30.0, 100.0):
        for end in (0.05, 0.15, 0.4):
            for rho in (2.0, 7.0):
                x = np.linspace(1, 0, calls) if calls > 1 else np.ones(1)
                lams = (x * top ** (1 / rho) + (1 - x) * end ** (1 / rho)) ** rho * scale
                result.append((f"{top:g} to {end:g}, rho {rho:g}", [*lams.tolist(), 0.0]))
    return result


GRIDS = len(grids(5, 1.0))


def run_peer(peer: Peer, problem: Problem, steps: int, which: int, count: int) -> float:
    """The error of a peer on one of the grids."""
    lams = grids(steps, problem.scale)[which][1]
    g = torch.Generator().manual_seed(0)
    d = problem.x_hat0.shape[-1]

    def draw() -> Tensor:
        return torch.randn(count, d, generator=g)

    one = torch.ones(())

    def model(y: Tensor, lam: float) -> Tensor:
        return problem.denoise(y, one, one * lam)

    y = peer.sample(model, problem.x_hat0.float() + lams[0] * draw(), lams, draw)
    return problem.error(y) if bool(y.isfinite().all()) else 1e3


def steps_of(peer: Peer, calls: int) -> int:
    """The most steps within so many calls."""
    return max(n for n in range(1, calls + 1) if peer.calls(n) <= calls)


def best_grid(peer: Peer, problems: Sequence[Problem], steps: int, every: int) -> int:
    """The index of the grid with the least error. Grids that fall far behind on the first problems are dropped."""
    best, chosen = float("inf"), 0
    for which in range(0, GRIDS, every):
        errors: list[float] = []
        for problem in problems:
            errors.append(run_peer(peer, problem, steps, which, SEARCH))
            if geometric_mean(errors) > 3 * best:
                break
        if geometric_mean(errors) < best and len(errors) == len(problems):
            best, chosen = geometric_mean(errors), which
    return chosen


# -- One job a method -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A method, by its name, at these numbers of calls and this error of the model."""

    name: str
    calls: tuple[int, ...]
    err: float
    quick: bool


def problems_of(job: Job) -> dict[str, list[Problem]]:
    sets = {"tuned": suite.tuned(), "held out": suite.held_out()}
    return {
        name: [p.perturbed(job.err) if job.err else p for p in (problems[::4] if job.quick else problems)]
        for name, problems in sets.items()
    }


def measure(job: Job) -> dict[str, Any]:
    """Errors by problem: {set: {calls: [error, ...]}}, and a peer's grids."""
    sets, count = problems_of(job), 512 if job.quick else SAMPLES
    result: dict[str, Any] = {"name": job.name, "err": job.err, "errors": {name: {} for name in sets}}
    ours = {row.name: row for row in OURS}
    peers = {peer.name: peer for peer in PEERS}
    if job.name in peers:
        peer = peers[job.name]
        result |= {"stochastic": peer.stochastic, "peer": True, "grids": {}}
        for calls in job.calls:
            steps = steps_of(peer, calls)
            which = best_grid(peer, [p for problems in sets.values() for p in problems[::4]], steps, 4 if job.quick else 1)
            result["grids"][calls] = grids(steps, 1.0)[which][0]
            for name, problems in sets.items():
                result["errors"][name][calls] = [run_peer(peer, p, steps, which, count) for p in problems]
    else:
        row = ours[job.name]
        result |= {"stochastic": row.stochastic, "peer": False}
        for calls in job.calls:
            for name, problems in sets.items():
                ends = [(p, row.sample(p, calls, count)) for p in problems]
                result["errors"][name][calls] = [p.error(y, lam) for p, (y, lam) in ends]
    return result


def compare(quick: bool) -> dict[str, Any]:
    """All of it, on two processes."""
    calls = (3, 5) if quick else CALLS
    names = [row.name for row in OURS] + [peer.name for peer in PEERS]
    if quick:
        names = ["few_step", "few_step, tau 1", "Solver-3, released grid", "dpm++ 2m", "unipc 2 bh2", "dpm++ 3m sde"]
    jobs = [Job(name, calls, 0.0, quick) for name in names]
    jobs += [
        Job(name, (5,) if quick else COMPARED, err, quick) for err in ((0.05,) if quick else (0.02, 0.05)) for name in names
    ]
    count = 512 if quick else SAMPLES
    sets = problems_of(Job("", (), 0.0, quick))
    floors = {name: [p.floor(count) for p in problems] for name, problems in sets.items()}
    with multiprocessing.get_context("fork").Pool(2) as pool:  # the suite is made once, before
        rows = []
        for i, row in enumerate(pool.imap(measure, jobs)):
            rows.append(row)
            print(f"\r{i + 1} of {len(jobs)}", end="", flush=True)
    print("\r", end="")
    return {
        "command": "python benchmarks/few_step.py",
        "calls": list(calls),
        "problems": {name: [p.name for p in problems] for name, problems in sets.items()},
        "floors": floors,
        "rows": rows,
    }


# -- What is shown --------------------------------------------------------------------------------------------------------


def measured_at(row: dict[str, Any], calls: int, which: str) -> bool:
    return not {calls, str(calls)}.isdisjoint(row["errors"][which])


def mean_of(row: dict[str, Any], calls: int, which: str) -> float:
    by_calls = row["errors"][which]
    return geometric_mean(by_calls[calls] if calls in by_calls else by_calls[str(calls)])


def table(numbers: dict[str, Any], which: str, err: float) -> str:
    """Markdown: a line a method. Bold: the least of each column."""
    rows = [row for row in numbers["rows"] if row["err"] == err]
    calls = [n for n in numbers["calls"] if measured_at(rows[0], n, which)]
    lines = []
    least = {n: min(mean_of(row, n, which) for row in rows) for n in calls}
    for row in rows:
        values = [(mean_of(row, n, which), least[n]) for n in calls]
        cells = [f"**{v:.3f}**" if v == w else f"{v:.3f}" if v < 10 else "-" for v, w in values]
        lines.append([row["name"], "yes" if row["stochastic"] else "", *cells])
    floor = f"*{geometric_mean(numbers['floors'][which]):.3f}*"
    return report.table(["", "noise", *map(str, calls)], [*lines, ["*exact samples*", "", *[floor] * len(calls)]])


@dataclass(frozen=True)
class Comparison:
    """An error of ours beside one of others. goal: the key in benchmarks/results/goals.json of a bound for the ratio."""

    what: str
    goal: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs if self.theirs else math.inf if self.ours else 0.0

    def __str__(self) -> str:
        ratio = f"ratio {self.ratio:.2f}" if self.theirs else "which is the floor"
        return f"- {self.what}: {self.ours:.4f} against {self.theirs:.4f} ({ratio})"


def comparisons(numbers: dict[str, Any], which: str) -> list[Comparison]:
    """Ours against Solver-3 and against the best of the others at each number of calls."""
    rows = {(row["name"], row["err"]): row for row in numbers["rows"]}
    peers = [row for row in numbers["rows"] if row["peer"]]
    floor = geometric_mean(numbers["floors"][which])
    few, third = rows["few_step", 0.0], rows["Solver-3, released grid", 0.0]

    def best(rivals: list[dict[str, Any]], calls: int) -> dict[str, Any]:
        return min(rivals, key=lambda row: mean_of(row, calls, which))

    least = min(mean_of(third, n, which) for n in numbers["calls"])
    at_best, at_5 = "W at 3 calls over that of Solver-3 at its best", "W at 5 calls over that of Solver-3 at 5"
    made = [
        Comparison("W at 3 calls, and of Solver-3 at its best number of calls", at_best, mean_of(few, 3, which), least),
        Comparison("W at 5 calls, and of Solver-3 at 5", at_5, mean_of(few, 5, which), mean_of(third, 5, which)),
    ]
    for name, stochastic in (("few_step", False), ("few_step, tau 1/2", True), ("few_step, tau 1", True)):
        if (name, 0.0) not in rows:
            continue
        for n in (n for n in COMPARED if n in numbers["calls"]):
            rival = best([row for row in peers if row["err"] == 0 and (row["stochastic"] or not stochastic)], n)
            ours, theirs = (excess(mean_of(row, n, which), floor) for row in (rows[name, 0.0], rival))
            what = f"excess of {name} at {n}, and of the best {'stochastic ' * stochastic}peer, {rival['name']}"
            made.append(Comparison(what, f"excess of {name} over that of the best peer", ours, theirs))
    for err in sorted({row["err"] for row in peers} - {0.0}):
        for n in (n for n in COMPARED if measured_at(few, n, which)):
            rivals = [row for row in peers if row["err"] == err and measured_at(row, n, which)]
            if rivals:
                rival = best(rivals, n)
                what = f"W at {n} with a model wrong by {err:.0%}, and of the best peer, {rival['name']}"
                ours = mean_of(rows["few_step", err], n, which)
                made.append(Comparison(what, "W with a wrong model over that of the best peer", ours, mean_of(rival, n, which)))
    return made


def judged(numbers: dict[str, Any]) -> str:
    """The goals beside the ratios."""
    return report.judged(
        "few_step",
        [(f"{which}: {one.what}", one.goal, one.ratio) for which in numbers["problems"] for one in comparisons(numbers, which)],
    )


BRIEF = (
    *("few_step", "few_step, tau 1", *(f"Solver-{k}, released grid" for k in (1, 2, 3))),
    *("dpm++ 2m", "dpm++ 3m sde", "deis log 3", "unipc 3 bh2"),
)


def brief(numbers: dict[str, Any]) -> str:
    """What stands in docs/few_steps.md: some rows, and the best of all peers at each number of calls."""
    rows = [row for row in numbers["rows"] if row["err"] == 0]
    peers = [row for row in rows if row["peer"]]
    best = {n: [min(mean_of(row, n, "held out") for row in peers)] for n in numbers["calls"]}
    row = {"name": f"the best of {len(peers)} samplers", "err": 0.0, "stochastic": False, "errors": {"held out": best}}
    shown = [row for name in BRIEF for row in rows if row["name"] == name]
    return table(numbers | {"rows": [*shown, row]}, "held out", 0.0)


def document(numbers: dict[str, Any]) -> str:
    """What stands in benchmarks/results/few_step.md."""
    parts = []
    for which, problems in numbers["problems"].items():
        parts += [
            f"**{which.capitalize()}** problems ({len(problems)}), exact models; number of calls:",
            "",
            table(numbers, which, 0.0),
            "",
        ]
    for err in sorted({row["err"] for row in numbers["rows"]} - {0.0}):
        parts += [f"Held out, models wrong by {err:.0%}:", "", table(numbers, "held out", err), ""]
    for which in numbers["problems"]:
        parts += [f"Against the best of the others, {which}:", "", *map(str, comparisons(numbers, which)), ""]
    return "\n".join(parts).rstrip()


def plot(numbers: report.Numbers, path: Path) -> None:
    exact = [row for row in numbers["rows"] if row["err"] == 0 and "scale" not in row["name"]]
    with report.figure(path, (12, 4.6), columns=2, sharey=True) as (_, axes):
        for axis, stochastic in zip(axes, (False, True), strict=True):
            for row in (row for row in exact if row["stochastic"] == stochastic):
                ours = row["name"].startswith("few_step")
                values = [mean_of(row, n, "held out") for n in numbers["calls"]]
                style = {"linewidth": 2.5, "zorder": 3} if ours else {"linewidth": 1, "alpha": 0.8}
                axis.loglog(numbers["calls"], values, label=row["name"], marker=".", **style)
            axis.axhline(geometric_mean(numbers["floors"]["held out"]), color="k", linestyle=":", label="exact samples")
            title = "with noise" if stochastic else "ODE"
            report.counted(axis, numbers["calls"], title=title, xlabel="model calls", ylim=(0.03, 1.3))
            axis.legend(fontsize=6, ncols=2)
        axes[0].set_ylabel("sliced W2 / residual scale, held-out problems")


# -- ResShift's process ---------------------------------------------------------------------------------------------------


def resshift_table(count: int = SAMPLES) -> dict[str, Any]:
    """Errors at 4 and 15 calls on the published processes of ResShift, of its sampler and of ours."""
    rows: dict[str, dict[str, list[float]]] = {}
    problems = suite.held_out()
    for calls in (4, 15):
        process, times = presets.resshift(calls, T=calls)
        published: dict[str, Any] = {"grid": times}
        on_chain = functools.partial(method.adams, tau=method.chain)
        same_grid: dict[str, tuple[dict[str, Any], int]] = {
            "resshift (published)": (published | {"method": method.resshift}, 1),
            "dos 1, same grid": (published, 1),
            "dos 3, same grid": (published, 3),
            "ode 1, same grid": (published | {"method": method.ode}, 1),
            "ode 2, same grid": (published | {"method": method.ode}, 2),
            "adams 2 with the chain's noise, same grid": (published | {"method": on_chain}, 2),
        }
        for name, (how, order) in same_grid.items():
            errors = [p.error(solved(lambda _, how=how: how, order, process)(p, calls, count)[0]) for p in problems]  # type: ignore[misc]
            rows.setdefault(name, {})[str(calls)] = errors
        for tau in (0.0, 1.0):
            sample = solved(functools.partial(preset, tau=tau), None, process)
            rows.setdefault(f"few_step, tau {tau:g}", {})[str(calls)] = [p.error(sample(p, calls, count)[0]) for p in problems]
    return {"problems": [p.name for p in problems], "floors": [p.floor(count) for p in problems], "rows": rows}


def resshift_document(numbers: dict[str, Any]) -> str:
    """What stands in benchmarks/results/few_step.md."""
    lines = [[name, *(f"{geometric_mean(by_calls[n]):.3f}" for n in ("4", "15"))] for name, by_calls in numbers["rows"].items()]
    floor = f"*{geometric_mean(numbers['floors']):.3f}*"
    return report.table(["on ResShift's process", "4 calls", "15 calls"], [*lines, ["*exact samples*", floor, floor]])


TABLES = "benchmarks/results/few_step.md"
REPORT = report.Report(
    "few_step", {("docs/few_steps.md", "few_step_brief"): brief, (TABLES, "few_step"): document}, {"few_steps.png": plot}
)
RESSHIFT = report.Report("few_step_resshift", {(TABLES, "few_step_resshift"): resshift_document})


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a part of the problems, methods and calls; print only")
    parser.add_argument("--process", choices=("dossr", "resshift"), default="dossr", help="the process (default: dossr)")
    given = parser.parse_args()
    begun = time.monotonic()
    torch.set_num_threads(1)  # a process a core is faster
    if given.process == "resshift":
        written, numbers = RESSHIFT, resshift_table(512 if given.quick else SAMPLES)
        print(resshift_document(numbers))
    else:
        written, numbers = REPORT, compare(given.quick)
        print(document(numbers), judged(numbers), sep="\n\n")
    print(f"\n{time.monotonic() - begun:.0f} s")
    if given.out or not given.quick:
        written.write(numbers, given.out)


if __name__ == "__main__":
    main()
