"""Orders of the methods, measured: the slopes of four errors over step counts.

    python benchmarks/convergence.py        (about a minute; --quick, with fewer steps, in seconds)

drift     x_theta a smooth function of lam alone: what is left is the expansion of the nonlinear integral
strong    RMS distance, on one Brownian path, to that path's solution on a fine grid (a two-component mixture)
weak      error of the variance of the output's exact law (a Gaussian; its mean is exact)
ode       distance to the solution of the probability-flow ODE (a two-component mixture)

default   the weak error again, on the default grid of `solve`, uniform in t down to t = 0, where lam goes like sqrt(t)
late      the error of ode again, on times that begin at t = 0.4, at a finite lam, where the first step is of order 1
graded    the same, with the first steps of `grid.graded_start`

All in float64 on scaled_linear noise and the cosine shift, from t1 = 1/2 (lam infinite), but for the last to t = 0.1. Prints a
table and writes it into docs/methods.md, its numbers into benchmarks/results/convergence.json, and a plot,
docs/convergence.png. tests/test_orders.py asserts these slopes.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import report
import torch
from torch import Tensor

import dosde
from backbones.exact import gaussian
from backbones.exact.mixture import Mixture
from dosde import expansion, grid, method, schedule, shift
from dosde.grid import Grid
from dosde.method import Psi
from dosde.noise import Brownian, Stages
from dosde.process import Process
from dosde.step import Coefficient, Method

DOUBLE = torch.float64
PROCESS = Process(schedule.scaled_linear(), shift.cosine(0.5))
END = 0.1  # above t = 0: there lam goes like sqrt(t), which a polynomial in lam does not follow on a uniform grid in t

METHODS: dict[str, tuple[Method, tuple[int, ...]]] = {
    "dos": (method.dos, (1, 2, 3)),
    "adams": (method.adams, (1, 2, 3, 4)),
    "adams, log lam": (functools.partial(method.adams, variable=expansion.log_lam), (2, 3)),
    "resshift": (method.resshift, (1,)),
    "adams, corrector": (functools.partial(method.adams, corrector=True), (1, 2)),
    "adams, tau 1/2": (functools.partial(method.adams, tau=0.5), (1, 2)),
    "adams, ER-SDE": (functools.partial(method.adams, tau=method.er_sde), (1, 2)),
    "srk": (method.srk, (2,)),
    "ode": (method.ode, (1, 2, 3, 4)),
    "ode, log lam": (functools.partial(method.ode, variable=expansion.log_lam), (2, 3)),
    "ode, v": (functools.partial(method.ode, variable=expansion.v(0.7)), (2, 3)),
    "ode, sqrt v": (functools.partial(method.ode, variable=expansion.sqrt_v(0.7)), (2, 3)),
    "ode, corrector": (functools.partial(method.ode, corrector=True), (1, 2, 3)),
    "ode, v, corrector": (functools.partial(method.ode, variable=expansion.v(0.7), corrector=True), (1, 2, 3)),
}
DETERMINISTIC = tuple(name for name in METHODS if name.startswith("ode"))
NOISES: dict[str, float | Psi] = {
    "adams, tau 1/2": 0.5,
    "adams, ER-SDE": method.er_sde,
}  # whose paths are those of another SDE; 1 elsewhere


def graded(process: Process, steps: int) -> Tensor:
    """Finer near t1, where 1/lam goes like (t1 - t)^2, so that the low order of the first steps does not show."""
    s = torch.linspace(0, 1, steps + 1, dtype=DOUBLE)
    return process.t1 + (END - process.t1) * s**2


def staged(how: Method, times: Grid, steps: int) -> Tensor:
    """The grid for a method: with its stages for srk, whose step counts are those of calls."""
    return grid.two_stage(times)(PROCESS, steps) if how is method.srk else times(PROCESS, steps)


def slope(errors: Sequence[float]) -> float:
    """The order between the last two errors, whose step counts differ by a factor of two."""
    return math.log2(errors[-2] / errors[-1])


def _zeros(u: Coefficient, u_next: Coefficient, like: Tensor) -> Tensor:
    return torch.zeros_like(like)


def _drift(how: Method, order: int, steps: int) -> float:
    def x_theta(x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 / (1 + PROCESS(t).lam)).expand_as(x)

    x_hat0 = torch.zeros(1, dtype=DOUBLE)
    return float(dosde.solve(x_theta, x_hat0, steps, order, process=PROCESS, method=how, grid=graded, noise=_zeros))


@functools.cache
def _drift_exact(deterministic: bool) -> float:
    return _drift(method.ode if deterministic else method.adams, 4, 6000)


def drift(how: Method, order: int, steps: int, deterministic: bool = False) -> float:
    return abs(_drift(how, order, steps) - _drift_exact(deterministic))


_PLANE = Mixture(
    torch.tensor([0.3, 0.7], dtype=DOUBLE),
    torch.tensor([[0.0, 1.0], [1.0, -0.5]], dtype=DOUBLE),
    torch.stack([0.3 * torch.eye(2, dtype=DOUBLE), 0.5 * torch.eye(2, dtype=DOUBLE)]),
)


def _ode(how: Method, order: int, steps: int, times: Grid = graded) -> Tensor:
    return dosde.solve(
        _PLANE.model(PROCESS),
        torch.tensor([[0.2, 0.1], [0.8, -0.4]], dtype=DOUBLE),
        steps,
        order,
        process=PROCESS,
        method=how,
        grid=times,
        noise=torch.Generator().manual_seed(3),
    )


@functools.cache
def _ode_exact() -> Tensor:
    return _ode(method.ode, 4, 4000)


def ode(how: Method, order: int, steps: int) -> float:
    return float((_ode(how, order, steps) - _ode_exact()).abs().max())


def _late(process: Process, steps: int) -> Tensor:
    return torch.linspace(0.4, END, steps + 1, dtype=DOUBLE)


@functools.cache
def _late_exact() -> Tensor:
    return _ode(method.ode, 4, 2000, grid.graded_start(4, _late))


def late(how: Method, order: int, steps: int) -> float:
    return float((_ode(how, order, steps, _late) - _late_exact()).abs().max())


def started(how: Method, order: int, steps: int, corrected: bool) -> float:
    times = grid.graded_start(order + corrected, _late)
    return float((_ode(how, order, steps, times) - _late_exact()).abs().max())


def weak(how: Method, order: int, steps: int, default_grid: bool = False) -> float:
    target = gaussian.diagonal(torch.tensor([0.7, -0.3], dtype=DOUBLE), torch.tensor([0.04, 1.3], dtype=DOUBLE))
    x_hat0 = torch.tensor([0.1, -0.2], dtype=DOUBLE)
    times, end = (None, 0.0) if default_grid else (staged(how, graded, steps), END)
    law = target.law(PROCESS, x_hat0, steps=steps, order=order, method=how, grid=times)
    exact = target.at(PROCESS, end, x_hat0)
    if float((law.mean - exact.mean).abs().max()) > 1e-12:
        raise AssertionError("the mean of a Gaussian is exact from t1")
    return float((law.variance - exact.variance).abs().max())


_LINE = Mixture(
    torch.tensor([0.4, 0.6], dtype=DOUBLE),
    torch.tensor([[-0.6], [0.8]], dtype=DOUBLE),
    torch.tensor([[[0.1]], [[0.2]]], dtype=DOUBLE),
)


@functools.cache
def _path() -> Callable[[Coefficient, Coefficient, Tensor], Tensor]:
    """One Brownian path a sample; its values are remembered, since all step counts ask for the same."""
    path = Brownian(seed=5)
    value = functools.cache(path.value)
    path.value = value  # type: ignore[method-assign]
    return path


def _strong(how: Method, order: int, steps: int, top: float = 1.0) -> Tensor:
    """From top t1. With 0 < tau < 1 the noise drawn near lam = infinity fades like lam^-tau^2 only: they begin below."""

    def times(process: Process, steps: int) -> Tensor:
        return torch.linspace(top * process.t1, END, steps + 1, dtype=DOUBLE)

    return dosde.solve(
        _LINE.model(PROCESS),
        torch.zeros(2000, 1, dtype=DOUBLE),  # with few paths the RMS hangs on those that nearly took the other mode
        steps,
        order,
        process=PROCESS,
        method=how,
        grid=staged(how, times, steps),
        noise=Stages(_path(), points=16) if how is method.srk else _path(),
    )


@functools.cache
def _strong_exact(noise: float | Psi, finest: int) -> Tensor:
    return _strong(functools.partial(method.adams, tau=noise), 2, finest, 1.0 if noise == 1 else 0.9)


def strong(how: Method, order: int, steps: int, noise: float | Psi = 1.0, finest: int = 2048) -> float:
    result = _strong(how, order, steps, 1.0 if noise == 1 else 0.9)
    return float((result - _strong_exact(noise, finest)).square().mean().sqrt())


COUNTS: dict[str, tuple[int, ...]] = {
    "drift": (25, 50, 100, 200, 400),
    "strong": (8, 16, 32, 64, 128),
    "weak": (24, 50, 100, 200, 400),
    "ode": (20, 40, 80, 160, 320),
}
QUICK: dict[str, tuple[int, ...]] = {
    "drift": (100, 200),
    "strong": (32, 64),
    "weak": (200, 400),
    "ode": (80, 160),
    "late": (80, 160),
    "started": (80, 160),
}


def measure(counts: dict[str, tuple[int, ...]]) -> list[dict[str, object]]:
    """One row a method and order: errors at each step count and their slopes."""
    rows: list[dict[str, object]] = []
    for name, (how, orders) in METHODS.items():
        deterministic = name in DETERMINISTIC
        for order in orders:
            errors = {}
            if name not in ("resshift", "srk", *NOISES):
                errors["drift"] = [drift(how, order, n, deterministic) for n in counts["drift"]]
            if deterministic:
                errors["ode"] = [ode(how, order, n) for n in counts["ode"]]
                errors["late"] = [late(how, order, n) for n in counts["ode"]]
                corrected = name.endswith("corrector")
                errors["graded"] = [started(how, order, n, corrected) for n in counts["ode"]]
            else:
                errors["strong"] = [strong(how, order, n, NOISES.get(name, 1.0)) for n in counts["strong"]]
            errors["weak"] = [weak(how, order, n) for n in counts["weak"]]
            if name != "srk":
                errors["default"] = [weak(how, order, n, True) for n in counts["weak"]]
            rows.append({"method": name, "order": order, "errors": errors, "slopes": {k: slope(e) for k, e in errors.items()}})
    return rows


COLUMNS = {
    "drift": "expansion",
    "strong": "strong",
    "weak": "weak",
    "ode": "ODE",
    "late": "ODE from a finite lam",
    "graded": "the same, graded start",
    "default": "weak, default grid to t = 0",
}


def table(rows: list[dict[str, object]]) -> str:
    """Markdown, as it stands in docs/methods.md."""
    lines = []
    for row in rows:
        slopes: dict[str, float] = row["slopes"]  # type: ignore[assignment]
        cells = [f"{slopes[k] + 0.0:.2f}" if k in slopes else "" for k in COLUMNS]
        lines.append([str(row["method"]), str(row["order"]), str(1 + (row["method"] == "srk")), *cells])
    return report.table(["method", "order", "calls a step", *COLUMNS.values()], lines)


def plot(numbers: report.Numbers, path: Path) -> None:
    from matplotlib import colormaps

    colours = {name: colormaps["tab20"](i) for i, name in enumerate(METHODS)}
    titles = {"drift": "expansion", "strong": "strong (one path)", "weak": "weak (exact law)", "ode": "ODE"}
    with report.figure(path, (15, 4.2), columns=4) as (_, axes):
        for axis, (kind, title) in zip(axes, titles.items(), strict=True):
            for row in numbers["rows"]:
                errors: dict[str, list[float]] = row["errors"]
                if kind in errors:
                    style = {1: "-", 2: "--", 3: "-.", 4: ":"}[row["order"]]
                    label, colour = f"{row['method']} {row['order']}", colours[row["method"]]
                    axis.loglog(numbers["steps"][kind], errors[kind], style, color=colour, label=label, marker=".")
            report.counted(axis, numbers["steps"][kind], title=title, xlabel="steps")
            axis.legend(fontsize=5)
        axes[0].set_ylabel("error")


REPORT = report.Report(
    "convergence",
    {("docs/methods.md", "convergence"): lambda numbers: table(numbers["rows"])},
    {"convergence.png": plot},
)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps; print only")
    given = parser.parse_args()
    counts = QUICK if given.quick else COUNTS
    warnings.simplefilter("ignore", UserWarning)  # orders 4 on many uniform steps amplify, and say so
    rows = measure(counts)
    print(table(rows))
    if given.out or not given.quick:
        REPORT.write({"command": "python benchmarks/convergence.py", "steps": counts, "rows": rows}, given.out)


if __name__ == "__main__":
    main()
