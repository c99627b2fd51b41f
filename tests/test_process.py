"""The process: f, h, g satisfy the moment equations of Eq. 5; transitions and the chain; lam and its inverse; the score."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import FIELD_PROCESSES, PROCESS, PROCESSES, SHIFTS

import dosde
from dosde import schedule, shift
from dosde.process import Process

ALL = PROCESSES | FIELD_PROCESSES
inside = st.floats(0.02, 0.95)


@functools.lru_cache
def least_t1(name):
    """The time up to which a > 0 for every element."""
    process = ALL[name]
    return max(t / 1000 for t in range(1, 1001) if (process(t / 1000).a > 0).all()) if process.field_shape else process.t1


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=15)
@given(fraction=inside)
def test_moment_equations(name, fraction):
    """Along dx = (f x + h x_hat0) dt + g dw the mean a x0 + b x_hat0 and the variance sigma^2 obey their ODEs."""
    process = ALL[name]
    t = fraction * least_t1(name)
    f, h, g = process.f(t), process.h(t), process.g(t)
    d = 1e-6
    m, low, high = process(t), process(t - d), process(t + d)
    scale = 1 + f.abs() + h.abs()
    assert (((high.a - low.a) / (2 * d) - f * m.a).abs() < 1e-3 * scale).all()
    assert (((high.b - low.b) / (2 * d) - f * m.b - h).abs() < 1e-3 * scale).all()
    growth = (high.sigma**2 - low.sigma**2) / (2 * d)
    assert ((growth - 2 * f * m.sigma**2 - g**2).abs() < 1e-3 * (1 + growth.abs() + f.abs())).all()


@pytest.mark.parametrize("t1", [0.3, 0.5, 1.0])
@settings(max_examples=40)
@given(fraction=st.floats(0, 0.98))
def test_f_h_g_in_closed_form(t1, fraction):
    """Eq. 6 written out for scaled_linear and the cosine shift, t = 0 included."""
    process = Process(schedule.scaled_linear(), shift.cosine(t1))
    t = torch.tensor(fraction * t1, dtype=torch.float64)
    p, q = 0.00085**0.5, 0.012**0.5 - 0.00085**0.5
    beta = 1000 * (p + q * t) ** 2
    alpha = torch.exp(-1000 * t * (p * p + p * q * t + q * q * t * t / 3) / 2)
    w = math.pi / (2 * t1)
    rise = 2 * w * torch.tan(w * t)  # d eta/dt / (1 - eta)
    f = -beta / 2 - rise
    assert torch.allclose(process.f(t), f, rtol=1e-10)
    assert torch.allclose(process.h(t), alpha * rise, rtol=1e-10, atol=1e-90)
    assert torch.allclose(process.g(t) ** 2, beta + 2 * rise * (1 - alpha**2), rtol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_lam_rises(name):
    process = ALL[name]
    m = process(torch.linspace(0, process.t1, 400, dtype=torch.float64).reshape(-1, *[1] * len(process.field_shape)))
    assert (m.sigma[1:] * m.a[:-1] >= m.sigma[:-1] * m.a[1:]).all()
    if not process.field_shape:
        assert (m.lam[:-1].diff() > 0).all()


@pytest.mark.parametrize("name", ALL)
def test_a_solve_starts_where_eta_reaches_one(name):
    process = ALL[name]
    if name.endswith("-none"):
        assert process.t1 == 1
    elif not name.startswith("resshift"):
        assert (process(process.t1).a == 0).all()
        assert (process(process.t1 - 1e-3).a > 0).any()


def test_t1_of_a_bare_function_is_found():
    assert PROCESSES["linear-bare"].t1 == pytest.approx(0.5, abs=1e-8)
    assert SHIFTS["cosine"].t1 == 0.5


@pytest.mark.parametrize("name", PROCESSES)
@settings(max_examples=25)
@given(i=st.integers(1, 99), j=st.integers(1, 99))
def test_transition_and_chain_carry_one_marginal_to_the_next(name, i, j):
    process = PROCESSES[name]
    s, t = sorted((i / 101 * process.t1, j / 101 * process.t1))
    m, n = process(s), process(t)
    for law in (process.transition(s, t), process.chain(s, t)):
        assert float(law.on_x * m.a + law.on_x0) == pytest.approx(float(n.a), abs=1e-12)
        assert float(law.on_x * m.b + law.on_x_hat0) == pytest.approx(float(n.b), abs=1e-12)
        assert float((law.on_x * m.sigma) ** 2 + law.std**2) == pytest.approx(float(n.sigma**2), rel=1e-9, abs=1e-12)


def test_transition_and_chain_are_different_joint_laws():
    sde, chain = PROCESS.transition(0.1, 0.3), PROCESS.chain(0.1, 0.3)
    assert float(sde.on_x) < 0.8 * float(chain.on_x)
    assert float(sde.on_x0) == 0
    assert float(chain.on_x0) < 0


@given(s=st.floats(0.05, 0.45), t=st.floats(0.05, 0.45))
def test_chain_is_equation_3(s, t):
    process = Process(schedule.linear(), shift.cosine(0.5))
    s, t = min(s, t), max(s, t)
    m, n = process(s), process(t)
    law = process.chain(s, t)
    alpha, eta = n.alpha, n.b / n.alpha - m.b / m.alpha
    assert float(law.on_x) == pytest.approx(float(n.alpha / m.alpha), rel=1e-13)
    assert float(law.on_x_hat0) == pytest.approx(float(alpha * eta), abs=1e-14)
    assert float(law.on_x0) == pytest.approx(float(-alpha * eta), abs=1e-14)
    assert float(law.std**2) == pytest.approx(float(1 - (n.alpha / m.alpha) ** 2), abs=1e-13)


def test_transition_composes():
    p, q, whole = PROCESS.transition(0.1, 0.2), PROCESS.transition(0.2, 0.35), PROCESS.transition(0.1, 0.35)
    assert torch.allclose(q.on_x * p.on_x, whole.on_x)
    assert torch.allclose(q.on_x * p.on_x_hat0 + q.on_x_hat0, whole.on_x_hat0)
    assert torch.allclose((q.on_x * p.std) ** 2 + q.std**2, whole.std**2)


def test_samples_of_a_marginal_and_their_score():
    t = torch.tensor([0.05, 0.3], dtype=torch.float64)
    x0, x_hat0, z = (torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in range(3))
    x = PROCESS.sample(x0, x_hat0, t, z)
    for i in range(2):
        m = PROCESS(t[i])
        assert torch.allclose(x[i], m.a * x0[i] + m.b * x_hat0[i] + m.sigma * z[i])
    # The score of N(mean, sigma^2) is the gradient of its log density.
    y = x.clone().requires_grad_()
    m = PROCESS(0.3)
    density = -((y - m.a * x0 - m.b * x_hat0) ** 2).sum() / (2 * m.sigma**2)
    assert torch.allclose(PROCESS.score(x, x_hat0, x0, 0.3), torch.autograd.grad(density, y)[0])


@pytest.mark.parametrize("name", PROCESSES)
def test_time_inverts_lam(name):
    process = PROCESSES[name]
    t = torch.linspace(0.01, 0.9, 50, dtype=torch.float64) * process.t1
    assert torch.allclose(process.time(process(t).lam), t, rtol=1e-9)


def test_a_process_is_differentiable_in_t():
    t = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    m = PROCESS(t)
    slope = torch.autograd.grad(m.a.log(), t)[0]
    assert torch.allclose(slope, PROCESS.f(0.2))


@pytest.mark.parametrize("lam", [1e-13, 1e-9, 1e-3, 1.0, 1e3])
def test_time_has_relative_precision(lam):
    assert float(PROCESS(PROCESS.time(lam)).lam) == pytest.approx(lam, rel=1e-9)
    assert float(PROCESS.time(0.0)) == 0


def test_f_is_that_of_inference_mode():
    with torch.inference_mode():
        inside = [float(v(0.25)) for v in (PROCESS.f, PROCESS.h, PROCESS.g)]
    assert inside == [float(v(0.25)) for v in (PROCESS.f, PROCESS.h, PROCESS.g)]


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_a_keeps_its_digits_near_t1(gap):
    """1 - eta = cos^2(pi t / 2 t1) ~ (pi gap / 2)^2, and f = d log a/dt ~ -2/(t1 - t)."""
    t = 0.5 * (1 - gap)
    m, gap = PROCESS(t), (0.5 - t) / 0.5
    assert float(m.a / m.alpha) == pytest.approx(math.sin(math.pi / 2 * gap) ** 2, rel=1e-12)
    beta = 1000 * (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * t) ** 2
    assert float(PROCESS.f(t)) == pytest.approx(-beta / 2 - 2 * math.pi / math.tan(math.pi / 2 * gap), rel=1e-9)
    assert float(PROCESS(0.5).a) == 0


@given(t=st.floats(0, 1))
def test_shifts_are_their_formulas(t):
    time = torch.tensor(t, dtype=torch.float64)
    assert float(shift.linear(0.7)(time)) == pytest.approx(min(t / 0.7, 1))
    assert float(shift.cosine(0.7)(time)) == pytest.approx((1 - math.cos(math.pi * min(t / 0.7, 1))) / 2, abs=1e-15)
    assert float(shift.none()(time)) == 0


def test_grids_are_their_formulas():
    i = torch.arange(6, dtype=torch.float64) / 5
    log, karras = dosde.grid.log_lam(20, 0.1)(PROCESS, 6), dosde.grid.karras(20, 0.1, rho=7)(PROCESS, 6)
    assert torch.allclose(PROCESS(log[:-1]).lam, 20 * (0.1 / 20) ** i)
    assert torch.allclose(PROCESS(karras[:-1]).lam, (20 ** (1 / 7) + i * (0.1 ** (1 / 7) - 20 ** (1 / 7))) ** 7)
    assert log[-1] == karras[-1] == 0
    plain = Process(schedule.scaled_linear(), shift.none())
    assert float(dosde.grid.log_lam()(plain, 6)[0]) == pytest.approx(1)  # lam(1) = 14.6 is below 80
    assert torch.allclose(dosde.grid.uniform(PROCESS, 5), torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64))
