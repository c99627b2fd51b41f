"""A network of diffusers, with the scheduler that it was trained under, as a model on any process.

The config of the scheduler says what the network was trained on, and how it speaks. Everything is matched on the noise level
lam = sigma/alpha, and never on t: at lam the network gets

    tables of betas     alpha y, alpha = 1/sqrt(1 + lam^2),  and the index of the table nearest to lam (in log lam)
    flow matching       y / (1 + lam),                       and T s, s = lam / (1 + lam)
    EDM                 y / sqrt(sigma_data^2 + lam^2),      and log(lam) / 4

of y = x0 + lam eps, from which `from_denoiser` makes a model on any process. The shift of a flow matching scheduler places its
times and is no part of the network.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dosde import check
from dosde.check import Refused, RefusedType, require
from dosde.prediction import Denoiser
from dosde.process import Process
from dosde.recipe import ByValue
from dosde.schedule import flow, from_alphas_cumprod, ve, zero_terminal_snr
from dosde.shift import none

from .denoiser import FromDenoiser, from_denoiser, tensor_in
from .tables import betas

KINDS = {"epsilon": "vp_eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "velocity"}
_ONE = ("FluxTransformer2DModel", "ChromaTransformer2DModel")  # called with times in [0, 1], which they multiply by 1000


class Call(NamedTuple):
    """How a network is called at a noise level: scale times y, at a time; x0 = keep y + gain times its output."""

    scale: float
    time: float
    keep: float
    gain: float


@dataclass(frozen=True, eq=False)
class Path(ByValue):
    """What a network was trained on, read from the config of its scheduler.

    Args:
        process: plain diffusion, without a shift: what the network is solved on if no process is given.
        call: lam -> Call.
        sigma_max: the largest lam that it was trained for.
    """

    process: Process
    call: Callable[[float], Call]
    sigma_max: float


def path_of(scheduler: object, time: str = "nearest") -> Path:
    """The path of a scheduler of diffusers, or of its config.

    Raises:
        Refused: by name and value, for what is not understood.
    """
    config = _config(scheduler)
    name = str(config.get("_class_name", "") or type(scheduler).__name__)
    if "FlowMatch" in name or config.get("use_flow_sigmas"):
        return _flow_path(config, name)
    if name.startswith("EDM"):
        return _edm_path(config)
    if "beta_schedule" not in config:
        needed = "a scheduler with a table of betas, of flow matching or of EDM is needed"
        raise Refused("scheduler", scheduler, needed, f"{name}, whose noise is none of these")
    return _table_path(config, name, time)


def _config(scheduler: object) -> dict[str, Any]:
    held = getattr(scheduler, "config", scheduler)
    if not isinstance(held, Mapping):
        raise RefusedType("scheduler", scheduler, "a scheduler of diffusers, or its config, is needed", check.form(scheduler))
    config = dict(held)
    if "solver" in config:  # a `DoSDEScheduler` of ours without a shift, in the words of diffusers
        kind, theirs = str(config.get("prediction_type")), {ours: name for name, ours in KINDS.items()}
        config["prediction_type"] = theirs.get(kind, kind)
        if config.get("beta_schedule") == "flow":
            config |= {"use_flow_sigmas": True, "shift": config["flow_shift"]}
    return config


def _table_path(config: Mapping[str, Any], name: str, time: str) -> Path:
    known: dict[str, object] = {"snr_shift_scale": 1.0, "sigma_min": None, "sigma_max": None, "timestep_type": "discrete"}
    for option, value in known.items():
        if config.get(option, value) != value:
            raise Refused(option, config[option], f"{value} is needed: a table of betas, in the config of {name}")
    T = int(config["num_train_timesteps"])
    trained = config.get("trained_betas")
    trained = None if trained is None else torch.as_tensor(trained).tolist()
    first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)  # which a cosine does not need
    table = torch.cumprod(1 - betas(T, first, last, config["beta_schedule"], trained), 0)
    said = config.get("prediction_type", "epsilon")
    check.one_of("prediction_type", said, ("epsilon", "v_prediction", "sample"))
    kind = KINDS[said]
    if config.get("rescale_betas_zero_snr"):
        table = zero_terminal_snr(table)
        shown = "'epsilon' with rescale_betas_zero_snr"
        needed = "eps tells nothing of x0 at alpha = 0; a network of v_prediction or sample is needed"
        require(kind != "vp_eps", "prediction_type", kind, needed, shown)
    lams = ((1 - table) / table).sqrt()
    ends = bool(table[-1] == 0)
    if ends:  # for the search alone: as far from its neighbour as that from the next, in log lam
        lams = torch.cat([lams[:-1], lams[-2:-1] ** 2 / lams[-3:-2]])
    logs = lams.log()

    called = _TableCall(logs, kind, time == "interpolate")
    return Path(Process(from_alphas_cumprod(table), none()), called, math.inf if ends else float(lams[-1]))


@dataclass(frozen=True, eq=False)
class _TableCall(ByValue):
    """lam -> Call, at the index of a table whose log lam are `logs`, or between two of them."""

    logs: Tensor
    kind: str
    between: bool

    def __call__(self, lam: float) -> Call:
        alpha = 1 / math.sqrt(1 + lam**2)
        keep, gain = {"vp_eps": (1.0, -lam), "v": (alpha**2, -lam * alpha), "x0": (0.0, 1.0)}[self.kind]
        return Call(alpha, self._index(lam), keep, gain)

    def _index(self, lam: float) -> float:
        logs = self.logs
        at = logs.new_tensor(math.log(lam)).clamp(logs[0], logs[-1])
        high = int(torch.searchsorted(logs, at).clamp(1, len(logs) - 1))
        part = float((at - logs[high - 1]) / (logs[high] - logs[high - 1]))
        return high - 1 + (part if self.between else round(part))


def _flow_path(config: Mapping[str, Any], name: str) -> Path:
    kind = config.get("prediction_type", "flow_prediction")
    require(kind == "flow_prediction", "prediction_type", kind, f"flow_prediction is needed in the config of {name}")
    if config.get("invert_sigmas"):  # which turns the times of the network round
        raise Refused("invert_sigmas", config["invert_sigmas"], f"False is needed in the config of {name}")
    T = int(config.get("num_train_timesteps", 1000))
    shift = float(config.get("shift", config.get("flow_shift", 1.0)) or 1.0)
    return Path(Process(flow(shift), none()), _FlowCall(T), math.inf)


@dataclass(frozen=True)
class _FlowCall:
    """lam -> Call of a network that was trained on flow matching, with T times."""

    T: int

    def __call__(self, lam: float) -> Call:
        s = lam / (1 + lam)
        return Call(1 / (1 + lam), self.T * s, 1 / (1 + lam), -s)


def _edm_path(config: Mapping[str, Any]) -> Path:
    data, kind = float(config.get("sigma_data", 0.5)), config.get("prediction_type", "epsilon")
    check.one_of("prediction_type", kind, ("epsilon", "v_prediction"))
    sign = 1.0 if kind == "epsilon" else -1.0
    most = float(config.get("sigma_max", 80.0))
    return Path(Process(ve(_Line(most)), none()), _EDMCall(data, sign), most)


@dataclass(frozen=True)
class _EDMCall:
    """lam -> Call of a network under EDM's preconditioning; sign: that of its output."""

    data: float
    sign: float

    def __call__(self, lam: float) -> Call:
        root = math.hypot(lam, self.data)
        return Call(1 / root, math.log(lam) / 4, (self.data / root) ** 2, self.sign * lam * self.data / root)


@dataclass(frozen=True)
class _Line:
    """sigma = most t."""

    most: float

    def __call__(self, t: Tensor) -> Tensor:
        return self.most * t


class Network:
    """A network of diffusers as a denoiser D(y, sigma) -> x0, with classifier-free guidance in one batched call."""

    def __init__(
        self,
        net: Callable[..., Any],
        path: Path,
        cond: Mapping[str, Any],
        uncond: Mapping[str, Any] | None,
        guidance: float | Tensor,
        rescale: float,
        continuous: bool,
    ) -> None:
        self.net, self.path, self.cond, self.uncond = net, path, cond, uncond
        self.guidance, self.rescale, self.continuous = guidance, rescale, continuous
        self.sigma_max = path.sigma_max
        self.unit = type(net).__name__ in _ONE

    def __repr__(self) -> str:
        return type(self.net).__name__

    def __call__(self, y: Tensor, sigma: Tensor, **more: Any) -> Tensor:
        at = self.path.call(float(sigma.reshape(-1)[0]))
        value = self._guided((at.scale * y), at.time, more)
        return at.gain * value if at.keep == 0 else at.keep * y + at.gain * value

    def _guided(self, x: Tensor, time: float, more: Mapping[str, Any]) -> Tensor:
        if self.uncond is None:
            return self._called(x, time, {**self.cond, **more}, len(x))
        halves = {name: _joined(name, self.uncond[name], self.cond[name], len(x)) for name in self.cond}
        without, given = self._called(torch.cat([x, x]), time, {**halves, **more}, len(x)).chunk(2)
        weight = torch.as_tensor(self.guidance, dtype=x.dtype, device=x.device)
        weight = weight.reshape(-1, *[1] * (x.ndim - 1)) if weight.ndim else weight
        value = without + weight * (given - without)
        if self.rescale == 0:
            return value
        dims = list(range(1, x.ndim))
        same = value * (given.std(dims, keepdim=True) / value.std(dims, keepdim=True))
        return self.rescale * same + (1 - self.rescale) * value

    def _called(self, x: Tensor, time: float, kwargs: Mapping[str, Any], batch: int) -> Tensor:
        own = (
            next((p for p in self.net.parameters() if p.is_floating_point()), None) if isinstance(self.net, nn.Module) else None
        )
        at = x if own is None else x.to(own)
        whole = not self.continuous and time == round(time)
        t = torch.full((len(at),), time / 1000 if self.unit else time, device=at.device)
        t = t.to(torch.int64) if whole and not self.unit else t.to(at.dtype if self.unit else torch.float32)
        value: object = self.net(at, timestep=t, **kwargs)
        found = tensor_in(value)
        if found is None:
            raise RefusedType("net", value, "a tensor is needed", f"returned {check.form(value)}")
        if found.ndim == x.ndim > 1 and found.shape[1] == 2 * x.shape[1]:
            found = found.chunk(2, 1)[0]  # the rest is the variance
        require(
            found.shape == x.shape, "net", found, f"shape {tuple(x.shape)} is needed", f"returned shape {tuple(found.shape)}"
        )
        return found.to(x)


def _joined(name: str, without: Any, given: Any, batch: int) -> Any:
    """A keyword for both halves of a batch, the one without the condition first."""
    if isinstance(given, Mapping):
        return {key: _joined(f"{name}.{key}", without[key], given[key], batch) for key in given}
    if not isinstance(given, Tensor):
        require(bool(without == given), "uncond", without, f"what cond has is needed, {name} = {given!r}")
        return given
    ok = isinstance(without, Tensor) and without.shape[1:] == given.shape[1:]
    shown = f"{name}: {check.form(without)}, and cond has {check.form(given)}"
    require(ok, "uncond", without, "tensors of equal shapes are needed, but for the batch", shown)
    parts = []
    for value in (without, given):
        ok = value.ndim > 0 and len(value) in (1, batch)
        require(ok, "cond", value, f"a batch of 1 or {batch} is needed", f"{name}: {check.form(value)}")
        parts.append(value.expand(batch, *value.shape[1:]))
    return torch.cat(parts)


@check.typed
def from_model(
    net: Callable[..., Any],
    scheduler: Any,
    *,
    process: Process | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    guidance: float | Tensor = 1.0,
    guidance_rescale: float = 0.0,
    time: Literal["nearest", "interpolate"] = "nearest",
) -> FromDenoiser | Denoiser:
    """A network of diffusers as a model for `dosde.solve`: UNet2DModel, UNet2DConditionModel, DiT, SD 3, Sana, UNet1D, video.

    Table, kind of prediction, zero terminal SNR, learned variance, times and flow matching follow from the scheduler's config.
    A network that was trained with a shift (a `DoSDEScheduler` of ours) runs on its own process alone; any other on any.

    Args:
        net: called as net(x, timestep=t, **cond); it may return a tensor, a tuple, or an output with `.sample`.
        scheduler: the scheduler of its training, or its config.
        process: to solve on. Default: that of the training, without a shift.
        cond: keywords of each call, tensors with a batch of 1 or of the samples.
        uncond: the same keywords without the condition, for classifier-free guidance.
        guidance: its weight, a number or one a sample, (batch,). At 1 the network is called once and uncond is not used.
        guidance_rescale: the part by which the std of a guided prediction is brought to that of the conditional one (Lin et al.
            2024, Section 3.4), 0 to 1.
        time: "nearest" calls a network of a table with whole indices only, "interpolate" between them, linearly in log lam.

    Raises:
        ValueError: for a scheduler or a value that is not understood, by name; for guidance without uncond; for another process
            than that of a network with a shift.
        TypeError: for an argument of the wrong type.
    """
    check.one_of("time", time, ("nearest", "interpolate"))
    require(0 <= guidance_rescale <= 1, "guidance_rescale", guidance_rescale, "a number from 0 to 1 is needed")
    weight = check.values("guidance", guidance, "a number, or one a sample,")
    require(
        bool(weight.isfinite().all()) and weight.ndim <= 1, "guidance", guidance, "a finite number, or one a sample, is needed"
    )
    for name, value in (("cond", cond), ("uncond", uncond)):
        check.keywords(name, value)
    guided = bool((weight != 1).any())
    if guided:
        require(
            uncond is not None, "uncond", uncond, "the keywords without the condition are needed for a guidance other than 1"
        )
        missing = set(cond or {}) ^ set(uncond or {})
        shown = f"{', '.join(sorted(missing))} is in one of cond and uncond alone"
        require(not missing, "uncond", uncond, "the keywords of cond are needed", shown)
    own = getattr(scheduler, "process", None)
    if isinstance(own, Process) and getattr(scheduler, "shifted", True):
        return _with_its_shift(net, scheduler, own, process, cond or {}, guided)
    path = path_of(scheduler, time)
    denoiser = Network(net, path, cond or {}, uncond if guided else None, guidance, guidance_rescale, time == "interpolate")
    return from_denoiser(denoiser, path.process if process is None else process)


def _with_its_shift(
    net: Callable[..., Any], scheduler: Any, own: Process, process: Process | None, cond: Mapping[str, Any], guided: bool
) -> Denoiser:
    """A network that was trained with a shift: on its process alone, with the times of its scheduler."""
    needed = "its own is needed, or none: this network was trained with a shift"
    require(process is None or process == own, "process", process, needed)
    require(not guided, "guidance", guided, "1 is needed for a network that was trained with a shift", "not 1")

    def called(x: Tensor, x_hat0: Tensor, t: Tensor, **more: Any) -> Tensor:
        time = torch.full((len(x),), scheduler.model_time(t), dtype=torch.float32, device=x.device)
        found = tensor_in(net(x, timestep=time, **{**cond, **more}))
        if found is None:
            raise RefusedType("net", found, "a tensor is needed")
        return found

    return Denoiser(called, own, scheduler.predicts)
