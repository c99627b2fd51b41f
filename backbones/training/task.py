"""What is trained: a task has the network, computes the loss of each sample of a batch, and upscales pictures to validate.

`pixels.Embedded`, `sd21.SD21` and `resshift.ResShift` are the tasks. The loop (`loop.train`) knows no more than `Task`.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import dosde
from backbones import whole
from dosde import objective
from dosde.prediction import Predicts

from .config import Objective, Times, weights

Batch = dict[str, Tensor]
Network = Callable[..., Any]


class Task(Protocol):
    """What the loop trains."""

    trainable: nn.Module
    """The network. All of its parameters are trained; float32, on the host until the loop moves it."""
    process: dosde.Process
    noise_shapes: tuple[tuple[int, ...], ...]
    """The shapes of the tensors of unit normal noise that a sample needs: `noise0`, `noise1`, ... of a batch."""

    def samples(self, samples: Dataset[Batch], rank: int, world: int) -> Dataset[Batch]:
        """The data set that the loop loads, by (epoch, index), from a data set of hr and lr.

        Args:
            samples: pictures, hr and lr.
            rank: the number of this process.
            world: the number of processes.
        """

    def place(self, device: torch.device) -> None:
        """Moves whatever is not trained to its device."""

    def losses(self, network: Network, batch: Batch) -> Tensor:
        """The loss of each sample, of shape (batch,).

        Args:
            network: the network, as accelerate wraps it.
            batch: hr and lr (or what `samples` loads in their place), noise0, ..., and part: a uniform number each, on the
                host.
        """

    def upscaled(
        self, network: Network, lr: Tensor, steps: int, order: int, noise: torch.Generator, solver: Mapping[str, Any]
    ) -> Tensor:
        """The picture (1, 3, height, width) in [0, 1] of a low-resolution picture.

        Args:
            network: the network, as accelerate wraps it.
            lr: a picture (1, 3, height, width) in [0, 1].
            steps: steps of the solve.
            order: order of the solve.
            noise: the noise of the solve.
            solver: method and grid of `dosde.solve`, or nothing, for the task's usual ones.
        """

    def save(self, tensors: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str]) -> Path:
        """Writes the result and returns its place.

        Args:
            tensors: the weights of the network, by its names.
            folder: the folder of the run.
            metadata: what the file says beside its tensors.
        """


def with_component(before: Path, folder: Path, name: str, component: Any) -> Path:
    """The folder of a pipeline with another component, as `save_pretrained` writes it: folder/pipeline, where nothing is yet.

    Args:
        before: the folder of the pipeline that the run started from.
        folder: the folder of the run.
        name: of the component, and of its folder.
        component: a model of diffusers.
    """
    path = folder / "pipeline"
    with whole.folder(path) as place:
        shutil.copytree(before, place, dirs_exist_ok=True, ignore=lambda at, _: [name] if Path(at) == before else [])
        component.save_pretrained(place / name)
    return path


@dataclass(frozen=True)
class Loss:
    """`dosde.objective.loss` of samples, with the prediction type, the norm and the weight of a config.

    Args:
        process: the process.
        wanted: the table [objective].
        times: the times of training.
    """

    process: dosde.Process
    wanted: Objective
    times: Times

    def __call__(self, value: Tensor, x0: Tensor, x_hat0: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """The loss of each sample, (batch,), where the network returned `value` for process.sample(x0, x_hat0, t, z)."""
        wanted, w = self.wanted, weights(self.process, self.wanted, self.times, t)
        norm, of, predicts = cast(Any, wanted.norm), cast(Any, wanted.of), cast(Predicts, wanted.predicts)
        return objective.loss(value, predicts, self.process, x0, x_hat0, t, z, norm=norm, of=of, weight=w)
