"""Noise: callables (u, u_next, like) -> z, unit normal, in the shape, dtype and device of `like`.

`like` must not be written to. The first call of a solve is for the start, with u = 0. z is the normalised increment of the
Brownian motion that drives the reverse SDE on its clock u (dm = x_theta du + dW_u): independent draws serve for one solve;
`Brownian` is one path, so that solves of 5 and of 5,000 steps can be compared, or a picture refined.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .method import Coefficient

Noise = Callable[[Coefficient, Coefficient, Tensor], Tensor]


class Independent:
    """Fresh draws from torch's default generator, from one generator, or from one generator a sample.

    With one generator a sample, a batch has the noise that its samples would have alone. Draws are made on the device of the
    generator and moved.
    """

    def __init__(self, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> None:
        several = isinstance(generator, Sequence)
        for g in generator if isinstance(generator, Sequence) else [generator]:
            if not isinstance(g, torch.Generator) and (several or g is not None):
                raise TypeError(f"generator: {g!r}; a torch.Generator, or a sequence of them, is needed")
        self.generator = generator

    def __call__(self, u: Coefficient, u_next: Coefficient, like: Tensor) -> Tensor:
        if isinstance(self.generator, Sequence):
            if len(self.generator) != like.shape[0]:
                raise ValueError(f"noise: {len(self.generator)} generators; {like.shape[0]} are needed, one a sample")
            return torch.stack([_normal(like.shape[1:], g, like) for g in self.generator])
        return _normal(like.shape, self.generator, like)


class Brownian:
    """One Brownian path W on the clock u in [0, inf), the same for the same seed in whatever order it is asked for.

    W(u) is a function of (seed, u): its values at powers of two are a Markov chain from W(1), and within an octave it is
    bisected (Levy's construction) down to u itself, some 50 normal draws, each with a seed of its own place. Nothing is stored
    but the last two values. Give one seed a sample to make a batch of independent paths.

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
        if not all(isinstance(s, int | np.integer) and s >= 0 for s in seeds):
            raise ValueError(f"seed: {seed!r}; an integer >= 0, or one a sample, is needed")
        self.seeds = [int(s) for s in seeds]
        self._last: dict[tuple[float, torch.Size], Tensor] = {}

    def __call__(self, u: Coefficient, u_next: Coefficient, like: Tensor) -> Tensor:
        if not isinstance(u, float | int) or not isinstance(u_next, float | int):
            raise ValueError(f"noise: Brownian needs one clock, and u is a field {_shape(u)}; use Independent")
        if not (0 <= u < u_next < math.inf or u == u_next == 0):
            raise ValueError(f"u, u_next: {u}, {u_next}; 0 <= u < u_next < inf is needed (or both 0, at the start)")
        if self.batched and len(self.seeds) != like.shape[0]:
            raise ValueError(f"noise: {len(self.seeds)} seeds; {like.shape[0]} are needed, one a sample")
        if u_next == 0:  # the start at eta = 1: the limit of W(u)/sqrt(u), independent of all that follows
            return self._draw((0,), like.shape).to(like)
        ends = [self._last.get((v, like.shape)) for v in (u, u_next)]
        before, after = (self.value(v, like.shape) if w is None else w for v, w in zip((u, u_next), ends, strict=True))
        self._last = {(u, like.shape): before, (u_next, like.shape): after}
        return ((after - before) / math.sqrt(u_next - u)).to(like)

    def value(self, u: float, shape: torch.Size) -> Tensor:
        """W(u), float64 on the host."""
        if u == 0:
            return torch.zeros(shape, dtype=torch.float64, device="cpu")
        octave = math.frexp(u)[1] - 1  # 2^octave <= u < 2^(octave + 1)
        low, high = 2.0**octave, 2.0 ** (octave + 1)
        w_low = self._power(octave, shape)
        if u == low:
            return w_low
        w_high = self._power(octave + 1, shape)
        node = 1
        while True:
            middle = (low + high) / 2
            w = (w_low + w_high) / 2 + math.sqrt((high - low) / 4) * self._draw((2, octave + 2**15, node), shape)
            if u == middle:
                return w
            if u < middle:
                high, w_high, node = middle, w, 2 * node
            else:
                low, w_low, node = middle, w, 2 * node + 1

    def _power(self, octave: int, shape: torch.Size) -> Tensor:
        """W(2^octave), walked from W(1): upwards by increments, downwards by bridges to W(0) = 0."""
        w = self._draw((1, 0), shape)
        for k in range(octave):
            w = w + math.sqrt(2.0**k) * self._draw((1, 2 * k + 2), shape)
        for k in range(0, octave, -1):
            w = w / 2 + math.sqrt(2.0**k / 4) * self._draw((1, 1 - 2 * k), shape)
        return w

    def _draw(self, place: tuple[int, ...], shape: torch.Size) -> Tensor:
        """The standard normal that belongs to a place of the construction."""
        one = shape[1:] if self.batched else shape
        draws = [np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=place))) for seed in self.seeds]
        values = [torch.from_numpy(np.asarray(g.standard_normal(tuple(one)))) for g in draws]
        return torch.stack(values) if self.batched else values[0]


class Stages:
    """The noise of `method.srk` on one Brownian path, for one solve: of strong order 1.5 with it, of 1 without.

    The stage of a step from u over h gets 3/2 I/h, I = int (W - W_u) over the step, and the second half the rest of the
    increment. I is taken from `points` increments of the path (a `Brownian`): a part of std h^1.5/(points sqrt 12) is left
    out, which makes a floor of strong order 1, some 1/(3.5 points) of the error of an order-1 method.
    """

    def __init__(self, path: Noise, points: int = 64) -> None:
        if not callable(path):
            raise TypeError(f"path: {path!r}; (u, u_next, like) -> z is needed, such as noise.Brownian(0)")
        if isinstance(points, bool) or not isinstance(points, int) or points < 1:
            raise ValueError(f"points: {points}; a positive integer is needed")
        self.path, self.points = path, points
        self._rest: Tensor | None = None
        self._started = False

    def __call__(self, u: Coefficient, u_next: Coefficient, like: Tensor) -> Tensor:
        if not isinstance(u, float | int) or not isinstance(u_next, float | int):
            raise ValueError(f"noise: Stages needs one clock, and u is a field {_shape(u)}")
        if not self._started:
            self._started = True
            return self.path(u, u_next, like)
        if self._rest is not None:
            rest, self._rest = self._rest, None
            return rest
        h = (u_next - u) * 4 / 3
        ends = [u + h * i / self.points for i in range(self.points + 1)]
        whole, area = torch.zeros_like(like), torch.zeros_like(like)
        for v, w in itertools.pairwise(ends):
            increment = self.path(v, w, like) * math.sqrt(w - v)
            whole += increment
            area += (u + h - (v + w) / 2) * increment
        stage = 1.5 * area / h
        self._rest = (whole - stage) / math.sqrt(h / 4)
        return stage / math.sqrt(3 * h / 4)


def as_noise(noise: object) -> Noise:
    """What `solve` accepts as noise, as a callable. Errors: TypeError."""
    if noise is None or isinstance(noise, torch.Generator | Sequence):
        return Independent(noise)
    if isinstance(noise, Tensor):
        raise TypeError(f"noise: a tensor of shape {tuple(noise.shape)}; (u, u_next, like) -> z may return it")
    if not callable(noise) or isinstance(noise, type):
        raise TypeError(f"noise: {noise!r}; a torch.Generator, a list of them, or (u, u_next, like) -> z is needed")
    return noise


def _normal(shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, dtype=like.dtype, device=device).to(like.device)


def _shape(u: Coefficient) -> str:
    return f"of shape {tuple(u.shape)}" if isinstance(u, Tensor) else str(u)
