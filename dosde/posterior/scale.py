"""The scale that `presets.few_step` wants of a posterior, from its denoiser."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dosde import check
from dosde.check import Refused, require
from dosde.interop.denoiser import called
from dosde.noise import Noise, as_noise


@check.typed
@torch.no_grad()
def scale(
    denoiser: Callable[..., Any],
    x_hat0: Tensor,
    sigma: float,
    probes: int = 8,
    noise: Noise | torch.Generator | Sequence[torch.Generator] | None = None,
) -> float:
    """The std of x0 per element, for `presets.few_step`: by Tweedie's second formula and random probes of its trace,

        scale^2 = trace(sigma^2 J) / d,    sigma trace(J) = mean over v of v (D(x_hat0 + sigma v) - D(x_hat0 - sigma v)) / 2

    with signs v at random. For Gaussian data of variance c it is the mean of c sigma^2 / (c + sigma^2): sigma should be ten
    times the std or more, but no sigma that the denoiser was not trained for. Where nothing is known of the denoiser, the
    std of samples about their mean is the scale, of a first solve with a guess.

    Args:
        denoiser: (y, sigma, **kwargs) -> x0 of the posterior, as the methods here return.
        x_hat0: about where; the source of the solve, (batch, ...).
        sigma: the noise level of the probes.
        probes: each is two calls. The error is of 1 part in sqrt(probes d) and less.
        noise: whose signs are taken, as in `dosde.solve`.

    Returns:
        One number for the whole batch.

    >>> round(scale(lambda y, sigma: 0.04 * y / (0.04 + sigma.reshape(-1, 1) ** 2), torch.zeros(1, 100), sigma=5.0), 3)
    0.2
    """
    check.source(x_hat0)
    require(0 < sigma < math.inf, "sigma", sigma, "a positive number is needed")
    draw = as_noise(noise)
    y = x_hat0.to(torch.promote_types(x_hat0.dtype, torch.float32))
    total = 0.0
    for _ in range(check.count("probes", probes)):
        v = check.noise(draw(0.0, 0.0, y), y).sign()
        high, low = (called(denoiser, y + sign * sigma * v, float(sigma), {}) for sign in (1, -1))
        total += float(((high.double() - low.double()) * v).mean()) * sigma / 2 / probes
    if not 0 < total < math.inf:
        needed = "one whose output follows its input is needed, with a smaller sigma it may"
        raise Refused("denoiser", denoiser, needed, f"has a variance of {total:g} at sigma = {sigma:g}")
    return math.sqrt(total)
