"""Cold diffusion: what Algorithm 2 is exact for, its identity with the flow's step, and the blur."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from instances import randn
from scipy import ndimage

import dosde
from dosde import cold, method, process

TIME = torch.tensor(0.7, dtype=torch.float64)


def wrong(x, x_hat0, t):
    """A network that errs."""
    return torch.tanh(1.3 * x + 0.2 * x_hat0) + 0.1 * t


@given(
    steps=st.integers(1, 12), naive=st.booleans(), inner=st.lists(st.floats(0.01, 0.99), min_size=12, max_size=12, unique=True)
)
def test_a_perfect_model_stays_on_the_path(steps, naive, inner):
    """x_theta = x0: every state is D(x0, t), by both algorithms."""
    degrade, truth = cold.blur(1.5), randn(1, 2, 8, 6)
    grid, seen = [1.0, *sorted(inner, reverse=True)[: steps - 1], 0.0], []
    x0 = cold.solve(
        lambda x, x_hat0, t: truth, degrade(truth, torch.tensor(1.0)), degrade, steps,
        grid=grid, naive=naive, callback=lambda i, t, x, x_theta: seen.append((t, x)),
    )  # fmt: skip
    assert torch.allclose(x0, truth, rtol=0, atol=1e-13)
    assert all(torch.allclose(x, degrade(truth, t), rtol=0, atol=1e-13) for t, x in seen)
    assert [float(t) for t, _ in seen] == grid[:-1]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_algorithm_2_is_exact_for_any_model_where_degradation_is_one_direction(steps):
    """Bansal et al., section 3.3: D = x0 + t e; the naive algorithm is not."""
    truth, e = randn(2, 1, 3, 4, 4)

    def degrade(x0, t):
        return x0 + t * e

    assert torch.allclose(cold.solve(wrong, truth + e, degrade, steps), truth, rtol=0, atol=1e-14)
    assert not torch.allclose(cold.solve(wrong, truth + e, degrade, steps, naive=True), truth, atol=0.1)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_on_an_interpolation_it_is_eulers_step_of_the_flow(steps):
    """One network of the velocity: x_theta = x_hat0 - v there, and `predicts="flow"` here."""
    x_hat0 = randn(2, 3, 4, 4)
    ours = cold.solve(lambda x, x_hat0, t: x_hat0 - wrong(x, x_hat0, t), x_hat0, cold.interpolation(x_hat0), steps)
    model = dosde.Denoiser(wrong, process.flow(), "flow")
    theirs = dosde.solve(model, x_hat0, steps, 1, method=method.flow)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-14)


def test_the_naive_algorithm_by_hand():
    """x_t = D(x_theta, t): the last state is the last output."""
    x_hat0, outputs = randn(1, 1, 6, 6), []
    x0 = cold.solve(
        wrong, x_hat0, cold.blur(2.0), 4, naive=True, callback=lambda i, t, x, x_theta: outputs.append((x, x_theta))
    )
    assert torch.allclose(x0, outputs[-1][1], atol=1e-14)
    assert torch.equal(outputs[0][0], x_hat0)
    assert torch.allclose(outputs[1][0], cold.blur(2.0)(outputs[0][1], torch.tensor(0.75)), atol=1e-14)


def test_algorithm_2_restores_from_linear_estimates_better_than_the_naive():
    """Deblurring a Gaussian 1/f picture by the best linear estimate of each cosine mode: Algorithm 2 keeps more power."""
    n = 32
    modes, k = cold._modes(n), torch.arange(n, dtype=torch.float64)
    power = 1 / (1 + k[:, None] ** 2 + k**2)
    degrade, noise = cold.blur(1.5), 1e-3

    def attenuation(t):
        g = torch.exp(-((math.pi / n * k * 1.5 * t) ** 2) / 2)
        return g[:, None] * g

    def model(x, x_hat0, t):
        gain = attenuation(t) * power / (attenuation(t) ** 2 * power + noise)
        return modes.mT @ (gain * (modes @ x @ modes.mT)) @ modes

    truth = modes.mT @ (power.sqrt() * randn(40, 1, n, n)) @ modes
    x_hat0 = degrade(truth, torch.tensor(1.0))
    improved, naive = (cold.solve(model, x_hat0, degrade, 10, naive=naive) for naive in (False, True))
    kept = [float((modes @ x @ modes.mT)[..., 8:, 8:].square().mean()) for x in (improved, naive, truth)]
    assert kept[1] < 0.8 * kept[0] <= kept[2]


# -- The blur -------------------------------------------------------------------------------------------------------------


def test_the_blur_is_scipys_gaussian_filter_with_reflected_borders():
    x0 = randn(2, 3, 40, 28)
    expected = ndimage.gaussian_filter(x0.numpy(), sigma=(0, 0, 2.1, 2.1), mode="reflect", truncate=9)
    assert np.abs(cold.blur(3.0)(x0, TIME).numpy() - expected).max() < 1e-6


@given(p=st.floats(0, 4), q=st.floats(0, 4), height=st.integers(1, 12), width=st.integers(1, 12))
def test_blurs_add_in_quadrature_and_keep_the_mean(p, q, height, width):
    x0, one = randn(2, height, width), torch.tensor(1.0)
    twice = cold.blur(q)(cold.blur(p)(x0, one), one)
    assert torch.allclose(twice, cold.blur(math.hypot(p, q))(x0, one), rtol=0, atol=1e-12)
    assert torch.allclose(twice.mean((1, 2)), x0.mean((1, 2)), rtol=0, atol=1e-13)


def test_at_t_0_nothing_is_blurred():
    x0 = randn(1, 3, 9, 7)
    assert torch.allclose(cold.blur(5.0)(x0, 0 * TIME), x0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("degrade", [cold.blur(2.0), cold.blur(lambda t: 3 * t**2), cold.interpolation(randn(3, 2, 8, 8))])
def test_one_time_a_sample(degrade):
    x0, t = randn(3, 2, 8, 8), torch.tensor([0.0, 0.3, 1.0])
    alone = torch.stack([degrade(x0, s)[i] for i, s in enumerate(t)])
    assert torch.allclose(degrade(x0, t), alone, rtol=0, atol=1e-14)


# -- The loop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_and_what_it_leaves_alone(dtype):
    x_hat0 = torch.randn(1, 3, 8, 8).to(dtype)
    before, seen = x_hat0.clone(), []

    def model(x, x_hat0, t):
        seen.append((x.dtype, t.dtype, t.ndim))
        x.mul_(0.5)  # a copy of the state, the model's own
        return x

    x0 = cold.solve(model, x_hat0, cold.blur(1.0), 3)
    assert (x0.dtype, x0.shape) == (dtype, x_hat0.shape)
    assert torch.equal(x_hat0, before)
    assert seen == [(dtype, torch.float64, 0)] * 3


X = torch.ones(2, 3, 4, 4)


def never(x, x_hat0, t):
    raise AssertionError("the model was called")


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: cold.solve(1, X, cold.blur(1.0)), TypeError, "model: a int; a function"),
    (lambda: cold.solve(never, X, 2.0), TypeError, "degrade: a float; a function"),
    (lambda: cold.solve(never, X, cold.blur(1.0), callback=3), TypeError, "callback: a int; a function"),
    (lambda: cold.solve(never, X, cold.blur(1.0), 0), ValueError, "steps: 0; a positive integer"),
    (lambda: cold.solve(never, X.long(), cold.blur(1.0)), TypeError, "x_hat0: a int64 tensor"),
    (lambda: cold.solve(never, X * math.nan, cold.blur(1.0)), ValueError, "holds NaN"),
    (lambda: cold.solve(never, X, cold.blur(1.0), 2, grid=[1, 0]), ValueError, r"shape \(2,\) with steps = 2; 3 times"),
    (lambda: cold.solve(never, X, cold.blur(1.0), 2, grid=[0, 0.5, 1]), ValueError, "they must decrease"),
    (lambda: cold.solve(never, X, cold.blur(1.0), 2, grid="uniform"), TypeError, "grid: 'uniform'; .* 3 times"),
    (lambda: cold.solve(never, X, lambda x, t: x + t + 1), ValueError, r"degrade: D\(x, 0\) differs from x by up to 1 "),
    (lambda: cold.solve(never, X, lambda x, t: x[:1]), ValueError, r"degrade: returned a .* at t = 0; a float32"),
    (lambda: cold.solve(never, X[0, 0, 0], cold.blur(1.0)), ValueError, r"x0: shape \(4,\); pictures"),
    (lambda: cold.blur(-1.0), ValueError, "std: -1.0; a number of pixels"),
    (lambda: cold.blur(lambda t: -t)(X, TIME), ValueError, r"std: \[-0.7\] at t = \[0.7\]"),
    (lambda: cold.blur(1.0)(X, torch.ones(3)), ValueError, r"t: shape \(3,\); one time, or 2"),
    (lambda: cold.solve(lambda x, x_hat0, t: x[:1], X, cold.blur(1.0)), ValueError, "model: returned .* at step 0, t = 1;"),
    (lambda: cold.solve(lambda x, x_hat0, t: x * (math.nan if t < 0.5 else 1), X, cold.blur(1.0)), ValueError,
     "model: returned NaN or infinity at step 3, t = 0.4"),
    (lambda: cold.solve(lambda x, x_hat0, t: 1 + x, X, lambda x, t: x / (x == 1), 1), ValueError, "degrade: the result is not"),
])  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
