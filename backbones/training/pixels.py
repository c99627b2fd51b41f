"""The task `embedded`: a pixel network (x, x_hat0, t) -> what `predicts` names; x_hat0 is LR, brought to the size of HR."""

import functools
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import dosde
from backbones import embedded
from backbones.embedded import source
from backbones.weights import check, weights_of, write_safetensors
from dosde import objective, presets
from dosde.prediction import Predicts

from .config import Config, Process, Times, made_process, weights
from .task import Batch, Network


class Embedded:
    """A network on pixels in [-1, 1], forward(x, x_hat0, t), t float of shape (batch,).

    network: what makes it; default: what the config names. save: (network, folder) -> path, writes the result.
    """

    def __init__(
        self,
        config: Config,
        network: Callable[..., nn.Module] | None = None,
        save: Callable[[nn.Module, Path], Path] | None = None,
    ) -> None:
        self.config = config
        own = _own_network(config.process) if config.model.network == _OWN else None
        if own is not None and config.data.scale != 4:
            raise ValueError(f"data.scale: {config.data.scale}; 4 is needed for {_OWN}")
        self.process = made_process(config.process)
        if own is not None and config.objective.predicts != "x0":
            raise ValueError(f"objective.predicts: {config.objective.predicts!r}; x0 is needed for {_OWN}")
        self.predicts = cast(Predicts, config.objective.predicts)
        self.times = Times(self.process, config.objective)
        self.noise_shapes: tuple[tuple[int, ...], ...] = ((3, config.data.crop, config.data.crop),)
        make = network or own or _named("model.network", config.model.network)
        self._save = _named("model.save", config.model.save) if save is None and config.model.save else save
        self._make = make
        self.trainable = self._made()
        if not isinstance(self.trainable, nn.Module) or not any(p.requires_grad for p in self.trainable.parameters()):
            raise ValueError(f"model.network: {config.model.network!r}; what makes a network with parameters is needed")
        if config.model.weights:
            path = Path(config.model.weights)
            try:
                tensors = weights_of(path)
                check(path, tensors, self.trainable.state_dict())
            except ValueError as error:
                raise ValueError(f"model.weights: {error}") from None
            self.trainable.load_state_dict(tensors)

    def _made(self) -> nn.Module:
        """The network, its start a function of the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            try:
                return self._make(**self.config.model.options)
            except Exception as error:
                raise ValueError(f"model.options: {self.config.model.options!r}; {' '.join(str(error).split())}") from None

    def samples(self, samples: Dataset[Batch], rank: int, world: int) -> Dataset[Batch]:
        members = self.trainable.config.members if isinstance(self.trainable, embedded.Network) else 1
        if (self.config.batch // (world * self.config.accumulate)) % members:
            parts = f"{self.config.batch} in {world} x {self.config.accumulate} parts (processes x accumulate)"
            raise ValueError(f"batch: {parts}; in each a multiple of the {members} members is needed")
        return samples

    def place(self, device: torch.device) -> None:
        pass

    def losses(self, network: Network, batch: Batch) -> Tensor:
        wanted, x0, z = self.config.objective, 2 * batch["hr"] - 1, batch["noise0"]
        x_hat0 = source(batch["lr"], x0.shape[-2:])
        t = self.times(batch["part"])
        x = self.process.sample(x0, x_hat0, t, z)
        value = network(x, x_hat0, t.to(x))
        w = weights(self.process, wanted, self.times, t)
        norm, of = cast(Any, wanted.norm), cast(Any, wanted.of)
        return objective.loss(value, self.predicts, self.process, x0, x_hat0, t, z, norm=norm, of=of, weight=w)

    def upscaled(self, network: Network, lr: Tensor, steps: int, order: int, noise: torch.Generator, how: Any) -> Tensor:
        def net(x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
            value: Tensor = network(x, x_hat0, t.to(x).expand(len(x)))
            return value

        model = dosde.Denoiser(net, self.process, self.predicts)
        size = [self.config.data.scale * side for side in lr.shape[-2:]]
        x0 = dosde.solve(model, source(lr, size), steps, order, noise=noise, **how)
        return ((x0 + 1) / 2).clamp(0, 1)

    def save(self, tensors: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str]) -> Path:
        path = folder / "weights.safetensors"
        if self._save is not None or self.config.model.network == _OWN:
            network = self._made()
            network.load_state_dict(tensors)
            if self._save is not None:
                return self._save(network.eval(), folder)
            if isinstance(network, embedded.Network):
                embedded.save(path, network, metadata)  # as `dosde upscale --backbone embedded` reads it
                return path
        own = {"network": self.config.model.network, "options": json.dumps(self.config.model.options)}
        write_safetensors(path, tensors, {**metadata, **own})
        return path


_OWN = "backbones.embedded:Network"


def _own_network(process: Process) -> Callable[..., nn.Module]:
    """`embedded.Network` by the options of its `Config`, for the process of [process], which its file holds too."""
    if process.kind == "dossr" or (process.kind == "vp" and process.shift == "linear"):
        what = process.kind if process.kind == "dossr" else f"a {process.shift} shift"
        raise ValueError(f"process: {what}; vp with a cosine shift or none, resshift, or flow, is needed for {_OWN}")
    if process.kind == "flow" and process.kappa == 0:
        raise ValueError(f"process.kappa: 0; above 0 is needed for {_OWN}, for `dosde upscale` solves processes with noise")
    if process.kind == "vp":
        t1 = None if process.shift == "none" else process.t1
        kept = embedded.ProcessConfig("domain_shift", {"schedule": process.schedule, "t1": t1})
    elif process.kind == "resshift":
        kept = embedded.ProcessConfig("resshift", {"T": process.T, "eta_min": presets.RESSHIFT_ETA_MIN[process.T]})
    else:
        kept = embedded.ProcessConfig("flow", {"kappa": process.kappa})

    def make(**options: Any) -> nn.Module:
        return embedded.Network(embedded.Config(**options, process=kept))

    return make


def _named(key: str, name: str) -> Callable[..., Any]:
    """What "package.module:name" names."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:  # as for python -m
        sys.path.append(os.getcwd())
    try:
        found = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:  # whatever the module does
        raise ValueError(f"{key}: {name!r}; 'package.module:name' of something importable is needed ({error})") from None
    if not callable(found):
        raise ValueError(f"{key}: {name!r}; a function or a class is needed")
    return cast(Callable[..., Any], found)
