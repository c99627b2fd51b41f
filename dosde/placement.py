"""The dtype that a solve computes in, and plans on its device."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import check
from .step import Coefficient, Step


def state_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the state: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def placed(plan: Sequence[Step], like: Tensor) -> Sequence[Step]:
    """A plan whose fields of coefficients are on the device and in the dtype of the state.

    Raises:
        ValueError: for a field that does not broadcast against the state.
    """
    last = plan[-1]
    shapes = {tuple(c.shape) for c in (last.keep, last.hat, *last.new) if isinstance(c, Tensor)}
    for shape in shapes:
        check.field("method", "its scale, or eta, is a field", shape, like)

    def place(c: Coefficient) -> Coefficient:
        return c.to(like) if isinstance(c, Tensor) else c

    def moved(step: Step) -> Step:
        new = tuple(map(place, step.new))
        return replace(step, keep=place(step.keep), hat=place(step.hat), noise=place(step.noise), new=new)

    return [moved(step) for step in plan] if shapes else plan
