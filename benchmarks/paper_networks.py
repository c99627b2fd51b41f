"""What benchmarks/paper_tables.py trains besides `backbones.embedded.Network`: networks that see x_t and t alone.

Rectified flow and cold diffusion have no noise. A network that saw x_hat0 beside x_t = (1 - t) x0 + t x_hat0 would only have to
solve for x0 while it trains; from the first step, where x_t = x_hat0, on it would know no more than the mean.
"""

from typing import Any

import torch
from torch import Tensor

from backbones.embedded import Config, Network, source
from backbones.training import pixels
from backbones.training.task import Batch
from backbones.training.task import Network as Trained
from dosde import cold

STD = 1.75
"""Pixels: `cold.blur` of this std is nearest to what 4x bicubic resizing down and up makes (tests/test_paper_tables.py)."""


class Velocity(Network):
    """(x, x_hat0, t) -> x_hat0 - x0, of x and t."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Config(**options))

    def forward(self, x: Tensor, x_hat0: Tensor, t: float | Tensor) -> Tensor:
        """The prediction type flow."""
        theta = torch.as_tensor(t, dtype=torch.float64, device="cpu").reshape(-1, 1, 1, 1)
        return -self.config.scale * self._predicted(torch.zeros_like(x), x, theta)


class Sharpener(Velocity):
    """(x, x_hat0, t) -> x0, of x and t."""

    def forward(self, x: Tensor, x_hat0: Tensor, t: float | Tensor) -> Tensor:
        """The prediction type x0."""
        return x - super().forward(x, x_hat0, t)


class Cold(pixels.Embedded):
    """Cold diffusion with a Gaussian blur: x0 from D(x0, t), t uniform in (0, 1], by the mean square."""

    degrade = staticmethod(cold.blur(STD))

    def losses(self, network: Trained, batch: Batch) -> Tensor:
        x0, t = 2 * batch["hr"] - 1, 1 - batch["part"]
        x = self.degrade(x0, t)
        value: Tensor = network(x, x, t.to(x))
        return ((value - x0) ** 2).flatten(1).mean(1)

    def upscaled(self, network: Trained, lr: Tensor, steps: int, order: int, noise: object, solver: object) -> Tensor:
        x_hat0 = source(lr, [self.scale * side for side in lr.shape[-2:]])
        return ((cold.solve(network, x_hat0, self.degrade, steps) + 1) / 2).clamp(0, 1)
