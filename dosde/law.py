"""What a plan does, told by its coefficients alone: its law on Gaussian data, and how far errors of a model reach.

Along a direction in which x0 given x_hat0 is N(mu, w^2), the exact model is affine in the state:

    x_theta = mu + gain (x - a mu - b x_hat0),      gain = a w^2 / (a^2 w^2 + sigma^2)

So the result is affine in mu, in the draws of noise z_k, and in the errors e_i that a model adds to its outputs,

    x = m mu + ... x_hat0 + sum_k n_k z_k + sum_i s_i e_i

where the right law at the last time is N(a mu + b x_hat0, a^2 w^2 + sigma^2). So |n| / sqrt(a^2 w^2 + sigma^2) and m / a should
be 1. s_i / a is the sensitivity to step i. As w goes to 0 the model does not look at the state, and the s_i are sums of
products of keep and new: nothing but the plan is in them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import check
from .check import RefusedType, require
from .recipe import ByValue
from .step import Plan


@dataclass(frozen=True, eq=False, repr=False)
class Law(ByValue):
    """The law of the result of a plan on Gaussian data. Where eta is a field, its dimensions come last.

    Args:
        plan: the plan.
        scale: std w of x0 given x_hat0, a number or a 1-D table of widths.
        mean: the mean of the result over the right one, in the shape of scale. Below 1 it stays near x_hat0.
        std: the std of the result over the right one, in the shape of scale.
        sensitivity: the error of the result for an error of 1 in the output of a step, (steps, *shape of scale).
    """

    plan: Plan
    scale: Tensor
    mean: Tensor
    std: Tensor
    sensitivity: Tensor

    @property
    def amplification(self) -> Tensor:
        """The error of the result for errors of 1 in all outputs, with the worst signs: sum |sensitivity|."""
        return self.sensitivity.abs().sum(0)

    def __str__(self) -> str:
        def line(*cells: str) -> str:
            return "  ".join(cell.rjust(width) for cell, width in zip(cells, (12, 12, 12, 18), strict=False))

        rows = zip(*(_rows(v, self.scale) for v in (self.scale, self.std, self.mean, self.amplification)), strict=True)
        widths = [line(f"{float(w):.4g}", *map(_spread, (std, mean, most))) for w, std, mean, most in rows]
        per_step = self.sensitivity.reshape(len(self.plan), -1)
        steps = [line(f"{s.t:.4f}", f"{s.t_next:.4f}", _spread(e)) for s, e in zip(self.plan, per_step, strict=True)]
        return "\n".join(
            [
                f"{len(self.plan)} steps on Gaussian data; std and mean of the result are relative to the right ones",
                line("std of x0", "std", "mean", "error of all steps"),
                *widths,
                "the error of the result for an error of 1 in the output of one step",
                line("t", "t_next", "error"),
                *steps,
            ]
        )


@torch.no_grad()
def law(plan: Plan, scale: float | Tensor | Sequence[float]) -> Law:
    """What a plan does to Gaussian data of this std.

    The start, (a + b) x_hat0 + sigma z, is in it, and so is what the grid leaves above t = 0. The cost is that of
    steps^2 numbers for each width and element of a field.

    Args:
        plan: what `dosde.plan` returns.
        scale: std of x0 given x_hat0, a positive number or a 1-D table of widths.

    Raises:
        ValueError: for a scale that is not positive, or a process without noise.
        TypeError: for a list of steps, which does not know its process.

    >>> import dosde
    >>> process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
    >>> print(law(dosde.plan(process, steps=10), [0.1, 0.4]))  # doctest: +ELLIPSIS
    10 steps on Gaussian data; std and mean of the result are relative to the right ones
       std of x0           std          mean  error of all steps
             0.1         1.055             1               6.944
             0.4         1.417             1                4.74
    the error of the result for an error of 1 in the output of one step
    ...
    """
    if not isinstance(plan, Plan):
        raise RefusedType("plan", plan, "what dosde.plan returns is needed", check.form(plan))
    widths = check.scale(scale)
    require(widths.ndim <= 1, "scale", scale, "a number or a 1-D table of widths is needed", f"shape {tuple(widths.shape)}")
    require(any(bool(m.sigma.any()) for m in plan.marginals), "plan", plan, "a process with noise is needed", "sigma = 0")
    fields = max((m.a.ndim for m in plan.marginals), default=0)
    fields = max([fields, *(c.ndim for step in plan for c in (step.keep, *step.new) if isinstance(c, Tensor))])
    w2 = widths.reshape((*widths.shape, *[1] * fields)) ** 2
    steps, zero = len(plan), torch.zeros((), dtype=torch.float64, device="cpu")

    def gain(k: int) -> Tensor:
        a, sigma = plan.marginals[k].a, plan.marginals[k].sigma
        total = a**2 * w2 + sigma**2
        return torch.where(total > 0, a * w2 / torch.where(total > 0, total, 1.0), 0.0)

    # Rows of responses: to mu, to each draw, to each error. Of x_hat0 nothing is asked, so it is 0.
    response = zero.expand(2 + 2 * steps, *gain(0).shape).clone()
    response[1] = plan.marginals[0].sigma
    past: deque[Tensor] = deque(maxlen=max(len(step.new) for step in plan))
    for k, step in enumerate(plan):
        g = gain(k)
        output = g * response
        output[0] += 1 - g * plan.marginals[k].a
        output[2 + steps + k] += 1
        past.appendleft(output)
        response = step.keep * response
        for x_theta, weight in zip(past, step.new, strict=False):
            response = response + weight * x_theta
        response[2 + k] += torch.as_tensor(step.noise, dtype=torch.float64, device="cpu")
    last = plan.marginals[-1]
    right = torch.sqrt(last.a**2 * w2 + last.sigma**2)
    draws, errors = response[1 : 2 + steps], response[2 + steps :]
    return Law(plan, widths, response[0] / last.a, draws.square().sum(0).sqrt() / right, errors / last.a)


def sensitivity(plan: Plan) -> Tensor:
    """The error of the result for an error of 1 in the output of a step, of a model that does not look at the state.

    It is the limit of `Law.sensitivity` at scale 0, in time that grows with the number of steps alone.

    Returns:
        (steps, *field), float64.
    """
    zero = torch.zeros((), dtype=torch.float64, device="cpu")
    found: list[float | Tensor] = [0.0] * len(plan)
    kept: float | Tensor = 1.0  # of the state after a step, in the result
    for k in reversed(range(len(plan))):
        for age, weight in enumerate(plan[k].new):
            found[k - age] = found[k - age] + weight * kept
        kept = kept * plan[k].keep
    last = plan.marginals[-1].a
    if not last.ndim and not any(isinstance(v, Tensor) for v in found):
        return torch.tensor(found, dtype=torch.float64, device="cpu") / last
    shape = np.broadcast_shapes(last.shape, *(v.shape for v in found if isinstance(v, Tensor)))
    return torch.stack([torch.where(last > 0, v / torch.where(last > 0, last, 1.0) + zero, 0.0).expand(shape) for v in found])


def _rows(values: Tensor, scale: Tensor) -> Tensor:
    """(widths, elements of the field)."""
    return values.reshape(scale.numel(), -1)


def _spread(values: Tensor) -> str:
    least, most = f"{float(values.min()):.4g}", f"{float(values.max()):.4g}"
    return least if least == most else f"{least} .. {most}"
