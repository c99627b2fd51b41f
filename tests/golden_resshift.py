"""Numbers recorded from the released ResShift code with shrunken networks of random weights (tests/data/README.md).

The weights are not stored but made anew: each tensor from its key and the seed by the formula of the manifest, and checked
against its hash.
"""

import functools
import gzip
import hashlib
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / "data" / "resshift_net"


@functools.cache
def manifest():
    """`networks` (their configurations and tensors) and `diffusion` (the YAML of the process), by name."""
    return json.loads(gzip.decompress((DATA / "manifest.json.gz").read_bytes()))


@functools.cache
def layouts():
    """Names and shapes of the full-size files: `unet`, `autoencoder`."""
    return json.loads(gzip.decompress((DATA / "layouts.json.gz").read_bytes()))


@functools.cache
def recorded():
    """The recorded arrays by key, as tensors."""
    return {name: torch.from_numpy(array) for name, array in np.load(DATA / "recorded.npz").items()}


@functools.cache
def state_dict(network):
    """A released file, {key: tensor}: unet, unet_inpaint or vq. Every caller gets the same tensors."""
    made = {}
    for entry in manifest()["networks"][network]["tensors"]:
        if "buffer" in entry:
            buffer = recorded()[f"buffers/{entry['buffer']}"].numpy()
            array = np.where(buffer, np.float32(-100), np.float32(0)) if buffer.dtype == bool else buffer.astype(np.int64)
        else:
            array = _made(entry, manifest()["networks"][network]["seed"])
        if hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16] != entry["sha256_16"]:
            raise ValueError(f"{entry['key']}: not the tensor that was recorded")
        made[entry["key"]] = torch.from_numpy(array)
    return made


def _made(entry, seed):
    """add + mul u, u uniform of variance one, times m for the inputs (first, last, m); rounded to float16."""
    random = np.random.RandomState((zlib.crc32(entry["key"].encode()) ^ seed) & 0xFFFFFFFF)  # what it was recorded with
    u = ((2 * random.random_sample(math.prod(entry["shape"])) - 1) * math.sqrt(3)).reshape(entry["shape"])
    w = np.asarray(entry["add"] + entry["mul"] * u)
    for first, last, m in entry.get("inputs", []):
        w[:, first:last] *= m
    return w.astype(np.float16).astype(np.float32)
