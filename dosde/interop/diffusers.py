"""A diffusers scheduler of every process and method here: `solve`, one step a call, as a component of their pipelines.

    x_t = keep x_s + hat x_hat0 + sum_i new_i x_theta_i + noise z,      x_theta_0 from the output of the network at x_s

with the plan, the conversion to x_theta and the operations of `solve`, so that a loop over `timesteps` gives its bits:

    scheduler.set_timesteps(5, device, x_hat0)
    x = scheduler.start(noise)                                    # (a + b) x_hat0 + sigma z
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, ...), t, x, generator).prev_sample

This interface has a state, which the rest of the package has not: a plan, the index of the next step, past x_theta.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from dosde import check, expansion, grid, method, presets, recipe, schedule, shift
from dosde.check import Refused, RefusedType
from dosde.noise import Independent
from dosde.placement import state_dtype
from dosde.plan import applied, marginals
from dosde.prediction import TRAINED, Predicts, combine, to_x0
from dosde.process import Process
from dosde.solve import advanced, noised
from dosde.step import Method, Step

from .networks import KINDS
from .networks import from_model as from_model
from .tables import betas, listed

_SHIFTS = ("dossr", "cosine", "linear", "none")
_SPACINGS = ("dossr", "uniform", "few_step", "table", "spaced", "linspace", "leading", "trailing")
_VARIABLES = {"lam": expansion.lam, "log_lam": expansion.log_lam}
_PLAIN = {"dos": (method.dos, 3), "resshift": (method.resshift, 1)}  # with the highest order
_EXPANDED: dict[str, Callable[..., list[Step]]] = {
    "adams": method.adams,
    "ode": method.ode,
    "chain": method.using(method.adams, tau=method.chain),
}
_SOLVERS = (*_PLAIN, *_EXPANDED, "few_step")


@dataclass
class DoSDESchedulerOutput(BaseOutput):  # type: ignore[misc]
    """The output of `step`, in the shape and dtype of the sample.

    Args:
        prev_sample: the state at the next time, the input of the next step.
        pred_original_sample: x_theta, the estimate of x0 that follows from the output of the network.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class DoSDEScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Domain-shift SDEs and their ODEs for pipelines of diffusers. All arguments are plain values, kept in the config.

    A stock img2img pipeline sets no x_hat0: the picture that it adds noise to at its start is taken for it (`add_noise`).

    With samples in half precision the state is float32 inside, as in `solve`. `step` returns it rounded, for the network. If
    the next sample is the tensor that `step` returned, the solve goes on with the state before rounding.

    Args:
        num_train_timesteps: T, the length of the table. Index i, the timestep that networks are called with, is at
            t = (i + 1)/T.
        beta_start: the first beta of the table of the noise.
        beta_end: the last beta.
        beta_schedule: "scaled_linear" (Stable Diffusion), "linear", "squaredcos_cap_v2" (a cosine, without beta_start and
            beta_end), or "flow": alpha = 1 - t, sigma = t without a table, where the timestep is T t (SD 3).
        trained_betas: T betas instead.
        rescale_betas_zero_snr: whether the table is rescaled to end at alpha = 0, for networks of v or x0.
        flow_shift: of "flow", s t / (1 + (s - 1) t) for the times t of a grid of diffusers.
        use_dynamic_shifting: of "flow", whether set_timesteps takes mu, with exp(mu) as flow_shift.
        shift: eta: "dossr" (the released table), "cosine" (Eq. 4), "linear", all 1 from t1 on, or "none".
        t1: the time from which eta is 1.
        trained_etas: T values of eta instead.
        kappa: with it, and trained_etas, alpha is 1 and sigma kappa sqrt(eta), in place of the betas: ResShift's process.
        prediction_type: the kind of prediction: vp_eps, x0, v, eps, residual, sigma_eps (see `dosde.prediction`), or in the
            words of diffusers epsilon, sample, v_prediction.
        solver: "dos" (the paper's, orders 1 to 3), "adams", "ode", "chain" (any order), "resshift" (1), or "few_step" (our
            recommendation for few calls).
        solver_order: the order, lowered to the highest that the solver has, and to the number of steps.
        scale: std of x0 given x_hat0 per element, for few_step.
        tau: the noise of adams and few_step, 0 (the ODE) to 1 (the SDE). Default: 1, and 0 for few_step.
        corrector: of adams, ode and chain, one order more at no call.
        variable: of adams, ode and chain, the variable of the expansion, "lam" or "log_lam".
        timestep_spacing: "dossr" (the released grid), "table" (`grid.table`), "uniform" in t, "few_step"; "spaced" (diffusers:
            "linspace"), "leading" and "trailing", indices below t1 as those of DDIMScheduler, then t = 0. Default: "few_step"
            for that solver, "dossr" for that shift, "table" with kappa, "spaced" without a shift, else "uniform".
        steps_offset: a number added to the indices of "leading".

    Raises:
        ValueError: before any step, with the name of the argument.
        TypeError: likewise.
    """

    order = 1
    _compatibles: list[str] = []  # noqa: RUF012

    plan: list[Step]  # from begin_index on; printed, its steps show the method
    _times: Tensor | None
    _numbers: list[float]
    _begin_index: int | None
    _step_index: int | None
    _past: list[Tensor]  # x_theta, the newest first
    _sums: list[Tensor]  # looked at once, after the last step
    _exact: tuple[Tensor, int, Tensor] | None  # what was returned, its version, and it before rounding

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        flow_shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        shift: str = "dossr",
        t1: float = 0.5,
        trained_etas: Sequence[float] | None = None,
        kappa: float | None = None,
        prediction_type: str = "vp_eps",
        solver: str = "dos",
        solver_order: int = 3,
        scale: float | None = None,
        tau: float | None = None,
        corrector: bool = False,
        variable: str = "lam",
        timestep_spacing: str | None = None,
        steps_offset: int = 1,
    ) -> None:
        check.one_of("shift", shift, _SHIFTS)
        check.count("num_train_timesteps", num_train_timesteps)
        check.count("solver_order", solver_order)
        if timestep_spacing is not None:
            check.one_of("timestep_spacing", timestep_spacing, _SPACINGS)
        if scale is None and "few_step" in (solver, timestep_spacing):
            raise Refused("scale", None, "few_step needs the std of x0 given x_hat0 per element, a positive number", "None")
        if isinstance(steps_offset, bool) or not isinstance(steps_offset, int) or steps_offset < 0:
            raise Refused("steps_offset", steps_offset, "an integer >= 0 is needed")
        self.predicts: Predicts = _predicts(prediction_type)
        eta = _shift(num_train_timesteps, shift, t1, trained_etas)
        self._flow = beta_schedule == "flow"
        if not isinstance(flow_shift, int | float) or isinstance(flow_shift, bool) or not 0 < flow_shift < math.inf:
            raise Refused("flow_shift", flow_shift, "a positive number is needed")
        if kappa is not None:
            noise = _noise(kappa, eta, trained_etas)
        elif self._flow:
            noise = schedule.flow()
        else:
            table = torch.cumprod(1 - betas(num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas), 0)
            noise = schedule.from_alphas_cumprod(schedule.zero_terminal_snr(table) if rescale_betas_zero_snr else table)
            needed = "v, x0 or residual is needed where the table ends at alpha = 0: eps tells nothing of x0 there"
            ok = not rescale_betas_zero_snr or self.predicts not in ("vp_eps", "eps", "sigma_eps")
            check.require(ok, "prediction_type", prediction_type, needed)
        self.process = Process(noise, eta)
        self.method: Method = _method(solver, scale, tau, corrector, variable)
        self.timesteps = torch.arange(num_train_timesteps, device="cpu").flip(0)
        self.num_inference_steps: int | None = None
        self.x_hat0: Tensor | None = None
        self.plan = []
        self._times = None
        self._adopts = False
        self.shifted = shift != "none" or trained_etas is not None
        self._forget()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """A scheduler of a config, its own or that of a scheduler of diffusers with a table of betas, or of flow matching.

        All values of the noise are taken over, defaults included.

        Raises:
            ValueError: for a scheduler of diffusers whose noise is neither (EDM, variance-exploding, consistency).
        """
        if isinstance(config, Mapping):
            frozen = isinstance(config, FrozenDict)
            others = set(config) - cls._get_init_keys(cls) - {"_diffusers_version"}  # `_class_name`, if nothing else
            # diffusers leaves out what were defaults there, and defaults here are others.
            config = {name: value for name, value in config.items() if name != "_use_default_values"}
            if "solver" not in config and (others or frozen):
                if _is_flow(config):
                    config = _flow_config(config)
                else:
                    _check_theirs({**config, **kwargs})
                    config = {name: _plain(value) for name, value in config.items() if name not in others}
        return super().from_config(config, *args, **kwargs)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._recipe() == other._recipe()

    def __hash__(self) -> int:
        return hash(self._recipe())

    def _recipe(self) -> object:
        """The arguments, of which the state of a loop is no part."""
        own = self._get_init_keys(type(self))
        return recipe.key({name: value for name, value in sorted(self.config.items()) if name in own})

    # -- The problem, as `solve` takes it -------------------------------------------------------------------------

    def times(self, num_inference_steps: int) -> Tensor:
        """steps + 1 decreasing times, the grid of `solve`."""
        steps = check.count("num_inference_steps", num_inference_steps)
        spacing = self.config.timestep_spacing or _default_spacing(self.config)
        T, t1 = len(self), self.config.t1
        if spacing == "dossr":
            return presets.dossr_times(steps, t1, T)
        if spacing == "table":
            return grid.table(T)(self.process, steps)
        if spacing == "uniform":
            return grid.uniform(self.process, steps)
        if spacing == "few_step":
            return grid.few_step(self.config.scale)(self.process, steps)
        if self._flow:  # FlowMatchEulerDiscreteScheduler shifts the ends of the range, and then what lies between them
            static = 1.0 if self.config.use_dynamic_shifting else self.config.flow_shift
            last = static / T / (1 + (static - 1) / T)
            return self._flow_times(torch.linspace(1, last, steps, dtype=torch.float64, device="cpu"))
        most = math.floor(self.process.t1 * T + 1e-9)
        if steps > most:
            raise Refused("num_inference_steps", steps, f"at most {most} is needed, the number of indices below t1")
        if spacing == "leading":
            index = torch.arange(steps, dtype=torch.float64, device="cpu").flip(0) * (most // steps) + self.config.steps_offset
        elif spacing == "trailing":
            index = torch.from_numpy(np.arange(most, 0, -most / steps)[:steps].round()) - 1
        else:  # numpy's arithmetic, which diffusers uses: torch's rounds other indices up
            index = torch.from_numpy(np.linspace(0, most - 1, steps).round()[::-1].copy())
            index[0] = most - 1  # of one step, too, which diffusers has begin at t = 1/T
        return torch.cat([(index + 1) / T, index.new_zeros(1)])

    def _flow_times(self, sigmas: Tensor, mu: float | None = None) -> Tensor:
        """The times of sigmas of a flow, shifted, then 0."""
        s = math.exp(mu) if mu is not None else 1.0 if self.config.use_dynamic_shifting else self.config.flow_shift
        return torch.cat([s * sigmas / (1 + (s - 1) * sigmas), sigmas.new_zeros(1)])

    def _given(self, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, mu: float | None) -> Tensor | None:
        """The times that are given one by one, then 0."""
        dynamic = bool(self.config.use_dynamic_shifting)
        if mu is not None or dynamic:
            ok = dynamic and isinstance(mu, int | float) and not isinstance(mu, bool) and math.isfinite(mu)
            needed = "a number is needed, with beta_schedule = 'flow' and use_dynamic_shifting alone"
            check.require(ok, "mu", mu, needed, f"{mu} with use_dynamic_shifting = {dynamic}")
        if timesteps is None and sigmas is None:
            return None
        check.require(
            timesteps is None or sigmas is None, "sigmas", sigmas, "timesteps or sigmas alone are needed", "with timesteps"
        )
        name, numbers = ("timesteps", timesteps) if sigmas is None else ("sigmas", sigmas)
        values = check.values(name, numbers, "decreasing numbers")
        check.require(values.ndim == 1 and len(values) > 0, name, numbers, "decreasing numbers are needed")
        if name == "sigmas" and len(values) > 1 and values[-1] == 0:
            values = values[:-1]  # the end, which is added anyway
        if self._flow:
            scaled = values / len(self) if name == "timesteps" else values
            times = torch.cat([scaled, scaled.new_zeros(1)]) if name == "timesteps" else self._flow_times(scaled, mu)
        else:
            places = (values + 1) / len(self) if name == "timesteps" else self.process.time(values)
            times = torch.cat([places, places.new_zeros(1)])
        falls = bool((times.diff() < 0).all() and times[0] <= self.process.t1 + 1e-9)
        check.require(falls, name, numbers, f"numbers that fall, from what t1 = {self.process.t1:g} has at most, are needed")
        return times

    def order_for(self, num_inference_steps: int) -> int:
        """solver_order, at most what the solver knows and the number of steps: the order of `solve`."""
        most = _PLAIN[self.config.solver][1] if self.config.solver in _PLAIN else num_inference_steps
        return int(min(self.config.solver_order, most, num_inference_steps))

    def model_time(self, t: float | Tensor) -> float:
        """The timestep that a network is called with at time t: t T - 1, an integer at the times of the table, at least 0.

        Of a flow it is t T.
        """
        index = float(t) * len(self) if self._flow else max(float(t) * len(self) - 1, 0.0)
        return float(round(index)) if abs(index - round(index)) < 1e-6 else index

    def _time(self, timestep: float) -> float:
        """The inverse of `model_time`."""
        return timestep / len(self) if self._flow else (timestep + 1) / len(self)

    # -- The loop ---------------------------------------------------------------------------------------------------

    @property
    def begin_index(self) -> int | None:
        """Where the loop begins, if a pipeline has set it."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The index of the next step; None before the first."""
        return self._step_index

    @property
    def init_noise_sigma(self) -> float:
        """sigma at the first time: what noise is multiplied by if x_hat0 is 0. With another source, use `start`."""
        return float(self.process(1.0).sigma if self._times is None else self._start.sigma)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        x_hat0: Tensor | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Plans a solve of so many steps, or one at given timesteps or noise levels.

        x_hat0: the source, in the shape of the samples. None: the one that `add_noise` starts from, or zeros without a shift.
        timesteps: decreasing, in the place of num_inference_steps. sigmas: decreasing noise levels: lam = sigma/a, or of a flow
        sigma, which is then shifted. mu: of a flow with use_dynamic_shifting.
        """
        given = self._given(timesteps, sigmas, mu)
        if given is None:
            check.require(num_inference_steps is not None, "num_inference_steps", None, "a positive integer is needed")
            times = self.times(num_inference_steps)  # type: ignore[arg-type]
            if self._flow and mu is not None:
                T = len(self)
                times = self._flow_times(torch.linspace(1, 1 / T, len(times) - 1, dtype=torch.float64, device="cpu"), mu)
        else:
            times = given
        if x_hat0 is not None:
            check.source(x_hat0, self.process.field_shape)
        numbers = [self.model_time(t) for t in times[:-1]]
        integer = all(number == round(number) for number in numbers)
        called = torch.tensor(numbers, dtype=torch.int64 if integer else torch.float32, device="cpu")
        self._replan(times, 0)
        self.num_inference_steps, self.x_hat0, self._times = len(numbers), x_hat0, times
        self._numbers = called.tolist()
        self._adopts = x_hat0 is None
        self.timesteps = called.to(device)
        self._forget()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Makes the solve begin at timesteps[begin_index], as on a grid that begins there."""
        times = self._set("set_begin_index")
        if isinstance(begin_index, int) and begin_index == len(times) - 1:  # where img2img pipelines begin at a small strength
            needed = f"0 to {len(times) - 2} is needed, so img2img pipelines need a strength of {1 / begin_index:.3g} or more"
            raise Refused("begin_index", begin_index, needed, f"{begin_index}, which leaves none of {begin_index} steps")
        if isinstance(begin_index, bool) or not isinstance(begin_index, int) or not 0 <= begin_index < len(times) - 1:
            raise Refused("begin_index", begin_index, f"0 to {len(times) - 2} is needed")
        self._replan(times, begin_index)
        self._forget()
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample as it is; with kappa, as ResShift's networks see it (`presets.resshift_input_scale`)."""
        if self.config.kappa is None:
            return sample
        if timestep is None:
            raise Refused("timestep", None, "the timestep of the sample is needed, since the factor depends on it")
        t = self._time(float(timestep))
        return sample * presets.resshift_input_scale(self.process(t)).item()

    def start(self, noise: Tensor) -> Tensor:
        """(a + b) x_hat0 + sigma z, the first sample, in the dtype of x_hat0: z = noise, unit normal, in its shape."""
        self._set("start")
        source = self._source(noise)
        if not isinstance(noise, Tensor) or noise.shape != source.shape or not noise.is_floating_point():
            raise Refused("noise", noise, f"a floating tensor like x_hat0, {check.form(source)}, is needed", check.form(noise))
        x = noised(self._start, source.to(state_dtype(source)), noise.to(source.device))
        return self._rounded(x, source.dtype)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor | None = None) -> Tensor:
        """a x0 + b source + sigma z (Eq. 2) at the given timesteps of the table, one, or one a sample.

        source: default the x_hat0 that was set. Where none is and timesteps are the first of a loop, x0 is: so img2img
        pipelines begin, which know no source. It is then the x_hat0 of that loop, and the result that of `start`.
        """
        for name, value in (("original_samples", original_samples), ("noise", noise), ("source", source)):
            if value is None and name == "source":
                continue
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != original_samples.shape:
                shape = f"shape {tuple(original_samples.shape)}" if isinstance(original_samples, Tensor) else "(batch, ...)"
                raise Refused(name, value, f"a floating tensor of {shape} is needed", check.form(value))
        numbers = self._table(timesteps, len(original_samples))
        start = self._numbers[self._begin_index or 0] if self._times is not None and self._step_index is None else None
        first = set(numbers) == {start}
        if source is None and self._adopts and first:
            check.source(original_samples, self.process.field_shape)
            self.x_hat0 = original_samples
        source = self.x_hat0 if source is None else source
        if source is None and self.shifted:
            raise Refused("source", None, "with a shift, the source in the shape of x0 is needed", "None, and no x_hat0 is set")
        if source is not None and source.shape != original_samples.shape:
            raise Refused("source", source, f"the shape of x0, {tuple(original_samples.shape)}, is needed", check.form(source))
        x0 = original_samples.to(state_dtype(original_samples))
        if first:
            m = self._start
        else:
            times = torch.tensor([self._time(n) for n in numbers], dtype=torch.float64, device="cpu")
            m = self.process.over_batch(times[0] if len(set(numbers)) == 1 else times, x0)
        x = noised(m, x0, noise.to(x0.device))
        if source is not None and self.shifted:  # 0 where x0 is the source, so that this is `start` to the bit
            x = x + m.b.to(x) * (source.to(x) - x0)
        return self._rounded(x, original_samples.dtype) if first else x.to(original_samples.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DoSDESchedulerOutput | tuple[Tensor, Tensor]:
        """One step, from the sample at `timestep`, which must be the next of `timesteps`, and the network's output there.

        generator: one, or one a sample; a step draws as `solve` does, nothing where its plan has no noise. variance_noise: unit
        normal, instead of a draw. Returns (prev_sample, pred_original_sample), in a `DoSDESchedulerOutput` or a tuple.
        """
        self._set("step")
        begin = self._begin_index or 0
        index = begin if self._step_index is None else self._step_index
        self._check_next(timestep, index)
        source = self._source(sample)
        for name, value, like in (
            ("sample", sample, source),
            ("model_output", model_output, sample),
            *((("variance_noise", variance_noise, sample),) if variance_noise is not None else ()),
        ):
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != like.shape:
                raise Refused(name, value, f"a floating tensor of shape {tuple(like.shape)} is needed", check.form(value))
            if value.device != sample.device:
                raise Refused(name, value, f"the device of sample, {sample.device}, is needed", check.form(value))
        step, coefficients = self.plan[index - begin], self._coefficients[index - begin]
        fresh = Independent(generator)

        x = self._unrounded(sample).to(torch.promote_types(sample.dtype, state_dtype(source)))
        source = source.to(x)
        # A copy where it would be the network's own buffer: compiled ones write their next output to it.
        x_theta = model_output.clone() if self.predicts == "x0" else combine(model_output, x, source, coefficients)
        past = [x_theta, *self._past]
        sums = [*self._sums, check.total(x_theta.detach())]
        draw = fresh if variance_noise is None else lambda *_: variance_noise
        x = advanced(x.clone(), source, past, step, draw)
        if index == len(self._numbers) - 1:
            check.finite(sums, check.total(x.detach()), [step.t for step in self.plan])
        self._past, self._sums, self._step_index = past[: self._kept - 1], sums, index + 1
        prev_sample = self._rounded(x, sample.dtype)
        estimate = x_theta.to(sample.dtype, copy=True)  # not the one that is kept
        return DoSDESchedulerOutput(prev_sample, estimate) if return_dict else (prev_sample, estimate)

    # -- The state --------------------------------------------------------------------------------------------------

    def _replan(self, times: Tensor, begin: int) -> None:
        steps = len(times) - 1 - begin
        points = marginals(self.process, steps, times[begin:])
        plan = applied(self.method, points, self.order_for(steps))
        parts = (to_x0(self.predicts, self.process(step.t)) for step in plan)
        self._coefficients = [tuple(part.item() for part in three) for three in parts]  # errors where they are undefined
        self._start, self.plan, self._kept = points[0], plan, max(len(step.new) for step in plan)

    def _forget(self) -> None:
        """Drops the state of a loop."""
        self._begin_index = self._step_index = self._exact = None
        self._past, self._sums = [], []

    def _set(self, caller: str) -> Tensor:
        if self._times is None:
            raise Refused(
                caller, None, "call set_timesteps(num_inference_steps, device, x_hat0) before", "no timesteps are set"
            )
        return self._times

    def _source(self, like: Tensor) -> Tensor:
        if self.x_hat0 is not None:
            return self.x_hat0
        if self.shifted:
            raise Refused("x_hat0", None, "set_timesteps(num_inference_steps, device, x_hat0) is needed", "None with a shift")
        if not isinstance(like, Tensor):
            raise RefusedType("sample, noise", like, "a floating tensor is needed", check.form(like))
        return torch.zeros_like(like)

    def _rounded(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        rounded = x.to(dtype)
        self._exact = None if x.dtype == dtype else (rounded, check.writes(rounded), x)
        return rounded

    def _unrounded(self, sample: Tensor) -> Tensor:
        """The state before rounding, if `sample` is the tensor that was returned and nobody wrote to it."""
        if self._exact is None:
            return sample
        returned, version, x = self._exact
        same = returned is sample and version == check.writes(sample)
        if same and sample.is_inference():  # which count no writes
            same = torch.equal(sample, x.to(sample.dtype))
        return x if same else sample

    def _check_next(self, timestep: float | Tensor, index: int) -> None:
        steps = len(self._numbers)
        if index == steps:
            raise Refused("timestep", timestep, f"all {steps} steps are done, set_timesteps begins anew")
        if isinstance(timestep, Tensor) and timestep.numel() == 1:
            own = self.timesteps
            same = timestep.untyped_storage().data_ptr() == own.untyped_storage().data_ptr()
            if same and timestep.storage_offset() == own.storage_offset() + index:
                return  # an element of timesteps: no waiting for its value
        try:
            given = float(timestep)
        except (TypeError, ValueError, RuntimeError):
            raise RefusedType(
                "timestep", timestep, "one number, an element of timesteps, is needed", check.form(timestep)
            ) from None
        expected = self._numbers[index]
        if not abs(given - expected) <= 1e-3:
            order = "steps go in order, from timesteps[0] or set_begin_index(...) on"
            raise Refused("timestep", given, f"{expected:g} is needed, the next (timesteps[{index}]): {order}", f"{given:g}")

    def _table(self, timesteps: Tensor, batch: int) -> list[float]:
        """Timesteps as numbers, one a sample. Errors: ValueError."""
        numbers = torch.as_tensor(timesteps).detach().reshape(-1).tolist()
        if len(numbers) not in (1, batch):
            raise Refused("timesteps", len(numbers), f"1, or {batch}, one a sample, is needed", f"{len(numbers)} of them")
        most = len(self) if self._flow else len(self) - 1
        if not all(0 <= n <= most for n in numbers):
            raise Refused("timesteps", numbers, f"numbers from 0 to {most} are needed")
        return numbers * batch if len(numbers) == 1 else numbers


# -- From a config to the values of the package ---------------------------------------------------------------------------


def _predicts(name: str) -> Predicts:
    known = (*(kind for kind in TRAINED if kind != "flow"), *KINDS)  # no process here is a flow from the source
    check.one_of("prediction_type", name, known)
    kind: Predicts = KINDS.get(name, name)  # type: ignore[assignment]
    return kind


def _plain(value: object) -> object:
    """An array, as diffusers has betas in it, as the list that files have."""
    return value.tolist() if isinstance(value, np.ndarray | Tensor) else value


def _check_theirs(config: Mapping[str, Any]) -> None:
    """Refused for the config of a scheduler of diffusers that stands for another process."""
    names = [name for name in config if not name.startswith("_")]
    name = config.get("_class_name", f"one with {', '.join(names[:4])}")  # which configs in memory do not say
    if "beta_schedule" not in config:  # trained_betas of IPNDM are sigmas
        raise Refused("config", config, "the config of one with beta_schedule is needed", f"{name}, without betas")
    if config.get("prediction_type") == "flow_prediction":
        raise Refused("prediction_type", "flow_prediction", f"use_flow_sigmas is needed with it, in the config of {name}")
    plain: dict[str, object] = {"snr_shift_scale": 1.0}
    plain |= {"sigma_min": None, "sigma_max": None, "timestep_type": "discrete"}
    for option, value in plain.items():
        if config.get(option, value) != value:
            raise Refused(option, config[option], f"{value} is needed: a table of betas as it is, in the config of {name}")
    if "learned" in str(config.get("variance_type")):
        needed = f"a network that predicts no variance is needed, and the config of {name} is of one that does"
        raise Refused("variance_type", config["variance_type"], needed)


def _is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a config of diffusers is of flow matching."""
    named = str(config.get("_class_name", "")).startswith("FlowMatch")
    alike = "beta_schedule" not in config and "num_train_timesteps" in config and isinstance(config.get("shift"), int | float)
    return named or alike or bool(config.get("use_flow_sigmas"))


def _flow_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ours for the config of a scheduler of flow matching."""
    name = config.get("_class_name", "a scheduler of flow matching")
    plain: dict[str, object] = {"invert_sigmas": False, "shift_terminal": None, "stochastic_sampling": False}
    plain |= {"time_shift_type": "exponential", "prediction_type": "flow_prediction"}
    plain |= {f"use_{kind}_sigmas": False for kind in ("karras", "exponential", "beta")}
    for option, value in plain.items():
        if config.get(option, value) != value:
            raise Refused(option, config[option], f"{value} is needed, in the config of {name}")
    return {
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "beta_schedule": "flow",
        "flow_shift": config.get("flow_shift", config.get("shift", 1.0)),
        "use_dynamic_shifting": bool(config.get("use_dynamic_shifting", False)),
        "prediction_type": "velocity",
        "shift": "none",
    }


def _shift(T: int, name: str, t1: float, trained: Sequence[float] | None) -> shift.Shift:
    if isinstance(t1, bool) or not isinstance(t1, int | float) or not 0 < t1 <= 1:
        raise Refused("t1", t1, "a time in (0, 1] is needed")
    if trained is not None:
        return shift.from_table(listed("trained_etas", trained, T))
    makers: dict[str, Callable[[], shift.Shift]] = {
        "dossr": lambda: shift.from_table(presets.dossr_etas(t1, T)),
        "cosine": lambda: shift.cosine(t1),
        "linear": lambda: shift.linear(t1),
        "none": shift.none,
    }
    return makers[name]()


def _noise(kappa: float, eta: shift.Shift, trained_etas: Sequence[float] | None) -> schedule.Schedule:
    """The noise of ResShift's process."""
    if isinstance(kappa, bool) or not isinstance(kappa, int | float) or not 0 < kappa < math.inf:
        raise Refused("kappa", kappa, "a positive number, or None, is needed")
    if trained_etas is None:
        raise Refused("kappa", kappa, "trained_etas are needed with it, ResShift's table", f"{kappa} without trained_etas")
    return schedule.with_shift(eta, kappa)


def _method(solver: str, scale: float | None, tau: float | None, corrector: bool, variable: str) -> Method:
    check.one_of("solver", solver, _SOLVERS)
    check.one_of("variable", variable, tuple(_VARIABLES))
    if tau is not None and solver not in ("adams", "few_step"):
        raise Refused("tau", tau, "None is needed, adams and few_step take one", f"{tau} with solver = {solver!r}")
    if tau is not None:
        check.tau(tau)
    if solver not in _EXPANDED and (corrector or variable != "lam"):
        raise Refused(
            "corrector, variable",
            corrector,
            f"False and 'lam' are needed, {', '.join(_EXPANDED)} take others (few_step corrects by itself)",
            f"{corrector}, {variable!r} with solver = {solver!r}",
        )
    if solver == "few_step":
        assert scale is not None
        return method.matched(scale, 0.0 if tau is None else tau)
    if solver in _PLAIN:
        return _PLAIN[solver][0]
    options: dict[str, Any] = {} if tau is None else {"tau": tau}
    return method.using(_EXPANDED[solver], variable=_VARIABLES[variable], corrector=corrector, **options)


def _default_spacing(config: Mapping[str, Any]) -> str:
    if config["solver"] == "few_step":
        return "few_step"
    if config["kappa"] is not None:
        return "table"
    if config["trained_etas"] is not None:
        return "uniform"
    return {"dossr": "dossr", "none": "spaced"}.get(config["shift"], "uniform")
