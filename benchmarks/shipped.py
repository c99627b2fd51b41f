"""The network that ships, on the photographs that it never saw: chelsea, coffee and china, four times smaller by bicubic.

    python benchmarks/shipped.py [--again NAME=FILE ...]

Fidelity (PSNR and SSIM of Y), likeness to photographs (`realism`), seconds for 256x256 -> 1024x1024, beside the goals. Writes
benchmarks/results/embedded.json, the tables of docs/embedded.md, docs/embedded.png (spectra) and docs/embedded.jpg (crops).
With --again, of the files of other trainings by the same config: the table of what they do beside the one that ships.
"""

import dataclasses
import functools
import json
import math
import time
import tomllib
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import numpy as np
import realism
import report
import torch
from PIL import Image, ImageDraw, ImageFont
from report import ROOT
from torch import Tensor

import backbones
import dosde
from backbones import embedded, evaluation
from backbones.pictures import degradation
from backbones.pictures.degradation import BICUBIC
from backbones.training.data import held_out

SCALE, SEEDS = 4, (0, 1, 2)
CROPS = {"chelsea": (96, 150), "coffee": (84, 330), "china": (150, 260)}
"""Top left corners of what is shown, where each picture has something to show."""
SIDE = 112
Upscale = Callable[[Tensor, int], Tensor]  # (LR, seed) -> picture


def rows(backbone: embedded.Embedded) -> dict[str, Upscale]:
    """What is measured, by name."""

    def upscale(lr: Tensor, seed: int, steps: int, **how: Any) -> Tensor:
        return backbones.upscale(backbone, lr, SCALE, steps, noise=torch.Generator().manual_seed(seed), **how)

    def bicubic(lr: Tensor, seed: int) -> Tensor:
        return (embedded.source(lr, [SCALE * n for n in lr.shape[-2:]]) + 1) / 2

    few = dosde.presets.few_step(backbone.residual_scale)
    usual = {f"{n} call{'s' if n > 1 else ''}": functools.partial(upscale, steps=n) for n in (1, 2, 3, 5, 7, 10)}
    return {
        "bicubic": bicubic,
        **usual,
        **{f"{n} calls, few_step": functools.partial(upscale, steps=n, **few) for n in (3, 5, 10)},
    }


def pairs() -> dict[str, tuple[Tensor, Tensor]]:
    """(HR, LR) by name, sides of HR cut to multiples of the scale."""
    made = {}
    for name, picture in held_out().items():
        h, w = (side // SCALE * SCALE for side in picture.shape[1:])
        hr = picture[:, :h, :w].contiguous()
        made[name] = hr[None], degradation.apply(hr, degradation.sample(BICUBIC, np.random.default_rng(0)))[None]
    return made


def rounded(picture: Tensor) -> Tensor:
    """To 8 bits, as a file has it."""
    return (picture.clamp(0, 1) * 255).round() / 255


def measured(picture: Tensor, hr: Tensor) -> dict[str, float]:
    """All metrics of a picture of 8 bits; colour: how far off the mean of a channel is, in 1/255."""
    return {
        "psnr": evaluation.psnr(picture, hr, SCALE),
        "ssim": evaluation.ssim(picture, hr, SCALE),
        "spectrum": realism.spectrum_error(picture, hr, SCALE),
        "texture": realism.texture_error(picture, hr, SCALE),
        "grain": realism.grain(picture, hr),
        "colour": float((picture.mean((-2, -1)) - hr.mean((-2, -1))).abs().max()) * 255,
    }


def seconds(backbone: embedded.Embedded) -> float:
    """256x256 -> 1024x1024 in 5 calls on two threads, the better of three."""
    before, taken = torch.get_num_threads(), []
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(picture, (256, 256), mode="bicubic").clamp(0, 1)
    torch.set_num_threads(2)
    try:
        for _ in range(3):
            start = time.perf_counter()
            backbones.upscale(backbone, picture, 4, 5, noise=torch.Generator().manual_seed(0))
            taken.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return min(taken)


def mean(values: dict[str, dict[str, float]], metric: str) -> float:
    """Over the pictures."""
    return math.fsum(row[metric] for row in values.values()) / len(values)


def table(numbers: dict[str, Any]) -> str:
    """Markdown: the means, and PSNR of each picture."""
    pictures = list(next(iter(numbers["rows"].values())))
    digits = {"psnr": 2, "ssim": 4, "spectrum": 2, "texture": 3, "grain": 2}
    lines = []
    for name, values in numbers["rows"].items():
        means = [f"{mean(values, metric):.{n}f}" for metric, n in digits.items()]
        lines.append([name, *means, *(f"{values[picture]['psnr']:.2f}" for picture in pictures)])
    head = ["", "PSNR, dB", "SSIM", "spectrum, dB", "texture", "grain"]
    return report.table([*head, *(f"PSNR {name}" for name in pictures)], lines)


def gains(rows: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """Against bicubic: what one call and five gain and lose."""
    named = {name: rows[name] for name in ("bicubic", "1 call", "5 calls")}
    psnr, ssim, spectrum = ({k: mean(v, metric) for k, v in named.items()} for metric in ("psnr", "ssim", "spectrum"))
    return {
        "1 call: PSNR above bicubic's, dB": psnr["1 call"] - psnr["bicubic"],
        "1 call: SSIM above bicubic's": ssim["1 call"] - ssim["bicubic"],
        "5 calls: error of the spectrum over bicubic's": spectrum["5 calls"] / spectrum["bicubic"],
        "5 calls: PSNR under bicubic's, dB": psnr["bicubic"] - psnr["5 calls"],
    }


def gained(numbers: dict[str, Any]) -> dict[str, float]:
    """`gains` of the network that ships, and its seconds."""
    return {**gains(numbers["rows"]), "256x256 to 1024x1024 in 5 calls, seconds on two cores": numbers["seconds"]}


def summary(numbers: dict[str, Any]) -> str:
    """Markdown: what the network that ships gains."""
    return report.table(["", "measured"], [[what, f"{value:.3f}"] for what, value in gained(numbers).items()])


def judged(numbers: dict[str, Any]) -> str:
    """The goals beside what was measured."""
    return report.judged("embedded", [(what, what, value) for what, value in gained(numbers).items()])


def again(numbers: dict[str, Any]) -> str:
    """Markdown: the same of other trainings."""
    rows = {"what ships": gains(numbers["rows"]), **numbers["again"]}
    lines = [[name, *(f"{value:.3f}" for value in row.values())] for name, row in rows.items()]
    return report.table(["training", *rows["what ships"]], lines)


def cost(numbers: dict[str, Any]) -> str:
    """One line."""
    c = numbers["cost"]
    steps, seconds = c["steps"], c["seconds_a_step"]
    return (
        f"{steps} steps of {c['batch']} crops of {c['crop']}x{c['crop']} in {c['precision']} took {steps * seconds / 60:.0f} "
        f"minutes ({seconds:.2f} s a step) on {c['threads']} core{'s' if c['threads'] > 1 else ''}."
    )


def trained() -> dict[str, Any]:
    """What the training took, by its log, or as it was written down last."""
    config = tomllib.loads((ROOT / "configs" / "embedded.toml").read_text())
    log = ROOT / config["out"] / "log.jsonl"
    if not log.is_file():
        kept: dict[str, Any] = report.load("embedded")["cost"]
        return kept
    rows = [row for row in map(json.loads, log.read_text().splitlines()) if "seconds_a_step" in row]
    if rows[-1]["step"] != config["steps"]:
        raise SystemExit(f"{log}: ends at step {rows[-1]['step']}, the config says {config['steps']}")
    seconds = math.fsum(row["seconds_a_step"] for row in rows) / len(rows)  # each since the start, or the last resume
    data = {"batch": config["batch"], "crop": config["data"]["crop"], "precision": config["precision"]}
    return {"steps": config["steps"], "seconds_a_step": seconds, "threads": rows[-1]["threads"], **data}


def plot(spectra: dict[str, tuple[Any, Any]], path: Path) -> None:
    """Mean power over frequency."""
    with report.figure(path, (7, 4)) as (_, axis):
        for name, (frequency, power) in spectra.items():
            original = name == "original"
            axis.semilogy(frequency, power, "k" if original else "-", lw=2 if original else 1.2, label=name)
        axis.axvline(0.5 / SCALE, color="k", linestyle=":", lw=1)
        nyquist = 0.5 / SCALE, axis.get_ylim()[1]
        axis.annotate("Nyquist frequency of the input", nyquist, (4, -12), textcoords="offset points")
        axis.set(xlabel="frequency, cycles a pixel", ylabel="power of Y", xlim=(0, 0.5))
        axis.grid(alpha=0.3)
        axis.legend()


def sheet(shown: dict[str, dict[str, Tensor]], columns: tuple[str, ...]) -> Image.Image:
    """Crops, twice as large: a row a picture, a column a method."""
    side, gap, top = 2 * SIDE, 6, 24
    paper = Image.new("RGB", (len(columns) * (side + gap) - gap, top + len(shown) * (side + gap) - gap), "white")
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(16)
    for x, label in enumerate(columns):
        draw.text((x * (side + gap) + 3, 2), label, fill="black", font=font)
    for y, (name, pictures) in enumerate(shown.items()):
        top_, left = CROPS[name]
        for x, label in enumerate(columns):
            crop = pictures[label][0, :, top_ : top_ + SIDE, left : left + SIDE]
            image = Image.fromarray((255 * crop.permute(1, 2, 0)).round().byte().numpy())
            paper.paste(image.resize((side, side), Image.Resampling.NEAREST), (x * (side + gap), top + y * (side + gap)))
    return paper


def evaluated(
    backbone: embedded.Embedded, labels: Container[str] | None = None
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, dict[str, Tensor]]]:
    """Metrics by method and picture, means of the seeds, and what was made of the first, by picture and method."""
    every, metrics = pairs(), {}
    shown: dict[str, dict[str, Tensor]] = {name: {"original": hr} for name, (hr, _) in every.items()}
    for label, upscale in rows(backbone).items():
        if labels is not None and label not in labels:
            continue
        values: dict[str, dict[str, float]] = {}
        for name, (hr, lr) in every.items():
            seeds = SEEDS if label not in ("bicubic", "1 call") else SEEDS[:1]
            made = [rounded(upscale(lr, seed)) for seed in seeds]
            each = [measured(picture, hr) for picture in made]
            values[name] = {metric: math.fsum(one[metric] for one in each) / len(each) for metric in each[0]}
            shown[name][label] = made[0]
        metrics[label] = values
    return metrics, shown


TABLES = {
    ("docs/embedded.md", "embedded"): table,
    ("docs/embedded.md", "embedded_gains"): summary,
    ("docs/embedded.md", "embedded_cost"): cost,
    ("docs/embedded.md", "embedded_again"): again,
}
REPORT = report.Report("embedded", TABLES)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--again", nargs="+", metavar="NAME=FILE", help="other trainings by the same config")
    given = parser.parse_args()
    numbers: dict[str, Any] = {"again": {}, **report.load("embedded")}
    if given.again is not None:
        numbers["again"] = {}
        for name, _, file in (one.rpartition("=") for one in given.again):
            metrics, _ = evaluated(embedded.load(file, device="cpu"), ("bicubic", "1 call", "5 calls"))
            numbers["again"][name] = gains(metrics)
        print(again(numbers))
        REPORT.write(numbers, given.out)
        return
    backbone = embedded.load(device="cpu")
    numbers["seconds"], numbers["cost"] = seconds(backbone), trained()
    numbers["rows"], shown = evaluated(backbone)
    print(table(numbers), judged(numbers), again(numbers), sep="\n\n")
    drift = max(row["colour"] for values in numbers["rows"].values() for row in values.values())
    print(f"\nmeans of the colours are off by at most {drift:.2f} of 255; about: {dict(backbone.about)}")
    names = ("original", "bicubic", "1 call", "5 calls")
    spectra = {name: [realism.radial(pictures[name]) for pictures in shown.values()] for name in names}
    means = {name: (each[0][0], np.mean([power for _, power in each], 0)) for name, each in spectra.items()}
    paper = sheet(shown, ("bicubic", "1 call", "5 calls", "original"))
    figures: dict[str, Callable[[report.Numbers, Path], object]] = {
        "embedded.png": lambda _, path: plot(means, path),
        "embedded.jpg": lambda _, path: paper.save(path, quality=90),
    }
    dataclasses.replace(REPORT, figures=figures).write(numbers, given.out)


if __name__ == "__main__":
    main()
