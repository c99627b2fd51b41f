"""Functions of pictures, evaluated tile by tile: memory of one tile, and no seams.

    out = sum_k w_k function(tile_k),   sum_k w_k = 1,   w_k(y, x) = w_k(y) w_k(x)

Along an axis the tiles lie evenly, each overlapping the next by `overlap` or more. Across the overlap of tiles k - 1 and k a
ramp U_k rises from 0 to 1, and w_k = U_k - U_{k+1}, with U = 1 before the first tile and 0 behind the last: it telescopes, so
nothing has to be normalised. U_k is 0 on the first quarter of the overlap and 1 on the last one, so what is near the inner
border of a tile has no weight: a function that looks no further than overlap/4 pixels to each side gives what it gives untiled.
Between, U(s) = 1 / (1 + exp(1/s - 1/(1 - s))), whose derivatives all vanish at both ends. A picture's borders have no ramp.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise, product
from math import ceil, floor
from typing import NamedTuple

import torch
from torch import Tensor

from dosde.check import Refused


def tiled(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    tile: int,
    overlap: int,
    scale: int | Fraction = 1,
    multiple: int = 1,
    progress: Callable[[int, int], object] | None = None,
) -> Tensor:
    """function(*inputs), called on one tile at a time; on the inputs themselves where one tile covers the picture.

    Args:
        function: tensors of the size of a tile -> a tensor.
        inputs: (..., height, width), of one height and width; they are cropped alike.
        tile: the side of the tiles in pixels of the inputs; a side of the inputs that is not larger is not cut.
        overlap: of neighbouring tiles at least, in pixels of the inputs.
        scale: a side of the output over that of the input: 8 for a decoder, Fraction(1, 8) for an encoder.
        multiple: tile, overlap, the sides and the corners of the tiles are multiples of it.
        progress: is called as progress(done, count) after each tile.

    Returns:
        (..., scale height, scale width) in the dtype of the function, summed in float32 or better; gradients pass.

    Raises:
        Refused: for sizes that do not fit, and where the function returns another size than scale says.
    """
    scale = Fraction(scale)
    if not inputs or any(x.ndim < 2 or x.shape[-2:] != inputs[0].shape[-2:] for x in inputs):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise Refused(
            "inputs",
            inputs,
            "one or more (..., height, width) of one height and width are needed",
            f"shapes {shapes or 'none'}",
        )
    height, width = inputs[0].shape[-2:]
    rows, columns = _axis(height, tile, overlap, multiple, scale), _axis(width, tile, overlap, multiple, scale)
    size = tuple(int(scale * (span[0].tile.stop - span[0].tile.start)) for span in (rows, columns))

    def called(*crops: Tensor) -> Tensor:
        part = function(*crops)
        if part.shape[-2:] != size:
            raise Refused(
                "function",
                part,
                f"height and width {size} are needed, as scale is {scale}",
                f"returned {tuple(part.shape)}",
            )
        return part

    count = len(rows) * len(columns)
    if count == 1:
        out = called(*inputs)
        if progress is not None:
            progress(1, 1)
        return out
    for done, (row, column) in enumerate(product(rows, columns), 1):
        part = called(*(x[..., row.tile, column.tile].contiguous() for x in inputs))
        if done == 1:
            dtype, sum_dtype = part.dtype, torch.promote_types(part.dtype, torch.float32)
            out = part.new_zeros(*part.shape[:-2], int(scale * height), int(scale * width), dtype=sum_dtype)
        weight = row.weight.to(out)[:, None] * column.weight.to(out)
        out[..., row.out, column.out].addcmul_(part[..., row.part, column.part].to(sum_dtype), weight)
        del part  # before the next one is made
        if progress is not None:
            progress(done, count)
    return out.to(dtype)


def least(overlap: int, multiple: int = 1) -> int:
    """The smallest useful tile: all tiles together have at most four times the pixels of the picture.

    That is (tile / (tile - overlap))^2 <= 4. Below it the work explodes: an overlap of a pixel less than the tile makes a tile
    for every pixel.

    >>> least(556, 4)
    1112
    """
    return max(multiple, -(-2 * overlap // multiple) * multiple)


def boxes(height: int, width: int, tile: int, overlap: int, multiple: int = 1) -> list[tuple[slice, slice]]:
    """The tiles of a picture, rows first, as `picture[..., *box]`. Their number is what a progress bar counts to.

    Args:
        height: of the picture.
        width: of the picture.
        tile: the side of the tiles.
        overlap: of neighbouring tiles at least.
        multiple: see `tiled`.

    Raises:
        Refused: for tile < 1, overlap outside [0, tile), and what is no multiple of `multiple`.
    """
    rows, columns = (_axis(side, tile, overlap, multiple, Fraction(1)) for side in (height, width))
    return [(row.tile, column.tile) for row, column in product(rows, columns)]


class _Span(NamedTuple):
    """One tile along one axis: its place in the input; the part of its output that has weight, its place, the weights."""

    tile: slice
    part: slice
    out: slice
    weight: Tensor


@lru_cache(maxsize=256)
def _axis(size: int, tile: int, overlap: int, multiple: int, scale: Fraction) -> tuple[_Span, ...]:
    """The tiles along an axis with their weights, in float64."""
    if multiple < 1:
        raise Refused("multiple", multiple, "at least 1 is needed")
    if tile < 1 or tile % multiple:
        raise Refused("tile", tile, f"a multiple of {multiple}, at least {multiple}, is needed")
    if not 0 <= overlap < tile or overlap % multiple:
        raise Refused("overlap", overlap, f"a multiple of {multiple} from 0 to below tile = {tile} is needed")
    if size < 1 or size % multiple:
        raise Refused("inputs", size, f"a multiple of {multiple}, at least {multiple}, is needed", f"a side of {size}")
    if scale <= 0 or (scale * multiple).denominator > 1:
        raise Refused("scale", scale, "scale multiple must be a whole number above 0", f"{scale} with multiple = {multiple}")
    length = min(tile, size)
    gaps = -((length - size) // (tile - overlap))
    # Rounded down in units of `multiple`, two neighbours are never more than tile - overlap apart, itself such a multiple.
    starts = [(size - length) // multiple * k // max(gaps, 1) * multiple for k in range(gaps + 1)]
    ramps = [_ramp(scale * (s + Fraction(e - s, 4)), scale * (e - Fraction(e - s, 4))) for s, e in _overlaps(starts, length)]
    spans = []
    for k, start in enumerate(starts):
        begin, end = int(scale * start), int(scale * (start + length))
        centres = torch.arange(begin, end, dtype=torch.float64, device="cpu") + 0.5
        rise = ramps[k - 1](centres) if k else torch.ones_like(centres)
        fall = ramps[k](centres) if k < gaps else torch.zeros_like(centres)
        weight = rise - fall
        used = weight.nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        out = slice(begin + first, begin + last)
        spans.append(_Span(slice(start, start + length), slice(first, last), out, weight[first:last]))
    return tuple(spans)


def _overlaps(starts: list[int], length: int) -> list[tuple[int, int]]:
    """Where each tile begins and the one before it ends."""
    return [(start, before + length) for before, start in pairwise(starts)]


def _ramp(begin: Fraction, end: Fraction) -> Callable[[Tensor], Tensor]:
    """U of the centres of output pixels: 0 for pixels that begin before `begin`, 1 for those that end behind `end`."""
    a, b = ceil(begin), floor(end)
    if a >= b:  # no pixel has both sides: a step
        return lambda centre: (centre > (a + b) // 2).to(centre.dtype)

    def rise(centre: Tensor) -> Tensor:
        s = ((centre - a) / (b - a)).clamp(0, 1)
        return torch.sigmoid(1 / (1 - s) - 1 / s)

    return rise
