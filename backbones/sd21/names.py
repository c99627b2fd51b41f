"""The released checkpoint layout and diffusers' names, both ways; every size is read from the shapes of the tensors.

    model.diffusion_model.   unet            U-Net of SD 2.x
    control_model.           controlnet      its encoder once more, cat(x, hint latent) as input, zero convolutions
    first_stage_model.       vae             AutoencoderKL
    cond_encoder.            hint_encoder    the encoder half of another one
    cond_stage_model.model.  text_encoder    open_clip's text tower, of which all blocks but the last are used
    preprocess_model.        preprocessor    RRDBNet

and 15 tables of the noise schedule. A tensor has the same values in both, but for three joins: queries, keys and values of the
text tower (one tensor there), the first convolution of the ControlNet (one there), and the 1x1 convolutions of the VAE's
attention (linear here). So a round trip is exact.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dosde.check import Refused

Shapes = Mapping[str, tuple[int, ...]]

PREFIXES = {
    "unet": "model.diffusion_model.",
    "controlnet": "control_model.",
    "vae": "first_stage_model.",
    "hint_encoder": "cond_encoder.",
    "text_encoder": "cond_stage_model.model.",
    "preprocessor": "preprocess_model.",
}
TABLES = (
    *("lambdas", "one_minus_lambdas", "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod"),
    *("sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1"),
    *("posterior_mean_coef2", "logvar"),
)  # lambdas there is eta here


@dataclass(frozen=True)
class Entry:
    """One released tensor: the diffusers tensors `parts`, joined along `axis`; `unit`: with a kernel of 1x1 appended."""

    name: str
    parts: tuple[str, ...]
    axis: int = 0
    unit: bool = False

    def shape(self, parts: Shapes) -> tuple[int, ...]:
        """The shape of the released tensor, from the shapes of diffusers' tensors."""
        shape = list(parts[self.parts[0]])
        if len(self.parts) > 1:
            shape[self.axis] = sum(parts[p][self.axis] for p in self.parts)
        return (*shape, 1, 1) if self.unit else tuple(shape)

    def split(self, tensor: Tensor, parts: Shapes) -> dict[str, Tensor]:
        """The diffusers tensors of the released one."""
        if self.unit:
            tensor = tensor[..., 0, 0]
        sizes = [parts[p][self.axis] for p in self.parts] if len(self.parts) > 1 else [-1]
        pieces = torch.split(tensor, sizes, self.axis) if len(self.parts) > 1 else (tensor,)
        return {p: piece.contiguous() for p, piece in zip(self.parts, pieces, strict=True)}

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The released tensor of the diffusers ones."""
        tensor = torch.cat([parts[p] for p in self.parts], self.axis) if len(self.parts) > 1 else parts[self.parts[0]]
        return (tensor[..., None, None] if self.unit else tensor).contiguous()


def entries(component: str, keys: Iterable[str]) -> list[Entry]:
    """Where the diffusers tensors of a component are in the released layout (names without the component's prefix)."""
    keys = list(keys)
    known = set(keys)
    if component in ("unet", "controlnet"):
        layers = 1 + max((int(k.split(".")[3]) for k in keys if k.startswith("down_blocks.0.resnets.")), default=-1)
        rename: Callable[[str], str] = lambda key: _unet(key, layers, known)  # noqa: E731
    elif component in ("vae", "hint_encoder"):
        levels = 1 + max((int(k.split(".")[2]) for k in keys if k.startswith("decoder.up_blocks.")), default=-1)
        rename = lambda key: _vae(key, levels)  # noqa: E731
    elif component == "text_encoder":
        rename = _text
    else:
        rename = str
    found: list[Entry] = []
    for key in keys:
        name = rename(key)
        if component == "controlnet" and key == "controlnet_cond_embedding.weight":
            continue
        if component == "controlnet" and key == "conv_in.weight":
            found.append(Entry(name, (key, "controlnet_cond_embedding.weight"), axis=1))
        elif component == "text_encoder" and (match := re.search(r"self_attn\.([qkv])_proj\.", key)):
            if match[1] == "q":
                joined = tuple(key.replace("q_proj", f"{part}_proj") for part in "qkv")
                found.append(Entry(name, joined))
        else:
            unit = component in ("vae", "hint_encoder") and ".attentions." in key and "norm" not in key
            found.append(Entry(name, (key,), unit=unit and key.endswith("weight")))
    return found


def _renamed(key: str, table: Mapping[str, str]) -> str:
    """The first part of the key that the table has, replaced."""
    for ours, theirs in table.items():
        if key == ours or key.startswith(ours + "."):
            return theirs + key[len(ours) :]
    return key


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
    "controlnet_mid_block": "middle_block_out.0",
}


def _unet(key: str, layers: int, known: set[str]) -> str:
    if match := re.fullmatch(r"mid_block\.resnets\.([01])\.(.*)", key):
        return f"middle_block.{2 * int(match[1])}.{_renamed(match[2], _RESNET)}"
    if match := re.fullmatch(r"controlnet_down_blocks\.(\d+)\.(.*)", key):
        return f"zero_convs.{match[1]}.0.{match[2]}"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key):
        way, kind, rest = match[1], match[3], match[5]
        level, place = int(match[2]), int(match[4])
        first = level * (layers + 1) + (way == "down")
        side = "input_blocks" if way == "down" else "output_blocks"
        if kind == "resnets":
            return f"{side}.{first + place}.0.{_renamed(rest, _RESNET)}"
        if kind == "attentions":
            return f"{side}.{first + place}.1.{rest}"
        if kind == "downsamplers":
            return f"{side}.{first + layers}.0.{_renamed(rest, {'conv': 'op'})}"
        attended = f"up_blocks.{level}.attentions.0.norm.weight" in known
        return f"{side}.{first + layers}.{1 + attended}.{rest}"
    return _renamed(key, _UNET)


_VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _vae(key: str, levels: int) -> str:
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
        if match[2] == "resnets":
            return f"{match[1]}.mid.block_{int(match[3]) + 1}.{_renamed(match[4], _VAE_RESNET)}"
        return f"{match[1]}.mid.attn_1.{_renamed(match[4], _VAE_ATTENTION)}"
    if match := re.fullmatch(
        r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.*)", key
    ):
        level = int(match[3]) if match[2] == "down" else levels - 1 - int(match[3])  # the decoder counts from the picture
        if match[4] == "resnets":
            return f"{match[1]}.{match[2]}.{level}.block.{match[5]}.{_renamed(match[6], _VAE_RESNET)}"
        return f"{match[1]}.{match[2]}.{level}.{match[2]}sample.{match[6]}"
    return re.sub(r"^(encoder|decoder)\.conv_norm_out\.", r"\1.norm_out.", key)


_TEXT = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}
_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "self_attn.q_proj.weight": "attn.in_proj_weight",
    "self_attn.q_proj.bias": "attn.in_proj_bias",
}


def _text(key: str) -> str:
    if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)", key):
        return f"transformer.resblocks.{match[1]}.{_renamed(match[2], _BLOCK)}"
    return _renamed(key, _TEXT)


# -- Sizes --------------------------------------------------------------------------------------------------------------


def part(shapes: Shapes, component: str) -> dict[str, tuple[int, ...]]:
    """The shapes of one component, without its prefix."""
    prefix = PREFIXES[component]
    return {name[len(prefix) :]: tuple(shape) for name, shape in shapes.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Heads:
    """What no tensor tells: channels an attention head of U-Net and ControlNet, and heads of the text tower. None: guessed."""

    channels: int | None = None
    text: int | None = None


def head_channels(width: int) -> int:
    """A guess at the channels an attention head: 64 in every network of full size, 8 in shrunken ones."""
    return 64 if width >= 256 and width % 64 == 0 else 8


def configs(shapes: Shapes, heads: Heads = Heads()) -> dict[str, dict[str, Any]]:
    """The diffusers configuration of each component that a checkpoint of these shapes (released names) holds.

    Args:
        shapes: the shapes of the released tensors.
        heads: what no tensor tells.

    Raises:
        Refused: a tensor is missing; the error names the first one.
    """
    made = {}
    for component, make in (
        ("unet", lambda s: unet_config(s, heads.channels)),
        ("controlnet", lambda s: unet_config(s, heads.channels)),
        ("vae", vae_config),
        ("hint_encoder", vae_config),
        ("text_encoder", lambda s: text_config(s, heads.text)),
    ):
        if own := part(shapes, component):
            try:
                made[component] = make(_Checked(own, PREFIXES[component]))
            except IndexError:
                raise Refused(
                    "checkpoint", component, "another layout is needed", f"{component} has a tensor of too few dimensions"
                ) from None
    if "unet" in made and "controlnet" in made:
        of_x = made["unet"]["in_channels"]
        made["controlnet"]["conditioning_channels"] = made["controlnet"]["in_channels"] - of_x
        made["controlnet"]["in_channels"] = of_x
        if made["controlnet"]["conditioning_channels"] < 1:
            raise Refused(
                "checkpoint",
                of_x,
                "a ControlNet with a latent hint, which takes more, is needed",
                f"control_model.input_blocks.0.0.weight takes {of_x} channels, and the U-Net as many",
            )
    return made


class _Checked(dict[str, tuple[int, ...]]):
    """Shapes by name; a missing name is refused, with its prefix."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], prefix: str) -> None:
        super().__init__(shapes)
        self.prefix = prefix

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise Refused("checkpoint", name, "a checkpoint in the released layout is needed", f"no tensor {self.prefix}{name}")

    def count(self, pattern: str) -> int:
        """The number of numbers that stand where the pattern has its group; the largest could be a stray name's."""
        return len({m[1] for name in self if (m := re.match(pattern, name))})


def unet_config(s: "_Checked", channels_a_head: int | None) -> dict[str, Any]:
    """The configuration of the U-Net, or of the ControlNet, whose in_channels count all of its first convolution."""
    inputs = s.count(r"input_blocks\.(\d+)\.")
    levels = 1 + sum(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name) is not None for name in s)
    layers = inputs // levels - 1
    if layers < 1 or inputs % levels:
        raise Refused(
            "checkpoint",
            s.prefix,
            "the same number in each is needed",
            f"{s.prefix}input_blocks: {inputs} blocks in {levels} levels",
        )
    first = [level * (layers + 1) + 1 for level in range(levels)]
    widths = [s[f"input_blocks.{i}.0.out_layers.3.weight"][0] for i in first]
    attended = [f"input_blocks.{i}.1.norm.weight" in s for i in first]
    middle = s.count(r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    depths = [s.count(rf"input_blocks\.{i}\.1\.transformer_blocks\.(\d+)\.") or middle for i in first]
    head = channels_a_head or head_channels(widths[0])
    if any(width % head for width in widths):
        raise Refused(
            "original_config", head, f"a divisor of the widths {widths} is needed", f"num_head_channels is {head} in it"
        )
    heads = [width // head for width in widths]
    config = {
        "in_channels": s["input_blocks.0.0.weight"][1],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        "transformer_layers_per_block": depths,
        "attention_head_dim": heads,  # diffusers' name for the number of heads
        "cross_attention_dim": s["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": len(s["middle_block.1.proj_in.weight"]) == 2,
    }
    if "out.2.weight" in s:
        config["out_channels"] = s["out.2.weight"][0]
        config["up_block_types"] = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)]
        config["sample_size"] = 64
    return config


def vae_config(s: "_Checked") -> dict[str, Any]:
    """The configuration of the autoencoder, or of an encoder alone."""
    levels = s.count(r"encoder\.down\.(\d+)\.")
    config = {
        "in_channels": s["encoder.conv_in.weight"][1],
        "block_out_channels": [s[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)],
        "layers_per_block": s.count(r"encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "latent_channels": s["quant_conv.weight"][0] // 2,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in s,
    }
    if "decoder.conv_out.weight" in s:
        config |= {
            "out_channels": s["decoder.conv_out.weight"][0],
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "sample_size": 512,
            "scaling_factor": 0.18215,
        }
    return config


def text_config(s: "_Checked", heads: int | None) -> dict[str, Any]:
    """The configuration of the text tower up to its last block but one, on whose output the U-Net was trained."""
    width = s["token_embedding.weight"][1]
    return {
        "hidden_size": width,
        "intermediate_size": s["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": s.count(r"transformer\.resblocks\.(\d+)\.") - 1,
        "num_attention_heads": heads or width // head_channels(width),
        "max_position_embeddings": s["positional_embedding"][0],
        "vocab_size": s["token_embedding.weight"][0],
        "projection_dim": s["text_projection"][1] if "text_projection" in s else width,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }


def unused(name: str, blocks: int) -> bool:
    """Whether inference has no use for a released tensor: tables, and what follows the last text block but one.

    Args:
        name: its released name.
        blocks: the number of blocks of the text tower that are used.
    """
    text = PREFIXES["text_encoder"]
    return name in TABLES or (
        name.startswith(
            (f"{text}transformer.resblocks.{blocks}.", f"{text}text_projection", f"{text}logit_scale", f"{text}attn_mask")
        )
    )
