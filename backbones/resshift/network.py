"""The U-Net of ResShift: residual blocks and Swin layers, (x, timestep, LQ) -> x0. Its tensors have the released names.

    x, LQ features -> input_blocks: a convolution; per level residual blocks, a Swin layer after the first; Downsample between
                   -> middle_block: residual block, Swin layer, residual block
                   -> output_blocks: per level one block more than below, each with the output of an input block appended

A residual block is x + conv(silu(norm(h) (1 + p) + q)), h = conv(silu(norm(x))), (p, q) of the timestep. A Swin block is
x + attention(norm(x)), then x + mlp(norm(x)), with attention inside windows of w x w; every other one sees windows that are
shifted by w/2, unless one window covers the map that the network was trained on.

**The mask of the shifted windows is not Swin's.** After the shift, windows at the right and lower border join what lies at
opposite borders of the picture. The released networks were trained with another mask: in the last row of windows alone, the
left w - s columns of each window do not see its right s columns. Without it the output is wrong.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

GROUPS = 32  # of every norm
HIDDEN = -100.0  # what is added to the attention between tokens that do not see each other


class SwinUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """The U-Net. The defaults are the released x4 networks.

    Args:
        in_channels: channels of x, and of the output.
        lq_channels: channels of the LQ picture, with a mask appended for inpainting.
        lq_widths: (before, after its stride of 2) channels of each stage of the feature extractor, as many as the LQ picture is
            larger than x by factors of 2.
        time_channels: sinusoids of the timestep.
        time_width: width of its embedding.
        widths: channels of each level.
        layers: residual blocks of each level.
        swin: the Swin layers of each level, {channels, depth, heads, window, hidden}, or None.
        middle_swin: the Swin layer of the middle.
        sample_size: the side of x in training: where it is one window, nothing shifts.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 3,
        lq_channels: int = 3,
        lq_widths: Sequence[Sequence[int]] = (),
        time_channels: int = 160,
        time_width: int = 640,
        widths: Sequence[int] = (160, 320, 320, 640),
        layers: Sequence[int] = (2, 2, 2, 2),
        swin: Sequence[Mapping[str, int] | None] = ({"channels": 192, "depth": 2, "heads": 6, "window": 8, "hidden": 768},) * 4,
        middle_swin: Mapping[str, int] = {"channels": 192, "depth": 2, "heads": 6, "window": 8, "hidden": 768},
        sample_size: int = 64,
    ) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(time_channels, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        features = lq_channels
        if lq_widths:
            extractor: list[nn.Module] = []
            for before, after in lq_widths:
                extractor += [_conv(features, before), nn.SiLU(), _down(before, after)]
                features = after
            self.feature_extractor = nn.Sequential(*extractor)
        width, last = widths[0], len(widths) - 1
        self.input_blocks = nn.ModuleList([_Block(_conv(in_channels + features, width))])
        skips = [width]
        for level, (after, count, spec) in enumerate(zip(widths, layers, swin, strict=True)):
            for i in range(count):
                parts: list[nn.Module] = [ResBlock(width, after, time_width)]
                if spec is not None and i == 0:
                    parts.append(SwinLayer(after, resolution=sample_size >> level, **spec))
                self.input_blocks.append(_Block(*parts))
                width = after
                skips.append(width)
            if level < last:
                self.input_blocks.append(_Block(_down(width, width)))
                skips.append(width)
        self.middle_block = _Block(
            ResBlock(width, width, time_width),
            SwinLayer(width, resolution=sample_size >> last, **middle_swin),
            ResBlock(width, width, time_width),
        )
        self.output_blocks = nn.ModuleList()
        for level, after, count, spec in reversed(list(zip(range(last + 1), widths, layers, swin, strict=True))):
            for i in range(count + 1):
                parts = [ResBlock(width + skips.pop(), after, time_width)]
                if spec is not None and i == 0:
                    parts.append(SwinLayer(after, resolution=sample_size >> level, **spec))
                if level and i == count:
                    parts.append(nn.Sequential(OrderedDict(up=nn.Upsample(scale_factor=2.0), conv=_conv(after, after))))
                self.output_blocks.append(_Block(*parts))
                width = after
        self.out = nn.Sequential(_norm(width), nn.SiLU(), _conv(width, in_channels))

    @property
    def reduction(self) -> int:
        """Pixels of the LQ picture a side of an element of x."""
        return int(2 ** len(self.config.lq_widths))

    @property
    def multiple(self) -> int:
        """Sides of x are multiples of this: windows fill the map of every level."""
        last = len(self.config.widths) - 1
        specs = [*enumerate(self.config.swin), (last, self.config.middle_swin)]
        return math.lcm(2**last, *(spec["window"] * 2**level for level, spec in specs if spec is not None))

    def forward(self, x: Tensor, timestep: Tensor | float, lq: Tensor) -> Tensor:
        """The estimate of x0.

        Args:
            x: (batch, in_channels, height, width), scaled (`presets.resshift_input_scale`); sides that `multiple` divides.
            timestep: index in the table, from 0; between two of them, a fraction. One, or one a sample.
            lq: (batch, lq_channels, reduction height, reduction width) in [-1, 1]; of a mask 1 is unknown, -1 known.
        """
        time = torch.as_tensor(timestep, device=x.device).reshape(-1).expand(len(x))
        emb = self.time_embed(sinusoid(time, int(self.config.time_channels)).to(x.dtype))
        features = self.feature_extractor(lq) if self.config.lq_widths else lq
        h, passed = torch.cat([x, features], 1), []
        for block in self.input_blocks:
            h = block(h, emb)
            passed.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, passed.pop()], 1), emb)
        out: Tensor = self.out(h)
        return out

    def released_buffers(self) -> dict[str, Tensor]:
        """What the released files hold beside the weights: for each Swin block the index of its biases, and its mask."""
        found = {}
        for name, block in self.named_modules():
            if isinstance(block, SwinBlock):
                found[f"{name}.attn.relative_position_index"] = relative_index(block.attn.window)
                if block.shift:
                    found[f"{name}.attn_mask"] = mask(block.attn.window, block.shift, block.resolution, block.resolution)
        return found


class ResBlock(nn.Module):
    """Two convolutions around a scale and a shift that depend on the timestep, and x."""

    def __init__(self, before: int, after: int, time_width: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(_norm(before), nn.SiLU(), _conv(before, after))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * after))
        self.out_layers = nn.Sequential(_norm(after), nn.SiLU(), nn.Identity(), _conv(after, after))
        self.skip_connection = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, silu, _, conv = self.out_layers
        scale, shift = self.emb_layers(emb)[..., None, None].chunk(2, 1)
        h = norm(self.in_layers(x)) * (1 + scale) + shift
        out: Tensor = self.skip_connection(x) + conv(silu(h))
        return out


class SwinLayer(nn.Module):
    """A projection, Swin blocks, and a projection back; nothing goes around it.

    Args:
        width: channels of the input.
        resolution: side of the map in training.
        channels: channels of the blocks.
        depth: number of blocks.
        heads: heads of their attention.
        window: side of the windows.
        hidden: channels inside the mlp.
    """

    def __init__(self, width: int, *, resolution: int, channels: int, depth: int, heads: int, window: int, hidden: int) -> None:
        super().__init__()
        shift = window // 2 if resolution > window else 0
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(width, channels, 1)))
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, hidden, shift if i % 2 else 0, resolution) for i in range(depth)
        )
        self.patch_unembed = nn.Sequential(OrderedDict(proj=nn.Conv2d(channels, width, 1)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch_embed(x)
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.patch_unembed(h)
        return out


class SwinBlock(nn.Module):
    """Attention inside windows, which lie `shift` further to the lower right, and an mlp."""

    def __init__(self, channels: int, heads: int, window: int, hidden: int, shift: int, resolution: int) -> None:
        super().__init__()
        self.shift, self.resolution = shift, resolution
        self.norm1, self.norm2 = _norm(channels), _norm(channels)
        self.attn = WindowAttention(channels, heads, window, shift)
        fc1, fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))

    def forward(self, x: Tensor) -> Tensor:
        w, s = self.attn.window, self.shift
        h = self.norm1(x).roll((-s, -s), (2, 3)) if s else self.norm1(x)
        windows = (
            h.unflatten(3, (-1, w)).unflatten(2, (-1, w)).permute(0, 2, 4, 3, 5, 1)
        )  # batch, rows, columns, w, w, channels
        h = self.attn(windows.flatten(3, 4)).unflatten(3, (w, w))
        h = h.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        x = x + (h.roll((s, s), (2, 3)) if s else h)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class WindowAttention(nn.Module):
    """Attention inside windows, with a bias for each distance: (batch, rows, columns, w w, channels) -> the same shape."""

    relative_index: Tensor
    unseen: Tensor

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.heads, self.shift = window, heads, shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.register_buffer("relative_index", relative_index(window), persistent=False)
        self.register_buffer("unseen", column_mask(window, shift), persistent=False)

    def forward(self, windows: Tensor) -> Tensor:
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        bias = self.relative_position_bias_table[self.relative_index].permute(2, 0, 1)[None].to(q.dtype)
        if self.shift:  # the last row of windows is masked
            rows = [(slice(None, -1), bias), (slice(-1, None), bias + self.unseen.to(q.dtype))]
            if windows.shape[1] == 1:
                rows = rows[1:]
            out = torch.cat([_attention(q[:, row], k[:, row], v[:, row], added) for row, added in rows], 1)
        else:
            out = _attention(q, k, v, bias)
        projected: Tensor = self.proj(out.transpose(-2, -3).flatten(-2))
        return projected


class _Block(nn.Sequential):
    """Modules in a row, of which residual blocks get the embedding of the timestep as well."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for module in self:
            x = module(x, emb) if isinstance(module, ResBlock) else module(x)
        return x


def sinusoid(timestep: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of timestep / 10000^(2 k / channels), float32: (batch,) -> (batch, channels)."""
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angle = timestep.float()[:, None] * torch.exp(-math.log(10000) * exponent)
    return torch.cat([angle.cos(), angle.sin()], 1)


def relative_index(window: int) -> Tensor:
    """The row of the table of biases for each (query, key) of a window: (dy + w - 1)(2 w - 1) + dx + w - 1, query - key."""
    place = torch.arange(window, device="cpu")
    y, x = (grid.flatten() for grid in torch.meshgrid(place, place, indexing="ij"))
    dy, dx = (axis[:, None] - axis + window - 1 for axis in (y, x))
    return dy * (2 * window - 1) + dx


def column_mask(window: int, shift: int) -> Tensor:
    """What is added to the attention in a window of the last row: `HIDDEN` between its left w - s and right s columns."""
    left = torch.arange(window, device="cpu").repeat(window) < window - shift
    return torch.where(left[:, None] == left, 0.0, HIDDEN).to(torch.float32)


def mask(window: int, shift: int, height: int, width: int) -> Tensor:
    """What is added to the attention in each window of a map, row by row, (windows, w w, w w), as released files hold it."""
    rows, columns = height // window, width // window
    last = torch.arange(rows * columns, device="cpu") >= (rows - 1) * columns
    return torch.where(last[:, None, None], column_mask(window, shift), 0.0)


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v; the bias is (1, heads, tokens, tokens)."""
    out = F.scaled_dot_product_attention(q.flatten(0, 2), k.flatten(0, 2), v.flatten(0, 2), attn_mask=bias)
    return out.reshape(q.shape)


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def _down(before: int, after: int) -> nn.Module:
    return nn.Sequential(OrderedDict(op=nn.Conv2d(before, after, 3, stride=2, padding=1)))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)
