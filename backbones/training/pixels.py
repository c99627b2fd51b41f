"""The task `embedded`: a pixel network (x, x_hat0, t) -> what `predicts` names; x_hat0 is LR, brought to the size of HR."""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import dosde
from backbones import embedded, named
from backbones.embedded import source
from backbones.embedded.network import NETWORK, configured
from backbones.weights import check, weights_of, write
from dosde.check import Refused
from dosde.prediction import Predicts

from .config import Config, Times, made_process, within
from .task import Batch, Loss, Network


class Embedded:
    """A network on pixels in [-1, 1], forward(x, x_hat0, t), t float of shape (batch,).

    Args:
        config: the whole config.
        network: makes the network from `model.options`; default: what `model.network` names.
        save: (network, folder) -> path, writes the result; default: what `model.save` names.

    Raises:
        Refused: the tables of the config do not suit each other, or the network cannot be made.
    """

    def __init__(
        self,
        config: Config,
        network: Callable[..., nn.Module] | None = None,
        save: Callable[[nn.Module, Path], Path] | None = None,
    ) -> None:
        own = None
        if config.model.network == NETWORK:
            process = asdict(config.process)
            configured({}, process)  # refused where the backbone does not have such a process
            own = functools.partial(_network, process)
        if own is not None and config.data.scale != 4:
            raise Refused("data.scale", config.data.scale, f"4 is needed for {NETWORK}")
        self.process = made_process(config.process)
        if own is not None and config.objective.predicts != "x0":
            raise Refused("objective.predicts", config.objective.predicts, f"x0 is needed for {NETWORK}")
        self.predicts = cast(Predicts, config.objective.predicts)
        self.loss = Loss(self.process, config.objective, Times(self.process, config.objective))
        self.scale, self.batch, self.accumulate = config.data.scale, config.batch, config.accumulate
        self.noise_shapes: tuple[tuple[int, ...], ...] = ((3, config.data.crop, config.data.crop),)
        make = network or own or _called("model.network", config.model.network)
        self._save = _called("model.save", config.model.save) if save is None and config.model.save else save
        self._make, self._model, self._seed = make, config.model, config.seed
        self.trainable = self._made()
        if not isinstance(self.trainable, nn.Module) or not any(p.requires_grad for p in self.trainable.parameters()):
            raise Refused("model.network", config.model.network, "what makes a network with parameters is needed")
        if config.model.weights:
            path = Path(config.model.weights)
            try:
                tensors = weights_of(path)
                check(path, tensors, self.trainable.state_dict())
            except ValueError as error:
                raise within("model.weights", error) from None
            self.trainable.load_state_dict(tensors)

    def _made(self) -> nn.Module:
        """The network. Its first weights are a function of the seed alone."""
        options = self._model.options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            try:
                return self._make(**options)
            except Exception as error:
                raise Refused("model.options", options, " ".join(str(error).split())) from None

    def samples(self, samples: Dataset[Batch], rank: int, world: int) -> Dataset[Batch]:
        members = self.trainable.config.members if isinstance(self.trainable, embedded.Network) else 1
        if (self.batch // (world * self.accumulate)) % members:
            parts = f"{self.batch} in {world} x {self.accumulate} parts (processes x accumulate)"
            raise Refused("batch", self.batch, f"in each a multiple of the {members} members is needed", parts)
        return samples

    def place(self, device: torch.device) -> None:
        pass

    def losses(self, network: Network, batch: Batch) -> Tensor:
        x0, z = 2 * batch["hr"] - 1, batch["noise0"]
        x_hat0 = source(batch["lr"], x0.shape[-2:])
        t = self.loss.times(batch["part"])
        x = self.process.sample(x0, x_hat0, t, z)
        return self.loss(network(x, x_hat0, t.to(x)), x0, x_hat0, t, z)

    def upscaled(
        self, network: Network, lr: Tensor, steps: int, order: int, noise: torch.Generator, solver: Mapping[str, Any]
    ) -> Tensor:
        def net(x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
            value: Tensor = network(x, x_hat0, t.to(x).expand(len(x)))
            return value

        model = dosde.Denoiser(net, self.process, self.predicts)
        size = [self.scale * side for side in lr.shape[-2:]]
        x0 = dosde.solve(model, source(lr, size), steps, order, noise=noise, **solver)
        return ((x0 + 1) / 2).clamp(0, 1)

    def save(self, tensors: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str]) -> Path:
        path = folder / "weights.safetensors"
        if self._save is not None or self._model.network == NETWORK:
            network = self._made()
            network.load_state_dict(tensors)
            if self._save is not None:
                return self._save(network.eval(), folder)
            if isinstance(network, embedded.Network):
                embedded.save(path, network, metadata)  # as `dosde upscale --backbone embedded` reads it
                return path
        own = {"network": self._model.network, "options": json.dumps(self._model.options)}
        write(path, tensors, {**metadata, **own})
        return path


def _network(process: Mapping[str, Any], **options: Any) -> nn.Module:
    return embedded.Network(configured(options, process))


def _called(key: str, name: str) -> Callable[..., Any]:
    """The function or class that a key of the config names; by its name, so that a task can be pickled.

    Raises:
        Refused: there is no such thing.
    """
    if not callable(named.found(key, name)):
        raise Refused(key, name, "a function or a class is needed")
    return functools.partial(_call, key, name)


def _call(key: str, name: str, *args: Any, **kwargs: Any) -> Any:
    return named.found(key, name)(*args, **kwargs)
