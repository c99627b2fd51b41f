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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from backbones.weights import read_safetensors

from .config import Config, Optimizer, difference, made_samples
from .data import Order
from .log import Logs
from .pixels import Embedded
from .state import Average, check_shapes, every, in_precision, reshard, restore, save, state_of, weights_of_model
from .task import Batch, Task
from .validation import validated, validation_pictures

_NOISE = 2  # stream of random numbers; 0 and 1 are those of `data`, 3 is that of `validation`
FREE = ("out", "log_every", "accumulate", "data.workers", "checkpoint.every", "checkpoint.keep", *(
    f"validation.{key}" for key in ("every", "pictures", "count", "crop", "steps", "order", "method", "scale")
))  # fmt: skip
"""Keys that a resumed run may have otherwise; and steps, where the learning rate is constant."""


class Stopped(Exception):
    """What ended a run early, in one line."""


def made(config: Config) -> Task:
    """The task of a config. Errors: ValueError, one line."""
    if config.task == "sd21":
        from .sd21 import SD21

        return SD21(config)
    return Embedded(config)


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
        found = read_safetensors(last[1])
        _check_same(last[1], found[1], plain, config)
    samples = made_samples(config.data, config.seed)
    pictures = validation_pictures(config)
    job = task(config)
    if found is not None:
        assert last is not None
        check_shapes(last[1], found[0], job.trainable)
    accelerator = Accelerator(mixed_precision="no", step_scheduler_with_optimizer=False)  # see in_precision
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
    network = in_precision(model, config.precision, accelerator.device)
    average = Average(model, config.ema.decay, config.ema.warmup)
    stream = Stream(loaded, config.seed, job.noise_shapes)
    _try_out(job, model, config, stream, pictures, accelerator.device)
    first = 0
    if last is not None and found is not None:
        first = last[0]
        restore(model, optimizer.optimizer, average, found[0], job.trainable)
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
                state = state_of(model, optimizer.optimizer, average)
                if main:
                    save(out, done, state, plain, config.checkpoint.keep)
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
        tensors = weights_of_model(model)
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
    network = in_precision(model, config.precision, device)
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
        reshard(model)


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


def _placed(name: str, value: Tensor, device: torch.device) -> Tensor:
    return value if name == "part" else value.to(device, non_blocking=True)  # times are made on the host


def _seed(*numbers: int) -> int:
    return int(np.random.default_rng([_NOISE, *numbers]).integers(2**63))


def learning_rate(config: Optimizer, step: int, steps: int) -> float:
    """Of a step, counted from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.decay == "constant":
        return config.lr
    way = (step - config.warmup) / max(1, steps - config.warmup)
    return config.lr * (config.final + (1 - config.final) * (1 + math.cos(math.pi * way)) / 2)


# -- The run in the folder -------------------------------------------------------------------------------------------------


def _start(out: Path, start: str) -> tuple[int, Path] | None:
    """Step and file of the checkpoint to go on from. Errors: ValueError."""
    if start not in ("new", "resume", "overwrite"):
        raise ValueError(f"start: {start!r}; new, resume or overwrite is needed")
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"out: {out}; {'it' if there == out else there} exists and is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"out: {out}; a folder that can be written to is needed")
    found = every(out)
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
