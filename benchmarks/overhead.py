"""What a step costs outside the model, against the samplers of diffusers (and of k-diffusion, where it is installed).

    python benchmarks/overhead.py           (about two minutes; pip install --no-deps k-diffusion torchdiffeq for the latter)

Loops of 20 steps with a model that costs nothing, interleaved round by round; microseconds a step, medians over rounds, and
ratios within a round, since the machine is noisy. Ours is `solve` as a whole, its planning and checks included; of the others
the loop only, not set_timesteps. Tensor operations on latents, and latents alive at once (x_hat0 or the model output in hand
included), are counted by a dispatch mode. The floor is one pass over what an order-3 step must touch: six reads, one write.

Prints a table; writes it into docs/benchmarks.md, benchmarks/results/overhead.json and docs/overhead.png.
"""

import functools
import gc
import importlib
import importlib.util
import statistics
import sys
import time
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dosde
from dosde.step import Method

SHAPES = ((1, 4, 64, 64), (8, 4, 64, 64), (1, 4, 256, 256), (1, 3, 1024, 1024))
STEPS, ORDER = 20, 3
OURS = f"dosde dos {ORDER}"
CORRECTED, FEW = f"dosde adams {ORDER}, corrector", f"dosde matched {ORDER}"
STOCHASTIC = ("diffusers sde-dpmsolver++ 2", "diffusers SASolver", "k-diffusion 2M SDE")

Loop = Callable[[], Tensor]


class Latents(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that touch a latent, and the most latents alive at once."""

    def __init__(self, numel: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel, self.operations, self.most = numel, 0, 0
        self.alive: dict[int, weakref.ref[Tensor]] = {}

    def see(self, value: object) -> bool:
        if isinstance(value, Tensor) and value.numel() == self.numel:
            self.alive.setdefault(id(value), weakref.ref(value))
            return True
        return isinstance(value, list | tuple) and any(list(map(self.see, value)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        seen = self.see(list(args) + list((kwargs or {}).values()))
        result = func(*args, **(kwargs or {}))
        if (self.see(result) or seen) and func not in _FREE:
            self.operations += 1
        held = {t.untyped_storage().data_ptr() for r in self.alive.values() if (t := r()) is not None}
        self.alive = {k: r for k, r in self.alive.items() if r() is not None}
        self.most = max(self.most, len(held))
        return result


_FREE = {torch.ops.aten.detach.default, torch.ops.aten.view.default, torch.ops.aten.alias.default}


def ours(shape: tuple[int, ...], prefilled: bool, fresh: bool, method: Method = dosde.method.dos) -> Loop:
    x_hat0, output, z = (torch.randn(shape) for _ in range(3))
    process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine())
    noise = (lambda u, u_next, like: z) if prefilled else None
    model = (lambda x, h, t: torch.ones(shape)) if fresh else (lambda x, h, t: output)
    return lambda: dosde.solve(model, x_hat0, STEPS, ORDER, process=process, noise=noise, method=method)


def diffusers(scheduler: Any, shape: tuple[int, ...], prefilled: bool, fresh: bool) -> Loop:
    x, output, z = (torch.randn(shape) for _ in range(3))
    scheduler.set_timesteps(STEPS)
    module: Any = sys.modules[type(scheduler).__module__]
    draw = module.randn_tensor

    def loop() -> Tensor:
        scheduler._step_index = None  # a new run; set_timesteps is not timed
        scheduler.is_scale_input_called = True
        if hasattr(scheduler, "model_outputs"):
            scheduler.model_outputs = [None] * len(scheduler.model_outputs)
            scheduler.lower_order_nums = 0
        if prefilled:
            module.randn_tensor = lambda *args, **kwargs: z
        latent = x
        try:
            for t in scheduler.timesteps:
                latent = scheduler.step(torch.ones(shape) if fresh else output, t, latent, return_dict=False)[0]
        finally:
            module.randn_tensor = draw
        return latent

    return loop


def k_diffusion(shape: tuple[int, ...], prefilled: bool, fresh: bool) -> Loop:
    sampling = k_diffusion_sampling()
    x, output, z = (torch.randn(shape) for _ in range(3))
    sigmas = sampling.get_sigmas_karras(STEPS, 0.03, 14.6)
    noise = (lambda s, s_next: z) if prefilled else (lambda s, s_next: torch.randn(shape))
    model = (lambda x, s, **kw: torch.ones(shape)) if fresh else (lambda x, s, **kw: output)
    return lambda: sampling.sample_dpmpp_2m_sde(model, x, sigmas, disable=True, noise_sampler=noise)


@functools.cache
def k_diffusion_sampling() -> Any:
    """k_diffusion.sampling without the rest of its package, which needs torchvision. Errors: ImportError."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        raise ImportError("k_diffusion is not installed")
    package: Any = types.ModuleType("k_diffusion")
    package.__path__ = spec.submodule_search_locations
    sys.modules["k_diffusion"] = package
    stubs = [n for n in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional") if n not in sys.modules]
    for name in stubs:
        sys.modules[name] = types.ModuleType(name)
    if "torchvision.transforms" in stubs:
        sys.modules["torchvision.transforms"].functional = None  # type: ignore[attr-defined]
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name in stubs:
            del sys.modules[name]


def contenders() -> dict[str, Callable[[tuple[int, ...], bool, bool], Loop]]:
    made: dict[str, Callable[[tuple[int, ...], bool, bool], Loop]] = {OURS: ours}
    made[CORRECTED] = functools.partial(ours, method=functools.partial(dosde.method.adams, corrector=True))
    made[FEW] = functools.partial(ours, method=dosde.method.matched(0.2))
    try:
        from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, SASolverScheduler

        how = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        for name, kind, options in (
            (
                "diffusers sde-dpmsolver++ 2",
                DPMSolverMultistepScheduler,
                {"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
            ),
            ("diffusers SASolver", SASolverScheduler, {}),
            ("diffusers Euler", EulerDiscreteScheduler, {}),
        ):
            made[name] = lambda *a, kind=kind, options=options: diffusers(kind(**how, **options), *a)
    except ImportError:
        pass
    try:
        k_diffusion_sampling()
        made["k-diffusion 2M SDE"] = k_diffusion
    except ImportError:
        pass
    return made


def timed(loop: Loop) -> float:
    """Microseconds a step."""
    start = time.perf_counter()
    loop()
    return (time.perf_counter() - start) / STEPS * 1e6


def floor(shape: tuple[int, ...]) -> Loop:
    tensors = [torch.randn(shape) for _ in range(6)]

    def loop() -> Tensor:
        for _ in range(STEPS):
            for tensor in tensors:
                tensor.sum()
            tensors[0].fill_(1.0)
        return tensors[0]

    return loop


@torch.no_grad()
def measure(rounds: int = 15) -> list[dict[str, Any]]:
    made, rows = contenders(), []
    for shape in SHAPES:
        for prefilled in (True, False):
            loops = {name: make(shape, prefilled, False) for name, make in made.items()}
            loops["floor"] = floor(shape)
            times: dict[str, list[float]] = {name: [] for name in loops}
            for i in range(rounds + 2):
                for name, loop in loops.items():
                    took = timed(loop)
                    if i >= 2:
                        times[name].append(took)
            for name in loops:
                row: dict[str, Any] = {"shape": shape, "noise": "prefilled" if prefilled else "drawn", "name": name}
                row["us"] = statistics.median(times[name])
                row["ratio"] = statistics.median(a / b for a, b in zip(times[name], times[OURS], strict=True))
                rows.append(row)
            del loops
            gc.collect()
    return rows


@torch.no_grad()
def count(shape: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Operations a step (the model's own one left out) and latents alive, for each contender."""
    result = {}
    for name, make in contenders().items():
        loop = make(shape, True, True)
        with Latents(torch.Size(shape).numel()) as latents:
            loop()
        result[name] = {"operations": latents.operations / STEPS - 1, "alive": latents.most}
    return result


def plot(numbers: report.Numbers, path: Path) -> None:
    us = {(tuple(r["shape"]), r["noise"], r["name"]): r["us"] for r in numbers["times"]}
    names = list(dict.fromkeys(r["name"] for r in numbers["times"]))
    with report.figure(path, (11, 3.8), columns=2, sharey=True) as (_, axes):
        for axis, noise in zip(axes, ("prefilled", "drawn"), strict=True):
            for i, name in enumerate(names):
                x = [j + (i - len(names) / 2) * 0.13 for j in range(len(SHAPES))]
                colour = "0.7" if name == "floor" else f"C{i}"
                axis.bar(x, [us[shape, noise, name] for shape in SHAPES], 0.12, label=name, color=colour)
            axis.set(yscale="log", title=f"noise {noise}", xticks=range(len(SHAPES)))
            axis.set_xticklabels([str(s) for s in SHAPES], fontsize=8)
        axes[0].set_ylabel("microseconds a step")
        axes[0].legend(fontsize=7)


def table(rows: list[dict[str, Any]], counts: dict[str, dict[str, float]]) -> str:
    """Markdown, as it stands in docs/benchmarks.md."""
    names = list(dict.fromkeys(r["name"] for r in rows))
    cells = {(tuple(r["shape"]), r["noise"], r["name"]): f"{r['us']:.0f} ({r['ratio']:.2f})" for r in rows}
    lines = [
        [f"{shape}, noise {noise}", *(cells[shape, noise, n] for n in names)]
        for shape in SHAPES
        for noise in ("prefilled", "drawn")
    ]
    for label, key in (("operations on latents a step", "operations"), ("latents alive", "alive")):
        lines.append([label, *(f"{counts[n][key]:.3g}" if n in counts else "" for n in names)])
    return report.table(["", *names], lines)


@dataclass(frozen=True)
class Summary:
    """Of the times with prefilled noise and the counts. least, beside: the least ratios of STOCHASTIC over ours."""

    least: dict[str, float]
    beside: dict[str, float]
    """Over ours with the corrector."""
    floor: float
    """A step of ours at the largest shape over the memory floor."""
    alive: dict[str, float]


def summary(rows: list[dict[str, Any]], counts: dict[str, dict[str, float]]) -> Summary:
    prefilled = [r for r in rows if r["noise"] == "prefilled"]
    others = [n for n in STOCHASTIC if n in counts]
    corrected = {tuple(r["shape"]): r["ratio"] for r in prefilled if r["name"] == CORRECTED}
    bound = next(r["ratio"] for r in prefilled if r["name"] == "floor" and tuple(r["shape"]) == SHAPES[-1])
    return Summary(
        {n: min(r["ratio"] for r in prefilled if r["name"] == n) for n in others},
        {n: min(r["ratio"] / corrected[tuple(r["shape"])] for r in prefilled if r["name"] == n) for n in others},
        1 / bound,
        {n: counts[n]["alive"] for n in (OURS, CORRECTED, FEW)},
    )


def said(rows: list[dict[str, Any]], counts: dict[str, dict[str, float]]) -> str:
    """The summary in a few sentences, as it stands in docs/benchmarks.md."""
    s = summary(rows, counts)
    least, beside = (", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()) for ratios in (s.least, s.beside))
    return (
        f"With noise prefilled, at the size least favourable to us, the stochastic ones take so many times as long: {least}; "
        f"of ours with the corrector: {beside}. At {SHAPES[-1]} a step takes {s.floor:.2f} times the memory floor. "
        f"Latents alive: {s.alive[OURS]} (order + 3), with the corrector {s.alive[CORRECTED]} (order + 4), "
        f"matched {s.alive[FEW]}."
    )


def judged(rows: list[dict[str, Any]], counts: dict[str, dict[str, float]]) -> str:
    """The goals beside the summary."""
    s = summary(rows, counts)
    stochastic, floor, alive = report.goals("overhead")
    measured = [(f"{stochastic}: {name}", stochastic, ratio) for name, ratio in s.least.items()]
    return report.judged("overhead", [*measured, (floor, floor, s.floor), (alive, alive, s.alive[OURS] - ORDER)])


REPORT = report.Report(
    "overhead",
    {
        ("docs/benchmarks.md", "overhead"): lambda numbers: (
            table(numbers["times"], numbers["counts"]) + "\n\n" + said(numbers["times"], numbers["counts"])
        )
    },
    {"overhead.png": plot},
)


def main() -> None:
    out = report.parser(__doc__).parse_args().out
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {STEPS} steps; in brackets: over {OURS}\n")
    rows, counts = measure(), count(SHAPES[0])
    print(table(rows, counts), said(rows, counts), judged(rows, counts), sep="\n\n")
    REPORT.write({"command": "python benchmarks/overhead.py", "torch": torch.__version__, "times": rows, "counts": counts}, out)


if __name__ == "__main__":
    main()
