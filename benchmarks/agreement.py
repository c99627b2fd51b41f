"""One model, three libraries: `solve`, the samplers of k-diffusion and torchdiffeq's odeint on the same probability-flow ODE.

    python benchmarks/agreement.py            (half a minute; pip install --no-deps k-diffusion for the package's own samplers)

The model is exact for a mixture of two Gaussians, on scaled_linear noise and the cosine shift. All start from the same x at
lam = 20 and follow the ODE to lam = 0.2, with steps uniform in log lam. The reference is odeint (dopri5, tolerance 1e-11) on
dx/dt = f x + h x_hat0 - g^2 score/2, which knows nothing of lam. Ours solves it as a domain-shift process; theirs sees
y = (x - b x_hat0)/a through `as_denoiser`; `sample_dosde` is ours again, called as one of theirs. Without the package, its
published formulas below stand in for it.

Prints a table of largest differences from odeint and writes it into docs/interop.md, benchmarks/results/interop.json and
docs/interop.png. tests/test_interop.py asserts their slopes.
"""

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import report
import torch
from overhead import k_diffusion_sampling
from torch import Tensor

import dosde
from backbones.exact.mixture import Mixture
from dosde import expansion, method, schedule, shift
from dosde.interop.k_diffusion import as_denoiser, sample_dosde
from dosde.process import Process
from dosde.step import Coefficient, Method

DOUBLE = torch.float64
PROCESS = Process(schedule.scaled_linear(), shift.cosine(0.5))
FIRST, LAST = 20.0, 0.2
STEPS = (10, 20, 40, 80, 160)
X_HAT0 = torch.tensor([[0.2, 0.1], [0.8, -0.4]], dtype=DOUBLE)
Z = torch.tensor([[0.7, -1.1], [-0.3, 0.4]], dtype=DOUBLE)
MODEL = Mixture(
    torch.tensor([0.3, 0.7], dtype=DOUBLE),
    torch.tensor([[0.0, 1.0], [1.0, -0.5]], dtype=DOUBLE),
    torch.stack([0.3 * torch.eye(2, dtype=DOUBLE), 0.5 * torch.eye(2, dtype=DOUBLE)]),
).model(PROCESS)

Sampler = Callable[..., Tensor]


def euler(model: Sampler, x: Tensor, sigmas: Tensor, disable: bool | None = None) -> Tensor:
    """Euler's method in sigma for dx/dsigma = (x - denoised)/sigma (Karras et al. 2022, Algorithm 1 without its correction)."""
    for sigma, sigma_next in pairwise(sigmas):
        slope = (x - model(x, sigma.expand(len(x)))) / sigma
        x = x + (sigma_next - sigma) * slope
    return x


def dpmpp_2m(model: Sampler, x: Tensor, sigmas: Tensor, disable: bool | None = None) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2) at alpha = 1, to a last sigma > 0."""
    before: tuple[Tensor, Tensor] | None = None
    for sigma, sigma_next in pairwise(sigmas):
        denoised, h = model(x, sigma.expand(len(x))), torch.log(sigma / sigma_next)
        D = denoised
        if before is not None:
            r = before[1] / h
            D = denoised + (denoised - before[0]) / (2 * r)
        x = sigma_next / sigma * x - torch.expm1(-h) * D
        before = denoised, h
    return x


def samplers() -> tuple[str, Sampler, Sampler]:
    """What they are, Euler and DPM-Solver++(2M): k-diffusion's where it is installed."""
    try:
        package = k_diffusion_sampling()
    except ImportError:
        return "formulas", euler, dpmpp_2m
    return "k-diffusion", package.sample_euler, package.sample_dpmpp_2m


def lams(steps: int) -> Tensor:
    return torch.logspace(math.log10(FIRST), math.log10(LAST), steps + 1, dtype=DOUBLE)


def _start(u: Coefficient, u_next: Coefficient, like: Tensor) -> Tensor:
    return Z


def ours(how: Method, order: int, steps: int) -> Tensor:
    times = PROCESS.time(lams(steps))
    return dosde.solve(MODEL, X_HAT0, steps, order, process=PROCESS, method=how, grid=times, noise=_start)


def theirs(sampler: Sampler, steps: int, **how: Any) -> Tensor:
    """In y, and back: x = a y + b x_hat0 at the last time."""
    sigmas, last = lams(steps), PROCESS(PROCESS.time(LAST))
    y = sampler(as_denoiser(MODEL, X_HAT0, PROCESS), X_HAT0 + sigmas[0] * Z, sigmas, disable=True, **how)
    return last.a * y + last.b * X_HAT0


@functools.cache
def odeint() -> Tensor:
    """The reference, by torchdiffeq. Errors: ImportError."""
    from torchdiffeq import odeint as integrate

    def slope(t: Tensor, x: Tensor) -> Tensor:
        score = PROCESS.score(x, X_HAT0, MODEL(x, X_HAT0, t), t)
        return PROCESS.f(t) * x + PROCESS.h(t) * X_HAT0 - PROCESS.g(t) ** 2 / 2 * score

    times = PROCESS.time(torch.tensor([FIRST, LAST], dtype=DOUBLE))
    first = PROCESS(times[0])
    x: Tensor = integrate(slope, first.alpha * X_HAT0 + first.sigma * Z, times, rtol=1e-11, atol=1e-11)[-1]
    return x


def contenders() -> dict[str, Callable[[int], Tensor]]:
    name, first, second = samplers()
    log_ode = functools.partial(method.ode, variable=expansion.log_lam)
    return {
        "solve, ode 1": functools.partial(ours, method.ode, 1),
        f"{name} Euler": functools.partial(theirs, first),
        "solve, ode 2 in log lam": functools.partial(ours, log_ode, 2),
        f"{name} DPM-Solver++(2M)": functools.partial(theirs, second),
        "solve, ode 3 in log lam": functools.partial(ours, log_ode, 3),
        "sample_dosde, ode 3 in log lam": functools.partial(theirs, sample_dosde, order=3, method=log_ode),
    }


def measure(steps: Sequence[int] = STEPS) -> dict[str, list[float]]:
    """Largest difference from odeint, by contender, at each step count."""
    exact = odeint()
    return {name: [float((run(n) - exact).abs().max()) for n in steps] for name, run in contenders().items()}


def table(steps: Sequence[int], rows: dict[str, list[float]]) -> str:
    """Markdown, as it stands in docs/interop.md."""
    lines = [[str(n), *(f"{errors[i]:.1e}" for errors in rows.values())] for i, n in enumerate(steps)]
    return report.table(["steps", *rows], lines)


def plot(numbers: report.Numbers, path: Path) -> None:
    with report.figure(path, (6.4, 4.2)) as (_, axis):
        for i, (name, errors) in enumerate(numbers["rows"].items()):
            style, marker = ("-", ".") if i % 2 == 0 else ("--", "x")
            axis.loglog(numbers["steps"], errors, style, color=f"C{i // 2}", marker=marker, label=name)
        report.counted(axis, numbers["steps"], xlabel="steps", ylabel="largest difference from odeint")
        axis.legend(fontsize=7)


REPORT = report.Report(
    "interop",
    {("docs/interop.md", "interop"): lambda numbers: table(numbers["steps"], numbers["rows"])},
    {"interop.png": plot},
)


def main() -> None:
    out = report.parser(__doc__).parse_args().out
    rows = measure()
    print(table(STEPS, rows))
    REPORT.write({"command": "python benchmarks/agreement.py", "steps": STEPS, "rows": rows}, out)


if __name__ == "__main__":
    main()
