"""What modules the tensors of a file, or of a folder, make."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from backbones import kinds
from backbones.weights import Tensors, aligned, read
from dosde.check import Refused, require

from . import names


@dataclass(frozen=True)
class Parts:
    """A model in diffusers' names.

    Args:
        configs: the configuration of each component.
        tensors: the tensors of each component.
        unused: the released tensors that no component uses.
    """

    configs: dict[str, dict[str, Any]]
    tensors: dict[str, Tensors]
    unused: Tensors


def to_parts(
    released: Mapping[str, Tensor],
    heads: names.Heads = names.Heads(),  # noqa: B008
    about: Mapping[str, str] | None = None,
) -> Parts:
    """The components of a released checkpoint, every tensor in its place.

    Args:
        released: tensors by their released names.
        heads: what no tensor tells.
        about: the metadata of the file.

    Raises:
        Refused: a tensor is missing, unexpected or wrongly shaped; the error names it.
    """
    from .rrdb import config_of

    shapes = {name: tuple(tensor.shape) for name, tensor in released.items()}
    for component in ("unet", "controlnet", "vae", "hint_encoder"):
        if not names.part(shapes, component):
            what = kinds.kind_of_tensors(shapes, about)
            raise Refused(
                "checkpoint",
                names.PREFIXES[component],
                "a checkpoint of DoSSR or DiffBIR in the released layout is needed",
                f"{f'{what}, with ' if what else ''}no tensor {names.PREFIXES[component]}*, the {component}",
            )
    configs = names.configs(shapes, heads)
    own = names.part(shapes, "preprocessor")
    if "body.0.rdb1.conv1.weight" in own:  # DiffBIR's is another network
        configs["preprocessor"] = config_of(own)
    tensors: dict[str, Tensors] = {}
    rest = dict(released)
    for component, config in configs.items():
        wanted = {name: tuple(tensor.shape) for name, tensor in empty(component, config).state_dict().items()}
        tensors[component] = {}
        for entry in names.entries(component, wanted):
            name = names.PREFIXES[component] + entry.name
            tensor = rest.pop(name, None)
            if tensor is None:
                raise Refused("checkpoint", name, "a checkpoint in the released layout is needed", f"no tensor {name}")
            if tuple(tensor.shape) != entry.shape(wanted):
                raise Refused("checkpoint", name, f"{entry.shape(wanted)} is needed", f"{name} has shape {tuple(tensor.shape)}")
            if not tensor.is_floating_point():
                raise Refused("checkpoint", name, "a floating tensor is needed", f"{name} is {str(tensor.dtype)[6:]}")
            tensors[component] |= entry.split(tensor, wanted)
    blocks = configs.get("text_encoder", {}).get("num_hidden_layers", 0)
    ignored = () if "preprocessor" in configs else (names.PREFIXES["preprocessor"],)
    unused = {name: rest.pop(name) for name in list(rest) if names.unused(name, blocks) or name.startswith(ignored)}
    if rest:
        more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
        raise Refused(
            "checkpoint",
            list(rest),
            "a checkpoint in the released layout is needed",
            f"unexpected tensor {next(iter(rest))}{more}",
        )
    return Parts(configs, tensors, unused)


def to_released(tensors: Mapping[str, Tensors], unused: Mapping[str, Tensor]) -> Tensors:
    """The inverse of `to_parts`."""
    released = dict(unused)
    for component, own in tensors.items():
        if component == "preprocessor" and any(name.startswith(names.PREFIXES[component]) for name in unused):
            continue  # the checkpoint had another network there
        for entry in names.entries(component, own):
            released[names.PREFIXES[component] + entry.name] = entry.join(own)
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


def files_of(folder: Path, component: str, variant: str | None = None) -> list[Path]:
    """The files with the weights of a component in a diffusers folder.

    Args:
        folder: the folder.
        component: the name of the component.
        variant: as in `save_pretrained(variant="fp16")`, where the component has it. Default: files without one, or else those
            of the only one that there is.

    Raises:
        Refused: one is not there.
    """
    place = folder / component
    found = (_files(place, variant) if variant else []) or _files(place, None) or _files(place, variant_of(place))
    if not found:
        raise Refused(
            "weights", folder, "a whole folder is needed", f"{folder}: no weights of the component {component!r} in {place}"
        )
    for path in found:
        if not path.is_file():
            raise Refused("weights", path, "a whole folder is needed", f"{path} is missing, which an index beside it names")
    return found


_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


def _files(place: Path, variant: str | None) -> list[Path]:
    """The files with weights of one variant, or of none."""
    middle = f".{variant}" if variant else ""
    for ending in ("safetensors", "bin"):
        for stem in _STEMS:
            index = place / f"{stem}.{ending}.index{middle}.json"
            if index.is_file():
                return [place / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
            if (place / f"{stem}{middle}.{ending}").is_file():
                return [place / f"{stem}{middle}.{ending}"]
    return []


def variants(place: Path) -> list[str]:
    """The variants of weights in the folder of a component."""
    pattern = rf"(?:{'|'.join(_STEMS)})\.([\w-]+?)(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
    return sorted({match[1] for path in place.glob("*.*.*") if (match := re.fullmatch(pattern, path.name))})


def variant_of(place: Path) -> str | None:
    """The variant of the weights in the folder of a component, where it has no others.

    Raises:
        Refused: it has several.
    """
    found = variants(place)
    if not found or _files(place, None):
        return None
    require(len(found) == 1, "variant", found, f"one of them is needed as variant=..., for {place} has no other weights")
    return found[0]


def of_folder(folder: Path, component: str) -> Tensors:
    """The tensors of a component in a diffusers folder, as they are stored.

    Raises:
        ValueError: a file is missing or broken.
    """
    tensors = {name: tensor for path in files_of(folder, component) for name, tensor in read(path).items()}
    if component == "text_encoder":  # some versions of transformers put it in front, and a buffer behind
        tensors = {name.removeprefix("text_model."): t for name, t in tensors.items() if not name.endswith("position_ids")}
    return tensors
