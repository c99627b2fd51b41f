"""Discretisations with a name."""

import math
from typing import Any

import torch
from torch import Tensor

from . import check, grid, method, schedule, shift
from . import process as _process
from .check import Refused
from .process import Marginal, Process


@check.typed
def dossr(steps: int = 5, t1: float = 0.5) -> tuple[Process, Tensor]:
    """The released DoSSR discretisation: (process, times) for solve(..., process=process, grid=times).

    A table of T = 1000 steps with sqrt(beta) linear from .00085 to .012; T1 = floor(t1 T) etas by a cosine over s = .001 ..
    .999, 1 after: eta reaches neither 0 nor 1 on the grid. The grid has indices T1 - 1 to 0, by a float stride that
    is rounded half to even: it ends at index 0, sigma = .029, without a final denoise.
    """
    T = 1000
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), T, dtype=torch.float64, device="cpu") ** 2
    times = dossr_times(steps, t1, T)
    return Process(schedule.from_alphas_cumprod(torch.cumprod(1 - betas, 0)), shift.from_table(dossr_etas(t1, T))), times


@check.typed
def dossr_etas(t1: float = 0.5, T: int = 1000) -> Tensor:
    """The shifting sequence of `dossr` on a table of T steps."""
    T1 = _below(t1, check.count("T", T))
    etas = torch.ones(T, dtype=torch.float64, device="cpu")
    etas[:T1] = (1 - torch.cos(math.pi * torch.linspace(0.001, 0.999, T1, dtype=torch.float64, device="cpu"))) / 2
    return etas


@check.typed
def dossr_times(steps: int, t1: float = 0.5, T: int = 1000) -> Tensor:
    """The times of `dossr` on a table of T steps."""
    if steps < 1:
        raise Refused("steps", steps, "a positive integer is needed")
    T1 = _below(t1, T)
    if steps >= T1:
        raise Refused("steps", steps, f"fewer than the {T1} indices below t1 are needed")
    indices, index = [0], 0.0
    for _ in range(steps):
        index += (T1 - 1) / steps
        indices.append(round(index))
    return (torch.tensor(indices[::-1], dtype=torch.float64, device="cpu") + 1) / T


def _below(t1: float, T: int) -> int:
    """How many of T indices lie below t1."""
    if not 0 < t1 <= 1:
        raise Refused("t1", t1, "a time in (0, 1] is needed")
    return math.floor(t1 * T + 1e-9)


RESSHIFT_ETA_MIN = {15: 0.02**2, 4: 0.1**2}  # T and eta_min


@check.typed
def resshift(steps: int = 15, T: int = 15) -> tuple[Process, Tensor]:
    """The released ResShift: (process, times) for solve(..., order=1, process=process, grid=times, method=method.resshift).

    Fewer steps than T are respaced as in its code (`grid.respaced`). For other settings see `process.resshift`.

    Args:
        steps: 2 to T.
        T: 15, its first release, or 4, the later one.
    """
    if T not in RESSHIFT_ETA_MIN:
        raise Refused("T", T, "15 or 4, the released ones, is needed (process.resshift has others)")
    process = _process.resshift(T, eta_min=RESSHIFT_ETA_MIN[T])
    return process, grid.respaced(T)(process, steps)


@check.typed
def resshift_input_scale(m: Marginal, latent: bool = True) -> Tensor:
    """The factor of x at the input of ResShift's networks: 1/sqrt(sigma^2 + 1) for latents, 1/(3 sigma + 1) for pixels.

    A latent has std 1, and a noisy pixel of [-1, 1] has the range 3 sigma + 1.
    """
    return 1 / torch.sqrt(m.sigma**2 + 1) if latent else 1 / (3 * m.sigma + 1)


@check.typed
def few_step(scale: float | Tensor, tau: float = 0.0) -> dict[str, Any]:
    """Our recommendation for 2 to 20 calls, as keywords for `solve`: solve(model, x_hat0, steps=4, **few_step(scale)).

    It is `method.matched(scale, tau)` on `grid.few_step(scale)`, of any order, 3 by default. One step returns the mean with
    white noise of 0.88 of the scale, since one call tells no structure.

    Args:
        scale: std of x0 given x_hat0 per element, a positive number or a field that broadcasts against x; std(x0 - x_hat0)
            serves. docs/few_steps.md has the cost of a wrong one.
        tau: the noise. 0, the default, is the ODE; 1 the reverse SDE.

    >>> import torch, dosde
    >>> process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
    >>> model = lambda x, x_hat0, t: 0.9 * x_hat0
    >>> x0 = dosde.solve(model, torch.ones(1, 3, 8, 8), steps=4, process=process, **few_step(scale=0.2))
    """
    return {"method": method.matched(scale, tau), "grid": grid.few_step(scale)}
