"""Problems with exact denoisers and an exact error, to judge few steps by: tuned on some families' members, held out on others.

Three families of x0 | x_hat0, each a Gaussian mixture:

    patches   8x8 patches of a picture, a mixture of 16 fitted to it, given their 4x downsampling: super-resolution
    modes     a few components of different widths in 1 to 8 dimensions, x_hat0 somewhere among them
    spectra   one Gaussian with a power law of variances in random directions

The error of samples is their sliced 2-Wasserstein distance to the exact law (64 directions, exact projected quantiles), over
the residual scale std(x0 | x_hat0). Exact samples have one too, the floor.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from skimage import color, data
from torch import Tensor

import dosde
from backbones.exact.mixture import Mixture

DIRECTIONS = 64


@dataclass(frozen=True, eq=False)
class Problem:
    """x0 | x_hat0 ~ mixture, with x_hat0 (1, d). scale: std(x0 | x_hat0). err: errors of the model, as a part of the scale."""

    name: str
    family: str
    mixture: Mixture
    x_hat0: Tensor
    err: float = 0.0

    @functools.cached_property
    def scale(self) -> float:
        m = self.mixture
        mean = m.weights @ m.means
        second = (m.weights * (m.covariances.diagonal(dim1=-2, dim2=-1).sum(-1) + ((m.means - mean) ** 2).sum(-1))).sum()
        return math.sqrt(second / m.means.shape[-1])

    @functools.cached_property
    def directions(self) -> Tensor:
        d = self.x_hat0.shape[-1]
        p = torch.randn(DIRECTIONS, d, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        return torch.ones(1, 1, dtype=torch.float64) if d == 1 else p / p.norm(dim=1, keepdim=True)

    @functools.cached_property
    def quantiles(self) -> Callable[[float, int], Tensor]:
        """(lam, count) -> (directions, count): those of x0 + lam eps at (i + 1/2)/count. Remembered."""
        return functools.lru_cache(maxsize=4)(self._quantiles)

    def _quantiles(self, lam: float, count: int) -> Tensor:
        m, p = self.mixture, self.directions
        means = m.means @ p.mT  # (K, P)
        std = (((p @ m.covariances) * p).sum(-1) + lam**2).sqrt()
        low, high = (means - 7 * std).amin(0), (means + 7 * std).amax(0)
        y = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, 8193, dtype=torch.float64)
        cdf = sum(
            w * torch.special.ndtr((y - mu[:, None]) / s[:, None]) for w, mu, s in zip(m.weights, means, std, strict=True)
        )
        levels = (np.arange(count) + 0.5) / count
        rows = [np.interp(levels, f, v) for f, v in zip(torch.as_tensor(cdf).numpy(), y.numpy(), strict=True)]
        return torch.from_numpy(np.stack(rows))

    def error(self, y: Tensor, lam: float = 0.0) -> float:
        """Of samples y of x0 + lam eps, (count, d), over the scale."""
        projected = (y.double() @ self.directions.mT).mT.sort(-1).values
        return float(((projected - self.quantiles(lam, len(y))) ** 2).mean().sqrt()) / self.scale

    def floor(self, count: int) -> float:
        """The error of exact samples: root mean square of four draws."""
        draws = [self.mixture.sample(count, torch.Generator().manual_seed(seed)) for seed in range(4)]
        return math.sqrt(sum(self.error(x) ** 2 for x in draws) / 4)

    @functools.cached_property
    def denoise(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """(d, a, sigma) -> E[x0 | a x0 + sigma eps = d], with the errors of a network if err > 0.

        They are smooth in x and in lam: a relative error of the residual x_theta - x_hat0, and one of the scale itself, each
        a random sine in every coordinate with an rms of err.
        """
        whole, d, scale = self.mixture.mean_given(), self.x_hat0.shape[-1], self.scale

        def exact(y: Tensor, a: Tensor, sigma: Tensor) -> Tensor:
            return torch.cat([whole(part, a, sigma) for part in torch.split(y, 256)])  # what stays in the cache

        if not self.err:
            return exact
        g = torch.Generator().manual_seed(11)
        mix = torch.randn(2, d, d, generator=g) / math.sqrt(d)
        phase, speed = 2 * math.pi * torch.rand(2, d, generator=g), torch.randn(2, d, generator=g)

        def erring(y: Tensor, a: Tensor, sigma: Tensor) -> Tensor:
            x0 = exact(y, a, sigma)
            residual = x0 - self.x_hat0.to(x0)
            level = math.atan2(float(sigma), float(a) * scale)
            by, to = (torch.sin((residual / scale) @ mix[i].to(x0) + phase[i] + 3 * level * speed[i]) for i in (0, 1))
            return x0 + math.sqrt(2) * self.err * (by * residual + to * scale)

        return erring

    def model(self, process: dosde.Process) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """For `dosde.solve`."""

        def x_theta(x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
            m = process(t)
            return self.denoise(x - m.b.to(x) * x_hat0, m.a.to(x), m.sigma.to(x))

        return x_theta

    def perturbed(self, err: float) -> "Problem":
        return Problem(self.name, self.family, self.mixture, self.x_hat0, err)


def geometric_mean(values: list[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def excess(error: float, floor: float) -> float:
    """What a method adds to the error of exact samples."""
    return math.sqrt(max(0.0, error**2 - floor**2))


# -- The families ---------------------------------------------------------------------------------------------------------


def patches(picture: str, seed: int) -> list[Problem]:
    """Two posteriors of a picture: of 16 patches at random, the one of median and the one of 4th largest variance."""
    g = torch.Generator().manual_seed(seed)
    light = grey(picture)
    prior = fit(cut(light, 8000, g), 16, g)
    down = torch.zeros(4, 8, 8, dtype=torch.float64)
    for i in range(4):
        down[i, i // 2 * 4 : i // 2 * 4 + 4, i % 2 * 4 : i % 2 * 4 + 4] = 1 / 16
    A = down.reshape(4, 64)
    y = cut(light, 16, g) @ A.mT
    up = torch.nn.functional.interpolate(y.reshape(-1, 1, 2, 2), size=(8, 8), mode="bilinear").reshape(-1, 1, 64)
    given = prior.given(y, A, noise=0.02)
    problems = [
        Problem(f"{picture} {i}", "patches", _pruned(w, m, given.covariances), x_hat0)
        for i, (w, m, x_hat0) in enumerate(zip(given.weights, given.means, up, strict=True))
    ]
    problems.sort(key=lambda problem: problem.scale)
    return [problems[8], problems[12]]


def modes(d: int, count: int, seed: int) -> Problem:
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(count, d, generator=g, dtype=torch.float64)
    w = torch.rand(count, generator=g, dtype=torch.float64) + 0.3
    root = torch.randn(count, d, d, generator=g, dtype=torch.float64) / math.sqrt(d)
    width = 0.25 * torch.exp(0.5 * torch.randn(count, 1, 1, generator=g, dtype=torch.float64))
    covariances = width**2 * root @ root.mT + 1e-4 * torch.eye(d, dtype=torch.float64)
    x_hat0 = 0.3 * torch.randn(1, d, generator=g, dtype=torch.float64)
    return Problem(f"{count} modes in {d}", "modes", Mixture(w / w.sum(), means, covariances), x_hat0)


def spectrum(d: int, power: float, seed: int) -> Problem:
    g = torch.Generator().manual_seed(seed)
    variances = torch.arange(1, d + 1, dtype=torch.float64) ** -power
    basis = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    covariance = basis @ torch.diag(0.2**2 * variances / variances.mean()) @ basis.mT
    x_hat0 = 0.1 * torch.randn(1, d, generator=g, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    return Problem(
        f"power {power:g} in {d}", "spectra", Mixture(one, torch.zeros(1, d, dtype=torch.float64), covariance[None]), x_hat0
    )


@functools.cache
def tuned() -> list[Problem]:
    """What grids and constants were chosen on."""
    pictures = [p for i, name in enumerate(("astronaut", "camera", "coins", "grass", "rocket")) for p in patches(name, i)]
    return [
        *pictures,
        modes(1, 3, 1),
        modes(2, 4, 2),
        modes(4, 6, 4),
        modes(8, 5, 5),
        spectrum(64, 2.0, 1),
        spectrum(32, 1.0, 1),
    ]


@functools.cache
def held_out() -> list[Problem]:
    """What nothing was chosen on: other pictures, mixtures and spectra."""
    pictures = [p for i, name in enumerate(("coffee", "brick", "chelsea")) for p in patches(name, 10 + i)]
    return [
        *pictures,
        modes(1, 5, 11),
        modes(2, 6, 13),
        modes(6, 6, 14),
        spectrum(48, 1.2, 2),
        spectrum(64, 1.7, 2),
        spectrum(64, 0.6, 2),
    ]


def grey(picture: str) -> Tensor:
    """A picture of skimage's in [-1, 1], (height, width), float64."""
    image = getattr(data, picture)()
    return torch.from_numpy(np.asarray(color.rgb2gray(image) if image.ndim == 3 else image / 255.0)) * 2 - 1


def cut(grey: Tensor, count: int, g: torch.Generator) -> Tensor:
    """Random 8x8 patches, (count, 64)."""
    rows, columns = (torch.randint(0, n - 7, (count, 1, 1), generator=g) for n in grey.shape)
    r = torch.arange(8)
    return grey[rows + r[:, None], columns + r].reshape(count, 64)


def fit(x: Tensor, count: int, g: torch.Generator, rounds: int = 25) -> Mixture:
    """A mixture fitted to x, (n, d), by expectation-maximisation from random assignments to nearest centres."""
    n, d = x.shape
    centres = x[torch.randperm(n, generator=g)[:count]]
    p = torch.nn.functional.one_hot(torch.cdist(x, centres).argmin(1), count).to(x)
    for _ in range(rounds):
        total = p.sum(0) + 1e-9
        w, means = total / total.sum(), p.mT @ x / total[:, None]
        centred = [x - mean for mean in means]
        covariances = torch.stack([(r * c[:, None]).mT @ r / t for r, c, t in zip(centred, p.mT, total, strict=True)])
        covariances += 1e-4 * torch.eye(d, dtype=x.dtype)
        roots = torch.linalg.cholesky(covariances)
        norms = [
            torch.linalg.solve_triangular(root, r.mT, upper=False).square().sum(0)
            for root, r in zip(roots, centred, strict=True)
        ]
        log_p = w.log() - torch.stack(norms, 1) / 2 - roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        p = log_p.softmax(1)
    return Mixture(w, means, covariances)


def _pruned(weights: Tensor, means: Tensor, covariances: Tensor) -> Mixture:
    """Without components that nobody would see."""
    seen = weights > 1e-5
    return Mixture(weights[seen] / weights[seen].sum(), means[seen], covariances[seen])
