"""Contact sheet of the degradation: pictures (rows) as they are, bicubic, and degraded by seed (columns), four times smaller.

    python benchmarks/contact_sheet.py

Writes docs/degradation.jpg and the table of what was drawn to docs/training.md, and prints it.
"""

import dataclasses
import io
from pathlib import Path

import numpy as np
import report
import torch
from PIL import Image, ImageDraw, ImageFont
from report import ROOT
from torch import Tensor

from backbones.pictures import degradation, procedural
from backbones.pictures.degradation import BICUBIC, REAL_ESRGAN
from backbones.training.data import Bundled

SEEDS = range(6)
SCALE, CROP, MOST = 4, 160, 190_000
_STAGES = ("at the full size", "at a quarter of it, and the end")


def pictures() -> list[Tensor]:
    """Two photographs and two procedural pictures, (3, CROP, CROP)."""
    bundled = Bundled(CROP)
    # Where each photograph has something to show; the generators are those of good-looking drawings.
    photos = [(bundled.whole("astronaut"), 20, 150), (bundled.whole("motorcycle_left"), 210, 130)]
    drawn = [procedural.leaves(CROP, np.random.default_rng(5)), procedural.strokes(CROP, np.random.default_rng(6))]
    return [colour[:, y : y + CROP, x : x + CROP] for colour, y, x in photos] + drawn


def table() -> str:
    """What each seed draws, a column a stage."""
    parameters = dataclasses.replace(REAL_ESRGAN, scale=SCALE)
    drawn = {seed: degradation.sample(parameters, np.random.default_rng(seed)) for seed in SEEDS}
    return report.table(["seed", *_STAGES], [[str(seed), str(one)] for seed, one in drawn.items()])


def sheet() -> Image.Image:
    """Low-resolution pixels are shown as squares."""
    labels = ["picture", "bicubic", *(f"seed {seed}" for seed in SEEDS)]
    step, top = CROP + 4, 22
    paper = Image.new("RGB", (len(labels) * step - 4, top + 4 * step - 4), "white")
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(15)
    for column, label in enumerate(labels):
        draw.text((column * step + 3, 1), label, fill="black", font=font)
    for row, picture in enumerate(pictures()):
        low = [degradation.degrade(picture, SCALE, 0, BICUBIC), *(degradation.degrade(picture, SCALE, s) for s in SEEDS)]
        cells = [picture, *(small.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2) for small in low)]
        for column, cell in enumerate(cells):
            array = (255 * cell.permute(1, 2, 0)).round().to(torch.uint8).numpy()
            paper.paste(Image.fromarray(array), (column * step, top + row * step))
    return paper


def saved(paper: Image.Image, path: Path) -> None:
    """As good as the size allows."""
    for quality in range(85, 40, -3):
        buffer = io.BytesIO()
        paper.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() < MOST:
            break
    path.write_bytes(buffer.getvalue())
    print(f"wrote {path}: {paper.width}x{paper.height}, {buffer.tell() / 1000:.0f} kB at quality {quality}")


def main() -> None:
    out = report.parser(__doc__).parse_args().out
    if out is None:
        report.insert(ROOT / "docs" / "training.md", "degradation", table())
    else:
        out.mkdir(parents=True, exist_ok=True)
    print(table())
    saved(sheet(), (out or ROOT / "docs") / "degradation.jpg")


if __name__ == "__main__":
    main()
