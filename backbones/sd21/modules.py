"""The modules of the released model that diffusers has not, or has with another first layer."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Encoder
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class LatentControlNet(ControlNetModel):  # type: ignore[misc]
    """diffusers' ControlNetModel whose hint is a latent of x's size, of `conditioning_channels` channels.

    The released network convolves cat(x, hint) with one kernel W and a bias: that is conv_in (the channels of x, and the bias)
    plus a bias-free convolution of the hint (the others), which stands here in place of the conditioning embedding.
    """

    @functools.wraps(ControlNetModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **config: Any) -> None:
        super().__init__(*args, **config)
        self.controlnet_cond_embedding = nn.Conv2d(
            self.config.conditioning_channels, self.config.block_out_channels[0], 3, padding=1, bias=False
        )


class HintEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The encoder half of an AutoencoderKL, with weights of its own: picture in [-1, 1] -> mean and log variance, joined."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",) * 4,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(
            in_channels=in_channels,
            out_channels=latent_channels,
            down_block_types=tuple(down_block_types),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            double_z=True,
            mid_block_add_attention=mid_block_add_attention,
        )
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)

    def forward(self, picture: Tensor) -> Tensor:
        moments: Tensor = self.quant_conv(self.encoder(picture))
        return moments


class PromptEmbeddings(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """What the text tower makes of some fixed prompts, so that they need no text tower: prompt -> (1, tokens, width)."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, prompts: Sequence[str] = (), tokens: int = 77, width: int = 1024) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.zeros(len(prompts), tokens, width), requires_grad=False)

    def forward(self, prompt: str) -> Tensor | None:
        """None where the prompt is not among them."""
        prompts = list(self.config.prompts)
        return self.embeddings[[prompts.index(prompt)]] if prompt in prompts else None
