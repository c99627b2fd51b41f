"""The network as a backbone, and its file: float16 weights in safetensors, and JSON that says what they are.

The source x_hat0 is the low-resolution picture, four times as large by bicubic interpolation: that is what the network has
learnt to restore. To another scale its result is brought by bicubic interpolation.
"""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dosde
from backbones import backbone
from backbones.backbone import DTYPES
from backbones.kinds import kind_of_tensors
from backbones.pictures import io as images
from backbones.pictures.resize import bicubic
from backbones.pictures.tiling import least, tiled
from backbones.weights import aligned, averaged, metadata, read, training, write
from dosde.check import Refused
from dosde.solve import Model
from dosde.step import Method

from .network import NETWORK, Config, Network, blank, configured

_KEY, _FORMAT = "dosde.embedded", 2
_SCALE = 4
_TILE = 2048  # about 200 bytes a pixel at the default width: 0.8 GB


def source(picture: Tensor, size: Sequence[int]) -> Tensor:
    """x_hat0, in [-1, 1], of a picture (batch, channels, height, width) in [0, 1]: bicubic, brought to (height, width)."""
    return 2 * bicubic(picture, size).clamp(0, 1) - 1


class Conditioning(NamedTuple):
    """What encode knows of a picture and decode needs."""

    made: tuple[int, int]
    size: tuple[int, int]
    grey: bool
    device: torch.device


@dataclass(frozen=True, repr=False)
class Embedded(backbone.Loaded):
    """The `embedded` backbone.

    Args:
        network: in evaluation mode, on the device where it is to run.
        about: what the file says of its training.
        tile: a side above which the output is made in tiles, None for never. They overlap by four times the radius of the
            network, so that they give what the untiled network gives (see `tiling`).
    """

    network: Network
    about: Mapping[str, Any] = field(default_factory=dict)
    tile: int | None = _TILE

    least_scale = 1.0

    def __post_init__(self) -> None:
        fold = self.network.config.fold
        smallest = least(self.overlap, fold)
        if self.tile is not None and (self.tile % fold or self.tile < smallest):
            needed = (
                f"a multiple of {fold} from {smallest} is needed, or the overlap of {self.overlap} makes tiles of little else"
            )
            raise Refused("tile", self.tile, needed)

    @property
    def overlap(self) -> int:
        """By which tiles overlap, in pixels."""
        c = self.network.config
        return math.ceil(Fraction(4 * c.radius, c.fold)) * c.fold

    @property
    def process(self) -> dosde.Process:
        """The network's process."""
        return self.network.process

    @property
    def residual_scale(self) -> float:
        """The residual scale of the pictures that the network was trained on."""
        return self.network.config.scale

    def grid(self, process: dosde.Process, steps: int) -> Tensor:
        """Uniform in t."""
        return dosde.grid.uniform(process, steps)

    @property
    def method(self) -> Method:
        """The paper's: docs/embedded.md has it beside `presets.few_step`. One step returns the network's mean."""
        return dosde.method.dos

    def encode(self, picture: Tensor, scale: float, noise: object = None) -> tuple[Tensor, Conditioning]:
        """x_hat0, four times as large whatever the scale, continued by mirroring to sides that suit the network.

        Args:
            picture: (batch, 1 or 3, height, width) in [0, 1].
            scale: at least 1.
            noise: unused; the source is not drawn.

        Raises:
            Refused: for another shape or scale.
        """
        picture = backbone.check(picture, scale)
        h, w = picture.shape[-2:]
        size = max(1, round(h * scale)), max(1, round(w * scale))
        place = self.network.weight.device
        x_hat0 = source(picture.to(place, torch.float32), (_SCALE * h, _SCALE * w)).expand(-1, 3, -1, -1)
        made = Conditioning((_SCALE * h, _SCALE * w), size, picture.shape[1] == 1, picture.device)
        return images.mirrored(x_hat0, self.network.config.fold).contiguous(), made

    def denoiser(self, conditioning: Conditioning) -> Model:
        """The network, in tiles where the picture is large."""

        def x_theta(x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
            tile = self.tile or max(x.shape[-2:])
            return tiled(
                lambda *crops: self.network(*crops, t), (x, x_hat0), tile, self.overlap if self.tile else 0,
                multiple=self.network.config.fold,
            )  # fmt: skip

        return x_theta

    def decode(self, x0: Tensor, conditioning: Conditioning) -> Tensor:
        """The picture: cut, brought to its size, in [0, 1], grey where it was grey."""
        height, width = conditioning.made
        picture = ((x0[..., :height, :width] + 1) / 2).clamp(0, 1)
        picture = images.luma(picture) if conditioning.grey else picture
        if conditioning.size != conditioning.made:
            picture = bicubic(picture, conditioning.size).clamp(0, 1)
        return picture.to(conditioning.device)


def save(path: str | Path, network: Network, about: Mapping[str, Any]) -> None:
    """Writes the network to a file, whole or not at all: weights as float16, configuration and `about` as JSON.

    Args:
        path: a .safetensors file.
        network: what to write.
        about: what it was trained on, and by what; JSON must hold it.

    Raises:
        Refused: for another suffix, weights that float16 cannot hold, and an `about` that JSON cannot.
        OSError: where the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise Refused("path", path, "a file that ends in .safetensors is needed")
    tensors = {name: t.detach().cpu().half().contiguous() for name, t in network.state_dict().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise Refused("network", network, "weights that float16 holds are needed", f"{name} is not finite in float16")
    try:
        said = json.dumps(
            {"format": _FORMAT, "predicts": "x0", "config": network.config.to_json(), "about": dict(about)},
            allow_nan=False,
        )
    except (TypeError, ValueError) as error:
        raise Refused("about", about, "what JSON can hold is needed", str(error)) from None
    write(path, tensors, {_KEY: said})


def loaded(weights: str | Path, tile: int | str | None, dtype: str, device: str) -> Embedded:
    """What `load` returns, whose keywords these are."""
    path = Path(weights)
    whole = read(path)
    config, about = _described(path, whole)
    tensors = averaged(whole)
    if dtype != "auto" and dtype not in DTYPES:
        raise Refused("dtype", dtype, f"auto, {', '.join(DTYPES)}, is needed")
    held, fewest = sum(t.numel() for t in tensors.values()), config.least
    if held < fewest:  # the network takes memory and time, on the meta device too: what symmetry ties together
        raise Refused("checkpoint", path, f"{fewest} or more are needed for what its config says", f"{path}: {held} weights")
    network = blank(config)  # no memory before the shapes are known to be those of the file
    wanted = network.state_dict()
    for name, like in wanted.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise Refused("checkpoint", path, "all weights of its config are needed", f"{path}: no tensor {name}")
        if tensor.shape != like.shape or not tensor.is_floating_point():
            got, needed = f"{str(tensor.dtype)[6:]} {tuple(tensor.shape)}", f"floating {tuple(like.shape)}"
            raise Refused("checkpoint", path, f"{needed} is needed", f"{path}: {name} is {got}")
        if not tensor.isfinite().all():
            raise Refused("checkpoint", path, "finite weights are needed", f"{path}: {name} is not finite")
    if unknown := sorted(set(tensors) - set(wanted)):
        raise Refused(
            "checkpoint", path, "the weights of its config alone are needed", f"{path}: unexpected tensor {unknown[0]}"
        )
    place = backbone.device(device)
    kind = DTYPES.get(dtype, torch.float32 if place.type == "cpu" else torch.bfloat16)
    network.load_state_dict({name: t.to(place, kind) for name, t in tensors.items()}, assign=True)
    aligned(network.to(place).eval().requires_grad_(False))
    if tile == "auto":
        overlap = Embedded(network, tile=None).overlap
        tile = max(_TILE, least(overlap, config.fold)) if _TILE % config.fold == 0 else least(overlap, config.fold)
    if isinstance(tile, str):
        raise Refused("tile", tile, "a number of pixels, 'auto' or None is needed")
    return Embedded(network, about, tile)


def _described(path: Path, tensors: Mapping[str, Tensor]) -> tuple[Config, Mapping[str, Any]]:
    """The configuration in a file with these tensors, and what it says of the training."""
    noted = metadata(path)
    said = noted.get(_KEY)
    if said is None and (trained := training(path)) is not None:
        with contextlib.suppress(KeyError, TypeError):  # the checkpoint of something else, or of no training
            if trained["model"]["network"] == NETWORK and trained["task"] == "embedded":
                return configured(trained["model"]["options"], trained["process"]), {"config": json.dumps(trained)}
            own, task = trained["model"]["network"], trained["task"]
            what, needed = f"the network {own}", f"that network (--backbone {own}) is needed"
            if task != "embedded":
                what, needed = f"the backbone {task}", f"the folder pipeline beside it (--backbone {task}) is needed"
            shown = f"{path} holds weights of {what}, which `dosde train` trained, and no network of the backbone embedded"
            raise Refused("checkpoint", path, needed, shown)
    if said is None:
        kind = kind_of_tensors({name: tensor.shape for name, tensor in tensors.items()}, noted)
        shown = f"{path} is {kind or 'no network of the backbone embedded'} (it does not say {_KEY})"
        raise Refused("checkpoint", path, "a file that `dosde train` or `embedded.save` wrote is needed", shown)
    try:
        made = json.loads(said)
        if made["format"] != _FORMAT or made["predicts"] != "x0":
            raise ValueError(f"format {made['format']}, predicts {made['predicts']}; {_FORMAT} and x0 are known here")
        return Config.from_json(made["config"]), dict(made["about"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        shown = f"{path}: {_KEY}: {reason}"
        raise Refused("checkpoint", path, "a file that `dosde train` or `embedded.save` wrote is needed", shown) from None
