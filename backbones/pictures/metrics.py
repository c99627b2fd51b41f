"""Metrics of upscaled pictures, as the field reports them.

    Y = 16 + 65.481 R + 128.553 G + 24.966 B,      R, G, B in {0, 1/255, ..., 1}
    PSNR = 10 log10(255^2 / mean (Y - Y')^2)
    SSIM = mean [(2 m m' + c1) (2 s'' + c2)] / [(m^2 + m'^2 + c1) (s + s' + c2)],    c1 = (0.01 255)^2,  c2 = (0.03 255)^2

with Y the brightness of BT.601, from 16 to 235, not rounded, and a border cut off; m, m', s, s', s'' are the means, variances
and covariance under a Gaussian window of std 1.5 and 11 x 11 pixels, where it lies within the picture (Wang et al. 2004).
Other metrics are of R, G, B of the whole picture: LPIPS and DISTS by `perceptual` where there is a folder of weights, and all
else by pyiqa.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dosde.check import Refused

from . import perceptual
from .io import Array
from .values import unit

_WITH_REFERENCE = {"lpips": "lpips", "lpips_vgg": "lpips-vgg", "dists": "dists"}
_IQA = {**_WITH_REFERENCE, "clipiqa": "clipiqa", "musiq": "musiq", "maniqa": "maniqa", "topiq": "topiq_nr"}  # pyiqa's names
WINDOW = 11
"""Pixels a side that SSIM needs."""

METRICS = ("psnr", "ssim", *_IQA)


def psnr(picture: Tensor, truth: Tensor, border: int) -> float:
    """The PSNR of Y in dB; infinite for equal pictures.

    Args:
        picture: (1, 1 or 3, height, width), floating in [0, 1], uint8 or uint16; it is rounded to 8 bits, and grey is three
            equal channels.
        truth: the same.
        border: pixels cut off at each side.

    Raises:
        Refused: for other shapes, NaN, and a border that leaves nothing.
    """
    from skimage.metrics import peak_signal_noise_ratio

    one, other = _brightness(picture, truth, border, 1)
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(other, one, data_range=255))


def ssim(picture: Tensor, truth: Tensor, border: int) -> float:
    """The SSIM of Y, at most 1. `psnr` has the arguments; 11 pixels a side must be left."""
    from skimage.metrics import structural_similarity

    one, other = _brightness(picture, truth, border, WINDOW)
    return float(
        structural_similarity(
            other, one, data_range=255, gaussian_weights=True, sigma=1.5, win_size=WINDOW, use_sample_covariance=False
        )
    )


def _brightness(picture: Tensor, truth: Tensor, border: int, least: int) -> tuple[Array, Array]:
    """Y of both, (height, width) in float64."""
    picture, truth = _checked("picture", picture), _checked("truth", truth)
    if picture.shape[-2:] != truth.shape[-2:]:
        raise Refused("picture", picture, f"{sides(truth)}, as the truth has, are needed", f"{sides(picture)} pixels")
    if border < 0 or min(truth.shape[-2:]) - 2 * border < least:
        raise Refused("border", border, f"{least} or more of {sides(truth)} pixels must be left, each way")
    inside = (slice(None), *(slice(border, side - border) for side in truth.shape[-2:]))
    weights = np.array([65.481, 128.553, 24.966]) / 255
    one, other = (16 + np.tensordot(weights, rounded(x)[inside].astype(np.float64), 1) for x in (picture, truth))
    return one, other


def rounded(picture: Tensor) -> Array:
    """A picture (1, 1 or 3, height, width), floating in [0, 1], uint8 or uint16, as 8 bits, (3, height, width).

    Raises:
        Refused: for another shape, type or range, NaN and infinity.
    """
    values = (_checked("picture", picture)[0] * 255).round().to(torch.uint8)
    return values.expand(3, -1, -1).numpy()


def _checked(name: str, picture: Tensor) -> Tensor:
    """The picture in [0, 1], on the CPU."""
    if isinstance(picture, Tensor) and (picture.ndim != 4 or picture.shape[0] != 1 or picture.shape[1] not in (1, 3)):
        raise Refused(name, picture, "(1, 1 or 3, height, width) is needed", f"shape {tuple(picture.shape)}")
    return unit(name, picture, slack=0.5).detach().cpu()


def sides(picture: Tensor) -> str:
    """Width x height, in words."""
    return f"{picture.shape[-1]}x{picture.shape[-2]}"


@dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
        value: (picture, truth) -> number, of (1, 3, height, width), 8 bits in [0, 1].
        text: what it measures, and the package with its version.
        lower_better: whether less is better.
    """

    value: Callable[[Tensor, Tensor], float]
    text: str
    lower_better: bool = False


def metrics(
    names: Sequence[str], border: int, device: torch.device | str = "cpu", metric_weights: str | Path | None = None
) -> dict[str, Metric]:
    """The metrics of these names.

    Args:
        names: some of `METRICS`.
        border: pixels that PSNR and SSIM cut off at each side.
        device: of the networks.
        metric_weights: the folder of the weights of LPIPS and DISTS; without one they are pyiqa's, which downloads its weights.

    Raises:
        Refused: for another name, for weights that are missing, and where pyiqa, or one of its metrics, cannot be loaded.
    """
    check_metrics(names)
    if metric_weights is not None and not set(names) & set(_WITH_REFERENCE):
        needed = f"it is for the metrics {', '.join(_WITH_REFERENCE)}"
        raise Refused("metric_weights", metric_weights, needed, str(metric_weights))
    by = f"on `channel` without the border, range 255; scikit-image {version('scikit-image')}"
    own = {
        "psnr": Metric(lambda picture, truth: psnr(picture, truth, border), f"dB, {by}"),
        "ssim": Metric(lambda picture, truth: ssim(picture, truth, border), f"Gaussian window 11x11, std 1.5, {by}"),
    }
    made = {}
    for name in names:
        if name in own:
            made[name] = own[name]
        elif name in _WITH_REFERENCE and metric_weights is not None:
            made[name] = _perceptual(name, device, Path(metric_weights))
        else:
            made[name] = _iqa(name, device)
    return made


def check_metrics(names: Sequence[str]) -> None:
    """Checks names of metrics.

    Raises:
        Refused: for none, and for a name that is not in `METRICS`.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise Refused("metrics", list(names), f"of {', '.join(METRICS)}", ", ".join(map(repr, unknown)) or "none")


def _perceptual(name: str, device: torch.device | str, folder: Path) -> Metric:
    """LPIPS or DISTS, by the weights in a folder."""
    files = perceptual.files(folder, name)
    network = (
        perceptual.dists(folder) if name == "dists" else perceptual.lpips(folder, "vgg" if name == "lpips_vgg" else "alex")
    )
    network.to(device)
    what = {"lpips": "LPIPS 0.1, AlexNet", "lpips_vgg": "LPIPS 0.1, VGG16", "dists": "DISTS, VGG16"}[name]
    digests = ", ".join(hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files)
    text = f"{what}, on R, G, B with the border, with reference, lower is better; SHA-256 of its weights {digests}"

    @torch.no_grad()
    def value(picture: Tensor, truth: Tensor) -> float:
        return float(network(picture.to(device), truth.to(device)))

    return Metric(value, text, lower_better=True)


def _iqa(name: str, device: torch.device | str) -> Metric:
    try:
        import pyiqa
    except ImportError as error:
        why = "" if error.name == "pyiqa" else f" ({error})"
        own = "needs a folder of weights (--metric-weights), or " if name in _WITH_REFERENCE else "needs "
        needs = f"{own}the extra 'iqa' (in the repository: pip install '.[iqa]'){why}"
        raise Refused("metrics", name, needs, name) from None
    theirs, reference = _IQA[name], name in _WITH_REFERENCE
    try:
        network = pyiqa.create_metric(theirs, device=device)
    except Exception as error:  # of a download, a cache, an older version
        why = " ".join(str(error).split()) or type(error).__name__
        raise Refused("metrics", name, f"pyiqa cannot load its {theirs} ({why})", name) from error
    lower = bool(network.lower_better)
    kind = f"{'with' if reference else 'no'} reference, {'lower' if lower else 'higher'} is better"
    text = f"{theirs}, on R, G, B with the border, {kind}; pyiqa {pyiqa.__version__}"
    return Metric(lambda picture, truth: float(network(picture, truth) if reference else network(picture)), text, lower)
