"""The state of a run: weights, their averages, the optimizer. A checkpoint holds it, OUT/checkpoints/STEP.safetensors:

    model.NAME, ema.NAME                    the weights, and their averages in float32
    optimizer.{exp_avg,exp_avg_sq,step}.NAME   of AdamW

The step and the config are in its metadata. All names are those of the network, whatever wraps it, so a run can go on
with another number of processes.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.weights import Tensors, check, part, write
from dosde.check import Refused

from .record import CHECKPOINTS, Record


def every(out: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run, (step, file) each, in the order of their steps."""
    found = (out / CHECKPOINTS).glob("*.safetensors")
    return sorted((int(path.stem), path) for path in found if re.fullmatch(r"\d+", path.stem))


def save(
    record: Record, step: int, tensors: Mapping[str, Tensor], config: Mapping[str, Any], keep: int, validated: bool = True
) -> None:
    """Writes the checkpoint of a step, and then removes all but the last ones that the run wrote.

    Args:
        record: what the run writes, and where.
        step: the step.
        tensors: what `state_of` returned.
        config: the config, of `Config.plain`.
        keep: the number of checkpoints that stay.
        validated: whether the validation after this step, if there is to be one, has been made.

    Raises:
        OSError: the checkpoint cannot be written; then nothing has changed.
    """
    metadata = {"format": "pt", "step": str(step), "config": json.dumps(config)}
    if not validated:
        metadata["validated"] = "no"
    name = f"{CHECKPOINTS}/{step:08d}.safetensors"
    record.add(name)
    write(record.out / name, tensors, metadata)
    own = [f"{CHECKPOINTS}/{path.name}" for _, path in every(record.out)]
    record.remove([name for name in own if name in record.names][:-keep])


class Average:
    """The exponential moving average of the parameters of a model, in float32. In a sharded model each process has its shard.

    Args:
        model: the model.
        decay: the share of the old average that stays at a step.
        warmup: whether the decay is at most (1 + step)/(10 + step).
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.values = [p.detach().float().clone() for p in self.parameters]
        self.decay, self.warmup = decay, warmup

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the averages towards the parameters after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        for value, p in zip(self.values, self.parameters, strict=True):
            value.lerp_(p.detach().float(), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages while the block runs."""
        own = [p.detach().clone() for p in self.parameters]
        self._set(self.values)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def take(self) -> None:
        """Sets the averages to the parameters of the model."""
        for value, p in zip(self.values, self.parameters, strict=True):
            value.copy_(p.detach())

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for value, p in zip(values, self.parameters, strict=True):
            p.detach().copy_(value)
        reshard(self.model)


def reshard(model: nn.Module) -> None:
    """Lets go of the weights that FSDP gathered for a forward pass, and kept because no backward pass followed."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def weights_of_model(model: nn.Module) -> Tensors:
    """The weights by the names of the network, whole, on the host, in memory that nothing else uses."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: value.detach().clone() for name, value in state.items() if isinstance(value, Tensor)}


def state_of(model: nn.Module, optimizer: Any, average: Average) -> Tensors:
    """The tensors of a checkpoint. All processes must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    tensors = {f"model.{name}": value for name, value in weights_of_model(model).items()}
    with average.in_place():
        tensors |= {f"ema.{name}": value for name, value in weights_of_model(model).items()}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: Any = get_optimizer_state_dict(model, optimizer, options=options)
    for name, entries in state.get("state", {}).items():
        for key, value in entries.items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value).detach().clone()
    return tensors


def restore(model: nn.Module, optimizer: Any, average: Average, tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    """Puts the tensors of a checkpoint where `state_of` takes them from. `network` is the model as it was before accelerate."""
    from torch.distributed.checkpoint import state_dict

    options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    averaged: dict[str, Any] = {**part(tensors, "ema.")}
    state_dict.set_model_state_dict(model, averaged, options=options)
    average.take()
    own: dict[str, Any] = {**part(tensors, "model.")}
    state_dict.set_model_state_dict(model, own, options=options)
    entries: dict[str, Any] = {}
    for name, value in part(tensors, "optimizer.").items():
        key, _, parameter = name.partition(".")
        entries.setdefault(parameter, {})[key] = value
    for name, p in network.named_parameters():
        if p.requires_grad and name not in entries:  # it has had no gradient yet
            zero = torch.zeros_like(own[name])
            entries[name] = {"step": torch.tensor(0.0), "exp_avg": zero, "exp_avg_sq": zero.clone()}
    # Built here: every process needs it, and torch would hand it to the first one alone.
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    groups: list[Any] = [{**group, "params": list(entries)}]
    state_dict.set_optimizer_state_dict(model, optimizer, {"state": entries, "param_groups": groups}, options=options)
    optimizer.zero_grad()


def check_shapes(path: Path, tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    """Refused unless the tensors of a checkpoint are those of this network."""
    wanted = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    for prefix in ("model.", "ema."):
        check(path, part(tensors, prefix), wanted)
    averages = {key: part(tensors, f"optimizer.{key}.") for key in ("exp_avg", "exp_avg_sq", "step")}
    stepped = {name: wanted[name] for name in averages["step"] if name in wanted}  # not those that had no gradient yet
    if not stepped:
        raise Refused("checkpoint", path, "one of a run is needed", f"{path} has no state of the optimizer")
    for key, found in averages.items():
        check(path, found, dict.fromkeys(stepped, torch.zeros(())) if key == "step" else stepped)


def in_precision(model: nn.Module, precision: str, device: torch.device) -> Callable[..., Any]:
    """The network, with float32 inputs and outputs. The bf16 of FSDP would round x_t, x_hat0, t and the estimate, too.

    Args:
        model: the network.
        precision: "no" or "bf16".
        device: its device.
    """
    from accelerate.utils import convert_outputs_to_fp32

    if precision == "no":
        return model

    def network(*args: Any, **named: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return model(*args, **named)

    wide: Callable[..., Any] = convert_outputs_to_fp32(network)
    return wide
