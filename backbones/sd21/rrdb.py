"""RRDBNet, the network of ESRGAN, BSRGAN and Real-ESRGAN: a picture four (or another power of two) times as large.

    f = conv_first(y),   y the picture, its pixels unshuffled by 2^num_up/scale
    f = f + conv_body(body(f)),   num_up times (usually twice): conv(nearest x2),   out = conv_last(conv_hr(f))

A block of the body is three dense blocks, r(x) = x + 0.2 d3(d2(d1(x))); a dense block has five convolutions, each of x and of
all before it, and is d(x) = x + 0.2 conv5(...). LeakyReLU of slope 0.2 follows convolutions 1 to 4, the upsampling's, conv_hr.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from backbones import kinds, weights
from dosde.check import Refused

# Names of ESRGAN and BSRGAN -> those of Real-ESRGAN.
_OLDER = (
    (r"^RRDB_trunk\.(\d+)\.RDB([123])\.", r"body.\1.rdb\2."),
    (r"^trunk_conv\.", "conv_body."),
    (r"^upconv(\d)\.", r"conv_up\1."),
    (r"^HRconv\.", "conv_hr."),
)
# Those of the first ESRGAN, which most networks of other people have. Its last convolutions are numbered among other layers.
_FIRST = (
    (r"^model\.0\.", "conv_first."),
    (r"^model\.1\.sub\.(\d+)\.RDB([123])\.conv([1-5])\.0\.", r"body.\1.rdb\2.conv\3."),
    (r"^model\.1\.sub\.\d+\.(weight|bias)$", r"conv_body.\1"),
)


class RRDBNet(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """(batch, in_channels, h, w) -> (batch, out_channels, scale h, scale w), pictures in [0, 1], unclamped.

    Sides that do not fold are padded with their last pixel, and the result is cropped.

    Args:
        in_channels: channels of the picture.
        out_channels: channels of the result.
        num_feat: features of the body.
        num_block: blocks of the body.
        num_grow_ch: features that each convolution of a dense block adds.
        scale: 2^num_up; or a half and a quarter of it, which fold 2x2 and 4x4 pixels into the channels first.
        num_up: how often the features are doubled in size.

    Raises:
        Refused: another scale, a size below 1, a picture of another shape.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        num_feat: int = 64,
        num_block: int = 23,
        num_grow_ch: int = 32,
        scale: int = 4,
        num_up: int = 2,
    ) -> None:
        super().__init__()
        if not 0 <= num_up <= 5:
            raise Refused("num_up", num_up, "a number from 0 to 5 is needed")
        scales = [2**up for up in range(max(0, num_up - 2), num_up + 1)]
        if scale not in scales:
            raise Refused("scale", scale, f"{', '.join(map(str, scales[:-1]))}{' or ' * (num_up > 0)}{scales[-1]} is needed")
        for name, size in {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "num_feat": num_feat,
            "num_block": num_block,
            "num_grow_ch": num_grow_ch,
        }.items():
            if size < 1:
                raise Refused(name, size, "at least 1 is needed")
        self.in_channels, self.fold = in_channels, 2**num_up // scale
        self.scale = scale
        self.conv_first = _conv(in_channels * self.fold**2, num_feat)
        self.body = nn.Sequential(*(_Block(num_feat, num_grow_ch) for _ in range(num_block)))
        self.conv_body = _conv(num_feat, num_feat)
        self.ups = [f"conv_up{k + 1}" for k in range(num_up)]
        for name in self.ups:
            setattr(self, name, _conv(num_feat, num_feat))
        self.conv_hr = _conv(num_feat, num_feat)
        self.conv_last = _conv(num_feat, out_channels)

    def forward(self, picture: Tensor) -> Tensor:
        """The picture, enlarged."""
        if picture.ndim != 4 or picture.shape[1] != self.in_channels or picture.numel() == 0:
            raise Refused(
                "picture", picture, f"(batch, {self.in_channels}, height, width) is needed", f"shape {tuple(picture.shape)}"
            )
        h, w = picture.shape[-2:]
        if self.fold > 1:
            picture = F.pad(picture, (0, -w % self.fold, 0, -h % self.fold), mode="replicate")
            picture = F.pixel_unshuffle(picture, self.fold)
        first: Tensor = self.conv_first(picture)
        f = first + self.conv_body(self.body(first))
        del first
        # The largest tensors are here, of 16 times the pixels: never more than the input and the output of one convolution.
        for name in self.ups:
            f = F.interpolate(f, scale_factor=2, mode="nearest")
            f = _leaky(getattr(self, name)(f))
        f = _leaky(self.conv_hr(f))
        out: Tensor = self.conv_last(f)
        return out[..., : self.scale * h, : self.scale * w]


class _Block(nn.Module):
    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = _Dense(features, growth)
        self.rdb2 = _Dense(features, growth)
        self.rdb3 = _Dense(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return out * 0.2 + x


class _Dense(nn.Module):
    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(features, growth)
        self.conv2 = _conv(features + growth, growth)
        self.conv3 = _conv(features + 2 * growth, growth)
        self.conv4 = _conv(features + 3 * growth, growth)
        self.conv5 = _conv(features + 4 * growth, features)

    def forward(self, x: Tensor) -> Tensor:
        grown = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            grown = torch.cat([grown, _leaky(conv(grown))], 1)
        out: Tensor = self.conv5(grown)
        return out * 0.2 + x


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2, inplace=True)


def config_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The arguments of `RRDBNet` whose tensors, by Real-ESRGAN's names, have these shapes.

    A first convolution with 4 or 16 times the channels of the last one is read as one of 2x2 or 4x4 pixels folded.

    Raises:
        Refused: a tensor is missing or has no convolution's shape; the error names it.
    """

    def sides(name: str) -> tuple[int, int]:
        """Output and input channels."""
        if name not in shapes:
            raise Refused(name, None, "the weights of an RRDBNet are needed", "missing")
        shape = tuple(shapes[name])
        if len(shape) != 4 or shape[2:] != (3, 3) or 0 in shape:
            raise Refused(name, shape, "(outputs, inputs, 3, 3) is needed", f"shape {shape}")
        return shape[0], shape[1]

    features, inputs = sides("conv_first.weight")
    outputs = sides("conv_last.weight")[0]
    growth = sides("body.0.rdb1.conv1.weight")[0]
    ups = len([name for name in shapes if re.fullmatch(r"conv_up\d\.bias", name)])
    fold = {4 * outputs: 2, 16 * outputs: 4}.get(inputs, 1)
    if fold > 2**ups:
        raise Refused("conv_first.weight", inputs, f"{outputs * 4**ups} input channels at most are needed", f"{inputs} of them")
    return {
        "in_channels": inputs // fold**2,
        "out_channels": outputs,
        "num_feat": features,
        # Counted, not the highest number: a stray name must not ask for a million blocks.
        "num_block": len({name.split(".")[1] for name in shapes if re.match(r"body\.\d+\.", name)}),
        "num_grow_ch": growth,
        "scale": 2**ups // fold,
        **({} if ups == 2 else {"num_up": ups}),
    }


def from_state_dict(tensors: Mapping[str, Any]) -> RRDBNet:
    """The network with these tensors, copied to float32, in evaluation mode. Names may be Real-ESRGAN's or those before it.

    Raises:
        Refused: a tensor is missing, unexpected, of the wrong shape, or no tensor of floats; the error names it.
    """
    tensors = _current(tensors)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise Refused(name, tensor, "a tensor of floats is needed", str(kind))
    with torch.device("meta"):
        net = RRDBNet(**config_of({name: tensor.shape for name, tensor in tensors.items()}))
    expected = {name: tensor.shape for name, tensor in net.state_dict().items()}
    for name, shape in expected.items():
        if name not in tensors:
            raise Refused(name, None, "the weights of an RRDBNet are needed", "missing")
        if tensors[name].shape != shape:
            raise Refused(name, tensors[name], f"{tuple(shape)} is needed", f"shape {tuple(tensors[name].shape)}")
    for name in tensors:
        if name not in expected:
            raise Refused(name, None, "the weights of an RRDBNet alone are needed", "unexpected")
    net.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}, assign=True)
    return net.eval()  # type: ignore[no-any-return]


def load(path: str | Path) -> RRDBNet:
    """The network in a .safetensors or a .pth file, as `from_state_dict` reads it. Nothing in a file is ever executed.

    Raises:
        ValueError: the file is broken, holds other things than tensors, or another network; the error names it.
    """
    tensors = weights.read(path)
    try:
        return from_state_dict(tensors)
    except Refused as error:
        what = kinds.kind_of_tensors({name: tensor.shape for name, tensor in tensors.items()}, weights.metadata(path))
        what = f"{what}, " if what and "RRDBNet" not in what else ""
        raise Refused(f"{path}", error.value, error.needed, f"{what}{error.argument}: {error.shown}") from None


def _current(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors by Real-ESRGAN's names."""
    older: tuple[tuple[str, str], ...] = _OLDER
    if any(str(name).startswith("model.1.sub.") for name in tensors):
        found = {int(m[1]) for name in tensors if (m := re.fullmatch(r"model\.(\d{1,3})\.weight", str(name))) and int(m[1]) > 1}
        numbers = sorted(found)
        names = [*(f"conv_up{k}" for k in range(1, len(numbers) - 1)), "conv_hr", "conv_last"][-len(numbers) :]
        last = [(rf"^model\.{n}\.", f"{name}.") for n, name in zip(numbers, names, strict=True)] if numbers else []
        older = (*_FIRST, *last)
    made = {}
    for name, tensor in tensors.items():
        current = str(name)
        for pattern, replaced in older:
            current = re.sub(pattern, replaced, current)
        made[current] = tensor
    return made
