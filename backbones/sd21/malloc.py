"""Memory of the CPU that is used again rather than given back, for speed.

glibc returns every large tensor to the kernel as soon as it is freed, and the kernel fills the pages of the next one with zeros
first. In `kept`, malloc keeps them, and gives back what is free before and after each stage. That costs memory, in the VAE
about as much again, for what is free lies scattered; so tiles do without (`usual`).

The settings are those of the whole process. So the command alone enters `kept`, whose process is its own; a pipeline in a
program of somebody else's leaves them as they are.
"""

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
_KEPT = {_MAP: 1 << 30, _TRIM: (1 << 31) - 1}
_USUAL = {_MAP: 32 << 20, _TRIM: 64 << 20}  # where glibc's own adjustment ends once a large tensor has been freed
_lock, _inside = threading.Lock(), 0


@contextmanager
def kept() -> Iterator[None]:
    """While the block runs, malloc gives nothing back but by `trim`. Nothing changes where the C library is not glibc."""
    _count(1)
    try:
        yield
    finally:
        _count(-1)
        trim()


@contextmanager
def usual() -> Iterator[None]:
    """While the block runs, within `kept`, malloc gives memory back as it usually does. Nothing changes outside of `kept`."""
    inside = _inside > 0
    if inside:
        _count(-1)
        trim()
    try:
        yield
    finally:
        if inside:
            _count(1)


def trim() -> None:
    """Gives free memory back to the system. It changes no setting."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _count(more: int) -> None:
    global _inside
    with _lock:
        before, _inside = _inside, _inside + more
        libc = _glibc()
        if libc is not None and 0 in (before, _inside):
            for name, value in (_KEPT if _inside else _USUAL).items():
                libc.mallopt(name, value)


@functools.cache
def _glibc() -> Any:
    try:
        libc = ctypes.CDLL(None)
        return libc if all(hasattr(libc, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim")) else None
    except (OSError, TypeError):
        return None
