"""How large the tiles of each stage may be: as large as memory permits, up to the size up to which the networks are good.

A stage needs, beside the weights, bytes in proportion to the pixels of its tile, the width C of its network and the bytes s of
a number. Measured on the CPU at full size, memory kept as for a whole picture (benchmarks/pipeline_memory.py):

    preprocess  115 C s a pixel of its input, C the features of RRDBNet
    encode       12 C s a pixel, C the first width of the VAE
    solve       520 C a latent, C the first width of the U-Net, whatever s; twice with guidance
    decode       15 C s a pixel, C the first width of the VAE

and the picture itself is held whole: I, the result, and what the colour fix needs.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from pathlib import Path

import torch

from dosde.check import Refused

_CGROUP = Path("/sys/fs/cgroup")
_BUFFERS = 5  # pictures of the size of the output, float32
_MOST = {"preprocess": 4096, "encode": 2048, "solve": 1024, "decode": 2048}  # trained at 512, attention grows with the square
_SPARE = 0.8  # of what is free


@dataclass(frozen=True)
class Tiles:
    """Side of the tiles of each stage in pixels of the output; None: the picture whole."""

    preprocess: int | None = None
    encode: int | None = None
    solve: int | None = None
    decode: int | None = None


def tiles(
    shape: Sequence[int],
    scale: float,
    tile: int | str | None = "auto",
    max_memory: float | None = None,
    *,
    costs: Mapping[str, float],
    multiple: int,
    grows: int,
    device: torch.device,
) -> Tiles:
    """The tiles of each stage.

    Args:
        shape: the shape of the pictures, (batch, channels, height, width).
        scale: how many times as large the output is.
        tile: "auto", a side in pixels of the output, or None for the picture whole.
        max_memory: bytes for "auto", beside the weights. Default: 80% of what is free on the device.
        costs: bytes a pixel of the output of each stage.
        multiple: sides of the output are multiples of it.
        grows: the factor of the preprocessor.
        device: where memory must be free, if max_memory is None.

    Raises:
        Refused: the tile, or the memory, is too small.
    """
    check_tile(multiple, tile)
    given: object = max_memory
    if given is not None and not (isinstance(given, Real) and 0 < float(given) < inf):
        raise Refused("max_memory", max_memory, "a number of bytes above 0, or None, is needed")
    if tile is None:
        return Tiles()
    if not isinstance(tile, str):
        side = int(tile) // multiple * multiple
        return Tiles(side, side, side, side)
    batch, _, *sides = shape
    out = [-(-max(1, round(side * scale)) // multiple) * multiple for side in sides]
    pixels = max(out[0] * out[1], sides[0] * sides[1] * grows**2)
    budget = free(device) * _SPARE if max_memory is None else max_memory
    left = budget - _BUFFERS * 12 * batch * pixels
    least = 4 * multiple
    found: dict[str, int | None] = {}
    for stage, bytes_a_pixel in costs.items():
        whole = [side * grows for side in sides] if stage == "preprocess" else out
        most = min(_MOST[stage], int((max(left, 0) / (batch * bytes_a_pixel)) ** 0.5)) // multiple * multiple
        side = min(least, max(whole))
        if most < side:
            need = _BUFFERS * 12 * batch * pixels + batch * bytes_a_pixel * side**2
            raise Refused(
                "max_memory",
                max_memory,
                f"{need / 2**30:.2g} GiB are needed for {batch} x {out[1]} x {out[0]} pixels, even in tiles of {side}",
                f"{budget / 2**30:.2g} GiB",
            )
        fits = batch * bytes_a_pixel * whole[0] * whole[1] <= left and max(whole) <= _MOST[stage]
        found[stage] = None if fits else most
    return Tiles(**found)


def check_tile(multiple: int, tile: object) -> None:
    """Refused unless a tile is "auto", None, or a side that the networks can take."""
    least = 2 * multiple
    if tile is None or tile == "auto" or (not isinstance(tile, bool) and isinstance(tile, Integral) and int(tile) >= least):
        return
    raise Refused("tile", tile, f"'auto', None, or a side of at least {least} pixels of the output is needed")


def free(device: torch.device) -> float:
    """Bytes that are free on a device; on the CPU within the limit of the container, if there is one."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    import psutil

    available = float(psutil.virtual_memory().available)
    limit, used, stat = (_CGROUP / name for name in ("memory.max", "memory.current", "memory.stat"))
    if os.access(limit, os.R_OK) and (text := limit.read_text().strip()).isdigit():
        # What is cached of files counts as used there, and gives way: after a conversion it is all of the weights.
        cached = dict(line.split() for line in stat.read_text().splitlines()).get("inactive_file", 0)
        available = min(available, int(text) - int(used.read_text()) + int(cached))
    return available
