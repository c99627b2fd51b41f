"""Posteriors of measurements in few calls: ours and other samplers on the same denoiser, on priors whose posteriors are known.

    python benchmarks/posterior.py            (six minutes on a core; --quick, on a part, half a minute)

Priors are Gaussians and a mixture over 8x8 patches; measurements are 4x super-resolution, inpainting and deblurring with noise
of std 0.02. Gaussian priors are conditioned by `posterior.jacobian_free`, which is exact for them, and the mixture by
`posterior.mmps`, which is not. The error is that of `suite`: the sliced 2-Wasserstein distance to the exact posterior over its
std. The samplers of azula (pip install --no-deps azula einops) and of `peers` start at x_hat0 + lam z, x_hat0 = A^T (A A^T +
s^2)^-1 y, and have the best of `GRIDS` at each number of calls: the one of least error on a part of the problems.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report
import suite
import torch
from peers import PEERS
from suite import Problem, geometric_mean
from torch import Tensor

import dosde
from backbones.exact.gaussian import dct2
from backbones.exact.mixture import Mixture
from dosde import expansion, grid, method, posterior, presets
from dosde.interop import from_denoiser
from dosde.process import Process

CALLS = (3, 4, 5, 8, 16)
SAMPLES, SEARCH = 1024, 128
NOISE = 0.02
PROCESS = Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
FIELD = ("dpm++ 2m", "unipc 3 bh2", "deis log 3")  # of `peers`

Denoiser = Callable[[Tensor, Tensor], Tensor]
Sample = Callable[["Measured", int, int], Tensor]  # (problem, calls, samples) -> x0


# -- Problems ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Measured:
    """A posterior: its exact law, its denoiser by a method of `dosde.posterior`, and x_hat0 (1, 64)."""

    problem: Problem
    denoiser: Denoiser
    x_hat0: Tensor

    @property
    def gaussian(self) -> bool:
        return self.problem.family == "Gaussian"


def operators() -> dict[str, Tensor]:
    """Matrices (m, 64) of the measurements of an 8x8 patch."""
    unit = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    w = torch.exp(-(torch.arange(-2, 3, dtype=torch.float64) ** 2) / (2 * 1.2**2))
    blur = posterior.blur(torch.outer(w, w) / w.sum() ** 2)
    seen = torch.rand(64, generator=torch.Generator().manual_seed(5)) < 0.4
    return {
        "super-resolution": posterior.downsampling((8, 8), (2, 2))(unit).flatten(1).mT,
        "inpainting": torch.eye(64, dtype=torch.float64)[seen],
        "deblurring": blur(unit).flatten(1).mT,
    }


def priors() -> dict[str, Mixture]:
    """Mixtures of one Gaussian and of four, over 8x8 patches."""
    g = torch.Generator().manual_seed(0)
    unit = torch.eye(64, dtype=torch.float64).reshape(64, 8, 8)
    modes = dct2(unit).reshape(64, 64)
    frequency = torch.arange(8, dtype=torch.float64)
    rho = torch.sqrt(frequency[:, None] ** 2 + frequency**2).clamp(min=0.5).flatten()
    one = torch.ones(1, dtype=torch.float64)
    found = {}
    for power in (2.0, 3.0):
        spectrum = rho**-power
        covariance = modes @ torch.diag(0.25 * spectrum / spectrum.mean()) @ modes.mT
        found[f"power {power:g}"] = Mixture(one, torch.zeros(1, 64, dtype=torch.float64), covariance[None])
    for name, count in (("camera", 1), ("coffee", 1), ("coffee", 4)):
        found[name if count == 1 else f"{name}, {count} modes"] = suite.fit(
            suite.cut(suite.grey(name), 6000, g), count, g, rounds=1 if count == 1 else 15
        )
    return found


@functools.cache
def problems() -> list[Measured]:
    made = []
    for i, (prior_name, prior) in enumerate(priors().items()):
        truth = prior.sample(1, torch.Generator().manual_seed(i))
        for kind, rows in operators().items():
            z = torch.randn(1, len(rows), generator=torch.Generator().manual_seed(100 + i), dtype=torch.float64)
            made.append(measured(f"{kind}, {prior_name}", prior, rows, truth @ rows.mT + NOISE * z))
    return made


def measured(name: str, prior: Mixture, rows: Tensor, y: Tensor) -> Measured:
    """A prior, the rows of A, and what was measured."""
    law = prior.given(y, rows, NOISE)
    mean_given, one = prior.mean_given(), torch.ones(())

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return mean_given(x, one, sigma[0])

    gaussian = len(prior.covariances) == 1
    A, seen = posterior.matrix(rows.float()), y.float()
    if gaussian:
        C = posterior.full(prior.covariances[0])
        conditioned = posterior.jacobian_free(denoiser, seen, A, NOISE, C, iterations=24)
    else:
        conditioned = posterior.mmps(denoiser, seen, A, NOISE, iterations=16)
    gram = rows @ rows.mT + NOISE**2 * torch.eye(len(rows), dtype=torch.float64)
    x_hat0 = torch.linalg.solve(gram, y.mT).mT @ rows
    exact = Mixture(law.weights[0], law.means[0], law.covariances)
    return Measured(Problem(name, "Gaussian" if gaussian else "mixture", exact, x_hat0), conditioned, x_hat0.float())


# -- Ours -------------------------------------------------------------------------------------------------------------------


def solved(how: Callable[[Measured], dict[str, Any]], order: int | None = None) -> Sample:
    def sample(p: Measured, calls: int, count: int) -> Tensor:
        model, most = from_denoiser(p.denoiser, PROCESS), None if order is None else min(order, calls)
        noise = torch.Generator().manual_seed(0)
        source = p.x_hat0.expand(count, -1)
        return dosde.solve(model, source, calls, most, process=PROCESS, noise=noise, **how(p))

    return sample


def probed(p: Measured) -> dict[str, Any]:
    """few_step at the scale that the denoiser tells."""
    return presets.few_step(scale_of(p))


@functools.cache
def scale_of(p: Measured) -> float:
    return posterior.scale(p.denoiser, p.x_hat0, sigma=3.0, probes=16, noise=torch.Generator().manual_seed(0))


OURS: dict[str, Sample] = {
    "few_step": solved(lambda p: presets.few_step(p.problem.scale)),
    "few_step, scale by 16 probes": solved(probed),
    "ode 2 in log lam": solved(
        lambda p: {"method": method.using(method.ode, variable=expansion.log_lam), "grid": grid.log_lam()}, 2
    ),
    "dos 3 (the paper's)": solved(lambda p: {}, 3),
}


# -- Others -----------------------------------------------------------------------------------------------------------------

GRIDS = [(top, end, final) for top in (10.0, 30.0, 100.0) for end in (0.03, 0.1, 0.3) for final in (True, False)]
"""Largest and smallest lam in units of the scale, and whether a call at the smallest ends the run (its x_theta is x0)."""


def lams(which: int, calls: int, scale: float) -> tuple[list[float], bool]:
    """Noise levels of so many calls, uniform in lam^(1/7); the last one without a call, if no call ends the run."""
    top, end, final = GRIDS[which]
    x = np.linspace(1, 0, calls if final else calls + 1)
    return (scale * (x * top ** (1 / 7) + (1 - x) * end ** (1 / 7)) ** 7).tolist(), final


Run = Callable[[Measured, list[float], bool, int], Tensor]  # (problem, lams, final, samples) -> x0


def start(p: Measured, lam: float, count: int) -> Tensor:
    return p.x_hat0 + lam * torch.randn(count, 64, generator=torch.Generator().manual_seed(0))


def called(p: Measured, y: Tensor, lam: float) -> Tensor:
    return p.denoiser(y, torch.full((len(y),), lam))


def of_the_field(name: str) -> Run:
    peer = next(peer for peer in PEERS if peer.name == name)

    def run(p: Measured, levels: list[float], final: bool, count: int) -> Tensor:
        g = torch.Generator().manual_seed(1)
        y = start(p, levels[0], count)
        whole = [*levels, 0.0] if final else levels
        return peer.sample(lambda y, lam: called(p, y, lam), y, whole, lambda: torch.randn(count, 64, generator=g))

    return run


AZULA: dict[str, tuple[str, dict[str, Any]]] = {
    "azula DDPM": ("DDPMSampler", {}),
    "azula DDIM": ("DDIMSampler", {}),
    "azula Heun": ("HeunSampler", {}),
    "azula zAB 3": ("zABSampler", {"order": 3}),
    "azula zEAB 2": ("zEABSampler", {"order": 2}),
    "azula xEAB 2": ("xEABSampler", {"order": 2}),
    "azula xEAB 3": ("xEABSampler", {"order": 3}),
    "azula REAB 2": ("REABSampler", {"order": 2}),
}


def of_azula(name: str) -> Run:
    """A sampler of azula on our noise levels: alpha = 1 and sigma = t. Errors: ImportError."""
    import azula.denoise
    import azula.sample

    kind, options = AZULA[name]

    class Ours(azula.denoise.Denoiser):  # type: ignore[misc, unused-ignore]
        def __init__(self, p: Measured) -> None:
            super().__init__()
            self.p = p
            self.schedule = lambda t: (torch.ones_like(t), t)

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            return azula.denoise.DiracPosterior(called(self.p, x_t, float(t)))

    def run(p: Measured, levels: list[float], final: bool, count: int) -> Tensor:
        def times(self: object) -> Tensor:
            return torch.tensor(levels, dtype=torch.float64)

        sampler = type(kind, (getattr(azula.sample, kind),), {"timesteps": property(times)})
        torch.manual_seed(1)
        y = start(p, levels[0], count)
        if len(levels) > 1:
            y = sampler(Ours(p), silent=True, **options)(y).float()
        return called(p, y, levels[-1]) if final else y

    return run


def others() -> dict[str, Run]:
    found = {name: of_the_field(name) for name in FIELD}
    try:
        return {name: of_azula(name) for name in AZULA} | found
    except ImportError:
        return found


def error(p: Measured, x0: Tensor) -> float:
    return p.problem.error(x0) if bool(x0.isfinite().all()) else 1e3


def most_levels(name: str, which: int, calls: int) -> int:
    """Calls a run of a sampler may be planned for, since Heun's makes two a step."""
    if name != "azula Heun":
        return calls
    return (calls - 1) // 2 + 1 if GRIDS[which][2] else calls // 2


def best_grid(name: str, run: Run, calls: int, every: int) -> int:
    """The grid of least error, over a problem of each kind and the mixture."""
    searched = [problems()[i] for i in (0, 4, 8, 12)]
    errors = {}
    for which in range(0, len(GRIDS), every):
        n = most_levels(name, which, calls)
        each = [error(p, run(p, *lams(which, n, p.problem.scale), SEARCH)) for p in searched]
        errors[which] = geometric_mean(each)
    return min(errors, key=lambda which: errors[which])


# -- Measured ---------------------------------------------------------------------------------------------------------------


def compare(quick: bool) -> report.Numbers:
    chosen = problems()[::4] if quick else problems()
    calls, count = ((3, 5), 256) if quick else (CALLS, SAMPLES)
    rows: dict[str, Any] = {}
    for name, sample in OURS.items():
        rows[name] = {"ours": True, "errors": {n: [error(p, sample(p, n, count)) for p in chosen] for n in calls}}
    for name, run in others().items():
        grids = {n: best_grid(name, run, n, 5 if quick else 1) for n in calls}
        levels = {n: most_levels(name, which, n) for n, which in grids.items()}
        errors = {
            n: [error(p, run(p, *lams(which, levels[n], p.problem.scale), count)) for p in chosen] for n, which in grids.items()
        }
        rows[name] = {"ours": False, "grids": {n: GRIDS[which] for n, which in grids.items()}, "errors": errors}
    long = {p.problem.name: error(p, OURS["ode 2 in log lam"](p, 64, count)) for p in chosen if not p.gaussian}
    return plain(
        {
            "command": "python benchmarks/posterior.py",
            "calls": list(calls),
            "problems": [p.problem.name for p in chosen],
            "gaussian": [p.gaussian for p in chosen],
            "scales": [[p.problem.scale, scale_of(p)] for p in chosen],
            "floors": [p.problem.floor(count) for p in chosen],
            "64 calls": long,
            "rows": rows,
        }
    )


def plain(numbers: report.Numbers) -> report.Numbers:
    """With the calls as text, as JSON has them."""
    for row in numbers["rows"].values():
        row["errors"] = {str(n): [round(e, 4) for e in errors] for n, errors in row["errors"].items()}
        row |= {"grids": {str(n): list(g) for n, g in row["grids"].items()}} if "grids" in row else {}
    return numbers


# -- What is shown ----------------------------------------------------------------------------------------------------------


def of_kind(numbers: report.Numbers, values: Sequence[float], gaussian: bool) -> list[float]:
    return [v for v, g in zip(values, numbers["gaussian"], strict=True) if g == gaussian]


def table(numbers: report.Numbers) -> str:
    """Geometric means over the problems, by the kind of prior. Bold: the least of each column."""
    columns = [(gaussian, n) for gaussian in (True, False) for n in numbers["calls"]]

    def mean(row: dict[str, Any], gaussian: bool, n: int) -> float:
        return geometric_mean(of_kind(numbers, row["errors"][str(n)], gaussian))

    least = [min(round(mean(row, *c), 3) for row in numbers["rows"].values()) for c in columns]
    lines = []
    for name, row in numbers["rows"].items():
        values = [round(mean(row, *c), 3) for c in columns]
        shown = [f"**{v:.3f}**" if v == w else f"{v:.3f}" if v < 10 else "-" for v, w in zip(values, least, strict=True)]
        lines.append([name, *shown])
    ends = [geometric_mean(of_kind(numbers, numbers["floors"], g)) for g in (True, False)]
    lines.append(["*exact samples*", *(f"*{ends[not g]:.3f}*" for g, _ in columns)])
    long = geometric_mean(list(numbers["64 calls"].values()))
    lines.append(["*ode, 64 calls*", *("" if g else f"*{long:.3f}*" for g, _ in columns)])
    head = ["", *(f"Gaussian, {n}" if g else f"mixture, {n}" for g, n in columns)]
    return report.table(head, lines)


def ratios(numbers: report.Numbers) -> dict[str, float]:
    """What the goals ask of `few_step` on Gaussian priors."""
    few, floors = numbers["rows"]["few_step"]["errors"], numbers["floors"]
    rivals = [row["errors"] for row in numbers["rows"].values() if not row["ours"]]
    late = [str(n) for n in numbers["calls"] if n >= 4]

    def least(n: str) -> list[float]:
        return [min(each) for each in zip(*(of_kind(numbers, row[n], True) for row in rivals), strict=True)]

    exact = of_kind(numbers, floors, True)
    worst = max(e / floor for n in late for e, floor in zip(of_kind(numbers, few[n], True), exact, strict=True))
    over = {
        n: geometric_mean(of_kind(numbers, few[n], True))
        / min(geometric_mean(of_kind(numbers, row[n], True)) for row in rivals)
        for n in map(str, numbers["calls"])
    }
    first = [f <= w for n in few for f, w in zip(of_kind(numbers, few[n], True), least(n), strict=True)]
    return {
        "W over that of exact samples, 4 calls and more, the worst problem": worst,
        "W over that of the best other sampler, the worst number of calls": max(over.values()),
        "part of problems and calls at which it is first": sum(first) / len(first),
    }


def judged(numbers: report.Numbers) -> str:
    return report.judged("posterior", [(what, what, value) for what, value in ratios(numbers).items()])


def plot(numbers: report.Numbers, path: Path) -> None:
    with report.figure(path, (11, 4.2), columns=2) as (_, axes):
        for axis, gaussian in zip(axes, (True, False), strict=True):
            for name, row in numbers["rows"].items():
                values = [geometric_mean(of_kind(numbers, row["errors"][str(n)], gaussian)) for n in numbers["calls"]]
                style = {"linewidth": 2.5, "zorder": 3} if name.startswith("few_step") else {"linewidth": 1, "alpha": 0.8}
                axis.loglog(numbers["calls"], values, label=name, marker=".", **style)
            floor = geometric_mean(of_kind(numbers, numbers["floors"], gaussian))
            axis.axhline(floor, color="k", linestyle=":", label="exact samples")
            title = f"{'Gaussian' if gaussian else 'mixture'} priors"
            report.counted(axis, numbers["calls"], title=title, xlabel="calls of the posterior's denoiser", ylim=(0.03, 3))
        axes[1].legend(fontsize=6, ncols=2)
        axes[0].set_ylabel("sliced W2 / std of the posterior")


REPORT = report.Report("posterior", {("docs/posterior.md", "posterior"): table}, {"posterior.png": plot})


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a part of the problems, grids and calls; print only")
    given = parser.parse_args()
    begun = time.monotonic()
    torch.set_num_threads(1)
    numbers = compare(given.quick)
    print(table(numbers), judged(numbers), sep="\n\n")
    print(f"\n{time.monotonic() - begun:.0f} s")
    if given.out or not given.quick:
        REPORT.write(numbers, given.out)


if __name__ == "__main__":
    main()
