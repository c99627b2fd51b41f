"""What a pipeline is called with, checked before any work, and the form in which it returns pictures."""

import difflib
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from backbones.pictures import colour
from backbones.pictures import io as images
from dosde import check
from dosde.check import Refused, RefusedType, require
from dosde.interop.diffusers import DoSDEScheduler
from dosde.process import Process

from .loop import INPUTS

T = TypeVar("T")

# The networks of a call: their names, their kinds, and a key of their configs that other kinds have not.
NETWORKS = (
    ("vae", "an AutoencoderKL", "scaling_factor"),
    ("hint_encoder", "a HintEncoder", "block_out_channels"),
    ("unet", "a UNet2DConditionModel", "cross_attention_dim"),
    ("controlnet", "a LatentControlNet", "cross_attention_dim"),
)

# Arguments of stock pipelines that are none here: values that mean nothing (beside None), and what to use for others.
_WORDS: dict[str, tuple[tuple[object, ...], str]] = {
    "latents": ((), "noise=(u, u_next, like) -> z is what there is: it draws the noise of the start first, with u = 0"),
    "eta": ((), "method=dosde.method.ode is what there is for 0, dosde.method.adams takes a tau, and the default is the SDE"),
    "timesteps": ((), "grid=times is what there is: (timestep + 1)/1000 for each, and 0 in the end"),
    "sigmas": ((), "grid=dosde.grid.karras(), or times, is what there is"),
    "cross_attention_kwargs": (({},), "pipe.unet.set_attn_processor(...) is what there is"),
    "clip_skip": ((0,), "prompt_embeds=... takes embeddings of every layer"),
    "guidance_rescale": ((0,), "0 is needed, it is not supported"),
    "height": ((), "scale=... is what there is"),
    "width": ((), "scale=... is what there is"),
    "control_image": ((), "image=... is what there is: the hint is made of it"),
    "mask_image": ((), "whole pictures alone are upscaled"),
    "control_guidance_start": ((0,), "0 is needed; controlnet_conditioning_scale=... is what there is"),
    "control_guidance_end": ((1,), "1 is needed; controlnet_conditioning_scale=... is what there is"),
    "guess_mode": ((False,), "guidance_scale=1 is what there is"),
    "noise_level": ((0,), "0 is needed: pictures are taken as they are"),
    "ip_adapter_image": ((), "IP-adapters are not supported"),
    "ip_adapter_image_embeds": ((), "IP-adapters are not supported"),
    "callback": ((), "callback_on_step_end=... is what there is"),
    "callback_steps": ((1,), "callback_on_step_end=... is what there is, called after each step"),
    "seed": ((), "generator=torch.Generator().manual_seed(seed) is what there is"),
    "steps": ((), "num_inference_steps=... is what there is"),
    "upscale": ((), "scale=... is what there is"),
    "safety_checker": ((), "there is no safety checker here"),
    "feature_extractor": ((), "there is no safety checker here"),
    "image_encoder": ((), "IP-adapters are not supported"),
    "requires_safety_checker": ((False,), "there is no safety checker here"),
    "load_safety_checker": ((False,), "there is no safety checker here"),
    "config": ((), "original_config=... is what there is: the rest is read from the tensors"),
    "config_file": ((), "original_config=... is what there is: the rest is read from the tensors"),
    "original_config_file": ((), "original_config=... is what there is"),
    "scheduler_type": ((), "pipe.scheduler = DoSDEScheduler.from_config(pipe.scheduler.config, solver=...) is what there is"),
    "local_files_only": ((True, False), "files of this machine alone are read"),
    "use_safetensors": ((True, False), "the content of the file decides"),
}
_CHECKER = ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker", "load_safety_checker")

# Methods of stock pipelines, by a part of their names, and what there is instead.
_METHODS = {
    "lora": "pipe.unet.load_lora_adapter(...) loads one into the U-Net alone (with peft)",
    "adapters": "pipe.unet.load_lora_adapter(...) loads a LoRA into the U-Net alone (with peft)",
    "ip_adapter": "IP-adapters are not supported",
    "encode_image": "IP-adapters are not supported",
    "textual_inversion": "prompt_embeds=... takes embeddings of every origin",
    "vae_tiling": "tile=... in the call tiles every stage; pipe.vae.enable_tiling() is diffusers' own",
    "vae_slicing": "pictures of several calls, or pipe.vae.enable_slicing(), need less memory",
    "upcast_vae": "a VAE that overflows runs in a wider type by itself",
    "safety_checker": "there is no safety checker here",
    "prepare_latents": "pipe.prepare(...) makes hint and source",
    "vae_scale_factor": "pipe.factor is the number of pixels a side of a latent",
    "image_processor": "pictures of every form are read as they are",
}


class RefusedName(Refused, AttributeError):
    """A `Refused` of a method that is not there, which is an AttributeError too."""


def check_words(words: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refused for an argument that is none of `known`, unless its value means nothing."""
    for name, value in words.items():
        nothing, instead = _WORDS.get(name, ((), ""))
        if (value is None and instead) or any(_same(value, one) for one in nothing):
            continue
        near = difflib.get_close_matches(name, known, 1)
        unknown = f"{near[0]} is the nearest argument" if near else f"the arguments are {', '.join(known)}"
        raise RefusedType(name, value, instead or f"there is no such argument, {unknown}")


def _same(value: object, one: object) -> bool:
    if isinstance(one, bool) or not isinstance(one, int):
        return type(value) is type(one) and value == one
    return type(value) is not bool and isinstance(value, Real) and float(value) == one


def check_method(name: str) -> None:
    """Refused for a method that stock pipelines have, and DoSSRPipeline has not."""
    instead = next((words for part, words in _METHODS.items() if part in name), None)
    if instead and name[0] != "_":
        raise RefusedName(name, None, instead, "DoSSRPipeline has none")


def loading(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of loading with one dtype, by either of its names, and without words for a safety checker that is not wanted.

    Raises:
        RefusedType: the dtype is neither a torch.dtype nor a dict of them.
    """
    made = {name: value for name, value in options.items() if name not in _CHECKER or value not in (None, False)}
    given = {name: made.pop(name) for name in ("torch_dtype", "dtype") if name in made}
    asked = [value for value in given.values() if value is not None]
    kinds = list(asked[0].values()) if asked and isinstance(asked[0], dict) else asked
    for kind in kinds:
        if not isinstance(kind, torch.dtype):
            raise RefusedType("dtype", kind, "a torch.dtype such as torch.float16, or None, is needed")
    if len(asked) == 2 and asked[0] != asked[1]:
        raise Refused("dtype", asked[1], "one of dtype and torch_dtype, its older name, is needed", f"{asked[1]}, {asked[0]}")
    return made | ({"dtype": asked[0]} if asked else {})


def repeated(value: T, count: int) -> T:
    """A list with each element so many times; anything else as it is."""
    if count == 1 or not isinstance(value, list | tuple):
        return value
    return [element for element in value for _ in range(count)]  # type: ignore[return-value]


def last_part(grid: Any, process: Process, steps: int, strength: object) -> Tensor:
    """The times of the last steps, the part `strength` of them, as img2img pipelines count."""
    require(_number(strength) and 0 < float(strength) <= 1, "strength", strength, "a number above 0, up to 1, is needed")  # type: ignore[arg-type]
    left = min(int(steps * float(strength)), steps)  # type: ignore[arg-type]
    require(left > 0, "strength", strength, f"at least {1 / steps:.3g} is needed for one of {steps} steps")
    times = check.times(grid, process, steps)
    return times[-(left + 1) :]


def check_call(
    scheduler: object,
    scale: object,
    color_fix: object,
    source: object,
    output_type: object,
    guidance_scale: object,
    conditioning: object,
    callback: object,
    inputs: Sequence[str] | None,
) -> None:
    """Refused unless each of these arguments of a call, under their names, can be used."""
    if not isinstance(scheduler, DoSDEScheduler):
        raise RefusedType("scheduler", scheduler, "a DoSDEScheduler is needed", type(scheduler).__name__)
    require(scale == 64 or _number(scale, 0, 64), "scale", scale, "a number above 0, up to 64, is needed")
    check.one_of("color_fix", color_fix, colour.COLOUR_FIXES)
    check_source(source)
    check.one_of("output_type", output_type, ("pil", "np", "pt", "latent"))
    require(_number(guidance_scale), "guidance_scale", guidance_scale, "a number is needed, 1 for none")
    require(_number(conditioning), "controlnet_conditioning_scale", conditioning, "a number is needed")
    unknown = [name for name in inputs or () if name not in INPUTS]
    require(not unknown, "callback_on_step_end_tensor_inputs", inputs, f"some of {', '.join(INPUTS)} are needed")
    if callback is not None and not callable(callback):
        raise RefusedType("callback_on_step_end", callback, "a function is needed")


def _number(value: object, low: float = -1e6, high: float = 1e6) -> bool:
    return isinstance(value, Real) and low < float(value) < high


def check_source(source: object) -> None:
    """Refused unless it is "mode", "sample", or finite noise."""
    if isinstance(source, Tensor):
        kind = str(source.dtype)[6:]
        ok = source.is_floating_point() and bool(source.isfinite().all())
        require(ok, "source", source, "finite floating noise is needed", f"{kind}, or NaN or infinity in it")
    elif not (isinstance(source, str) and source in ("mode", "sample")):
        shown = repr(source) if isinstance(source, str) else type(source).__name__
        raise Refused("source", source, "'mode', 'sample', or noise in the shape of x_hat0, is needed", shown)


def check_counts(count: int, **arguments: object) -> None:
    """Refused unless each argument that is a list has one element a picture."""
    for name, value in arguments.items():
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) != count:
            raise Refused(name, value, f"one, or {count} (one a picture), is needed", f"{len(value)} of them")


def part(value: Any, first: int, last: int) -> Any:
    """The elements for some of the pictures, of a list with one a picture; anything else as it is."""
    return value[first:last] if isinstance(value, Sequence) else value


def rows(context: Tensor, first: int, last: int) -> Tensor:
    """The rows for some of the pictures, of a tensor with one a picture; one row serves all."""
    return context if len(context) == 1 else context[first:last]


def runs(sizes: Sequence[Any]) -> list[tuple[int, int]]:
    """First and last + 1 of each run of equal sizes."""
    starts = [i for i, size in enumerate(sizes) if i == 0 or size != sizes[i - 1]]
    return list(zip(starts, [*starts[1:], len(sizes)], strict=True))


def pictures_of(image: Any) -> list[images.Picture]:
    """The pictures of an argument `image`.

    Raises:
        RefusedType: it is no picture and no list of them.
        Refused: a list is empty, or a picture has an impossible shape, type or values.
    """
    if isinstance(image, list | tuple):
        require(bool(image), "image", image, "at least one picture is needed", "an empty list")
        return [picture for element in image for picture in pictures_of(element)]
    if isinstance(image, Tensor | np.ndarray):
        return images.of_array(image)
    if isinstance(image, str | os.PathLike):
        return [_of_file(image)]
    from PIL.Image import Image

    if isinstance(image, Image):
        return [images.of_pil(image)]
    needed = "a PIL image, a path, an array, a tensor, or a list of them, is needed"
    raise RefusedType("image", image, needed, type(image).__name__)


def _of_file(name: str | os.PathLike[str]) -> images.Picture:
    """The picture in a file."""
    if isinstance(name, str) and "://" in name:
        raise Refused("image", name, "a file of this machine is needed; diffusers.utils.load_image(url) loads from others")
    path = Path(name)
    require(path.is_file(), "image", path, "no such file")
    try:
        return images.read(path)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:120]
        raise Refused("image", path, "a picture is needed", f"{path} cannot be read ({said})") from None


def output(results: list[Tensor], pictures: list[images.Picture], output_type: str) -> Any:
    """The results as `output_type` says; a list for "pil", and for pictures of several sizes.

    Args:
        results: one picture (1, 3, height, width) each, or one latent.
        pictures: the pictures of the call, whose mode "pil" follows.
        output_type: "pil", "np", "pt" or "latent".
    """
    if output_type == "pil":
        return [images.to_pil(result.cpu(), picture) for result, picture in zip(results, pictures, strict=True)]
    if output_type == "np":
        arrays = [result.permute(0, 2, 3, 1).cpu().numpy() for result in results]
        return np.concatenate(arrays) if len({a.shape for a in arrays}) == 1 else [a[0] for a in arrays]
    return torch.cat(results) if len({r.shape for r in results}) == 1 else [r[0] for r in results]
