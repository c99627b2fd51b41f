"""The identities of a step: on the marginal of s with x_theta = x0, every step of every process gives the marginal of t."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from instances import FIELD_PROCESSES, GRIDS, METHODS, MOST, PROCESS, PROCESSES

import dosde
from dosde import method, schedule, shift
from dosde.process import Process

pytestmark = pytest.mark.filterwarnings("ignore:order")  # the identities hold for plans that amplify, too


def stacked(process, times):
    return process(times.reshape(-1, *[1] * len(process.field_shape)))


def as_tensor(values):
    return torch.stack(torch.broadcast_tensors(*[torch.as_tensor(v, dtype=torch.float64) for v in values]))


def residuals(process, times, steps):
    """Of keep a_s + sum new = a_t, keep b_s + hat = b_t, keep^2 sigma_s^2 + noise^2 = sigma_t^2, over the sizes involved."""
    m = stacked(process, times)
    keep, hat, noise = (as_tensor([getattr(s, name) for s in steps]) for name in ("keep", "hat", "noise"))
    total = as_tensor([sum(s.new) for s in steps])
    size = as_tensor([sum(abs(w) for w in s.new) for s in steps])
    a, b, sigma = m.a, m.b, m.sigma

    def fit(v):
        return v.reshape(v.shape + (1,) * (a.ndim - v.ndim))

    keep, hat, noise, total, size = map(fit, (keep, hat, noise, total, size))
    return (
        (keep * a[:-1] + total - a[1:]).abs() / (1 + size),
        (keep * b[:-1] + hat - b[1:]).abs(),
        (keep**2 * sigma[:-1] ** 2 + noise**2 - sigma[1:] ** 2).abs() / (1 + sigma[1:] ** 2),
    )


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=40)
@given(data=st.data())
def test_identities(name, data):
    """Over processes (fields too), grids, step counts and orders; both ends, a = 0 and t = 0, are on the uniform grid."""
    processes = PROCESSES | FIELD_PROCESSES
    process = processes[data.draw(st.sampled_from(sorted(processes)))]
    grids = ["uniform", "times"] if process.field_shape else sorted(GRIDS)
    grid = GRIDS[data.draw(st.sampled_from(grids))]
    steps = data.draw(st.integers(1, 16))
    order = data.draw(st.integers(1, min(steps, MOST.get(name, 5))))
    times = grid(process, steps)
    plan = dosde.plan(process, steps, order, method=METHODS[name], grid=times)
    assert len(plan) == steps
    for residual in residuals(process, times, plan):
        assert float(residual.max()) <= 1e-11


@pytest.mark.parametrize("name", ["dos", "adams", "ode", "ode_v"])
@settings(max_examples=50)
@given(
    t1=st.floats(0.05, 1),
    beta=st.tuples(st.floats(1e-5, 0.1), st.floats(1e-5, 0.5)),
    times=st.lists(st.floats(0, 1), min_size=4, max_size=12, unique=True),
    order=st.integers(1, 3),
    end=st.booleans(),
)
def test_identities_on_any_schedule_shift_and_times(name, t1, beta, times, order, end):
    low, high = sorted(beta)
    assume(high > low * 1.01)
    process = Process(schedule.linear(low, high), shift.cosine(t1))
    times = sorted({round(t, 6) for t in times if 1e-3 < t < 0.999}, reverse=True)
    assume(len(times) >= 3)
    grid = torch.tensor([t1, *(t * t1 for t in times), *([0.0] if end else [])], dtype=torch.float64)
    plan = dosde.plan(process, len(grid) - 1, order, method=METHODS[name], grid=grid)
    for residual in residuals(process, grid, plan):
        assert float(residual.max()) <= 1e-11


@pytest.mark.parametrize("name", METHODS)
def test_a_step_from_eta_1_forgets_x_or_keeps_its_noise(name):
    """At a_s = 0, rho = 0: the SDE (and resshift, in part) draws new noise, the ODE keeps the old; nothing is infinite."""
    first, last = dosde.plan(PROCESS, 1, 1, method=METHODS[name], grid=[0.5, 0.0])[0], PROCESS(0.2)
    assert (first.keep, first.hat, first.new, first.noise) == (0, 0, (1.0,), 0)
    step = dosde.plan(PROCESS, 1, 1, method=METHODS[name], grid=[0.5, 0.2])[0]
    if name.startswith("ode"):
        assert step.keep == pytest.approx(float(last.sigma / PROCESS(0.5).sigma), rel=1e-15)
        assert step.noise == 0
    elif name not in ("resshift", "adams_chain", "adams_er"):
        assert step.keep == 0
        assert step.noise == pytest.approx(float(last.sigma), rel=1e-15)


def test_a_field_is_its_elements():
    """Each element of a field of eta gets the coefficients that a process of that eta alone has."""
    t1 = torch.tensor([0.3, 0.6, 0.6, 0.45], dtype=torch.float64)
    times = torch.tensor([0.6, 0.5, 0.42, 0.29, 0.2, 0.1, 0.0], dtype=torch.float64)
    field = Process(schedule.scaled_linear(), shift.cosine(t1))
    for name, how in METHODS.items():
        order = MOST.get(name, 3)
        plan = dosde.plan(field, 6, order, method=how, grid=times)
        for j, own in enumerate(t1.tolist()):
            start = int((times >= own).sum()) - 1  # the last time at which this element has a = 0
            alone = Process(schedule.scaled_linear(), shift.cosine(own))
            expected = how([alone(t) for t in times[start:]], order)
            for k, step in enumerate(expected):
                got = plan[start + k]
                for attribute in ("keep", "hat", "noise"):
                    value = torch.as_tensor(getattr(got, attribute), dtype=torch.float64).expand(4)[j]
                    assert float(value) == pytest.approx(getattr(step, attribute), abs=1e-13)
                new = [float(torch.as_tensor(w, dtype=torch.float64).expand(4)[j]) for w in got.new]
                assert new[: len(step.new)] == pytest.approx(list(step.new), rel=1e-12, abs=1e-12)
                assert new[len(step.new) :] == pytest.approx([0] * (len(new) - len(step.new)), abs=1e-12)


def test_methods_take_marginals():
    marginals = [PROCESS(t) for t in (0.5, 0.3, 0.1, 0.0)]
    assert method.dos(marginals, 2) == dosde.plan(PROCESS, 3, 2, grid=[0.5, 0.3, 0.1, 0.0])


@pytest.mark.parametrize(
    ("how", "order", "steps", "most"),
    [("dos", 3, 5, 3), ("adams", 3, 5, 3.5), ("dos", 2, 1000, 6), ("dos", 3, 1000, 21), ("adams", 3, 1000, 27.5)],
)
def test_errors_of_the_model_are_multiplied_by_at_most(how, order, steps, most):
    """sum |new| / a_t on the default grid, as docs/methods.md says; the largest is that of the last step, to t = 0."""
    plan = dosde.plan(PROCESS, steps, order, method=METHODS[how])
    sizes = [sum(map(abs, step.new)) / float(PROCESS(step.t_next).a) for step in plan]
    assert 0.9 * most < max(sizes) <= most
    assert max(sizes) == sizes[-1]
