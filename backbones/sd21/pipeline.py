"""DoSSRPipeline: a low-resolution picture -> RRDBNet -> VAE -> a solve of the domain-shift SDE -> VAE -> colour fix.

The stages are in `backbones.sd21.stages`; here is what a pipeline of diffusers is: loading, saving, checks, the call.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

import dosde
from backbones import weights
from backbones.pictures import colour
from backbones.pictures import io as images
from backbones.weights import Tensors
from dosde import check
from dosde.interop.diffusers import DoSDEScheduler
from dosde.noise import Independent, as_noise

from . import malloc, parts
from .modules import HintEncoder, LatentControlNet, PromptEmbeddings
from .rrdb import RRDBNet
from .stages import PROMPT, Stages
from .tiles import Tiles

Generators = torch.Generator | Sequence[torch.Generator] | None


class DoSSRPipeline(Stages, DiffusionPipeline):  # type: ignore[misc]
    """Upscales pictures with DoSSR's networks (or DiffBIR v1's), as diffusers' pipelines do.

    vae, hint_encoder, unet, controlnet   the networks (`backbones.sd21.modules` has what diffusers has not)
    scheduler      `DoSDEScheduler`: process, prediction type, solver and grid
    preprocessor   RRDBNet, or None: pictures are only interpolated
    prompts        embeddings of fixed prompts; with them text_encoder and tokenizer are needed for other prompts only, and
                   are loaded from the folder of the pipeline when one is asked for
    """

    model_cpu_offload_seq = "text_encoder->preprocessor->hint_encoder->unet->vae"
    _optional_components = ["preprocessor", "prompts", "text_encoder", "tokenizer"]  # noqa: RUF012
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

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
        self._folder: Path | None = None
        self._unused: Tensors = {}
        self._compared: tuple[Any, bool] | None = None
        self._interrupt = False

    # -- Loading and saving -----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **how: Any) -> "DoSSRPipeline":
        """From a folder that `dosde convert` or `save_pretrained` wrote; `how` as in diffusers (dtype, device_map, ...).

        text_encoder and tokenizer are loaded when a prompt needs them. Errors: ValueError for a folder that lacks a component.
        """
        from . import folders

        hub = {name: how[name] for name in folders.OF_HUB if name in how}
        folder = folders.checked(pretrained_model_name_or_path, **hub)
        later: dict[str, Any] = {name: None for name in ("text_encoder", "tokenizer") if name not in how}
        if not folders.has(folder, "prompts"):
            later = {}
        if "torch_dtype" in how:  # its older name
            how["dtype"] = how.pop("torch_dtype")
        with folders.one_line_errors(folder):
            pipe: DoSSRPipeline = super().from_pretrained(str(folder), **later, **how)
        pipe._folder = folder
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                weights.aligned(module)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **how: Any) -> "DoSSRPipeline":
        """As in diffusers; the new pipeline finds text_encoder and tokenizer where the old one does."""
        pipe: DoSSRPipeline = super().from_pipe(pipeline, **how)
        if isinstance(pipeline, DoSSRPipeline):
            pipe._folder, pipe._unused = pipeline._folder, pipeline._unused
        return pipe

    def save_pretrained(self, save_directory: str | Path, **how: Any) -> None:
        """As in diffusers; text_encoder, tokenizer and the tensors that only the released layout has come along."""
        from . import folders

        self._load_text()
        super().save_pretrained(save_directory, **how)
        unused = self._unused or (folders.unused(self._folder) if self._folder else {})
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
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> "DoSSRPipeline":
        """From a checkpoint in the released layout: dossr_default, dossr_onestep (.ckpt, .safetensors), DiffBIR v1.

        original_config  the release's YAML file, or what it holds: for num_head_channels (and heads of a text_cfg), which no
                         tensor tells (default: 64 channels a head, and 8 in networks narrower than 256).
        preprocessor     an RRDBNet file, for a checkpoint without one (DiffBIR's is another network).
        base             a folder of SD 2.1-base, for a checkpoint without text tower, and for the tokenizer.
        dtype            default: the checkpoint's. torch_dtype is its older name.
        Errors: ValueError that names the tensor that is missing, unexpected or wrongly shaped.
        """
        from . import convert

        dtype = dtype or torch_dtype
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype: {dtype!r}; a torch.dtype, or None, is needed")
        made = convert.parts_of_checkpoint(pretrained_model_link_or_path, original_config, preprocessor, base)
        made = convert.cast(made, dtype)
        modules: dict[str, Any] = {name: parts.filled(name, made.configs[name], made.tensors[name]) for name in made.tensors}
        pipe = cls(**modules, scheduler=DoSDEScheduler(**made.configs["scheduler"]), tokenizer=convert.tokenizer_of(base))
        pipe._unused = made.unused
        return pipe

    def _load_text(self) -> None:
        """text_encoder and tokenizer, from the folder of the pipeline, if it has them and they are not loaded."""
        from . import folders

        if self.text_encoder is None and self._folder is not None and self._stored("text_encoder"):
            from transformers import CLIPTextModel

            with folders.one_line_errors(self._folder):
                text = CLIPTextModel.from_pretrained(self._folder / "text_encoder", dtype=self.unet.dtype)
            self.register_modules(text_encoder=text.to(self._execution_device))
        if self.tokenizer is None and self._folder is not None and self._stored("tokenizer"):
            from transformers import CLIPTokenizer

            self.register_modules(tokenizer=CLIPTokenizer.from_pretrained(self._folder / "tokenizer"))

    def _stored(self, component: str) -> bool:
        """Whether the folder of the pipeline has a component."""
        return self._folder is not None and (self._folder / component).is_dir()

    # -- Stages -----------------------------------------------------------------------------------------------------------

    def encode_prompt(self, prompt: str, argument: str = "prompt") -> Tensor:
        """(1, tokens, width), what the U-Net attends to. argument: its name in errors.

        Errors: ValueError for a prompt that needs what is not here.
        """
        if not isinstance(prompt, str):
            raise TypeError(f"{argument}: {prompt!r}; a string, or one a picture, is needed")
        stored = None if self.prompts is None else self.prompts(prompt)
        if stored is not None:
            embedded: Tensor = stored.to(self._execution_device, self.unet.dtype)
            return embedded
        missing = [name for name in ("text_encoder", "tokenizer") if getattr(self, name) is None and not self._stored(name)]
        if missing:
            what = " and a ".join(missing)
            kept = [] if self.prompts is None else list(self.prompts.config.prompts)
            raise ValueError(
                f"{argument}: {prompt!r} needs a {what}, which this model lacks; one of {kept} is stored, and converting with "
                "--base FOLDER (SD 2.1-base) adds what is missing"
            )
        self._load_text()
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=self.text_encoder.config.max_position_embeddings, truncation=True
        ).input_ids
        return self.embed(torch.tensor([tokens]))

    def embed(self, tokens: Tensor) -> Tensor:
        """The text tower's output for tokens (batch, 77)."""
        device = self._execution_device
        text: Tensor = self.text_encoder(tokens.to(device)).last_hidden_state
        return text.to(device, self.unet.dtype)

    # -- The whole --------------------------------------------------------------------------------------------------------

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
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        controlnet_conditioning_scale: float = 1.0,
        method: dosde.method.Method | None = None,
        grid: Any = None,
        noise: Any = None,
    ) -> Any:
        """Upscales one picture or several.

        image          a PIL image of any mode; an array (height, width[, channels]), uint8, uint16 or float in [0, 1]; a tensor
                       ([batch,] channels, height, width), uint8 or float in [0, 1]; or a list of them, of any sizes.
        scale          any positive number: the output has sides round(side x scale).
        num_inference_steps, order   of `dosde.solve`; the order is at most the steps.
        guidance_scale 1: without. Otherwise two passes, with negative_prompt as well.
        prompt, negative_prompt   one, or one a picture; None for the latter is the empty one. prompt_embeds,
                       negative_prompt_embeds: what `encode_prompt` makes of them, (1 or pictures, tokens, width), instead.
        generator      a torch.Generator, or one a picture, which gets the noise that it would have alone.
        color_fix      wavelet, adain or none.
        source         "mode", as in training; "sample", as the release infers; or noise to sample with.
        tile           "auto": as large as memory permits; a side in pixels of the output, or None for the picture whole.
        max_memory     bytes that "auto" may use beside the weights. Default: 80% of what is free on the device.
        output_type    "pil" (8 bits, cut off as the release does; grey and alpha as in the input), "np" (batch, height, width,
                       3), "pt" (batch, 3, height, width), both in [0, 1], or "latent".
        callback_on_step_end   (pipeline, step, timestep, {"latents": x}) after each step. Setting pipeline._interrupt ends the
                       solve with the best estimate so far. Latents cannot be replaced, and are the one tensor input.
        method, grid, noise   of `dosde.solve`; default: the scheduler's. noise replaces the generator in the solve; of
                       generators, one a picture.

        Returns ImagePipelineOutput(images), or (images,) unless return_dict; lists for "pil" and pictures of several sizes.
        Errors: ValueError or TypeError before any work.
        """
        pictures = _pictures(image)
        steps = check.count("num_inference_steps", num_inference_steps)
        order = None if order is None else check.count("order", order)
        callback, inputs = callback_on_step_end, callback_on_step_end_tensor_inputs
        conditioning = controlnet_conditioning_scale
        self._check(scale, color_fix, source, output_type, guidance_scale, conditioning, callback, inputs)
        scale, negative_prompt = float(scale), "" if negative_prompt is None else negative_prompt
        per_picture = {"prompt": prompt, "negative_prompt": negative_prompt, "generator": generator, "noise": noise}
        for name, given in per_picture.items():
            if isinstance(given, Sequence) and not isinstance(given, str) and len(given) != len(pictures):
                raise ValueError(f"{name}: {len(given)} of them; one, or {len(pictures)} (one a picture), is needed")
        Independent(generator)  # their errors, before any work
        as_noise(noise)
        self._interrupt = False
        if order is None and method is None:
            order = self.scheduler.order_for(steps)
        elif order is not None:
            order = min(order, steps)
        how = {"method": method or self.scheduler.method, "grid": self.scheduler.times(steps) if grid is None else grid}
        dosde.plan(self.scheduler.process, steps, order, **how)  # its errors, before any work
        runs = _runs([p.colour.shape[-2:] for p in pictures])
        jobs = []
        for first, last in runs:
            shape = (last - first, 3, *pictures[first].colour.shape[-2:])
            latent = self.latent_shape(shape, scale)
            if isinstance(source, Tensor) and tuple(source.shape) != latent:
                raise ValueError(f"source: a tensor of shape {tuple(source.shape)}; noise of shape {latent} is needed")
            jobs.append((first, last, self.tiles_for(shape, scale, tile, max_memory, guidance_scale != 1)))
        context = self._embedded("prompt", prompt, prompt_embeds, len(pictures))
        negative = None
        if guidance_scale != 1:
            negative = self._embedded("negative_prompt", negative_prompt, negative_prompt_embeds, len(pictures))
        results: list[Tensor] = []
        for first, last, tiles in jobs:
            # Memory is not kept in tiles, which are there to need little of it.
            with malloc.kept() if tiles == Tiles() else nullcontext():
                rgb = torch.cat([p.colour.expand(-1, 3, -1, -1) for p in pictures[first:last]])
                own, drawn = (given[first:last] if isinstance(given, Sequence) else given for given in (generator, noise))
                made = self.prepare(rgb, scale, source, generator=own, tiles=tiles)
                model = self.denoiser(
                    made.hint,
                    _of(context, first, last),
                    None if negative is None else _of(negative, first, last),
                    guidance_scale,
                    conditioning_scale=conditioning,
                    tile=tiles.solve,
                )
                drawn = own if noise is None else drawn
                x0 = self._solve(model, made.x_hat0, steps, order, callback_on_step_end, noise=drawn, **how)
                if output_type == "latent":
                    results += x0.chunk(len(x0))
                else:
                    finished = self.finish(x0, made.reference, color_fix, tile=tiles.decode)
                    # Off the device at once, where they end on the host: many large ones need not fit there together.
                    results += (finished.cpu() if output_type in ("pil", "np") else finished).chunk(len(finished))
        self.maybe_free_model_hooks()
        images_out = _output(results, pictures, output_type)
        return ImagePipelineOutput(images=images_out) if return_dict else (images_out,)

    def _embedded(self, name: str, prompt: str | Sequence[str], embeds: Tensor | None, count: int) -> Tensor:
        """(1 or count, tokens, width) of one prompt, or one a picture, or as given. Errors: ValueError, TypeError."""
        if embeds is None:
            asked: list[Any] = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
            return torch.cat([self.encode_prompt(one, name) for one in asked])
        width = self.unet.config.cross_attention_dim
        if not isinstance(embeds, Tensor) or embeds.ndim != 3 or embeds.shape[0] not in (1, count) or embeds.shape[2] != width:
            what = f"shape {tuple(embeds.shape)}" if isinstance(embeds, Tensor) else type(embeds).__name__
            batch = "1" if count == 1 else f"1 or {count}"
            raise ValueError(f"{name}_embeds: {what}; a tensor ({batch}, tokens, {width}) is needed")
        return embeds.to(self._execution_device, self.unet.dtype)

    def _solve(
        self,
        model: dosde.Denoiser,
        x_hat0: Tensor,
        steps: int,
        order: int | None,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], Any] | None,
        **how: Any,
    ) -> Tensor:
        """`dosde.solve`, with diffusers' callback: it gets the state after a step, which `solve` shows at the next one."""
        before: list[float] = []

        def report(latents: Tensor) -> None:
            if callback_on_step_end is None:
                return
            answer = callback_on_step_end(self, len(before) - 1, self.scheduler.model_time(before[-1]), {"latents": latents})
            if isinstance(answer, dict) and answer.get("latents", latents) is not latents:
                raise ValueError(
                    "callback_on_step_end: returned other latents; they cannot be replaced (set pipeline._interrupt to stop)"
                )

        def each(step: int, t: Tensor, x: Tensor, x_theta: Tensor) -> None:
            bar.update()
            if before:
                report(x)
            before.append(float(t))
            if self._interrupt:
                raise _Interrupted(x_theta)

        with self._bar(steps, "solve") as bar:
            try:
                x0 = dosde.solve(model, x_hat0, steps, order, callback=each, **how)
            except _Interrupted as stopped:
                return stopped.x_theta
        report(x0)
        return x0

    def _check(
        self,
        scale: object,
        color_fix: str,
        source: object,
        output_type: str,
        guidance_scale: object,
        conditioning: object,
        callback: object,
        inputs: Sequence[str] | None,
    ) -> None:
        if not isinstance(self.scheduler, DoSDEScheduler):
            raise TypeError(f"scheduler: {type(self.scheduler).__name__}; a DoSDEScheduler is needed")
        if not isinstance(scale, Real) or not 0 < float(scale) <= 64:
            raise ValueError(f"scale: {scale!r}; a number above 0, up to 64, is needed")
        if not isinstance(color_fix, str) or color_fix not in colour.COLOUR_FIXES:
            raise ValueError(f"color_fix: {color_fix!r}; one of {', '.join(colour.COLOUR_FIXES)} is needed")
        if isinstance(source, Tensor) and not (source.is_floating_point() and source.isfinite().all()):
            raise ValueError(f"source: {str(source.dtype)[6:]}, or NaN or infinity in it; finite floating noise is needed")
        if not isinstance(source, Tensor) and not (isinstance(source, str) and source in ("mode", "sample")):
            said = repr(source) if isinstance(source, str) else type(source).__name__
            raise ValueError(f"source: {said}; 'mode', 'sample', or noise in the shape of x_hat0, is needed")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type: {output_type!r}; one of pil, np, pt, latent is needed")
        if not isinstance(guidance_scale, Real) or not -1e6 < float(guidance_scale) < 1e6:
            raise ValueError(f"guidance_scale: {guidance_scale!r}; a number is needed, 1 for none")
        if not isinstance(conditioning, Real) or not -1e6 < float(conditioning) < 1e6:
            raise ValueError(f"controlnet_conditioning_scale: {conditioning!r}; a number is needed")
        if inputs is not None and list(inputs) not in ([], ["latents"]):
            raise ValueError(f"callback_on_step_end_tensor_inputs: {inputs!r}; ['latents'] is needed, there is no other")
        if callback is not None and not callable(callback):
            raise TypeError(f"callback_on_step_end: {callback!r}; a function is needed")


class _Interrupted(Exception):
    def __init__(self, x_theta: Tensor) -> None:
        super().__init__()
        self.x_theta = x_theta


def _of(context: Tensor, first: int, last: int) -> Tensor:
    """The part of some pictures, where there is one a picture."""
    return context if len(context) == 1 else context[first:last]


def _runs(sizes: Sequence[Any]) -> list[tuple[int, int]]:
    """First and last + 1 of each run of equal sizes."""
    starts = [i for i, size in enumerate(sizes) if i == 0 or size != sizes[i - 1]]
    return list(zip(starts, [*starts[1:], len(sizes)], strict=True))


def _pictures(image: Any) -> list[images.Picture]:
    """One picture an element. Errors: TypeError, ValueError."""
    if isinstance(image, list | tuple):
        if not image:
            raise ValueError("image: an empty list; at least one picture is needed")
        return [picture for one in image for picture in _pictures(one)]
    if isinstance(image, Tensor | np.ndarray):
        return images.of_array(image)
    from PIL.Image import Image

    if isinstance(image, Image):
        return [images.of_pil(image)]
    raise TypeError(f"image: {type(image).__name__}; a PIL image, an array, a tensor, or a list of them, is needed")


def _output(results: list[Tensor], pictures: list[images.Picture], output_type: str) -> Any:
    if output_type == "pil":
        return [images.to_pil(result.cpu(), picture) for result, picture in zip(results, pictures, strict=True)]
    if output_type == "np":
        arrays = [result.permute(0, 2, 3, 1).cpu().numpy() for result in results]
        return np.concatenate(arrays) if len({a.shape for a in arrays}) == 1 else [a[0] for a in arrays]
    return torch.cat(results) if len({r.shape for r in results}) == 1 else [r[0] for r in results]
