"""Schedules: the variance-preserving identity, digits near t = 0, tables through every node, derivatives."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from instances import SCHEDULES, TABLE
from scipy.interpolate import PchipInterpolator

from dosde import schedule
from dosde._pchip import pchip

VP = [name for name in SCHEDULES if name != "ve"]


def time(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("name", VP)
@given(t=st.floats(0, 1))
def test_alpha_and_sigma_preserve_variance(name, t):
    alpha, sigma = SCHEDULES[name](time(t))
    assert abs(float(alpha**2 + sigma**2) - 1) < 1e-15 * 4


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_starts_clean_and_rises(name):
    alpha, sigma = SCHEDULES[name](torch.linspace(0, 1, 2001, dtype=torch.float64))
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (sigma.diff() > 0).all()
    assert (alpha.diff() <= 0).all()


@pytest.mark.parametrize(
    ("name", "rate"),
    [("linear", 0.1), ("scaled_linear", 0.85), ("cosine", math.pi / 1.008 * math.tan(math.pi / 2 * 0.008 / 1.008))],
)
@pytest.mark.parametrize("t", [1e-6, 1e-12, 1e-30])
def test_sigma_keeps_its_digits_near_zero(name, rate, t):
    """sigma^2 = d sigma^2/dt (0) t + O(t^2), where 1 - alpha^2 has lost everything."""
    _, sigma = SCHEDULES[name](time(t))
    # The curvature of sigma^2 is below 1000 for every one of these.
    assert float(sigma**2 / (rate * t)) == pytest.approx(1, abs=1e-14 + 1000 * t / rate)


@given(t=st.floats(1e-3, 1))
def test_linear_and_scaled_linear_integrate_their_beta(t):
    x = torch.linspace(0, t, 20001, dtype=torch.float64)
    for made, beta in (
        (schedule.linear(), 1e-4 + (0.02 - 1e-4) * x),
        (schedule.scaled_linear(), (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * x) ** 2),
    ):
        alpha, _ = made(time(t))
        assert float(-2 * alpha.log()) == pytest.approx(1000 * float(torch.trapezoid(beta, x)), rel=1e-6)


def test_cosine_is_the_published_formula():
    t = torch.linspace(0, 0.99, 100, dtype=torch.float64)
    alpha, _ = schedule.cosine()(t)

    def published(t):
        return torch.cos((t + 0.008) / 1.008 * math.pi / 2)

    assert torch.allclose(alpha, published(t) / published(time(0.0)), rtol=1e-13, atol=0)


def test_continuous_schedules_are_the_limits_of_their_tables():
    """The docstring's claim: alpha within half a per cent of the table up to t = 1/2, within four after."""
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    for made, betas in (
        (schedule.linear(), torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
        (schedule.scaled_linear(), torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2),
    ):
        alpha, _ = made(t)
        error = (alpha / torch.cumprod(1 - betas, 0).sqrt() - 1).abs()
        assert float(error[:500].max()) < 0.005
        assert float(error.max()) < 0.04


def test_a_table_is_met_at_every_node():
    t = (torch.arange(200, dtype=torch.float64) + 1) / 200
    alpha, _ = SCHEDULES["table"](t)
    assert torch.allclose(alpha**2, TABLE, rtol=2e-15, atol=0)


def test_a_table_is_continuously_differentiable():
    def slope(t):
        t = t.clone().requires_grad_()
        return torch.autograd.grad(SCHEDULES["table"](t)[0].sum(), t)[0]

    nodes = torch.arange(1, 200, dtype=torch.float64) / 200
    before, after = slope(nodes - 1e-9), slope(nodes + 1e-9)
    assert torch.allclose(before, after, rtol=1e-5)
    assert float(slope(time(0.0))) < 0


def test_pchip_is_scipys():
    x = torch.tensor([0.0, 0.1, 0.15, 0.4, 0.6, 1.0], dtype=torch.float64)
    for y in ([0, 1, 1, 2, 5, 5.5], [0, 3, 1, 1, -2, 4], [1, 0.5, 0.4, 0.1, 0.09, 0.0]):
        y = torch.tensor(y, dtype=torch.float64)
        t = torch.linspace(0, 1, 501, dtype=torch.float64)
        expected = torch.from_numpy(PchipInterpolator(x.numpy(), y.numpy())(t.numpy()))
        assert torch.allclose(pchip(x, y)(t), expected, rtol=0, atol=1e-14)
        assert torch.equal(pchip(x, y)(x), y)
