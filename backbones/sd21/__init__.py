"""Stable Diffusion 2.1 with a ControlNet, as DoSSR trained it, and the networks about it.

pipe = DoSSRPipeline.from_single_file("dossr_default.ckpt")     # or from_pretrained(FOLDER), written by `dosde convert`
larger = pipe(picture, scale=4, num_inference_steps=5).images[0]

diffusers and transformers are imported when the pipeline is.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import DoSSRPipeline

__all__ = ["DoSSRPipeline"]


def __getattr__(name: str) -> Any:
    """`backbones.sd21.DoSSRPipeline` is `backbones.sd21.pipeline.DoSSRPipeline`."""
    if name == "DoSSRPipeline":
        from .pipeline import DoSSRPipeline

        return DoSSRPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
