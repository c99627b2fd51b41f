"""ResShift, and SinSR: a U-Net with Swin layers in the latents of a VQ autoencoder.

pipe = ResShiftPipeline.from_pretrained("resshift")      # dosde convert resshift_*.pth autoencoder_vq_f4.pth -o resshift
larger = pipe(picture, scale=4, num_inference_steps=4).images[0]

diffusers is imported when the pipeline is. The weights are not for commercial use (S-Lab License 1.0; SinSR: CC BY-NC-SA 4.0).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import ResShiftPipeline

__all__ = ["ResShiftPipeline"]


def __getattr__(name: str) -> Any:
    """`backbones.resshift.ResShiftPipeline` is `backbones.resshift.pipeline.ResShiftPipeline`."""
    if name == "ResShiftPipeline":
        from .pipeline import ResShiftPipeline

        return ResShiftPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
