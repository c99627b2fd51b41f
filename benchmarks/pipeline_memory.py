"""Peak memory of DoSSR's pipeline against the size of the output, in tiles of one size.

    python benchmarks/pipeline_memory.py               512^2 to 4096^2, shrunken networks, tiles of 512 (a quarter of an hour)
    python benchmarks/pipeline_memory.py --quick       to 1024^2; nothing is written

Each size is a process of its own: the networks are built, a picture of one tile is made, then the picture that counts, while
the resident memory is sampled every 2 ms. What it holds above the weights should be that of one tile and the picture's own
buffers, float32 of the output's size: the preprocessed picture, the decoded one, the result of the colour fix.

Prints a table; writes it into docs/benchmarks.md, benchmarks/results/pipeline_memory.json and docs/pipeline_memory.png.
"""

import argparse
import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import report
import torch
from report import ROOT

TILE = 512
PICTURE = 12  # bytes a pixel: float32, three channels


def resident() -> int:
    """Bytes of this process that are no mapped file."""
    return (
        int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")).split()[1])
        * 1024
    )


def measure(side: int) -> dict[str, Any]:
    """Of one size, in this process: MiB above what the built networks hold, and seconds."""
    from pipeline import random_pipeline

    torch.set_num_threads(1)
    pipe = random_pipeline("small")
    pipe.set_progress_bar_config(disable=True)
    pipe(torch.rand(3, TILE // 4, TILE // 4), num_inference_steps=1, tile=TILE)
    gc.collect()
    picture = torch.rand(3, side // 4, side // 4)
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    made = pipe(picture, num_inference_steps=1, tile=TILE, output_type="pt").images
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    assert made.shape[-1] == side
    return {"side": side, "peak": (peak - before) / 2**20, "seconds": seconds}


def table(rows: list[dict[str, Any]]) -> str:
    """Peak, and its growth over the row above, in pictures of what grew."""
    lines = ["| output | peak above the weights, MiB | one picture, MiB | growth, in pictures |", "|---|---|---|---|"]
    for before, row in zip([None, *rows], rows, strict=False):
        growth = "" if before is None else f"{growth_of(before, row):.2f}"
        lines.append(f"| {row['side']}² | {row['peak']:.0f} | {PICTURE * row['side'] ** 2 / 2**20:.0f} | {growth} |")
    return "\n".join(lines)


def growth_of(small: dict[str, Any], large: dict[str, Any]) -> float:
    """Bytes more, over the bytes of a picture more."""
    return float((large["peak"] - small["peak"]) * 2**20 / (PICTURE * (large["side"] ** 2 - small["side"] ** 2)))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    sides = [row["side"] for row in rows]
    ax.loglog(sides, [row["peak"] for row in rows], "o-", label="peak above the weights")
    ax.loglog(sides, [PICTURE * side**2 / 2**20 for side in sides], "k:", label="one picture, float32")
    ax.set_xticks(sides, [f"{side}²" for side in sides], minor=False)
    ax.minorticks_off()
    ax.set_xlabel("output, pixels")
    ax.set_ylabel("MiB")
    ax.legend(frameon=False)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is written")
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side)))
        return
    rows = []
    for side in (512, 1024) if options.quick else (512, 1024, 2048, 4096):
        child = subprocess.run([sys.executable, __file__, "--side", str(side)], capture_output=True, text=True, check=True)
        rows.append(json.loads(child.stdout.splitlines()[-1]))
        print(f"{side}²: {rows[-1]['peak']:.0f} MiB, {rows[-1]['seconds']:.0f} s", flush=True)
    if not options.quick:
        report.save("pipeline_memory", {"tile": TILE, "rows": rows})
        plot(rows, ROOT / "docs" / "pipeline_memory.png")
        report.insert(ROOT / "docs" / "benchmarks.md", "pipeline_memory", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
