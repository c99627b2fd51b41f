"""Fine-tuning of DoSSR's networks, as the release trains them: only the ControlNet, by the L1 loss of x0.

    z0       a sample of the VAE's posterior of HR
    z_hat0   the mode of the hint encoder of the preprocessor's picture of LR, unclamped; the ControlNet's hint as well
    x_t      process.sample(z0, z_hat0, t, z),   the U-Net predicts what the pipeline's scheduler says, vp_eps

Latents can be cached: then a fixed number of samples is made once, and trained on. Process and prediction type are those of the
pipeline.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset

import dosde
from backbones import named, whole
from backbones.pictures.resize import bicubic
from backbones.sd21 import parts
from backbones.sd21.backbone import quiet
from backbones.sd21.pipeline import DoSSRPipeline
from backbones.weights import read_safetensors, write
from dosde.check import Refused

from . import digest
from .config import Config, Times, within
from .data import Own, Samples
from .task import Batch, Loss, Network, with_component


class SD21:
    """The task `sd21`.

    Args:
        config: the whole config.

    Raises:
        Refused: the folder of weights cannot be loaded, or does not suit the config.
    """

    def __init__(self, config: Config) -> None:
        quiet()
        try:
            self.pipe = pipe = DoSSRPipeline.from_pretrained(config.sd21.weights, dtype=torch.float32)
        except Refused as error:
            raise (error.under("sd21.weights") if error.argument == "weights" else within("sd21.weights", error)) from None
        except Exception as error:  # of diffusers, on a folder that is not whole: of many kinds, and of many lines
            raise Refused("sd21.weights", config.sd21.weights, f"it cannot be loaded ({named.said(error)})") from error
        predicts, crop = pipe.scheduler.predicts, config.data.crop
        if config.objective.predicts != predicts:
            raise Refused("objective.predicts", config.objective.predicts, f"{predicts!r}, as the pipeline's, is needed")
        if crop % pipe.multiple:
            raise Refused("data.crop", crop, f"a multiple of {pipe.multiple} is needed, as often as the networks halve it")
        self.process: dosde.Process = pipe.scheduler.process
        self.loss = Loss(self.process, config.objective, Times(self.process, config.objective))
        self.wanted, self.scale, self.bf16 = config.sd21, config.data.scale, config.precision == "bf16"
        self.validates = bool(config.validation.every)
        # What cached latents depend on; a cache knows the weights and the pictures by content, wherever they lie.
        self.fingerprint: dict[str, Any] = {}
        if config.sd21.cache:
            encoders = (pipe.vae, pipe.hint_encoder, pipe.preprocessor)
            self.fingerprint = {"weights": [digest.of_module(encoder) for encoder in encoders], **_settings(config)}
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
        """Moves the networks, and embeds the prompt by the text tower or from the cache, after which the text tower goes."""
        pipe = self.pipe
        if self.bf16:
            pipe.unet.to(torch.bfloat16)  # the encoders stay as they are: their output is the data
        pipe.to(device)
        with torch.no_grad():
            self.context = self._embedded_prompt()
        pipe.register_modules(text_encoder=None, tokenizer=None)

    def _embedded_prompt(self) -> Tensor:
        own, pipe = self.wanted, self.pipe
        known = pipe.prompts is not None and pipe.prompts(own.prompt) is not None
        if not own.cache or known:
            return pipe.encode_prompt(own.prompt, "sd21.prompt")
        assert pipe.folder is not None
        files = [path for name in ("text_encoder", "tokenizer") for path in sorted((pipe.folder / name).rglob("*"))]
        tower = [digest.of_files(filter(Path.is_file, files)), str(pipe.unet.dtype), own.prompt]
        path = Path(own.cache) / f"prompt_{hashlib.sha256(json.dumps(tower).encode()).hexdigest()[:16]}.safetensors"
        if path.exists():
            return read_safetensors(path)[0]["context"].to(pipe.unet.device, pipe.unet.dtype)
        context = pipe.encode_prompt(own.prompt, "sd21.prompt")
        if not dist.is_initialized() or dist.get_rank() == 0:  # one writes
            write(path, {"context": context}, {})
        return context

    def samples(self, samples: Dataset[Batch], rank: int, world: int) -> Dataset[Batch]:
        if not self.wanted.cache:
            return samples
        cached = Cached(samples, Path(self.wanted.cache), self.wanted.cache_samples)
        refused: Exception | None = None
        if rank == 0:
            try:
                cached.prepare(self._found(samples, rank), rank)
            except (Refused, OSError) as error:
                refused = error
        if dist.is_initialized():
            dist.barrier()  # no latents of another process before the folder is known to have none
        if refused is not None:
            raise refused
        if rank != 0:
            cached.prepare(self._found(samples, rank), rank)
        for number in range(rank, len(cached), world):
            if not cached.path(number).exists():
                sample = cached.source(number)
                moments, z_hat0 = self.encoded(*(sample[name][None].to(self.context.device) for name in ("hr", "lr")))
                write(cached.path(number), {"moments": moments[0], "z_hat0": z_hat0[0]}, {})
        if not self.validates:  # nothing needs them any more
            for module in (self.pipe.vae, self.pipe.hint_encoder, self.pipe.preprocessor):
                if module is not None:
                    module.to("cpu")
        return cached

    def _found(self, samples: Dataset[Batch], rank: int) -> dict[str, Any]:
        """The fingerprint with the pictures, and with the function that makes them worse, if it is a user's."""
        if not isinstance(samples, Samples):
            return self.fingerprint
        pictures = digest.of_pictures(samples.source, Path(self.wanted.cache), rank == 0)
        own = samples.degradation if isinstance(samples.degradation, Own) else None
        return {**self.fingerprint, "pictures": pictures, "degradation": own and digest.of_function(own.found)}

    @torch.no_grad()
    def encoded(self, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior of HR, joined, and z_hat0.

        Args:
            hr: pictures in [0, 1], (batch, 3, height, width).
            lr: pictures in [0, 1], smaller by the scale.
        """
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
        z0, z = self.pipe.latent(moments, batch["noise1"], None), batch["noise0"]
        t = self.loss.times(batch["part"])
        value = self.net(network, self.process.sample(z0, z_hat0, t, z), z_hat0, t)
        return self.loss(value, z0, z_hat0, t, z)

    def net(self, network: Network, x: Tensor, hint: Tensor, t: Tensor) -> Tensor:
        """The output of the U-Net with the residuals of this ControlNet, float32.

        Args:
            network: the ControlNet.
            x: x_t, (batch, channels, height, width).
            hint: z_hat0, in the shape of x.
            t: times, of shape (batch,).
        """
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

    def upscaled(
        self, network: Network, lr: Tensor, steps: int, order: int, noise: torch.Generator, solver: Mapping[str, Any]
    ) -> Tensor:
        pipe = self.pipe
        made = pipe.prepare(lr, self.scale, "mode")
        model = dosde.Denoiser(
            lambda x, _, t: self.net(network, x, made.hint, t.reshape(1).expand(len(x))), self.process, pipe.scheduler.predicts
        )
        x0 = dosde.solve(model, made.x_hat0, steps, order, noise=noise, **(solver or {"grid": pipe.scheduler.times(steps)}))
        return pipe.finish(x0, made.reference)

    def save(self, tensors: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str]) -> Path:
        """The pipeline's folder, with this ControlNet, as `save_pretrained` writes it, where nothing is yet."""
        controlnet = parts.filled("controlnet", dict(self.pipe.controlnet.config), dict(tensors))
        assert self.pipe.folder is not None
        return with_component(self.pipe.folder, folder, "controlnet", controlnet)


@dataclass(frozen=True)
class Cached(Dataset[Batch]):
    """The first samples of a data set, as latents in files; they are the same in every epoch.

    Args:
        samples: pictures, hr and lr.
        folder: the folder of the files.
        length: the number of samples.
    """

    samples: Dataset[Batch]
    folder: Path
    length: int

    def __len__(self) -> int:
        return self.length

    def path(self, number: int) -> Path:
        """The file of a sample."""
        return self.folder / f"{number:08d}.safetensors"

    def source(self, number: int) -> Batch:
        """The pictures of a sample."""
        return self.samples[divmod(number, len(self.samples))]  # type: ignore[arg-type]

    def prepare(self, fingerprint: Mapping[str, Any], rank: int) -> None:
        """Makes the folder, or finds out that its latents are those that are asked for.

        Args:
            fingerprint: what the latents depend on.
            rank: the number of this process; the first one writes.

        Raises:
            Refused: the folder holds other latents.
        """
        path = self.folder / "cache.json"
        if path.exists():
            known = json.loads(path.read_text())
            if known != fingerprint:
                other = [name for name in {**fingerprint, **known} if known.get(name) != fingerprint.get(name)]
                shown = f"{self.folder} holds latents of other data or weights ({', '.join(other)})"
                raise Refused("sd21.cache", self.folder, "another folder is needed", shown)
        elif rank == 0:
            if self.folder.is_dir() and any(self.folder.glob("0*.safetensors")):
                raise Refused("sd21.cache", self.folder, "another folder is needed", f"{self.folder} holds other files")
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole.file(path) as part:
                part.write_text(json.dumps(fingerprint))

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        return read_safetensors(self.path(key[1]))[0]


def _settings(config: Config) -> dict[str, Any]:
    """The keys of a config that cached latents depend on; not the names of folders, whose content counts."""
    plain = config.plain()
    data = {name: value for name, value in plain["data"].items() if name != "workers"}
    places = ("path", "hr", "lr")
    data["sources"] = [{key: value for key, value in one.items() if key not in places} for one in data["sources"]]
    return {"seed": plain["seed"], "data": data}


def _resized(picture: Tensor, size: list[int]) -> Tensor:
    """A picture in another size, unclamped."""
    return picture if list(picture.shape[-2:]) == size else bicubic(picture, size)
