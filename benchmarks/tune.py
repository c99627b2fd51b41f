"""Chooses the constants of few_step on the problems of `suite.tuned`: each is varied alone.

    lam_1 = first n^1.6 s,    lam_(n-1) = (last + 1/n) s,    evenly between in the angle of wide s,    widths about centre s

Errors as in few_step.py, geometric means over tau = 0 and 1, exact models and ones wrong by 2%. About five minutes.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import report
import suite
import torch
from torch import Tensor

import dosde
from dosde import matching, method
from dosde.process import Process

PROCESS = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
STEPS = (2, 3, 5, 7, 10)


@dataclass(frozen=True)
class Constants:
    first: float = 0.75
    last: float = 0.2
    wide: float = 2.0
    centre: float = 1.5


def times(process: Process, n: int, scale: float, c: Constants) -> Tensor:
    """The grid of `grid.few_step` with other constants, for lam from infinity to 0."""
    first, last = (math.atan(lam / c.wide) for lam in (c.first * n**1.6, c.last + 1 / n))
    lams = c.wide * scale * torch.tan(torch.linspace(first, last, n - 1, dtype=torch.float64))
    start = torch.tensor([process.t1], dtype=torch.float64)
    return torch.cat([start, process.time(lams), torch.zeros(1, dtype=torch.float64)])


def score(problems: list[suite.Problem], n: int, tau: float, c: Constants, count: int) -> float:
    """Geometric mean of the errors."""
    errors = []
    for problem in problems:
        x0 = dosde.solve(
            problem.model(PROCESS),
            problem.x_hat0.float().expand(count, -1),
            n,
            process=PROCESS,
            method=method.matched(problem.scale * c.centre / matching.CENTRE, tau),
            grid=times(PROCESS, n, problem.scale, c),
            noise=torch.Generator().manual_seed(0),
        )
        errors.append(problem.error(x0))
    return suite.geometric_mean(errors)


def table(rows: Sequence[tuple[dict[str, float], Sequence[float]]]) -> str:
    """Markdown. The first row is what `few_step` has; the others show what they change."""
    chosen, lines = rows[0][0], []
    for constants, errors in rows:
        changed = [f"{k} {v:g}" for k, v in constants.items() if v != chosen[k]]
        name = ", ".join(changed) or "**" + ", ".join(f"{k} {v:g}" for k, v in constants.items()) + "**"
        lines.append([name, *(f"{v:.4f}" for v in (*errors, suite.geometric_mean(list(errors))))])
    return report.table(["", *(f"{n} calls" for n in STEPS), "all"], lines)


REPORT = report.Report("tune", {("benchmarks/results/ablation.md", "tune"): lambda numbers: table(numbers["rows"])})


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--count", type=int, default=768, help="samples of each problem")
    given = parser.parse_args()
    torch.set_num_threads(1)
    exact = suite.tuned()
    cases = [(problems, tau) for problems in (exact, [p.perturbed(0.02) for p in exact]) for tau in (0.0, 1.0)]
    tried = [Constants()]
    for name, values in {"first": (0.5, 1.0), "last": (0.1, 0.4), "wide": (1.0, 4.0), "centre": (1.0, 2.0)}.items():
        tried += [replace(Constants(), **{name: value}) for value in values]
    rows: list[tuple[dict[str, float], list[float]]] = []
    for c in tried:
        errors = [suite.geometric_mean([score(problems, n, tau, c, given.count) for problems, tau in cases]) for n in STEPS]
        rows.append((asdict(c), errors))
        print(asdict(c), *(f"{e:.4f}" for e in errors), flush=True)
    REPORT.write({"command": "python benchmarks/tune.py", "count": given.count, "rows": rows}, given.out)


if __name__ == "__main__":
    main()
