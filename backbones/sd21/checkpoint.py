"""Files of tensors, read as data (safetensors, or pickles of nothing but tensors), and what modules they make."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import layout

SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
Tensors = dict[str, Tensor]


def read(path: Path | str) -> Tensors:
    """The tensors of a checkpoint file, mapped, not copied, into memory where its format permits.

    An outer `state_dict` (of networks alone: params_ema, params) and a prefix `module.` are taken off. A pickle is never
    executed. Errors: ValueError, one line, that names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint: {path}; no such file")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"checkpoint: {path}; a file that ends in {', '.join(SUFFIXES)} is needed")
    try:
        content = _content(path)
    except Exception as error:  # a broken file fails in as many ways as there are bytes
        said = " ".join(str(error).split())
        with path.open("rb") as file:
            pickled = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        if pickled and any(sign in said for sign in ("Weights only load failed", "WeightsUnpickler", "Unsupported")):
            named = re.search(r"GLOBAL (\S+)", said)
            raise ValueError(
                f"checkpoint: {path} holds more than tensors{f' ({named[1]})' if named else ''}, which loading would execute; "
                "refused. Have its author save the state_dict alone, best as .safetensors"
            ) from None
        reason = said[:120] if " " in said else type(error).__name__
        raise ValueError(f"checkpoint: {path} is no whole file of tensors ({reason})") from None
    for outer in ("state_dict", "params_ema", "params"):
        if isinstance(content, Mapping) and isinstance(content.get(outer), Mapping):
            content = content[outer]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"checkpoint: {path} holds a {type(content).__name__}; tensors by name are needed")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"checkpoint: {path}: {name!r} is a {type(value).__name__}; tensors by name are needed")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name[len(prefix) :]: value for name, value in content.items()}


def _content(path: Path) -> Any:
    if path.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with warnings.catch_warnings():  # of odd pickles, which are refused anyhow
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError):  # of the older format, which cannot be mapped, or broken
            return torch.load(path, map_location="cpu", weights_only=True)


@dataclass(frozen=True)
class Parts:
    """A model in diffusers' names: configuration and tensors of each component, the released tensors that none uses."""

    configs: dict[str, dict[str, Any]]
    tensors: dict[str, Tensors]
    unused: Tensors


def to_parts(released: Mapping[str, Tensor], heads: layout.Heads = layout.Heads()) -> Parts:  # noqa: B008
    """Every tensor in its place. Errors: ValueError that names a missing, unexpected or wrongly shaped one."""
    from .rrdb import config_of

    shapes = {name: tuple(tensor.shape) for name, tensor in released.items()}
    configs = layout.configs(shapes, heads)
    for component in ("unet", "controlnet", "vae", "hint_encoder"):
        if component not in configs:
            raise ValueError(f"checkpoint: no tensor {layout.PREFIXES[component]}*, the {component}; another layout is needed")
    own = layout.part(shapes, "preprocessor")
    if "body.0.rdb1.conv1.weight" in own:  # DiffBIR's is another network
        configs["preprocessor"] = config_of(own)
    tensors: dict[str, Tensors] = {}
    rest = dict(released)
    for component, config in configs.items():
        wanted = {name: tuple(tensor.shape) for name, tensor in empty(component, config).state_dict().items()}
        tensors[component] = {}
        for entry in layout.entries(component, wanted):
            name = layout.PREFIXES[component] + entry.name
            tensor = rest.pop(name, None)
            if tensor is None:
                raise ValueError(f"checkpoint: no tensor {name}")
            if tuple(tensor.shape) != entry.shape(wanted):
                raise ValueError(f"checkpoint: {name} has shape {tuple(tensor.shape)}; {entry.shape(wanted)} is needed")
            if not tensor.is_floating_point():
                raise ValueError(f"checkpoint: {name} is {str(tensor.dtype)[6:]}; a floating tensor is needed")
            tensors[component] |= entry.split(tensor, wanted)
    blocks = configs.get("text_encoder", {}).get("num_hidden_layers", 0)
    ignored = () if "preprocessor" in configs else (layout.PREFIXES["preprocessor"],)
    unused = {name: rest.pop(name) for name in list(rest) if layout.unused(name, blocks) or name.startswith(ignored)}
    if rest:
        more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
        raise ValueError(f"checkpoint: unexpected tensor {next(iter(rest))}{more}")
    return Parts(configs, tensors, unused)


def to_released(tensors: Mapping[str, Tensors], unused: Mapping[str, Tensor]) -> Tensors:
    """The inverse of `to_parts`."""
    released = dict(unused)
    for component, own in tensors.items():
        if component == "preprocessor" and any(name.startswith(layout.PREFIXES[component]) for name in unused):
            continue  # the checkpoint had another network there
        for entry in layout.entries(component, own):
            released[layout.PREFIXES[component] + entry.name] = entry.join(own)
    return released


def empty(component: str, config: Mapping[str, Any]) -> Any:
    """The module of a component, its parameters on the meta device."""
    import logging

    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from .modules import HintEncoder, LatentControlNet, PromptEmbeddings
    from .rrdb import RRDBNet

    with init_empty_weights(include_buffers=False), _quiet(logging.getLogger("transformers")):
        if component == "text_encoder":
            return CLIPTextModel(CLIPTextConfig(**config))
        classes = {
            "unet": UNet2DConditionModel,
            "controlnet": LatentControlNet,
            "vae": AutoencoderKL,
            "hint_encoder": HintEncoder,
            "preprocessor": RRDBNet,
            "prompts": PromptEmbeddings,
        }
        return classes[component](**config)


@contextmanager
def _quiet(logger: Any) -> Iterator[None]:
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def filled(component: str, config: Mapping[str, Any], tensors: Tensors) -> Any:
    """The module of a component with its tensors."""
    module = empty(component, config)
    module.load_state_dict(tensors, strict=True, assign=True)
    return aligned(module.eval())


def aligned(module: nn.Module) -> nn.Module:
    """The same, with weights at addresses of their own: BLAS rounds otherwise where a mapped file puts them elsewhere."""
    for parameter in module.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()
    return module


def files_of(folder: Path, component: str) -> list[Path]:
    """The files with the weights of a component in a diffusers folder. Errors: ValueError where one is not there."""
    place = folder / component
    for stem, ending in (
        ("diffusion_pytorch_model", "safetensors"),
        ("model", "safetensors"),
        ("diffusion_pytorch_model", "bin"),
    ):
        index = place / f"{stem}.{ending}.index.json"
        files = [place / f"{stem}.{ending}"]
        if index.is_file():
            files = [place / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        if files[0].is_file() or index.is_file():
            break
    else:
        raise ValueError(f"weights: {folder}: no weights of the component {component!r} in {place}")
    for path in files:
        if not path.is_file():
            raise ValueError(f"weights: {path} is missing, which {index.name} names")
    return files


def of_folder(folder: Path, component: str) -> Tensors:
    """The tensors of a component in a diffusers folder, as they are stored. Errors: ValueError."""
    tensors = {name: tensor for path in files_of(folder, component) for name, tensor in read(path).items()}
    if component == "text_encoder":  # some versions of transformers put it in front, and a buffer behind
        tensors = {name.removeprefix("text_model."): t for name, t in tensors.items() if not name.endswith("position_ids")}
    return tensors
