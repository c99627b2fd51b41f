"""What is trained: a task has the network, makes the loss of each sample of a batch, and upscales pictures to validate.

`pixels.Embedded` is one, `sd21.SD21` the other. The loop (`loop.train`) knows no more than `Task`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import dosde

Batch = dict[str, Tensor]
Network = Callable[..., Any]


class Task(Protocol):
    """What the loop trains."""

    trainable: nn.Module
    """All of its parameters are trained; float32, on the host until the loop moves it."""
    process: dosde.Process
    noise_shapes: tuple[tuple[int, ...], ...]
    """Of the tensors of unit normal noise that a sample needs, `noise0`, `noise1`, ... of a batch."""

    def samples(self, samples: Dataset[Batch], rank: int, world: int) -> Dataset[Batch]:
        """What is loaded, by (epoch, index), of a data set of hr and lr."""

    def place(self, device: torch.device) -> None:
        """Whatever is not trained goes to its device."""

    def losses(self, network: Network, batch: Batch) -> Tensor:
        """(batch,), of hr, lr (or what `samples` made of them), noise0, ..., and part: a uniform number each, on the host."""

    def upscaled(self, network: Network, lr: Tensor, steps: int, order: int, noise: torch.Generator, how: Any) -> Tensor:
        """The picture (1, 3, height, width) in [0, 1] of one."""

    def save(self, tensors: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str]) -> Path:
        """Writes the result, these being the weights, and returns where it is."""
