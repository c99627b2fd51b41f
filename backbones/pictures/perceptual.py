"""LPIPS and DISTS, distances of pictures by the features of a network, on torch alone.

    LPIPS   sum_k mean_yx sum_c head_kc (f_kc/|f_k| - g_kc/|g_k|)^2,   f_k, g_k the features of the two pictures in layer k
    DISTS   1 - sum_kc [alpha_kc l(f_kc, g_kc) + beta_kc s(f_kc, g_kc)],   sum alpha + sum beta = 1,   layer 0 the picture
            l = (2 m m' + c) / (m^2 + m'^2 + c),   s = (2 v'' + c) / (v + v' + c),   c = 1e-6

with m, m', v, v', v'' the means, variances and covariance of a channel over the whole picture. LPIPS is that of Zhang et al.
2018, version 0.1, of AlexNet or VGG16; DISTS is that of Ding et al. 2020, of VGG16, whose max pooling it replaces by the root
of a weighted mean of squares.

Weights are not here: `benchmarks/metric_weights.py FOLDER` fetches them and writes FILES into a folder, which `lpips` and
`dists` read. Both modules take (batch, 3, height, width) in [0, 1] and return (batch,) distances; gradients pass.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import weights
from dosde.check import Refused

FILES = {"alex": "lpips_alex.safetensors", "vgg": "lpips_vgg.safetensors", "dists": "dists.safetensors"}
_VGG = (64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": tuple(stage[-1] for stage in _VGG)}
"""Of the layers that are compared."""
LEAST = {"alex": 31, "vgg": 16}
"""Pixels a side, below which a layer has none left."""


class LPIPS(nn.Module):
    """LPIPS 0.1.

    Args:
        network: "alex" or "vgg".
    """

    def __init__(self, network: str = "alex") -> None:
        super().__init__()
        if network not in CHANNELS:
            raise Refused("network", network, f"one of {', '.join(CHANNELS)} is needed", repr(network))
        self.network = network
        self.features = _alex() if network == "alex" else _vgg()
        self.heads = nn.ParameterList([torch.ones(channels) for channels in CHANNELS[network]])

    def forward(self, picture: Tensor, truth: Tensor) -> Tensor:
        """(batch,), 0 for equal pictures."""
        _check(picture, truth, LEAST[self.network])
        shift, scale = _row(picture, (-0.030, -0.088, -0.188)), _row(picture, (0.458, 0.448, 0.450))
        ours, theirs = (self._layers((2 * x - 1 - shift) / scale) for x in (picture, truth))
        parts = [
            torch.einsum("bchw,c->bhw", (_unit(f) - _unit(g)) ** 2, head).mean((1, 2))
            for f, g, head in zip(ours, theirs, self.heads, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def _layers(self, x: Tensor) -> list[Tensor]:
        if self.network == "vgg":
            return _vgg_layers(self.features, x, lambda y: F.max_pool2d(y, 2))
        layers = []
        for k, conv in enumerate(self.features):
            x = F.relu(conv(F.max_pool2d(x, 3, 2) if k in (1, 2) else x))
            layers.append(x)
        return layers


class DISTS(nn.Module):
    """DISTS."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3 + sum(CHANNELS["vgg"])
        self.features = _vgg()
        self.alpha = nn.Parameter(torch.full((channels,), 0.1))
        self.beta = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, picture: Tensor, truth: Tensor) -> Tensor:
        """(batch,), 0 for equal pictures."""
        _check(picture, truth, 1)
        shift, scale = _row(picture, (0.485, 0.456, 0.406)), _row(picture, (0.229, 0.224, 0.225))
        ours, theirs = ([x, *_vgg_layers(self.features, (x - shift) / scale, _l2_pool)] for x in (picture, truth))
        total = self.alpha.sum() + self.beta.sum()
        sizes = [3, *CHANNELS["vgg"]]
        like = torch.zeros(len(picture), dtype=picture.dtype, device=picture.device)
        for f, g, alpha, beta in zip(ours, theirs, *(torch.split(x, sizes) for x in (self.alpha, self.beta)), strict=True):
            m, n = f.mean((2, 3), keepdim=True), g.mean((2, 3), keepdim=True)
            v, w, both = (x.mean((2, 3)) for x in ((f - m) ** 2, (g - n) ** 2, (f - m) * (g - n)))
            m, n = m[..., 0, 0], n[..., 0, 0]
            like = like + (2 * m * n + 1e-6) / (m**2 + n**2 + 1e-6) @ alpha + (2 * both + 1e-6) / (v + w + 1e-6) @ beta
        return 1 - like / total


def _alex() -> nn.ModuleList:
    sizes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
    return nn.ModuleList(nn.Conv2d(i, o, kernel, stride, padding) for i, o, kernel, stride, padding in sizes)


def _vgg() -> nn.ModuleList:
    widths = [3, *(width for stage in _VGG for width in stage)]
    return nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(widths))


def _vgg_layers(features: nn.ModuleList, x: Tensor, pool: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The last layer of each stage; `pool` is between the stages."""
    layers: list[Tensor] = []
    convolutions = iter(features)
    for stage in _VGG:
        x = pool(x) if layers else x
        for _ in stage:
            x = F.relu(next(convolutions)(x))
        layers.append(x)
    return layers


def _l2_pool(x: Tensor) -> Tensor:
    """Half as large: the root of the mean of squares under a Hann window of 3 x 3 pixels."""
    hann = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = torch.outer(hann, hann).expand(x.shape[1], 1, 3, 3)
    return (F.conv2d(x**2, kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def _unit(x: Tensor) -> Tensor:
    """Of length 1 over the channels."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / (length + 1e-10)


def _row(like: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


def _check(picture: Tensor, truth: Tensor, least: int) -> None:
    for name, x in {"picture": picture, "truth": truth}.items():
        if x.ndim != 4 or x.shape[1] != 3 or len(x) == 0 or min(x.shape[-2:]) < least:
            needed = f"(batch, 3, height, width) of {least} pixels a side or more is needed"
            raise Refused(name, x, needed, f"shape {tuple(x.shape)}")
    if picture.shape != truth.shape:
        needed = f"shape {tuple(truth.shape)}, as the truth has, is needed"
        raise Refused("picture", picture, needed, f"shape {tuple(picture.shape)}")


# -- Files --------------------------------------------------------------------------------------------------------------------


def lpips(folder: str | Path, network: str = "alex") -> LPIPS:
    """LPIPS with the weights in a folder that `benchmarks/metric_weights.py` wrote.

    Raises:
        Refused: another network than "alex" and "vgg", a file that is missing, or other weights.
    """
    made = LPIPS(network)
    _fill(made, _file(Path(folder), network), _read(Path(folder), network))
    return made


def dists(folder: str | Path) -> DISTS:
    """DISTS with the weights in such a folder: of VGG16 in LPIPS's file, alpha and beta in its own.

    Raises:
        Refused: a file is missing, or has other weights.
    """
    vgg = {name: tensor for name, tensor in _read(Path(folder), "vgg").items() if name.startswith("features.")}
    made = DISTS()
    _fill(made, _file(Path(folder), "dists"), {**vgg, **_read(Path(folder), "dists")})
    return made


def files(folder: str | Path, metric: str) -> list[Path]:
    """The files of "lpips", "lpips_vgg" or "dists" in a folder.

    Raises:
        Refused: one of them is not there.
    """
    names = {"lpips": ["alex"], "lpips_vgg": ["vgg"], "dists": ["vgg", "dists"]}[metric]
    return [_file(Path(folder), name) for name in names]


def _file(folder: Path, name: str) -> Path:
    path = folder / FILES[name]
    if not path.is_file():
        needed = "a folder that `python benchmarks/metric_weights.py FOLDER` wrote is needed"
        raise Refused("metric_weights", folder, needed, f"{folder} has no {path.name}")
    return path


def _read(folder: Path, name: str) -> weights.Tensors:
    return weights.read_safetensors(_file(folder, name))[0]


def _fill(module: nn.Module, path: Path, tensors: weights.Tensors) -> None:
    weights.check(path, tensors, module.state_dict())
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    module.eval().requires_grad_(False)
