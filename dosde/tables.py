"""Grids of networks that were trained on a table of few noise levels, such as ResShift's."""

from collections.abc import Callable

import torch
from torch import Tensor

from . import check
from .check import require
from .process import Process
from .recipe import maker

Grid = Callable[[Process, int], Tensor]
"""(process, steps) -> times."""


@maker
def respaced(T: int) -> Grid:
    """The grid of ResShift: of a table of T steps the indices floor(i T/steps), i = steps - 1 .. 0, then t = 0.

    Index 0 is always among them; the last index, T - 1, is only if steps = T.

    >>> import dosde
    >>> respaced(15)(dosde.process.resshift(), 4) * 15
    tensor([12.,  8.,  4.,  1.,  0.], dtype=torch.float64)
    """

    def grid(process: Process, steps: int) -> Tensor:
        require(2 <= steps <= T, "steps", steps, f"2 to T = {T} is needed on a respaced table")
        indices = [i * T // steps for i in reversed(range(steps))]
        return torch.tensor([*(i + 1 for i in indices), 0], dtype=torch.float64, device="cpu") / T

    return grid


@maker
def table(T: int) -> Grid:
    """For a network that was trained on a table of few noise levels, such as ResShift's: any number of steps, all within it.

    Up to T steps are at indices of the table, as even as they can be, from T - 1 to 0; then t = 0. With T steps that is the
    published grid. More steps also lie between indices, none below the first one, whose noise is the least that the network
    knows. Their lam grow by steps that are each the same factor longer, beginning with the step from the first index to t = 0:
    an expansion of high order would multiply errors if that one were long and those before it short.

    >>> import dosde
    >>> table(15)(dosde.process.resshift(), 3) * 15
    tensor([15.,  8.,  1.,  0.], dtype=torch.float64)
    """
    require(T >= 2, "T", T, "at least two steps are needed")

    def grid(process: Process, steps: int) -> Tensor:
        end = torch.zeros(1, dtype=torch.float64, device="cpu")
        if steps <= T:
            index = torch.linspace(T - 1, 0, check.count("steps", steps), dtype=torch.float64, device="cpu").round()
            return torch.cat([(index + 1) / T, end])
        least, most = float(process(1 / T).lam), float(process(1.0).lam)
        lams = _growing(steps, most / least) * least
        inner = process.time(lams[1:-1].flip(0))
        return torch.cat([end + 1, inner, end + 1 / T, end])

    return grid


def _growing(count: int, total: float) -> Tensor:
    """The sums 1, 1 + g, 1 + g + g^2, ..., with the g for which the last, of `count` summands, is the total."""
    powers = torch.arange(count, dtype=torch.float64, device="cpu")
    low, high = 0.0, max(total, 1.0)
    for _ in range(100):
        g = (low + high) / 2
        low, high = (g, high) if float((g**powers).sum()) < total else (low, g)
    return (high**powers).cumsum(0)
