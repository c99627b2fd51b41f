"""The weights of the nonlinear integral: closed forms, polynomial exactness, one quadrature for all ratios of lam."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from instances import tensor
from numpy.polynomial import Polynomial
from scipy.integrate import quad

from dosde import expansion
from dosde.expansion import weights

VARIABLES = {"lam": expansion.lam, "log_lam": expansion.log_lam, "v": expansion.v(0.7), "sqrt_v": expansion.sqrt_v(0.7)}


# lam at the times of a grid: decreasing, by factors from 1.01 to 50
paths = st.lists(st.floats(0.01, 4), min_size=4, max_size=6).map(
    lambda logs: tensor([math.exp(3 - sum(logs[:i])) for i in range(len(logs) + 1)])
)


@given(lams=paths)
def test_dos_is_equations_41_to_49(lams):
    """The paper's closed forms of the second and third solver, with its difference quotients."""
    w = weights(lams, 3, power=2, taylor=True)
    for n in range(2, len(lams) - 1):
        q, r, s, t = lams[n - 2 : n + 2].tolist()
        x = np.eye(3)  # outputs at s, r, q as basis vectors
        D, D_before = (x[0] - x[1]) / (s - r), (x[1] - x[2]) / (r - q)
        U = (D - D_before) / ((s - q) / 2)
        second = (s - 3 * t) * (s - t) / 2 - t**2 * math.log(t / s)
        expected = (1 - t**2 / s**2) * x[0] - (t - s) ** 2 / s * D + second * U
        size = np.abs(expected).max() + abs(second) * np.abs(U).max()
        # The closed form itself loses digits as t -> s: (s - 3t)(s - t)/2 cancels against the logarithm.
        lost = 4e-15 * s**2 * np.abs(U).max()
        assert np.abs(w[:, n].numpy() - expected).max() <= 1e-12 * size + lost


@given(lams=paths, power=st.sampled_from([1, 2]))
def test_first_order_is_the_weight_of_the_step(lams, power):
    rho = lams[1:] / lams[:-1]
    assert torch.allclose(weights(lams, 1, power)[0], 1 - rho**power, rtol=1e-14, atol=0)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("power", [1, 2])
@given(lams=paths, order=st.integers(1, 5), coefficients=st.lists(st.floats(-1, 1), min_size=5, max_size=5))
def test_exact_for_polynomials_below_the_order(variable, power, lams, order, coefficients):
    """With x_theta a polynomial of degree < k in v, order k is exact once it has k outputs."""
    v = VARIABLES[variable]
    w = weights(lams, order, power, v)
    p = Polynomial(coefficients[:order])
    for n in range(order - 1, len(lams) - 1):
        s, t = float(lams[n]), float(lams[n + 1])

        def integrand(tau, t=t):
            return float(p(float(v(tensor(t * math.exp(tau)))))) * power * math.exp(-power * tau)

        exact = quad(integrand, 0, math.log(s / t), epsabs=1e-13, epsrel=1e-12, limit=200)[0]
        outputs = [float(p(float(v(lams[n - i])))) for i in range(order) if n - i >= 0]
        terms = [float(w[i, n]) * x for i, x in enumerate(outputs)]
        assert abs(sum(terms) - exact) <= 1e-11 * (1 + sum(map(abs, terms)))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5])
def test_small_steps_keep_their_digits(power, gap):
    """In lam the moments are hypergeometric: int (1 - lam)^n p rho^p lam^(-p-1) dlam, no cancellation in the series."""
    lams = tensor([(1 - gap) ** i for i in range(4)])
    got = weights(lams / lams[2], 3, power, taylor=True)[:, 2]
    h = gap
    # With mu = lam/lam_s = 1 - h x: int_0^1 (h x)^n p rho^p (1 - h x)^(-p-1) h dx, by a long Gauss rule.
    x, wx = np.polynomial.legendre.leggauss(40)
    x, wx = (x + 1) / 2, wx / 2
    kernel = power * (1 - h) ** power * (1 - h * x) ** (-power - 1) * h * wx
    moments = [float((kernel * (-h * x) ** n).sum()) for n in range(3)]
    s, r, q = 1.0, 1 / (1 - h), 1 / (1 - h) ** 2
    first = np.array([1 / (s - r), 1 / (r - s), 0])
    second = np.array([1 / ((s - r) * (s - q)), 1 / ((r - s) * (r - q)), 1 / ((q - s) * (q - r))])
    expected = moments[0] * np.array([1, 0, 0]) + moments[1] * first + moments[2] * second
    assert np.abs(got.numpy() - expected).max() < 1e-15 / gap + 1e-13 * np.abs(expected).max()


def test_the_ends_are_finite_and_the_limits_of_what_lies_inside():
    """From lam = infinity to lam = 0: nodes at infinity drop out in lam; at lam = 0 the polynomial is extrapolated to 0."""
    for power in (1, 2):
        for taylor in (False, True):
            ends = weights(tensor([math.inf, 3.0, 1.0, 0.4, 0.0]), 3, power, taylor=taylor)
            near = weights(tensor([1e14, 3.0, 1.0, 0.4, 1e-14]), 3, power, taylor=taylor)
            assert torch.allclose(ends, near, atol=1e-10)
            assert torch.allclose(ends.sum(0), tensor([1.0, *(1 - (tensor([1 / 3, 0.4]) ** power)), 1.0]))
    lagrange = (0 - 1.0) * (0 - 3.0) / ((0.4 - 1) * (0.4 - 3.0))
    assert float(weights(tensor([3.0, 1.0, 0.4, 0.0]), 3, 1)[0, 2]) == pytest.approx(lagrange, rel=1e-13)


def test_log_lam_falls_to_first_order_at_lam_0_and_v_stays_regular_at_infinity():
    lams = tensor([math.inf, 3.0, 1.0, 0.0])
    assert weights(lams, 3, 2, expansion.log_lam)[:, 2].tolist() == [1, 0, 0]
    bounded = weights(lams, 3, 2, expansion.v(0.7))
    assert float(bounded[1, 1].abs()) > 1e-3  # the output at infinity is used
    assert bounded.isfinite().all()


def test_a_clock_that_stands_still_costs_nothing():
    """Elements of a field may have lam = infinity at several times: the step there is empty, and the node not counted twice."""
    still = weights(tensor([math.inf, math.inf, 3.0, 1.0, 0.5]), 3, 2, expansion.v(0.7))
    assert still[:, 0].tolist() == [0, 0, 0]
    moving = weights(tensor([math.inf, 3.0, 1.0, 0.5]), 3, 2, expansion.v(0.7))
    assert torch.allclose(still[:, 1:3], moving[:, :2])
    assert torch.allclose(still[:, 3], moving[:, 2])
