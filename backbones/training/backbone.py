"""Networks that `dosde train` trained as backbones, and backbones of a user's by name: `dosde upscale --backbone module:name`.

    backbone = load("runs/mine/weights.safetensors")      a result or a checkpoint, on which network and options are written
    larger = backbones.upscale(backbone, picture, scale=4, steps=5)

`--backbone` names a network, as `model.network` of a config does; or a `load`, a function or a class that returns a backbone;
or a backbone itself (`backbones.Backbone`).
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

import dosde
from backbones import backbone, named, weights
from backbones.embedded import source
from backbones.embedded.network import NETWORK
from backbones.pictures import io as images
from backbones.pictures.resize import bicubic
from dosde.check import Refused, form
from dosde.prediction import Predicts
from dosde.solve import Model
from dosde.step import Method

from . import record
from .config import Config, filled, made_process

_MEMBERS = ("process", "encode", "denoiser", "decode", "grid", "method", "least_scale", "residual_scale")


class Conditioning(NamedTuple):
    """What encode knows of a picture and decode needs."""

    made: tuple[int, int]
    size: tuple[int, int]
    grey: bool
    device: torch.device


@dataclass(frozen=True, repr=False)
class Trained(backbone.Loaded):
    """A network on pixels that `dosde train` trained.

    Args:
        network: in evaluation mode. If it has a number `multiple`, pictures get sides that are multiples of it, by mirroring.
        process: what it was trained for.
        predicts: what it returns.
        scale: by which it was trained to enlarge; to another scale its result is brought by bicubic interpolation.
    """

    network: nn.Module
    process: dosde.Process
    predicts: Predicts
    scale: int

    least_scale = 1.0
    residual_scale = None
    grid = staticmethod(dosde.grid.uniform)

    @property
    def method(self) -> Method:
        """The paper's."""
        return dosde.method.dos

    def encode(self, picture: Tensor, scale: float, noise: object = None) -> tuple[Tensor, Conditioning]:
        """x_hat0, as in the training: bicubic, larger by the scale of the training, in [-1, 1], in colour."""
        backbone.check(picture, scale)
        h, w = picture.shape[-2:]
        size = max(1, round(h * scale)), max(1, round(w * scale))
        first = next(self.network.parameters())
        x_hat0 = source(picture.to(first.device, torch.float32), (self.scale * h, self.scale * w)).expand(-1, 3, -1, -1)
        made = Conditioning((self.scale * h, self.scale * w), size, picture.shape[1] == 1, picture.device)
        return images.mirrored(x_hat0, int(cast(Any, getattr(self.network, "multiple", 1)))).contiguous(), made

    def denoiser(self, conditioning: Conditioning) -> Model:
        """The network, in its dtype."""
        dtype = next(self.network.parameters()).dtype

        def net(x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
            value: Tensor = self.network(x.to(dtype), x_hat0.to(dtype), t.to(x.device, dtype).expand(len(x)))
            return value.to(x.dtype)

        return dosde.Denoiser(net, self.process, self.predicts)

    def decode(self, x0: Tensor, conditioning: Conditioning) -> Tensor:
        """The picture: cut, brought to its size, in [0, 1], grey where it was grey."""
        height, width = conditioning.made
        picture = ((x0[..., :height, :width] + 1) / 2).clamp(0, 1)
        picture = images.luma(picture) if conditioning.grey else picture
        if conditioning.size != conditioning.made:
            picture = bicubic(picture, conditioning.size).clamp(0, 1)
        return picture.to(conditioning.device)


def load(path: Path | str, network: str | None = None, *, dtype: str = "float32", device: str = "auto") -> Trained:
    """The network in a file of `dosde train`: weights.safetensors, or a checkpoint, of which it is the averaged weights.

    Args:
        path: the file.
        network: "package.module:name" of the network; default: what the config of the training said. It is imported.
        dtype: of the network.
        device: "auto" is a GPU where there is one.

    Raises:
        Refused: the file is of no such training, or the network cannot be made.
    """
    config, path = config_of(path), Path(path)
    if config is None or config.task != "embedded":
        raise Refused("checkpoint", path, "a file that `dosde train` wrote for a network on pixels is needed")
    name = network or config.model.network
    if name == NETWORK:
        needed = "the backbone embedded is needed (--backbone embedded, backbones.load('embedded', weights=...))"
        raise Refused("checkpoint", path, needed, f"{path} holds a network of it")
    place, process = backbone.device(device), made_process(config.process)
    if process.noise_free:
        raise Refused("checkpoint", path, "a process with noise is needed, to be solved", f"{path}: its process has none")
    if dtype not in backbone.DTYPES and dtype != "auto":
        raise Refused("dtype", dtype, f"auto, {', '.join(backbone.DTYPES)}, is needed")
    make = named.found("backbone", name)
    try:
        made = make(**config.model.options)
    except Exception as error:  # whatever a network of one's own does
        shown = f"{name} with the options of its training, {config.model.options}: {named.said(error)}"
        raise Refused("backbone", name, "the network that was trained is needed", shown) from None
    if not isinstance(made, nn.Module):
        raise Refused("backbone", name, "a network is needed", f"{name} made {form(made)}")
    tensors = weights.weights_of(path)
    weights.check(path, tensors, made.state_dict())
    made.load_state_dict(tensors)
    made.to(place, backbone.DTYPES.get(dtype, torch.float32)).eval().requires_grad_(False)
    return Trained(made, process, cast(Predicts, config.objective.predicts), config.data.scale)


def config_of(path: Path | str) -> Config | None:
    """The config of the training that wrote a file, if any did."""
    said = weights.training(path) if Path(path).is_file() else None
    return None if said is None else filled(said)


# -- What the command line asks ---------------------------------------------------------------------------------------------


def chosen(path: Path, asked: str | None) -> str | None:
    """The backbone that `--backbone` and `--weights` mean, where a training has to do with the weights; else what is asked.

    Args:
        path: the weights.
        asked: the backbone that is asked for, or None.

    Raises:
        Refused: the weights are not of that backbone.
    """
    if path.is_dir() and not (path / "model_index.json").exists() and record.read(path) is not None:
        results = [path / name for name in (record.PIPELINE, record.WEIGHTS) if (path / name).exists()]
        files = [*results, *sorted((path / record.CHECKPOINTS).glob("*.safetensors"))[-1:]]
        needed = f"{files[0]} is its result" if results else f"{files[0]} is its last checkpoint" if files else "a file of it"
        raise Refused("weights", path, needed, f"{path} is the folder of a run of `dosde train`")
    config = config_of(path)
    if config is None:
        return asked
    if config.task != "embedded":
        needed = "`dosde train --resume` writes the folder pipeline beside it, at the end of the run, which is needed"
        network = "ControlNet" if config.task == "sd21" else "U-Net"
        raise Refused("weights", path, needed, f"{path} is a checkpoint of the {network} of the backbone {config.task}")
    name = config.model.network
    if name == NETWORK:
        if asked not in (None, "embedded"):
            raise Refused("backbone", asked, "embedded is needed", f"{path} holds a network of the backbone embedded")
        return "embedded"
    if asked is None or ":" not in asked:  # a name in a file is not imported before somebody says so
        shown = f"{path} holds weights of the network {name}, which `dosde train` trained"
        raise Refused("weights", path, f"--backbone {name} is needed", shown)
    return asked


def loader(name: str) -> Callable[..., backbone.Backbone]:
    """The `load` of a backbone of a user's.

    Args:
        name: "package.module:name", see the module's docstring.

    Raises:
        Refused: there is no such thing.
    """
    thing = named.found("backbone", name)
    if not callable(thing) and not _is_backbone(thing):
        needed = "a network, a function that loads a backbone, or a backbone is needed"
        raise Refused("backbone", name, needed, f"{name} is {form(thing)}")
    return functools.partial(_loaded, name, thing)


def _is_backbone(thing: object) -> bool:
    return not isinstance(thing, type) and all(hasattr(thing, member) for member in _MEMBERS)


def _loaded(name: str, thing: Any, **options: Any) -> backbone.Backbone:
    if _is_backbone(thing):
        keywords: dict[str, Any] = {}
    else:
        path = options.get("weights")
        config = None if path is None else config_of(path)
        network = isinstance(thing, type) and issubclass(thing, nn.Module) and not hasattr(thing, "encode")
        if network and path is None:
            raise Refused("weights", None, "a file that `dosde train` wrote is needed for a network", "none")
        if network or (config is not None and config.model.network == name):
            if "tile" in options:
                raise Refused("tile", options["tile"], f"the network {name} runs on whole pictures")
            return load(options.pop("weights"), name, **options)
        keywords = dict(inspect.signature(thing).parameters)
    any_keyword = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in keywords.values())
    for key, value in options.items():
        if key not in keywords and not any_keyword:
            raise Refused(key, value, f"{name} has no keyword {key!r}")
    if _is_backbone(thing):
        return cast(backbone.Backbone, thing)
    try:
        made = thing(**options)
    except Refused:
        raise
    except Exception as error:  # whatever code of one's own does
        raise Refused("backbone", name, "it fails", f"{name}: {named.said(error)}") from error
    missing = [member for member in _MEMBERS if not hasattr(made, member)]
    if missing:
        shown = f"{name} returned {form(made)} without {', '.join(missing)}"
        raise Refused("backbone", name, "a backbone, see backbones.Backbone, is needed", shown)
    return cast(backbone.Backbone, made)
