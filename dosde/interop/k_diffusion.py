"""k-diffusion, both ways, without importing it. Its samplers know one process, y = x0 + sigma eps; ours all become it by

    y = (x - b x_hat0) / a,      sigma := lam

`as_denoiser` lets any of its samplers (and of whatever else takes denoised = f(y, sigma)) run a domain-shift model.
`sample_dosde` is a sampler of ours under its signature, for models of its kind.
"""

import functools
import math
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dosde import check
from dosde.check import Refused, RefusedType
from dosde.expansion import log_lam
from dosde.method import adams, using
from dosde.noise import Independent
from dosde.prediction import Denoiser
from dosde.process import Process
from dosde.schedule import ve
from dosde.shift import none
from dosde.solve import Model, solve
from dosde.step import Coefficient, Method

_in_log_lam = using(adams, variable=log_lam)  # their grids end with a long step to 0, of first order in this


def as_denoiser(model: Model, x_hat0: Tensor, process: Process | None = None) -> Callable[..., Tensor]:
    """A model of ours, for one source, as a denoiser of k-diffusion: f(y, sigma, **extra_args) -> x_theta, y like x_hat0.

    sigma has shape (batch,) and one value: lam at t = process.time(sigma). The model is called there, at x = a y + b x_hat0,
    with extra_args as keywords. A solve of ours that starts at time t starts in y at x_hat0 + sigma z:

        times = torch.linspace(0.9 * process.t1, 0, 11)             # lam is infinite where a = 0, so below t1
        sigmas = process(times).lam
        x0 = sample_dpmpp_2m(as_denoiser(model, x_hat0, process), x_hat0 + sigmas[0] * z, sigmas)

    As in `solve`, the computation is in float32 at least, whatever the dtype of y and of x_hat0.

    Args:
        model: (x, x_hat0, t) -> x_theta.
        x_hat0: the source, (batch, ...).
        process: needed if the model has none.

    Raises:
        ValueError: for a field eta, whose lam is not one number, and for a sigma that lam does not take.
        TypeError: for an argument of the wrong type.

    >>> import torch, dosde
    >>> process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
    >>> x_hat0 = torch.zeros(1, 3, 16, 16)
    >>> f = as_denoiser(lambda x, x_hat0, t: x_hat0 + t, x_hat0, process)
    >>> print(f"{f(x_hat0, torch.tensor([1.387])).mean():.4f}")  # lam is 1.387 at t = 0.25
    0.2500
    """
    check.function("model", model, "a function (x, x_hat0, t) -> x_theta is needed", check.form(model))
    process = check.process(model, process, Process)
    check.source(x_hat0, process.field_shape)
    if process.field_shape:
        raise Refused(
            "process", process.field_shape, "one lam for all of x is needed", f"eta is a field of shape {process.field_shape}"
        )
    most = float(process(process.t1).lam)

    @functools.lru_cache(maxsize=4096)
    def place(sigma: float) -> tuple[Tensor, float, float]:
        """t, a and b."""
        if most < sigma <= most * (1 + 1e-6):  # the largest lam, in float32
            sigma = most
        try:
            t = process.time(sigma)
        except Refused as error:
            raise Refused("sigma", sigma, error.needed, f"{sigma:g}, as lam: {error.shown}") from None
        m = process(t)
        return t, m.a.item(), m.b.item()

    def f(y: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        if not isinstance(y, Tensor) or y.shape != x_hat0.shape or not y.is_floating_point():
            raise Refused("y", y, f"a floating tensor of shape {tuple(x_hat0.shape)}, that of x_hat0, is needed", check.form(y))
        t, a, b = place(_one_value(sigma, len(y)))
        dtype = torch.promote_types(torch.promote_types(y.dtype, x_hat0.dtype), torch.float32)
        x = a * y.to(dtype) + b * x_hat0.to(dtype)
        if not isinstance(model, Denoiser):  # which casts for its network and converts in the dtype of x
            x = x.to(x_hat0.dtype)
        x_theta = model(x, x_hat0, t, **extra_args)
        if not isinstance(x_theta, Tensor) or x_theta.shape != y.shape or not x_theta.is_floating_point():
            what = f"{check.form(x_theta)} at sigma = {sigma[0]:g}, t = {t:g}"
            raise Refused("model", x_theta, f"a floating tensor of shape {tuple(y.shape)} is needed", f"returned {what}")
        return x_theta.to(y.dtype)

    return f


def sample_dosde(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    order: int | None = None,
    method: Method = _in_log_lam,
    noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """A sampler for k-diffusion: from the state x at sigmas[0] to sigmas[-1], which may be 0.

    Each step makes one call of model(x, sigma, **extra_args). It is `solve` on x = x0 + sigma eps (a = 1, b = 0) with
    t = sigma/sigmas[0], which its messages name.

    Args:
        model: (x, sigma, **extra_args) -> denoised.
        x: x0 + sigmas[0] noise, whatever x0 the caller started from.
        sigmas: decreasing, 1-D. The model gets each as a tensor of shape (batch,).
        extra_args: keywords for the model.
        callback: gets a dict of x, i, sigma, sigma_hat (the same) and denoised after each call.
        disable: True: no progress bar; False: one; None: one on a terminal.
        order: as in `solve`.
        method: as in `solve`. Default: the SDE, expanded in log lam.
        noise_sampler: (sigma, sigma_next) -> unit normal noise. Default: torch.randn_like. An ODE draws none.

    Returns:
        The last state in the dtype of x.

    Raises:
        ValueError: as in `solve`.
        TypeError: as in `solve`.

    >>> import torch
    >>> sigmas = torch.tensor([10.0, 1.0, 0.1, 0.0])
    >>> x0 = sample_dosde(lambda x, sigma: x / (1 + sigma**2), 10 * torch.randn(1, 2), sigmas)
    """
    levels = _checked_levels(sigmas)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise RefusedType("x", x, "a floating tensor is needed", check.form(x))
    if x.ndim < 1 or x.numel() == 0 or not bool(x.isfinite().all()):
        raise Refused("x", x, "a batch of at least one element, all finite, is needed", check.form(x))
    for name, value in (("model", model), ("callback", callback), ("noise_sampler", noise_sampler)):
        if not (callable(value) or (value is None and name != "model")):
            raise RefusedType(name, value, "a function is needed", check.form(value))
    largest, ones = levels[0], x.new_ones(len(x))
    independent = Independent()

    def at(sigma: float) -> int:
        """The index of the level that the solver, in float64, calls sigma."""
        return min(range(len(levels)), key=lambda i: abs(levels[i] - sigma))

    def denoise(x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
        return model(x, sigmas[at(largest * float(t))] * ones, **(extra_args or {}))

    def draw(u: Coefficient, u_next: Coefficient, like: Tensor) -> Tensor:
        assert isinstance(u, float)
        if u == 0:
            return torch.zeros_like(like)  # the start is x_hat0 + sigma z, and x_hat0 is x
        if noise_sampler is None:
            return independent(u, u_next, like)
        i = at(1 / math.sqrt(u))
        z = noise_sampler(sigmas[i], sigmas[i + 1])
        if not isinstance(z, Tensor) or z.shape != like.shape or not z.is_floating_point():
            raise Refused(
                "noise_sampler", z, f"a floating tensor of shape {tuple(like.shape)} is needed", f"returned {check.form(z)}"
            )
        return z

    def report(i: int, t: Tensor, state: Tensor, x_theta: Tensor) -> None:
        if callback is not None:
            callback({"x": state.to(x.dtype), "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": x_theta})

    return solve(
        denoise,
        x,
        len(levels) - 1,
        order,
        process=Process(ve(lambda t: largest * t), none()),
        method=method,
        grid=[level / largest for level in levels],
        noise=draw,
        callback=report,
        progress=sys.stderr.isatty() if disable is None else not disable,
    )


def _one_value(sigma: Tensor, batch: int) -> float:
    """Errors: ValueError unless sigma is (batch,) and one number, for t is one."""
    if not isinstance(sigma, Tensor) or sigma.shape != (batch,):
        raise Refused("sigma", sigma, f"a tensor of shape ({batch},) is needed", check.form(sigma))
    values: list[float] = sigma.tolist()
    if any(value != values[0] for value in values):
        raise Refused("sigma", values, "one value for the whole batch is needed")
    return values[0]


def _checked_levels(sigmas: Tensor) -> list[float]:
    """sigmas as float64 numbers. Errors: TypeError, ValueError."""
    if not isinstance(sigmas, Tensor) or not sigmas.is_floating_point():
        raise RefusedType("sigmas", sigmas, "a 1-D floating tensor is needed", check.form(sigmas))
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise Refused("sigmas", tuple(sigmas.shape), "a 1-D tensor of at least two is needed", f"shape {tuple(sigmas.shape)}")
    levels: list[float] = sigmas.tolist()
    if not (levels[-1] >= 0 and levels[0] < math.inf and all(s > t for s, t in pairwise(levels))):
        raise Refused("sigmas", levels, "they must decrease, from a finite one to one >= 0")
    return levels
