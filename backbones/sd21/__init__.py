"""Stable Diffusion 2.1 with a ControlNet, as DoSSR trained it, and the networks about it.

pipe = DoSSRPipeline.from_single_file("dossr_default.ckpt")     # or from_pretrained(FOLDER), written by `dosde convert`
larger = pipe(picture, scale=4, num_inference_steps=5).images[0]
"""

from .pipeline import DoSSRPipeline

__all__ = ["DoSSRPipeline"]
