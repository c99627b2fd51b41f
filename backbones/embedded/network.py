"""The network: what is left of a picture after its upscaled low-resolution one, predicted at any time of a process.

With d = x - (a + b) x_hat0 = a r + sigma eps, r = x0 - x_hat0 of std s, and lam/s = sigma/(a s) = tan(theta):

    x0 = x_hat0 + s w + s sin(theta) F(w, x_hat0, theta),     w = cos(theta) d / hypot(a s, sigma)

s w is the best linear estimate of r. The network F sees w, that estimate in units of s: its std is cos(theta), so it
vanishes where x says nothing (a = 0, the start, whose answer so depends on x_hat0 alone), and F has unit variance to aim at
at all times (Karras et al. 2022, Section 5, for the residual). sigma = 0 gives x itself. Nothing is divided by a or sigma.

s is one number, but a sky has less of a residual than leaves have, and its best linear estimate less of w. So F may have a
gain, F = F0 + F1 w, a number for each element: to take w away is then one of F1, and not a picture of noise to be made by F0.

F is a U-Net on pixels folded 4 by 4 into channels, so that its widest convolutions run at low resolution. It has no
normalisation and no attention: an output pixel depends on x and x_hat0 within `radius` of it alone.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dosde
from dosde.process import flow, resshift

from . import symmetry

_FREQUENCIES = 6  # of theta, for its embedding


def _domain_shift(schedule: str = "scaled_linear", t1: float | None = 0.5) -> dosde.Process:
    """DoSSR's: a named schedule with a cosine shift to t1; t1 = None is plain diffusion (DDPM)."""
    schedules = {name: getattr(dosde.schedule, name) for name in ("scaled_linear", "linear", "cosine")}
    if schedule not in schedules:
        raise ValueError(f"schedule: {schedule!r}; one of {', '.join(schedules)}")
    return dosde.Process(schedules[schedule](), dosde.shift.none() if t1 is None else dosde.shift.cosine(t1))


_PROCESSES: dict[str, Callable[..., dosde.Process]] = {"domain_shift": _domain_shift, "resshift": resshift, "flow": flow}


@dataclass(frozen=True)
class ProcessConfig:
    """A process by name and numbers, as a file holds it.

    kind  domain_shift (schedule: scaled_linear, linear, cosine; t1, None for plain diffusion), resshift (T, kappa, eta_min,
          eta_max, p), flow (kappa).
    parameters  the others are at their defaults.

    >>> ProcessConfig("domain_shift", {"t1": 1 / 3}).process().t1
    0.3333333333333333
    """

    kind: str = "domain_shift"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in _PROCESSES:
            raise ValueError(f"process: kind {self.kind!r}; one of {', '.join(_PROCESSES)}")
        if not isinstance(self.parameters, Mapping):
            raise ValueError(f"process: parameters {self.parameters!r}; values by name are needed")
        self.process()

    def process(self) -> dosde.Process:
        """The process."""
        try:
            return _PROCESSES[self.kind](**self.parameters)
        except (TypeError, ValueError) as error:
            raise ValueError(f"process: {self.kind} with {dict(self.parameters)} ({error})") from None


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class Config:
    """What makes a Network, but for its weights.

    scale      s: std of x0 - x_hat0 per element, over the training pictures in [-1, 1].
    widths     channels of each level; the picture is halved from one to the next.
    blocks     residual blocks of each level: on the way down and again on the way up; the last level has them once.
    fold       pixels of a side that become channels before the first level.
    embedding  channels of the time.
    gain       whether F = F0 + F1 w.
    symmetric  whether a picture turned by 90 degrees, or mirrored, gives the same result in that position; see `symmetry`.
    """

    scale: float = 0.15
    widths: tuple[int, ...] = (64, 96, 128)
    blocks: tuple[int, ...] = (3, 2, 2)
    fold: int = 4
    embedding: int = 128
    channels: int = 3
    process: ProcessConfig = ProcessConfig()
    gain: bool = False
    symmetric: bool = False

    def __post_init__(self) -> None:
        for name in ("widths", "blocks"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or not values or not all(map(_positive, values)):
                raise ValueError(f"{name}: {values!r}; a tuple of positive integers is needed")
            object.__setattr__(self, name, tuple(values))
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"blocks: {self.blocks} for widths {self.widths}; as many are needed, one a level")
        for name in ("fold", "embedding", "channels"):
            if not _positive(getattr(self, name)):
                raise ValueError(f"{name}: {getattr(self, name)!r}; a positive integer is needed")
        if isinstance(self.scale, bool) or not isinstance(self.scale, (int, float)) or not 0 < self.scale < math.inf:
            raise ValueError(f"scale: {self.scale!r}; a positive number is needed")
        if not isinstance(self.process, ProcessConfig):
            raise ValueError(f"process: {self.process!r}; a ProcessConfig is needed")
        for name in ("gain", "symmetric"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: {getattr(self, name)!r}; true or false is needed")
        if self.symmetric and any(width % symmetry.EIGHT for width in self.widths):
            raise ValueError(f"widths: {self.widths}; multiples of {symmetry.EIGHT} are needed where symmetric")

    @property
    def multiple(self) -> int:
        """What the sides of a picture must be multiples of."""
        return self.fold << (len(self.widths) - 1)

    @property
    def radius(self) -> int:
        """How many pixels away an output can see at most."""
        size, last = self.fold, len(self.widths) - 1
        seen = 2 * size + self.multiple - 1  # the first and the last convolution, and whole pixels of the last level
        for level, blocks in enumerate(self.blocks):
            seen += size * 2 * blocks * (1 if level == last else 2)
            size *= 2
        return seen

    def to_json(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts of them."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Config":
        """The inverse of `to_json`; what a file does not name has its default. Errors: ValueError that names a key."""
        if not isinstance(values, Mapping):
            raise ValueError(f"config: {values!r}; values by name are needed")
        known = Config.__dataclass_fields__
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"{unknown[0]}: unknown; the keys are {', '.join(known)}")
        process = values.get("process", asdict(ProcessConfig()))
        if not isinstance(process, Mapping) or set(process) != {"kind", "parameters"}:
            raise ValueError(f"process: {process!r}; kind and parameters are needed")
        return Config(**{**values, "process": ProcessConfig(**process)})


class Network(nn.Module):
    """(x, x_hat0, t) -> x0. The module's docstring has the equations.

    x, x_hat0: (batch, 3, H, W), x_hat0 in [-1, 1], H and W multiples of `config.multiple`. t: one time, or one a sample.
    F runs in the dtype of the weights (or of autocast), all else in that of x. For `solve`:
    dosde.Denoiser(network, network.process, predicts="x0").

    >>> network = Network(Config(widths=(8, 8), blocks=(1, 1)))
    >>> x_hat0 = torch.zeros(2, 3, 16, 24)
    >>> network(torch.randn(2, 3, 16, 24), x_hat0, torch.tensor([0.5, 0.0])).shape
    torch.Size([2, 3, 16, 24])
    """

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.process = config.process.process()
        if self.process.field_shape:
            raise ValueError("process: eta is a field; one eta is needed")
        folded, widths, e = config.channels * config.fold**2, config.widths, config.embedding
        self.time = nn.Sequential(nn.Linear(1 + 2 * _FREQUENCIES, e), nn.SiLU(), nn.Linear(e, e), nn.SiLU())
        # w, and x_hat0 as the mean of a cell of folded pixels and the deviations from it, in units of s.
        self.first = nn.Conv2d(2 * folded + config.channels, widths[0], 3, padding=1)

        def blocks(level: int) -> Blocks:
            return Blocks(Block(widths[level], e) for _ in range(config.blocks[level]))

        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(blocks(level) for level in range(len(pairs)))
        self.coarser = nn.ModuleList(nn.Conv2d(width, wider, 2, stride=2) for width, wider in pairs)
        self.middle = blocks(len(pairs))
        self.finer = nn.ModuleList(nn.Conv2d(wider, 4 * width, 1) for width, wider in pairs)
        self.up = nn.ModuleList(blocks(level) for level in range(len(pairs)))
        self.last = nn.Conv2d(widths[0], (1 + config.gain) * folded, 3, padding=1)
        self._initialise()
        if config.symmetric:
            self._tie()
        for parameter in self.parameters():
            parameter.data = laid_out(parameter.data)

    @torch.no_grad()
    def _initialise(self) -> None:
        """F = 0 at first, so the best linear estimate; blocks that hardly change what they get; doubling without a grid."""
        for module in self.modules():
            if isinstance(module, Block):
                module.second.weight *= 0.1
                module.modulation.weight.zero_()
                module.modulation.bias.zero_()
        for parameter in self.finer.parameters():
            parameter.copy_(parameter[::4].repeat_interleave(4, 0))
        for parameter in self.last.parameters():
            parameter.zero_()

    def _tie(self) -> None:
        """An eighth of the weights is free."""
        c, eights = self.config, symmetry.eights
        folded = symmetry.folded(2 * c.channels, c.fold)
        symmetry.tie(self.first, eights(c.widths[0]), symmetry.joined(folded, symmetry.fixed(c.channels)))
        symmetry.tie(self.last, symmetry.folded((1 + c.gain) * c.channels, c.fold), eights(c.widths[0]))
        for (width, wider), coarser, finer in zip(pairwise(c.widths), self.coarser, self.finer, strict=True):
            symmetry.tie(coarser, eights(wider), eights(width))
            symmetry.tie(finer, eights(width, 2), eights(wider))
        for block in self.modules():
            if isinstance(block, Block):
                channels = eights(block.first.in_channels)
                symmetry.tie(block.first, channels, channels)
                symmetry.tie(block.second, channels, channels)
                symmetry.tie(block.modulation, symmetry.joined(channels, channels), symmetry.fixed(c.embedding))

    def forward(self, x: Tensor, x_hat0: Tensor, t: float | Tensor) -> Tensor:
        """The estimate of x0. Errors: ValueError for shapes that do not fit."""
        c = self.config
        if x.ndim != 4 or x.shape != x_hat0.shape or x.shape[1] != c.channels or any(n % c.multiple for n in x.shape[-2:]):
            raise ValueError(
                f"x, x_hat0: shapes {tuple(x.shape)}, {tuple(x_hat0.shape)}; (batch, {c.channels}, H, W) of both, H and W "
                f"multiples of {c.multiple}, is needed"
            )
        m = self.process._over_batch(t, x)
        n = torch.hypot(c.scale * m.a, m.sigma)
        inverse = torch.where(n > 0, 1 / n, 0.0)
        cos, sin = c.scale * m.a * inverse, torch.where(n > 0, m.sigma * inverse, 1.0)
        theta = torch.atan2(sin, cos) * (2 / math.pi)
        w = (cos * inverse).to(x) * (x - m.alpha.to(x) * x_hat0)
        value = self._predicted(w, x_hat0, theta)
        return x_hat0 + c.scale * w + (c.scale * sin).to(x) * value

    def _predicted(self, w: Tensor, x_hat0: Tensor, theta: Tensor) -> Tensor:
        """F; theta from 0 to 1."""
        fold, dtype = self.config.fold, self.last.weight.dtype
        mean = F.avg_pool2d(x_hat0, fold)
        detail = (x_hat0 - mean.repeat_interleave(fold, -1).repeat_interleave(fold, -2)) / self.config.scale
        h = torch.cat([F.pixel_unshuffle(w, fold), F.pixel_unshuffle(detail, fold), mean], 1)
        waves = theta.reshape(-1, 1) * torch.arange(1, _FREQUENCIES + 1) * math.pi
        time = self.time(torch.cat([theta.reshape(-1, 1), waves.cos(), waves.sin()], 1).to(h.device, dtype))
        h = self.first(h.to(dtype).contiguous(memory_format=torch.channels_last))
        skips = []
        for blocks, coarser in zip(self.down, self.coarser, strict=True):
            h = blocks(h, time)
            skips.append(h)
            h = coarser(h)
        h = self.middle(h, time)
        for blocks, finer in zip(reversed(self.up), reversed(self.finer), strict=True):
            h = blocks(F.pixel_shuffle(finer(h), 2) + skips.pop(), time)
        value = F.pixel_shuffle(self.last(F.silu(h)), fold).to(w.dtype)
        if self.config.gain:
            value, gain = value.chunk(2, 1)
            value = torch.addcmul(value, gain, w)
        return value


def laid_out(weight: Tensor) -> Tensor:
    """Channels last, which is twice as fast on a CPU."""
    return weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight


class Block(nn.Module):
    """h + second(silu(scale first(silu(h)) + shift)), scale and shift of the time."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * width)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """h: (batch, width, height, width of the picture); time: (batch or 1, embedding)."""
        scale, shift = self.modulation(time)[:, :, None, None].chunk(2, 1)
        inner = torch.addcmul(shift, self.first(F.silu(h)), 1 + scale)
        out: Tensor = h + self.second(F.silu(inner))
        return out


class Blocks(nn.ModuleList):
    """Blocks of one level, one after the other."""

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """As that of a Block."""
        for block in self:
            h = block(h, time)
        return h
