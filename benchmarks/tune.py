"""Chooses the grid of few_step on the problems of `suite.tuned`: prints the table over its two constants.

lam_k = s tan(pi/2 a_k),   a_0 = 1,   a_k = n/(n + delta) (1 - (k - 1)/(n - 1))^gamma,   k = 1 .. n
"""

import argparse
import math
from collections.abc import Sequence

import report
import suite
import torch
from report import ROOT
from torch import Tensor

import dosde
from dosde import method

PROCESS = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
STEPS = (2, 3, 5, 7, 10)


def lams(n: int, delta: float, gamma: float) -> Tensor:
    """lam_1 .. lam_(n-1), in units of the scale."""
    k = torch.arange(1, n, dtype=torch.float64)
    return torch.tan(math.pi / 2 * n / (n + delta) * (1 - (k - 1) / max(1, n - 1)) ** gamma)


def score(problems: list[suite.Problem], levels: Tensor, tau: float, count: int) -> float:
    """Geometric mean of the errors of a solve with these lam, in units of each scale."""
    n, errors = len(levels) + 1, []
    for problem in problems:
        ends = torch.tensor([PROCESS.t1, 0.0], dtype=torch.float64)
        times = torch.cat([ends[:1], PROCESS.time(levels * problem.scale), ends[1:]])
        source = problem.x_hat0.float().expand(count, -1)
        x0 = dosde.solve(
            problem.model(PROCESS),
            source,
            n,
            process=PROCESS,
            method=method.matched(problem.scale, tau),
            grid=times,
            noise=torch.Generator().manual_seed(0),
        )
        errors.append(problem.error(x0))
    return suite.geometric_mean(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1024, help="samples of each problem")
    count = parser.parse_args().count
    torch.set_num_threads(1)
    exact = suite.tuned()
    cases = [(problems, tau) for problems in (exact, [p.perturbed(0.02) for p in exact]) for tau in (0.0, 1.0)]
    rows: list[tuple[float, float, list[float]]] = []
    for delta in (0.25, 0.5, 1.0):
        for gamma in (1.0, 1.25, 1.5, 1.75, 2.0):
            errors = [
                suite.geometric_mean([score(problems, lams(n, delta, gamma), tau, count) for problems, tau in cases])
                for n in STEPS
            ]
            rows.append((delta, gamma, errors))
            print(f"delta {delta:<5} gamma {gamma:<5}", *(f"{e:.4f}" for e in errors), flush=True)
    report.save("tune", {"command": "python benchmarks/tune.py", "count": count, "steps": STEPS, "rows": rows})
    report.insert(ROOT / "docs" / "few_steps.md", "tune", table(rows))


def table(rows: Sequence[tuple[float, float, Sequence[float]]]) -> str:
    """Markdown. Bold: the least of each column."""
    lines = [
        "| delta | gamma | " + " | ".join(f"{n} calls" for n in STEPS) + " | all |",
        "|---|---|" + "---|" * (len(STEPS) + 1),
    ]
    values = [[*errors, suite.geometric_mean(list(errors))] for _, _, errors in rows]
    least = [min(column) for column in zip(*values, strict=True)]
    for (delta, gamma, _), row in zip(rows, values, strict=True):
        cells = [f"**{v:.4f}**" if v == w else f"{v:.4f}" for v, w in zip(row, least, strict=True)]
        lines.append(f"| {delta:g} | {gamma:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
