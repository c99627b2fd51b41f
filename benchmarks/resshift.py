"""What `few_step` gains over ResShift's published sampler, on its released weights and pictures of yours.

    dosde convert resshift_realsrx4_s4_v3.pth autoencoder_vq_f4.pth -o resshift
    python benchmarks/resshift.py --weights resshift photos/ --metrics psnr ssim lpips

Each picture is made smaller, by bicubic interpolation or by the degradation of Real-ESRGAN, and enlarged again by each sampler
in 2, 3 and 4 calls and by the published one in as many as its table has. `few_step` gets the std of x0 - x_hat0 that the
pictures themselves have in the latents; it is printed, for `dosde upscale --residual-scale`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report
import torch
from torch import Tensor

from backbones.pictures import degradation, metrics
from backbones.pictures import io as images
from backbones.pictures.resize import bicubic
from dosde import method, presets

PHOTO = Path(__file__).parent / "data" / "chelsea.png"
CALLS = (2, 3, 4)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and prints a table."""
    parser = report.parser(__doc__)
    parser.add_argument("pictures", nargs="*", type=Path, default=[PHOTO], help="pictures or folders (default: one that ships)")
    parser.add_argument("--weights", required=True, metavar="FOLDER", help="a folder that `dosde convert` wrote")
    parser.add_argument("--degradation", choices=("bicubic", "real"), default="bicubic")
    parser.add_argument("--metrics", nargs="+", default=["psnr", "ssim"], choices=metrics.METRICS)
    parser.add_argument("--side", type=int, default=512, help="pictures are cropped to this, at their centre (default: 512)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)

    from backbones.resshift import ResShiftPipeline

    pipe = ResShiftPipeline.from_pretrained(arguments.weights)
    pipe.set_progress_bar_config(disable=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pairs = [pair(path, pipe.scale, arguments) for path in paths(arguments.pictures)]
    residual = residual_scale(pipe, pairs)
    measures = metrics.metrics(arguments.metrics, pipe.scale)
    rows = []
    for name, calls, solver in samplers(pipe, residual):
        values = [measured(pipe, hr, lr, calls, solver, measures, arguments.seed) for hr, lr in pairs]
        mean = {metric: sum(value[metric] for value in values) / len(values) for metric in measures}
        rows.append({"sampler": name, "calls": calls, **mean})
        print(name, calls, *(f"{metric} {value:.4g}" for metric, value in mean.items()), flush=True)
    print(f"\n{len(pairs)} pictures, std of x0 - x_hat0 {residual:.3f}\n")
    print(report.table(list(rows[0]), ([f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        numbers = {"weights": arguments.weights, "residual_scale": residual, "pictures": len(pairs), "rows": rows}
        (arguments.out / "resshift.json").write_text(json.dumps(numbers, indent=1) + "\n")


def samplers(pipe: Any, residual: float) -> list[tuple[str, int, dict[str, Any]]]:
    """(name, calls, keywords of the pipeline's call), the published one first."""
    own = pipe.default_steps
    if pipe.config.distilled_steps is not None:
        return [("distilled", own, {})]
    few, ode = presets.few_step(residual), {"method": method.ode}
    rows = [(name, calls, how) for calls in CALLS for name, how in (("published", {}), ("ode 1", ode), ("few_step", few))]
    return [("published", own, {}), *(row for row in rows if row[:2] != ("published", own))]


def paths(given: Sequence[Path]) -> list[Path]:
    """The pictures, those of folders one by one."""
    return [path for one in given for path in (images.listed(one)[0] if one.is_dir() else [one])]


def pair(path: Path, scale: int, arguments: Any) -> tuple[Tensor, Tensor]:
    """A picture and what is made of it, (1, 3, height, width) in [0, 1]."""
    picture = images.read(path).colour.expand(-1, 3, -1, -1)
    sides = [min(arguments.side, side) // scale * scale for side in picture.shape[-2:]]
    top, left = ((whole - side) // 2 for whole, side in zip(picture.shape[-2:], sides, strict=True))
    hr = picture[..., top : top + sides[0], left : left + sides[1]].contiguous()
    if arguments.degradation == "real":
        return hr, degradation.degrade(hr[0], scale, arguments.seed)[None]
    lr = bicubic(hr, [side // scale for side in sides]).clamp(0, 1)
    return hr, (lr * 255).round() / 255


@torch.no_grad()
def residual_scale(pipe: Any, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The std of x0 - x_hat0 per element of the latents."""
    differences = []
    for hr, lr in pairs:
        x_hat0 = pipe.prepare(lr, pipe.scale).x_hat0
        x0 = pipe.encode(hr)
        height, width = (side // pipe.factor for side in hr.shape[-2:])
        differences.append((x0 - x_hat0)[..., :height, :width].square().mean())
    return float(torch.stack(differences).mean().sqrt())


def measured(
    pipe: Any, hr: Tensor, lr: Tensor, calls: int, solver: dict[str, Any], measures: dict[str, metrics.Metric], seed: int
) -> dict[str, float]:
    """The metrics of one picture."""
    made = pipe(
        lr,
        pipe.scale,
        num_inference_steps=calls,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        **solver,
    ).images.cpu()
    made = (made * 255).round() / 255
    return {name: metric.value(made, hr) for name, metric in measures.items()}


if __name__ == "__main__":
    main()
