"""Wrong calls: the exact exception, a message that names argument, value and what is legal, and no model call before it."""

import math
from functools import partial

import pytest
import torch
from instances import PROCESS, wrong_calls

import dosde
from dosde import grid, method, noise, objective, prediction, presets, schedule, shift
from dosde.process import Process, resshift

FIELD = Process(schedule.scaled_linear(), shift.cosine(torch.tensor([0.3, 0.5]).reshape(2, 1, 1)))
BRIDGE = Process(schedule.ve(lambda t: torch.sqrt(t * (1 - t))), shift.linear(1.0))
LATE = Process(schedule.scaled_linear(), shift.cosine(1.0))
X = torch.zeros(2, 3, 4, 4)
NAN = X.clone()
NAN[1, 2, 0, 0] = math.nan
TIMES = [0.5, 0.3, 0.0]


class Called(Exception):
    """The model was reached."""


def model(x, x_hat0, t):
    raise Called


def solve(*args, **kwargs):
    return lambda: dosde.solve(*args, **kwargs)


def made(function, *args, **kwargs):
    return lambda: function(*args, **kwargs)


run = partial(solve, model, X, process=PROCESS)
BEFORE = {
    # counts
    "steps 0": (run(steps=0), ValueError, r"steps: 0; a positive integer"),
    "steps -3": (run(steps=-3), ValueError, r"steps: -3; a positive integer"),
    "steps 2.5": (run(steps=2.5), TypeError, r"steps: 2\.5; a positive integer"),
    "steps True": (run(steps=True), ValueError, r"steps: True; a positive integer"),
    "order 0": (run(order=0), ValueError, r"order: 0; a positive integer"),
    "order 1.0": (run(order=1.0), TypeError, r"order: 1\.0; a positive integer"),
    "order > steps": (run(steps=2, order=3), ValueError, r"order: 3 with steps = 2; 1 to 2"),
    "order 4 of dos": (run(steps=5, order=4), ValueError, r"order: 4; dos has orders 1 to 3"),
    "order 2 of resshift": (run(order=2, method=method.resshift), ValueError, r"order: 2; resshift has order 1"),
    # the grid
    "times increasing": (
        run(2, 1, grid=[0.0, 0.3, 0.5]),
        ValueError,
        r"grid: times \[0\.0, 0\.3, 0\.5\]; they must decrease",
    ),
    "times repeated": (run(2, 1, grid=[0.5, 0.5, 0.0]), ValueError, r"they must decrease"),
    "grid a name": (run(2, 1, grid="karras"), TypeError, r"grid: 'karras'; a function \(process, steps\)"),
    "times that are names": (
        run(2, 1, grid=["a", "b", "c"]),
        TypeError,
        r"grid: \['a', 'b', 'c'\]; a function \(process, steps\)",
    ),
    "grid not called": (
        run(2, 1, grid=grid.log_lam),
        TypeError,
        r"grid: dosde\.grid\.log_lam fails as \(process, steps\) -> times",
    ),
    "method a name": (run(method="dos"), TypeError, r"method: 'dos'; a function \(marginals, order\)"),
    "method too short": (
        run(method=lambda m, o: method.dos(m, o)[1:]),
        ValueError,
        r"method: returned a list; a list of 5 Steps",
    ),
    "method with too many weights": (
        run(steps=5, order=1, method=lambda m, o: method.dos(m, 3)),
        ValueError,
        r"method: step \d has 3 weights; 1 to 2",
    ),
    "callback a number": (run(callback=5), TypeError, r"callback: 5; a function \(step, t, x, x_theta\)"),
    "noise a class": (run(noise=noise.Brownian), TypeError, r"noise: <class .*Brownian.*; a torch.Generator"),
    "noise a tensor": (run(noise=X), TypeError, r"noise: a tensor of shape \(2, 3, 4, 4\)"),
    "a seed below 0": (made(noise.Brownian, -1), ValueError, r"seed: -1; an integer >= 0"),
    "a shift that stacks": (
        made(Process, schedule.linear(), lambda t: torch.stack([(2 * t).clamp(max=1), t])),
        ValueError,
        r"shift: at two times it is not what it is at each",
    ),
    "a schedule for one time only": (
        made(Process, lambda t: (math.exp(-t), 1.0), shift.none()),
        TypeError,
        r"schedule, shift: fail at a tensor of two times",
    ),
    "no derivative": (
        made(Process(lambda t: (torch.ones_like(t), t.detach()), shift.none()).g, 0.5),
        ValueError,
        r"t: 0\.5; .* no derivative",
    ),
    "sigma without expm1 at t = 0": (
        made(Process(lambda t: (torch.exp(-t), torch.sqrt(1 - torch.exp(-2 * t))), shift.none()).g, 0.0),
        ValueError,
        r"t: 0\.0; .* no derivative there: .* expm1",
    ),
    "resshift where sigma/alpha falls": (
        solve(model, X, 5, 1, process=BRIDGE, method=method.resshift, grid=[0.95, 0.8, 0.6, 0.4, 0.2, 0.0]),
        ValueError,
        r"method: resshift needs sigma/alpha to rise",
    ),
    "chain where sigma/alpha falls": (made(BRIDGE.chain, 0.6, 0.8), ValueError, r"s, t: 0\.6, 0\.8; sigma/alpha falls"),
    "sample of integers": (
        made(PROCESS.sample, X.int(), X, 0.3, X),
        TypeError,
        r"x: a int32 tensor of shape .*; a floating batch",
    ),
    "times outside": (run(2, 1, grid=[1.5, 0.3, 0.0]), ValueError, r"within \[0, 1\]"),
    "times nan": (run(2, 1, grid=[0.5, math.nan, 0.0]), ValueError, r"they must decrease"),
    "times of another count": (run(5, 1, grid=TIMES), ValueError, r"times of shape \(3,\) with steps = 5; 6 times"),
    "two times at eta = 1": (
        run(2, 1, grid=[0.9, 0.7, 0.0]),
        ValueError,
        r"time 0\.7 at index 1 .* start at t1 = 0\.5",
    ),
    "ends at eta = 1": (
        run(1, 1, grid=[0.9, 0.7]),
        ValueError,
        r"time 0\.7 at index 1 has lam = inf; .* start at t1 = 0\.5",
    ),
    "lam grid of a field": (
        solve(model, X[:, :2], process=FIELD, grid=grid.log_lam()),
        ValueError,
        r"eta is a field of shape \(2, 1, 1\)",
    ),
    # the source
    "x_hat0 nan": (solve(model, NAN, process=PROCESS), ValueError, r"x_hat0: .*\(2, 3, 4, 4\).* NaN or infinity"),
    "x_hat0 integer": (solve(model, X.int(), process=PROCESS), TypeError, r"x_hat0: a int32 tensor .* floating"),
    "x_hat0 sparse": (solve(model, X.to_sparse(), process=PROCESS), TypeError, r"x_hat0: .*a dense tensor with values"),
    "x_hat0 meta": (solve(model, X.to("meta"), process=PROCESS), TypeError, r"x_hat0: .*a dense tensor with values"),
    "x_hat0 array": (solve(model, X.numpy(), process=PROCESS), TypeError, r"x_hat0: a ndarray; a floating tensor"),
    "x_hat0 empty": (solve(model, X[:0], process=PROCESS), ValueError, r"\(0, 3, 4, 4\).* at least one element"),
    "field of another shape": (
        solve(model, X, process=FIELD),
        ValueError,
        r"field of shape \(2, 1, 1\).*\(2, 3, 4, 4\)",
    ),
    # model and process
    "no process": (solve(model, X), ValueError, r"process: None.* pass process="),
    "process of another type": (
        solve(model, X, process=shift.cosine()),
        TypeError,
        r"process: dosde\.shift\.cosine\(\); a dosde.Process",
    ),
    "model not callable": (solve(X, X, process=PROCESS), TypeError, r"model: .* a function \(x, x_hat0, t\)"),
    "two processes": (
        solve(dosde.Denoiser(model, LATE), X, process=PROCESS),
        ValueError,
        r"process: differs from the model's",
    ),
    "eps at a = 0": (
        solve(dosde.Denoiser(model, PROCESS, "eps"), X),
        ValueError,
        r"t: 0\.5; a = 0 there, where x0 does not follow from eps",
    ),
    # noise
    "too few generators": (run(noise=[torch.Generator()]), ValueError, r"noise: 1 generators; 2 are needed"),
    "not generators": (run(noise=[1, 2]), TypeError, r"generator: 1; a torch.Generator"),
    "noise a number": (run(noise=3), TypeError, r"noise: 3; a torch.Generator"),
    "noise of another shape": (
        run(noise=lambda *a: X[:1]),
        ValueError,
        r"noise: returned .*\(1, 3, 4, 4\).* like x_hat0",
    ),
    "noise of another device": (run(noise=lambda *a: X.to("meta")), ValueError, r"noise: returned .* on meta.* on cpu"),
    "brownian on a field": (
        solve(model, X[:, :2], process=FIELD, noise=noise.Brownian(0)),
        ValueError,
        r"Brownian needs one clock.*\(2, 1, 1\)",
    ),
    "brownian seeds": (run(noise=noise.Brownian([1, 2, 3])), ValueError, r"noise: 3 seeds; 2 are needed"),
    # what a process is made of
    "eta > 1": (
        made(Process, schedule.linear(), lambda t: 2 * t),
        ValueError,
        r"shift: eta = 1\.\d+ at t = 0\.5\d+; .*\[0, 1\]",
    ),
    "eta falls": (made(Process, schedule.linear(), lambda t: 1 - t), ValueError, r"eta decreases between t = 0 and"),
    "lam falls": (
        made(Process, lambda t: (torch.ones_like(t), 1 - t), shift.none()),
        ValueError,
        r"sigma/a decreases between t = 0 and",
    ),
    "schedule nan": (
        made(Process, lambda t: (t / t, t), shift.none()),
        ValueError,
        r"schedule: alpha = nan.* at t = 0\.0; both must be finite",
    ),
    "schedule no function": (made(Process, 3, shift.none()), TypeError, r"schedule: 3; a function of t"),
    "t outside": (made(PROCESS, 1.2), ValueError, r"t: 1\.2; times in \[0, 1\]"),
    "f at eta = 1": (made(PROCESS.f, 0.5), ValueError, r"t: 0\.5; f, h and g are infinite where a = 0"),
    "score at sigma = 0": (made(PROCESS.score, X, X, X, 0.0), ValueError, r"t: 0\.0; the score is infinite"),
    "transition from eta = 1": (made(PROCESS.transition, 0.6, 0.7), ValueError, r"s: 0\.6; the SDE cannot be followed"),
    "transition backwards": (made(PROCESS.chain, 0.4, 0.2), ValueError, r"s, t: 0\.4, 0\.2; s <= t"),
    "lam not taken": (
        made(Process(schedule.linear(), shift.none()).time, 1e9),
        ValueError,
        r"lam: 1000000000\.0; .*from 0 .* to",
    ),
    "times of a batch": (made(PROCESS.sample, X, X, torch.zeros(3), X), ValueError, r"t: shape \(3,\); one time, or 2"),
    "cosine t1": (made(shift.cosine, 0.0), ValueError, r"t1: 0\.0; times in \(0, 1\]"),
    "linear t1": (made(shift.linear, torch.tensor([0.5, 1.5])), ValueError, r"t1: .*1\.5.*; times in \(0, 1\]"),
    "eta table > 1": (made(shift.from_table, [0.1, 1.2]), ValueError, r"etas: value 1\.2 at index 1; .*\[0, 1\]"),
    "eta table falls": (made(shift.from_table, [0.3, 0.2]), ValueError, r"etas: 0\.3 then 0\.2 at index 0"),
    "alpha table rises": (
        made(schedule.from_alphas_cumprod, [0.5, 0.6]),
        ValueError,
        r"table: 0\.5 then 0\.6 at index 0",
    ),
    "alpha table of 0": (
        made(schedule.from_alphas_cumprod, [0.5, 0.0]),
        ValueError,
        "table: 1 above 0; at least two",
    ),
    "alpha table 2-D": (
        made(schedule.from_alphas_cumprod, torch.ones(2, 2)),
        ValueError,
        r"table: shape \(2, 2\); a 1-D",
    ),
    "betas": (made(schedule.linear, 0.02, 0.01), ValueError, r"beta_min, beta_max: 0\.02, 0\.01; 0 < beta_min"),
    "cosine s": (made(schedule.cosine, -1.0), ValueError, r"s: -1\.0; a positive offset"),
    "kappa": (made(resshift, kappa=0.0), ValueError, r"kappa: 0\.0; a positive"),
    "exponential": (made(shift.exponential, 15, 0.9, 0.5), ValueError, r"eta_min, eta_max: 0\.9, 0\.5"),
    "exponential of one": (made(shift.exponential, 1), ValueError, r"T: 1; at least two steps are needed"),
    "karras": (made(grid.karras, 1.0, 2.0), ValueError, r"lam_min, lam_max: 2\.0, 1\.0; 0 < lam_min < lam_max"),
    "predicts": (
        made(dosde.Denoiser, model, PROCESS, "epsilon"),
        ValueError,
        r"predicts: 'epsilon'; one of x0, eps, vp_eps, v, residual, sigma_eps, velocity, flow \(.* ResShift's epsilon eps",
    ),
    "convert": (
        made(prediction.convert, X, X, X, PROCESS(0.1), "x", "v"),
        ValueError,
        r"source: 'x'; one of x0, eps, vp_eps, v, score",
    ),
    "sigma_eps at a = 0": (
        solve(dosde.Denoiser(model, PROCESS, "sigma_eps"), X),
        ValueError,
        r"t: 0\.5; a = 0 there, where x0 does not follow from sigma_eps",
    ),
    "target of": (
        made(objective.target, "epsilon", PROCESS, X, X, 0.1, X),
        ValueError,
        r"predicts: 'epsilon'; one of x0, eps, vp_eps, v, residual, sigma_eps",
    ),
    "target at sigma = 0": (
        made(objective.target, "v", PROCESS, X, X, 0.0, X),
        ValueError,
        r"t: 0\.0; there is no v where sigma = 0",
    ),
    "bound of one step": (
        made(objective.bound_weights, "x0", PROCESS, [0.3, 0.0]),
        ValueError,
        r"times: \[0\.3, 0\.0\]; no step has noise",
    ),
    "respaced to one": (made(presets.resshift, 1), ValueError, r"steps: 1; 2 to T = 15 is needed"),
    "respaced to more": (made(presets.resshift, 5, 4), ValueError, r"steps: 5; 2 to T = 4 is needed"),
    "resshift T": (made(presets.resshift, 5, 10), ValueError, r"T: 10; 15 or 4"),
    "dossr steps": (made(presets.dossr, 500), ValueError, r"steps: 500; fewer than the 500 indices"),
    "dossr t1": (made(presets.dossr, 5, 1.5), ValueError, r"t1: 1\.5; a time in \(0, 1\]"),
}


test_before_the_first_model_call = wrong_calls(BEFORE)


def late(at, value):
    """A model that returns `value(x)` in step `at`."""
    calls = iter(range(100))
    return lambda x, x_hat0, t: value(x) if next(calls) == at else 0.5 * x


def writing(x, x_hat0, t):
    return x.clamp_(-1, 1)


BUFFER = torch.zeros(2, 3, 4, 4)
DENOISER = dosde.Denoiser(lambda x, x_hat0, t: x[:, :1], PROCESS, "v")
DURING = {
    "writes to x": (writing, ValueError, r"model: wrote to x at step 0, t = 0\.5"),
    "one buffer": (lambda x, h, t: BUFFER.copy_(0.5 * x), ValueError, r"model: wrote to an earlier output at step 1, t = 0\.4"),
    "shape of a network": (DENOISER, ValueError, r"net: returned shape \(2, 1, 4, 4\).* at t = 0\.5; .*\(2, 3, 4, 4\)"),
    "shape": (
        late(2, lambda x: x[..., :-1]),
        ValueError,
        r"model: returned .*\(2, 3, 4, 3\).* at step 2, t = 0\.3; .*\(2, 3, 4, 4\)",
    ),
    "broadcasting shape": (late(0, lambda x: x[:1]), ValueError, r"\(1, 3, 4, 4\).* at step 0, t = 0\.5"),
    "device": (late(1, lambda x: x.to("meta")), ValueError, r"on meta at step 1, t = 0\.4; .* on cpu"),
    "type": (late(1, lambda x: None), TypeError, r"model: returned a NoneType at step 1, t = 0\.4; a tensor"),
    "dtype": (late(1, lambda x: x.long()), TypeError, r"model: returned a int64 tensor .* at step 1, t = 0\.4; floats"),
    "nan": (late(3, lambda x: x * math.nan), ValueError, r"model: returned NaN or infinity at step 3, t = 0\.2"),
    "one nan": (late(1, lambda x: torch.where(x == x.max(), math.nan, x)), ValueError, r"at step 1, t = 0\.4"),
    "infinity": (late(4, lambda x: x / 0), ValueError, r"model: returned NaN or infinity at step 4, t = 0\.1"),
}


@pytest.mark.parametrize("name", DURING)
def test_a_model_that_misbehaves_is_named_with_step_and_time(name):
    wrong, kind, message = DURING[name]
    with pytest.raises(kind, match=message):
        dosde.solve(wrong, torch.randn(2, 3, 4, 4), 5, 3, process=None if wrong is DENOISER else PROCESS)


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize(
    ("wrong", "message"),
    [(torch.full_like(X, math.nan), "noise: the result is not finite"), (torch.zeros(1, 1, 1, 1), "noise: returned")],
    ids=["nan", "shape"],
)
def test_noise_that_is_not_finite_or_changes_shape_is_an_error(at, wrong, message):
    draws = iter([wrong if i == at else torch.zeros_like(X) for i in range(6)])
    with pytest.raises(ValueError, match=message):
        dosde.solve(
            lambda x, x_hat0, t: 0 * x_hat0,
            X,
            5,
            2,
            process=PROCESS,
            noise=lambda *args: next(draws),
            grid=[0.5, 0.4, 0.3, 0.2, 0.1, 0.05],
        )
