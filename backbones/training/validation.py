"""Validation: pictures that are upscaled by the averaged weights in some numbers of steps, and measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dosde
from backbones.pictures import io as images
from backbones.pictures import metrics
from dosde.check import Refused

from .config import Data, Validation, made_degradation, within
from .data import Folder, Procedural, degraded, held_out, matched, read_pair
from .task import Network, Task

_VALIDATION = 3  # stream of random numbers; `data` has 0 and 1, `stream` has 2


def validation_pictures(wanted: Validation, data: Data, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs (HR, LR) by name, each (3, height, width).

    Args:
        wanted: which pictures, as many as it counts, cropped to its square.
        data: scale and degradation of LR.
        seed: the seed of procedural pictures and of the degradation.

    Raises:
        Refused: there is no such picture, it cannot be read, or is smaller than the crop.
    """
    if not wanted.every:
        return {}
    try:
        import skimage.metrics  # noqa: F401
    except ImportError:
        needed = "needs scikit-image, of the extra 'images'"
        raise Refused("validation.every", wanted.every, needed) from None
    least = metrics.WINDOW + 2 * data.scale
    if wanted.crop < least:
        needed = f"{least} or more is needed, for SSIM without a border of data.scale"
        raise Refused("validation.crop", wanted.crop, needed)
    if wanted.lr:
        return _of_folders(wanted, data.scale)
    pairs, made = {}, made_degradation(data)
    for i, (name, picture) in enumerate(list(_whole(wanted, seed).items())[: wanted.count]):
        y, x = ((side - wanted.crop) // 2 for side in picture.shape[1:])
        if min(x, y) < 0:
            sides = f"{picture.shape[2]}x{picture.shape[1]}"
            raise Refused("validation.crop", wanted.crop, f"{name} has {sides} pixels, a smaller crop is needed")
        hr = picture[:, y : y + wanted.crop, x : x + wanted.crop].contiguous()
        generator = np.random.default_rng([seed, _VALIDATION, i, 1])
        pairs[name] = hr, degraded(hr, made, generator)
    if not pairs:
        raise Refused("validation.pictures", wanted.pictures, "at least one picture is needed", repr(wanted.pictures))
    return pairs


def _of_folders(wanted: Validation, scale: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs of two folders, cropped to the square in their middle, where a pixel of LR begins."""
    try:
        found = matched(Path(wanted.pictures), Path(wanted.lr), scale)[: wanted.count]
    except Refused as error:
        raise within("validation.lr" if error.argument == "lr" else "validation.pictures", error) from None
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for large, little in found:
        try:
            hr, lr = read_pair(large, little, scale)
        except (ValueError, OSError) as error:
            shown = f"{large} and {little.name} cannot be used ({error})"
            raise Refused("validation.pictures", large, "pairs of pictures are needed", shown) from None
        side = wanted.crop // scale
        y, x = ((n - side) // 2 for n in lr.shape[1:])
        if min(x, y) < 0:
            needed = f"{large.name} has {hr.shape[2]}x{hr.shape[1]} pixels, a smaller crop is needed"
            raise Refused("validation.crop", wanted.crop, needed)
        name = large.stem if large.stem not in pairs else "_".join(large.relative_to(wanted.pictures).parts)
        squares = (p[:, s * y : s * (y + side), s * x : s * (x + side)] for p, s in ((hr, scale), (lr, 1)))
        hr, lr = (square.contiguous() for square in squares)
        pairs[name] = hr, lr
    return pairs


def _whole(wanted: Validation, seed: int) -> dict[str, Tensor]:
    """The pictures before they are cropped, by name."""
    if wanted.pictures == "held_out":
        return held_out()
    if wanted.pictures == "procedural":
        source = Procedural(wanted.crop)
        generators = [np.random.default_rng([seed, _VALIDATION, i]) for i in range(wanted.count)]
        return {f"procedural{i}": source.picture(i, generator) for i, generator in enumerate(generators)}
    try:
        paths = Folder(wanted.pictures, wanted.crop).paths[: wanted.count]
    except ValueError as error:
        raise within("validation.pictures", error) from None
    whole: dict[str, Tensor] = {}
    for path in paths:
        name = path.stem if path.stem not in whole else "_".join(path.relative_to(wanted.pictures).parts)
        try:
            whole[name] = images.read(path).colour[0].expand(3, -1, -1)
        except (ValueError, OSError) as error:
            shown = f"{path} cannot be read ({error})"
            raise Refused("validation.pictures", path, "pictures that can be read are needed", shown) from None
    return whole


@dataclass(frozen=True)
class Row:
    """A picture, upscaled in some steps, and its distance from HR: PSNR (dB) and SSIM of Y, without a border of data.scale."""

    name: str
    steps: int
    psnr: float
    ssim: float
    picture: Tensor


@dataclass(frozen=True)
class Validator:
    """Upscales each picture by some numbers of steps, with the same noise at every validation.

    Args:
        pictures: pairs (HR, LR) by name.
        steps: the numbers of steps of the solves.
        order: the order of the solves, at most their steps.
        solver: method and grid of `dosde.solve`; empty: the task's.
        seed: the seed of the noise.
        border: pixels at each side that are not measured.
    """

    pictures: Mapping[str, tuple[Tensor, Tensor]]
    steps: tuple[int, ...]
    order: int
    solver: Mapping[str, Any]
    seed: int
    border: int

    def rows(
        self,
        job: Task,
        network: Network,
        model: nn.Module,
        device: torch.device,
        stopped: Callable[[], object] = lambda: False,
    ) -> list[Row] | None:
        """All pictures by all numbers of steps.

        Args:
            job: the task.
            network: the network as the task calls it.
            model: the module below it, which is in evaluation mode meanwhile.
            device: the device of the network.
            stopped: asked before each picture; if it says so, there are no rows.
        """
        rows = []
        model.eval()
        try:
            for name, (hr, lr) in self.pictures.items():
                for steps in self.steps:
                    if stopped():
                        return None
                    noise = torch.Generator().manual_seed(self.seed)
                    order = min(self.order, steps)
                    with torch.no_grad():
                        picture = job.upscaled(network, lr[None].to(device), steps, order, noise, self.solver)
                    picture = picture.float().cpu()
                    rows.append(Row(name, steps, *measured(picture, hr[None], self.border), picture))
        finally:
            model.train()
        return rows

    def first(self) -> "Validator":
        """The same for the first picture by the first number of steps alone."""
        return replace(self, pictures=dict(list(self.pictures.items())[:1]), steps=self.steps[:1])


def made_validator(wanted: Validation, data: Data, seed: int) -> Validator:
    """The validation of a config. It has no picture where the config wants none.

    Raises:
        Refused: see `validation_pictures`.
    """
    pictures = validation_pictures(wanted, data, seed)
    solver = dosde.presets.few_step(wanted.scale) if wanted.method == "few_step" else {}
    return Validator(pictures, wanted.steps, wanted.order, solver, seed, data.scale)


def measured(picture: Tensor, hr: Tensor, border: int) -> tuple[float, float]:
    """PSNR (dB) and SSIM of (1, 3, height, width) in [0, 1], as `dosde evaluate` measures them."""
    return metrics.psnr(picture, hr, border), metrics.ssim(picture, hr, border)
