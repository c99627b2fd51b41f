"""Low-resolution pictures made from high-resolution ones, as Real-ESRGAN does it (Wang et al. 2021), or plainly bicubic.

Two stages of blur, resize, noise and JPEG; the second ends with a sinc filter (the ringing of sharpeners) and the resize to
1/scale, before or after its JPEG:

    y = resize1(x * k1) + n1,  JPEG;    y = resize2(y * k2) + n2,  [resize to 1/scale, * sinc, JPEG] or [JPEG, resize, * sinc]

What is random is drawn first, as a record that can be printed, compared and kept (`sample`), and then applied (`apply`).

    >>> import torch
    >>> drawn = sample(REAL_ESRGAN, np.random.default_rng(4))
    >>> print(drawn)  # doctest: +ELLIPSIS
    plateau aniso 17, sigma 0.43 1.90, beta 1.17; down 0.56 bicubic; gaussian 24; JPEG 78 | iso 21, sigma 0.99; ...
    >>> apply(torch.rand(3, 101, 64), drawn).shape
    torch.Size([3, 25, 16])

Kernels are functions of r^2 = d^T S^-1 d, where d is the distance from the centre and S has the variances sigma_x^2 and
sigma_y^2 along axes turned by an angle; all are normalised to the sum 1.
"""

import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dosde.check import Refused

from .io import luma
from .resize import bicubic

Array = np.ndarray[Any, np.dtype[Any]]
Range = tuple[float, float]

MODES = ("area", "bilinear", "bicubic")
_KINDS = (
    ("iso", 0.45),
    ("aniso", 0.25),
    ("generalised iso", 0.12),
    ("generalised aniso", 0.03),
    ("plateau iso", 0.12),
    ("plateau aniso", 0.03),
)


@dataclass(frozen=True)
class Stage:
    """The parameters of a stage. What is a range is drawn from it uniformly.

    Raises:
        Refused: for a parameter that is impossible.
    """

    blur: float
    """Probability of a blur."""
    sigma: Range
    """Std of kernels, in pixels, along each axis."""
    resize: tuple[float, float, float]
    """Probabilities of up, down, keep."""
    factor: Range
    """Down: between its first number and 1; up: between 1 and its second."""
    std: Range
    """Gaussian noise, in 1/255."""
    poisson: Range
    """Factor on Poisson noise."""
    gaussian: float = 0.5
    """Probability of Gaussian noise; Poisson noise otherwise."""
    grey: float = 0.4
    """Probability of noise that is the same in all channels."""
    quality: tuple[int, int] = (30, 95)
    """The range of JPEG's quality, at most 100."""
    kinds: tuple[tuple[str, float], ...] = _KINDS
    """Kernels that are no sinc, with their probabilities."""
    sinc: float = 0.1
    """Probability that a blur is a sinc."""
    generalised: Range = (0.5, 4.0)
    """beta of generalised Gaussians: below 1 and above 1 equally often."""
    plateau: Range = (1.0, 2.0)
    """beta of plateaus, drawn like `generalised`: half of the time it is 1."""
    sizes: tuple[int, ...] = tuple(range(7, 22, 2))
    """Sides of kernels, odd, in pixels."""

    def __post_init__(self) -> None:
        for name in ("blur", "gaussian", "grey", "sinc"):
            if not 0 <= getattr(self, name) <= 1:
                raise Refused(name, getattr(self, name), "a probability is needed")
        for name, weights in (("resize", self.resize), ("kinds", [weight for _, weight in self.kinds])):
            if min(weights, default=-1) < 0 or not math.isclose(sum(weights), 1):
                raise Refused(name, getattr(self, name), "probabilities that sum to 1 are needed")
        for name in ("sigma", "factor", "std", "poisson", "quality", "generalised", "plateau"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise Refused(name, getattr(self, name), "0 < low <= high is needed")
        for name in ("factor", "generalised", "plateau"):
            low, high = getattr(self, name)
            if not low <= 1 <= high:
                raise Refused(name, getattr(self, name), "a range around 1 is needed")
        if self.quality[1] > 100:
            raise Refused("quality", self.quality, "at most 100 is possible")
        if not self.sizes or any(size < 1 or size % 2 == 0 for size in self.sizes):
            raise Refused("sizes", self.sizes, "odd numbers are needed")
        if unknown := {kind for kind, _ in self.kinds} - {kind for kind, _ in _KINDS}:
            raise Refused("kinds", sorted(unknown), f"of {', '.join((kind for kind, _ in _KINDS))}")


@dataclass(frozen=True)
class Degradation:
    """Stages, of which the last works around the final size and ends in the final sinc. None: antialiased bicubic alone."""

    stages: tuple[Stage, ...]
    final_sinc: float = 0.8
    """Probability of the final sinc."""
    scale: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.final_sinc <= 1:
            raise Refused("final_sinc", self.final_sinc, "a probability is needed")
        if not (isinstance(self.scale, int) and self.scale >= 1):
            raise Refused("scale", self.scale, "a whole number of at least 1 is needed")


REAL_ESRGAN = Degradation(
    (
        Stage(blur=1, sigma=(0.2, 3), resize=(0.2, 0.7, 0.1), factor=(0.15, 1.5), std=(1, 30), poisson=(0.05, 3)),
        Stage(blur=0.8, sigma=(0.2, 1.5), resize=(0.3, 0.4, 0.3), factor=(0.3, 1.2), std=(1, 25), poisson=(0.05, 2.5)),
    )
)
"""What the release was trained with: the recipe of Real-ESRGAN without its sharpening of the high-resolution picture."""

BICUBIC = Degradation(())
"""Antialiased bicubic, rounded to 8 bits."""


# What was drawn.


@dataclass(frozen=True)
class Blur:
    """A blur.

    Args:
        kind: "sinc", or a kind of `Stage.kinds`.
        size: the side of the kernel, odd.
        sigma_x: std along the first axis in pixels; no sinc has it.
        sigma_y: std along the second axis.
        angle: by which the axes are turned, in radians.
        beta: the exponent of generalised Gaussians and plateaus.
        cutoff: of a sinc, in radians a pixel.
    """

    kind: str
    size: int
    sigma_x: float = 0.0
    sigma_y: float = 0.0
    angle: float = 0.0
    beta: float = 1.0
    cutoff: float = 0.0

    @property
    def kernel(self) -> Array:
        """(size, size), float32."""
        if self.kind == "sinc":
            return sinc(self.size, self.cutoff)
        make = plateau if self.kind.startswith("plateau") else generalised  # of which beta = 1 is the Gaussian
        return make(self.size, self.sigma_x, self.sigma_y, self.angle, self.beta)

    def __str__(self) -> str:
        if self.kind == "sinc":
            return f"sinc {self.size}, cutoff {self.cutoff:.2f}"
        widths = f"{self.sigma_x:.2f}" + (f" {self.sigma_y:.2f}" if "aniso" in self.kind else "")
        return f"{self.kind} {self.size}, sigma {widths}" + (f", beta {self.beta:.2f}" if " " in self.kind else "")


@dataclass(frozen=True)
class Resize:
    """A resize without antialiasing, as the recipe has it.

    Args:
        factor: of the full size, or in the last stage of 1/scale of it.
        mode: one of `MODES`.
    """

    factor: float
    mode: str

    def __str__(self) -> str:
        return f"{'up' if self.factor > 1 else 'down'} {self.factor:.2f} {self.mode}" if self.factor != 1 else "keep"


@dataclass(frozen=True)
class Noise:
    """A noise.

    Args:
        kind: "gaussian", of the std strength/255, or "poisson", times strength.
        strength: see kind.
        grey: whether all channels have the same.
        seed: of the values, which are drawn once the size is known.
    """

    kind: str
    strength: float
    grey: bool
    seed: int

    def __str__(self) -> str:
        strength = f"{self.strength:.0f}" if self.kind == "gaussian" else f"{self.strength:.2f}"
        return f"{self.kind} {strength}" + (" grey" if self.grey else "")


@dataclass(frozen=True)
class Step:
    """One stage."""

    blur: Blur | None
    resize: Resize
    noise: Noise
    quality: int


@dataclass(frozen=True)
class Drawn:
    """All that is random in one degradation.

    Args:
        scale: a side of the picture over a side of the result.
        steps: the stages; none for plain bicubic.
        sinc: the filter that follows the last resize, the one to 1/scale, or None.
        mode: of the last resize.
        jpeg_first: whether the last JPEG comes before the last resize.
    """

    scale: int
    steps: tuple[Step, ...] = ()
    sinc: Blur | None = None
    mode: str = "bicubic"
    jpeg_first: bool = False

    def __str__(self) -> str:
        if not self.steps:
            return "bicubic"
        parts = [[s.blur, s.resize if s.resize.factor != 1 else None, s.noise] for s in self.steps]
        words = [[str(part) for part in step if part is not None] for step in parts]
        for text, step in zip(words[:-1], self.steps[:-1], strict=True):
            text.append(f"JPEG {step.quality}")
        end = [f"1/{self.scale} {self.mode}", *([] if self.sinc is None else [str(self.sinc)])]
        jpeg = f"JPEG {self.steps[-1].quality}"
        words[-1] += [jpeg, *end] if self.jpeg_first else [*end, jpeg]
        return " | ".join("; ".join(text) for text in words)


def sample(parameters: Degradation, generator: np.random.Generator) -> Drawn:
    """Everything random of one degradation, from this generator alone."""
    if not parameters.stages:
        return Drawn(parameters.scale)
    steps = tuple(_sample_step(stage, generator) for stage in parameters.stages)
    last = parameters.stages[-1]
    final = _sample_sinc(int(generator.choice(last.sizes)), math.pi / 3, generator)
    kept = final if generator.random() < parameters.final_sinc else None
    return Drawn(parameters.scale, steps, kept, str(generator.choice(MODES)), bool(generator.random() < 0.5))


def apply(picture: Tensor, drawn: Drawn) -> Tensor:
    """The degraded picture.

    Args:
        picture: (3, height, width) in [0, 1].
        drawn: what `sample` drew.

    Returns:
        (3, height // scale, width // scale), float32, rounded to 8 bits.

    Raises:
        Refused: for another shape, or a picture smaller than the scale.
    """
    if picture.ndim != 3 or picture.shape[0] != 3 or min(picture.shape[1:]) < drawn.scale:
        raise Refused(
            "picture",
            picture,
            f"(3, height, width), at least {drawn.scale}, is needed",
            f"shape {tuple(picture.shape)}",
        )
    x = picture.detach().float()
    small = x.shape[1] // drawn.scale, x.shape[2] // drawn.scale
    if not drawn.steps:
        x = bicubic(x[None], small)[0]
        return _rounded(x)
    *before, last = drawn.steps
    for step in before:
        x = jpeg(_passed(x, step, x.shape[1:]), step.quality)
    x = _passed(x, last, small)
    if drawn.jpeg_first:
        return _rounded(_blurred(_resized(jpeg(x, last.quality), small, drawn.mode), drawn.sinc))
    return _rounded(jpeg(_blurred(_resized(x, small, drawn.mode), drawn.sinc), last.quality))


def degrade(picture: Tensor, scale: int, seed: int | Sequence[int], parameters: Degradation = REAL_ESRGAN) -> Tensor:
    """`apply` of what `sample` draws from this seed, at this scale instead of the parameters' own."""
    parameters = dataclasses.replace(parameters, scale=scale)
    return apply(picture, sample(parameters, np.random.default_rng(seed)))


# Kernels, (size, size) in float32 and computed in float64. x runs along rows of pixels, y down.


def gaussian(size: int, sigma_x: float, sigma_y: float, angle: float = 0.0) -> Array:
    """exp(-r^2 / 2)."""
    return generalised(size, sigma_x, sigma_y, angle, 1.0)


def generalised(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> Array:
    """exp(-(r^2)^beta / 2): pointed below beta = 1, flat-topped above."""
    return _normalised(np.exp(-0.5 * _radius(size, sigma_x, sigma_y, angle) ** beta))


def plateau(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> Array:
    """1 / (1 + (r^2)^beta)."""
    return _normalised(1 / (1 + _radius(size, sigma_x, sigma_y, angle) ** beta))


def sinc(size: int, cutoff: float) -> Array:
    """cutoff J1(cutoff r) / (2 pi r), r in pixels: passes frequencies below the cutoff (radians a pixel) alone."""
    r = np.sqrt(_radius(size, 1, 1, 0))
    r[size // 2, size // 2] = 1
    kernel = cutoff * torch.special.bessel_j1(torch.from_numpy(cutoff * r)).numpy() / (2 * np.pi * r)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return _normalised(kernel)


def _radius(size: int, sigma_x: float, sigma_y: float, angle: float) -> Array:
    """r^2 at each pixel."""
    if size < 1 or size % 2 == 0:
        raise Refused("size", size, "an odd number is needed")
    y, x = np.mgrid[:size, :size] - size // 2
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    return np.asarray((along / sigma_x) ** 2 + (across / sigma_y) ** 2)


def _normalised(kernel: Array) -> Array:
    normalised: Array = (kernel / kernel.sum()).astype(np.float32)
    return normalised


# The operations, on (3, height, width).


def noisy(x: Tensor, noise: Noise) -> Tensor:
    """The picture with noise added, in [0, 1].

    Poisson noise at the intensity v has the variance strength^2 v / n, n the number of different values among the picture's 8
    bits, rounded up to a power of two.
    """
    generator = np.random.default_rng(noise.seed)
    if noise.kind == "gaussian":
        shape = (1 if noise.grey else 3, *x.shape[1:])
        added = generator.standard_normal(shape, dtype=np.float32) * np.float32(noise.strength / 255)
    else:
        values = _bytes(luma(x[None])[0] if noise.grey else x)
        different = np.count_nonzero(np.bincount(values.ravel(), minlength=256))
        counts = 2.0 ** math.ceil(math.log2(different))
        clean = values / 255
        added = (noise.strength * (generator.poisson(clean * counts) / counts - clean)).astype(np.float32)
    return (x + torch.from_numpy(added)).clamp(0, 1)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """The picture as a JPEG file gives it back, its colour at half the resolution."""
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(_bytes(x).transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    read = np.asarray(PIL.Image.open(buffer)).astype(np.float32) / 255
    return torch.from_numpy(read).permute(2, 0, 1).contiguous()


def _bytes(x: Tensor) -> Array:
    values: Array = (x.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return values


def _rounded(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round() / 255


def _passed(x: Tensor, step: Step, size: Sequence[int]) -> Tensor:
    """Blur, resize by the factor of this size, noise."""
    resize = step.resize
    return noisy(_resized(_blurred(x, step.blur), [max(1, int(n * resize.factor)) for n in size], resize.mode), step.noise)


def _blurred(x: Tensor, blur: Blur | None) -> Tensor:
    """The picture, blurred by correlation, which is convolution for these kernels; it is mirrored beyond its borders."""
    import cv2

    if blur is None:
        return x
    pixels = x.permute(1, 2, 0).contiguous().numpy()
    filtered = cv2.filter2D(pixels, -1, blur.kernel, borderType=cv2.BORDER_REFLECT_101)
    return torch.from_numpy(filtered).permute(2, 0, 1).contiguous()


def _resized(x: Tensor, size: Sequence[int], mode: str) -> Tensor:
    if mode != "bilinear":
        options = {} if mode == "area" else {"align_corners": False}
        return torch.nn.functional.interpolate(x[None], tuple(size), mode=mode, **options)[0]
    # Torch's own rounds otherwise with one thread, as in a worker, than with more.
    for dim, target in zip((1, 2), size, strict=True):
        count = x.shape[dim]
        place = ((torch.arange(target, dtype=torch.float64) + 0.5) * count / target - 0.5).clamp(0, count - 1)
        below = place.long()
        above = (below + 1).clamp(max=count - 1)
        part = (place - below).float().reshape((-1, 1) if dim == 1 else (1, -1))
        x = (1 - part) * x.index_select(dim, below) + part * x.index_select(dim, above)
    return x


# The draws.


def _sample_step(stage: Stage, generator: np.random.Generator) -> Step:
    blur = _sample_blur(stage, generator)
    kept = blur if generator.random() < stage.blur else None
    direction = generator.choice(3, p=stage.resize)
    up, down = generator.uniform(1, stage.factor[1]), generator.uniform(stage.factor[0], 1)
    resize = Resize(float((up, down, 1.0)[direction]), str(generator.choice(MODES)))
    kind = "gaussian" if generator.random() < stage.gaussian else "poisson"
    strength = generator.uniform(*(stage.std if kind == "gaussian" else stage.poisson))
    grey = bool(generator.random() < stage.grey)
    noise = Noise(kind, float(strength), grey, int(generator.integers(2**63)))
    return Step(kept, resize, noise, int(generator.integers(*stage.quality, endpoint=True)))


def _sample_blur(stage: Stage, generator: np.random.Generator) -> Blur:
    size = int(generator.choice(stage.sizes))
    if generator.random() < stage.sinc:
        return _sample_sinc(size, math.pi / 3 if size < 13 else math.pi / 5, generator)
    kind = stage.kinds[generator.choice(len(stage.kinds), p=[weight for _, weight in stage.kinds])][0]
    sigma_x, sigma_y = (float(generator.uniform(*stage.sigma)) for _ in range(2))
    angle = float(generator.uniform(-math.pi, math.pi))
    low, high = stage.plateau if kind.startswith("plateau") else stage.generalised
    beta = float(generator.uniform(low, 1) if generator.random() < 0.5 else generator.uniform(1, high))
    if not kind.endswith("aniso"):
        sigma_y, angle = sigma_x, 0.0
    return Blur(kind, size, sigma_x, sigma_y, angle, beta if " " in kind else 1.0)


def _sample_sinc(size: int, least: float, generator: np.random.Generator) -> Blur:
    return Blur("sinc", size, cutoff=float(generator.uniform(least, math.pi)))
