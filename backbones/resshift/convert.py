"""`dosde convert` of ResShift and SinSR: the two released files to a folder in diffusers' layout, and back."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones import weights, whole
from backbones.sd21 import folders
from backbones.sd21.convert import cast, check_out
from backbones.sd21.names import entries
from backbones.sd21.parts import Parts, of_folder
from backbones.weights import Tensors, aligned
from dosde import presets
from dosde import process as processes
from dosde.check import Refused

from . import names
from .folders import checked, config_of, index_of, is_resshift
from .names import Shapes

PREDICTS = {"xstart": "x0", "residual": "residual", "epsilon": "eps", "epsilon_scale": "sigma_eps"}
RESIDUAL = 0.4  # std of x0 - x_hat0 in the latents, for few_step; an estimate, which no file tells
_COMPONENTS = {"unet": names.UNET, "vqvae": names.VQ}


# -- Files to parts ---------------------------------------------------------------------------------------------------------


def concerns(paths: Sequence[Path]) -> bool:
    """Whether a conversion of these files, or of this folder, is one of ResShift: by what they hold."""
    if len(paths) == 1 and paths[0].is_dir():
        return is_resshift(paths[0])
    return len(paths) > 1 or any(names.released(path) for path in paths)


def parts_of_checkpoints(paths: Sequence[str | Path], original_config: str | Path | Mapping[str, Any] | None = None) -> Parts:
    """The model in a U-Net's file and an autoencoder's, in either order. See `ResShiftPipeline.from_single_file`.

    Raises:
        Refused: a file is another one, a tensor is missing, unexpected or wrongly shaped, or a saved mask is another one.
    """
    found: dict[str, tuple[Path, Tensors]] = {}
    for path in map(Path, paths):
        tensors = names.read(path)
        kind = names.kind(tensors)
        component = next((name for name, words in _COMPONENTS.items() if words == kind), None)
        if component is None:
            alone = f" (alone: dosde convert {path} -o FOLDER)" if "DoSSR" in kind else ""
            needed = f"{names.UNET} and {names.VQ} are needed{alone}"
            raise Refused("checkpoint", path, needed, f"{path} is {kind}")
        if component in found:
            raise Refused("checkpoint", path, "one is needed", f"{found[component][0]} and {path}: each is {kind}")
        found[component] = (path, tensors)
    for component, words in _COMPONENTS.items():
        if component not in found:
            needed = "dosde convert resshift_realsrx4_s4_v3.pth autoencoder_vq_f4.pth -o FOLDER"
            raise Refused("checkpoint", paths, needed, f"no file with {words}")
    path, unet = found["unet"]
    released = released_of(path.name, names.Sizes(_shapes(unet), names.UNET), original_config)
    configs: dict[str, dict[str, Any]] = {}
    configs["unet"] = names.unet_config(_shapes(unet), released.image_size)
    configs["vqvae"] = names.vq_config(_shapes(found["vqvae"][1])) | {"scaling_factor": released.scale_factor}
    check_pair(configs["unet"], configs["vqvae"])
    vq, unused = _vq(found["vqvae"][1], configs["vqvae"])
    parts = {"unet": _unet(unet, configs["unet"]), "vqvae": vq}
    configs["scheduler"] = released.scheduler
    configs["pipeline"] = {"distilled_steps": released.distilled_steps}
    return Parts(configs, parts, unused)


def check_pair(unet: Mapping[str, Any], vq: Mapping[str, Any]) -> None:
    """Refused unless a U-Net and an autoencoder of these configurations belong together."""
    if unet["in_channels"] != vq["vq_embed_dim"]:
        shown = f"latents of {unet['in_channels']} channels in the U-Net, of {vq['vq_embed_dim']} in the autoencoder"
        raise Refused("checkpoint", vq["vq_embed_dim"], "the autoencoder that the U-Net was trained with is needed", shown)
    factor, reduction = 2 ** (len(vq["block_out_channels"]) - 1), 2 ** len(unet["lq_widths"])
    if factor < reduction:
        shown = f"the U-Net takes the LQ picture {reduction} times as large as the latent, the autoencoder's are {factor} times"
        raise Refused("checkpoint", factor, "the autoencoder that the U-Net was trained with is needed", shown)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _unet(released: Tensors, config: Mapping[str, Any]) -> Tensors:
    """The weights of the U-Net, each in its place; the buffers, compared with what they must be, are left out."""
    module = empty("unet", config)
    buffers = module.released_buffers()
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    rest = dict(released)
    tensors = {name: _taken(rest, name, shape) for name, shape in wanted.items()}
    for name, buffer in buffers.items():
        saved = _taken(rest, name, tuple(buffer.shape), floating=buffer.is_floating_point())
        if not saved.is_meta and not torch.equal(saved.to(buffer.dtype), buffer):
            needed = "the mask that ResShift's networks were trained with is needed" if "mask" in name else "Swin's is needed"
            raise Refused("checkpoint", name, needed, f"{name} holds other values")
    _none_left(rest, names.UNET)
    return tensors


def _vq(released: Tensors, config: Mapping[str, Any]) -> tuple[Tensors, Tensors]:
    """The weights of the autoencoder under diffusers' names, and what training alone uses: the discriminator's."""
    wanted = {name: tuple(tensor.shape) for name, tensor in empty("vqvae", config).state_dict().items()}
    unused = {name: tensor for name, tensor in released.items() if name.startswith("loss.")}
    rest = {name: tensor for name, tensor in released.items() if name not in unused}
    tensors: Tensors = {}
    for entry in entries("vae", wanted):
        tensors |= entry.split(_taken(rest, entry.name, entry.shape(wanted)), wanted)
    _none_left(rest, names.VQ)
    return tensors, unused


def released_vq(tensors: Tensors) -> Tensors:
    """The weights of the autoencoder under their released names."""
    return {entry.name: entry.join(tensors) for entry in entries("vae", tensors)}


def _taken(rest: Tensors, name: str, shape: tuple[int, ...], floating: bool = True) -> Tensor:
    """The tensor of that name, taken out of the rest; refused where it is not what it must be."""
    tensor = rest.pop(name, None)
    if tensor is None:
        raise Refused("checkpoint", name, "a checkpoint in the released layout is needed", f"no tensor {name}")
    if tuple(tensor.shape) != shape:
        raise Refused("checkpoint", name, f"{shape} is needed", f"{name} has shape {tuple(tensor.shape)}")
    if tensor.is_floating_point() != floating:
        kind = "a floating tensor" if floating else "a tensor of integers"
        raise Refused("checkpoint", name, f"{kind} is needed", f"{name} is {str(tensor.dtype)[6:]}")
    return tensor


def _none_left(rest: Tensors, what: str) -> None:
    if rest:
        more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
        raise Refused(
            "checkpoint", list(rest), f"{what} in the released layout is needed", f"unexpected tensor {min(rest)}{more}"
        )


# -- What no tensor tells -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Released:
    """What no tensor tells.

    Args:
        scheduler: the configuration of the scheduler, for the process.
        scale_factor: latents are this times those of the autoencoder.
        image_size: side of x in training; None: not known.
        distilled_steps: the number of steps of a distilled network (SinSR: 1).
    """

    scheduler: dict[str, Any]
    scale_factor: float = 1.0
    image_size: int | None = None
    distilled_steps: int | None = None


def released_of(name: str, unet: Shapes, original_config: str | Path | Mapping[str, Any] | None) -> Released:
    """What no tensor tells: from the YAML of the release, or from the name of a released file.

    Args:
        name: the name of the U-Net's file.
        unet: the shapes of its tensors.
        original_config: the YAML file, or its content.
    """
    sinsr = "sinsr" in name.lower()
    if original_config is None:
        match = re.search(r"_s(\d+)(?=[_.])", name.lower())
        T = 15 if sinsr else int(match[1]) if match else 0
        if T not in presets.RESSHIFT_ETA_MIN:
            shown = f"{name}: neither a tensor nor this name tells the steps of the table"
            needed = "_s15 or _s4 in the name, as released, or the YAML of the release, --original-config, is needed"
            raise Refused("checkpoint", name, needed, shown)
        return Released(standard(T), distilled_steps=1 if sinsr else None)
    content = yaml_of(original_config)

    def value(name: str, kind: type, default: Any = None) -> Any:
        found = _find(content, name)
        found = default if found is None else found
        if isinstance(found, bool) or not isinstance(found, (int, float) if kind is float else kind):
            raise Refused("original_config", found, f"a value of type {kind.__name__} is needed", f"{name} is {found!r} in it")
        return found

    for option, legal in (("schedule_name", "exponential"), ("latent_flag", True), ("normalize_input", True)):
        if (shown := _find(content, option)) not in (None, legal):
            raise Refused("original_config", shown, f"{legal} is needed, as in the release", f"{option} is {shown!r} in it")
    predicts = value("predict_type", str, "xstart")
    if predicts not in PREDICTS:
        raise Refused("original_config", predicts, f"one of {', '.join(PREDICTS)} is needed", f"predict_type is {predicts!r}")
    own = unet["out.2.weight"][0]
    counted = value("in_channels", int, own)
    if counted != own:  # SinSR's count the LQ picture
        if name.lower().startswith("resshift"):
            needed = "the YAML of ResShift is needed for this checkpoint"
            raise Refused("original_config", counted, needed, f"in_channels is {counted} in it, as in SinSR's")
        sinsr = True
    T, kappa, least = value("steps", int), value("kappa", float), value("min_noise_level", float)
    most, power = value("etas_end", float, 0.99), value("power", float, 0.3)
    scheduler = scheduler_config(T, kappa, min(least / kappa, least) ** 2, most**2, power, PREDICTS[predicts])
    image_size = value("image_size", int, 0) or None
    return Released(scheduler, float(value("scale_factor", float, 1.0)), image_size, 1 if sinsr else None)


def standard(T: int) -> dict[str, Any]:
    """The configuration of the scheduler for a released table, T = 15 or 4."""
    return scheduler_config(T, eta_min=presets.RESSHIFT_ETA_MIN[T])


def scheduler_config(
    T: int, kappa: float = 2.0, eta_min: float = 0.0004, eta_max: float = 0.9801, p: float = 0.3, predicts: str = "x0"
) -> dict[str, Any]:
    """The configuration of DoSDEScheduler for a process of ResShift: see `dosde.process.resshift`."""
    process = processes.resshift(T, kappa, eta_min, eta_max, p)
    etas = process((torch.arange(T, dtype=torch.float64) + 1) / T).b
    return {
        "num_train_timesteps": T,
        "trained_etas": etas.tolist(),
        "kappa": float(kappa),
        "prediction_type": predicts,
        "solver": "resshift",
        "solver_order": 1,
        "scale": RESIDUAL,
    }


def yaml_of(original_config: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of a YAML (or JSON) file, or a mapping as it is.

    Raises:
        Refused: the file cannot be read, or holds no mapping.
    """
    content: Any = original_config
    if not isinstance(original_config, Mapping):
        import yaml

        try:
            content = yaml.safe_load(Path(original_config).read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())[:120]
            shown = f"{original_config} cannot be read ({said})"
            raise Refused("original_config", original_config, "a YAML file is needed", shown) from None
    if not isinstance(content, Mapping):
        raise Refused("original_config", content, "the YAML of the release is needed", f"{original_config} holds no mapping")
    return content


def _find(tree: Any, name: str) -> Any:
    """The first value of that name in a tree of mappings, of which `diffusion` is looked through first."""
    if not isinstance(tree, Mapping):
        return None
    if name in tree:
        return tree[name]
    branches = sorted(tree, key=lambda key: (key != "diffusion", key != "model", key == "autoencoder"))
    return next((found for key in branches if (found := _find(tree[key], name)) is not None), None)


# -- Modules ------------------------------------------------------------------------------------------------------------------


def empty(component: str, config: Mapping[str, Any]) -> Any:
    """The module of a component, its parameters on the meta device."""
    from accelerate import init_empty_weights

    from .autoencoder import kind_of
    from .network import SwinUNet

    with init_empty_weights(include_buffers=False):
        return SwinUNet(**config) if component == "unet" else kind_of(config)(**config)


def filled(component: str, config: Mapping[str, Any], tensors: Tensors) -> Any:
    """The module of a component with its tensors."""
    module = empty(component, config)
    module.load_state_dict(tensors, strict=True, assign=True)
    return aligned(module.eval())


# -- Folders ------------------------------------------------------------------------------------------------------------------


def to_folder(parts: Parts, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Writes a folder for `ResShiftPipeline.from_pretrained`, whole or not at all.

    Args:
        parts: the model.
        folder: the folder; it must not exist, or be empty.
        dtype: the type of the weights; default: that of the tensors.
    """
    import diffusers

    from dosde.interop.diffusers import DoSDEScheduler

    from .autoencoder import kind_of

    check_out(folder)
    parts = cast(parts, dtype)
    vq = kind_of(parts.configs["vqvae"])
    index = {
        "_class_name": "ResShiftPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ("dosde.interop.diffusers", "DoSDEScheduler"),
        "unet": ("backbones.resshift.network", "SwinUNet"),
        "vqvae": ("diffusers" if vq.__module__.startswith("diffusers.") else vq.__module__, vq.__name__),
        **parts.configs["pipeline"],
    }
    with whole.folder(folder) as place:
        for component in _COMPONENTS:
            (place / component).mkdir()
            empty(component, parts.configs[component]).save_config(place / component)
            weights.write(place / component / "diffusion_pytorch_model.safetensors", parts.tensors[component])
        DoSDEScheduler(**parts.configs["scheduler"]).save_config(place / "scheduler")
        if parts.unused:
            folders.write_unused(place, parts.unused)
        folders.write_json(place / "model_index.json", index)


def to_checkpoints(folder: Path, out: Path) -> None:
    """Writes the two released files of a folder into a new folder: what was converted, bit for bit, if nothing was changed.

    Their names tell what the names of the release do, and a conversion from them gives the folder again.
    """
    from dosde.interop.diffusers import DoSDEScheduler

    if out.suffix in weights.SUFFIXES:
        raise Refused("--out", out, "a folder is needed, since ResShift's release has two files")
    check_out(out)
    folder = checked(folder)
    configs = {component: config_of(folder, component) for component in _COMPONENTS}
    modules = {component: empty(component, config) for component, config in configs.items()}
    unet, vq = of_folder(folder, "unet"), of_folder(folder, "vqvae")
    for component, tensors in (("unet", unet), ("vqvae", vq)):
        rest = dict(tensors)
        for name, wanted in modules[component].state_dict().items():
            _taken(rest, name, tuple(wanted.shape))
        _none_left(rest, _COMPONENTS[component])
    kind = next(iter(unet.values())).dtype
    buffers = modules["unet"].released_buffers()
    unet |= {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in buffers.items()}
    released = folders.unused(folder) | released_vq(vq)
    process = DoSDEScheduler.from_pretrained(folder / "scheduler").process
    tables = [T for T in presets.RESSHIFT_ETA_MIN if DoSDEScheduler(**standard(T)).process == process]
    name = f"resshift_s{tables[0]}.pth" if tables else "resshift.pth"
    if index_of(folder).get("distilled_steps") == 1:
        name = name.replace("resshift", "sinsr")
    levels = len(configs["vqvae"]["block_out_channels"])
    with whole.folder(out) as place:
        weights.write(place / name, unet)
        weights.write(place / f"autoencoder_vq_f{2 ** (levels - 1)}.pth", released)
