"""Checkpoints: one safetensors file each, OUT/checkpoints/STEP.safetensors, written whole or not at all.

    model.NAME, ema.NAME                    the weights, and their averages in float32
    optimizer.{exp_avg,exp_avg_sq,step}.NAME   of AdamW

The step and the config are in its metadata. All names are those of the network, whatever it was wrapped in, so a run can go on
with another number of processes.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, on the disk when this returns. Errors: OSError, one line; then nothing has changed."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # one name, so that a killed run leaves nothing that the next does not take
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part, metadata=dict(metadata))
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (SafetensorError, RuntimeError) as error:  # what they make of a full disk
        raise OSError(f"{path} cannot be written ({' '.join(str(error).split())[:120]})") from error
    finally:
        part.unlink(missing_ok=True)


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata. Errors: ValueError, one line."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint: {path} cannot be read ({' '.join(str(error).split())[:120]})") from None


def every(out: Path) -> list[tuple[int, Path]]:
    """(step, file), in the order of their steps."""
    found = (out / "checkpoints").glob("*.safetensors")
    return sorted((int(path.stem), path) for path in found if re.fullmatch(r"\d+", path.stem))


def save(out: Path, step: int, tensors: Mapping[str, Tensor], config: Mapping[str, Any], keep: int) -> None:
    """Writes the checkpoint of a step, and then removes all but the last `keep`. Errors: OSError."""
    metadata = {"format": "pt", "step": str(step), "config": json.dumps(config)}
    write(out / "checkpoints" / f"{step:08d}.safetensors", tensors, metadata)
    for _, path in every(out)[:-keep]:
        path.unlink(missing_ok=True)


def part(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """Those with the prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Errors: ValueError that names a missing, unexpected or differently shaped tensor."""
    for name, tensor in wanted.items():
        if name not in tensors:
            raise ValueError(f"checkpoint: {path} has no tensor {name}; weights of this network are needed")
        if tensors[name].shape != tensor.shape:
            shapes = f"{tuple(tensors[name].shape)}; {tuple(tensor.shape)}"
            raise ValueError(f"checkpoint: {path}: {name} has shape {shapes}, as the network of the config, is needed")
    for name in tensors:
        if name not in wanted:
            raise ValueError(f"checkpoint: {path}: unexpected tensor {name}; weights of this network are needed")


def weights_of(path: Path) -> Tensors:
    """The weights in a file: the averages of a checkpoint, or whatever tensors it has; in float32. Errors: ValueError."""
    if not path.is_file():
        raise ValueError(f"checkpoint: {path}; no such file")
    tensors, _ = read(path)
    if part(tensors, "optimizer."):
        tensors = part(tensors, "ema.")
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
