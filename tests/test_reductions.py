"""eta = 0 gives back plain diffusion: the published first-order steps of DPM-Solver++ (SDE) and DDIM."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dosde
from dosde import method, schedule, shift
from dosde.process import Process

PLAIN = Process(schedule.scaled_linear(), shift.none())
times = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).filter(lambda p: abs(p[0] - p[1]) > 1e-3)


def step(how, pair):
    s, t = max(pair), min(pair)
    return PLAIN(s), PLAIN(t), dosde.plan(PLAIN, 1, 1, method=how, grid=[s, t])[0]


@given(pair=times)
def test_sde_dpm_solver_pp_1(pair):
    """Lu et al. 2022, Eq. 18: x_t = sigma_t/sigma_s e^-h x_s + alpha_t (1 - e^-2h) x_theta + sigma_t sqrt(1 - e^-2h) z."""
    m, n, ours = step(method.dos, pair)
    h = float((n.alpha / n.sigma).log() - (m.alpha / m.sigma).log())
    assert ours.keep == pytest.approx(float(n.sigma / m.sigma) * math.exp(-h), rel=1e-12)
    assert ours.new[0] == pytest.approx(-float(n.alpha) * math.expm1(-2 * h), rel=1e-11)
    assert ours.noise == pytest.approx(float(n.sigma) * math.sqrt(-math.expm1(-2 * h)), rel=1e-11)
    assert ours.hat == 0


@given(pair=times)
def test_ddim(pair):
    """Song et al. 2021, Eq. 12 with sigma = 0: x_t = alpha_t x_theta + sigma_t (x_s - alpha_s x_theta)/sigma_s."""
    m, n, ours = step(method.ode, pair)
    assert ours.keep == pytest.approx(float(n.sigma / m.sigma), rel=1e-13)
    assert ours.new[0] == pytest.approx(float(n.alpha - n.sigma * m.alpha / m.sigma), rel=1e-10)
    assert (ours.noise, ours.hat) == (0, 0)


@given(pair=times)
def test_posterior_of_ddpm_is_solver_1(pair):
    _, _, dos = step(method.dos, pair)
    _, _, ddpm = step(method.resshift, pair)
    for name in ("keep", "noise"):
        assert getattr(dos, name) == pytest.approx(getattr(ddpm, name), rel=1e-11)
    assert dos.new[0] == pytest.approx(ddpm.new[0], rel=1e-11)


@given(pair=times)
def test_ddpm_posterior_as_published(pair):
    """Ho et al. 2020, Eq. 7: mean and variance of q(x_s | x_t, x_0) with the beta of a step from s to t."""
    m, n, ours = step(method.resshift, pair)
    ratio = float((m.alpha / n.alpha) ** 2)
    beta, before, after = 1 - ratio, float(n.alpha**2), float(m.alpha**2)
    assert ours.new[0] == pytest.approx(math.sqrt(before) * beta / (1 - after), rel=1e-9)
    assert ours.keep == pytest.approx(math.sqrt(ratio) * (1 - before) / (1 - after), rel=1e-9)
    assert ours.noise**2 == pytest.approx((1 - before) / (1 - after) * beta, rel=1e-9)
