"""Tile sizes: as large as memory permits."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tiles:
    """Side of the tiles of each stage in pixels of the output; None: the picture whole."""

    preprocess: int | None = None
    encode: int | None = None
    solve: int | None = None
    decode: int | None = None


def tiles(pipe: Any, shape: Any, scale: float, tile: int | str | None, max_memory: float | None, guided: bool) -> Tiles:
    return Tiles() if tile in (None, "auto") else Tiles(tile, tile, tile, tile)
