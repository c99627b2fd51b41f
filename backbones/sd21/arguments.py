"""What a pipeline is called with, checked before any work, and the form in which it returns pictures."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.pictures import colour
from backbones.pictures import io as images
from dosde import check
from dosde.check import Refused, RefusedType, require
from dosde.interop.diffusers import DoSDEScheduler


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
    if inputs is not None and list(inputs) not in ([], ["latents"]):
        raise Refused("callback_on_step_end_tensor_inputs", inputs, "['latents'] is needed, there is no other")
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
    from PIL.Image import Image

    if isinstance(image, Image):
        return [images.of_pil(image)]
    needed = "a PIL image, an array, a tensor, or a list of them, is needed"
    raise RefusedType("image", image, needed, type(image).__name__)


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
