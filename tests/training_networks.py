"""Networks for the tests of training, small enough to be trained in them."""

import os
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
    """NaN from its sixth forward pass on."""

    calls = 0

    def forward(self, x, x_hat0, t):
        self.calls += 1
        return super().forward(x, x_hat0, t) * (float("nan") if self.calls > 5 else 1)


def save(network, folder):
    torch.save(network.state_dict(), folder / "own.pth")
    return folder / "own.pth"
