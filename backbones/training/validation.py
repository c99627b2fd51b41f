"""Validation: pictures that are upscaled by the averaged weights in some numbers of steps, and measured."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import dosde
from backbones.pictures import degradation, metrics
from backbones.pictures import io as images

from .config import Config, made_degradation
from .data import Folder, Procedural, held_out
from .state import in_precision
from .task import Task

_VALIDATION = 3  # stream of random numbers; 0 and 1 are those of `data`, 2 is that of the loop


def validation_pictures(config: Config) -> dict[str, tuple[Tensor, Tensor]]:
    """(HR, LR), each (3, height, width), by name. Errors: ValueError."""
    own = config.validation
    if not own.every:
        return {}
    try:
        import skimage.metrics  # noqa: F401
    except ImportError:
        raise ValueError(f"validation.every: {own.every}; needs scikit-image, of the extra 'images'") from None
    least = metrics.WINDOW + 2 * config.data.scale
    if own.crop < least:
        raise ValueError(f"validation.crop: {own.crop}; {least} or more is needed, for SSIM without a border of data.scale")
    if own.pictures == "held_out":
        whole = held_out()
    elif own.pictures == "procedural":
        source = Procedural(own.crop)
        numbers = [np.random.default_rng([config.seed, _VALIDATION, i]) for i in range(own.count)]
        whole = {f"procedural{i}": source.picture(i, generator) for i, generator in enumerate(numbers)}
    else:
        try:
            paths = Folder(own.pictures, own.crop).paths[: own.count]
        except ValueError as error:
            raise ValueError(f"validation.pictures: {error}") from None
        whole = {}
        for path in paths:
            name = path.stem if path.stem not in whole else "_".join(path.relative_to(own.pictures).parts)
            try:
                whole[name] = images.read(path).colour[0].expand(3, -1, -1)
            except (ValueError, OSError) as error:
                raise ValueError(f"validation.pictures: {path} cannot be read ({error})") from None
    pairs = {}
    for i, (name, picture) in enumerate(list(whole.items())[: own.count]):
        y, x = ((side - own.crop) // 2 for side in picture.shape[1:])
        if min(x, y) < 0:
            sides = f"{picture.shape[2]}x{picture.shape[1]}"
            raise ValueError(f"validation.crop: {own.crop}; {name} has {sides} pixels, a smaller crop is needed")
        hr = picture[:, y : y + own.crop, x : x + own.crop].contiguous()
        generator = np.random.default_rng([config.seed, _VALIDATION, i, 1])
        drawn = degradation.sample(made_degradation(config.data), generator)
        pairs[name] = hr, degradation.apply(hr, drawn)
    if not pairs:
        raise ValueError(f"validation.pictures: {own.pictures!r}; at least one picture is needed")
    return pairs


@dataclass(frozen=True)
class Row:
    """A picture, upscaled in some steps, and how near it is: PSNR in dB and SSIM, of Y without a border of data.scale."""

    name: str
    steps: int
    psnr: float
    ssim: float
    picture: Tensor


def validated(
    job: Task, model: nn.Module, config: Config, pictures: Mapping[str, tuple[Tensor, Tensor]], device: torch.device
) -> list[Row]:
    """All pictures by all numbers of steps, each with the same noise at every validation."""
    own, rows = config.validation, []
    network = in_precision(model, config.precision, device)
    model.eval()
    try:
        for name, (hr, lr) in pictures.items():
            for steps in own.steps:
                how = dosde.presets.few_step(own.scale) if own.method == "few_step" else {}
                noise = torch.Generator().manual_seed(config.seed)
                with torch.no_grad():
                    picture = job.upscaled(network, lr[None].to(device), steps, min(own.order, steps), noise, how)
                picture = picture.float().cpu()
                rows.append(Row(name, steps, *measured(picture, hr[None], config.data.scale), picture))
    finally:
        model.train()
    return rows


def measured(picture: Tensor, hr: Tensor, border: int) -> tuple[float, float]:
    """PSNR (dB) and SSIM of (1, 3, height, width) in [0, 1], as `dosde evaluate` has them."""
    return metrics.psnr(picture, hr, border), metrics.ssim(picture, hr, border)
