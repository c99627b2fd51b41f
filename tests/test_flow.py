"""The rectified flow from the source: identities, orders, the law that it transports, and what does not go with it."""

import math
import re
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from instances import FIELDS, PROCESS, randn, seeded
from scipy.integrate import solve_ivp

import dosde
from dosde import expansion, method, objective, prediction, process, schedule, shift
from dosde.prediction import convert


def corrected(marginals, order):
    return method.flow(marginals, order, corrector=True)


SHIFTS = {"linear": shift.linear(), "early": shift.linear(0.7), "cosine": shift.cosine(1.0), **FIELDS}
SLOW = process.flow(shift=shift.cosine(1.0))


class Gaussian:
    """(x0, x_hat0) jointly Gaussian with means m0, m1, stds s0, s1 and covariance c; the network sees x_t alone."""

    def __init__(self, flow, m0=0.7, m1=-0.4, s0=0.5, s1=0.8, c=0.1):
        self.process, self.m0, self.m1, self.s0, self.s1, self.c = flow, m0, m1, s0, s1, c

    def __call__(self, x, x_hat0, t):
        m = self.process(t)
        variance = m.a**2 * self.s0**2 + m.b**2 * self.s1**2 + 2 * m.a * m.b * self.c + m.sigma**2
        gain = (m.a * self.s0**2 + m.b * self.c) / variance
        return self.m0 + gain * (x - m.a * self.m0 - m.b * self.m1)

    def transported(self, x_hat0):
        """Monotone from the law of x_hat0 to that of x0: x_t is N(mean, std^2), and a linear flow keeps (x - mean)/std."""
        return self.m0 + self.s0 / self.s1 * (x_hat0 - self.m1)


class Mixture:
    """x0 from two values, x_hat0 = N(x0/2, s1^2): E[x0 | x_t] in closed form, not linear."""

    values, s1 = (-1.0, 1.5), 0.6

    def __init__(self, flow):
        self.process = flow

    def __call__(self, x, x_hat0, t):
        m = self.process(t)
        value = torch.tensor(self.values, dtype=torch.float64).reshape(2, *[1] * x.ndim)
        logits = -((x - (m.a + m.b / 2) * value) ** 2) / (2 * (m.b * self.s1) ** 2)
        return (torch.softmax(logits, 0) * value).sum(0)


@given(data=st.data(), kappa=st.sampled_from([0.0, 0.3]), corrector=st.booleans())
def test_identities(data, kappa, corrector):
    """keep a_s + sum new = a_t, keep b_s + hat = b_t, no noise, hat = 0: for any eta, fields too, times, order."""
    flow = process.flow(kappa, SHIFTS[data.draw(st.sampled_from(sorted(SHIFTS)))])
    steps = data.draw(st.integers(1, 20))
    order = data.draw(st.integers(1, min(steps, 4)))
    inner = data.draw(st.lists(st.integers(1, 999), min_size=steps - 1, max_size=steps - 1, unique=True))
    times = torch.tensor([flow.t1, *(i / 1000 * flow.t1 for i in sorted(inner, reverse=True)), 0.0], dtype=torch.float64)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "order: .* multiplies errors")  # these times lie anyhow
        plan = dosde.plan(flow, steps, order, method=corrected if corrector else method.flow, grid=times)
    for step in plan:
        m, n = flow(step.t), flow(step.t_next)
        size = sum(torch.as_tensor(w).abs() for w in step.new) + 1
        assert ((step.keep * m.a + sum(step.new) - n.a).abs() <= 1e-12 * size).all()
        assert ((step.keep * m.b + step.hat - n.b).abs() <= 1e-14).all()
        assert ((step.keep * m.sigma - n.sigma).abs() <= 1e-14).all()
        assert not torch.as_tensor(step.hat).any()
        assert step.noise == 0


@pytest.mark.parametrize(("order", "flow", "corrector", "expected"), [
    (1, process.flow(), False, 1), (2, process.flow(), False, 2), (1, process.flow(), True, 2),
    *((order, SLOW, False, order) for order in (1, 2, 3, 4)), *((order, SLOW, True, order + 1) for order in (1, 2, 3)),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:order")
def test_orders(order, flow, corrector, expected):
    """Against the closed form, in which the law of x_hat0 becomes that of x0."""
    model, x_hat0 = Gaussian(flow, c=0.1), torch.tensor([-1.3, 0.4, 2.0], dtype=torch.float64)
    how, errors = corrected if corrector else method.flow, []
    for steps in (32, 64, 128):
        x0 = dosde.solve(model, x_hat0, steps, order, process=flow, method=how)
        errors.append(float((x0 - model.transported(x_hat0)).abs().max()))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(expected, abs=0.2)
    assert errors[2] > 1e-11


@given(s0=st.floats(0.2, 2), s1=st.floats(0.2, 2), correlation=st.floats(-0.3, 0.9), means=st.tuples(*[st.floats(-2, 2)] * 2))
def test_it_takes_the_law_of_the_source_to_that_of_x0(s0, s1, correlation, means):
    """N(m1, s1^2) becomes N(m0, s0^2), monotone, whatever the covariance of the two."""
    model, x_hat0 = Gaussian(SLOW, *means, s0, s1, correlation * s0 * s1), torch.tensor([-1.3, 0.4], dtype=torch.float64)
    x0 = dosde.solve(model, x_hat0, 80, 2, process=SLOW, method=method.flow)
    assert torch.allclose(x0, model.transported(x_hat0), rtol=0, atol=0.01 * (1 + s0 / s1) * 4)


@pytest.mark.parametrize("model", [Gaussian, Mixture])
def test_the_ode_integrated_by_scipy(model):
    """dx/dt = (x - x_theta)/t down to t = 0.1, where scipy knows nothing of steps, keep or new."""
    model, x_hat0 = model(SLOW), torch.linspace(-1.5, 2, 8, dtype=torch.float64)

    def velocity(eta, x):
        t = math.acos(1 - 2 * eta) / math.pi  # eta = (1 - cos(pi t))/2
        x_theta = model(torch.from_numpy(x), x_hat0, torch.tensor(t, dtype=torch.float64))
        return (x - x_theta.numpy()) / eta

    end = float(SLOW(0.2).b)
    expected = solve_ivp(velocity, (1, end), x_hat0.numpy(), rtol=1e-11, atol=1e-12, method="DOP853").y[:, -1]
    errors = []
    for steps in (64, 128, 256):
        grid = torch.linspace(1, 0.2, steps + 1, dtype=torch.float64)
        x = dosde.solve(model, x_hat0, steps, 3, process=SLOW, method=method.flow, grid=grid)
        errors.append(np.abs(x.numpy() - expected).max())
    assert errors[-1] < 1e-5
    assert math.log2(errors[1] / errors[2]) == pytest.approx(3, abs=0.2)


def test_the_law_of_the_mixture():
    """x0 takes two values with equal odds; from fresh sources the flow that sees x_t alone ends at both, half of them each."""
    generator = seeded(0)
    which = torch.rand(4000, 1, generator=generator, dtype=torch.float64) < 0.5
    truth = torch.where(which, *Mixture.values)
    x_hat0 = truth / 2 + Mixture.s1 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    x0 = dosde.solve(Mixture(SLOW), x_hat0, 50, 2, process=SLOW, method=method.flow)
    low, high = ((x0 - value).abs() < 0.02 for value in Mixture.values)
    assert float((low | high).double().mean()) > 0.99
    assert float(low.double().mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("predicts", ["x0", "flow"])
def test_one_step_is_the_regression_mean(predicts):
    """From t = 1 to 0 in one: x_theta at the source, and x_hat0 - v where the network is the velocity v."""
    flow = process.flow()
    x_hat0, value = randn(2, 3, 4, 4), randn(2, 3, 4, 4)
    x0 = dosde.solve(dosde.Denoiser(lambda x, x_hat0, t: value, flow, predicts), x_hat0, 1, 1, method=method.flow)
    assert torch.allclose(x0, value if predicts == "x0" else x_hat0 - value, rtol=1e-14)


def test_order_1_is_euler_in_the_velocity():
    """x_t = x_s + (t - s) v, to rounding, and starts at x_hat0 with no noise drawn."""

    def net(x, x_hat0, t):
        return torch.tanh(x * (1 + t)) - 0.3 * x_hat0

    def refused(u, u_next, like):
        raise AssertionError("noise was drawn")

    flow, x_hat0 = process.flow(), randn(2, 3)
    x0 = dosde.solve(dosde.Denoiser(net, flow, "flow"), x_hat0, 7, 1, method=method.flow, noise=refused)
    x, times = x_hat0, torch.linspace(1, 0, 8, dtype=torch.float64)
    for s, t in pairwise(times):
        x = x + (t - s) * net(x, x_hat0, s)
    assert torch.allclose(x0, x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_is_the_ode_of_diffusion_whose_noise_is_the_source(order):
    """Plain diffusion with a = 1 - t, sigma = t, started at the noise z = x_hat0, by method.ode."""
    model, x_hat0 = Mixture(process.flow()), randn(5)
    ours = dosde.solve(model, x_hat0, 12, order, process=model.process, method=method.flow)
    diffusion = dosde.Process(lambda t: (1 - t, t), shift.none())
    theirs = dosde.solve(
        model.__call__, x_hat0, 12, order, process=diffusion, noise=lambda u, u_next, like: x_hat0,
        method=lambda m, order: method.ode(m, order, variable=expansion.eta),
    )  # fmt: skip
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_with_noise_it_is_the_probability_flow_ode(order):
    kappa = 0.4
    flow, x_hat0, z = process.flow(kappa), randn(2, 3), randn(2, 3)

    def model(x, x_hat0, t):
        return (0.6 * x + 0.3 * x_hat0).tanh()

    def ode(marginals, order):
        return method.ode(marginals, order, variable=lambda lam: 1 / (1 + kappa / lam))

    ours, theirs = (
        dosde.solve(model, x_hat0, 9, order, process=flow, method=how, noise=lambda u, u_next, like: z)
        for how in (method.flow, ode)
    )
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_network_that_sees_the_source_too_makes_it_a_regression(steps):
    """E[x0 | x_t, x_hat0] = (x_t - t x_hat0)/(1 - t) below t = 1: the flow stays at E[x0 | x_hat0], whatever the steps."""
    x_hat0 = randn(4)
    mean = 0.3 * x_hat0 + 0.1

    def model(x, x_hat0, t):
        return mean if t == 1 else (x - t * x_hat0) / (1 - t)

    x0 = dosde.solve(model, x_hat0, steps, 1, process=process.flow(), method=method.flow)
    assert torch.allclose(x0, mean, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["x0", "eps", "vp_eps", "v", "score", "residual", "sigma_eps", "flow"])
@pytest.mark.parametrize("name", ["flow", "dossr"])
def test_conversions_of_the_velocity(kind, name):
    one = process.flow(0.3) if name == "flow" else PROCESS
    m = one(0.3)
    x, x_hat0, x0 = randn(3, 4), randn(3, 4), randn(3, 4)
    flow = (x - m.alpha * x0) / m.b
    eps = (x - m.a * x0 - m.b * x_hat0) / m.sigma
    assert torch.allclose(flow, x_hat0 - x0 + m.sigma / m.b * eps)
    value = convert(x0, x, x_hat0, m, "x0", kind)
    assert torch.allclose(convert(value, x, x_hat0, m, kind, "flow"), flow)
    assert torch.allclose(convert(flow, x, x_hat0, m, "flow", kind), value)


@pytest.mark.parametrize("kappa", [0.0, 0.3])
def test_its_target_leads_back_to_x0(kappa):
    flow = process.flow(kappa)
    x0, x_hat0, z = randn(3, 2, 3, 4)
    t = torch.tensor([0.2, 1.0], dtype=torch.float64)
    x, v = flow.sample(x0, x_hat0, t, z), objective.target("flow", flow, x0, x_hat0, t, z)
    assert torch.allclose(v, x_hat0 + kappa * z - x0)
    assert torch.allclose(convert(v, x, x_hat0, flow(t.reshape(2, 1, 1)), "flow", "x0"), x0)
    # the forward equation without noise, dx/dt = (x_hat0 - x)/(1 - t)
    if kappa == 0:
        assert (float(flow.f(0.2)), float(flow.h(0.2)), float(flow.g(0.2))) == pytest.approx((-1.25, 1.25, 0))


X = torch.zeros(2, 3)
FLOW = process.flow()


def never(x, x_hat0, t):
    raise AssertionError("the model was called")


@pytest.mark.parametrize(("call", "message"), [
    (lambda: dosde.solve(never, X, process=FLOW), "method: the process has no noise"),
    *((lambda how=how: dosde.solve(never, X, 2, 1, process=FLOW, method=how), "method: the process has no noise")
      for how in (method.adams, method.ode, method.resshift, method.matched(0.2))),
    (lambda: dosde.solve(never, X, process=PROCESS, method=method.flow), "method: flow needs sigma = 0, or sigma in"),
    (lambda: dosde.plan(dosde.Process(schedule.linear(), shift.none()), method=method.flow), "method: flow needs sigma = 0"),
    (lambda: dosde.plan(FLOW, grid=dosde.grid.karras(), method=method.flow), "lam: sigma = 0 at all times"),
    (lambda: dosde.solve(never, X, process=FLOW, **dosde.presets.few_step(0.2)), "lam: sigma = 0 at all times"),
    (lambda: dosde.plan(process.flow(shift=shift.linear(0.5)), 2, method=method.flow, grid=[1, 0.7, 0]), "has b/a = inf; b/a"),
    (lambda: dosde.plan(process.flow(shift=shift.none()), method=method.flow), "b/a must fall"),
    *((lambda kind=kind: dosde.Denoiser(never, FLOW, kind), f"predicts: '{kind}' on a process with sigma = 0; x0 or flow")
      for kind in ("eps", "vp_eps", "v", "residual", "sigma_eps")),
    (lambda: process.flow(-1.0), "kappa: -1.0"),
    (lambda: convert(X, X, X, PROCESS(0.0), "x0", "flow"), "t: 0; b = 0 there, where there is no flow"),
    (lambda: prediction.to_x0("flow", dosde.Process(schedule.linear(), shift.none())(0.5)), "b = 0 there"),
    (lambda: objective.target("flow", PROCESS, X, X, 0.0, X), "there is no flow where b = 0"),
    (lambda: FLOW.score(X, X, X, 0.5), "the score is infinite"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call()
    assert "\n" not in str(error.value)
