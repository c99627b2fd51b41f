"""A denoiser of noise alone as a model on any process: k-diffusion's, EDM's, azula's and deepinv's all are D(y, sigma) -> x0.

Every process becomes theirs by y = (x - b x_hat0) / a, sigma := lam, so that

    x_theta(x, x_hat0, t) = D((x - b x_hat0) / a, lam)

At lam = infinity, and above the largest sigma that D was trained for, y is taken at that sigma about x_hat0,

    y = x_hat0 + sigma_max (x - (a + b) x_hat0) / sigma

which is the start of a solve from the source. At lam = 0 the state is x0 itself, and D is not called.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dosde import check
from dosde.check import Refused, RefusedType
from dosde.process import Process
from dosde.recipe import ByValue

ENDLESS = 1e15  # what lam = infinity is for a denoiser that names no largest sigma


class FromDenoiser(ByValue):
    """The model that `from_denoiser` returns."""

    def __init__(self, denoiser: Callable[..., Any], process: Process, kwargs: Mapping[str, Any]) -> None:
        self.denoiser, self.process, self.kwargs = denoiser, process, dict(kwargs)
        most = getattr(denoiser, "sigma_max", None)
        most = math.inf if most is None or callable(most) else float(most)
        self.sigma_max = min(most, ENDLESS)

    def __repr__(self) -> str:
        return f"dosde.interop.from_denoiser({check.describe(self.denoiser)}, {self.process!r})"

    def __call__(self, x: Tensor, x_hat0: Tensor, t: Tensor, **model_kwargs: Any) -> Tensor:
        m = self.process(t)
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, source = x.to(dtype), x_hat0.to(dtype)
        lam = float(m.lam) if m.a > 0 else math.inf
        if lam == 0:
            return (x - m.b.item() * source) / m.a.item()
        sigma = min(lam, self.sigma_max)
        if sigma < lam:
            y = source + sigma / m.sigma.item() * (x - m.alpha.item() * source)
        else:
            y = (x - m.b.item() * source) / m.a.item()
        return called(self.denoiser, y, sigma, {**self.kwargs, **model_kwargs}).to(dtype)


def from_denoiser(denoiser: Callable[..., Any], process: Process, **kwargs: Any) -> FromDenoiser:
    """A denoiser of k-diffusion, EDM, azula or deepinv as a model on any process, for `dosde.solve`.

    It must have been trained on plain noise: this is the change of variables above, and no approximation. The largest sigma
    that it was trained for is its attribute `sigma_max`, if it has one.

    Args:
        denoiser: D(y, sigma, **kwargs) -> x0, with sigma of shape (batch,). It may return a tensor, a tuple whose first entry
            is one, a dict with "sample", or an object with `.sample` or `.mean`. A module gets y in the dtype and on the device
            of its parameters.
        process: the process to solve on.
        kwargs: further keywords of each call.

    Raises:
        ValueError: for a process whose eta or sigma is a field, or without noise.
        TypeError: for an argument of the wrong type.

    >>> import torch, dosde
    >>> process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
    >>> model = from_denoiser(lambda y, sigma: y / (1 + sigma.reshape(-1, 1, 1, 1) ** 2), process)
    >>> dosde.solve(model, torch.zeros(1, 3, 8, 8), steps=4).shape
    torch.Size([1, 3, 8, 8])
    """
    check.function("denoiser", denoiser, "a function (y, sigma, **kwargs) -> x0 is needed", check.form(denoiser))
    if not isinstance(process, Process):
        raise RefusedType("process", process, "a dosde.Process is needed")
    if process.field_shape:
        raise Refused("process", process, "one lam for all of x is needed", f"eta or sigma is a field {process.field_shape}")
    if process.noise_free:
        raise Refused("process", process, "a process with noise is needed", "sigma = 0")
    return FromDenoiser(denoiser, process, kwargs)


def called(network: Callable[..., Any], y: Tensor, time: float | Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """What a network returns for y and a time, or a sigma, of all samples or of each; in its dtype, on its device, and back.

    Raises:
        ValueError: for an output of another shape.
        TypeError: for an output that holds no tensor.
    """
    own = next((p for p in network.parameters() if p.is_floating_point()), None) if isinstance(network, nn.Module) else None
    at = y if own is None else y.to(own)
    times = time.to(at) if isinstance(time, Tensor) else torch.full((len(at),), time, dtype=at.dtype, device=at.device)
    value: object = network(at, times, **kwargs)
    found = tensor_in(value)
    if found is None:
        raise RefusedType("denoiser", value, "a tensor is needed", f"returned {check.form(value)}")
    if found.shape != y.shape:
        shown = f"returned shape {tuple(found.shape)}"
        raise Refused("denoiser", found, f"shape {tuple(y.shape)} is needed", shown)
    return found.to(y.device)


def tensor_in(value: object) -> Tensor | None:
    """The tensor in the output of a network: itself, the first of a tuple, "sample" of a dict, .sample or .mean."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list) and value:
        return tensor_in(value[0])
    if isinstance(value, Mapping):
        return tensor_in(value.get("sample"))
    for name in ("sample", "mean"):
        held = getattr(value, name, None)
        if isinstance(held, Tensor):
            return held
    return None
