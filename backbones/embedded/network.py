"""The network: what is left of a picture after its upscaled low-resolution one, predicted at any time of a process.

With d = x - (a + b) x_hat0 = a r + sigma eps, r = x0 - x_hat0 of std s, and lam/s = sigma/(a s) = tan(theta):

    x0 = x_hat0 + s w + s sin(theta) F(w, x_hat0, theta),     w = cos(theta) d / hypot(a s, sigma)

s w is the best linear estimate of r. The network F sees w, that estimate in units of s: its std is cos(theta), so it
vanishes where x says nothing (a = 0, the start, whose answer so depends on x_hat0 alone), and F has unit variance to aim at
at all times (Karras et al. 2022, Section 5, for the residual). sigma = 0 gives x itself. Nothing is divided by a or sigma.

s is one number, but a sky has less of a residual than leaves have, and its best linear estimate less of w. So F = F0 + F1 w:
where w is to be taken away F1 says so by a number, and F0 need not draw the noise in order to cancel it.

F is a residual network on pixels folded 4 by 4 into channels, so that it runs at low resolution. It has no normalisation and
no attention: an output pixel depends on x and x_hat0 within `radius` of it alone. And it treats the eight positions of a
picture, turned and mirrored, alike (`symmetry`), so that no position has to be learnt by itself.

F may be the mean of several such networks. In training mode it is not: each sample of a batch is given to one of them in
turn, so that they learn from different samples and err differently, which is what the mean is better by (a deep ensemble,
Lakshminarayanan et al. 2017).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dosde
from dosde.check import Refused
from dosde.presets import RESSHIFT_ETA_MIN
from dosde.process import flow, resshift

from . import symmetry

NETWORK = "backbones.embedded:Network"  # as configs of `dosde train` name it
_FREQUENCIES = 6  # of theta, for its embedding


def _domain_shift(schedule: str = "scaled_linear", t1: float | None = 0.5) -> dosde.Process:
    """DoSSR's: a named schedule with a cosine shift to t1; t1 = None is plain diffusion (DDPM)."""
    schedules = {name: getattr(dosde.schedule, name) for name in ("scaled_linear", "linear", "cosine")}
    if schedule not in schedules:
        raise Refused("schedule", schedule, f"one of {', '.join(schedules)}")
    return dosde.Process(schedules[schedule](), dosde.shift.none() if t1 is None else dosde.shift.cosine(t1))


_PROCESSES: dict[str, Callable[..., dosde.Process]] = {"domain_shift": _domain_shift, "resshift": resshift, "flow": flow}


@dataclass(frozen=True)
class ProcessConfig:
    """A process by name and numbers, as a file holds it.

    Args:
        kind: domain_shift (schedule: scaled_linear, linear, cosine; t1, None for plain diffusion), resshift (T, kappa,
            eta_min, eta_max, p), flow (kappa).
        parameters: by name; others have their defaults.

    >>> ProcessConfig("domain_shift", {"t1": 1 / 3}).process().t1
    0.3333333333333333
    """

    kind: str = "domain_shift"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in _PROCESSES:
            raise Refused("process", self.kind, f"one of {', '.join(_PROCESSES)}", f"kind {self.kind!r}")
        if not isinstance(self.parameters, Mapping):
            raise Refused("process", self.parameters, "values by name are needed", f"parameters {self.parameters!r}")
        self.process()

    def process(self) -> dosde.Process:
        """The process."""
        try:
            return _PROCESSES[self.kind](**self.parameters)
        except (TypeError, ValueError, OverflowError) as error:
            shown = f"{self.kind} with {dict(self.parameters)} ({error})"
            raise Refused("process", self, "parameters that the process takes are needed", shown) from None


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


@dataclass(frozen=True)
class Config:
    """What makes a Network, but for its weights.

    Args:
        scale: s, the std of x0 - x_hat0 per element, over the training pictures in [-1, 1].
        width: channels, a multiple of 8.
        blocks: residual blocks, of two convolutions each.
        fold: pixels of a side that become channels.
        embedding: channels of the time.
        channels: of pictures.
        process: what it is trained for.
        members: networks that F is the mean of.
    """

    scale: float = 0.15
    width: int = 32
    blocks: int = 16
    fold: int = 4
    embedding: int = 128
    channels: int = 3
    process: ProcessConfig = ProcessConfig()
    members: int = 1

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "fold", "embedding", "channels", "members"):
            if not _positive(getattr(self, name)):
                raise Refused(name, getattr(self, name), "a positive integer is needed", repr(getattr(self, name)))
        if isinstance(self.scale, bool) or not isinstance(self.scale, (int, float)) or not 0 < self.scale < 1e9:
            raise Refused("scale", self.scale, "a positive number is needed", repr(self.scale))
        if not isinstance(self.process, ProcessConfig):
            raise Refused("process", self.process, "a ProcessConfig is needed")
        if self.width % symmetry.EIGHT:
            raise Refused("width", self.width, f"a multiple of {symmetry.EIGHT} is needed")

    @property
    def radius(self) -> int:
        """How many pixels away an output can see at most: a cell for each convolution, and whole cells."""
        return self.fold * (2 + 2 * self.blocks) + self.fold - 1

    @property
    def least(self) -> int:
        """A lower bound of the count of its weights: all but biases, and what has to do with the time alone."""
        ends = 9 * self.width * self.channels * (4 * self.fold**2 + 1)
        blocks = self.blocks * 2 * self.width * (9 * self.width + self.embedding)
        return self.members * (self.embedding**2 + (ends + blocks) // symmetry.EIGHT)

    def to_json(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts of them."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Config":
        """The inverse of `to_json`.

        Raises:
            Refused: that names a key.
        """
        if not isinstance(values, Mapping):
            raise Refused("config", values, "values by name are needed")
        known = Config.__dataclass_fields__
        if set(values) != set(known):
            wrong = sorted(set(values) ^ set(known))[0]
            raise Refused(
                wrong,
                values.get(wrong),
                f"the keys are {', '.join(known)}",
                "unknown" if wrong in values else "missing",
            )
        process = values["process"]
        if not isinstance(process, Mapping) or set(process) != {"kind", "parameters"}:
            raise Refused("process", process, "kind and parameters are needed")
        return Config(**{**values, "process": ProcessConfig(**process)})


def configured(options: Mapping[str, Any], process: Mapping[str, Any]) -> Config:
    """The configuration of a network that `dosde train` trains.

    Args:
        options: `model.options`, fields of `Config`.
        process: the table [process].

    Raises:
        Refused: the backbone has no such process.
    """
    kind = process["kind"]
    if kind == "dossr" or (kind == "vp" and process["shift"] == "linear"):
        what = kind if kind == "dossr" else f"a {process['shift']} shift"
        raise Refused("process", process, f"vp with a cosine shift or none, resshift, or flow, is needed for {NETWORK}", what)
    if kind == "flow" and process["kappa"] == 0:
        needed = f"above 0 is needed for {NETWORK}, for `dosde upscale` solves processes with noise"
        raise Refused("process.kappa", 0, needed)
    if kind == "vp":
        t1 = None if process["shift"] == "none" else process["t1"]
        kept = ProcessConfig("domain_shift", {"schedule": process["schedule"], "t1": t1})
    elif kind == "resshift":
        eta_min = RESSHIFT_ETA_MIN[process["T"]]
        kept = ProcessConfig("resshift", {"T": process["T"], "eta_min": eta_min})
    else:
        kept = ProcessConfig("flow", {"kappa": process["kappa"]})
    return Config(**options, process=kept)


class Network(nn.Module):
    """(x, x_hat0, t) -> x0. The module's docstring has the equations.

    F runs in the dtype of the weights (or of autocast), all else in that of x. For `solve`, in evaluation mode:
    dosde.Denoiser(network, network.process, predicts="x0"). A copy, and a pickle, is the configuration with the weights;
    hooks are left behind.

    >>> network = Network(Config(width=8, blocks=1)).eval()
    >>> x_hat0 = torch.zeros(2, 3, 16, 24)
    >>> network(torch.randn(2, 3, 16, 24), x_hat0, torch.tensor([0.5, 0.0])).shape
    torch.Size([2, 3, 16, 24])
    """

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.process = config.process.process()
        if self.process.field_shape:
            raise Refused("process", config.process, "one eta is needed", "eta is a field")
        self.members = nn.ModuleList(Member(config) for _ in range(config.members))

    def __reduce__(self) -> tuple[object, ...]:  # torch does not pickle modules with weights that are computed
        grads = [parameter.requires_grad for parameter in self.parameters()]
        return _restored, (self.config, dict(self.state_dict()), self.training, grads)

    @property
    def weight(self) -> Tensor:
        """One of the weights, of the device and the dtype of all."""
        return next(self.parameters())

    def forward(self, x: Tensor, x_hat0: Tensor, t: float | Tensor) -> Tensor:
        """The estimate of x0.

        Args:
            x: (batch, channels, H, W); H and W are multiples of `config.fold`.
            x_hat0: in the shape of x, in [-1, 1].
            t: one time, or one a sample.

        Raises:
            Refused: for shapes that do not fit.
        """
        c = self.config
        if x.ndim != 4 or x.shape != x_hat0.shape or x.shape[1] != c.channels or any(n % c.fold for n in x.shape[-2:]):
            raise Refused(
                "x, x_hat0",
                (x, x_hat0),
                f"(batch, {c.channels}, H, W) of both, H and W multiples of {c.fold}, is needed",
                f"shapes {tuple(x.shape)}, {tuple(x_hat0.shape)}",
            )
        m = self.process.over_batch(t, x)
        n = torch.hypot(c.scale * m.a, m.sigma)
        inverse = torch.where(n > 0, 1 / n, 0.0)
        cos, sin = c.scale * m.a * inverse, torch.where(n > 0, m.sigma * inverse, 1.0)
        theta = torch.atan2(sin, cos) * (2 / math.pi)
        w = (cos * inverse).to(x) * (x - m.alpha.to(x) * x_hat0)
        value = self._predicted(w, x_hat0, theta)
        return x_hat0 + c.scale * w + (c.scale * sin).to(x) * value

    def _predicted(self, w: Tensor, x_hat0: Tensor, theta: Tensor) -> Tensor:
        """F; theta from 0 to 1."""
        fold, weight = self.config.fold, self.weight
        mean = F.avg_pool2d(x_hat0, fold)
        detail = (x_hat0 - mean.repeat_interleave(fold, -1).repeat_interleave(fold, -2)) / self.config.scale
        h = torch.cat([F.pixel_unshuffle(w, fold), F.pixel_unshuffle(detail, fold), mean], 1)
        h = h.to(weight.dtype).contiguous(memory_format=torch.channels_last)
        waves = theta.reshape(-1, 1) * torch.arange(1, _FREQUENCIES + 1, device=theta.device) * math.pi
        time = torch.cat([theta.reshape(-1, 1), waves.cos(), waves.sin()], 1).to(weight.device, weight.dtype)
        value, gain = F.pixel_shuffle(self._of_members(h, time), fold).to(w.dtype).chunk(2, 1)
        return torch.addcmul(value, gain, w)

    def _of_members(self, h: Tensor, time: Tensor) -> Tensor:
        """What a Member returns: the mean of all, or, in training, for each sample that of one."""
        count = len(self.members)
        if not self.training or count == 1:
            first, *others = self.members
            total: Tensor = first(h, time)
            for member in others:
                total += member(h, time)
            return total / count
        if len(h) % count:
            raise Refused("x", h, f"a multiple of the {count} members is needed in training mode", f"a batch of {len(h)}")
        turns = [torch.arange(k, len(h), count, device=h.device) for k in range(count)]
        time = time.expand(len(h), -1)
        parts = [member(h[turn], time[turn]) for member, turn in zip(self.members, turns, strict=True)]
        return torch.cat(parts)[torch.cat(turns).argsort()]


def _restored(config: Config, weights: Mapping[str, Tensor], training: bool, grads: Sequence[bool]) -> Network:
    network = blank(config)
    network.load_state_dict(weights, assign=True)
    for parameter, grad in zip(network.parameters(), grads, strict=True):
        parameter.requires_grad_(grad)
    return network.to(network.weight.device).train(training)


def blank(config: Config) -> Network:
    """The network on the meta device: shapes without memory, and no random numbers drawn."""
    with torch.device("meta"):
        return Network(config)


class Member(nn.Module):
    """(h, time) -> (F0, F1), all folded.

    h: (batch, channels, height, width) of w, of x_hat0 as the mean of a cell of folded pixels and the deviations from it, in
    units of s. time: (batch or 1, waves of theta).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        folded, width, e = config.channels * config.fold**2, config.width, config.embedding
        self.time = nn.Sequential(nn.Linear(1 + 2 * _FREQUENCIES, e), nn.SiLU(), nn.Linear(e, e), nn.SiLU())
        self.first = nn.Conv2d(2 * folded + config.channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width, e) for _ in range(config.blocks))
        self.last = nn.Conv2d(width, 2 * folded, 3, padding=1)
        for parameter in self.last.parameters():  # F = 0: the best linear estimate
            nn.init.zeros_(parameter)
        eights, pixels = symmetry.eights(width), symmetry.folded(2 * config.channels, config.fold)
        symmetry.tie(self.first, eights, symmetry.joined(pixels, symmetry.fixed(config.channels)))
        symmetry.tie(self.last, pixels, eights)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """(batch, 2 channels fold^2, height, width)."""
        time, h = self.time(time), self.first(h)
        for block in self.blocks:
            h = block(h, time)
        value: Tensor = self.last(F.silu(h))
        return value


class Block(nn.Module):
    """h + second(silu(scale first(silu(h)) + shift)), scale and shift of the time; at first not far from h."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * width)
        with torch.no_grad():
            self.second.weight *= 0.1
        for parameter in self.modulation.parameters():
            nn.init.zeros_(parameter)
        eights = symmetry.eights(width)
        symmetry.tie(self.first, eights, eights)
        symmetry.tie(self.second, eights, eights)
        symmetry.tie(self.modulation, symmetry.joined(eights, eights), symmetry.fixed(embedding))

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """h: (batch, width, height, width of the picture); time: (batch or 1, embedding)."""
        scale, shift = self.modulation(time)[:, :, None, None].chunk(2, 1)
        inner = torch.addcmul(shift, self.first(F.silu(h)), 1 + scale)
        out: Tensor = h + self.second(F.silu(inner))
        return out
