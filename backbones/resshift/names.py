"""The released layout of ResShift and SinSR: two files, U-Net and autoencoder. Every size is read from the shapes of tensors.

The U-Net has the released names in this package, too. Its file also holds buffers, which follow from the sizes: they are
checked, dropped, and made again on the way back. The autoencoder is diffusers' `VQModel` under LDM's names, which are those of
the VAE of Stable Diffusion and a codebook.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from backbones import weights
from backbones.weights import Tensors
from dosde.check import Refused

Shapes = Mapping[str, tuple[int, ...]]

UNET, VQ = "a U-Net of ResShift", "a VQ autoencoder"


def kind(names: Collection[str]) -> str:
    """What a checkpoint with tensors of these names is, in a few words; `UNET`, `VQ`, or what it is instead."""

    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    signs: list[tuple[str, Callable[[], bool]]] = [
        (UNET, lambda: has(r"input_blocks\.\d+\.1\.patch_embed\.|middle_block\.1\.patch_embed\.")),
        ("a checkpoint of DoSSR or DiffBIR", lambda: has(r"model\.diffusion_model\.") and has(r"control_model\.")),
        ("a whole checkpoint of latent diffusion", lambda: has(r"model\.diffusion_model\.|first_stage_model\.")),
        (VQ, lambda: has(r"encoder\.conv_in\.") and has(r"quantize\.")),
        ("an autoencoder without codebook (AutoencoderKL)", lambda: has(r"encoder\.conv_in\.")),
        ("an RRDBNet (Real-ESRGAN, BSRGAN)", lambda: has(r"(body\.0\.rdb1|RRDB_trunk|model\.1\.sub)\.|conv_first\.")),
        ("a network in diffusers' names", lambda: has(r"(down_blocks|encoder\.down_blocks)\.")),
        ("a U-Net without Swin layers", lambda: has(r"input_blocks\.")),
    ]
    return next((words for words, sign in signs if sign()), f"a file with tensors such as {sorted(names)[0]}")


def released(path: str | Path) -> bool:
    """Whether a file is one of the two released ones.

    Raises:
        Refused: it is no file of tensors.
    """
    return Path(path).is_file() and kind(read(path)) in (UNET, VQ)


def read(path: str | Path) -> Tensors:
    """The tensors of a released file, by their names without what torch.compile and data-parallel training put before them."""
    tensors = weights.read(path)
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    return tensors


class Sizes(dict[str, tuple[int, ...]]):
    """Shapes by name; a missing name is refused, and so is a tensor of too few dimensions.

    Args:
        shapes: shapes by name.
        what: the network, for messages.
    """

    def __init__(self, shapes: Shapes, what: str) -> None:
        super().__init__({name: tuple(shape) for name, shape in shapes.items()})
        self.what = what

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise Refused("checkpoint", name, f"all tensors of {self.what} are needed", f"no tensor {name}")

    def size(self, name: str, axis: int) -> int:
        """One side of a tensor."""
        shape = self[name]
        if axis >= len(shape):
            raise Refused("checkpoint", name, f"{axis + 1} dimensions or more are needed", f"{name} has shape {shape}")
        return shape[axis]

    def count(self, pattern: str) -> int:
        """How many of 0, 1, 2, ... stand in a name at {}."""
        found = {int(m[1]) for name in self if (m := re.match(pattern.format(r"(\d+)"), name))}
        return next(i for i in range(len(found) + 1) if i not in found)


def unet_config(shapes: Shapes, image_size: int | None = None) -> dict[str, Any]:
    """The configuration of the `SwinUNet` in a file of these shapes.

    Args:
        shapes: the shapes of the released tensors and buffers.
        image_size: side of x in training, for a network in which nothing shifts, where no tensor tells it.

    Raises:
        Refused: a tensor is missing, or sizes contradict each other.
    """
    s = Sizes(shapes, UNET)
    in_channels = s.size("out.2.weight", 0)
    lq_widths = [
        [s.size(f"feature_extractor.{i}.weight", 0), s.size(f"feature_extractor.{i + 2}.op.weight", 0)]
        for i in range(0, _extractor(s), 3)
    ]
    inputs = s.size("input_blocks.0.0.weight", 1)
    blocks: list[list[int]] = [[]]
    for i in range(1, s.count(r"input_blocks\.{}\.")):
        if f"input_blocks.{i}.0.op.weight" in s:
            blocks.append([])
        else:
            blocks[-1].append(i)
    if not all(blocks):
        raise Refused("checkpoint", None, "a residual block in each level is needed", f"{len(blocks)} levels, one without")
    firsts = [f"input_blocks.{level[0]}." for level in blocks]
    config: dict[str, Any] = {
        "in_channels": in_channels,
        "lq_channels": s.size("feature_extractor.0.weight", 1) if lq_widths else inputs - in_channels,
        "lq_widths": lq_widths,
        "time_channels": s.size("time_embed.0.weight", 1),
        "time_width": s.size("time_embed.0.weight", 0),
        "widths": [s.size(f"{first}0.out_layers.3.weight", 0) for first in firsts],
        "layers": [len(level) for level in blocks],
        "swin": [_swin(s, f"{first}1.") if f"{first}1.patch_embed.proj.weight" in s else None for first in firsts],
        "middle_swin": _swin(s, "middle_block.1."),
    }
    if config["lq_channels"] < 1:
        needed = "a network that also sees the LQ picture is needed"
        raise Refused("checkpoint", inputs, needed, f"input_blocks.0.0.weight takes {inputs} channels, and x has {in_channels}")
    return config | {"sample_size": _sample_size(s, [f"{first}1." for first in firsts], config, image_size)}


def _extractor(s: Sizes) -> int:
    """How many modules the feature extractor has, three a stage."""
    return 1 + max((int(m[1]) for name in s if (m := re.match(r"feature_extractor\.(\d+)\.", name))), default=-1)


def _swin(s: Sizes, prefix: str) -> dict[str, int]:
    """The sizes of a Swin layer."""
    table, heads = (s.size(f"{prefix}blocks.0.attn.relative_position_bias_table", axis) for axis in (0, 1))
    return {
        "channels": s.size(f"{prefix}patch_embed.proj.weight", 0),
        "depth": s.count(re.escape(prefix) + r"blocks\.{}\."),
        "heads": heads,
        "window": (math.isqrt(table) + 1) // 2,
        "hidden": s.size(f"{prefix}blocks.0.mlp.fc1.weight", 0),
    }


def _sample_size(s: Sizes, layers: list[str], config: Mapping[str, Any], image_size: int | None) -> int:
    """Side of x in training: a saved mask has a row of windows a row of the map; without one, the map is one window."""
    last = len(layers) - 1
    specs = [*zip(range(last + 1), layers, config["swin"], strict=True), (last, "middle_block.1.", config["middle_swin"])]
    found = []
    for level, prefix, spec in specs:
        if spec is not None and spec["depth"] > 1:  # one block shifts nothing, and has no mask
            saved = s.get(f"{prefix}blocks.1.attn_mask")
            found.append((spec["window"] * (math.isqrt(saved[0]) if saved else 1)) << level)
    if not found:
        least = max(spec["window"] << level for level, _, spec in specs if spec is not None)
        return image_size or int(least)
    return int(max(found))


def vq_config(shapes: Shapes) -> dict[str, Any]:
    """The configuration of the autoencoder in a file of these shapes.

    It is that of a `VQModel` of diffusers, or of an `UnevenVQModel`, where the levels have different numbers of blocks.

    Raises:
        Refused: a tensor is missing, or sizes contradict each other.
    """
    s = Sizes(shapes, VQ)
    levels = s.count(r"encoder\.down\.{}\.")
    layers = [s.count(rf"encoder\.down\.{level}\.block\." + r"{}\.") for level in range(levels)]
    if not levels or not all(layers):
        raise Refused("checkpoint", levels, "residual blocks in each level are needed", f"encoder.down: {layers} of them")
    return {
        "in_channels": s.size("encoder.conv_in.weight", 1),
        "out_channels": s.size("decoder.conv_out.weight", 0),
        "block_out_channels": [s.size(f"encoder.down.{level}.block.0.conv2.weight", 0) for level in range(levels)],
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "norm_num_groups": 32,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": s.size("encoder.conv_out.weight", 0),
        "vq_embed_dim": s.size("quantize.embedding.weight", 1),
        "num_vq_embeddings": s.size("quantize.embedding.weight", 0),
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in s,
        "scaling_factor": 1.0,
    }
