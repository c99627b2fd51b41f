"""Networks of ncnn: the list of layers in a .param file, and the weights in the .bin file beside it.

A .bin file has, for each convolution in the order of the list, a tag, the kernel and the bias. The tag 0x01306B47 says that the
kernel is float16, padded to a multiple of 4 bytes; 0 says float32. The bias is float32.
"""

import struct
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_HALF = 0x01306B47
_WITH_WEIGHTS = ("InnerProduct", "BatchNorm", "PReLU", "MemoryData", "Scale", "ConvolutionDepthWise", "Deconvolution")


def convolutions(param: str, content: bytes) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, kernel, bias) of each convolution, in float32: (outputs, inputs, height, width) and (outputs,).

    Raises:
        ValueError: Other layers have weights, or the two files do not fit each other.
    """
    lines = param.split("\n")
    if lines[0].strip() != "7767517":
        raise ValueError("no .param file of ncnn")
    at = 0
    for line in filter(None, map(str.strip, lines[2:])):
        kind, name, inputs, outputs, *rest = line.split()
        if kind in _WITH_WEIGHTS:
            raise ValueError(f"{name}: a layer {kind} is not read here")
        if kind != "Convolution":
            continue
        given = dict(one.split("=") for one in rest[int(inputs) + int(outputs) :])
        width, kernel, count = int(given["0"]), int(given["1"]), int(given["6"])
        high = int(given.get("11", kernel))
        if at + 4 > len(content):
            raise ValueError(f"{name}: the .bin file ends before it")
        (tag,) = struct.unpack_from("<I", content, at)
        if tag not in (0, _HALF):
            raise ValueError(f"{name}: its weights are neither float16 nor float32")
        kind_of = np.dtype("<f2" if tag else "<f4")
        size = -(-count * kind_of.itemsize // 4) * 4
        bias = 4 * width if int(given.get("5", 0)) else 0
        if at + 4 + size + bias > len(content):
            raise ValueError(f"{name}: the .bin file ends inside it")
        values = np.frombuffer(content, kind_of, count, at + 4).astype(np.float32).reshape(width, -1, high, kernel)
        offset = np.frombuffer(content, "<f4", width, at + 4 + size).astype(np.float32) if bias else np.zeros(width, np.float32)
        at += 4 + size + bias
        yield name, torch.from_numpy(values), torch.from_numpy(offset)
    if at != len(content):
        raise ValueError(f"the .bin file has {len(content) - at} bytes more than the layers of the .param file")
