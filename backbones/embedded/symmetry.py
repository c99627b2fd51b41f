"""Weights by which a network treats a picture alike in its eight positions: turned by 90 degrees, and mirrored.

    network(a x, a x_hat0, t) = a network(x, x_hat0, t)      for each position a, but for rounding

Channels come in eights: what one filter sees, in each position. A weight is moved by a as a moves what it reads and what it
writes, and elements that some a brings to each other's places are one number, so that an eighth of them is free (group
convolutions, Cohen and Welling 2016). A `Move` says where the channels of a layer's input or output go.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_POSITIONS = [(turns, mirrored) for mirrored in (False, True) for turns in range(4)]
EIGHT = len(_POSITIONS)
Move = Tensor  # (8, channels): in position a, channel c is what was channel move[a, c]


def positioned(picture: Tensor, position: int) -> Tensor:
    """(..., height, width) in one of the eight positions; 0 is the picture itself."""
    turns, mirrored = _POSITIONS[position]
    return torch.rot90(picture.flip(-1) if mirrored else picture, turns, (-2, -1))


def fixed(channels: int) -> Move:
    """Channels that stay where they are."""
    return torch.arange(channels, device="cpu").expand(EIGHT, channels)


def folded(channels: int, side: int) -> Move:
    """The move of the channels that pixel_unshuffle makes: pixels that change places in their cell of side x side."""
    cell = torch.arange(side**2, device="cpu").reshape(side, side)
    moved = torch.stack([positioned(cell, a).flatten() for a in range(EIGHT)])
    return _product(fixed(channels), moved)


@functools.cache
def eights(channels: int) -> Move:
    """Channels in groups of eight."""
    cell = torch.arange(4, device="cpu").reshape(2, 2)  # its eight positions are all different
    every = torch.stack([positioned(cell, b) for b in range(EIGHT)])
    # What filter b sees after a, is what filter a^-1 b saw: a (a^-1 b) = b.
    after = [torch.stack([positioned(e, a) for e in every]) for a in range(EIGHT)]
    moved = torch.stack([(every[:, None] == made).flatten(2).all(2).int().argmax(1) for made in after])
    return _product(fixed(channels // EIGHT), moved)


def joined(*moves: Move) -> Move:
    """The move of concatenated channels."""
    starts = torch.tensor([0, *(move.shape[1] for move in moves[:-1])], device="cpu").cumsum(0)
    return torch.cat([move + start for move, start in zip(moves, starts, strict=True)], 1)


def _product(outer: Move, inner: Move) -> Move:
    """The move of channels that are counted by two numbers."""
    size = inner.shape[1]
    return (outer[:, :, None] * size + inner[:, None]).flatten(1)


def tie(layer: nn.Conv2d | nn.Linear, outputs: Move, inputs: Move) -> None:
    """Makes the free numbers of a layer's weight and bias its parameters; the values it had are where they start."""
    for name in ("weight", "bias"):
        whole: Tensor = getattr(layer, name)
        moves = (outputs.contiguous().numpy().tobytes(), inputs.contiguous().numpy().tobytes())
        parametrize.register_parametrization(layer, name, Shared(*_orbits(tuple(whole.shape), *moves)), unsafe=True)


@functools.lru_cache(maxsize=64)
def _orbits(shape: tuple[int, ...], outputs: bytes, inputs: bytes) -> tuple[torch.Size, Tensor, Tensor]:
    """The arguments of `Shared`: elements of a weight that are one number. Layers of one shape have the same."""
    out, into = (torch.frombuffer(bytearray(move), dtype=torch.int64).reshape(EIGHT, -1) for move in (outputs, inputs))
    places = torch.arange(math.prod(shape), device="cpu").reshape(shape)
    moved = []
    for a in range(EIGHT):
        of = places[out[a]]
        of = of[:, into[a]] if of.ndim > 1 else of
        moved.append(positioned(of, a) if of.ndim == 4 else of)
    first = torch.stack(moved).amin(0)  # the least index of those that an element is one with
    in_memory = first.permute(0, 2, 3, 1) if first.ndim == 4 else first  # channels last, twice as fast on a CPU
    representatives, index = torch.unique(in_memory, return_inverse=True)
    return in_memory.shape, representatives, index.flatten().int()


class Shared(nn.Module):
    """A tensor some of whose elements are one number: from those numbers, (n,), to the whole, and back.

    Args:
        stored: the shape of the whole in memory, channels last.
        representatives: (n,), for each number an element that has it, by its place in the whole.
        index: for each element, in memory, its number.
    """

    index: Tensor
    representatives: Tensor

    def __init__(self, stored: torch.Size, representatives: Tensor, index: Tensor) -> None:
        super().__init__()
        self.stored = stored
        self.register_buffer("representatives", representatives.clone(), persistent=False)
        self.register_buffer("index", index.clone(), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        whole = numbers.index_select(0, self.index).reshape(self.stored)
        return whole.permute(0, 3, 1, 2) if whole.ndim == 4 else whole

    def right_inverse(self, whole: Tensor) -> Tensor:
        return whole.flatten().index_select(0, self.representatives)  # which, on meta, needs no sympy
