"""`dosde convert`: the released layout to a diffusers folder and back, and the point where fine-tuning starts."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones import kinds, weights, whole
from backbones.backbone import DTYPES as DTYPES
from backbones.weights import Tensors
from dosde.check import Refused

from . import folders, names
from .parts import Parts, empty, filled, of_folder, to_parts, to_released

# The tokens of the prompts of the release, by CLIP's tokenizer; 0 fills them up to 77.
TOKENS = {
    "clean, high-resolution, 8k": (49406, 3772, 267, 1400, 268, 9977, 267, 279, 330, 49407),
    "": (49406, 49407),
}

_LIBRARIES = {
    "vae": ("diffusers", "AutoencoderKL"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "controlnet": ("backbones.sd21.modules", "LatentControlNet"),
    "hint_encoder": ("backbones.sd21.modules", "HintEncoder"),
    "preprocessor": ("backbones.sd21.rrdb", "RRDBNet"),
    "prompts": ("backbones.sd21.modules", "PromptEmbeddings"),
    "text_encoder": ("transformers", "CLIPTextModel"),
}


def to_folder(parts: Parts, folder: Path, *, dtype: torch.dtype | None = None, tokenizer: Path | None = None) -> None:
    """Writes a folder for `DoSSRPipeline.from_pretrained`, whole or not at all.

    Args:
        parts: the model.
        folder: the folder; it must not exist, or be empty.
        dtype: the type of the weights; default: that of the tensors.
        tokenizer: the folder of a tokenizer.
    """
    import diffusers

    from dosde.interop.diffusers import DoSDEScheduler

    check_out(folder)
    parts = cast(parts, dtype)
    index: dict[str, Any] = {
        "_class_name": "DoSSRPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ("dosde.interop.diffusers", "DoSDEScheduler"),
        "tokenizer": ("transformers", "CLIPTokenizer") if tokenizer else (None, None),
    }
    with whole.folder(folder) as place:
        for component, library in _LIBRARIES.items():
            index[component] = library if component in parts.tensors else (None, None)
            if component not in parts.tensors:
                continue
            module = empty(component, parts.configs[component])
            tensors = parts.tensors[component]
            (place / component).mkdir()
            if component == "text_encoder":
                module.config.architectures = ["CLIPTextModel"]
                module.config.dtype = next(iter(tensors.values())).dtype
                module.config.save_pretrained(place / component)
                tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
                weights.write(place / component / "model.safetensors", tensors)
            else:
                module.save_config(place / component)
                weights.write(place / component / "diffusion_pytorch_model.safetensors", tensors)
        DoSDEScheduler(**parts.configs["scheduler"]).save_config(place / "scheduler")
        if tokenizer:
            shutil.copytree(tokenizer, place / "tokenizer")
        if parts.unused:
            folders.write_unused(place, parts.unused)
        folders.write_json(place / "model_index.json", index)


def check_out(folder: Path) -> None:
    """Refused unless a folder can be made there."""
    if folder.suffix in weights.SUFFIXES:
        raise Refused("--out", folder, "a folder is needed for a checkpoint")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise Refused("--out", folder, "it exists and is not an empty folder")
    if folder.resolve() == Path.cwd():
        raise Refused("--out", folder, "a folder other than the current one is needed, which it would replace")


def to_checkpoint(folder: Path, path: Path) -> None:
    """Writes the released layout of a folder: what was converted, bit for bit, if nothing was changed."""
    if path.exists():
        raise Refused("--out", path, "it exists")
    if path.suffix not in (".safetensors", ".ckpt"):
        raise Refused("--out", path, "a file that ends in .safetensors or .ckpt is needed")
    folder = folders.checked(folder)
    tensors = {name: of_folder(folder, name) for name in names.PREFIXES if folders.has(folder, name)}
    unused = folders.unused(folder)
    if not unused:
        from dosde.interop.diffusers import DoSDEScheduler

        unused = tables(DoSDEScheduler.from_pretrained(folder / "scheduler"))
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.write(path, to_released(tensors, unused))


def parts_of_checkpoint(
    path: str | Path,
    original_config: str | Path | dict[str, Any] | None = None,
    preprocessor: str | Path | None = None,
    base: str | Path | None = None,
) -> Parts:
    """A checkpoint in the released layout, with the prompts of the release embedded. See `DoSSRPipeline.from_single_file`."""
    parts = to_parts(weights.read(path), heads_of(original_config), weights.metadata(path))
    configs, tensors = dict(parts.configs), dict(parts.tensors)
    configs["scheduler"] = scheduler_config(parts.unused)
    if preprocessor is not None:
        configs["preprocessor"], tensors["preprocessor"] = preprocessor_of(preprocessor)
    if "text_encoder" not in tensors and base is not None:
        configs["text_encoder"], tensors["text_encoder"] = of_base(checked_base(base), "text_encoder")
    return with_prompts(replace(parts, configs=configs, tensors=tensors))


def start(base: str | Path, preprocessor: str | Path, t1: float = 0.5) -> Parts:
    """The model from which fine-tuning starts: SD 2.1-base, a ControlNet that adds nothing, a hint encoder equal to the VAE's.

    The ControlNet has the weights of the U-Net's encoder, no weight for the hint, and zero convolutions behind.

    Args:
        base: a folder of SD 2.1-base, or the id of one on the hub.
        preprocessor: an RRDBNet file.
        t1: t1 of the shift.
    """
    folder = checked_base(base)
    configs: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensors] = {}
    for component in ("unet", "vae", "text_encoder"):
        configs[component], tensors[component] = of_base(folder, component)
    unet, vae = configs["unet"], configs["vae"]
    shared = (
        *("in_channels", "block_out_channels", "layers_per_block", "down_block_types", "transformer_layers_per_block"),
        *("attention_head_dim", "cross_attention_dim", "use_linear_projection"),
    )
    latent = vae["latent_channels"]
    configs["controlnet"] = {name: unet[name] for name in shared if name in unet} | {"conditioning_channels": latent}
    configs["hint_encoder"] = {
        name: vae[name]
        for name in ("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "latent_channels")
    }
    for component, source in (("controlnet", "unet"), ("hint_encoder", "vae")):
        own = empty(component, configs[component]).state_dict()
        kind = next(iter(tensors[source].values())).dtype
        tensors[component] = {
            name: tensors[source][name].clone() if name in tensors[source] else torch.zeros(meta.shape, dtype=kind)
            for name, meta in own.items()
        }
    configs["preprocessor"], tensors["preprocessor"] = preprocessor_of(preprocessor)
    configs["scheduler"] = {"t1": t1}
    return with_prompts(Parts(configs, tensors, {}))


def checked_base(base: str | Path) -> Path:
    """The folder of SD 2.1-base; refused unless it has a U-Net, a VAE and a text tower."""
    folder = Path(base) if Path(base).exists() else folders.of_hub(str(base), "--base")
    kind = kinds.kind_of(folder)
    if kind is not None and (not folder.is_dir() or "XL" in kind.what):
        raise Refused("--base", folder, "a folder of SD 2.1-base in diffusers' layout is needed", f"{folder} is {kind.what}")
    for component in ("unet", "vae", "text_encoder"):
        if not folders.has(folder, component):
            raise Refused(
                "--base", folder, "a folder of SD 2.1-base in diffusers' layout is needed", f"{folder} lacks {component}/"
            )
    return folder


def of_base(folder: Path, component: str) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors of a component of SD 2.1-base; refused where they do not suit each other."""
    path = folder / component / "config.json"
    try:
        config = {name: value for name, value in json.loads(path.read_text()).items() if name[0] != "_"}
    except (OSError, ValueError) as error:
        raise Refused(
            "--base", path, "the configuration of a component is needed", f"{path} cannot be read ({error})"
        ) from None
    if component == "text_encoder":
        for name in ("architectures", "dtype", "model_type", "torch_dtype", "transformers_version"):
            config.pop(name, None)
    tensors = of_folder(folder, component)
    wanted = {name: tuple(t.shape) for name, t in empty(component, config).state_dict().items()}
    for name, shape in wanted.items():
        if name not in tensors:
            raise Refused(
                "--base",
                folder / component,
                "all that its config.json asks for are needed",
                f"{folder / component} has no tensor {name}",
            )
        if tuple(tensors[name].shape) != shape:
            raise Refused(
                "--base",
                folder / component,
                f"{shape} is needed",
                f"{folder / component}: {name} has shape {tuple(tensors[name].shape)}",
            )
    return config, {name: tensors[name] for name in wanted}


def tokenizer_folder(base: str | Path | None) -> Path | None:
    """The folder of the tokenizer, where a base is given and has one."""
    if base is None:
        return None
    folder = checked_base(base) / "tokenizer"
    return folder if folder.is_dir() else None


def tokenizer_of(base: str | Path | None) -> Any:
    """The tokenizer of a base, or None."""
    folder = tokenizer_folder(base)
    if folder is None:
        return None
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def preprocessor_of(path: str | Path) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors of an RRDBNet file."""
    from . import rrdb

    net = rrdb.load(Path(path))
    return {name: value for name, value in net.config.items() if name[0] != "_"}, dict(net.state_dict())


def with_prompts(parts: Parts) -> Parts:
    """The model with a component `prompts`, if there is a text tower that knows the tokens."""
    config = parts.configs.get("text_encoder")
    if config is None or config.get("vocab_size", 49408) < 49408:
        return parts
    text = filled("text_encoder", config, parts.tensors["text_encoder"])
    kind = next(iter(parts.tensors["text_encoder"].values())).dtype
    length = config.get("max_position_embeddings", 77)
    tokens = torch.tensor([[*t, *[0] * (length - len(t))] for t in TOKENS.values()])
    with torch.no_grad():
        embeddings = text.float()(tokens).last_hidden_state.to(kind)
    prompts = {"prompts": list(TOKENS), "tokens": length, "width": embeddings.shape[-1]}
    return replace(
        parts,
        configs=parts.configs | {"prompts": prompts},
        tensors=parts.tensors | {"prompts": {"embeddings": embeddings}},
    )


def heads_of(original_config: str | Path | Mapping[str, Any] | None) -> names.Heads:
    """num_head_channels of the U-Net, and heads of open_clip's text_cfg if it is there, in the YAML (or JSON) of the release.

    Raises:
        Refused: the file cannot be read, or has no such number.
    """
    if original_config is None:
        return names.Heads()
    content: Any = original_config
    if not isinstance(content, Mapping):
        import yaml

        try:
            content = yaml.safe_load(Path(original_config).read_text())  # type: ignore[arg-type]
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())[:120]
            raise Refused(
                "original_config", original_config, "a YAML file is needed", f"{original_config} cannot be read ({said})"
            ) from None
    channels, text = _find(content, "num_head_channels"), _find(_find(content, "text_cfg"), "heads")
    for name, found in (("num_head_channels", channels), ("heads of text_cfg", text)):
        if (found is not None or "text" not in name) and (not isinstance(found, int) or found < 1):
            raise Refused("original_config", found, "a positive integer is needed", f"{name} is {found!r} in it")
    return names.Heads(channels, text)


def _find(tree: Any, name: str) -> Any:
    """The first value of that name in a tree of mappings."""
    if not isinstance(tree, Mapping):
        return None
    if name in tree:
        return tree[name]
    return next((found for value in tree.values() if (found := _find(value, name)) is not None), None)


def scheduler_config(stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration of DoSDEScheduler, from the tables of a checkpoint.

    The tables of the release become their parameters; others stay tables. Without a table of eta (DiffBIR), nothing shifts.
    """
    betas = stored.get("betas")
    if betas is None:
        raise Refused("checkpoint", stored, "a checkpoint in the released layout is needed", "no tensor betas")
    config: dict[str, Any] = {"num_train_timesteps": len(betas)}
    table = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), len(betas), dtype=torch.float64) ** 2
    if not torch.allclose(betas.double(), table, rtol=1e-5, atol=0):
        config["trained_betas"] = betas.double().tolist()
    eta = stored.get("lambdas")
    if eta is None:
        return config | {"shift": "none"}
    T1 = int((eta < 1).sum())
    s = torch.linspace(0.001, 0.999, max(T1, 1), dtype=torch.float64)
    cosine = torch.cat([(1 - torch.cos(math.pi * s)) / 2, torch.ones(len(eta) - T1, dtype=torch.float64)])
    if T1 and torch.allclose(eta.double(), cosine[: len(eta)], rtol=1e-4, atol=1e-7):
        return config | {"shift": "dossr", "t1": T1 / len(eta)}
    return config | {"trained_etas": eta.double().tolist()}


def tables(scheduler: Any) -> Tensors:
    """The 15 tables of the released layout, float32, from the process of a scheduler."""
    T = scheduler.config.num_train_timesteps
    marginal = scheduler.process((torch.arange(T, dtype=torch.float64) + 1) / T)
    alphas_cumprod = marginal.alpha**2
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    betas = 1 - alphas_cumprod / before
    eta = marginal.b / marginal.alpha
    variance = betas * (1 - before) / (1 - alphas_cumprod)
    tensors = {
        "lambdas": eta,
        "one_minus_lambdas": 1 - eta,
        "betas": betas,
        "alphas_cumprod": alphas_cumprod,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alphas_cumprod).log(),
        "sqrt_recip_alphas_cumprod": alphas_cumprod.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alphas_cumprod - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - alphas_cumprod),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - alphas_cumprod),
        "logvar": torch.zeros(T),
    }
    if not bool((eta > 0).any()):
        tensors = {name: table for name, table in tensors.items() if "lambdas" not in name}
    return {name: table.float() for name, table in tensors.items()}


def cast(parts: Parts, dtype: torch.dtype | None) -> Parts:
    """The model in another floating dtype; None: as it is. Tensors that no component uses stay as they are."""
    if dtype is None:
        return parts
    tensors = {component: {name: t.to(dtype) for name, t in own.items()} for component, own in parts.tensors.items()}
    return replace(parts, tensors=tensors)
