"""Pictures that need no data: each is a function of a generator, and a few share what photographs have.

Dead leaves (shapes of every size that hide one another: edges, corners, and a power law as spectrum), textures with the
spectrum f^-2p, edges, lines and gratings of every softness, and strokes laid out as text is. Colours come from a small palette
a picture, more grey than colourful. Shapes are drawn twice as large and averaged, so that their edges are a camera's.

    >>> import numpy as np
    >>> picture(64, np.random.default_rng(0)).shape
    torch.Size([3, 64, 64])
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
Generator = np.random.Generator


def picture(size: int, generator: Generator) -> Tensor:
    """(3, size, size), float32 in [0, 1]: one of `KINDS`, by their weights."""
    names = list(KINDS)
    name = names[generator.choice(len(names), p=[KINDS[name][0] for name in names])]
    return KINDS[name][1](size, generator)


def leaves(size: int, generator: Generator) -> Tensor:
    """Discs, ellipses and polygons with the density r^-3 of sizes, each with its colour, most with some texture."""
    import cv2

    least = _log_uniform(generator, 1.5, 10)
    most = max(2 * least, size * generator.uniform(0.15, 0.6))
    # The mean area of a leaf is about 2 pi least^2 log(most/least); three layers, the background shows through e^-3 of them.
    count = int(min(1500, 3 * size**2 / (2 * np.pi * least**2 * np.log(most / least)))) + 8
    radius = (least**-2 - generator.random(count) * (least**-2 - most**-2)) ** -0.5
    colours = _palette(generator, int(generator.integers(4, 24)))
    which = generator.integers(len(colours), size=count)
    shade = np.clip(colours[which] + generator.normal(0, 0.05, (count, 1)), 0, 1)
    rough = generator.random(count) * (generator.random(count) < 0.7)  # amplitude of the texture
    paint = (255 * np.concatenate([shade, rough[:, None]], 1)).round()
    centre = generator.uniform(-0.1, 1.1, (count, 2)) * size
    corners = np.where(generator.random(count) < 0.4, 24, generator.integers(3, 8, count))  # 24: a disc, or an ellipse
    stretch, turn = generator.uniform(0.3, 1, count) ** (generator.random(count) < 0.6), generator.uniform(0, 2 * np.pi, count)
    jitter = generator.uniform(-0.3, 0.3, (count, 8))

    canvas = np.empty((2 * size, 2 * size, 4), np.uint8)
    canvas[:] = (255 * np.append(colours[0], 0.5)).round()
    for i in np.argsort(generator.random(count) - 0.3 * radius / most):  # large ones rather below
        n = corners[i]
        angles = 2 * np.pi * (np.arange(n) + (jitter[i, :n] if n <= 8 else 0)) / n
        x, y = np.cos(angles), stretch[i] * np.sin(angles)
        c, s = radius[i] * np.cos(turn[i]), radius[i] * np.sin(turn[i])
        points = 2 * (np.stack([c * x - s * y, s * x + c * y], 1) + centre[i])
        cv2.fillPoly(canvas, [(16 * points).round().astype(np.int32)], paint[i].tolist(), shift=4)
    drawn = _halved(canvas)
    drawn[:3] *= 1 + generator.uniform(0.05, 0.5) * drawn[3:] * _field(size, generator, 1)
    return _finished(drawn[:3])


def texture(size: int, generator: Generator) -> Tensor:
    """Gaussian fields with the amplitudes f^-p, p from 0.6 to 1.8; some stretched, some bent into stripes as of wood."""
    field = _field(size, generator, 3)
    if generator.random() < 0.3:
        field = np.sin(_log_uniform(generator, 1, 6) * field + generator.uniform(0, 2 * np.pi)).astype(np.float32)
    colours = _palette(generator, 3)
    contrast = generator.uniform(0.05, 0.25)
    # The first field is that of the brightness; all three move the colours a little.
    share = generator.uniform(0, 0.3)
    mixed = (1 - share) * field[:1] + share * field
    return _finished(colours[0][:, None, None] + contrast * mixed + 0.1 * (colours[1] - colours[2])[:, None, None] * field[1])


def edges(size: int, generator: Generator) -> Tensor:
    """Over a gradient: half-planes, discs, lines and gratings, with edges from sharp to softer than the picture shows."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    count = int(generator.integers(4, 12))
    colours = _palette(generator, count + 2)[:, :, None, None].astype(np.float32)
    drawn = _gradient(size, generator, colours[0], colours[1])
    for colour in colours[2:]:
        angle, kind = generator.uniform(0, 2 * np.pi), generator.integers(4)
        px, py = generator.uniform(0, size, 2)
        distance = np.cos(angle) * (x - px) + np.sin(angle) * (y - py)
        softness = _log_uniform(generator, 0.3, 0.04 * size + 0.3)
        if kind == 1:
            distance = np.hypot(x - px, y - py) - _log_uniform(generator, 2, 0.4 * size + 2)
        elif kind == 2:
            distance = np.abs(distance) - _log_uniform(generator, 0.5, 0.05 * size + 0.5)
            softness = min(softness, 1.0)
        elif kind == 3:
            period = _log_uniform(generator, 3, 0.3 * size + 3)
            distance = np.where(x > px, period * np.sin(2 * np.pi / period * distance) / 6, -4 * softness)
        mask = 0.5 + 0.5 * np.tanh(distance / (2 * softness))
        drawn = drawn + (mask * generator.uniform(0.4, 1)).astype(np.float32) * (colour - drawn)
    return _finished(drawn)


def strokes(size: int, generator: Generator) -> Tensor:
    """Rows of signs, each of two to four strokes between the points of a 3x3 grid; turned, on a gradient or a texture."""
    import cv2

    height = _log_uniform(generator, 7, 0.25 * size + 7)
    width, rows = height * generator.uniform(0.45, 0.9), 1.6 * size / height
    columns = 1.6 * size / width
    down, right = (g.ravel() for g in np.mgrid[: int(rows / 1.4) + 1, : int(columns) + 1])
    kept = generator.random(len(down)) < 0.85
    down, right = down[kept], right[kept]
    # An alphabet of signs of four strokes of four points each; a stroke that is not used repeats its first point.
    grid = generator.integers(0, 3, (24, 4, 4, 2)) / 2 + generator.uniform(-0.08, 0.08, (24, 4, 4, 2))
    grid[:, :, 3] += 0.5 * (grid[:, :, 1] - grid[:, :, 2])
    unused = np.arange(4) >= generator.integers(2, 5, 24)[:, None]
    grid[unused] = grid[:, :1, :1].repeat(4, 1).repeat(4, 2)[unused]
    signs = grid[generator.integers(0, 24, len(down))] * [0.7 * width, 0.8 * height]
    corner = np.stack([right * width, 1.4 * down * height], 1) - 0.8 * size
    points = (signs + corner[:, None, None]).reshape(-1, 4, 2)
    angle = generator.normal(0, 0.15) if generator.random() < 0.7 else generator.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = 2 * (points @ turn + size / 2)
    mask = np.zeros((2 * size, 2 * size, 1), np.uint8)
    lines = list((16 * points).round().astype(np.int32))
    thickness = max(1, round(2 * height * generator.uniform(0.04, 0.12)))
    cv2.polylines(mask, lines, False, (255.0,), thickness, cv2.LINE_AA, 4)
    colours = _palette(generator, 4)[:, :, None, None].astype(np.float32)
    below = _gradient(size, generator, colours[0], colours[1])
    if generator.random() < 0.4:
        below = below + generator.uniform(0.02, 0.1) * _field(size, generator, 1)
    ink = np.clip(colours[2] + np.sign(colours[2].mean() - below.mean()) * generator.uniform(0.1, 0.6), 0, 1)
    return _finished(below + _halved(mask) * (ink - below))


KINDS: dict[str, tuple[float, Callable[[int, Generator], Tensor]]] = {
    "leaves": (0.55, leaves),
    "texture": (0.15, texture),
    "edges": (0.15, edges),
    "strokes": (0.15, strokes),
}
"""By name: the weight of a kind, and the function that draws it."""


def _palette(generator: Generator, count: int) -> Array:
    """Colours (count, 3) in [0, 1]: a brightness each, and hues near one or two of the picture's own."""
    hues = generator.normal(0, 1, (2, 3))
    hues -= hues.mean(1, keepdims=True)
    saturation = 0.25 * generator.random() ** 1.5
    mix = generator.normal(0, 1, (count, 2)) @ hues + 0.5 * generator.normal(0, 1, (count, 3))
    low, high = generator.uniform(0, 0.4), generator.uniform(0.6, 1)
    brightness = generator.uniform(low, high, (count, 1))
    return np.asarray(np.clip(brightness + saturation * brightness * mix, 0, 1))


def _field(size: int, generator: Generator, channels: int) -> Array:
    """Gaussian fields (channels, size, size) of std 1 with amplitudes f^-p, periodic."""
    p, angle = generator.uniform(0.6, 1.8), generator.uniform(0, np.pi)
    stretch = _log_uniform(generator, 1, 5) if generator.random() < 0.4 else 1.0
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    along, across = np.cos(angle) * fx + np.sin(angle) * fy, np.cos(angle) * fy - np.sin(angle) * fx
    f2 = along**2 + (stretch * across) ** 2
    f2[0, 0] = np.inf
    waves = np.fft.rfft2(generator.standard_normal((channels, size, size), dtype=np.float32)) * f2 ** (-p / 2)
    field = np.fft.irfft2(waves, s=(size, size))
    return np.asarray(field / (field.std((1, 2), keepdims=True) + 1e-12), np.float32)


def _gradient(size: int, generator: Generator, first: Array, second: Array) -> Array:
    """A gradient from one colour to the other, along a random direction."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / max(1, size - 1) - 0.5
    angle = generator.uniform(0, 2 * np.pi)
    along = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y + np.float32(0.5)
    return np.asarray(first + (second - first) * along)


def _halved(canvas: Array) -> Array:
    """uint8 (2n, 2n, channels) to float32 (channels, n, n), each the mean of four."""
    sums = canvas.astype(np.uint16)
    sums = sums[::2] + sums[1::2]
    sums = sums[:, ::2] + sums[:, 1::2]
    return np.asarray(sums.transpose(2, 0, 1), np.float32) / 1020


def _log_uniform(generator: Generator, low: float, high: float) -> float:
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))


def _finished(drawn: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(drawn.clip(0, 1), np.float32))
