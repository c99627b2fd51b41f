"""The demo: a photograph, made four times smaller by bicubic downsampling, upscaled by the default backbone and compared.

    python benchmarks/demo.py [OUT]

Writes input.png, result.png and side_by_side.png to OUT (default: demo) and prints model calls, seconds, PSNR and SSIM.
"""

import sys
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import backbones
from backbones import evaluation
from backbones.pictures import io as images

PHOTO = Path(__file__).parent / "data" / "chelsea.png"
SCALE, STEPS = 4, 5


def resized(picture: torch.Tensor, size: tuple[int, int], how: Image.Resampling) -> torch.Tensor:
    image = Image.fromarray((255 * picture[0].permute(1, 2, 0)).round().byte().numpy()).resize(size, how)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(1, *size[::-1], 3).permute(0, 3, 1, 2) / 255


def side_by_side(parts: dict[str, torch.Tensor], path: Path) -> None:
    """The pictures in a row, twice as large, each under its name."""
    height, width = (2 * n for n in next(iter(parts.values())).shape[-2:])
    sheet = Image.new("RGB", (len(parts) * (width + 8) - 8, height + 34), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(22)
    for i, (label, picture) in enumerate(parts.items()):
        image = Image.fromarray((255 * picture[0].permute(1, 2, 0)).round().byte().numpy())
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (i * (width + 8), 34))
        draw.text((i * (width + 8) + 4, 3), label, fill="black", font=font)
    sheet.save(path)


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    out.mkdir(parents=True, exist_ok=True)
    truth = images.read(PHOTO).colour
    size = truth.shape[-1], truth.shape[-2]
    small = resized(truth, (size[0] // SCALE, size[1] // SCALE), Image.Resampling.BICUBIC)
    bicubic = resized(small, size, Image.Resampling.BICUBIC)

    backbone = backbones.load("embedded")
    rows = [("bicubic", 0, 0.0, bicubic)]
    for name, steps in (("1 call: the mean", 1), (f"{STEPS} calls: a sample", STEPS)):
        start = time.perf_counter()
        result = backbones.upscale(backbone, small, SCALE, steps, noise=torch.Generator().manual_seed(0))
        rows.append((name, steps, time.perf_counter() - start, result))

    images.write(out / "input.png", images.Picture(small, None, 8, None))
    images.write(out / "result.png", images.Picture(rows[-1][3], None, 8, None))
    nearest = resized(small, size, Image.Resampling.NEAREST)
    parts = {
        "input": nearest,
        "bicubic": bicubic,
        "dosde, 1 call (mean)": rows[1][3],
        f"dosde, {STEPS} calls (sample)": rows[2][3],
        "original": truth,
    }
    side_by_side(parts, out / "side_by_side.png")

    print(f"{size[0] // SCALE}x{size[1] // SCALE} -> {size[0]}x{size[1]}, by the network that ships, which never saw this cat.")
    print("One call gives the mean of what the picture could be, nearest to the original and smooth; five give one of them,")
    print("with its detail, which is not that of the original: so its PSNR is lower.")
    print(f"{'':26}{'model calls':>12}{'seconds':>9}{'PSNR dB':>9}{'SSIM':>8}")
    for name, calls, seconds, picture in rows:
        psnr, ssim = (measure(picture, truth, SCALE) for measure in (evaluation.psnr, evaluation.ssim))
        print(f"{name:26}{calls:12d}{seconds:9.2f}{psnr:9.2f}{ssim:8.4f}")
    print(f"wrote {out / 'result.png'} and {out / 'side_by_side.png'}")


if __name__ == "__main__":
    main()
