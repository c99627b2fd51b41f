"""Fine-tuning of DoSSR's networks, as the release trains them: only the ControlNet, by the L1 loss of x0.

    z0       a sample of the VAE's posterior of HR
    z_hat0   the mode of the hint encoder of the preprocessor's picture of LR, unclamped; the ControlNet's hint as well
    x_t      process.sample(z0, z_hat0, t, z),   the U-Net predicts what the pipeline's scheduler says, vp_eps

Latents can be cached: then a fixed number of samples is made once, and trained on. Process and prediction type are those of the
pipeline.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset

import dosde
from backbones.sd21 import folders, parts
from backbones.sd21.backbone import quiet
from backbones.sd21.pipeline import DoSSRPipeline
from backbones.weights import read_safetensors, write_safetensors
from dosde import objective

from .config import Config, Times, weights
from .task import Batch, Network


class SD21:
    """The task `sd21`: see above. Errors: ValueError, one line, where folder and config do not suit each other."""

    def __init__(self, config: Config) -> None:
        self.config = config
        quiet()
        try:
            self.pipe = pipe = DoSSRPipeline.from_pretrained(config.sd21.weights, dtype=torch.float32)
        except ValueError as error:
            raise ValueError(f"sd21.{error}" if str(error).startswith("weights: ") else str(error)) from None
        predicts, crop = pipe.scheduler.predicts, config.data.crop
        if config.objective.predicts != predicts:
            raise ValueError(f"objective.predicts: {config.objective.predicts!r}; {predicts!r}, as the pipeline's, is needed")
        if crop % pipe.multiple:
            raise ValueError(f"data.crop: {crop}; a multiple of {pipe.multiple} is needed, as often as the networks halve it")
        self.process: dosde.Process = pipe.scheduler.process
        self.times = Times(self.process, config.objective)
        side = crop // pipe.factor
        self.noise_shapes: tuple[tuple[int, ...], ...] = ((int(pipe.vae.config.latent_channels), side, side),) * 2
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                module.requires_grad_(False)
        self.trainable = pipe.controlnet.requires_grad_(True)
        if config.sd21.gradient_checkpointing:
            self.trainable.enable_gradient_checkpointing()
            pipe.unet.enable_gradient_checkpointing()

    def place(self, device: torch.device) -> None:
        """And the prompt is embedded, by the text tower or from the cache, after which the text tower goes."""
        pipe = self.pipe
        if self.config.precision == "bf16":
            pipe.unet.to(torch.bfloat16)  # the encoders stay as they are: what they make is the data
        pipe.to(device)
        with torch.no_grad():
            self.context = self._embedded_prompt()
        pipe.register_modules(text_encoder=None, tokenizer=None)

    def _embedded_prompt(self) -> Tensor:
        own, pipe = self.config.sd21, self.pipe
        known = pipe.prompts is not None and pipe.prompts(own.prompt) is not None
        if not own.cache or known:
            return pipe.encode_prompt(own.prompt, "sd21.prompt")
        digest = hashlib.sha256(f"{own.weights}\n{own.prompt}".encode()).hexdigest()[:16]
        path = Path(own.cache) / f"prompt_{digest}.safetensors"
        if path.exists():
            return read_safetensors(path)[0]["context"].to(pipe.unet.device, pipe.unet.dtype)
        context = pipe.encode_prompt(own.prompt, "sd21.prompt")
        if not dist.is_initialized() or dist.get_rank() == 0:  # one writes
            write_safetensors(path, {"context": context}, {})
        return context

    def samples(self, samples: Dataset[Batch], rank: int, world: int) -> Dataset[Batch]:
        if not self.config.sd21.cache:
            return samples
        cached = Cached(samples, Path(self.config.sd21.cache), self.config.sd21.cache_samples)
        cached.prepare(self.fingerprint(), rank)
        if dist.is_initialized():
            dist.barrier()  # no latents of another process before the folder is known to have none
        for number in range(rank, len(cached), world):
            if not cached.path(number).exists():
                sample = cached.source(number)
                moments, z_hat0 = self.encoded(*(sample[name][None].to(self.context.device) for name in ("hr", "lr")))
                write_safetensors(cached.path(number), {"moments": moments[0], "z_hat0": z_hat0[0]}, {})
        if not self.config.validation.every:  # nothing needs them any more
            for module in (self.pipe.vae, self.pipe.hint_encoder, self.pipe.preprocessor):
                if module is not None:
                    module.to("cpu")
        return cached

    def fingerprint(self) -> dict[str, Any]:
        """What the cached latents depend on."""
        plain = self.config.as_dict()
        data = {name: value for name, value in plain["data"].items() if name != "workers"}
        made: dict[str, Any] = json.loads(
            json.dumps({"weights": self.config.sd21.weights, "seed": plain["seed"], "data": data})
        )
        return made

    @torch.no_grad()
    def encoded(self, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of HR's posterior, joined, and z_hat0, of pictures in [0, 1]."""
        pipe, size = self.pipe, list(hr.shape[-2:])
        moments = pipe.moments(pipe.vae, "source", hr, None)
        larger = lr
        if pipe.preprocessor is not None:
            grows = int(pipe.preprocessor.config.scale)
            larger = pipe.preprocessor(_resized(lr, [side // grows for side in size])).float()
        return moments, pipe.hint(_resized(larger, size))

    def losses(self, network: Network, batch: Batch) -> Tensor:
        if "moments" in batch:
            moments, z_hat0 = batch["moments"], batch["z_hat0"]
        else:
            moments, z_hat0 = self.encoded(batch["hr"], batch["lr"])
        wanted, z = self.config.objective, batch["noise0"]
        z0 = self.pipe.latent(moments, batch["noise1"], None)
        t = self.times(batch["part"])
        value = self.net(network, self.process.sample(z0, z_hat0, t, z), z_hat0, t)
        w = weights(self.process, wanted, self.times, t)
        norm, of, predicts = cast(Any, wanted.norm), cast(Any, wanted.of), cast(Any, wanted.predicts)
        return objective.loss(value, predicts, self.process, z0, z_hat0, t, z, norm=norm, of=of, weight=w)

    def net(self, network: Network, x: Tensor, hint: Tensor, t: Tensor) -> Tensor:
        """What the U-Net returns with this ControlNet's residuals, float32; t of shape (batch,)."""
        unet = self.pipe.unet
        steps = torch.tensor([self.pipe.scheduler.model_time(one) for one in t], dtype=torch.float32, device=x.device)
        context = self.context.expand(len(x), -1, -1)
        down, middle = network(
            x, steps, encoder_hidden_states=context.float(), controlnet_cond=hint, conditioning_scale=1.0, return_dict=False
        )
        out: Tensor = unet(
            x.to(unet.dtype),
            steps,
            encoder_hidden_states=context,
            down_block_additional_residuals=[residual.to(unet.dtype) for residual in down],
            mid_block_additional_residual=middle.to(unet.dtype),
            return_dict=False,
        )[0]
        return out.float()

    def upscaled(self, network: Network, lr: Tensor, steps: int, order: int, noise: torch.Generator, how: Any) -> Tensor:
        pipe = self.pipe
        made = pipe.prepare(lr, self.config.data.scale, "mode")
        model = dosde.Denoiser(
            lambda x, _, t: self.net(network, x, made.hint, t.reshape(1).expand(len(x))), self.process, pipe.scheduler.predicts
        )
        x0 = dosde.solve(model, made.x_hat0, steps, order, noise=noise, **(how or {"grid": pipe.scheduler.times(steps)}))
        return pipe.finish(x0, made.reference)

    def save(self, tensors: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str]) -> Path:
        """The pipeline's folder, with this ControlNet, as `save_pretrained` writes it."""
        controlnet = parts.filled("controlnet", dict(self.pipe.controlnet.config), dict(tensors))
        before, path = self.pipe._folder, folder / "pipeline"
        assert before is not None
        shutil.rmtree(path, ignore_errors=True)
        with folders.written_whole(path) as place:
            shutil.copytree(
                before, place, dirs_exist_ok=True, ignore=lambda at, _: ["controlnet"] if Path(at) == before else []
            )
            controlnet.save_pretrained(place / "controlnet")
        return path


@dataclass(frozen=True)
class Cached(Dataset[Batch]):
    """The first `length` samples of a data set, as latents in files; of any epoch the same."""

    samples: Dataset[Batch]
    folder: Path
    length: int

    def __len__(self) -> int:
        return self.length

    def path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.safetensors"

    def source(self, number: int) -> Batch:
        """The pictures."""
        return self.samples[divmod(number, len(self.samples))]  # type: ignore[arg-type]

    def prepare(self, fingerprint: Mapping[str, Any], rank: int) -> None:
        """Errors: ValueError for a folder of other latents."""
        path = self.folder / "cache.json"
        if path.exists():
            if json.loads(path.read_text()) != fingerprint:
                raise ValueError(f"sd21.cache: {self.folder} holds latents of other data or weights; another folder is needed")
        elif rank == 0:
            if self.folder.is_dir() and any(self.folder.glob("0*.safetensors")):
                raise ValueError(f"sd21.cache: {self.folder} holds other files; another folder is needed")
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(".cache.json.part")
            part.write_text(json.dumps(fingerprint))
            os.replace(part, path)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        return read_safetensors(self.path(key[1]))[0]


def _resized(picture: Tensor, size: list[int]) -> Tensor:
    """Bicubic, antialiased; unclamped."""
    if list(picture.shape[-2:]) == size:
        return picture
    return torch.nn.functional.interpolate(picture, size, mode="bicubic", antialias=True, align_corners=False)
