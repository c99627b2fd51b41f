"""The config of `dosde train`: a TOML file, read into frozen dataclasses and checked before anything starts.

    >>> parse({"task": "embedded", "out": "runs/a", "steps": 100, "optimizer": {"lr": -1.0}})
    Traceback (most recent call last):
    dosde.check.Refused: optimizer.lr: -1.0; a number above 0 is needed

Every error is one line: the key, its value, and what is legal. Paths are relative to where the command runs.
"""

import dataclasses
import difflib
import json
import math
import os
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

import dosde
from backbones import named
from backbones.pictures.degradation import BICUBIC, REAL_ESRGAN
from backbones.pictures.degradation import Degradation as DegradationParameters
from dosde import objective, presets, schedule, shift
from dosde.check import Refused
from dosde.prediction import TRAINED, Predicts

from .data import Bundled, Folder, Mixed, Own, Pairs, Procedural, Samples, Source

_DEGRADATIONS = {"bicubic": BICUBIC, "real-esrgan": REAL_ESRGAN}


def _key(default: Any, legal: str, check: Callable[[Any], bool]) -> Any:
    return field(default=default, metadata={"legal": legal, "check": check})


def _count(default: Any, least: int = 1) -> Any:
    return _key(default, f"a whole number of at least {least}", lambda v: v >= least)


def _above(default: Any) -> Any:
    return _key(default, "a number above 0", lambda v: 0 < v < math.inf)


def _within(default: Any, low: float, high: float) -> Any:
    return _key(default, f"a number from {low:g} to {high:g}", lambda v: low <= v <= high)


def _path(
    default: Any = "", legal: str = "the name of a file or a folder", check: Callable[[str], Any] = lambda v: True
) -> Any:
    """A name of a file or a folder, in which ~ and ~user stand for a home."""
    return field(default=default, metadata={"legal": legal, "check": lambda v: "\0" not in v and check(v), "path": True})


def _choice(default: Any, *names: str) -> Any:
    metadata = {"legal": "one of " + ", ".join(names), "check": lambda v: v in names, "names": names}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class SourceOfPictures:
    """[[data.sources]]: one source of pictures."""

    kind: str = _choice(dataclasses.MISSING, "folder", "pairs", "bundled", "procedural")
    path: str = _path()
    """The folder, for kind = folder."""
    hr: str = _path()
    """The folder of high-resolution pictures, for kind = pairs."""
    lr: str = _path()
    """The folder of the same pictures in low resolution, for kind = pairs."""
    names: tuple[str, ...] = ()
    """Some pictures, for kind = bundled; default: all."""
    weight: float = _above(1.0)
    """Share of the samples, relative to other sources."""
    small: str = _choice("refuse", "refuse", "skip")
    """What becomes of pictures of a folder that are smaller than the crop."""


@dataclass(frozen=True)
class Data:
    """[data]"""

    crop: int = _count(64)
    """Side of the high-resolution crops."""
    scale: int = _count(4)
    degradation: str = _key(
        "bicubic", 'bicubic, real-esrgan or "package.module:name"', lambda v: v in _DEGRADATIONS or named.is_name(v)
    )
    """How lr is made of hr, where the source has no lr."""
    shrink: float = _key(1.0, "a number of at least 1", lambda v: 1 <= v < math.inf)
    """Pictures of folder and bundled are first made smaller by a random factor of at most this."""
    length: int = _key(1000, "a whole number from 1 to 10^8", lambda v: 1 <= v <= 10**8)
    """Samples an epoch."""
    workers: int = _count(0, 0)
    """Processes that read pictures, in each process that trains."""
    sources: tuple[SourceOfPictures, ...] = (SourceOfPictures("procedural"),)


@dataclass(frozen=True)
class Process:
    """[process]: the process; the tasks `sd21` and `resshift` take that of their pipeline."""

    kind: str = _choice("vp", "vp", "dossr", "resshift", "flow")
    """vp: `schedule` and `shift`. dossr, resshift: as released (`dosde.presets`). flow: `dosde.process.flow`."""
    schedule: str = _choice("scaled_linear", "scaled_linear", "linear", "cosine")
    shift: str = _choice("cosine", "cosine", "linear", "none")
    """none: plain diffusion, without the source."""
    t1: float = _key(0.5, "a number above 0, up to 1", lambda v: 0 < v <= 1)
    """For vp and dossr: the time from which the source alone is left."""
    T: int = _key(15, "15 or 4", lambda v: v in (15, 4))
    """For resshift: steps of its chain."""
    kappa: float = _key(0.0, "a number of at least 0", lambda v: 0 <= v < math.inf)
    """For flow: std of the noise at t = 1, a factor."""


@dataclass(frozen=True)
class Objective:
    """[objective]: `dosde.objective.loss`, and where its times come from."""

    predicts: str = _choice("x0", *TRAINED)
    norm: str = _choice("l2", "l2", "l1")
    of: str = _choice("net", "net", "x0")
    weight: str = _choice("one", "one", "plain", "bound", "u")
    """plain, bound: ResShift's (bound needs times = "table"). u: that of eps on x0, to weight_max."""
    weight_max: float = _above(100.0)
    times: str = _choice("uniform", "uniform", "table")
    """Uniform in t, or over the times (i + 1)/table."""
    t_min: float = _within(0.001, 0, 1)
    t_max: float = _within(0.0, 0, 1)
    """0: t1 of the process."""
    table: int = _count(1000)


@dataclass(frozen=True)
class Model:
    """[model], for the task embedded."""

    network: str = _key("backbones.embedded:Network", named.LEGAL, named.is_name)
    """What makes the network, forward(x, x_hat0, t)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its arguments."""
    weights: str = _path()
    """A file to start from: .safetensors that this command wrote, or any with the network's tensors."""
    save: str = _key("", named.LEGAL, lambda v: not v or named.is_name(v))
    """What writes the weights at the end, called as (network, folder); default: weights.safetensors."""


@dataclass(frozen=True)
class SD21:
    """[sd21], for the task sd21: DoSSR's fine-tuning, of the ControlNet alone."""

    weights: str = _path()
    """The folder to start from, of `dosde convert`."""
    prompt: str = ""
    cache: str = _path()
    """A folder for latents and the embedded prompt; default: none, they are made at every step."""
    cache_samples: int = _count(1000)
    """How many samples are cached, and trained on."""
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class ResShift:
    """[resshift], for the task resshift: ResShift's U-Net."""

    weights: str = _path()
    """The folder to start from, of `dosde convert`."""


@dataclass(frozen=True)
class Optimizer:
    """[optimizer]: AdamW."""

    lr: float = _above(1e-4)
    betas: tuple[float, ...] = _key((0.9, 0.999), "two numbers in [0, 1)", lambda v: len(v) == 2 and all(0 <= b < 1 for b in v))
    eps: float = _above(1e-8)
    weight_decay: float = _key(0.0, "a number of at least 0", lambda v: 0 <= v < math.inf)
    warmup: int = _count(0, 0)
    """Steps of the linear warm-up."""
    decay: str = _choice("constant", "constant", "cosine")
    """After it; cosine falls to `final` of lr at the last step."""
    final: float = _within(0.0, 0, 1)
    clip: float = _key(1.0, "a number of at least 0 (0: no clipping)", lambda v: 0 <= v < math.inf)
    """Most that the norm of the gradient may be."""


@dataclass(frozen=True)
class EMA:
    """[ema]: averaged weights, which validation and the result have."""

    decay: float = _key(0.999, "a number in [0, 1)", lambda v: 0 <= v < 1)
    warmup: bool = True
    """At most (1 + step)/(10 + step) at first."""


@dataclass(frozen=True)
class Checkpoint:
    """[checkpoint]"""

    every: int = _count(1000)
    keep: int = _count(2)


@dataclass(frozen=True)
class Validation:
    """[validation]"""

    every: int = _count(0, 0)
    """0: never."""
    pictures: str = _path("held_out", "held_out, procedural, or the name of a folder", bool)
    """held_out (chelsea, coffee, china), procedural, or a folder."""
    lr: str = _path()
    """The folder of the same pictures in low resolution, where validation.pictures is a folder; default: they are degraded."""
    count: int = _count(3)
    crop: int = _count(128)
    """Side of the square in their middle."""
    steps: tuple[int, ...] = _key((1, 5), "whole numbers of at least 1", lambda v: v and min(v) >= 1)
    """Steps of the solves; each number is measured."""
    order: int = _key(3, "1, 2 or 3", lambda v: 1 <= v <= 3)
    method: str = _choice("dos", "dos", "few_step")
    scale: float = _above(0.1)
    """For few_step: std of x0 given x_hat0."""


@dataclass(frozen=True)
class Config:
    """The whole file."""

    task: str = _choice(dataclasses.MISSING, "embedded", "sd21", "resshift")
    out: str = _path(dataclasses.MISSING, "the name of a folder", bool)
    steps: int = _count(dataclasses.MISSING)
    """Steps of the optimizer."""
    batch: int = _count(8)
    """Samples a step, on all processes together."""
    accumulate: int = _count(1)
    """Parts that each process computes its share of a step in."""
    seed: int = _key(0, "a whole number from 0 to 2^63 - 1", lambda v: 0 <= v < 2**63)
    precision: str = _choice("no", "no", "bf16")
    log_every: int = _count(10)
    data: Data = Data()
    process: Process = Process()
    objective: Objective = Objective()
    model: Model = field(default_factory=Model)
    sd21: SD21 = SD21()
    resshift: ResShift = ResShift()
    optimizer: Optimizer = Optimizer()
    ema: EMA = EMA()
    checkpoint: Checkpoint = Checkpoint()
    validation: Validation = Validation()

    def as_dict(self) -> dict[str, Any]:
        """The tables as dictionaries."""
        values: dict[str, Any] = dataclasses.asdict(self)
        return values

    def plain(self) -> dict[str, Any]:
        """The config as a checkpoint holds it: what JSON makes of `as_dict`, with lists for tuples."""
        values: dict[str, Any] = json.loads(json.dumps(self.as_dict()))
        return values


# -- Reading ------------------------------------------------------------------------------------------------------------------


def load(path: str | Path) -> Config:
    """The config in a TOML file.

    Raises:
        Refused: the file cannot be read, or something in it is wrong.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Refused("config", path, f"a TOML file is needed ({error.strerror or error})") from None
    try:
        text = content.decode("utf-8-sig")  # with or without the byte order mark that editors write
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        what = f"line {line} is not UTF-8"
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            what = "it is UTF-16" if content[2:4] != b"\0\0" else "it is UTF-32"
        raise Refused("config", path, "a TOML file in UTF-8 is needed", f"{path}: {what}") from None
    if "\0" in text:
        shown = f"{path} holds null characters: it is UTF-16, or no text"
        raise Refused("config", path, "a TOML file in UTF-8 is needed", shown)
    try:
        return parse(tomllib.loads(text.replace("\r\n", "\n").replace("\r", "\n")))
    except tomllib.TOMLDecodeError as error:
        raise Refused("config", path, "a TOML file is needed", f"{path} is not TOML ({error})") from None


def parse(content: Mapping[str, Any]) -> Config:
    """The config with this content.

    Args:
        content: the keys and tables, as `tomllib` reads them.

    Raises:
        Refused: a key is unknown, missing, or has a value that is not legal.
    """
    config = _made(Config, content, "")
    assert isinstance(config, Config)
    other = {
        "embedded": ("sd21", "resshift"),
        "sd21": ("model", "process", "resshift"),
        "resshift": ("model", "process", "sd21"),
    }[config.task]
    for name in other:
        if name in content:
            raise Refused(
                name, config.task, f"leave the table [{name}] out, or change the task", f"not of the task {config.task}"
            )
    for name, own in (("sd21", config.sd21), ("resshift", config.resshift)):
        if config.task == name and not own.weights:
            raise Refused(f"{name}.weights", "", "a folder written by `dosde convert` is needed")
    _check(config)
    return config


def filled(content: Mapping[str, Any]) -> Config:
    """The config in a checkpoint: of `Config.plain`, perhaps of a version that had fewer keys, which get their defaults.

    Raises:
        Refused: it has other keys, or values that are not legal any more.
    """
    return typing.cast(Config, _made(Config, content, ""))


def _check(config: Config) -> None:
    """Refused where keys do not suit each other."""
    data, wanted = config.data, config.objective
    if data.crop % data.scale:
        raise Refused("data.crop", data.crop, f"a multiple of data.scale, {data.scale}, is needed")
    if not data.sources:
        raise Refused("data.sources", [], "at least one source is needed")
    for i, source in enumerate(data.sources):
        for kind, key in (("folder", "path"), ("pairs", "hr"), ("pairs", "lr")):
            value = getattr(source, key)
            if (source.kind == kind) != bool(value):
                legal = "the name of a folder" if source.kind == kind else f"nothing, which only kind = {kind!r} has,"
                raise Refused(f"data.sources[{i}].{key}", value, f"{legal} is needed")
        if source.names and source.kind != "bundled":
            raise Refused(f"data.sources[{i}].names", list(source.names), "nothing, which only kind = 'bundled' has, is needed")
    if config.batch % config.accumulate:
        raise Refused("accumulate", config.accumulate, f"a divisor of batch, {config.batch}, is needed")
    if config.optimizer.warmup > config.steps:
        raise Refused("optimizer.warmup", config.optimizer.warmup, f"at most steps, {config.steps}, is needed")
    if 0 < wanted.t_max <= wanted.t_min:
        raise Refused("objective.t_max", wanted.t_max, f"a number above t_min, {wanted.t_min}, is needed")
    if wanted.weight == "bound" and wanted.times != "table":
        raise Refused("objective.weight", "bound", f"needs times = 'table', and it is {wanted.times!r}")
    if config.validation.lr and config.validation.pictures in ("held_out", "procedural"):
        needed = "nothing, or a folder as validation.pictures, is needed"
        raise Refused("validation.lr", config.validation.lr, needed)
    if config.validation.crop % data.scale:
        raise Refused("validation.crop", config.validation.crop, f"a multiple of data.scale, {data.scale}, is needed")
    if config.task == "embedded":
        process = made_process(config.process)
        if process.noise_free and wanted.predicts not in ("x0", "flow"):
            raise Refused("objective.predicts", wanted.predicts, "x0 or flow is needed on a process without noise")
        Times(process, wanted)
        if config.validation.every and process.noise_free:
            raise Refused(
                "process.kappa", 0, "validation solves need a process with noise, so kappa > 0 or validation.every = 0"
            )


def _made(kind: type, content: object, place: str) -> object:
    """The dataclass `kind` from a table at some place of the config."""
    if not isinstance(content, Mapping):
        raise Refused(place, content, "a table is needed")
    prefix = f"{place}." if place else ""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for name in content:
        if name not in fields:
            meant = _meant(name, prefix, fields)
            needed = f"no such key, {place or 'a config'} has {', '.join(fields)}{meant}"
            raise Refused(prefix + name, content[name], needed)
    values = {}
    for name, one in fields.items():
        if name in content:
            value = _typed(hints[name], content[name], prefix + name)
            value = _at_home(value, prefix + name) if one.metadata.get("path") else value
            if one.metadata and not one.metadata["check"](value):
                near = difflib.get_close_matches(value, one.metadata.get("names", ()), 1) if isinstance(value, str) else []
                meant = f" (did you mean {near[0]}?)" if near else ""
                raise Refused(prefix + name, content[name], f"{one.metadata['legal']} is needed{meant}")
            values[name] = value
        elif one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            raise Refused(prefix + name, None, f"{one.metadata['legal']} is needed", "missing")
    return kind(**values)


def _meant(name: str, prefix: str, fields: Mapping[str, Any]) -> str:
    """What a key that does not exist may have meant: one of its table, or the same one of another table."""
    lower = {one.lower(): one for one in fields}
    near = [prefix + lower[one] for one in difflib.get_close_matches(name.lower(), lower, 1)]
    tables = {f.name: hint for f in dataclasses.fields(Config) if dataclasses.is_dataclass(hint := _hints(Config)[f.name])}
    same = [f"{table}.{name}" for table, kind in tables.items() if name in {f.name for f in dataclasses.fields(kind)}]
    same += [name] if prefix and name in _hints(Config) else []
    return f" (did you mean {' or '.join(near or same)}?)" if near or same else ""


def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _at_home(name: str, place: str) -> str:
    """A name in which ~ and ~user are the homes that they stand for."""
    found = os.path.expanduser(name)
    if found.startswith("~"):
        user = found.split(os.sep)[0]
        raise Refused(place, name, f"there is no home of {user}; a name that begins with ./~ is of a file called so")
    return found


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "a table", tuple: "a list"}


def _typed(hint: Any, value: Any, place: str) -> Any:
    """A value of a config as the type of its key."""
    if dataclasses.is_dataclass(hint):
        return _made(typing.cast(type, hint), value, place)
    origin = typing.get_origin(hint) or hint
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise Refused(place, value, "a list is needed")
        return tuple(_typed(get_args(hint)[0], one, f"{place}[{i}]") for i, one in enumerate(value))
    right = isinstance(value, origin) or (origin is float and isinstance(value, int))
    if not right or (isinstance(value, bool) and origin is not bool):
        raise Refused(place, value, f"{_WORDS[origin]} is needed")
    if origin is dict:
        try:
            json.dumps(value)
        except TypeError:
            raise Refused(place, value, "numbers, texts, true, false, lists and tables of them are needed") from None
    return float(value) if origin is float else value


def inputs(config: Config) -> Iterator[tuple[str, str]]:
    """What the run reads, (key, name of a file or a folder) each."""
    for i, source in enumerate(config.data.sources):
        for key in ("path", "hr", "lr"):
            if getattr(source, key):
                yield f"data.sources[{i}].{key}", getattr(source, key)
    pictures = config.validation.pictures
    named = (
        ("model.weights", config.model.weights),
        ("sd21.weights", config.sd21.weights),
        ("sd21.cache", config.sd21.cache),
        ("resshift.weights", config.resshift.weights),
        ("validation.pictures", "" if pictures in ("held_out", "procedural") else pictures),
        ("validation.lr", config.validation.lr),
    )
    yield from ((key, name) for key, name in named if name)


def within(place: str, error: ValueError) -> ValueError:
    """An error about something that a key of the config names, under that key; a `Refused` stays one."""
    if isinstance(error, Refused):
        return Refused(place, error.value, error.needed, f"{error.argument}: {error.shown}")
    return ValueError(f"{place}: {error}")


# -- What a config names ------------------------------------------------------------------------------------------------------


def made_process(config: Process) -> dosde.Process:
    """The process of a table [process]."""
    if config.kind == "dossr":
        return presets.dossr(t1=config.t1)[0]
    if config.kind == "resshift":
        return presets.resshift(config.T, config.T)[0]
    if config.kind == "flow":
        return dosde.process.flow(config.kappa)
    shifts = {"cosine": lambda: shift.cosine(config.t1), "linear": lambda: shift.linear(config.t1), "none": shift.none}
    schedules: dict[str, Callable[[], schedule.Schedule]] = {
        "scaled_linear": schedule.scaled_linear,
        "linear": schedule.linear,
        "cosine": schedule.cosine,
    }
    return dosde.Process(schedules[config.schedule](), shifts[config.shift]())


def made_degradation(config: Data) -> DegradationParameters | Own:
    """The degradation of a table [data], to 1/scale.

    Raises:
        Refused: its name names neither a function nor parameters of a degradation.
    """
    if config.degradation in _DEGRADATIONS:
        return dataclasses.replace(_DEGRADATIONS[config.degradation], scale=config.scale)
    own = Own(config.degradation, config.scale)
    found = own.found
    if isinstance(found, DegradationParameters):
        return dataclasses.replace(found, scale=config.scale)
    if not callable(found) or isinstance(found, type):
        needed = "a function (hr, generator) -> lr, or a backbones.pictures.degradation.Degradation, is needed"
        raise Refused("data.degradation", config.degradation, needed)
    return own


def made_samples(config: Data, seed: int) -> Samples:
    """The data set of a table [data].

    Raises:
        Refused: a source has no pictures, or pictures that are too small; the error names it.
    """
    parts: list[tuple[Source, float]] = []
    for i, one in enumerate(config.sources):
        try:
            source: Source
            if one.kind == "folder":
                source = Folder(one.path, config.crop, one.small, config.shrink)
            elif one.kind == "pairs":
                source = Pairs(one.hr, one.lr, config.crop, config.scale, one.small)
            elif one.kind == "bundled":
                source = Bundled(config.crop, shrink=config.shrink, names=one.names)
            else:
                source = Procedural(config.crop, config.length)
        except ValueError as error:
            raise within(f"data.sources[{i}]", error) from None
        parts.append((source, one.weight))
    return Samples(Mixed(parts, config.length), made_degradation(config), seed)


class Times:
    """Uniform numbers in [0, 1) -> times of training, float64.

    Args:
        process: the process, which has t1 and, for the weight "bound", the law of each time.
        config: the table [objective].

    Raises:
        Refused: there are no such times, or the weight "bound" has no value at one of them.
    """

    def __init__(self, process: dosde.Process, config: Objective) -> None:
        low, high = config.t_min, config.t_max or process.t1
        if not low < high:
            raise Refused("objective.t_min", low, f"a time below {high:g} is needed")
        if config.times == "table":
            every = torch.arange(1, config.table + 1, dtype=torch.float64) / config.table
            self.nodes = every[(every >= low - 1e-12) & (every <= high + 1e-12)]
            if not len(self.nodes):
                raise Refused("objective.table", config.table, f"none of its times lies in [{low:g}, {high:g}]")
        else:
            self.nodes = torch.tensor([low, high], dtype=torch.float64)
        self.discrete = config.times == "table"
        self.weights: Tensor | None = None
        if config.weight == "bound":
            times = torch.cat([self.nodes.flip(0), self.nodes.new_zeros(1)])
            try:
                self.weights = objective.bound_weights(typing.cast(Predicts, config.predicts), process, times).flip(0)
            except ValueError as error:
                raise Refused("objective.weight", "bound", " ".join(str(error).split())) from None

    def __call__(self, part: Tensor) -> Tensor:
        if self.discrete:
            return self.nodes[(part.double() * len(self.nodes)).long()]
        low, high = self.nodes
        return torch.lerp(low, high, part.double())


def weights(process: dosde.Process, config: Objective, times: Times, t: Tensor) -> Tensor:
    """The weight w of `dosde.objective.loss` of each sample.

    Args:
        process: the process.
        config: the table [objective].
        times: the times of training.
        t: times, of shape (batch,).
    """
    if config.weight == "u":
        return process(t).u.clamp(max=config.weight_max)
    if config.weight == "plain":
        return objective.plain_weight(typing.cast(Predicts, config.predicts), process(t))
    if times.weights is not None:
        return times.weights[torch.searchsorted(times.nodes, t)]
    return torch.ones_like(t)


def difference(
    one: Mapping[str, Any], other: Mapping[str, Any], free: tuple[str, ...], place: str = ""
) -> tuple[str, Any, Any] | None:
    """The first key in which two configs differ, with the values in both.

    Args:
        one: a config, of `Config.plain`.
        other: another config.
        free: keys that may differ.
        place: the table of the keys, with its dot.
    """
    for name in {**one, **other}:
        key = place + name
        if key in free:
            continue
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            inside = difference(a, b, free, f"{key}.")
            if inside is not None:
                return inside
        elif a != b:
            return key, a, b
    return None
