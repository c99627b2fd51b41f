"""A ResShiftPipeline of small random networks, for what does not depend on the numbers."""

import torch
from diffusers import VQModel

from backbones.resshift import ResShiftPipeline, convert, network
from dosde.interop.diffusers import DoSDEScheduler


def tiny(lq_widths=()):
    """A table of 4 steps, sides of 32 pixels; scale 4, halved by each stage of the LQ branch."""
    layer = {"channels": 32, "depth": 2, "heads": 2, "window": 4, "hidden": 32}
    sizes = {"time_channels": 32, "time_width": 32, "widths": [32, 32], "layers": [1, 1], "swin": [layer, layer]}
    torch.manual_seed(0)
    unet = network.SwinUNet(**sizes, middle_swin=layer, sample_size=8, lq_widths=lq_widths)
    wide = {"block_out_channels": [32, 32, 32], "down_block_types": ["DownEncoderBlock2D"] * 3}
    vqvae = VQModel(**wide, up_block_types=["UpDecoderBlock2D"] * 3, scaling_factor=1.0, num_vq_embeddings=64)
    torch.nn.init.normal_(vqvae.quantize.embedding.weight)
    made = ResShiftPipeline(unet.eval(), vqvae.eval(), DoSDEScheduler(**convert.standard(4)))
    made.set_progress_bar_config(disable=True)
    return made
