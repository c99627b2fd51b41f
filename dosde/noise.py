"""Noise: callables (u, u_next, like) -> z, unit normal, in the shape, dtype and device of `like`.

`like` must not be written to. The first call of a solve is for the start, with u = 0. z is the normalised increment of the
Brownian motion that drives the reverse SDE on its clock u (dm = x_theta du + dW_u): independent draws serve for one solve;
`Brownian` is one path, so that solves of 5 and of 5,000 steps can be compared, or a picture refined.
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from . import check
from .check import Refused, RefusedType, require
from .srk import Stages as Stages
from .step import Array, Coefficient

Noise = Callable[[Coefficient, Coefficient, Tensor], Tensor]
"""(u, u_next, like) -> z."""


class Independent:
    """Fresh draws from torch's default generator, from one generator, or from one generator for each sample.

    With a generator for each sample, a batch has the noise that its samples would have alone. Draws happen on the device of
    the generator and are moved.

    Args:
        generator: None is torch's default generator.
    """

    def __init__(self, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> None:
        several = isinstance(generator, Sequence)
        for g in generator if isinstance(generator, Sequence) else [generator]:
            if not isinstance(g, torch.Generator) and (several or g is not None):
                raise RefusedType("generator", g, "a torch.Generator, or a sequence of them, is needed")
        self.generator = tuple(generator) if isinstance(generator, Sequence) else generator

    def __repr__(self) -> str:
        count = len(self.generator) if isinstance(self.generator, tuple) else int(self.generator is not None)
        return f"dosde.noise.Independent({'' if not count else f'<{count} torch.Generator>'})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Independent) and self.generator == other.generator

    def __hash__(self) -> int:
        return hash(self.generator)

    def __call__(self, u: Coefficient, u_next: Coefficient, like: Tensor) -> Tensor:
        if isinstance(self.generator, tuple):
            count, shown = len(self.generator), f"{len(self.generator)} generators"
            require(count == like.shape[0], "noise", self.generator, f"{like.shape[0]} are needed, one a sample", shown)
            return torch.stack([_normal(like.shape[1:], g, like) for g in self.generator])
        return _normal(like.shape, self.generator, like)


class Brownian:
    """One Brownian path W on the clock u in [0, inf), the same for the same seed in whatever order it is asked for.

    W(u) is a function of (seed, u): its values at powers of two are a Markov chain from W(1), and within an octave it is
    bisected (Levy's construction) down to u itself, in some 50 normal draws, each with a seed of its own place. Only the last
    two values are stored.

    Args:
        seed: an integer >= 0, or a list with one for each sample, for a batch of independent paths.

    >>> import torch
    >>> path, like = Brownian(seed=0), torch.zeros(2, dtype=torch.float64)
    >>> whole = path(1.0, 3.0, like) * 2**0.5
    >>> parts = path(1.0, 1.7, like) * 0.7**0.5 + path(1.7, 3.0, like) * 1.3**0.5
    >>> torch.allclose(whole, parts, atol=1e-14, rtol=0)
    True
    """

    def __init__(self, seed: int | Sequence[int] = 0) -> None:
        self.batched = isinstance(seed, Sequence)
        seeds = seed if isinstance(seed, Sequence) else [seed]
        ok = all(isinstance(s, int | np.integer) and s >= 0 for s in seeds)
        require(ok, "seed", seed, "an integer >= 0, or one a sample, is needed")
        self.seeds = [int(s) for s in seeds]
        self._last: dict[tuple[float, torch.Size], Tensor] = {}

    def __repr__(self) -> str:
        return f"dosde.noise.Brownian(seed={self.seeds if self.batched else self.seeds[0]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Brownian) and (self.batched, self.seeds) == (other.batched, other.seeds)

    def __hash__(self) -> int:
        return hash((self.batched, *self.seeds))

    def __call__(self, u: Coefficient, u_next: Coefficient, like: Tensor) -> Tensor:
        if isinstance(u, Tensor) or isinstance(u_next, Tensor):
            shown = f"Brownian needs one clock, and u is a field of shape {tuple(torch.as_tensor(u).shape)}"
            raise Refused("noise", self, "use Independent", shown)
        ordered = 0 <= u < u_next < math.inf or u == u_next == 0
        needed = "0 <= u < u_next < inf is needed (or both 0, at the start)"
        require(ordered, "u, u_next", (u, u_next), needed, f"{u}, {u_next}")
        ok = not self.batched or len(self.seeds) == like.shape[0]
        require(ok, "noise", self, f"{like.shape[0]} are needed, one a sample", f"{len(self.seeds)} seeds")
        if u_next == 0:  # the start at eta = 1: the limit of W(u)/sqrt(u), independent of all that follows
            return torch.from_numpy(self._draw((0,), like.shape)).to(like)
        ends = [self._last.get((v, like.shape)) for v in (u, u_next)]
        before, after = (self.value(v, like.shape) if w is None else w for v, w in zip((u, u_next), ends, strict=True))
        self._last = {(u, like.shape): before, (u_next, like.shape): after}
        return ((after - before) / math.sqrt(u_next - u)).to(like)

    def value(self, u: float, shape: torch.Size) -> Tensor:
        """The path W(u), float64 on the host."""
        if u == 0:
            return torch.zeros(shape, dtype=torch.float64, device="cpu")
        octave = math.frexp(u)[1] - 1  # 2^octave <= u < 2^(octave + 1)
        low, high = 2.0**octave, 2.0 ** (octave + 1)
        w_low = self._power(octave, shape)
        if u == low:
            return torch.from_numpy(w_low)
        w_high = self._power(octave + 1, shape)
        node = 1
        while True:
            middle = (low + high) / 2
            w = (w_low + w_high) / 2 + math.sqrt((high - low) / 4) * self._draw((2, octave + 2**15, node), shape)
            if u == middle:
                return torch.from_numpy(w)
            if u < middle:
                high, w_high, node = middle, w, 2 * node
            else:
                low, w_low, node = middle, w, 2 * node + 1

    def _power(self, octave: int, shape: torch.Size) -> Array:
        """W(2^octave), walked from W(1): upwards by increments, downwards by bridges to W(0) = 0."""
        w = self._draw((1, 0), shape)
        for k in range(octave):
            w = w + math.sqrt(2.0**k) * self._draw((1, 2 * k + 2), shape)
        for k in range(0, octave, -1):
            w = w / 2 + math.sqrt(2.0**k / 4) * self._draw((1, 1 - 2 * k), shape)
        return w

    def _draw(self, place: tuple[int, ...], shape: torch.Size) -> Array:
        """The standard normal that belongs to a place of the construction."""
        one = tuple(shape[1:] if self.batched else shape)
        draws = [np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=place))) for seed in self.seeds]
        values = [np.asarray(g.standard_normal(one)) for g in draws]
        return np.stack(values) if self.batched else values[0]


def as_noise(noise: object) -> Noise:
    """The noise argument of `solve`, as a callable.

    Raises:
        TypeError: for anything else.
    """
    if noise is None or isinstance(noise, torch.Generator | Sequence):
        return Independent(noise)
    if isinstance(noise, Tensor):
        raise RefusedType("noise", noise, "(u, u_next, like) -> z may return it", f"a tensor of shape {tuple(noise.shape)}")
    check.function("noise", noise, "a torch.Generator, a list of them, or (u, u_next, like) -> z is needed")
    return cast(Noise, noise)


def _normal(shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, dtype=like.dtype, device=device).to(like.device)
