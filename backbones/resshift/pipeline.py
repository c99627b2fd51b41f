"""ResShiftPipeline: a low-resolution picture -> VQ autoencoder -> a solve of ResShift's process -> VQ autoencoder.

The stages are functions in `backbones.resshift.stages`. Here is what a pipeline of diffusers is: loading, saving, the stages
with the networks of the pipeline, the call.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, VQModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

import dosde
from backbones import weights
from backbones.pictures.resize import bicubic
from backbones.sd21 import arguments
from backbones.sd21 import folders as converted
from backbones.sd21.convert import cast
from backbones.sd21.tiles import Tiles
from backbones.sd21.tiles import tiles as tiles_of
from backbones.weights import Tensors
from dosde import check
from dosde.check import Refused, RefusedType
from dosde.interop.diffusers import DoSDEScheduler
from dosde.noise import Independent, as_noise

from . import convert, folders, stages
from .network import SwinUNet
from .stages import Prepared

Generators = torch.Generator | Sequence[torch.Generator] | None
LICENCES = {
    None: "ResShift's weights are under the S-Lab License 1.0: not for commercial use",
    1: "SinSR's weights are under CC BY-NC-SA 4.0: not for commercial use",
}


class ResShiftPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers has no types
    """Upscales pictures with ResShift's networks (or SinSR's), in any number of steps, as diffusers' pipelines do.

    Args:
        unet: the U-Net.
        vqvae: the autoencoder.
        scheduler: process, prediction type, solver and grid.
        distilled_steps: the number of steps of a network that knows no other; SinSR's is 1.
    """

    model_cpu_offload_seq = "unet->vqvae"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(self, unet: SwinUNet, vqvae: VQModel, scheduler: DoSDEScheduler, distilled_steps: int | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, vqvae=vqvae, scheduler=scheduler)
        self.register_to_config(distilled_steps=distilled_steps)
        self.folder: Path | None = None
        self._unused: Tensors = {}
        self._interrupt = False

    # -- Loading and saving -----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "ResShiftPipeline":
        """The pipeline in a folder that `dosde convert` or `save_pretrained` wrote. The licence of the weights is said once.

        Args:
            pretrained_model_name_or_path: the folder, or the id of a repository of the hub.
            options: what diffusers takes (dtype, device_map, ...).

        Raises:
            Refused: the folder lacks a component.
        """
        hub = {name: options[name] for name in converted.OF_HUB if name in options}
        folder = folders.checked(pretrained_model_name_or_path, **hub)
        if "torch_dtype" in options:  # its older name
            options["dtype"] = options.pop("torch_dtype")
        with converted.one_line_errors(folder):
            pipe: ResShiftPipeline = super().from_pretrained(str(folder), **options)
        pipe.folder = folder
        for module in (pipe.unet, pipe.vqvae):
            weights.aligned(module)
        say_licence(pipe.config.distilled_steps)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **options: Any) -> "ResShiftPipeline":
        """A pipeline with the components of another one."""
        pipe: ResShiftPipeline = super().from_pipe(pipeline, **options)
        if isinstance(pipeline, ResShiftPipeline):
            pipe.folder, pipe._unused = pipeline.folder, pipeline._unused
        return pipe

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Writes a folder, as diffusers does, with the tensors of the released files that training alone uses."""
        super().save_pretrained(save_directory, **options)
        unused = self._unused or (converted.unused(self.folder) if self.folder else {})
        if unused:
            converted.write_unused(Path(save_directory), unused)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        *,
        autoencoder: str | Path,
        original_config: str | Path | Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> "ResShiftPipeline":
        """From the two released files of ResShift or SinSR. The licence of the weights is said once.

        Args:
            pretrained_model_link_or_path: the U-Net, resshift_*.pth or SinSR_*.pth.
            autoencoder: the autoencoder, autoencoder_vq_f4.pth, say.
            original_config: the release's YAML file, or its content, for what no tensor tells (default: what the name of the
                released U-Net tells).
            dtype: the type of the weights; default: that of the files.
            torch_dtype: the older name of dtype.

        Raises:
            Refused: a tensor is missing, unexpected or wrongly shaped; the error names it.
        """
        dtype = dtype or torch_dtype
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise RefusedType("dtype", dtype, "a torch.dtype, or None, is needed")
        made = convert.parts_of_checkpoints([pretrained_model_link_or_path, autoencoder], original_config)
        made = cast(made, dtype)
        modules = {name: convert.filled(name, made.configs[name], made.tensors[name]) for name in made.tensors}
        pipe = cls(**modules, scheduler=DoSDEScheduler(**made.configs["scheduler"]), **made.configs["pipeline"])
        pipe._unused = made.unused
        say_licence(pipe.config.distilled_steps)
        return pipe

    # -- Stages -----------------------------------------------------------------------------------------------------------

    @property
    def factor(self) -> int:
        """Pixels of the networks' output a side of a latent."""
        return int(2 ** (len(self.vqvae.config.block_out_channels) - 1))

    @property
    def scale(self) -> int:
        """How many times the networks enlarge: the LQ picture is as many times larger than the latent as its branch halves."""
        return self.factor // int(self.unet.reduction)

    @property
    def inpaints(self) -> bool:
        """Whether the U-Net sees a mask beside the LQ picture."""
        return int(self.unet.config.lq_channels) > int(self.vqvae.config.in_channels)

    @property
    def multiple(self) -> int:
        """Sides of the networks' output are brought to a multiple of this, the side in training, as in the release."""
        return math.lcm(int(self.unet.config.sample_size), int(self.unet.multiple)) * self.factor

    def tiles_for(
        self, shape: Sequence[int], scale: float, tile: int | str | None = "auto", max_memory: float | None = None
    ) -> Tiles:
        """The tiles of each stage.

        Args:
            shape: the shape of the pictures, (batch, channels, height, width).
            scale: how many times as large the output is.
            tile: "auto", a side in pixels of the output, or None for the picture whole.
            max_memory: bytes for "auto", beside the weights. Default: 80% of what is free on the device.

        Raises:
            Refused: the tile, or the memory, is too small.
        """
        grown, _ = stages.sizes(shape, scale, self.scale)
        return tiles_of(
            [shape[0], shape[1], *grown],
            self.scale,
            tile,
            max_memory,
            costs=stages.costs(self.vqvae, self.unet),
            multiple=self.multiple,
            grows=1,
            device=self._execution_device,
        )

    @torch.no_grad()
    def prepare(
        self,
        picture: Tensor,
        scale: float = 4,
        mask: Tensor | None = None,
        *,
        tiles: Tiles = Tiles(),  # noqa: B008
    ) -> Prepared:
        """Everything before the solve, of pictures (batch, 3, height, width) in [0, 1].

        Args:
            picture: the pictures.
            scale: how many times as large the result is.
            mask: for a network that inpaints, (batch, 1, height, width), 1 where the picture is unknown, else 0.
            tiles: the tiles of each stage.
        """
        self.check_mask(mask, picture.shape)
        grown, _ = stages.sizes(picture.shape, scale, self.scale)
        reference = picture.to(self._execution_device, torch.float32)
        if list(reference.shape[-2:]) != grown:
            reference = bicubic(reference, grown).clamp_(0, 1)
            mask = mask if mask is None else torch.nn.functional.interpolate(mask, grown)
        multiple = self.multiple // self.scale
        lq = stages.reflected(2 * reference - 1, multiple)
        x_hat0 = self._encoded(stages.enlarged(lq, self.scale), tiles.encode)
        if mask is not None:
            mask = mask.to(reference)
            lq = torch.cat([lq, stages.reflected(2 * mask - 1, multiple)], 1)
        return Prepared(lq, x_hat0, reference, mask)

    @torch.no_grad()
    def encode(self, picture: Tensor, *, tile: int | None = None) -> Tensor:
        """The latent of a picture in [0, 1], not quantised: the target x0 of a large one, its sides padded to `multiple`."""
        picture = picture.to(self._execution_device, torch.float32)
        return self._encoded(stages.reflected(2 * picture - 1, self.multiple), tile)

    def _encoded(self, picture: Tensor, tile: int | None) -> Tensor:
        return stages.encode(self.vqvae, picture, self.factor, tile, self._bar)

    def denoiser(self, lq: Tensor, *, tile: int | None = None) -> dosde.Denoiser:
        """The U-Net as a model for `dosde.solve`.

        Args:
            lq: LQ pictures, of `prepare`.
            tile: side of the tiles in pixels of the output.
        """
        net = stages.Net(self.unet, self.scheduler, lq, None if tile is None else tile // self.factor, self._bar)
        return dosde.Denoiser(net, self.scheduler.process, predicts=self.scheduler.predicts)

    def decode(self, latent: Tensor, *, tile: int | None = None) -> Tensor:
        """The picture (batch, 3, height, width) of a latent, float32, about [0, 1] but not clamped."""
        return stages.decode(self.vqvae, latent, self.factor, None if tile is None else tile // self.factor, self._bar)

    def finish(self, x0: Tensor, prepared: Prepared, size: Sequence[int], *, tile: int | None = None) -> Tensor:
        """Everything after the solve: a picture in [0, 1] of this (height, width), float32."""
        height, width = (side * self.scale for side in prepared.reference.shape[-2:])
        picture = self.decode(x0, tile=tile)[..., :height, :width].clamp(0, 1)
        if prepared.mask is not None:
            mask, known = (stages.enlarged(one, self.scale) for one in (prepared.mask, prepared.reference))
            picture = torch.lerp(known, picture, mask)
        return picture if list(picture.shape[-2:]) == list(size) else bicubic(picture, size).clamp_(0, 1)

    def check_mask(self, mask: Tensor | None, shape: Sequence[int]) -> None:
        """Refused unless there is a mask of the picture's size where the network wants one, and none where it does not."""
        if self.inpaints and mask is None:
            raise Refused("mask", None, "a picture that is white where the image is unknown is needed: this network inpaints")
        if not self.inpaints and mask is not None:
            raise Refused("mask", mask, "None is needed: this network does not inpaint", "a mask")
        if mask is not None and tuple(mask.shape[-2:]) != tuple(shape[-2:]):
            shown = f"{mask.shape[-1]} x {mask.shape[-2]}"
            raise Refused("mask", mask, f"the size of the picture, {shape[-1]} x {shape[-2]}, is needed", shown)

    def check_steps(self, steps: int) -> int:
        """The number of steps; refused where the network was distilled to another one."""
        distilled = self.config.distilled_steps
        if distilled is not None and steps != distilled:
            raise Refused("steps", steps, f"{distilled} is needed: these weights (SinSR's) were distilled to it")
        return steps

    def _bar(self, total: int, name: str) -> Any:
        """A progress bar, as `set_progress_bar_config` wants them."""
        from tqdm import tqdm

        return tqdm(total=total, **{"desc": name, "leave": False, **getattr(self, "_progress_bar_config", {})})

    # -- The whole --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        scale: float = 4,
        num_inference_steps: int | None = None,
        order: int | None = None,
        generator: Generators = None,
        mask: Any = None,
        tile: int | str | None = "auto",
        max_memory: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        method: dosde.method.Method | None = None,
        grid: Any = None,
        noise: Any = None,
    ) -> Any:
        """Upscales one picture or several.

        Args:
            image: a PIL image of any mode; an array (height, width[, channels]), uint8, uint16 or float in [0, 1]; a tensor
                ([batch,] channels, height, width), uint8 or float in [0, 1]; or a list of them, of any sizes.
            scale: any positive number: the output has sides round(side x scale).
            num_inference_steps: steps of `dosde.solve`. Default: those that the network was trained with.
            order: order of `dosde.solve`, at most the steps; None: that of the method.
            generator: a torch.Generator, or one a picture, which draws the noise that the picture would have alone.
            mask: for a network that inpaints, a picture (or one a picture) that is white where the image is unknown.
            tile: "auto": as large as memory permits; a side in pixels of the output, or None for the picture whole.
            max_memory: bytes that "auto" may use beside the weights. Default: 80% of what is free on the device.
            output_type: "pil" (8 bits; grey and alpha as in the input), "np" (batch, height, width, 3), "pt" (batch, 3,
                height, width), both in [0, 1], or "latent".
            return_dict: whether an ImagePipelineOutput is returned, or a tuple.
            callback_on_step_end: called with (pipeline, step, timestep, {"latents": x}) after each step. Setting
                pipeline._interrupt ends the solve with the best estimate so far. What it returns is not used.
            callback_on_step_end_tensor_inputs: ("latents",), the one tensor input.
            method: method of `dosde.solve`. Default: the scheduler's, the published sampler.
            grid: grid of `dosde.solve`. Default: the scheduler's.
            noise: noise of `dosde.solve`, instead of the generator; a list of generators has one a picture.

        Returns:
            ImagePipelineOutput(images), or (images,) unless return_dict. `images` is a list for "pil", and for pictures of
            several sizes.

        Raises:
            ValueError: an argument cannot be used; before any work.
            TypeError: an argument has a wrong type; before any work.
        """
        pictures = arguments.pictures_of(image)
        steps = self.default_steps if num_inference_steps is None else check.count("num_inference_steps", num_inference_steps)
        order = None if order is None else min(check.count("order", order), self.check_steps(steps))
        callback, inputs = callback_on_step_end, callback_on_step_end_tensor_inputs
        arguments.check_call(self.scheduler, scale, "none", "mode", output_type, 1.0, 1.0, callback, inputs)
        scale = float(scale)
        masks = None if mask is None else [one.colour for one in arguments.pictures_of(mask)]
        arguments.check_counts(len(pictures), mask=masks, generator=generator, noise=noise)
        Independent(generator)  # their errors, before any work
        as_noise(noise)
        self._interrupt = False
        times = self.scheduler.times(self.check_steps(steps)) if grid is None else grid
        solver = {"method": method or self.scheduler.method, "grid": times}
        dosde.plan(self.scheduler.process, steps, order, **solver)  # its errors, before any work
        jobs = []
        for first, last in arguments.runs([p.colour.shape[-2:] for p in pictures]):
            own = None if masks is None else torch.cat([one.mean(1, keepdim=True) for one in masks[first:last]])
            own = None if own is None else (own > 0.5).float()
            shape = (last - first, 3, *pictures[first].colour.shape[-2:])
            self.check_mask(own, shape)
            jobs.append((first, last, own, self.tiles_for(shape, scale, tile, max_memory)))
        results: list[Tensor] = []
        for first, last, own, tiles in jobs:
            rgb = torch.cat([p.colour.expand(-1, 3, -1, -1) for p in pictures[first:last]])
            made = self.prepare(rgb, scale, own, tiles=tiles)
            model = self.denoiser(made.lq, tile=tiles.solve)
            drawn = arguments.part(generator if noise is None else noise, first, last)
            x0 = self._solve(model, made.x_hat0, steps, order, callback, noise=drawn, **solver)
            if output_type == "latent":
                results += x0.chunk(len(x0))
            else:
                finished = self.finish(x0, made, stages.sizes(rgb.shape, scale, self.scale)[1], tile=tiles.decode)
                # Off the device at once, where they end on the host: many large ones need not fit there together.
                results += (finished.cpu() if output_type in ("pil", "np") else finished).chunk(len(finished))
        self.maybe_free_model_hooks()
        if output_type == "pil":  # rounded, as in the release, to what no cutting off can change
            results = [((result * 255).round() + 0.25) / 255 for result in results]
        images_out = arguments.output(results, pictures, output_type)
        return ImagePipelineOutput(images=images_out) if return_dict else (images_out,)

    def _solve(
        self, model: dosde.Denoiser, x_hat0: Tensor, steps: int, order: int | None, callback: Any, **solver: Any
    ) -> Tensor:
        """`dosde.solve`, with diffusers' callback, which gets the state after a step: `solve` shows it at the next."""
        times: list[float] = []

        def each(step: int, t: Tensor, x: Tensor, x_theta: Tensor) -> None:
            bar.update()
            if callback is not None and step:
                callback(self, step - 1, self.scheduler.model_time(times[-1]), {"latents": x})
            times.append(float(t))
            if self._interrupt:
                raise _Interrupted(x_theta)

        with self._bar(steps, "solve") as bar:
            try:
                x0 = dosde.solve(model, x_hat0, steps, order, callback=each, **solver)
            except _Interrupted as stopped:
                return stopped.x_theta
        if callback is not None:
            callback(self, steps - 1, self.scheduler.model_time(times[-1]), {"latents": x0})
        return x0

    @property
    def default_steps(self) -> int:
        """The steps that the network was trained with, or distilled to."""
        return int(self.config.distilled_steps or len(self.scheduler))


class _Interrupted(Exception):
    def __init__(self, x_theta: Tensor) -> None:
        super().__init__()
        self.x_theta = x_theta


@functools.cache
def say_licence(distilled_steps: int | None) -> None:
    """Says the licence of the released weights, once."""
    logging.getLogger(__name__).warning(LICENCES.get(distilled_steps, LICENCES[None]))


# What `DiffusionPipeline.from_pretrained` asks diffusers for, by the name in a folder's model_index.json.
diffusers.ResShiftPipeline = ResShiftPipeline
