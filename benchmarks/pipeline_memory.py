"""Peak memory of DoSSR's pipeline: of each stage, and against the size of the output in tiles of one size.

    python benchmarks/pipeline_memory.py               a quarter of an hour; 8 GB
    python benchmarks/pipeline_memory.py --quick       512^2 and 1024^2 alone; nothing is written

Stages: what each needs for 512 x 512 pixels of the output with networks of full size, in C s a pixel, the width of its network
times the bytes of a number, beside the estimate that `backbones.sd21.tiles` chooses tiles by.

Sizes: 512^2 to 4096^2 with shrunken networks, in tiles of 512, each in a process of its own: a picture of one tile is made,
then the picture that counts, while the resident memory is sampled every 2 ms. What it holds above the weights should be that of
one tile and the picture's own buffers, float32 of the output's size: the preprocessed picture, the decoded one, the result of
the colour fix.

Prints two tables; writes them into docs/benchmarks.md, benchmarks/results/pipeline_memory.json and docs/pipeline_memory.png.
"""

import argparse
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch

TILE = 512
PICTURE = 12  # bytes a pixel: float32, three channels


def resident() -> int:
    """Bytes of this process that are no mapped file."""
    return (
        int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")).split()[1])
        * 1024
    )


def peak_of(run: Callable[[], object]) -> int:
    """Bytes above what is resident before."""
    gc.collect()
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with torch.no_grad():
        run()
    done.set()
    watcher.join()
    return peak - before


def size(side: int) -> dict[str, Any]:
    """MiB above what the built, shrunken networks hold, and seconds."""
    from pipeline import random_pipeline

    torch.set_num_threads(1)
    pipe = random_pipeline("small")
    pipe.set_progress_bar_config(disable=True)
    pipe(torch.rand(3, TILE // 4, TILE // 4), num_inference_steps=1, tile=TILE)
    picture = torch.rand(3, side // 4, side // 4)
    start = time.perf_counter()
    peak = peak_of(lambda: pipe(picture, num_inference_steps=1, tile=TILE, output_type="pt"))
    return {"side": side, "peak": peak / 2**20, "seconds": time.perf_counter() - start}


def stages() -> list[dict[str, Any]]:
    """Of the networks of full size: bytes a pixel of the output, the estimate of them, and C s."""
    from pipeline import random_pipeline

    from backbones.sd21 import malloc

    def kept(run: Callable[[], object]) -> None:
        """As the command runs a picture that is not tiled, which needs the most."""
        with malloc.kept():
            run()

    pipe = random_pipeline("full")
    pipe.set_progress_bar_config(disable=True)
    picture, latent = torch.rand(1, 3, TILE, TILE), torch.randn(1, 4, TILE // 8, TILE // 8)
    small, half = torch.rand(1, 3, TILE // 4, TILE // 4), torch.tensor(0.5, dtype=torch.float64)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                torch.nn.Module.to(module, dtype)
        model = pipe.denoiser(latent, pipe.encode_prompt(pipe.prompts.config.prompts[0]))
        runs: dict[str, Callable[[], object]] = {
            "preprocess": lambda: pipe.preprocess(small),
            "encode": lambda: pipe.source(picture),
            "solve": lambda model=model: model(latent, latent, half),  # type: ignore[misc]
            "decode": lambda: pipe.decode(latent),
        }
        widths = {"preprocess": pipe.preprocessor.config.num_feat / 16, "solve": pipe.unet.config.block_out_channels[0] / 64}
        for name, cost in pipe.costs().items():
            kept(runs[name])  # what is set up once
            unit = widths.get(name, pipe.vae.config.block_out_channels[0]) * dtype.itemsize
            measured = peak_of(lambda run=runs[name]: kept(run)) / TILE**2  # type: ignore[misc]
            rows.append({"stage": name, "dtype": str(dtype)[6:], "measured": measured / unit, "estimate": cost / unit})
    return rows


def stage_table(rows: list[dict[str, Any]]) -> str:
    """C s a pixel (preprocess: of its input; solve: of the latent)."""
    lines = [[r["stage"], r["dtype"], f"{r['measured']:.1f}", f"{r['estimate']:.0f}"] for r in rows]
    return report.table(["stage", "type", "measured, C s a pixel", "estimate"], lines)


def table(rows: list[dict[str, Any]]) -> str:
    """Peak, and its growth over the row above, in pictures of what grew."""
    lines = []
    for before, row in zip([None, *rows], rows, strict=False):
        growth = "" if before is None else f"{growth_of(before, row):.2f}"
        lines.append([f"{row['side']}²", f"{row['peak']:.0f}", f"{PICTURE * row['side'] ** 2 / 2**20:.0f}", growth])
    return report.table(["output", "peak above the weights, MiB", "one picture, MiB", "growth, in pictures"], lines)


def growth_of(small: dict[str, Any], large: dict[str, Any]) -> float:
    """Bytes more, over the bytes of a picture more."""
    return float((large["peak"] - small["peak"]) * 2**20 / (PICTURE * (large["side"] ** 2 - small["side"] ** 2)))


def plot(numbers: report.Numbers, path: Path) -> None:
    rows = numbers["rows"]
    sides = [row["side"] for row in rows]
    with report.figure(path, (6, 3.6), dpi=120) as (_, axis):
        axis.loglog(sides, [row["peak"] for row in rows], "o-", label="peak above the weights")
        axis.loglog(sides, [PICTURE * side**2 / 2**20 for side in sides], "k:", label="one picture, float32")
        axis.set_xticks(sides, [f"{side}²" for side in sides], minor=False)
        axis.minorticks_off()
        axis.set(xlabel="output, pixels", ylabel="MiB")
        axis.legend(frameon=False)


REPORT = report.Report(
    "pipeline_memory",
    {
        ("docs/benchmarks.md", "pipeline_memory"): lambda numbers: table(numbers["rows"]),
        ("docs/benchmarks.md", "pipeline_stages"): lambda numbers: stage_table(numbers["stages"]),
    },
    {"pipeline_memory.png": plot},
)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is written")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(stages() if options.child == "stages" else size(int(options.child))))
        return
    rows = []
    for side in (512, 1024) if options.quick else (512, 1024, 2048, 4096):
        rows.append(child(side))
        print(f"{side}²: {rows[-1]['peak']:.0f} MiB, {rows[-1]['seconds']:.0f} s", flush=True)
    if options.quick:
        print(table(rows))
        return
    parts = child("stages")
    REPORT.write({"tile": TILE, "rows": rows, "stages": parts}, options.out)
    print(f"{table(rows)}\n\n{stage_table(parts)}")


def child(what: object) -> Any:
    """`size` or `stages` in a process of its own."""
    run = subprocess.run([sys.executable, __file__, "--child", str(what)], capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
