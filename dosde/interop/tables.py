"""The tables of betas that diffusers' configs name."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dosde import check
from dosde.check import Refused, RefusedType


def listed(name: str, values: Sequence[float], T: int) -> Tensor:
    """T numbers of a config, as a float64 tensor."""
    if not isinstance(values, list | tuple):
        raise RefusedType(name, values, f"a list of {T} numbers is needed", check.form(values))
    if len(values) != T:
        raise Refused(name, len(values), "as many are needed", f"{len(values)} values with num_train_timesteps = {T}")
    return check.values(name, values, f"a list of {T} numbers")


def betas(T: int, first: float, last: float, name: str, trained: Sequence[float] | None) -> Tensor:
    """The betas of a config, float64.

    Args:
        T: num_train_timesteps.
        first: beta_start.
        last: beta_end.
        name: beta_schedule.
        trained: trained_betas, instead of these.
    """
    if trained is not None:
        table = listed("trained_betas", trained, T)
        inside = (table > 0) & (table < 1)
        if not inside.all():
            i = int((~inside).nonzero()[0])
            raise Refused("trained_betas", table[i], "numbers between 0 and 1 are needed", f"{table[i]:g} at index {i}")
        return table
    check.one_of("beta_schedule", name, ("scaled_linear", "linear", "squaredcos_cap_v2"))
    if name == "squaredcos_cap_v2":
        alphas = torch.cos((torch.arange(T + 1, dtype=torch.float64, device="cpu") / T + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - alphas[1:] / alphas[:-1]).clamp(max=0.999)
    if not 0 < first < last < 1:
        raise Refused("beta_start, beta_end", first, "0 < beta_start < beta_end < 1 is needed", f"{first}, {last}")
    if name == "linear":
        return torch.linspace(first, last, T, dtype=torch.float64, device="cpu")
    return torch.linspace(math.sqrt(first), math.sqrt(last), T, dtype=torch.float64, device="cpu") ** 2
