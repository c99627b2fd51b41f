"""Where the seconds of DoSSR's pipeline go, and how they compare with the released computation.

    python benchmarks/pipeline.py                          full size, random weights, 128x128 -> 512x512, float32 (minutes)
    python benchmarks/pipeline.py --dtype float32,bfloat16 --repeats 3          what docs/benchmarks.md has
    python benchmarks/pipeline.py --size small             seconds; nothing is written
    python benchmarks/pipeline.py --device cuda --dtype bfloat16 --side 128,512 --steps 1,3,5 --alone --name pipeline_cuda
    ... --compile default --name pipeline_compiled         and, with CUDA graphs, --compile reduce-overhead

The clock is around the networks and the stages of the pipeline itself while it runs, and each stage has the seconds that no
stage inside it has; so they add up to the whole. Solver: `dosde.solve` without the networks. Glue: all the rest (from picture
to tensor and back, padding, latents).

The released computation: the same pipeline and weights with plain attention, softmax(q k^T) v, two passes of the text tower
(its own stage), one more of the encoder, contiguous weights, and malloc as it is. Each round runs every computation once;
ratios are within a round. On a machine that others use, --threads 1 --cpu-time counts processor seconds, which they disturb
less.

Prints a table; writes it into docs/benchmarks.md (where that has the marks), benchmarks/results/NAME.json and docs/NAME.png.
"""

import argparse
import functools
import math
import statistics
import time
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from report import ROOT
from torch import nn

STAGES = ("text", "preprocess", "encode", "ControlNet", "U-Net", "solver", "decode", "colour", "glue")
OURS, RELEASED = "ours", "released"


# -- Models of random weights ---------------------------------------------------------------------------------------------


def configs(size: str) -> dict[str, dict[str, Any]]:
    """Of the components: SD 2.1's ("full"), or shrunken ones with every kind of layer ("small")."""
    full = size == "full"
    widths, vae = ((320, 640, 1280, 1280), (128, 256, 512, 512)) if full else ((32, 32, 64, 64), (32, 32, 32, 32))
    context = 1024 if full else 32
    attended = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    encoder = {
        "in_channels": 3,
        "block_out_channels": vae,
        "layers_per_block": 2 if full else 1,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "latent_channels": 4,
    }
    net = {
        "in_channels": 4,
        "block_out_channels": widths,
        "layers_per_block": 2 if full else 1,
        "down_block_types": attended,
        "attention_head_dim": [w // (64 if full else 8) for w in widths],
        "cross_attention_dim": context,
        "use_linear_projection": True,
    }
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    return {
        "unet": net | {"out_channels": 4, "up_block_types": up, "sample_size": 64},
        "controlnet": net | {"conditioning_channels": 4},
        "vae": encoder | {"out_channels": 3, "up_block_types": ["UpDecoderBlock2D"] * 4, "scaling_factor": 0.18215},
        "hint_encoder": encoder,
        "preprocessor": {} if full else {"num_feat": 16, "num_block": 2, "num_grow_ch": 8},
    }


def text_config(width: int) -> dict[str, Any]:
    """Of the released text tower, 23 layers, for a context of that width."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 23,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "hidden_act": "gelu",
        "attn_implementation": "eager",
    }


def random_module(component: str, config: dict[str, Any]) -> nn.Module:
    """Of weights with a variance of one over the inputs of an output, and of norms that change nothing; in float32."""
    from backbones.sd21 import parts

    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, meta in parts.empty(component, config).state_dict().items():
        if meta.ndim > 1:
            drawn = torch.empty(meta.shape).normal_(0, 1 / math.sqrt(meta[0].numel()), generator=generator)
            tensors[name] = drawn.bfloat16().float()  # so that both types have the same weights
        else:
            tensors[name] = torch.full(meta.shape, 1.0 if name.endswith("weight") else 0.0)
    module: nn.Module = parts.filled(component, config, tensors)
    return module


def random_pipeline(size: str) -> Any:
    """DoSSRPipeline in float32, without text tower: its prompt is embedded, as in a converted model."""
    from backbones.sd21.modules import PromptEmbeddings
    from backbones.sd21.pipeline import DoSSRPipeline
    from backbones.sd21.prompts import PROMPT
    from dosde.interop.diffusers import DoSDEScheduler

    made = configs(size)
    prompts = PromptEmbeddings([PROMPT], 77, made["unet"]["cross_attention_dim"])
    prompts.embeddings.normal_(generator=torch.Generator().manual_seed(1))
    modules: dict[str, Any] = {component: random_module(component, config) for component, config in made.items()}
    return DoSSRPipeline(**modules, scheduler=DoSDEScheduler(shift="dossr", t1=0.5), prompts=prompts)


# -- The clock ------------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds a stage, without those of the stages inside it."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.now = device, now
        self.seconds: dict[str, float] = {}
        self.open: list[str] = []
        self.since = 0.0

    def _switch(self) -> None:
        """What has passed since the last switch goes to the stage that is open."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = self.now()
        if self.open:
            self.seconds[self.open[-1]] = self.seconds.get(self.open[-1], 0.0) + now - self.since
        self.since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._switch()
        self.open.append(name)
        try:
            yield
        finally:
            self._switch()
            self.open.pop()

    def around(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def timed(*args: Any, **how: Any) -> Any:
            with self.stage(name):
                return run(*args, **how)

        return timed


@contextmanager
def replaced(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes of instances, for a while: (object, name, value)."""
    try:
        for owner, name, value in changes:
            vars(owner)[name] = value
        yield
    finally:
        for owner, name, _ in changes:
            vars(owner).pop(name, None)


def clocked(pipe: Any, clock: Clock, compiled: dict[str, Callable[..., Any]]) -> list[tuple[Any, str, Any]]:
    """The stages of a pipeline with the clock around them."""
    changes = [
        (pipe, name, clock.around(stage, getattr(pipe, name)))
        for name, stage in (
            ("preprocess", "preprocess"),
            ("moments", "encode"),
            ("_solve", "solver"),
            ("decode", "decode"),
            ("fix_colour", "colour"),
        )
    ]
    for name, stage in (("controlnet", "ControlNet"), ("unet", "U-Net")):
        module = getattr(pipe, name)
        changes.append((module, "forward", clock.around(stage, compiled.get(name, module.forward))))
    inner = {"encoder": pipe.vae.encoder, "decoder": pipe.vae.decoder, "hint": pipe.hint_encoder, "rrdb": pipe.preprocessor}
    return changes + [
        (inner[name], "forward", run) for name, run in compiled.items() if name in inner and inner[name] is not None
    ]


def compiled(pipe: Any, mode: str) -> dict[str, Callable[..., Any]]:
    """The forward passes of the networks under torch.compile. reduce-overhead: with CUDA graphs."""
    modules = {"controlnet": pipe.controlnet, "unet": pipe.unet, "encoder": pipe.vae.encoder, "decoder": pipe.vae.decoder}
    modules |= {"hint": pipe.hint_encoder} | ({} if pipe.preprocessor is None else {"rrdb": pipe.preprocessor})

    def copied(run: Callable[..., Any]) -> Callable[..., Any]:
        """The next graph writes over the outputs of this one."""

        def called(*args: Any, **how: Any) -> Any:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return _clone(run(*args, **how))

        return called

    runs = {name: torch.compile(m.forward, mode=mode, dynamic=False) for name, m in modules.items()}
    return {name: copied(run) for name, run in runs.items()} if mode == "reduce-overhead" else runs


def _clone(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return type(value)(map(_clone, value)) if isinstance(value, list | tuple) else value


# -- One run --------------------------------------------------------------------------------------------------------------


def networks(pipe: Any) -> list[nn.Module]:
    return [m for m in (pipe.vae, pipe.hint_encoder, pipe.unet, pipe.controlnet, pipe.preprocessor) if m is not None]


@contextmanager
def plain(pipe: Any) -> Iterator[None]:
    """Attention as softmax(q k^T) v, contiguous weights, and memory as malloc usually gives it back, for a while."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    from backbones.sd21 import malloc, stages

    layers = [m for net in networks(pipe) for m in net.modules() if isinstance(m, Attention)]
    before = [layer.processor for layer in layers]
    weights = [p for net in networks(pipe) for p in net.parameters()]
    formats = [torch.channels_last if p.ndim == 4 and not p.is_contiguous() else torch.contiguous_format for p in weights]
    try:
        for layer in layers:
            layer.set_processor(AttnProcessor())
        for p in weights:
            p.data = p.data.contiguous()
        patched = unittest.mock.patch.object
        scores = patched(Attention, "get_attention_scores", _scores)
        with scores, patched(stages, "lay_out"), patched(malloc, "_glibc", lambda: None):
            yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)
        for p, layout in zip(weights, formats, strict=True):
            p.data = p.data.contiguous(memory_format=layout)


def _scores(layer: Any, query: torch.Tensor, key: torch.Tensor, attention_mask: object = None) -> torch.Tensor:
    """Product, scale and softmax one after the other, as the released code has them."""
    scores: torch.Tensor = torch.einsum("bid,bjd->bij", query, key) * layer.scale
    return scores.softmax(-1)


def released(pipe: Any, tower: nn.Module, clock: Clock) -> tuple[Callable[[], object], list[tuple[Any, str, Any]]]:
    """What it does before the pipeline (the text tower on two prompts), and what in it (a third pass of an encoder)."""
    tokens = torch.zeros(1, 77, dtype=torch.long, device=pipe.device)
    moments = pipe.moments

    def twice() -> None:
        for _ in range(2):
            with clock.stage("text"), torch.no_grad():
                tower(tokens)

    def source(reference: Any, *args: Any, tile: int | None = None, **how: Any) -> Any:
        with clock.stage("encode"):
            moments(pipe.vae, "unused", reference, tile)
        return type(pipe).source(pipe, reference, *args, tile=tile, **how)

    return twice, [(pipe, "source", source), (pipe, "_one_encoder", lambda: False)]


def run_once(
    pipe: Any, clock: Clock, picture: Any, steps: int, tower: nn.Module | None, made: dict[str, Callable[..., Any]], tile: Any
) -> dict[str, float]:
    """Seconds by stage, and `total`, of the pipeline on a picture; with a text tower, of the released computation."""
    before, changes = (lambda: None), clocked(pipe, clock, made)  # type: tuple[Callable[[], object], list[Any]]
    if tower is not None:
        before, more = released(pipe, tower, clock)
        changes += more
    from backbones.sd21 import malloc

    clock.seconds = {}
    with replaced(changes), malloc.kept():  # as in the command
        start = clock.now()
        with clock.stage("glue"):
            before()
            pipe(picture, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), tile=tile)
        total = clock.now() - start
    return {**{stage: clock.seconds.get(stage, 0.0) for stage in STAGES}, "total": total}


# -- The benchmark --------------------------------------------------------------------------------------------------------


def loaded(options: argparse.Namespace, dtype: str) -> Any:
    if options.weights:
        from backbones.sd21.pipeline import DoSSRPipeline

        pipe = DoSSRPipeline.from_pretrained(options.weights, torch_dtype=getattr(torch, dtype))
    else:
        pipe = random_pipeline(options.size)
        with warnings.catch_warnings(), _quiet():
            pipe.to(getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    if options.channels_last:
        for net in networks(pipe):
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return pipe.to(options.device)


@contextmanager
def _quiet() -> Iterator[None]:
    """diffusers warns of every cast."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each side, number of steps, type and computation; `runs` has the seconds of every round."""
    device = torch.device(options.device)
    clock = Clock(device, time.process_time if options.cpu_time else time.perf_counter)
    pipes = {dtype: loaded(options, dtype) for dtype in options.dtype}
    compilations = {dtype: compiled(pipe, options.compile) if options.compile else {} for dtype, pipe in pipes.items()}
    towers: dict[str, nn.Module | None] = {OURS: None}
    if not options.alone:
        width = next(iter(pipes.values())).unet.config.cross_attention_dim
        towers[RELEASED] = random_module("text_encoder", text_config(width)).to(device)
    rows = []
    for side in options.side:
        picture = np.random.default_rng(0).random((side, side, 3), np.float32)
        for steps in options.steps:
            made: dict[tuple[str, str], list[dict[str, float]]] = {(name, dtype): [] for name in towers for dtype in pipes}
            for i in range(options.warmup + options.repeats):
                for (name, dtype), runs in made.items():
                    pipe, tower = pipes[dtype], towers[name]
                    if tower is None:
                        seconds = run_once(pipe, clock, picture, steps, None, compilations[dtype], options.tile)
                    else:
                        with _quiet():
                            tower.to(getattr(torch, dtype))
                        with plain(pipe):
                            seconds = run_once(pipe, clock, picture, steps, tower, {}, options.tile)
                    print(f"  {side}x{side}, {steps} steps, {name}, {dtype}: {seconds['total']:.2f} s", flush=True)
                    if i >= options.warmup:
                        runs.append(seconds)
            rows += [{"side": side, "steps": steps, "name": n, "dtype": d, "runs": runs} for (n, d), runs in made.items()]
    return rows


def median(row: dict[str, Any]) -> dict[str, float]:
    """The run of median length, so that its stages add up."""
    return sorted(row["runs"], key=lambda run: run["total"])[(len(row["runs"]) - 1) // 2]  # type: ignore[no-any-return]


def ratio(row: dict[str, Any], over: dict[str, Any]) -> float:
    """Of the totals, the median over rounds."""
    return statistics.median(float(a["total"]) / float(b["total"]) for a, b in zip(row["runs"], over["runs"], strict=True))


def find(rows: list[dict[str, Any]], like: dict[str, Any], name: str, dtype: str) -> dict[str, Any] | None:
    """The row of another computation on the same picture."""
    wanted = (like["side"], like["steps"], name, dtype)
    return next((r for r in rows if (r["side"], r["steps"], r["name"], r["dtype"]) == wanted), None)


def label(row: dict[str, Any]) -> str:
    return f"{row['name']}, {row['dtype']}, {row['side']}², {row['steps']} step{'s' if row['steps'] > 1 else ''}"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, as it stands in docs/benchmarks.md."""
    stages = [stage for stage in STAGES if any(median(row)[stage] for row in rows)]
    lines = []
    for row in rows:
        seconds = [median(row)[stage] for stage in (*stages, "total")]
        lines.append([label(row), *(f"{value:.3g}" if value else "" for value in seconds)])
    return report.table(["seconds", *stages, "total"], lines)


def small_part(rows: list[dict[str, Any]]) -> float:
    """Solver and glue over the total, where that is the most."""
    return max((median(r)["solver"] + median(r)["glue"]) / median(r)["total"] for r in rows if r["name"] == OURS)


def ratios(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str, float]]:
    """(row of ours, type of the released computation, ours over it): in float32, and in the type of the row."""
    found = []
    for row in (row for row in rows if row["name"] == OURS):
        for other in dict.fromkeys(("float32", row["dtype"])):
            over = find(rows, row, RELEASED, other)
            if over is not None:
                found.append((row, other, ratio(row, over)))
    return found


def said(rows: list[dict[str, Any]]) -> str:
    """A line a ratio."""
    lines = [f"Solver and glue: at most {small_part(rows):.2%} of the total."]
    for row, other, value in ratios(rows):
        lines.append(f"{label(row)}: {value:.3f} of the time of the released computation in {other}.")
    return "\n".join(lines)


def judged(rows: list[dict[str, Any]]) -> str:
    """The goals beside what was measured."""
    part, *wanted = report.goals("pipeline")
    measured = [(part, part, small_part(rows))]
    for row, other, value in ratios(rows):
        key = f"{row['dtype']} over the released computation in {other}"
        if key in wanted:
            measured.append((label(row), key, value))
    return report.judged("pipeline", measured)


def text(rows: list[dict[str, Any]]) -> str:
    """What goes into docs/benchmarks.md."""
    return table(rows) + "\n\n" + said(rows).replace("\n", "  \n")


def plot(numbers: report.Numbers, path: Path) -> None:
    rows = numbers["rows"]
    names = [label(row) for row in rows]
    left = [0.0] * len(rows)
    with report.figure(path, (9, 0.8 + 0.5 * len(rows))) as (_, axis):
        for i, stage in enumerate(STAGES):
            widths = [median(row)[stage] for row in rows]
            axis.barh(names, widths, left=left, label=stage, color=f"C{i}")
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.invert_yaxis()
        axis.set_xlabel("seconds")
        where = {"loc": "lower center", "bbox_to_anchor": (0.4, 1.0), "columnspacing": 1, "handlelength": 1}
        axis.legend(fontsize=7, ncols=len(STAGES), **where)


def reported(name: str) -> report.Report:
    """The report under a name; a table where docs/benchmarks.md has marks of that name."""
    document = "docs/benchmarks.md"
    marked = f"<!-- {name}: begin -->" in (ROOT / document).read_text()
    tables = {(document, name): lambda numbers: text(numbers["rows"])} if marked else {}
    return report.Report(name, tables, {f"{name}.png": plot})


def _several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda given: [kind(part) for part in given.split(",")]


def _tile(given: str) -> str | int | None:
    return given if given == "auto" else int(given) or None


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = report.parser(__doc__)
    parser.add_argument("--weights", help="a folder that `dosde convert` wrote, instead of random weights")
    parser.add_argument("--size", choices=("full", "small"), default="full", help="of the random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", type=_several(str), default=["float32"], help="float32,bfloat16,float16")
    parser.add_argument("--steps", type=_several(int), default=[5])
    parser.add_argument("--side", type=_several(int), help="of the low-resolution picture: 128; 16 at small size")
    parser.add_argument("--tile", type=_tile, default="auto", help="a side, auto, or 0: the picture whole")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--warmup", type=int, help="rounds before; default: 1 on an accelerator or with --compile, else 0")
    parser.add_argument("--alone", action="store_true", help="without the released computation")
    parser.add_argument("--compile", choices=("default", "reduce-overhead", "max-autotune"), help="torch.compile in that mode")
    parser.add_argument("--channels-last", action="store_true", help="of all networks")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds of all threads, not those of the wall clock")
    parser.add_argument("--name", help="of what is written; default: pipeline, and nothing at small size")
    options = parser.parse_args(arguments)
    options.side = options.side or [128 if options.size == "full" or options.weights else 16]
    if options.warmup is None:
        options.warmup = int(options.device != "cpu" or options.compile is not None)
    if options.name is None and (options.size == "full" or options.weights):
        options.name = "pipeline"
    return options


def numbers(options: argparse.Namespace) -> dict[str, Any]:
    """Measures, and says on what."""
    if options.threads:
        torch.set_num_threads(options.threads)
    cuda = options.device.startswith("cuda")
    asked = {name: value for name, value in vars(options).items() if value not in (None, False) and name not in ("name", "out")}
    device = torch.cuda.get_device_name(options.device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    return {
        "command": "python benchmarks/pipeline.py",
        "options": asked,
        "torch": torch.__version__,
        "device": device,
        "rows": measure(options),
    }


def main() -> None:
    options = parsed()
    made = numbers(options)
    if options.name:
        report.save(options.name, made, options.out or report.RESULTS)  # before anything can go wrong
    print(f"\ntorch {made['torch']}, {made['device']}\n\n{text(made['rows'])}\n\n{judged(made['rows'])}")
    if options.name:
        reported(options.name).write(made, options.out)


if __name__ == "__main__":
    main()
