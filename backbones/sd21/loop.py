"""A solve with the callback of diffusers' pipelines, which may change latents, prompts and guidance.

A step is linear in the state, x_t = keep x_s + ... So what a callback adds to the state is carried beside the solve, `keep`
times as large after each step. The solve itself is `dosde.solve`, and without such a change its bits are the same.
"""

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

import dosde
from dosde.check import Refused, RefusedType, form

C = TypeVar("C", bound=Callable[..., Any])

Callback = Callable[[Any, int, Tensor, dict[str, Any]], Any]
INPUTS = ("latents", "prompt_embeds", "negative_prompt_embeds")
"""What a callback may ask for."""


class Loop:
    """One solve of a pipeline.

    Args:
        pipe: the pipeline, whose `_guidance_scale` and `_interrupt` the callback may set.
        make: (prompt, negative or None, guidance scale) -> the model.
        prompt: embedded prompts, (1 or pictures, tokens, width).
        negative: the same for the guidance, or None.
        callback: called after each step as callback(pipe, step, timestep, tensors).
        inputs: which of `INPUTS` it gets.
    """

    def __init__(
        self,
        pipe: Any,
        make: Callable[[Tensor, Tensor | None, float], dosde.Denoiser],
        prompt: Tensor,
        negative: Tensor | None,
        callback: Callback | None,
        inputs: Sequence[str],
    ) -> None:
        self.pipe, self.make, self.callback, self.inputs = pipe, make, callback, inputs
        self.prompt, self.negative = prompt, negative
        self.model = make(prompt, negative, pipe.guidance_scale)

    def solve(self, x_hat0: Tensor, steps: int, order: int | None, bar: Any, noise: Any, **solver: Any) -> Tensor:
        """x0, or the best estimate of it where the callback ends the solve; arguments as in `dosde.solve`."""
        plan = dosde.plan(self.model.process, steps, order, **solver)
        step, added = 0, torch.zeros((), device="cpu")

        def model(x: Tensor, x_hat0: Tensor, t: Tensor) -> Tensor:
            nonlocal step, added
            if step:
                state = self._after(step - 1, plan[step - 1].t, x + added if added.ndim else x)
                added, x = (state - x if added.ndim or state is not x else added), state
            x_theta = self.model(x, x_hat0, t)
            bar.update()
            if self.pipe.interrupt:
                raise _Interrupted(x_theta)
            added, step = added * plan[step].keep, step + 1
            return x_theta

        try:
            x0 = dosde.solve(model, x_hat0, steps, order, process=self.model.process, noise=noise, **solver)
        except _Interrupted as stopped:
            return stopped.x_theta
        return self._after(steps - 1, plan[-1].t, x0 + added if added.ndim else x0)

    def _after(self, step: int, t: float, x: Tensor) -> Tensor:
        """The state after a step, as the callback leaves it: x itself, if it does nothing to it."""
        if self.callback is None:
            return x
        guided, scale, n = self.pipe.do_classifier_free_guidance, self.pipe.guidance_scale, len(x)
        shape = (n, *self.prompt.shape[1:])
        both = [part.expand(shape) for part in (self.negative, self.prompt) if part is not None]
        prompts = torch.cat(both) if guided else both[-1]
        before = {"latents": x, "prompt_embeds": prompts, "negative_prompt_embeds": both[0] if guided else None}
        passed = {name: None if (own := before[name]) is None else own.clone() for name in self.inputs}
        number = self.pipe.scheduler.model_time(t)
        timestep = torch.tensor(int(number) if number == int(number) else number, device="cpu")
        answer = self.callback(self.pipe, step, timestep, dict(passed))
        if answer is not None and not isinstance(answer, Mapping):
            needed = f"a dict with some of {', '.join(INPUTS)}, or None, is needed"
            raise RefusedType("callback_on_step_end", answer, needed, f"returned {form(answer)}")
        changed = {}
        for name, own in before.items():
            new = (answer or {}).get(name, passed.get(name, own))
            if new is not own and not (isinstance(new, Tensor) and own is not None and _equal(new, own)):
                changed[name] = new
        after = self.pipe.do_classifier_free_guidance
        if self.pipe.guidance_scale != scale or changed.keys() - {"latents"}:
            self._prompts(changed, prompts, after, n)
        return _like(changed["latents"], "latents", x, (n,)).to(x) if "latents" in changed else x

    def _prompts(self, changed: Mapping[str, Any], before: Tensor, guided: bool, n: int) -> None:
        """Takes over other embeddings, and another guidance. Two passes have negative prompts first, as in stock pipelines."""
        if guided and self.negative is None:
            needed = "1 is needed in a solve that began without guidance"
            raise Refused(
                "callback_on_step_end", self.pipe.guidance_scale, needed, f"guidance_scale {self.pipe.guidance_scale}"
            )
        if "prompt_embeds" in changed:
            embeds = _like(changed["prompt_embeds"], "prompt_embeds", before, (2 * n,) if guided else (1, n, 2 * n))
            if guided or len(embeds) == 2 * n:
                self.negative, self.prompt = embeds.chunk(2)
            elif not (len(embeds) == 1 and len(self.prompt) > 1 and torch.equal(embeds, before[-1:])):
                self.prompt = embeds  # else they are those of the last picture alone, which each picture has its own of
        if changed.get("negative_prompt_embeds") is not None and guided:
            self.negative = _like(changed["negative_prompt_embeds"], "negative_prompt_embeds", before, (1, n))
        self.model = self.make(self.prompt, self.negative if guided else None, self.pipe.guidance_scale if guided else 1.0)


def _equal(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b)


def _like(value: Any, name: str, like: Tensor, rows: Sequence[int]) -> Tensor:
    """What a callback returned; refused unless it is floating, and has so many rows like those of `like`."""
    ok = isinstance(value, Tensor) and value.is_floating_point() and value.ndim == like.ndim
    if not ok or value.shape[1:] != like.shape[1:] or len(value) not in rows:
        shapes = " or ".join(str((row, *like.shape[1:])) for row in sorted(set(rows)))
        needed = f"a floating tensor of shape {shapes} is needed"
        raise Refused("callback_on_step_end", value, needed, f"returned {form(value)} as {name}")
    made: Tensor = value
    return made.to(like)


class _Interrupted(Exception):
    def __init__(self, x_theta: Tensor) -> None:
        super().__init__()
        self.x_theta = x_theta


class Turn:
    """Lets one thread after the other call a pipeline. It is no part of what is copied or pickled."""

    def __init__(self) -> None:
        self._lock, self._owner = threading.Lock(), 0

    def __reduce__(self) -> tuple[object, ...]:
        return Turn, ()

    def __enter__(self) -> None:
        if self._owner == threading.get_ident():
            needed = "another is needed there: DoSSRPipeline(**pipe.components) has the same networks"
            raise Refused("callback_on_step_end", self, needed, "called the pipeline that it is called by")
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._owner = 0
        self._lock.release()


def in_turn(call: C) -> C:
    """Decorates a method of a pipeline that has a `turn`, so that one thread after the other calls it."""

    @functools.wraps(call)
    def called(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        with pipe.turn:
            return call(pipe, *args, **kwargs)

    return cast(C, called)
