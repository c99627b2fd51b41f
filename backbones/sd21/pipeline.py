"""DoSSRPipeline: a low-resolution picture -> RRDBNet -> VAE -> a solve of the domain-shift SDE -> VAE -> colour fix.

The stages are functions in `backbones.sd21.stages`. Here is what a pipeline of diffusers is: loading, saving, the stages with
the networks of the pipeline, the call.
"""

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, ControlNetModel, DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput, StableDiffusionMixin
from torch import Tensor

import dosde
from backbones import weights
from backbones.pictures import colour
from backbones.pictures import io as images
from backbones.weights import Tensors
from dosde import check
from dosde.check import Refused, RefusedType
from dosde.interop.diffusers import DoSDEScheduler
from dosde.noise import Independent, as_noise

from . import arguments, parts, stages
from .loop import INPUTS, Callback, Loop, Turn, in_turn
from .modules import HintEncoder, LatentControlNet, PromptEmbeddings
from .prompts import PROMPT
from .rrdb import RRDBNet
from .stages import Prepared
from .tiles import Tiles
from .tiles import tiles as tiles_of

Generators = torch.Generator | Sequence[torch.Generator] | None


class DoSSRPipeline(DiffusionPipeline, StableDiffusionMixin):  # type: ignore[misc]  # diffusers has no types
    """Upscales pictures with DoSSR's networks (or DiffBIR v1's), as diffusers' pipelines do.

    Args:
        vae: the VAE.
        hint_encoder: the encoder of the hint; `backbones.sd21.modules` has what diffusers has not.
        unet: the U-Net.
        controlnet: the ControlNet, whose hint is a latent.
        scheduler: process, prediction type, solver and grid.
        preprocessor: RRDBNet; None: pictures are only interpolated.
        prompts: embeddings of fixed prompts. With them text_encoder and tokenizer are needed for other prompts only.
        text_encoder: CLIP's text tower.
        tokenizer: its tokenizer.
    """

    model_cpu_offload_seq = "text_encoder->preprocessor->hint_encoder->unet->vae"
    _optional_components = ["preprocessor", "prompts", "text_encoder", "tokenizer"]  # noqa: RUF012
    _callback_tensor_inputs = list(INPUTS)  # noqa: RUF012

    def __init__(
        self,
        vae: AutoencoderKL,
        hint_encoder: HintEncoder,
        unet: UNet2DConditionModel,
        controlnet: LatentControlNet,
        scheduler: DoSDEScheduler,
        preprocessor: RRDBNet | None = None,
        prompts: PromptEmbeddings | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        if isinstance(controlnet, ControlNetModel) and not isinstance(controlnet, LatentControlNet):
            needed = "a LatentControlNet is needed, whose hint is a latent"
            raise RefusedType("controlnet", controlnet, needed, type(controlnet).__name__)
        for module in (vae, hint_encoder, unet, controlnet, preprocessor, prompts, text_encoder):
            if isinstance(module, torch.nn.Module):
                weights.aligned(module)
        self.register_modules(
            vae=vae,
            hint_encoder=hint_encoder,
            unet=unet,
            controlnet=controlnet,
            scheduler=scheduler,
            preprocessor=preprocessor,
            prompts=prompts,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self._unused: Tensors = {}
        self._compared: stages.Compared | None = None
        self.turn = Turn()
        self._interrupt, self._num_timesteps = False, 0
        self._guidance_scale = self._asked_scale = 1.0

    def __getattr__(self, name: str) -> Any:
        """Says of what stock pipelines have, and this one has not, what there is instead."""
        arguments.check_method(name)
        return super().__getattr__(name)

    # -- What callbacks read, as in stock pipelines ---------------------------------------------------------------------------

    @property
    def num_timesteps(self) -> int:
        """The steps of the call."""
        return self._num_timesteps

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the call, or what a callback made of it (`_guidance_scale`)."""
        return float(self._guidance_scale)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether there are two passes a step. A callback that sets the scale to 1 or less ends them, as in stock pipelines."""
        scale = self.guidance_scale
        return scale > 1 or scale == self._asked_scale != 1

    @property
    def interrupt(self) -> bool:
        """Whether a callback (`_interrupt`) has ended the solve."""
        return self._interrupt

    @property
    def folder(self) -> Path | None:
        """The folder that it was loaded from, where text_encoder and tokenizer wait for a prompt that needs them."""
        name = self.config.get("_name_or_path")
        return Path(name) if name and Path(name).is_dir() else None

    # -- Loading and saving -----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "DoSSRPipeline":
        """The pipeline in a folder that `dosde convert` or `save_pretrained` wrote.

        text_encoder and tokenizer are loaded when a prompt needs them.

        Args:
            pretrained_model_name_or_path: the folder, or the id of a repository of the hub.
            options: what diffusers takes (dtype, device_map, ...).

        Raises:
            Refused: the folder lacks a component.
        """
        from . import folders

        options = arguments.loading(options)
        hub = {name: options[name] for name in folders.OF_HUB if name in options}
        variant = options.pop("variant", None)
        folder = folders.checked(pretrained_model_name_or_path, variant, **hub)
        later: dict[str, Any] = {name: None for name in ("text_encoder", "tokenizer") if name not in options}
        if not folders.has(folder, "prompts"):
            later = {}
        options["variant"] = folders.variant_for(folder, variant)
        with folders.one_line_errors(folder), folders.no_talk_of_pickles():
            pipe: DoSSRPipeline = super().from_pretrained(str(folder.absolute()), **later, **options)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **options: Any) -> "DoSSRPipeline":
        """A pipeline with the components of another one; it finds text_encoder and tokenizer where the other one does."""
        pipe: DoSSRPipeline = super().from_pipe(pipeline, **options)
        if isinstance(pipeline, DoSSRPipeline):
            pipe.register_to_config(_name_or_path=pipeline.config.get("_name_or_path"))
            pipe._unused = pipeline._unused
        return pipe

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Writes a folder, as diffusers does, with text_encoder, tokenizer and the tensors of the released layout alone."""
        from . import folders

        self._load_text()
        super().save_pretrained(save_directory, **options)
        unused = self._unused or (folders.unused(self.folder) if self.folder else {})
        if unused:
            folders.write_unused(Path(save_directory), unused)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        *,
        original_config: str | Path | dict[str, Any] | None = None,
        preprocessor: str | Path | None = None,
        base: str | Path | None = None,
        **options: Any,
    ) -> "DoSSRPipeline":
        """From a checkpoint in the released layout: dossr_default, dossr_onestep (.ckpt, .safetensors), DiffBIR v1.

        Args:
            pretrained_model_link_or_path: the file.
            original_config: the release's YAML file, or its content: for num_head_channels (and heads of a text_cfg), which
                no tensor tells (default: 64 channels a head, and 8 in networks narrower than 256).
            preprocessor: an RRDBNet file, for a checkpoint without one (DiffBIR's is another network).
            base: a folder of SD 2.1-base, for a checkpoint without text tower, and for the tokenizer.
            options: dtype, the type of the weights (or torch_dtype, its older name); default: the checkpoint's.

        Raises:
            Refused: a tensor is missing, unexpected or wrongly shaped; the error names it.
        """
        from . import convert

        options = arguments.loading(options)
        dtype = options.pop("dtype", None)
        arguments.check_words(options, ("original_config", "preprocessor", "base", "dtype"))
        made = convert.parts_of_checkpoint(pretrained_model_link_or_path, original_config, preprocessor, base)
        made = convert.cast(made, dtype)
        modules: dict[str, Any] = {name: parts.filled(name, made.configs[name], made.tensors[name]) for name in made.tensors}
        pipe = cls(**modules, scheduler=DoSDEScheduler(**made.configs["scheduler"]), tokenizer=convert.tokenizer_of(base))
        pipe._unused = made.unused
        return pipe

    def _load_text(self) -> None:
        """text_encoder and tokenizer, from the folder of the pipeline, if it has them and they are not loaded."""
        from . import folders

        if self.text_encoder is None and self.folder is not None and self._stored("text_encoder"):
            from transformers import CLIPTextModel

            options = {"dtype": self._part("unet").dtype, "variant": parts.variant_of(self.folder / "text_encoder")}
            with folders.one_line_errors(self.folder):
                text = CLIPTextModel.from_pretrained(self.folder / "text_encoder", **options)
            self.register_modules(text_encoder=text.to(self._execution_device))
        if self.tokenizer is None and self.folder is not None and self._stored("tokenizer"):
            from transformers import CLIPTokenizer

            self.register_modules(tokenizer=CLIPTokenizer.from_pretrained(self.folder / "tokenizer"))

    def _stored(self, component: str) -> bool:
        """Whether the folder of the pipeline has a component."""
        return self.folder is not None and (self.folder / component).is_dir()

    # -- Stages -----------------------------------------------------------------------------------------------------------

    def _part(self, name: str) -> Any:
        """A network of the pipeline; refused where it was made without."""
        found = getattr(self, name)
        if not isinstance(found, torch.nn.Module):
            needed = "this network is needed here: from_pretrained and from_single_file load all of them"
            raise RefusedType(name, found, needed, type(found).__name__)
        return found

    @property
    def factor(self) -> int:
        """Pixels of the output a side of a latent."""
        return int(2 ** (len(self._part("vae").config.block_out_channels) - 1))

    @property
    def multiple(self) -> int:
        """Sides of the output are brought to a multiple of this: as often as VAE and U-Net halve them."""
        return self.factor * int(2 ** (len(self._part("unet").config.block_out_channels) - 1))

    def latent_shape(self, shape: Sequence[int], scale: float) -> tuple[int, ...]:
        """The shape of x_hat0, for pictures of a shape (batch, channels, height, width)."""
        sides = [-(-max(1, round(side * scale)) // self.multiple) * self.multiple // self.factor for side in shape[-2:]]
        return (shape[0], int(self._part("vae").config.latent_channels), *sides)

    def costs(self, guided: bool = False) -> dict[str, float]:
        """Bytes a pixel of the output of each stage, in the order in which they run."""
        return stages.costs(self._part("vae"), self._part("unet"), self.preprocessor, guided)

    def tiles_for(
        self,
        shape: Sequence[int],
        scale: float,
        tile: int | str | None = "auto",
        max_memory: float | None = None,
        guided: bool = False,
    ) -> Tiles:
        """The tiles of each stage.

        Args:
            shape: the shape of the pictures, (batch, channels, height, width).
            scale: how many times as large the output is.
            tile: "auto", a side in pixels of the output, or None for the picture whole.
            max_memory: bytes for "auto", beside the weights. Default: 80% of what is free on the device.
            guided: whether there are two passes a step.

        Raises:
            Refused: the tile, or the memory, is too small.
        """
        grows = 1 if self.preprocessor is None else int(self.preprocessor.config.scale)
        return tiles_of(
            shape,
            scale,
            tile,
            max_memory,
            costs=self.costs(guided),
            multiple=self.multiple,
            grows=grows,
            device=self._execution_device,
        )

    def preprocess(self, picture: Tensor, scale: float = 4, *, tile: int | None = None) -> Tensor:
        """I in [0, 1], (batch, 3, round(height x scale), round(width x scale)), float32, of a picture in [0, 1]."""
        grows = 1 if self.preprocessor is None else int(self.preprocessor.config.scale)
        side = None if tile is None else max(16, tile // grows)
        return stages.preprocess(self.preprocessor, picture, scale, self._execution_device, side, self._bar)

    def hint(self, reference: Tensor, *, tile: int | None = None) -> Tensor:
        """The hint latent (batch, 4, height / 8, width / 8), float32, of I, whose sides are multiples of `multiple`."""
        return stages.mode(self.moments(self._part("hint_encoder"), "hint", reference, tile), self._scaling)

    def source(
        self, reference: Tensor, source: str | Tensor = "mode", *, generator: Any = None, tile: int | None = None
    ) -> Tensor:
        """x_hat0 (batch, 4, height / 8, width / 8), float32, of I.

        Args:
            reference: I, whose sides are multiples of `multiple`.
            source: "mode" of the VAE's posterior, as in training; "sample", as the release infers, with noise from the
                generator; or the noise itself, a tensor in the shape of x_hat0.
            generator: a torch.Generator, or one a picture.
            tile: side of the tiles in pixels.
        """
        return self.latent(self.moments(self._part("vae"), "source", reference, tile), source, generator)

    def moments(self, encoder: torch.nn.Module, name: str, reference: Tensor, tile: int | None) -> Tensor:
        """Mean and log variance of the posterior of an encoder, joined, float32."""
        if any(side % self.multiple for side in reference.shape[-2:]):
            needed = f"sides that are multiples of {self.multiple} are needed (images.mirrored)"
            raise Refused("reference", reference, needed, str(tuple(reference.shape)))
        return stages.moments(encoder, name, reference, self.factor, tile, self._bar)

    def latent(self, moments: Tensor, source: str | Tensor, generator: Any) -> Tensor:
        """x_hat0 of a posterior; arguments as in `source`."""
        return stages.latent(moments, source, generator, self._scaling)

    def denoiser(
        self,
        hint: Tensor,
        context: Tensor,
        negative: Tensor | None = None,
        guidance_scale: float = 1.0,
        *,
        conditioning_scale: float = 1.0,
        tile: int | None = None,
    ) -> dosde.Denoiser:
        """U-Net and ControlNet as a model for `dosde.solve`.

        With `negative`, guided: out(negative) + guidance_scale (out(context) - out(negative)), two passes in one batch.

        Args:
            hint: hint latents, of `hint`.
            context: an embedded prompt for all pictures or each, of `encode_prompt`.
            negative: another one, for the guidance.
            guidance_scale: 1: without guidance.
            conditioning_scale: a factor on what the ControlNet adds.
            tile: side of the tiles in pixels of the output.
        """
        guided = negative is not None and guidance_scale != 1
        context = context.expand(len(hint), -1, -1)
        if guided:
            assert negative is not None
            context = torch.cat([negative.expand(len(hint), -1, -1), context])
        net = stages.Net(
            self._part("unet"),
            self._part("controlnet"),
            self.scheduler,
            hint.to(self.unet.dtype),
            context,
            guidance_scale if guided else None,
            conditioning_scale,
            None if tile is None else tile // self.factor,
            self.multiple // self.factor,
            self._bar,
        )
        return dosde.Denoiser(net, self.scheduler.process, predicts=self.scheduler.predicts)

    def decode(self, latent: Tensor, *, tile: int | None = None) -> Tensor:
        """The picture (batch, 3, height, width) of a latent, float32, about [0, 1] but not clamped."""
        return stages.decode(self._part("vae"), latent, self.factor, None if tile is None else tile // self.factor, self._bar)

    def fix_colour(self, picture: Tensor, reference: Tensor, how: str = "wavelet") -> Tensor:
        """The picture in the colours of the reference: wavelet, adain or none. Not clamped."""
        return colour.COLOUR_FIXES[how](picture, reference)

    def prepare(
        self,
        picture: Tensor,
        scale: float = 4,
        source: str | Tensor = "mode",
        *,
        generator: Any = None,
        tiles: Tiles = Tiles(),  # noqa: B008
    ) -> Prepared:
        """Everything before the solve, of pictures (batch, 3, height, width) in [0, 1]."""
        reference = self.preprocess(picture, scale, tile=tiles.preprocess)
        padded = images.mirrored(reference, self.multiple)
        if self._one_encoder():
            moments = self.moments(self._part("vae"), "encode", padded, tiles.encode)
            return Prepared(reference, stages.mode(moments, self._scaling), self.latent(moments, source, generator))
        hint = self.hint(padded, tile=tiles.encode)
        return Prepared(reference, hint, self.source(padded, source, generator=generator, tile=tiles.encode))

    def finish(self, x0: Tensor, reference: Tensor, color_fix: str = "wavelet", *, tile: int | None = None) -> Tensor:
        """Everything after the solve: a picture in [0, 1] of the reference's shape, float32."""
        height, width = reference.shape[-2:]
        picture = self.decode(x0, tile=tile)[..., :height, :width]
        return self.fix_colour(picture, reference, color_fix).clamp_(0, 1)

    @property
    def _scaling(self) -> float:
        return float(self._part("vae").config.scaling_factor)

    def _one_encoder(self) -> bool:
        """Whether one pass serves hint and source."""
        self._compared = stages.one_encoder(self._part("hint_encoder"), self._part("vae"), self._compared)
        return self._compared is not None and self._compared[1]

    def _bar(self, total: int, name: str) -> Any:
        """A progress bar, as `set_progress_bar_config` wants them."""
        from tqdm import tqdm

        return tqdm(total=total, **{"desc": name, "leave": False, **getattr(self, "_progress_bar_config", {})})

    # -- Prompts ----------------------------------------------------------------------------------------------------------

    def encode_prompt(self, prompt: str, argument: str = "prompt") -> Tensor:
        """The embedding of a prompt, (1, tokens, width), to which the U-Net attends.

        Args:
            prompt: the prompt.
            argument: its name in errors.

        Raises:
            Refused: the prompt needs a text tower or a tokenizer, and the model lacks it.
        """
        if not isinstance(prompt, str):
            raise RefusedType(argument, prompt, "a string, or one a picture, is needed")
        stored = None if self.prompts is None else self.prompts(prompt)
        if stored is not None:
            embedded: Tensor = stored.to(self._execution_device, self._part("unet").dtype)
            return embedded
        missing = [name for name in ("text_encoder", "tokenizer") if getattr(self, name) is None and not self._stored(name)]
        if missing:
            what = " and a ".join(missing)
            kept = [] if self.prompts is None else list(self.prompts.config.prompts)
            raise Refused(
                argument,
                prompt,
                f"one of {kept} is stored, and converting with --base FOLDER (SD 2.1-base) adds what is missing",
                f"{prompt!r} needs a {what}, which this model lacks",
            )
        self._load_text()
        most = self.text_encoder.config.max_position_embeddings
        tokens = self.tokenizer(prompt, padding="max_length", max_length=most, truncation=True).input_ids
        whole = self.tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(whole) > most:
            lost = self.tokenizer.decode(whole[most - 1 : -1])  # all but the token that ends a prompt
            left = f"{most - 2} tokens are read, and these words of it are not: {lost!r}"
            check.warn(argument, prompt, left, f"{len(whole) - 2} tokens")
        return self.embed(torch.tensor([tokens]))

    def embed(self, tokens: Tensor) -> Tensor:
        """The text tower's output for tokens (batch, 77)."""
        device = self._execution_device
        text: Tensor = self.text_encoder(tokens.to(device)).last_hidden_state
        return text.to(device, self._part("unet").dtype)

    # -- The whole --------------------------------------------------------------------------------------------------------

    @in_turn
    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        scale: float = 4,
        num_inference_steps: int = 5,
        order: int | None = 3,
        guidance_scale: float = 1.0,
        prompt: str | Sequence[str] = PROMPT,
        negative_prompt: str | Sequence[str] | None = "",
        generator: Generators = None,
        color_fix: str = "wavelet",
        source: str | Tensor = "mode",
        tile: int | str | None = "auto",
        max_memory: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        controlnet_conditioning_scale: float = 1.0,
        method: dosde.method.Method | None = None,
        grid: Any = None,
        noise: Any = None,
        strength: float = 1.0,
        num_images_per_prompt: int = 1,
        **words: Any,
    ) -> Any:
        """Upscales one picture or several.

        A pipeline serves one call after the other: a second thread waits for the first.

        Args:
            image: a PIL image of any mode; the path of a file; an array (height, width[, channels]), uint8, uint16 or float in
                [0, 1]; a tensor ([batch,] channels, height, width), uint8 or float in [0, 1]; or a list of them, of any sizes.
            scale: any positive number: the output has sides round(side x scale).
            num_inference_steps: steps of `dosde.solve`.
            order: order of `dosde.solve`, at most the steps; None: the scheduler's.
            guidance_scale: 1: without guidance. Otherwise there are two passes, with negative_prompt as well.
            prompt: a prompt, or one a picture.
            negative_prompt: the same for the guidance; None is the empty one.
            generator: a torch.Generator, or one a picture, which draws the noise that the picture would have alone.
            color_fix: "wavelet", "adain" or "none".
            source: "mode", as in training; "sample", as the release infers; or noise to sample with.
            tile: "auto": as large as memory permits; a side in pixels of the output, or None for the picture whole.
            max_memory: bytes that "auto" may use beside the weights. Default: 80% of what is free on the device.
            output_type: "pil" (8 bits, rounded; grey and alpha as in the input), "np" (batch, height,
                width, 3), "pt" (batch, 3, height, width), both in [0, 1], or "latent".
            return_dict: whether an ImagePipelineOutput is returned, or a tuple.
            callback_on_step_end: called with (pipeline, step, timestep, tensors) after each step, as in stock pipelines, whose
                callbacks (`SDCFGCutoffCallback`) serve. It may change the tensors, return others in a dict, set
                pipeline._guidance_scale, and end the solve with the best estimate so far by pipeline._interrupt.
            callback_on_step_end_tensor_inputs: what it gets, of latents, prompt_embeds (two passes have the negative ones in
                front) and negative_prompt_embeds.
            prompt_embeds: what `encode_prompt` returns, (1 or pictures, tokens, width), instead of a prompt.
            negative_prompt_embeds: the same instead of a negative prompt.
            controlnet_conditioning_scale: a factor on what the ControlNet adds.
            method: method of `dosde.solve`. Default: the scheduler's.
            grid: grid of `dosde.solve`. Default: the scheduler's.
            noise: noise of `dosde.solve`, instead of the generator; a list of generators has one a picture.
            strength: the part of the steps that is made, the last ones, as in img2img pipelines.
            num_images_per_prompt: results of each picture, side by side; lists of generators have one for each result.
            words: arguments of stock pipelines. One that is no argument here is refused, with what to use, unless its value
                means nothing (None, num_images_per_prompt=1, ...).

        Returns:
            ImagePipelineOutput(images), or (images,) unless return_dict. `images` is a list for "pil", and for pictures of
            several sizes.

        Raises:
            ValueError: an argument cannot be used; before any work.
            TypeError: an argument has a wrong type; before any work.
        """
        arguments.check_words(words, tuple(inspect.signature(type(self).__call__).parameters)[1:-1])
        for name, kind, told in arguments.NETWORKS:
            network = self._part(name)
            if told not in getattr(network, "config", {}):
                raise RefusedType(name, network, f"{kind} is needed", type(network).__name__)
        count = check.count("num_images_per_prompt", num_images_per_prompt)
        pictures = arguments.repeated(arguments.pictures_of(image), count)
        prompt = arguments.repeated(prompt, count)
        negative_prompt = arguments.repeated("" if negative_prompt is None else negative_prompt, count)
        steps = check.count("num_inference_steps", num_inference_steps)
        order = None if order is None else check.count("order", order)
        callback = callback_on_step_end
        inputs = getattr(callback, "tensor_inputs", callback_on_step_end_tensor_inputs)  # as diffusers' own callbacks say
        conditioning = controlnet_conditioning_scale
        arguments.check_call(
            self.scheduler, scale, color_fix, source, output_type, guidance_scale, conditioning, callback, inputs
        )
        scale = float(scale)
        arguments.check_counts(len(pictures), prompt=prompt, negative_prompt=negative_prompt, generator=generator, noise=noise)
        Independent(generator)  # their errors, before any work
        as_noise(noise)
        if order is None and method is None:
            order = self.scheduler.order_for(steps)
        elif order is not None:
            order = min(order, steps)
        solver = {"method": method or self.scheduler.method, "grid": self.scheduler.times(steps) if grid is None else grid}
        dosde.plan(self.scheduler.process, steps, order, **solver)  # its errors, before any work
        if strength != 1:
            solver["grid"] = arguments.last_part(solver["grid"], self.scheduler.process, steps, strength)
            steps = len(solver["grid"]) - 1
            order = None if order is None else min(order, steps)
        self._interrupt, self._num_timesteps = False, steps
        self._guidance_scale = self._asked_scale = float(guidance_scale)
        jobs = []
        for first, last in arguments.runs([p.colour.shape[-2:] for p in pictures]):
            shape = (last - first, 3, *pictures[first].colour.shape[-2:])
            latent = self.latent_shape(shape, scale)
            if isinstance(source, Tensor) and tuple(source.shape) != latent:
                shown = f"a tensor of shape {tuple(source.shape)}"
                raise Refused("source", source, f"noise of shape {latent} is needed", shown)
            jobs.append((first, last, self.tiles_for(shape, scale, tile, max_memory, guidance_scale != 1)))
        context = self._embedded("prompt", prompt, prompt_embeds, len(pictures), count)
        negative = None
        if guidance_scale != 1:
            negative = self._embedded("negative_prompt", negative_prompt, negative_prompt_embeds, len(pictures), count)
        results: list[Tensor] = []
        for first, last, tiles in jobs:
            rgb = torch.cat([p.visible.expand(-1, 3, -1, -1) for p in pictures[first:last]])
            own = arguments.part(generator, first, last)
            made = self.prepare(rgb, scale, source, generator=own, tiles=tiles)
            self._guidance_scale = float(guidance_scale)  # which a callback may have changed for the pictures before
            loop = Loop(
                self,
                functools.partial(self.denoiser, made.hint, conditioning_scale=conditioning, tile=tiles.solve),
                arguments.rows(context, first, last),
                None if negative is None else arguments.rows(negative, first, last),
                callback,
                inputs or (),
            )
            drawn = own if noise is None else arguments.part(noise, first, last)
            x0 = self._solve(loop, made.x_hat0, steps, order, noise=drawn, **solver)
            if output_type == "latent":
                results += x0.chunk(len(x0))
            else:
                finished = self.finish(x0, made.reference, color_fix, tile=tiles.decode)
                # Off the device at once, where they end on the host: many large ones need not fit there together.
                results += (finished.cpu() if output_type in ("pil", "np") else finished).chunk(len(finished))
        self.maybe_free_model_hooks()
        images_out = arguments.output(results, pictures, output_type)
        return ImagePipelineOutput(images=images_out) if return_dict else (images_out,)

    def _embedded(self, name: str, prompt: str | Sequence[str], embeds: Tensor | None, count: int, each: int) -> Tensor:
        """The embeddings (1 or count, tokens, width) of one prompt, or of one a result, or those that the user has.

        each: results of a picture. Embeddings of the user's may be one a picture, too.
        """
        if embeds is None:
            asked: list[Any] = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
            return torch.cat([self.encode_prompt(one, name) for one in asked])
        width = self.unet.config.cross_attention_dim
        if each > 1 and isinstance(embeds, Tensor) and embeds.ndim == 3 and 1 < embeds.shape[0] == count // each:
            embeds = embeds.repeat_interleave(each, 0)
        if not isinstance(embeds, Tensor) or embeds.ndim != 3 or embeds.shape[0] not in (1, count) or embeds.shape[2] != width:
            what = f"shape {tuple(embeds.shape)}" if isinstance(embeds, Tensor) else type(embeds).__name__
            batch = "1" if count == 1 else f"1 or {count}"
            raise Refused(f"{name}_embeds", embeds, f"a tensor ({batch}, tokens, {width}) is needed", what)
        return embeds.to(self._execution_device, self.unet.dtype)

    def _solve(self, loop: Loop, x_hat0: Tensor, steps: int, order: int | None, **solver: Any) -> Tensor:
        """`dosde.solve`, with the callback of the loop, under a progress bar."""
        with self._bar(steps, "solve") as bar:
            return loop.solve(x_hat0, steps, order, bar, **solver)


# What `DiffusionPipeline.from_pretrained` asks diffusers for, by the name in a folder's model_index.json.
diffusers.DoSSRPipeline = DoSSRPipeline
