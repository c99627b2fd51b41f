"""The loop of `dosde train`, on Hugging Face accelerate.

Everything random in step k is a function of (seed, k, number of the sample): see `stream`. A step's batch is cut into
`accumulate` parts for each process:

    loss = mean over the batch of task.losses;    g = its gradient, |g| at most clip
    AdamW with lr(k) = lr min(1, (k + 1)/warmup) [and a cosine];    ema += (1 - d_k)(weights - ema),  d_k <= (1 + k)/(10 + k)
"""

import contextlib
import json
import math
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from dosde.check import Refused

from .config import Config, Optimizer, made_samples, within
from .log import Logs
from .pixels import Embedded
from .record import PIPELINE, Record
from .run import earlier, prepare, result_of
from .state import Average, check_shapes, in_precision, reshard, restore, save, state_of, weights_of_model
from .stop import Interrupted, Stop, undisturbed
from .stream import Share, Stream, placed, seed_of
from .task import Network, Task
from .validation import Validator, made_validator


class Stopped(Exception):
    """What ended a run early, in one line."""


def made(config: Config) -> Task:
    """The task of a config.

    Raises:
        Refused: the config names what the task cannot train.
    """
    if config.task == "sd21":
        from .sd21 import SD21

        return SD21(config)
    if config.task == "resshift":
        from .resshift import ResShift

        return ResShift(config)
    return Embedded(config)


def train(
    config: Config,
    *,
    start: str = "new",
    task: Callable[[Config], Task] = made,
    progress: bool = True,
) -> Path:
    """Trains, and returns the place of the result.

    Args:
        config: the whole config, of `config.load` or `config.parse`.
        start: "new" (an empty folder is needed), "resume" (from the last checkpoint, if there is one) or "overwrite".
        task: makes the task of a config.
        progress: whether a bar and the results of validations are printed.

    Raises:
        ValueError: something is wrong, and nothing has started (mostly a `dosde.check.Refused`).
        Stopped: the run has ended early; the last checkpoint is whole.
        Interrupted: Ctrl-C or SIGTERM has ended it, after a checkpoint of the step that was under way. A second Ctrl-C ends
            it at once.
        OSError: a file cannot be written; the last checkpoint is whole.
    """
    with Stop() as stop:
        return _trained(config, start, task, progress, stop)


def _trained(config: Config, start: str, task: Callable[[Config], Task], progress: bool, stop: Stop) -> Path:
    from accelerate import Accelerator

    # The parts. Until `prepare` nothing is written, and what cannot work is refused.
    out, plain = Path(config.out), config.plain()
    before = earlier(out, start, config)
    samples = made_samples(config.data, config.seed)
    validator = made_validator(config.validation, config.data, config.seed)
    job = task(config)
    if before is not None:
        check_shapes(before.path, before.tensors, job.trainable)
    accelerator = Accelerator(mixed_precision="no", step_scheduler_with_optimizer=False)  # see in_precision
    device, main = accelerator.device, accelerator.is_main_process
    rank, world = accelerator.process_index, accelerator.num_processes
    _check_processes(accelerator, config.batch, config.accumulate)
    job.place(device)
    loaded: Any = job.samples(samples, rank, world)
    accelerator.wait_for_everyone()  # each may have made a part of what all load
    job.trainable.train()
    optimizer: Any
    model, optimizer = accelerator.prepare(job.trainable, made_optimizer(job.trainable, config.optimizer))
    network = in_precision(model, config.precision, device)
    average = Average(model, config.ema.decay, config.ema.warmup)
    stream = Stream(loaded, config.seed, job.noise_shapes)
    _try_out(job, network, model, stream, validator, device)
    first, validated = 0, True
    if before is not None:
        first, validated = before.step, before.validated
        restore(model, optimizer.optimizer, average, before.tensors, job.trainable)
        before = None  # which holds as much memory as the run
    record = prepare(out, start) if main else None
    accelerator.wait_for_everyone()
    share = Share(len(loaded), config.seed, config.batch, config.accumulate, rank, world, first, config.steps)
    pinned = device.type == "cuda"
    workers: dict[str, Any] = {"num_workers": config.data.workers, "worker_init_fn": undisturbed}
    batches = iter(DataLoader(stream, batch_sampler=share, pin_memory=pinned, **workers))
    logs = Logs(record, first, progress, config.steps) if record is not None else None

    def validate(step: int) -> int:
        """Validates the averages after a step, if that is due; the signal that has cut it off, or 0."""
        if not validator.pictures or (step < config.steps and step % config.validation.every):
            return 0
        with average.in_place():
            rows = validator.rows(job, network, model, device, lambda: stop.agreed(accelerator))
        if rows is None:
            return stop.agreed(accelerator)
        if logs is not None:
            logs.validation(step, rows)
        return 0

    # The loop.
    saved = done = first
    stop.waits = True
    try:
        if not validated and (number := validate(first)):
            raise Interrupted(number, _said(number, first))
        for step in range(first, config.steps):
            rate = learning_rate(config.optimizer, step, config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            parts = []
            for part in range(config.accumulate):
                torch.manual_seed(seed_of(config.seed, step, part, rank))  # for networks with dropout
                batch = placed(next(batches), device)
                final = part == config.accumulate - 1
                with contextlib.nullcontext() if final else accelerator.no_sync(model):
                    losses = job.losses(network, batch)
                    accelerator.backward(losses.mean() / config.accumulate)
                parts.append(losses.detach())
            gathered = accelerator.gather(torch.cat([*parts, parts[0].new_tensor([stop.number])])).reshape(world, -1)
            loss, number = float(gathered[:, :-1].flatten().double().mean()), int(gathered[:, -1].max())
            norm: Any = accelerator.clip_grad_norm_(model.parameters(), config.optimizer.clip or math.inf)
            norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what, value = ("norm of the gradient", norm) if math.isfinite(loss) else ("loss", loss)
                kept = f"the checkpoint of step {saved} stays" if saved else "there is no checkpoint yet"
                raise Stopped(f"step {step + 1}: the {what} is {value}; {kept}")
            optimizer.step()
            optimizer.zero_grad()
            average.update(step)

            done = step + 1
            last = done == config.steps
            if logs is not None:
                logs.step(done, loss, rate, norm, last or done % config.log_every == 0)
            validated = not number
            if not number:
                number = validate(done)
                validated = not number
            if last or number or done % config.checkpoint.every == 0:
                state = state_of(model, optimizer.optimizer, average)
                if record is not None:
                    save(record, done, state, plain, config.checkpoint.keep, validated)
                saved = done
                del state
                accelerator.wait_for_everyone()
            if number:
                raise Interrupted(number, _said(number, done))
        stop.waits = False
    except (ValueError, RuntimeError) as error:  # of a solve, the data, the device
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # A worker's error is its whole traceback, which says in its last line what was wrong.
        raise Stopped(f"after step {done}: {lines[-1] if 'Traceback' in str(error) else lines[0]}") from error
    finally:
        if logs is not None:
            logs.close()

    # The result: the averaged weights.
    with average.in_place():
        tensors = weights_of_model(model)
    metadata = {"format": "pt", "step": str(config.steps), "config": json.dumps(plain)}
    try:
        result = out if record is None else saved_result(job, tensors, record, metadata, result_of(config))
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise Stopped(f"the result cannot be written ({reason}); the checkpoint of step {saved} stays") from error
    accelerator.wait_for_everyone()
    return result


def _said(number: int, step: int) -> str:
    return f"stopped by {signal.Signals(number).name}: the checkpoint of step {step} is saved, and --resume goes on from it"


def saved_result(
    job: Task, tensors: Mapping[str, Tensor], record: Record, metadata: Mapping[str, str], name: str | None
) -> Path:
    """Writes the result in the place of an earlier one, and returns its place.

    Args:
        job: the task.
        tensors: the averaged weights.
        record: what the run writes, and where.
        metadata: what the file says beside its tensors.
        name: the name of the result in the folder, if it is known.
    """
    if name == PIPELINE:
        record.remove(record.within(PIPELINE))
    elif name is not None:
        record.add(name)
    place = job.save(tensors, record.out, metadata)
    if name == PIPELINE:
        record.add_folder(PIPELINE)
    return place


def made_optimizer(network: nn.Module, wanted: Optimizer) -> torch.optim.Optimizer:
    """AdamW of all parameters."""
    betas = (wanted.betas[0], wanted.betas[1])
    return torch.optim.AdamW(network.parameters(), lr=wanted.lr, betas=betas, eps=wanted.eps, weight_decay=wanted.weight_decay)


def learning_rate(wanted: Optimizer, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0, of a run of so many steps."""
    if step < wanted.warmup:
        return wanted.lr * (step + 1) / wanted.warmup
    if wanted.decay == "constant":
        return wanted.lr
    way = (step - wanted.warmup) / max(1, steps - wanted.warmup)
    return wanted.lr * (wanted.final + (1 - wanted.final) * (1 + math.cos(math.pi * way)) / 2)


def _check_processes(accelerator: Any, batch: int, accumulate: int) -> None:
    """Refused where accelerate shards by its first version, or the batch cannot be shared among the processes."""
    version = getattr(getattr(accelerator.state, "fsdp_plugin", None), "fsdp_version", 2)
    if version != 2:
        raise Refused("fsdp_version", version, "accelerate launch with --fsdp_version 2 is needed")
    world = accelerator.num_processes
    if batch % (world * accumulate):
        raise Refused("batch", batch, f"a multiple of processes times accumulate, {world} x {accumulate}, is needed")


def _try_out(job: Task, network: Network, model: nn.Module, stream: Stream, validator: Validator, device: torch.device) -> None:
    """The loss of a sample at the first and the last time, and a validation, before anything is written.

    Raises:
        ValueError: one of them fails.
    """
    try:
        sample = default_collate([stream[0, 0, 0]])
    except ValueError as error:
        known = isinstance(error, Refused) and error.argument.startswith("data.")
        raise (error if known else within("data.sources", error)) from None
    batch: dict[str, Tensor] = placed(sample, device)
    model.eval()
    tried = "model, objective: the loss of a sample"
    try:
        with torch.no_grad():
            for part in (0.0, 1 - 1e-6):
                job.losses(network, {**batch, "part": torch.tensor([part], dtype=torch.float64)})
        tried = "validation: of the first picture"
        validator.first().rows(job, network, model, device)
    except Exception as error:  # whatever a network of one's own does
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{tried}: {lines[0]}") from error
    finally:
        model.train()
        reshard(model)
