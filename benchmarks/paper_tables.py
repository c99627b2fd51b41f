"""The ablations of the DoSSR paper on one small network: what is diffused, from where, by which solver, in how many calls.

    python benchmarks/paper_tables.py --train [NAME ...]   # the networks of configs/paper, minutes each on two cores; resumes
                                                           # [--seeds 0 1]
    python benchmarks/paper_tables.py                      # the tables

Each network has the same size, data and number of steps, and is trained by the objective of the released code with squares
for magnitudes: the error of x0 at times uniform in t; twice, by two seeds. On the held-out photographs PSNR and SSIM (Y) say
how near a result is, `texture` and `spectrum` (`realism`) how much it looks like photographs where the low-resolution
picture ends. The paper judges by no-reference metrics of large networks; an order of its rows by MUSIQ is compared with ours
by texture.

Writes benchmarks/results/paper_tables.json, docs/paper_tables.png and the tables of docs/paper_tables.md.
"""

import dataclasses
import itertools
import json
import math
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paper_networks
import peers
import report
import shipped
import torch
from report import ROOT
from torch import Tensor

import dosde
from backbones import embedded, weights
from backbones.training import config, loop
from backbones.training.task import Task
from dosde import cold, method
from dosde.process import flow

CONFIGS = ROOT / "configs" / "paper"
NAMES = tuple(sorted(path.stem for path in CONFIGS.glob("*.toml")))
SEEDS = (0, 1)
"""Of a training, and of the noise that its network is solved with."""
METRICS = ("psnr", "ssim", "spectrum", "texture")
Solve = Callable[[Any, Tensor, torch.Generator], Tensor]  # (network, x_hat0, noise) -> x0


@dataclass(frozen=True)
class Row:
    """paper: MUSIQ, and for Figure 4 SSIM, as printed; None where the paper has no such row."""

    name: str
    network: str
    solve: Solve
    paper: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Table:
    """worse_than: pairs of rows (worse, better), which together are the paper's order."""

    title: str
    rows: tuple[Row, ...]
    worse_than: tuple[tuple[int, int], ...]
    why: str


# -- How a row is solved ------------------------------------------------------------------------------------------------------


def dos(steps: int, order: int = 3) -> Solve:
    """The paper's solver, on times uniform in t."""

    def solve(net: Any, x_hat0: Tensor, noise: torch.Generator) -> Tensor:
        model = dosde.Denoiser(net, net.process, "x0")
        return dosde.solve(model, x_hat0, steps, min(order, steps), noise=noise)

    return solve


def few_step(steps: int) -> Solve:
    """`presets.few_step`, with the residual scale of the network."""

    def solve(net: Any, x_hat0: Tensor, noise: torch.Generator) -> Tensor:
        model = dosde.Denoiser(net, net.process, "x0")
        return dosde.solve(model, x_hat0, steps, noise=noise, **dosde.presets.few_step(net.config.scale))

    return solve


def chain(steps: int, T: int | None = None) -> Solve:
    """The posterior of the chain: DDIM with eta = 1 on plain diffusion; the released sampler of ResShift with T steps."""

    def solve(net: Any, x_hat0: Tensor, noise: torch.Generator) -> Tensor:
        grid = dosde.grid.uniform if T is None or steps == 1 else dosde.grid.respaced(T)
        model = dosde.Denoiser(net, net.process, "x0")
        return dosde.solve(model, x_hat0, steps, 1, method=method.resshift, grid=grid, noise=noise)

    return solve


def peer(sampler: peers.Sampler, levels: Callable[[dosde.Process], list[float]]) -> Solve:
    """A sampler of the field on plain diffusion, begun as ours."""

    def solve(net: Any, x_hat0: Tensor, noise: torch.Generator) -> Tensor:
        process = net.process
        lams = levels(process)

        def model(y: Tensor, lam: float) -> Tensor:
            t = process.time(torch.tensor(lam, dtype=torch.float64))
            value: Tensor = net(float(process(t).a) * y, x_hat0, t)
            return value

        def draw() -> Tensor:
            return torch.randn(x_hat0.shape, generator=noise)

        return sampler(model, x_hat0 + lams[0] * draw(), lams, draw)

    return solve


def uniform_in_t(process: dosde.Process) -> list[float]:
    """Five steps."""
    lams: list[float] = process(torch.linspace(1, 0, 6, dtype=torch.float64)).lam.tolist()
    return lams


def karras(steps: int) -> Callable[[dosde.Process], list[float]]:
    """rho = 7, from the process's largest level to 0.03, then 0."""

    def levels(process: dosde.Process) -> list[float]:
        most, least = float(process(1.0).lam), 0.03
        places = [i / (steps - 1) for i in range(1, steps)]
        return [most, *(((1 - x) * most ** (1 / 7) + x * least ** (1 / 7)) ** 7 for x in places), 0.0]

    return levels


def rectified(steps: int) -> Solve:
    """Euler's method, from the low-resolution picture."""

    def solve(net: Any, x_hat0: Tensor, noise: torch.Generator) -> Tensor:
        model = dosde.Denoiser(net, flow(), "flow")
        return dosde.solve(model, x_hat0, steps, 1, method=method.flow)

    return solve


def blurred(steps: int) -> Solve:
    """Algorithm 2 of cold diffusion, from the low-resolution picture."""

    def solve(net: Any, x_hat0: Tensor, noise: torch.Generator) -> Tensor:
        return cold.solve(net, x_hat0, paper_networks.Cold.degrade, steps)

    return solve


def nothing(net: Any, x_hat0: Tensor, noise: torch.Generator) -> Tensor:
    """The source itself."""
    return x_hat0


DPM_3 = peers.exponential(peers.taylor_midpoint, 3)

TABLES: dict[str, Table] = {
    "2": Table(
        "Table 2: where the diffusion starts (order 3, 5 calls; the paper's MUSIQ on DRealSR)",
        (
            Row("bicubic", "t1_half", nothing),
            Row("DDPM", "ddpm", dos(5), (54.09, None)),
            Row("domain shift, t1 = T", "t1_full", dos(5), (55.69, None)),
            Row("domain shift, t1 = 2T/3", "t1_two_thirds", dos(5), (59.30, None)),
            Row("domain shift, t1 = T/2", "t1_half", dos(5), (64.40, None)),
            Row("domain shift, t1 = T/3", "t1_third", dos(5), (61.76, None)),
        ),
        ((1, 2), (2, 3), (3, 5), (5, 4)),
        "Here is no pretrained prior to adapt to, and the network sees the same at the same lam, whatever the shift, which so "
        "only moves the five times: the smaller t1, the smaller their lam, and the further the result goes from the mean. "
        "Those of DDPM begin at lam = 14, those of the shift at infinity.",
    ),
    "3": Table(
        "Table 3: the order of the solver (t1 = T/2, 5 calls; the paper's MUSIQ on DRealSR)",
        tuple(
            Row(f"Solver-{k}", "t1_half", dos(5, k), (musiq, None))
            for k, musiq in zip((1, 2, 3), (59.12, 64.09, 64.40), strict=True)
        ),
        ((0, 1), (1, 2)),
        "",
    ),
    "fig4": Table(
        "Figure 4: the number of calls (Solver-3, t1 = T/2; the paper's on RealSR)",
        tuple(
            Row(str(n), "t1_half", dos(n), paper)
            for n, paper in zip(
                range(1, 8),
                (
                    *((62.69, None), (63.15, 0.7475), (64.37, 0.7369), (67.97, 0.7080)),
                    *((69.42, 0.6839), (70.92, 0.6498), (71.10, 0.6377)),
                ),
                strict=True,
            )
        ),
        tuple((n, n + 1) for n in range(6)),
        "",
    ),
    "6": Table(
        "Table 6: without the shift and with it (5 calls; the paper's MUSIQ on RealSR)",
        (
            Row("DDPM, DDIM (eta = 1)", "ddpm", chain(5), (57.95, None)),
            Row("DDPM, EDM (Heun, 5 steps of 9 calls)", "ddpm", peer(peers.heun, karras(5)), (62.08, None)),
            Row("DDPM, EDM (Heun, 3 steps)", "ddpm", peer(peers.heun, karras(3))),
            Row("DDPM, DPM-Solver++-3", "ddpm", peer(DPM_3, uniform_in_t), (62.67, None)),
            Row("domain shift, Solver-1", "t1_half", dos(5, 1), (66.55, None)),
            Row("domain shift, Solver-2", "t1_half", dos(5, 2), (69.27, None)),
            Row("domain shift, Solver-3", "t1_half", dos(5, 3), (69.42, None)),
            Row("domain shift, few_step", "t1_half", few_step(5)),
        ),
        ((0, 1), (1, 3), (3, 4), (4, 5), (5, 6)),
        "EDM makes nine calls here, and pays four decibels; Solver-1 is of order 1 and stays nearer to the mean than "
        "DPM-Solver++ of order 3.",
    ),
    "5": Table(
        "Table 5: other processes (the paper's MUSIQ on RealSR)",
        (
            Row("cold diffusion, 1 call", "cold", blurred(1)),
            Row("rectified flow, 1 call", "flow", rectified(1), (50.82, None)),
            Row("ResShift, 1 call", "resshift", chain(1, 15)),
            Row("DoSSR, 1 call", "t1_half", dos(1), (62.69, None)),
            Row("cold diffusion, 5 calls", "cold", blurred(5), (47.42, None)),
            Row("rectified flow, 5 calls", "flow", rectified(5)),
            Row("ResShift, 5 calls", "resshift", chain(5, 15), (56.01, None)),
            Row("DoSSR, 5 calls", "t1_half", dos(5), (69.42, None)),
        ),
        ((1, 3), (4, 6), (6, 7)),
        "",
    ),
}


# -- Training, measuring ------------------------------------------------------------------------------------------------------


def task(own: config.Config) -> Task:
    """Cold diffusion's own; else that of `dosde train`."""
    if own.model.network == "paper_networks:Sharpener":
        return paper_networks.Cold(own)
    return loop.made(own)


def wanted(name: str, seed: int) -> config.Config:
    """The config of one training."""
    made = config.load(CONFIGS / f"{name}.toml")
    return dataclasses.replace(made, seed=seed, out=f"{made.out}_{seed}")


def train(names: list[str], seeds: list[int]) -> None:
    """Each to its end, from where it stopped."""
    for seed, name in itertools.product(seeds, names):
        start = time.perf_counter()
        result = loop.train(wanted(name, seed), start="resume", task=task)
        print(f"{name}: {result}, {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)


def network(name: str, seed: int) -> Any:
    """Trained. Errors: SystemExit where it is not."""
    own = wanted(name, seed)
    path = ROOT / own.out / "weights.safetensors"
    if not path.is_file():
        raise SystemExit(f"{path}: not trained yet; python benchmarks/paper_tables.py --train {name} --seeds {seed}")
    kind = {"paper_networks:Velocity": paper_networks.Velocity, "paper_networks:Sharpener": paper_networks.Sharpener}
    if own.model.network not in kind:
        return embedded.load(path, device="cpu").network
    made = kind[own.model.network](**own.model.options)
    made.load_state_dict(weights.read(path))
    return made.eval().requires_grad_(False)


def pairs() -> dict[str, tuple[Tensor, Tensor]]:
    """(HR, x_hat0) by name: the held-out pictures, with x_hat0 in the place of LR."""
    return {name: (hr, embedded.source(lr, hr.shape[-2:])) for name, (hr, lr) in shipped.pairs().items()}


@torch.no_grad()
def measured(row: Row, nets: Sequence[Any], every: dict[str, tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    """Each metric: mean over the pictures, of every training."""
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for seed, net in zip(SEEDS, nets, strict=True):
        sums = dict.fromkeys(METRICS, 0.0)
        for hr, x_hat0 in every.values():
            x0 = row.solve(net, x_hat0, torch.Generator().manual_seed(seed))
            of_picture = shipped.measured(shipped.rounded((x0 + 1) / 2), hr)
            sums = {name: sums[name] + of_picture[name] for name in METRICS}
        for name in METRICS:
            values[name].append(sums[name] / len(every))
    return values


# -- What is printed ----------------------------------------------------------------------------------------------------------


def mean(row: dict[str, Any], metric: str) -> float:
    return math.fsum(row[metric]) / len(row[metric])


def verdict(key: str, rows: list[dict[str, Any]]) -> str:
    """One line: whether the paper's order holds, in every training."""
    table = TABLES[key]
    texture = [row["texture"] for row in rows]
    held_in = {(a, b): sum(map(operator.gt, texture[a], texture[b])) for a, b in table.worse_than}
    broken = [pair for pair, count in held_in.items() if count < len(SEEDS)]
    said = " < ".join(table.rows[i].name for i in [table.worse_than[0][0], *(b for _, b in table.worse_than)])
    if key == "5":
        said = "flow < DoSSR at 1 call; cold diffusion < ResShift < DoSSR at 5"
    if not broken:
        return f"The paper's order holds here ({said})."
    named = "; ".join(
        ", ".join(f"{table.rows[i].name} {mean(rows[i], 'texture'):.3f}" for i in pair)
        + (f" (but in {held_in[pair]} of {len(SEEDS)} trainings)" if held_in[pair] else "")
        for pair in broken
    )
    held = len(table.worse_than) - len(broken)
    return (
        f"The paper's order ({said}) holds in {held} of {len(table.worse_than)} places, not in: {named}. {table.why}".rstrip()
    )


def text(key: str, rows: list[dict[str, Any]]) -> str:
    """A table and its verdict, as Markdown."""
    own = TABLES[key].rows
    with_ssim = any(row.paper[1] is not None for row in own)
    head = ["", "PSNR", "SSIM", "spectrum, dB", "texture", "paper: MUSIQ", *(["SSIM"] if with_ssim else [])]
    lines = []
    for one, row in zip(own, rows, strict=True):
        spread = max(row["texture"]) - min(row["texture"])
        cells = [one.name, f"{mean(row, 'psnr'):.2f}", f"{mean(row, 'ssim'):.4f}", f"{mean(row, 'spectrum'):.2f}"]
        cells.append(f"{mean(row, 'texture'):.3f}" + (f" ±{spread / 2:.3f}" if spread > 5e-4 else ""))
        cells += ["" if value is None else f"{value:.{digits}f}" for value, digits in zip(one.paper, (2, 4), strict=True)][
            : 2 if with_ssim else 1
        ]
        lines.append(cells)
    return "\n".join([f"**{TABLES[key].title}**", "", report.table(head, lines), "", verdict(key, rows)])


def document(numbers: dict[str, Any]) -> str:
    return "\n\n".join(text(key, numbers["tables"][key]) for key in TABLES)


def plot(numbers: report.Numbers, path: Path) -> None:
    """Every row, texture over PSNR; Figure 4 as a line."""
    seen: set[tuple[float, float]] = set()
    with report.figure(path, (9, 5)) as (figure, axis):
        for key, table in TABLES.items():
            points = [(mean(row, "psnr"), mean(row, "texture")) for row in numbers["tables"][key]]
            if key == "fig4":
                axis.plot(*zip(*points, strict=True), "k.-", lw=1, ms=3, label="Solver-3, 1 to 7 calls")
                continue
            for one, point in zip(table.rows, points, strict=True):
                inside = point[0] > 24 and point not in seen
                if inside:
                    axis.plot(*point, "osD^vP"[len(seen) % 6], color=f"C{len(seen) % 10}", ms=6, label=one.name)
                    seen.add(point)
        axis.set(xlabel="PSNR, dB", ylabel="error of the texture", title="without those below 24 dB: EDM, cold diffusion")
        axis.grid(alpha=0.3)
        figure.legend(fontsize=8, loc="outside right center")


REPORT = report.Report("paper_tables", {("docs/paper_tables.md", "paper_tables"): document}, {"paper_tables.png": plot})


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--train", nargs="*", metavar="NAME", choices=NAMES, help="train these, or all, first")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS, help="of --train")
    arguments = parser.parse_args()
    if arguments.train is not None:
        train(arguments.train or list(NAMES), arguments.seeds)
        return
    nets, every = {name: [network(name, seed) for seed in SEEDS] for name in NAMES}, pairs()
    tables: dict[str, list[dict[str, Any]]] = {}
    for key, table in TABLES.items():
        tables[key] = []
        for row in table.rows:
            tables[key].append({"name": row.name, **measured(row, nets[row.network], every)})
        print(text(key, tables[key]), end="\n\n", flush=True)
    trained = {name: [_cost(name, seed) for seed in SEEDS] for name in NAMES}
    numbers = {"pictures": list(every), "seeds": SEEDS, "trained": trained, "tables": tables}
    REPORT.write(numbers, arguments.out)


def _cost(name: str, seed: int) -> dict[str, float]:
    """Steps and seconds a step, as its log says."""
    own = wanted(name, seed)
    lines = [json.loads(line) for line in (ROOT / own.out / "log.jsonl").read_text().splitlines()]
    return {"steps": own.steps, "seconds_a_step": lines[-1]["seconds_a_step"], "loss": lines[-1]["loss"]}


if __name__ == "__main__":
    main()
