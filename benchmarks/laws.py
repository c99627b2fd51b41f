"""What the default solve does to Gaussian data, by its number of steps: `dosde.law`, without a single model call.

    python benchmarks/laws.py        (a second)

For the paper's solver of order 3 on uniform times, order 1, `adams` in log lam, and `few_step`: the least and the largest std
of the result over the right one, for data of std 0.05 to 0.4, and how far the plan multiplies errors of a model that does not
look at the state. Prints the table, and writes it into docs/methods.md and its numbers into benchmarks/results/laws.json.
"""

import warnings
from typing import Any

import report

import dosde
from dosde import expansion, law, method, presets, schedule, shift
from dosde.law import sensitivity

PROCESS = dosde.Process(schedule.scaled_linear(), shift.cosine(0.5))
STEPS = (3, 5, 10, 20, 40, 80, 160)
WIDTHS = [0.05, 0.1, 0.2, 0.3, 0.4]
HOW: dict[str, dict[str, Any]] = {
    "default": {},
    "order 1": {"order": 1},
    "adams in log lam": {"order": 2, "method": method.using(method.adams, variable=expansion.log_lam)},
}


def measure() -> list[dict[str, Any]]:
    """A row a method and number of steps."""
    rows = []
    for name in (*HOW, "few_step of each std"):
        for steps in STEPS:
            if name in HOW:
                plan = dosde.plan(PROCESS, steps, **HOW[name])
                stds, factors = law(plan, WIDTHS).std.tolist(), [float(sensitivity(plan).abs().sum())]
            else:
                plans = [dosde.plan(PROCESS, steps, **presets.few_step(width)) for width in WIDTHS]
                stds = [float(law(plan, width).std) for plan, width in zip(plans, WIDTHS, strict=True)]
                factors = [float(sensitivity(plan).abs().sum()) for plan in plans]
            rows.append({"method": name, "steps": steps, "least": min(stds), "largest": max(stds), "errors": max(factors)})
    return rows


def table(numbers: report.Numbers) -> str:
    """Markdown: std from the least to the largest, and the factor of errors."""
    cells: dict[str, list[str]] = {}
    for row in numbers["rows"]:
        cells.setdefault(row["method"], []).append(f"{row['least']:.2f} to {row['largest']:.2f}; {row['errors']:.1f}")
    return report.table(["std over the right one; errors", *map(str, STEPS)], [[name, *row] for name, row in cells.items()])


REPORT = report.Report("laws", {("docs/methods.md", "laws"): table})


def main() -> None:
    given = report.parser(__doc__).parse_args()
    warnings.simplefilter("ignore", UserWarning)  # plans that amplify say so, which is what is measured
    numbers = {"command": "python benchmarks/laws.py", "rows": measure()}
    print(table(numbers))
    REPORT.write(numbers, given.out)


if __name__ == "__main__":
    main()
