"""Training of ResShift's U-Net, as the release trains it: all of it, by the squared error of x0.

    z0       the autoencoder's latent of HR, not quantised
    z_hat0   that of LR, enlarged by bicubic interpolation
    x_t      process.sample(z0, z_hat0, t, z),   the U-Net predicts what the pipeline's scheduler says, x0

The release draws t from the table: times = "table" and table = T in [objective].
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

import dosde
from backbones import named
from backbones.resshift import convert, folders
from backbones.resshift.pipeline import ResShiftPipeline
from backbones.sd21.backbone import quiet
from dosde import presets
from dosde.check import Refused

from .config import Config, Times, within
from .task import Batch, Loss, Network, with_component


class ResShift:
    """The task `resshift`.

    Args:
        config: the whole config.

    Raises:
        Refused: the folder of weights cannot be loaded, or does not suit the config.
    """

    def __init__(self, config: Config) -> None:
        quiet()
        try:
            self.pipe = pipe = ResShiftPipeline.from_pretrained(config.resshift.weights, dtype=torch.float32)
        except Refused as error:
            place = "resshift.weights"
            raise (error.under(place) if error.argument == "weights" else within(place, error)) from None
        except Exception as error:  # of diffusers, on a folder that is not whole: of many kinds, and of many lines
            raise Refused("resshift.weights", config.resshift.weights, f"it cannot be loaded ({named.said(error)})") from error
        predicts, crop = pipe.scheduler.predicts, config.data.crop
        if config.objective.predicts != predicts:
            raise Refused("objective.predicts", config.objective.predicts, f"{predicts!r}, as the pipeline's, is needed")
        if config.data.scale != pipe.scale:
            raise Refused("data.scale", config.data.scale, f"{pipe.scale}, by which the networks enlarge, is needed")
        if crop % pipe.multiple:
            raise Refused("data.crop", crop, f"a multiple of {pipe.multiple} is needed, the side that the networks know")
        if pipe.inpaints:
            raise Refused("resshift.weights", config.resshift.weights, "a network without a mask is needed: none is drawn here")
        self.process: dosde.Process = pipe.scheduler.process
        self.loss = Loss(self.process, config.objective, Times(self.process, config.objective))
        self.bf16 = config.precision == "bf16"
        side = crop // pipe.factor
        self.noise_shapes: tuple[tuple[int, ...], ...] = ((int(pipe.unet.config.in_channels), side, side),)
        pipe.vqvae.requires_grad_(False)
        self.trainable = pipe.unet.requires_grad_(True)

    def place(self, device: torch.device) -> None:
        self.pipe.to(device)

    def samples(self, samples: Dataset[Batch], rank: int, world: int) -> Dataset[Batch]:
        return samples

    def losses(self, network: Network, batch: Batch) -> Tensor:
        z0, made, z = self.pipe.encode(batch["hr"]), self.pipe.prepare(batch["lr"], self.pipe.scale), batch["noise0"]
        t = self.loss.times(batch["part"])
        value = self.net(network, self.process.sample(z0, made.x_hat0, t, z), made.lq, t)
        return self.loss(value, z0, made.x_hat0, t, z)

    def net(self, network: Network, x: Tensor, lq: Tensor, t: Tensor) -> Tensor:
        """The output of the U-Net, float32.

        Args:
            network: the U-Net.
            x: x_t, (batch, channels, height, width).
            lq: LR in [-1, 1], padded.
            t: times, of shape (batch,).
        """
        steps = torch.tensor([self.pipe.scheduler.model_time(one) for one in t], dtype=torch.float32, device=x.device)
        scaled = x * presets.resshift_input_scale(self.process.over_batch(t, x)).to(x)
        out: Tensor = network(scaled, steps, lq)
        return out.float()

    def upscaled(
        self, network: Network, lr: Tensor, steps: int, order: int, noise: torch.Generator, solver: Mapping[str, Any]
    ) -> Tensor:
        pipe = self.pipe
        made = pipe.prepare(lr, pipe.scale)
        model = dosde.Denoiser(
            lambda x, _, t: self.net(network, x, made.lq, t.reshape(1).expand(len(x))), self.process, pipe.scheduler.predicts
        )
        x0 = dosde.solve(model, made.x_hat0, steps, order, noise=noise, **(solver or {"grid": pipe.scheduler.times(steps)}))
        return pipe.finish(x0, made, [side * pipe.scale for side in lr.shape[-2:]])

    def save(self, tensors: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str]) -> Path:
        """The pipeline's folder, with this U-Net, as `save_pretrained` writes it, where nothing is yet."""
        before = self.pipe.folder
        assert before is not None
        unet = convert.filled("unet", folders.config_of(before, "unet"), dict(tensors))
        return with_component(before, folder, "unet", unet)
