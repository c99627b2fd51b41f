"""Files of tensors: read as data, never executed; written whole or not at all.

read               tensors of a checkpoint of any origin: .safetensors, or a pickle of nothing but tensors
read_safetensors   tensors and metadata of a file of ours, exactly as they were written
metadata           the metadata alone
write              a file
"""

import functools
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dosde.check import Refused, form

from . import kinds, whole

SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
Tensors = dict[str, Tensor]


def read(path: Path | str) -> Tensors:
    """The tensors of a checkpoint file by name, mapped into memory, not copied, where its format permits.

    Its content tells the format, whatever its suffix. An outer `state_dict` (or params_ema, params) and a prefix `module.` are
    taken off. A pickle is never executed.

    Args:
        path: a file.

    Raises:
        Refused: in one line that says what the file is, where it is missing, broken, or holds anything but tensors.
    """
    if "://" in str(path):
        raise Refused("checkpoint", path, "a file of this machine is needed: download it", str(path))
    path = Path(path)
    if not path.is_file() and not path.is_dir():
        missing = not path.exists()
        raise Refused("checkpoint", path, "no such file" if missing else "it is no file that can be read to its end")
    try:
        kind = kinds.kind_of(path)
    except OSError as error:
        shown = f"{path} cannot be read ({error.strerror})"
        raise Refused("checkpoint", path, "a file that can be read is needed", shown) from None
    if kind is not None:
        raise Refused("checkpoint", path, kind.needed, f"{path} is {kind.what}")
    if not path.is_file():
        raise Refused(
            "checkpoint", path, "a file of tensors is needed", f"{path} is {'a folder' if path.is_dir() else 'no file'}"
        )
    content = _content(path)
    for outer in ("state_dict", "params_ema", "params"):
        if isinstance(content, Mapping) and isinstance(content.get(outer), Mapping):
            content = content[outer]
    if not isinstance(content, Mapping) or not content:
        raise Refused("checkpoint", path, "tensors by name are needed", f"{path} holds {form(content)}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Refused("checkpoint", path, "tensors by name are needed", _mixed(path, content, name, value))
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name[len(prefix) :]: value for name, value in content.items()}


def _mixed(path: Path, content: Mapping[Any, Any], name: Any, value: Any) -> str:
    """What a dict holds that has other things than tensors, in words."""
    if {"state", "param_groups"} <= content.keys():
        return f"{path} is the state of an optimizer"
    parts = [
        key for key, part in content.items() if isinstance(part, Mapping) and any(isinstance(t, Tensor) for t in part.values())
    ]
    inside = f", and tensors are inside {parts[0]!r}: save that part alone" if parts else ""
    return f"{path}: {name!r} is {form(value)}{inside}"


def _content(path: Path) -> Any:
    """What a file holds that is a .safetensors file or one of PyTorch, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(9)
    if kinds.is_safetensors(head):
        from safetensors.torch import load_file

        load: Callable[[], Any] = functools.partial(load_file, path)
    else:
        load = functools.partial(_loaded, path)
    try:
        return load()
    except Exception as error:  # a broken file fails in as many ways as there are bytes
        said = " ".join(str(error).split())
        if head[:1] in (b"P", b"\x80") and any(s in said for s in ("Weights only load", "WeightsUnpickler", "Unsupported")):
            named = re.search(r"GLOBAL (\S+)", said)
            what = kinds.pickled(path)
            raise Refused(
                "checkpoint",
                path,
                "refused. Have its author save the state_dict alone, best as .safetensors",
                f"{path}{f' is {what} that' if what != 'a file' else ''} holds more than tensors"
                f"{(f' ({named[1]})' if named else '')}, which loading would execute",
            ) from None
        raise _no_file(path, said[:120] if " " in said else type(error).__name__) from None


def _loaded(path: Path) -> Any:
    with warnings.catch_warnings():  # of odd pickles, which are refused anyhow
        warnings.simplefilter("ignore")
        if path.suffix == ".safetensors":  # by which torch takes it for one
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError):  # of the older format, which cannot be mapped, or broken
            return torch.load(path, map_location="cpu", weights_only=True)


def _no_file(path: Path | str, reason: str) -> Refused:
    """A refusal of a file that cannot be read, with what it is, or what the library says of it."""
    kind = kinds.kind_of(Path(path)) if Path(path).exists() else None
    shown = f"{path} is {kind.what}" if kind else f"{path} is no whole file of tensors ({reason})"
    return Refused("checkpoint", Path(path), kind.needed if kind else "a file as its author wrote it is needed", shown)


def aligned(module: nn.Module) -> nn.Module:
    """The module, its weights on the CPU moved to multiples of 64 bytes where a mapped file put them elsewhere.

    BLAS rounds differently at other addresses.
    """
    for parameter in module.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()
    return module


def metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a safetensors file; none of another file of tensors.

    Raises:
        Refused: in one line that names the file, where it cannot be read.
    """
    from safetensors import safe_open

    try:
        with Path(path).open("rb") as head:
            if not kinds.is_safetensors(head.read(9)):
                return {}
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise _no_file(path, " ".join(str(error).split())[:120]) from None


def write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Writes tensors to a file, whole or not at all, on the disk when this returns. The folder is made if there is none.

    Args:
        path: a .safetensors file, or another suffix (.ckpt) for a pickle of {"state_dict": tensors}.
        tensors: by name, on any device; two of them may share memory.
        about: the metadata of a safetensors file. With one key the same content gives the same bytes; the order of more
            keys is drawn by safetensors.

    Raises:
        OSError: in one line, where the file cannot be written. Then nothing has changed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()  # of the storages; safetensors takes no two tensors of one
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        if place in seen:
            tensors[name] = tensor.clone()
        seen.add(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole.file(path) as part:
            if path.suffix == ".safetensors":
                save_file(tensors, part, metadata=dict({"format": "pt"} if about is None else about))
            else:
                with part.open("wb") as file:  # by its path, torch would put the hidden name into the content
                    torch.save({"state_dict": tensors}, file)
            with part.open("rb") as file:
                os.fsync(file.fileno())
    except (SafetensorError, RuntimeError) as error:  # what they make of a full disk
        raise OSError(f"{path} cannot be written ({' '.join(str(error).split())[:120]})") from error


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the metadata of a safetensors file, as they were written.

    Raises:
        Refused: in one line that names the file, where it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        kind = kinds.kind_of(path) if path.exists() else None
        said = f"is {kind.what}" if kind else f"cannot be read ({' '.join(str(error).split())[:120]})"
        raise Refused("checkpoint", path, "a whole .safetensors file is needed", f"{path} {said}") from None


def part(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The tensors whose names have a prefix, under the rest of their names."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Compares the tensors of a file with those of a network.

    Args:
        path: the file, for messages.
        tensors: what it holds.
        wanted: what the network needs; shapes alone are looked at.

    Raises:
        Refused: that names a missing, unexpected or differently shaped tensor.
    """
    for name, tensor in wanted.items():
        if name not in tensors:
            raise Refused("checkpoint", path, "weights of this network are needed", f"{path} has no tensor {name}")
        if tensors[name].shape != tensor.shape:
            needed = f"{tuple(tensor.shape)}, as the network of the config, is needed"
            raise Refused("checkpoint", path, needed, f"{path}: {name} has shape {tuple(tensors[name].shape)}")
    for name in tensors:
        if name not in wanted:
            raise Refused("checkpoint", path, "weights of this network are needed", f"{path}: unexpected tensor {name}")


def weights_of(path: Path) -> Tensors:
    """The weights in a safetensors file, in float32: the averages in a checkpoint of a training, or all tensors.

    Raises:
        Refused: where the file is missing or cannot be read.
    """
    if not path.is_file():
        raise Refused("checkpoint", path, "no such file")
    tensors, _ = read_safetensors(path)
    return {name: tensor.to(torch.float32) for name, tensor in averaged(tensors).items()}


def averaged(tensors: Tensors) -> Tensors:
    """The averaged weights in the tensors of a checkpoint of a training; other tensors as they are."""
    return part(tensors, "ema.") if part(tensors, "optimizer.") else tensors


def training(path: Path | str) -> dict[str, Any] | None:
    """The config of the training that wrote a file, a checkpoint or a result; None where no training did.

    It needs the header of the file alone, and raises nothing.
    """
    try:
        about = metadata(path)
        if "dosde.embedded" in about:  # a result of the backbone embedded, which keeps it with what else it says
            about = json.loads(about["dosde.embedded"])["about"]
        config = json.loads(about["config"])
        return config if config["task"] in ("embedded", "sd21", "resshift") else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
