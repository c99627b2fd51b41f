"""The VQ autoencoder of ResShift's release: diffusers' `VQModel`, and for faces one whose levels have different depths."""

import functools
from collections.abc import Mapping
from typing import Any

from diffusers import VQModel


class UnevenVQModel(VQModel):  # type: ignore[misc]  # diffusers has no types
    """A VQModel whose `layers_per_block` is a list, one number a level, from the picture on: the released f8."""

    @functools.wraps(VQModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **config: Any) -> None:
        layers = list(config["layers_per_block"])
        super().__init__(*args, **config | {"layers_per_block": max(layers)})
        self.register_to_config(layers_per_block=layers)
        for block, count in zip(self.encoder.down_blocks, layers, strict=True):
            block.resnets = block.resnets[:count]
        for block, count in zip(self.decoder.up_blocks, reversed(layers), strict=True):
            block.resnets = block.resnets[: count + 1]


def kind_of(config: Mapping[str, Any]) -> Any:
    """The class of an autoencoder with this configuration."""
    return UnevenVQModel if isinstance(config["layers_per_block"], list) else VQModel
