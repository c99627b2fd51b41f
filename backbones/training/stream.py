"""What a training step sees: which samples, with which noise and times, in which process.

Everything random in step k is a function of (seed, k, number of the sample in the step). Neither the number of processes, nor
of workers, nor a resume changes it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .data import Order
from .task import Batch

_NOISE = 2  # stream of random numbers; `data` has 0 and 1, `validation` has 3


@dataclass(frozen=True)
class Share(Sampler[list[tuple[int, int, int]]]):
    """The keys (epoch, index, number of the sample) of each part of each step, for one of several processes.

    Args:
        length: samples of an epoch.
        seed: the seed of the order.
        batch: samples of a step, on all processes together.
        accumulate: parts in which each process computes its share of a step.
        rank: the number of this process.
        world: the number of processes.
        start: the first step.
        stop: the step after the last one.
    """

    length: int
    seed: int
    batch: int
    accumulate: int
    rank: int
    world: int
    start: int
    stop: int

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order = iter(Order(self.length, self.seed, self.start * self.batch, self.stop * self.batch))
        size = self.batch // (self.world * self.accumulate)
        for step in range(self.start, self.stop):
            keys = [(*key, step * self.batch + i) for i, key in enumerate(islice(order, self.batch))]
            for part in range(self.accumulate):
                first = (part * self.world + self.rank) * size
                yield keys[first : first + size]

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate


@dataclass(frozen=True)
class Stream(Dataset[Batch]):
    """Samples with their noise, and with `part`, the uniform number from which their time follows.

    Args:
        samples: a data set of hr and lr, by (epoch, index).
        seed: the seed of noise and times.
        noise_shapes: the shapes of `noise0`, `noise1`, ...
    """

    samples: Dataset[Batch]
    seed: int
    noise_shapes: tuple[tuple[int, ...], ...]

    def __getitem__(self, key: tuple[int, int, int]) -> Batch:
        epoch, index, number = key
        sample = dict(self.samples[epoch, index])
        drawn = np.random.default_rng([self.seed, _NOISE, number])
        sample["part"] = torch.tensor(drawn.random(), dtype=torch.float64)
        generator = torch.Generator().manual_seed(int(drawn.integers(2**63)))
        for i, shape in enumerate(self.noise_shapes):
            sample[f"noise{i}"] = torch.randn(shape, generator=generator)
        return sample


def placed(batch: Mapping[str, Tensor], device: torch.device) -> Batch:
    """A batch on a device, except `part`: times are computed on the host."""
    return {name: value if name == "part" else value.to(device, non_blocking=True) for name, value in batch.items()}


def seed_of(*numbers: int) -> int:
    """A seed for torch from (seed, step, part, rank), for networks that draw random numbers."""
    return int(np.random.default_rng([_NOISE, *numbers]).integers(2**63))
