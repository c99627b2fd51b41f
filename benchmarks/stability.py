"""Whether few_step is ever worse than Solver-1 on the released grid at the same number of calls: 1 to 50, orders 1 to 3.

Every problem of `suite`, tuned and held out, tau = 0 and 1. Two things make a ratio above 1 without a method behind it, and are
told apart: Solver-1 is judged at lam = 0.03 where its grid ends, which flatters it on problems of a smaller scale; and at many
calls both are at the error of exact samples, where the draws decide. About two minutes.
"""

import functools
import multiprocessing
from pathlib import Path
from typing import Any

import few_step
import report
import suite
import torch

CALLS = (1, 2, 3, 5, 10, 25, 50)
END = 0.03  # lam at the end of the released grid
LIMIT = 1.05


def measure(index: int, count: int = 1024) -> list[dict[str, Any]]:
    """All cases of one problem."""
    problem = [*suite.tuned(), *suite.held_out()][index]
    floor, rows = problem.floor(count), []
    for calls in CALLS:
        first = problem.error(*few_step.released(1)(problem, calls, count))
        for tau in (0.0, 1.0):
            for order in range(1, min(3, calls) + 1):
                sample = few_step.solved(functools.partial(few_step.preset, tau=tau), order)
                error = problem.error(*sample(problem, calls, count))
                case = {"problem": problem.name, "scale": problem.scale, "calls": calls, "order": order, "tau": tau}
                rows.append(case | {"few_step": error, "solver_1": first, "floor": floor})
    return rows


def kind(row: dict[str, Any]) -> str:
    if row["few_step"] <= LIMIT * row["solver_1"]:
        return "at most 5% worse"
    if row["scale"] < END:
        return "more, scale below the noise that Solver-1 ends with"
    return "more, Solver-1 within 1.5 of exact samples" if row["solver_1"] < 1.5 * row["floor"] else "more, otherwise"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: cases by kind, and the worst of each."""
    kinds = ["at most 5% worse", "more, scale below the noise that Solver-1 ends with"]
    lines = []
    for name in [*kinds, "more, Solver-1 within 1.5 of exact samples", "more, otherwise"]:
        cases = [row for row in rows if kind(row) == name]
        if not cases:
            lines.append([name, "0", "", "", "", ""])
            continue
        worst = max(cases, key=lambda row: row["few_step"] / row["solver_1"])
        what = f"{worst['problem']}, {worst['calls']}, {worst['order']}, {worst['tau']:g}"
        errors = f"{worst['few_step']:.3f}, {worst['solver_1']:.3f}"
        ratio = f"{worst['few_step'] / worst['solver_1']:.2f}"
        lines.append([name, str(len(cases)), ratio, what, errors, f"{worst['floor']:.3f}"])
    of_it = "of it: problem, calls, order, tau"
    return report.table(["few_step against Solver-1", "cases", "worst ratio", of_it, "errors", "exact samples"], lines)


def plot(numbers: report.Numbers, path: Path) -> None:
    rows = numbers["rows"]
    with report.figure(path, (7, 4)) as (_, axis):
        for name in dict.fromkeys(map(kind, rows)):
            cases = [row for row in rows if kind(row) == name]
            axis.loglog([r["calls"] for r in cases], [r["few_step"] / r["solver_1"] for r in cases], ".", label=name, alpha=0.5)
        axis.axhline(LIMIT, color="k", linestyle=":")
        report.counted(axis, CALLS, xlabel="model calls", ylabel="error of few_step / Solver-1")
        axis.legend(fontsize=7)


REPORT = report.Report(
    "stability",
    {("benchmarks/results/few_step.md", "stability"): lambda numbers: table(numbers["rows"])},
    {"stability.png": plot},
)


def main() -> None:
    out = report.parser(__doc__).parse_args().out
    torch.set_num_threads(1)  # a process a core is faster
    problems = [*suite.tuned(), *suite.held_out()]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        rows = [row for part in pool.imap(measure, range(len(problems)), chunksize=1) for row in part]
    print(table(rows))
    REPORT.write({"command": "python benchmarks/stability.py", "rows": rows}, out)


if __name__ == "__main__":
    main()
