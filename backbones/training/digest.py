"""Digests (SHA-256) of what latents are made from, by content: networks, pictures, a function. Names do not count."""

import contextlib
import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones import whole

from .data import Bundled, Mixed, Source

_STORE = "pictures.json"


def of_module(module: nn.Module | None) -> str:
    """Of a network of diffusers or transformers: its configuration, and its tensors by name, bit for bit."""
    digest = hashlib.sha256()
    if module is not None:
        config: Any = getattr(module, "config", {})
        config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        public = {key: value for key, value in config.items() if not key.startswith("_")}  # not whence it was loaded
        digest.update(json.dumps(public, sort_keys=True, default=str).encode())
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def of_files(paths: Iterable[Path]) -> str:
    """Of files, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(_of_file(path).encode())
    return digest.hexdigest()


def of_pictures(source: Source, folder: Path, write: bool) -> str:
    """Of all pictures that a source draws from, in their order.

    A large folder is read once: what was found is kept in a file, and holds for a file that has its inode, its size and its
    times of change, of which nobody can set the last one back.

    Args:
        source: the source.
        folder: where what was found is kept.
        write: whether it is.
    """
    digest, known, found = hashlib.sha256(), _stored(folder / _STORE), {}
    for one in source.sources if isinstance(source, Mixed) else [source]:
        digest.update(b"source")
        for path in getattr(one, "files", []):
            stat = path.stat()
            now = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            *before, content = known.get(str(path.absolute()), [None])
            content = content if before == now else _of_file(path)
            found[str(path.absolute())] = [*now, content]
            digest.update(content.encode())
        if isinstance(one, Bundled):
            for name in one.names:
                digest.update(_bytes(one.whole(name)))
    if write and found and found != known:
        folder.mkdir(parents=True, exist_ok=True)
        with whole.file(folder / _STORE) as part:
            part.write_text(json.dumps(found))
    return digest.hexdigest()


def of_function(function: object) -> str:
    """Of the file in which a function or a class is written; of its name where there is no such file."""
    with contextlib.suppress(TypeError, OSError):
        file = inspect.getsourcefile(inspect.unwrap(function) if callable(function) else type(function))
        if file is not None:
            return _of_file(Path(file))
    return repr(function)


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()  # which hashlib reads where it lies


def _stored(path: Path) -> Mapping[str, list[Any]]:
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}
