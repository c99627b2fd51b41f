"""Numbers recorded from the released DoSSR code with a shrunken model of random weights (tests/data/README.md).

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
from safetensors.numpy import load_file

DATA = Path(__file__).parent / "data" / "sd21"


@functools.cache
def manifest():
    """Configuration of the model (`config`, `clip_cfg`, `seed`, ...) and `tensors`, how each is made."""
    return json.loads(gzip.decompress((DATA / "manifest.json.gz").read_bytes()))


def load(name):
    """The recorded arrays of a file, by key."""
    return load_file(DATA / f"{name}.safetensors")


@functools.cache
def state_dict():
    """The checkpoint, {key: float32 array}, in the released layout. Every caller gets the same arrays."""
    recorded, seed = load("schedule_buffers"), manifest()["seed"]
    arrays = {e["key"]: recorded[e["key"]] if e.get("schedule_buffer") else _made(e, seed) for e in manifest()["tensors"]}
    for e in manifest()["tensors"]:
        array = np.ascontiguousarray(arrays[e["key"]])
        if hashlib.sha256(array.tobytes()).hexdigest()[:16] != e["sha256_16"]:
            raise ValueError(f"{e['key']}: not the tensor that was recorded")
    return arrays


def _made(entry, seed):
    """add + mul u, u uniform of variance one; in `rows` (first, last, m, c) c + m u; rounded to float16."""
    shape = tuple(entry["shape"])
    random = np.random.RandomState((zlib.crc32(entry["key"].encode()) ^ seed) & 0xFFFFFFFF)  # what it was recorded with
    u = ((2 * random.random_sample(math.prod(shape)) - 1) * math.sqrt(3)).reshape(shape)
    w = np.asarray(entry["add"] + entry["mul"] * u)
    for first, last, m, c in entry.get("rows", []):
        w[first:last] = c + m * u[first:last]
    return w.astype(np.float16).astype(np.float32)
