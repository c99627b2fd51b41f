"""Objects that remember: used twice, written to, or handed out, they change no solve without a word."""

import math

import numpy as np
import pytest
import torch

import dosde
from dosde import cold, expansion, grid, method, noise, objective, presets, schedule, shift, srk
from dosde.process import Process

PROCESS = Process(schedule.scaled_linear(), shift.cosine(0.5))
PLAIN = Process(schedule.linear(), shift.none())
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def gain(x, x_hat0, t):
    return 0.5 * x + 0.1 * x_hat0


def run(model=gain, x_hat0=X, steps=5, order=3, process=PROCESS, **options):
    return dosde.solve(model, x_hat0, steps, order, process=process, noise=torch.Generator().manual_seed(0), **options)


# -- Noise of two-call steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [PLAIN, PROCESS], ids=["finite lam", "infinite lam"])
def test_stages_serve_one_solve_after_the_other(process):
    own = srk.Stages(noise.Brownian(3))
    times = srk.two_stage(lambda process, steps: torch.linspace(process.t1, 0.1, steps + 1, dtype=torch.float64))

    def solved(draw):
        return dosde.solve(gain, X.double(), 6, 2, process=process, method=srk.srk, grid=times, noise=draw)

    first = solved(own)
    assert torch.equal(solved(own), first)
    assert torch.equal(solved(srk.Stages(noise.Brownian(3))), first)


def test_stages_serve_after_a_solve_that_broke_off():
    own = srk.Stages(noise.Brownian(3))
    calls = iter(range(10))

    def broken(x, x_hat0, t):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return gain(x, x_hat0, t)

    options = {"process": PLAIN, "method": srk.srk, "grid": srk.two_stage(grid.log_lam())}
    with pytest.raises(KeyboardInterrupt):
        dosde.solve(broken, X, 7, 2, noise=own, **options)
    again = dosde.solve(gain, X, 7, 2, noise=own, **options)
    assert torch.equal(again, dosde.solve(gain, X, 7, 2, noise=srk.Stages(noise.Brownian(3)), **options))


# -- Weights of an expansion --------------------------------------------------------------------------------------------------


def test_weights_follow_a_variable_that_changes():
    class Power:
        p = 1.0

        def __call__(self, lam):
            return lam**self.p

    variable = Power()
    lams = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    before = expansion.weights(lams, 3, 2, variable)
    variable.p = 0.5
    after = expansion.weights(lams, 3, 2, variable)
    assert not torch.allclose(before, after)
    assert torch.equal(after, expansion.weights(lams, 3, 2, lambda lam: lam**0.5))


def test_weights_that_are_changed_are_not_those_of_the_next_solve():
    lams = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    for variable in (expansion.lam, expansion.v(0.3)):
        one = expansion.weights(lams, 3, 2, variable)
        kept = one.clone()
        one.zero_()
        assert torch.equal(expansion.weights(lams, 3, 2, variable), kept)


# -- Callbacks and models -----------------------------------------------------------------------------------------------------


def test_a_callback_gets_copies():
    def callback(i, t, x, x_theta):
        x.zero_()
        x_theta.clamp_(0, 0)

    assert torch.equal(run(callback=callback), run())


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_model_that_writes_to_the_source_is_named(at):
    calls = iter(range(5))

    def model(x, x_hat0, t):
        if next(calls) == at:
            x_hat0.mul_(0.5)
        return gain(x, x_hat0, t)

    with pytest.raises(ValueError, match=rf"model: wrote to x_hat0 at step {at}, t = 0\.{5 - at}; x_hat0 is the source"):
        run(model, X.clone())


class Buffer:
    """A runtime whose output is always the same memory, which it fills without torch knowing."""

    def __init__(self):
        self.memory = np.zeros(X.shape, np.float32)

    def __call__(self, x, x_hat0, t):
        np.copyto(self.memory, gain(x, x_hat0, t).numpy())
        return torch.from_numpy(self.memory)


def test_a_static_buffer_is_refused_where_old_outputs_are_used():
    with pytest.raises(ValueError, match=r"model: returned the memory of an earlier output at step 1, t = 0\.4; return a copy"):
        run(Buffer())
    assert torch.equal(run(Buffer(), order=1), run(order=1))
    assert torch.equal(run(lambda x, x_hat0, t: x_hat0), run(lambda x, x_hat0, t: x_hat0.clone()))  # one that stays as it is
    buffer = Buffer()
    assert torch.equal(run(lambda x, x_hat0, t: buffer(x, x_hat0, t).clone()), run())


def test_parts_of_one_memory_are_outputs_of_their_own():
    whole = torch.empty(5, *X.shape)
    calls = iter(range(5))

    def model(x, x_hat0, t):
        part = torch.as_tensor(whole.numpy()[next(calls)])
        part.copy_(gain(x, x_hat0, t))
        return part

    assert torch.equal(run(model), run())


def test_a_plan_that_is_not_finite_is_the_methods_fault():
    def broken(marginals, order):
        plan = method.dos(marginals, order)
        plan[1] = type(plan[1])(**{**{name: getattr(plan[1], name) for name in plan[1].__slots__}, "hat": math.nan})
        return plan

    with pytest.raises(ValueError, match=r"method: step 1 is t 0\.4.* \+nan x_hat0.*; finite coefficients are needed"):
        run(method=broken)


# -- Defaults of torch --------------------------------------------------------------------------------------------------------


def plans():
    made = [dosde.plan(PROCESS, 5, 3), dosde.plan(PROCESS, 5, 3, **presets.few_step(0.2))]
    made.append(dosde.plan(PLAIN, 7, 2, method=srk.srk, grid=srk.two_stage(grid.log_lam())))
    made.append(dosde.plan(*[presets.dossr(5)[0], 5, 3], grid=presets.dossr(5)[1]))
    made.append(dosde.plan(presets.resshift(5)[0], 5, 1, method=method.resshift, grid=presets.resshift(5)[1]))
    channels = torch.tensor([0.3, 0.5], dtype=torch.float64, device="cpu").reshape(2, 1, 1)
    made.append(dosde.plan(Process(schedule.cosine(), shift.cosine(channels)), 4, 3, method=method.matched(0.3)))
    return made


def test_the_default_device_and_dtype_of_torch_change_no_plan():
    expected = plans()
    try:
        torch.set_default_device("meta")  # on which no number can be read: whatever is made there by default fails
        assert plans() == expected
    finally:
        torch.set_default_device(None)
    try:
        torch.set_default_dtype(torch.float64)
        assert plans() == expected
        assert torch.equal(run(), run())
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_default_device_of_torch_changes_nothing_else():
    z, t = torch.zeros(2, 3, 4, 4, device="cpu"), torch.tensor([0.2, 0.5], device="cpu")

    def made():
        bridge = dosde.process.bridge(schedule.linear())
        loss = objective.loss(X, "x0", PROCESS, z, X, t, X, weight=2.0)
        white = dosde.posterior.Covariance(0.25).given(X, torch.tensor(1.0, device="cpu"))
        return [run(steps=3, order=2, process=bridge), loss, white]

    expected = made()
    with torch.device("meta"):
        found = made()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_default_dtype_changes_no_sample():
    expected = run()
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(run(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_weight_of_a_loss_keeps_its_digits():
    x = torch.ones(2, 3, dtype=torch.float64)
    got = objective.loss(2 * x, "x0", PROCESS, x, x, 0.25, x, weight=0.1)
    assert torch.allclose(got, torch.full((2,), 0.1, dtype=torch.float64), rtol=1e-14)


def test_a_blur_is_itself_under_autocast():
    x0 = torch.rand(1, 3, 16, 16)
    degrade = cold.blur(2.0)
    x_hat0 = degrade(x0, torch.tensor(1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(degrade(x0, torch.tensor(1.0)), x_hat0)
        assert torch.allclose(cold.solve(lambda x, x_hat0, t: x0, x_hat0, degrade), x0, atol=1e-5)


# -- The index of a table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 4, 15, 1000])
def test_the_index_of_a_time_is_one_of_the_table(T):
    for i in range(T):
        assert schedule.table_index((i + 1) / T, T) == i
    times = torch.linspace(0, 1, 777, dtype=torch.float64)
    indices = [schedule.table_index(t, T) for t in times]
    assert indices == sorted(indices)
    assert indices[0] == 0
    assert indices[-1] == T - 1
    with pytest.raises(ValueError, match="T: 0; a positive integer"):
        schedule.table_index(0.5, 0)
