"""The loop of `dosde train`, on Hugging Face accelerate.

Everything random in step k is a function of (seed, k, which of its samples): the order of the pictures, crops, degradations,
times and noise. Neither the number of processes, nor of workers, nor a resume changes it. A step's batch is cut into
`accumulate` parts for each process:

    loss = mean over the batch of task.losses;    g = its gradient, |g| at most clip
    AdamW with lr(k) = lr min(1, (k + 1)/warmup) [and a cosine];    ema += (1 - d_k)(weights - ema),  d_k <= (1 + k)/(10 + k)
"""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

import dosde
from backbones.pictures import degradation, metrics
from backbones.pictures import io as images

from . import checkpoints
from .config import Config, Optimizer, difference, made_degradation, made_samples
from .data import Folder, Order, Procedural, held_out
from .tasks import Batch, Task, made

_NOISE, _VALIDATION = 2, 3  # streams of random numbers; 0 and 1 are those of `data`
FREE = ("out", "log_every", "accumulate", "data.workers", "checkpoint.every", "checkpoint.keep", *(
    f"validation.{key}" for key in ("every", "pictures", "count", "crop", "steps", "order", "method", "scale")
))  # fmt: skip
"""Keys that a resumed run may have otherwise; and steps, where the learning rate is constant."""


class Stopped(Exception):
    """What ended a run early, in one line."""


def train(
    config: Config,
    *,
    start: str = "new",
    task: Callable[[Config], Task] = made,
    progress: bool = True,
) -> Path:
    """Trains, and returns where the result is.

    start: "new" (an empty folder is needed), "resume" (from the last checkpoint, if there is one), "overwrite".
    Errors: ValueError before anything starts; `Stopped` or OSError afterwards, the last checkpoint whole.
    """
    from accelerate import Accelerator

    out = Path(config.out)
    plain = json.loads(json.dumps(config.as_dict()))
    last = _start(out, start)
    if start == "overwrite":
        _check_apart(out, {"model.weights": config.model.weights, "sd21.weights": config.sd21.weights})
    found = None
    if last is not None:
        found = checkpoints.read(last[1])
        _check_same(last[1], found[1], plain, config)
    samples = made_samples(config.data, config.seed)
    pictures = _validation_pictures(config)
    job = task(config)
    if found is not None:
        assert last is not None
        _check_shapes(last[1], found[0], job.trainable)
    accelerator = Accelerator(mixed_precision="no", step_scheduler_with_optimizer=False)  # see _in_precision
    if getattr(getattr(accelerator.state, "fsdp_plugin", None), "fsdp_version", 2) != 2:
        raise ValueError("fsdp_version: 1; accelerate launch with --fsdp_version 2 is needed")
    rank, world = accelerator.process_index, accelerator.num_processes
    if config.batch % (world * config.accumulate):
        raise ValueError(
            f"batch: {config.batch}; a multiple of processes times accumulate, {world} x {config.accumulate}, is needed"
        )
    main = accelerator.is_main_process
    job.place(accelerator.device)
    loaded = job.samples(samples, rank, world)
    accelerator.wait_for_everyone()  # each may have made a part of what all load
    job.trainable.train()
    own = config.optimizer
    optimizer: Any = torch.optim.AdamW(
        job.trainable.parameters(), lr=own.lr, betas=(own.betas[0], own.betas[1]), eps=own.eps, weight_decay=own.weight_decay
    )
    model, optimizer = accelerator.prepare(job.trainable, optimizer)
    network = _in_precision(model, config.precision, accelerator.device)
    average = Average(model, config.ema.decay, config.ema.warmup)
    stream = Stream(loaded, config.seed, job.noise_shapes)
    _try_out(job, model, config, stream, pictures, accelerator.device)
    first = 0
    if last is not None and found is not None:
        first = last[0]
        _restore(model, optimizer.optimizer, average, found[0], job.trainable)
        found = None
    if main:
        _prepare(out, start)
    accelerator.wait_for_everyone()
    share = Share(
        len(loaded),  # type: ignore[arg-type]
        config.seed,
        config.batch,
        config.accumulate,
        rank,
        world,
        first,
        config.steps,
    )
    loader = DataLoader(
        stream,
        batch_sampler=share,
        num_workers=config.data.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    logs = Logs(out, first, main and progress, config.steps) if main else None
    batches, saved, done = iter(loader), first, first
    try:
        for step in range(first, config.steps):
            rate = learning_rate(own, step, config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            parts = []
            for part in range(config.accumulate):
                torch.manual_seed(_seed(config.seed, step, part, rank))  # for networks with dropout
                batch = {name: _placed(name, value, accelerator.device) for name, value in next(batches).items()}
                final = part == config.accumulate - 1
                with contextlib.nullcontext() if final else accelerator.no_sync(model):
                    losses = job.losses(network, batch)
                    accelerator.backward(losses.mean() / config.accumulate)
                parts.append(losses.detach())
            loss = float(accelerator.gather(torch.cat(parts)).double().mean())
            norm = accelerator.clip_grad_norm_(model.parameters(), own.clip or math.inf)
            norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what, value = ("norm of the gradient", norm) if math.isfinite(loss) else ("loss", loss)
                kept = f"the checkpoint of step {saved} stays" if saved else "there is no checkpoint yet"
                raise Stopped(f"step {step + 1}: the {what} is {value}; {kept}")
            optimizer.step()
            optimizer.zero_grad()
            average.update(step)

            done = step + 1
            if logs is not None:
                logs.step(done, loss, rate, norm, done % config.log_every == 0 or done == config.steps)
            if config.validation.every and (done % config.validation.every == 0 or done == config.steps):
                with average.in_place():
                    rows = validated(job, model, config, pictures, accelerator.device)
                if logs is not None:
                    logs.validation(done, rows)
                del rows
            if done % config.checkpoint.every == 0 or done == config.steps:
                state = _state(model, optimizer.optimizer, average)
                if main:
                    checkpoints.save(out, done, state, plain, config.checkpoint.keep)
                saved = done
                del state
                accelerator.wait_for_everyone()
    except (ValueError, RuntimeError) as error:  # of a solve, the data, the device: the last line says what, of a worker too
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise Stopped(f"after step {done}: {said[-1] if 'Traceback' in str(error) else said[0]}") from error
    finally:
        if logs is not None:
            logs.close()
    with average.in_place():
        tensors = _weights(model)
    metadata = {"format": "pt", "step": str(config.steps), "config": json.dumps(plain)}
    try:
        result = job.save(tensors, out, metadata) if main else out
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise Stopped(f"the result cannot be written ({reason}); the checkpoint of step {saved} stays") from error
    accelerator.wait_for_everyone()
    return result


def _try_out(
    job: Task,
    model: nn.Module,
    config: Config,
    stream: Dataset[Batch],
    pictures: Mapping[str, tuple[Tensor, Tensor]],
    device: torch.device,
) -> None:
    """A sample at the first and the last time, and a validation, before anything is written. Errors: ValueError."""
    try:
        sample = default_collate([stream[0, 0, 0]])
    except ValueError as error:
        raise ValueError(f"data.sources: {error}") from None
    batch = {name: _placed(name, value, device) for name, value in sample.items()}
    network = _in_precision(model, config.precision, device)
    model.eval()
    key = "model, objective: the loss of a sample"
    try:
        with torch.no_grad():
            for part in (0.0, 1 - 1e-6):
                job.losses(network, {**batch, "part": torch.tensor([part], dtype=torch.float64)})
        key = "validation: of the first picture"
        first = replace(config, validation=replace(config.validation, steps=config.validation.steps[:1]))
        validated(job, model, first, dict(list(pictures.items())[:1]), device)
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{key}: {said[0]}") from error
    finally:
        model.train()
        _reshard(model)


# -- What a step sees -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share(Sampler[list[tuple[int, int, int]]]):
    """(epoch, index, number of the sample) of each part of each step, of one of several processes."""

    length: int
    seed: int
    batch: int
    accumulate: int
    rank: int
    world: int
    start: int
    stop: int

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order = iter(Order(self.length, self.seed, self.start * self.batch, self.stop * self.batch))
        size = self.batch // (self.world * self.accumulate)
        for step in range(self.start, self.stop):
            keys = [(*key, step * self.batch + i) for i, key in enumerate(islice(order, self.batch))]
            for part in range(self.accumulate):
                first = (part * self.world + self.rank) * size
                yield keys[first : first + size]

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate


@dataclass(frozen=True)
class Stream(Dataset[Batch]):
    """Samples with their noise, and with `part`, the uniform number that their time is made of."""

    samples: Dataset[Batch]
    seed: int
    noise_shapes: tuple[tuple[int, ...], ...]

    def __getitem__(self, key: tuple[int, int, int]) -> Batch:
        epoch, index, number = key
        sample = dict(self.samples[epoch, index])
        drawn = np.random.default_rng([self.seed, _NOISE, number])
        sample["part"] = torch.tensor(drawn.random(), dtype=torch.float64)
        generator = torch.Generator().manual_seed(int(drawn.integers(2**63)))
        for i, shape in enumerate(self.noise_shapes):
            sample[f"noise{i}"] = torch.randn(shape, generator=generator)
        return sample


def learning_rate(config: Optimizer, step: int, steps: int) -> float:
    """Of a step, counted from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.decay == "constant":
        return config.lr
    way = (step - config.warmup) / max(1, steps - config.warmup)
    return config.lr * (config.final + (1 - config.final) * (1 + math.cos(math.pi * way)) / 2)


class Average:
    """The exponential moving average of a model's parameters, float32 (of a sharded model, each process has its shard)."""

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.values = [p.detach().float().clone() for p in self.parameters]
        self.decay, self.warmup = decay, warmup

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        for value, p in zip(self.values, self.parameters, strict=True):
            value.lerp_(p.detach().float(), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages meanwhile."""
        own = [p.detach().clone() for p in self.parameters]
        self._set(self.values)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def take(self) -> None:
        """The averages become what the model has."""
        for value, p in zip(self.values, self.parameters, strict=True):
            value.copy_(p.detach())

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for value, p in zip(values, self.parameters, strict=True):
            p.detach().copy_(value)
        _reshard(self.model)


def _reshard(model: nn.Module) -> None:
    """What FSDP gathered for a forward pass, and kept as no backward one came after, is forgotten."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


# -- State ------------------------------------------------------------------------------------------------------------------


def _weights(model: nn.Module) -> checkpoints.Tensors:
    """By the network's own names, whole, on the host, of one's own memory."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: value.detach().clone() for name, value in state.items() if isinstance(value, Tensor)}


def _state(model: nn.Module, optimizer: Any, average: Average) -> checkpoints.Tensors:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    tensors = {f"model.{name}": value for name, value in _weights(model).items()}
    with average.in_place():
        tensors |= {f"ema.{name}": value for name, value in _weights(model).items()}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: Any = get_optimizer_state_dict(model, optimizer, options=options)
    for name, entries in state.get("state", {}).items():
        for key, value in entries.items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value).detach().clone()
    return tensors


def _restore(model: nn.Module, optimizer: Any, average: Average, tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    from torch.distributed.checkpoint import state_dict

    options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    averaged: dict[str, Any] = {**checkpoints.part(tensors, "ema.")}
    state_dict.set_model_state_dict(model, averaged, options=options)
    average.take()
    own: dict[str, Any] = {**checkpoints.part(tensors, "model.")}
    state_dict.set_model_state_dict(model, own, options=options)
    entries: dict[str, Any] = {}
    for name, value in checkpoints.part(tensors, "optimizer.").items():
        key, _, parameter = name.partition(".")
        entries.setdefault(parameter, {})[key] = value
    for name, p in network.named_parameters():
        if p.requires_grad and name not in entries:  # it has had no gradient yet
            zero = torch.zeros_like(own[name])
            entries[name] = {"step": torch.tensor(0.0), "exp_avg": zero, "exp_avg_sq": zero.clone()}
    # Built here, since every process needs it, and only the first one would be given it.
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    groups: list[Any] = [{**group, "params": list(entries)}]
    state_dict.set_optimizer_state_dict(model, optimizer, {"state": entries, "param_groups": groups}, options=options)
    optimizer.zero_grad()


def _start(out: Path, start: str) -> tuple[int, Path] | None:
    """Step and file of the checkpoint to go on from. Errors: ValueError."""
    if start not in ("new", "resume", "overwrite"):
        raise ValueError(f"start: {start!r}; new, resume or overwrite is needed")
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"out: {out}; {'it' if there == out else there} exists and is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"out: {out}; a folder that can be written to is needed")
    found = checkpoints.every(out)
    if start == "new" and out.is_dir() and any(out.iterdir()):
        held = f"a run with a checkpoint of step {found[-1][0]}" if found else "files"
        raise ValueError(f"out: {out} holds {held}; --resume goes on with it, --overwrite starts anew")
    return found[-1] if start == "resume" and found else None


def _check_apart(out: Path, sources: Mapping[str, str]) -> None:
    for key, source in sources.items():
        if source and Path(source).resolve().is_relative_to(out.resolve()):
            raise ValueError(f"{key}: {source}; something outside of out, which --overwrite deletes, is needed")


def _check_same(path: Path, metadata: Mapping[str, str], plain: Mapping[str, Any], config: Config) -> None:
    try:
        before = json.loads(metadata["config"])
    except (KeyError, ValueError):
        raise ValueError(f"checkpoint: {path} is none of this command") from None
    free = FREE + (("steps",) if config.optimizer.decay == "constant" else ())
    differs = difference(plain, before, free)
    if differs:
        raise ValueError(f"{differs} is needed, as in the run that is resumed (or --overwrite, or another out)")
    if config.steps < int(metadata["step"]):
        raise ValueError(f"steps: {config.steps}; the run that is resumed has done {metadata['step']}")


def _check_shapes(path: Path, tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    wanted = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    for prefix in ("model.", "ema."):
        checkpoints.check(path, checkpoints.part(tensors, prefix), wanted)
    averages = {key: checkpoints.part(tensors, f"optimizer.{key}.") for key in ("exp_avg", "exp_avg_sq", "step")}
    stepped = {name: wanted[name] for name in averages["step"] if name in wanted}  # not those that had no gradient yet
    if not stepped:
        raise ValueError(f"checkpoint: {path} has no state of the optimizer; one of a run is needed")
    for key, found in averages.items():
        checkpoints.check(path, found, dict.fromkeys(stepped, torch.zeros(())) if key == "step" else stepped)


def _prepare(out: Path, start: str) -> None:
    """The folder, without what a run that starts anew, or later, has no use for."""
    try:
        if start == "overwrite":
            for name in ("checkpoints", "validation", "tensorboard", "pipeline"):
                shutil.rmtree(out / name, ignore_errors=True)
            for name in ("log.jsonl", "weights.safetensors"):
                (out / name).unlink(missing_ok=True)
        for part in (out / "checkpoints").glob(".*.part"):  # of a run that was killed while it wrote
            part.unlink()
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: {out}; a folder that can be written to is needed ({error.strerror})") from None


def _placed(name: str, value: Tensor, device: torch.device) -> Tensor:
    return value if name == "part" else value.to(device, non_blocking=True)  # times are made on the host


def _in_precision(model: nn.Module, precision: str, device: torch.device) -> Callable[..., Any]:
    """The network, float32 on both sides. FSDP's own bf16 would round x_t, x_hat0, t and the estimate, too."""
    from accelerate.utils import convert_outputs_to_fp32

    if precision == "no":
        return model

    def network(*args: Any, **named: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return model(*args, **named)

    wide: Callable[..., Any] = convert_outputs_to_fp32(network)
    return wide


def _seed(*numbers: int) -> int:
    return int(np.random.default_rng([_NOISE, *numbers]).integers(2**63))


# -- Validation ---------------------------------------------------------------------------------------------------------------


def _validation_pictures(config: Config) -> dict[str, tuple[Tensor, Tensor]]:
    """(HR, LR), each (3, height, width), by name. Errors: ValueError."""
    own = config.validation
    if not own.every:
        return {}
    try:
        import skimage.metrics  # noqa: F401
    except ImportError:
        raise ValueError(f"validation.every: {own.every}; needs scikit-image, of the extra 'images'") from None
    least = metrics.WINDOW + 2 * config.data.scale
    if own.crop < least:
        raise ValueError(f"validation.crop: {own.crop}; {least} or more is needed, for SSIM without a border of data.scale")
    if own.pictures == "held_out":
        whole = held_out()
    elif own.pictures == "procedural":
        source = Procedural(own.crop)
        numbers = [np.random.default_rng([config.seed, _VALIDATION, i]) for i in range(own.count)]
        whole = {f"procedural{i}": source.picture(i, generator) for i, generator in enumerate(numbers)}
    else:
        try:
            paths = Folder(own.pictures, own.crop).paths[: own.count]
        except ValueError as error:
            raise ValueError(f"validation.pictures: {error}") from None
        whole = {}
        for path in paths:
            name = path.stem if path.stem not in whole else "_".join(path.relative_to(own.pictures).parts)
            try:
                whole[name] = images.read(path).colour[0].expand(3, -1, -1)
            except (ValueError, OSError) as error:
                raise ValueError(f"validation.pictures: {path} cannot be read ({error})") from None
    pairs = {}
    for i, (name, picture) in enumerate(list(whole.items())[: own.count]):
        y, x = ((side - own.crop) // 2 for side in picture.shape[1:])
        if min(x, y) < 0:
            sides = f"{picture.shape[2]}x{picture.shape[1]}"
            raise ValueError(f"validation.crop: {own.crop}; {name} has {sides} pixels, a smaller crop is needed")
        hr = picture[:, y : y + own.crop, x : x + own.crop].contiguous()
        generator = np.random.default_rng([config.seed, _VALIDATION, i, 1])
        drawn = degradation.sample(made_degradation(config.data), generator)
        pairs[name] = hr, degradation.apply(hr, drawn)
    if not pairs:
        raise ValueError(f"validation.pictures: {own.pictures!r}; at least one picture is needed")
    return pairs


@dataclass(frozen=True)
class Row:
    """A picture, upscaled in some steps, and how near it is: PSNR in dB and SSIM, of Y without a border of data.scale."""

    name: str
    steps: int
    psnr: float
    ssim: float
    picture: Tensor


def validated(
    job: Task, model: nn.Module, config: Config, pictures: Mapping[str, tuple[Tensor, Tensor]], device: torch.device
) -> list[Row]:
    """All pictures by all numbers of steps, each with the same noise at every validation."""
    own, rows = config.validation, []
    network = _in_precision(model, config.precision, device)
    model.eval()
    try:
        for name, (hr, lr) in pictures.items():
            for steps in own.steps:
                how = dosde.presets.few_step(own.scale) if own.method == "few_step" else {}
                noise = torch.Generator().manual_seed(config.seed)
                with torch.no_grad():
                    picture = job.upscaled(network, lr[None].to(device), steps, min(own.order, steps), noise, how)
                picture = picture.float().cpu()
                rows.append(Row(name, steps, *measured(picture, hr[None], config.data.scale), picture))
    finally:
        model.train()
    return rows


def measured(picture: Tensor, hr: Tensor, border: int) -> tuple[float, float]:
    """PSNR (dB) and SSIM of (1, 3, height, width) in [0, 1], as `dosde evaluate` has them."""
    return metrics.psnr(picture, hr, border), metrics.ssim(picture, hr, border)


# -- Logs ---------------------------------------------------------------------------------------------------------------------


class Logs:
    """log.jsonl, TensorBoard where it is installed, validation pictures, and a bar with the loss and the time left."""

    def __init__(self, out: Path, first: int, progress: bool, steps: int) -> None:
        from tqdm import tqdm

        self.out, self.start, self.first, self.progress = out, time.perf_counter(), first, progress
        path = out / "log.jsonl"
        kept = [line for line in _lines(path) if line["step"] <= first]  # what came after the checkpoint comes again
        part = path.with_name(f".{path.name}.part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(part, path)
        self.file = path.open("a", buffering=1)
        self.bar = tqdm(total=steps, initial=first, unit="step", disable=not (progress and sys.stderr.isatty()))
        self.board = _board(out / "tensorboard", first)

    def step(self, step: int, loss: float, rate: float, norm: float, write: bool) -> None:
        self.bar.update()
        self.bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
        if write:
            seconds = (time.perf_counter() - self.start) / (step - self.first)
            row = {"step": step, "loss": loss, "lr": rate, "grad_norm": norm, "seconds_a_step": round(seconds, 4)}
            row["threads"] = torch.get_num_threads()
            self._write(row, {"train/loss": loss, "train/lr": rate, "train/grad_norm": norm})

    def validation(self, step: int, rows: list[Row]) -> None:
        for n in dict.fromkeys(row.steps for row in rows):
            own = [row for row in rows if row.steps == n]
            psnr, ssim = (sum(getattr(row, key) for row in own) / len(own) for key in ("psnr", "ssim"))
            each = {row.name: [round(row.psnr, 4), round(row.ssim, 5)] for row in own}
            numbers = {f"validation/psnr_{n}": psnr, f"validation/ssim_{n}": ssim}
            self._write({"step": step, "solve_steps": n, "psnr": psnr, "ssim": ssim, "pictures": each}, numbers)
            if self.progress:
                self.bar.write(f"step {step}: {n} solver steps, PSNR {psnr:.2f} dB, SSIM {ssim:.4f}", file=sys.stdout)
        for row in rows:
            path = self.out / "validation" / f"{step:08d}_{row.name}_{row.steps}.png"
            images.write(path, images.Picture(row.picture, None, 8, None))
            if self.board is not None:
                self.board.add_image(f"{row.name}/{row.steps}", row.picture[0], step)

    def _write(self, row: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        self.file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.bar.close()
        with contextlib.suppress(OSError):  # of a full disk, which has been told
            self.file.close()
        if self.board is not None:
            self.board.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole ones of a log."""
    rows = []
    if path.is_file():
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # cut off where the run was killed
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
    return rows


def _board(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=first + 1)
