"""A stationary Gaussian model of photographs: no weights, exact, and honest about what a Gaussian can know.

A photograph is a Gaussian field whose cosine modes (the DCT: a picture mirrored at its borders) are independent, with a
power law as spectrum, S(rho) = A rho^-beta, rho the frequency over the Nyquist frequency of the low-resolution picture. That
picture shows the modes it has room for, blurred by the kernel K of bicubic downsampling and under noise n (its rounding,
and the power that downsampling folds onto a mode, taken as independent):

    z = K x + n        below its Nyquist frequency; nothing above

so x | z is Gaussian, mode by mode: mean S K z / (K^2 S + n^2) and variance S n^2 / (K^2 S + n^2), and mean 0, variance S above.
A and beta are fitted to the picture itself, channel by channel, in opponent colours (which decorrelates the channels).

What it gives: the sharpening that the blur permits, and above Nyquist a texture of the right power without structure. One
model call from t1 gives the posterior mean. A trained network knows edges; this one does not.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

import dosde
from backbones import backbone
from dosde.solve import Model

from . import gaussian

# Orthonormal: grey, red against blue, green against both.
_OPPONENT = ((3**-0.5, 3**-0.5, 3**-0.5), (2**-0.5, 0.0, -(2**-0.5)), (6**-0.5, -2 * 6**-0.5, 6**-0.5))
_ROUNDING = (2 / 255) ** 2 / 12  # variance of rounding to 8 bits, in the range [-1, 1]


@dataclass(frozen=True, repr=False)
class StationaryGaussian(backbone.Loaded):
    """The backbone `gaussian`: see the module."""

    process: dosde.Process = field(
        default_factory=lambda: dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
    )

    least_scale = 1.0
    residual_scale = None  # it is of the picture

    def grid(self, process: dosde.Process, steps: int) -> Tensor:
        """Uniform in t."""
        return dosde.grid.uniform(process, steps)

    @property
    def method(self) -> dosde.method.Method:
        """The paper's."""
        return dosde.method.dos

    def encode(self, picture: Tensor, scale: float, noise: object = None) -> tuple[Tensor, gaussian.Gaussian]:
        """x_hat0, the picture interpolated by its own modes, and the posterior of x0.

        Args:
            picture: (batch, 1 or 3, height, width) in [0, 1].
            scale: at least 1.
            noise: unused; the source is not drawn.

        Raises:
            Refused: for another shape or scale.
        """
        picture = backbone.check(picture, scale)
        h, w = picture.shape[-2:]
        size = H, W = max(1, round(h * scale)), max(1, round(w * scale))
        z = gaussian.dct2(_to_opponent(2 * picture - 1)) * math.sqrt(H * W / (h * w))
        blur = _blur(_grid(h) / h)[:, None] * _blur(_grid(w) / w)
        if scale == 1:
            blur = torch.ones_like(blur)
        rounding = _ROUNDING * H * W / (h * w)
        A, beta = _fit(z, blur, rounding)

        def spectrum(y: Tensor, x: Tensor) -> Tensor:
            """S at vertical and horizontal frequencies in units of the Nyquist frequency; no mode is below half the first."""
            rho = torch.sqrt(y[:, None] ** 2 + x**2).clamp(min=0.5 / max(h, w))
            return A * rho**-beta

        y, x = _grid(h) / h, _grid(w) / w
        noise = rounding + torch.zeros_like(spectrum(y, x))
        for fold_y, fold_x in ((True, False), (False, True), (True, True)):
            q, p = 2 - y if fold_y else y, 2 - x if fold_x else x
            noise = noise + spectrum(q, p) * (_blur(q)[:, None] * _blur(p)) ** 2
        variance = spectrum(_grid(H) / h, _grid(W) / w)
        mean, source = z.new_zeros(*z.shape[:2], *size), z.new_zeros(*z.shape[:2], *size)
        source[..., :h, :w] = z
        seen = variance[..., :h, :w] * blur**2 + noise
        mean[..., :h, :w] = variance[..., :h, :w] * blur / seen * z
        variance[..., :h, :w] *= noise / seen
        # The mean of the picture itself is no sample of the power law.
        mean[..., 0, 0], variance[..., 0, 0] = z[..., 0, 0], rounding
        posterior = gaussian.Gaussian(mean, variance, gaussian.Basis(gaussian.dct2, gaussian.idct2, 2))
        return gaussian.idct2(source), posterior

    def denoiser(self, conditioning: gaussian.Gaussian) -> Model:
        """The exact x_theta of the posterior."""
        return conditioning.model(self.process)

    def decode(self, x0: Tensor, conditioning: object = None) -> Tensor:
        """Back from opponent colours and [-1, 1], clamped to [0, 1]."""
        return ((_from_opponent(x0) + 1) / 2).clamp(0, 1)


def _to_opponent(x: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else torch.einsum("oc,bchw->bohw", x.new_tensor(_OPPONENT), x)


def _from_opponent(x: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else torch.einsum("oc,bohw->bchw", x.new_tensor(_OPPONENT), x)


def _grid(n: int) -> Tensor:
    """0 to n - 1, in float32 whatever the default is."""
    return torch.arange(n, dtype=torch.float32, device="cpu")


def _blur(rho: Tensor) -> Tensor:
    """The transfer of the bicubic kernel (Keys, a = -1/2), stretched to the low-resolution grid, over Nyquist."""
    x = (torch.arange(2000, dtype=torch.float64, device="cpu") + 0.5) / 1000
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    kernel = torch.where(x < 1, near, far)
    transfer = (kernel * torch.cos(math.pi * rho.to(torch.float64)[:, None] * x)).sum(1) / kernel.sum()
    return transfer.to(torch.float32)


def _fit(z: Tensor, blur: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """A and beta of each channel, (batch, channels, 1, 1): a line through log power over log rho, in octave-thirds."""
    h, w = z.shape[-2:]
    rho = torch.sqrt((_grid(h) / h)[:, None] ** 2 + (_grid(w) / w) ** 2)
    edges = 0.8 * 2 ** (-torch.arange(13, dtype=torch.float32, device="cpu") / 3)
    logs, powers, counts = [], [], []
    for high, low in pairwise(edges):
        ring = (rho > low) & (rho <= high)
        if int(ring.sum()) >= 4:
            logs.append(rho[ring].log().mean())
            powers.append(((z[..., ring] ** 2 - rounding) / blur[ring] ** 2).mean(-1).clamp(min=rounding / 100).log())
            counts.append(float(ring.sum()))
    if len(logs) < 3:  # a picture of a few pixels: the usual exponent, and the power that it has
        power = (z**2).mean((-2, -1)).clamp(min=rounding / 100) * 0.01
        return power[..., None, None], torch.full_like(power, 2.0)[..., None, None]
    x, y, weight = torch.stack(logs), torch.stack(powers), torch.tensor(counts, dtype=torch.float32, device="cpu").sqrt()
    x_mean = (weight * x).sum() / weight.sum()
    y_mean = (weight[:, None, None] * y).sum(0) / weight.sum()
    slope = (weight[:, None, None] * (x - x_mean)[:, None, None] * (y - y_mean)).sum(0) / (weight * (x - x_mean) ** 2).sum()
    beta = (-slope).clamp(1.0, 4.0)
    return torch.exp(y_mean + beta * x_mean)[..., None, None], beta[..., None, None]
