"""Networks for the tests of training, small enough to be trained in them."""

import os
import signal
import time

import torch
from torch import nn


class Network(nn.Module):
    """forward(x, x_hat0, t) -> x0; dropout, so that it draws random numbers of its own."""

    def __init__(self, width=8, dropout=0.1):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(7, width, 3, padding=1), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, x, x_hat0, t):
        assert t.shape == (len(x),)
        time.sleep(float(os.environ.get("TRAINING_SLEEP", "0")))  # so that a process can be killed in between
        assert t.dtype == x.dtype
        return x_hat0 + self.net(torch.cat([x, x_hat0, t[:, None, None, None].expand_as(x[:, :1])], 1))


class Failing(Network):
    """NaN from its sixth training step on."""

    calls = 0

    def forward(self, x, x_hat0, t):
        self.calls += self.training
        return super().forward(x, x_hat0, t) * (float("nan") if self.calls > 5 else 1)


class Signalled(Network):
    """Sends signals to its process: TRAINING_SIGNALS = "SIGINT SIGINT" of TRAINING_RANK, at its fourth training step, or,
    where TRAINING_WHEN is "validation", at its first pass of a validation (one before tries it out)."""

    steps = passes = 0

    def forward(self, x, x_hat0, t):
        self.steps += self.training
        self.passes += not self.training and x.shape[-1] == 32
        now = self.passes == 2 if os.environ.get("TRAINING_WHEN") == "validation" else self.training and self.steps == 4
        if now and os.environ.get("TRAINING_RANK", "0") == os.environ.get("RANK", "0"):
            for name in os.environ.get("TRAINING_SIGNALS", "").split():
                os.kill(os.getpid(), signal.Signals[name])
        return super().forward(x, x_hat0, t)


class Unused(Network):
    """With weights that no output depends on, and a part that is called like one of a checkpoint."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.model = nn.Linear(2, 2)


class Deaf(nn.Module):
    """Has not the arguments that are asked for."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x


def save(network, folder):
    torch.save(network.state_dict(), folder / "own.pth")
    return folder / "own.pth"


def coarse(hr, generator):
    """A degradation: every fourth pixel, with noise."""
    return hr[:, ::4, ::4] + 0.1 * torch.randn(3, *(side // 4 for side in hr.shape[1:]), generator=generator)
