"""Details of the core that a change could break without a word: each test fails with one edit that others let pass."""

import math
import random
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from instances import PROCESS, seeded

import dosde
from dosde import cold, expansion, grid, method, noise, objective, presets, schedule, shift
from dosde.process import Process

CHANNELS = torch.tensor([0.3, 0.5, 0.85], dtype=torch.float64).reshape(3, 1, 1)
FIELD = Process(schedule.scaled_linear(), shift.cosine(CHANNELS))
X = torch.randn(2, 3, 4, 4, generator=seeded(1))


# -- cold ---------------------------------------------------------------------------------------------------------------------


def test_a_cold_estimate_is_not_rounded_to_the_dtype_of_the_source():
    x_hat0 = torch.ones(1, 5, dtype=torch.bfloat16)
    estimate = torch.linspace(0.1, 0.9, 5)[None] + 1e-4
    seen = []
    cold.solve(
        lambda x, x_hat0, t: estimate,
        x_hat0,
        cold.interpolation(x_hat0),
        steps=2,
        naive=True,
        callback=lambda i, t, x, x_theta: seen.append(x),
    )
    assert torch.equal(seen[1], 0.5 * estimate + 0.5)


# -- expansion ----------------------------------------------------------------------------------------------------------------


def test_sqrt_v_is_the_root_of_v():
    lams = torch.tensor([0.0, 0.1, 1.0, math.inf], dtype=torch.float64)
    assert torch.allclose(expansion.sqrt_v(0.3)(lams) ** 2, expansion.v(0.3)(lams), rtol=1e-14)


def test_a_corrector_without_a_node_at_the_end_leaves_the_step_as_it_is():
    """log lam is infinite at lam = 0: there is no output to correct with, and the weights are those of the step."""
    lams = torch.tensor([4.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    plain = expansion.weights(lams, 2, 2, expansion.log_lam)
    corrected = expansion.weights(lams, 3, 2, expansion.log_lam, implicit=True)
    assert torch.equal(corrected[1:, -1], plain[:, -1])
    assert float(corrected[0, -1]) == 0
    assert corrected.isfinite().all()


@pytest.mark.parametrize("power", [1, 2])
def test_the_weights_of_a_corrector_from_infinity_are_integrals(power):
    """W[0] = int (v - v_s)/(v_t - v_s) dw over lam from lam_t to infinity, by substitution w = (lam_t/lam)^p."""
    lam_t, v = 0.7, expansion.v(0.3)
    w = (np.arange(200_000) + 0.5) / 200_000
    path = v(torch.from_numpy(lam_t * w ** (-1 / power))).numpy()
    at_t = float(v(torch.tensor(lam_t, dtype=torch.float64)))
    lams = torch.tensor([math.inf, lam_t], dtype=torch.float64)
    got = expansion.weights(lams, 2, power, v, implicit=True)[:, 0]
    assert float(got[0]) == pytest.approx(np.mean(path / at_t), rel=1e-8)
    assert float(got.sum()) == pytest.approx(1, abs=1e-14)


# -- grid, method -------------------------------------------------------------------------------------------------------------


def test_the_scale_of_a_grid_is_the_rms_of_a_field():
    field, rms = torch.tensor([0.1, 0.7]), math.sqrt((0.1**2 + 0.7**2) / 2)
    for maker in (grid.angle, grid.few_step):
        assert torch.allclose(maker(field)(PROCESS, 5), maker(rms)(PROCESS, 5), rtol=1e-6)


def test_a_field_is_told_of_amplification_wherever_it_is():
    """The last element alone: the first of the field has a smaller one."""
    t1 = torch.tensor([0.5, 0.999], dtype=torch.float64)
    process = Process(schedule.scaled_linear(), shift.cosine(t1))
    times = [0.999, 0.51, 0.505, 0.5, 0.0]
    alone = Process(schedule.scaled_linear(), shift.cosine(0.999))
    with pytest.warns(UserWarning, match="it multiplies errors of the model"):
        dosde.plan(alone, 4, 3, method=method.adams, grid=times)
    with pytest.warns(UserWarning, match="it multiplies errors of the model") as caught:
        dosde.plan(process, 4, 3, method=method.adams, grid=times)
    assert caught[0].filename == __file__


def test_a_warning_points_at_the_line_of_the_user():
    times = [0.5, 0.01, 0.0099, 0.0]
    with pytest.warns(UserWarning, match="^order: 3 with 3 steps; it multiplies .* those of step 2 most") as caught:
        dosde.solve(lambda x, x_hat0, t: 0 * x, X, 3, 3, process=PROCESS, grid=times)
    assert caught[0].filename == __file__


def test_a_field_without_noise_draws_none():
    draws = []

    def draw(u, u_next, like):
        draws.append(u)
        return torch.zeros_like(like)

    dosde.solve(lambda x, x_hat0, t: 0 * x, X, 4, 2, process=FIELD, method=method.ode, noise=draw)
    assert len(draws) == 1  # the start
    assert all(step.noise == 0.0 and isinstance(step.noise, float) for step in dosde.plan(FIELD, 4, 2, method=method.ode))


def test_resshift_where_sigma_over_alpha_stands_still():
    """c = alpha_s sigma_t/(alpha_t sigma_s) is 1 but for rounding, and noise is 0 and not the root of a negative number."""
    process = Process(lambda t: (torch.exp(-3 * t), 0.3 * torch.exp(-3 * t)), shift.cosine(1.0))
    times = torch.linspace(0.97, 0.03, 41, dtype=torch.float64)
    for step in dosde.plan(process, 40, 1, method=method.resshift, grid=times):
        assert math.isfinite(step.noise)
        assert 0 <= step.noise < 1e-7


def test_the_rest_of_the_last_step_is_in_units_of_x0():
    """A process of half the scale, alpha(0) = 1/2, has half the numbers: x_t, and so its noise, is half as large."""
    whole = Process(lambda t: (torch.ones_like(t), 4 * t), shift.none())
    half = Process(lambda t: (torch.full_like(t, 0.5), 2 * t), shift.none())
    for steps, tau in ((1, 0.0), (1, 1.0), (3, 1.0)):
        own = method.matched(0.2, tau)
        last, halved = (dosde.plan(p, steps, 1, method=own)[-1] for p in (whole, half))
        assert halved.noise == pytest.approx(last.noise / 2, rel=1e-9)
        assert halved.keep == pytest.approx(last.keep, rel=1e-9)
        assert last.noise + last.keep > 0


def test_one_step_of_matched_has_the_scale_that_it_is_told():
    """From a finite lam, one call tells no width: the std of Gaussian data of that std is right, not 1.5 of it."""
    s, lam = 0.2, 0.5
    process = Process(schedule.ve(lambda t: lam * t), shift.none())
    (step,) = dosde.plan(process, 1, 1, method=method.matched(s))
    # y = x0 + lam z with x_theta = s^2/(s^2 + lam^2) y, so that x = keep y + new x_theta is this many stds:
    got = (step.keep + step.new[0] * s**2 / (s**2 + lam**2)) * math.sqrt(s**2 + lam**2)
    assert got == pytest.approx(s, rel=0.12)


def test_a_short_step_keeps_the_digits_of_its_noise():
    """noise^2 = sigma_t^2 (1 - rho^2) for a step of 1e-13 of lam."""
    process = Process(schedule.ve(lambda t: t), shift.none())
    t, h = 0.5, 2.0**-43
    step = dosde.plan(process, 2, 1, grid=[t, t - h, 0.0])[0]
    exact = t * math.sqrt((1 - (t - h) / t) * (1 + (t - h) / t))
    assert step.noise == pytest.approx((t - h) / t * exact, rel=1e-9)


def test_a_field_that_has_not_left_infinity_at_the_end_is_refused():
    process = Process(schedule.scaled_linear(), shift.linear(torch.tensor([0.3, 0.9], dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"time 0\.4 at index 2 has lam = inf"):
        dosde.plan(process, 2, 1, grid=[0.9, 0.6, 0.4])


# -- noise --------------------------------------------------------------------------------------------------------------------


def test_a_brownian_bridge_has_its_variance():
    """W(u) given its ends on [1, 2] at u = 1.5 and 1.25: 1/4 and 3/16; a variance that is 2% off is seen."""
    path, shape = noise.Brownian(7), torch.Size([400_000])
    low, high = path.value(1.0, shape), path.value(2.0, shape)
    for u, variance in ((1.5, 1 / 4), (1.25, 3 / 16)):
        bridge = path.value(u, shape) - (low + (u - 1) * (high - low))
        assert float(bridge.var()) == pytest.approx(variance, rel=0.012)


def test_a_brownian_path_does_not_mix_shapes():
    small, large = torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    path = noise.Brownian(0)
    path(0.3, 0.5, small)
    expected = noise.Brownian(0)(0.5, 0.8, large)
    assert torch.equal(path(0.5, 0.8, large), expected)


def test_noise_is_drawn_in_the_dtype_of_the_state():
    like = torch.zeros(1000, dtype=torch.float64)
    z = noise.Independent(seeded(0))(0.0, 1.0, like)
    assert z.dtype == torch.float64
    assert not torch.equal(z.float().double(), z)
    assert torch.equal(z, torch.randn(1000, dtype=torch.float64, generator=seeded(0)))


# -- objective, prediction ----------------------------------------------------------------------------------------------------


def test_targets_in_half_precision_are_computed_in_float32():
    x0, x_hat0, z = (torch.randn(2, 3, 8, 8, generator=seeded(i)).half() for i in range(3))
    for kind in ("vp_eps", "v", "sigma_eps"):
        exact = objective.target(kind, PROCESS, x0.float(), x_hat0.float(), 0.3, z.float())
        assert torch.equal(objective.target(kind, PROCESS, x0, x_hat0, 0.3, z), exact.half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_field_of_coefficients_has_the_dtype_of_the_state(dtype):
    model = dosde.Denoiser(lambda x, x_hat0, t: x, FIELD, "v")
    t = torch.tensor(0.2, dtype=torch.float64)
    model(X, X, t)  # remembers the coefficients of float32
    x = X.to(dtype)
    x_theta = model(x, x, t)
    m = FIELD(0.2)
    norm = m.alpha**2 + m.sigma**2
    expected = (m.alpha - m.sigma) / norm * X.double()
    assert x_theta.dtype == dtype
    assert float((x_theta - expected).abs().max()) < (1e-5 if dtype == torch.float32 else 1e-14)


# -- presets, process, reference ----------------------------------------------------------------------------------------------


def test_every_index_below_t1_has_an_eta_below_1():
    """k/T T is less than k for some k in floating point."""
    assert any(math.floor(k / 100 * 100) < k for k in range(2, 100))
    for k in range(2, 100):
        assert int((presets.dossr_etas(k / 100, 100) < 1).sum()) == k


def test_t1_of_a_bare_field_is_where_all_of_it_has_reached_1():
    t1 = torch.tensor([0.25, 0.75], dtype=torch.float64)
    process = Process(schedule.scaled_linear(), lambda t: (t / t1).clamp(max=1))
    assert process.t1 == pytest.approx(0.75)


def test_g_is_0_and_not_nan_where_sigma_over_a_stands_still():
    process = Process(lambda t: (torch.exp(-3 * t), 0.3 * torch.exp(-3 * t)), shift.none())
    g = process.g(torch.linspace(0.01, 0.99, 400, dtype=torch.float64))
    assert g.isfinite().all()
    assert float(g.max()) < 1e-7


def test_a_bridge_is_not_without_noise():
    """sigma is 0 at both ends, and not between."""
    assert not Process(schedule.ve(lambda t: torch.sqrt(t * (1 - t))), shift.linear(1.0)).noise_free
    assert dosde.process.flow().noise_free


def test_the_reference_depends_on_its_seed_alone():
    reference = pytest.importorskip("dosde.reference")
    pytest.importorskip("torchsde")
    x = torch.zeros(3, 1, dtype=torch.float64)
    runs = []
    for seed in (0, 0, 1):
        random.seed(len(runs))  # the state that torchsde would take instead
        torch.manual_seed(len(runs))
        runs.append(reference.reverse_sde(lambda x, x_hat0, t: 0 * x, PROCESS, x, x, 0.3, 0.2, steps=5, seed=seed))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


# -- solve --------------------------------------------------------------------------------------------------------------------


def test_large_sums_in_half_precision_are_finite():
    """65504 is the largest float16, and the sum of an output is much larger."""
    x_hat0 = torch.zeros(1, 4096, dtype=torch.float16)
    x0 = dosde.solve(lambda x, x_hat0, t: torch.full_like(x, 100.0), x_hat0, 2, 1, process=PROCESS)
    assert torch.allclose(x0, torch.tensor(100.0, dtype=torch.float16))


# -- the scheduler of diffusers -----------------------------------------------------------------------------------------------


@pytest.fixture
def scheduler():
    diffusers = pytest.importorskip("dosde.interop.diffusers")
    return diffusers.DoSDEScheduler


def test_only_the_first_timestep_of_a_loop_makes_a_picture_the_source(scheduler):
    own = scheduler(shift="cosine", timestep_spacing="uniform")
    own.set_timesteps(5)
    with pytest.raises(ValueError, match="source: None, and no x_hat0 is set"):
        own.add_noise(X, X, own.timesteps[2])
    assert own.x_hat0 is None
    own.add_noise(X, X, own.timesteps[0])
    assert own.x_hat0 is X


def test_a_second_loop_keeps_nothing_of_the_first(scheduler):
    own = scheduler(solver_order=3)

    def looped(one, source):
        one.set_timesteps(4, x_hat0=source)
        assert one._past == []
        x = one.start(torch.ones_like(source))
        for t in one.timesteps:
            x = one.step(0.3 * x, t, x, seeded(0)).prev_sample
            assert len(one._past) <= 2  # of three outputs that a step of order 3 takes, two are old
        return x

    looped(own, X)
    own.set_timesteps(4, x_hat0=X)
    own.step(own.start(X), own.timesteps[0], own.start(X))
    other = torch.ones(1, 3, 4, 4)  # of another shape, too
    assert torch.equal(looped(own, other), looped(scheduler(solver_order=3), other))


def test_a_scheduler_of_order_1_keeps_no_output(scheduler):
    own = scheduler(solver_order=1)
    own.set_timesteps(3, x_hat0=X)
    own.step(X, own.timesteps[0], X)
    assert own._past == []


def test_a_time_between_two_indices_is_not_rounded(scheduler):
    assert scheduler().model_time(4.15 / 1000) == pytest.approx(3.15)
    assert scheduler().model_time(4.0000000001 / 1000) == 3.0


def test_the_timestep_beside_the_next_one_is_refused(scheduler):
    own = scheduler()
    own.set_timesteps(5, x_hat0=X)
    number = float(own.timesteps[0])
    with pytest.raises(ValueError, match=rf"timestep: {number - 1:g}; {number:g} is needed"):
        own.step(X, number - 1, X)
    own.step(X, number, X)


def test_nothing_here_warns_without_a_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dosde.plan(FIELD, 5, 3)


def test_a_large_field_takes_little_memory_for_its_weights():
    """In parts, so that 100,000 elements do not take 2.5 GB; the weights are those of each element alone."""
    t1 = torch.linspace(0.2, 0.9, 100_000, dtype=torch.float64).reshape(100, 1000)
    lams = Process(schedule.scaled_linear(), shift.cosine(t1))(
        torch.linspace(0.9, 0.1, 6, dtype=torch.float64).reshape(-1, 1, 1)
    ).lam
    tracemalloc.start()
    try:
        got = expansion.weights(lams, 3, 2)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert got.shape == (3, 5, 100, 1000)
    for i in (0, 31_234, 99_999):
        alone = expansion.weights(lams.reshape(6, -1)[:, i : i + 1], 3, 2)
        assert torch.allclose(got.reshape(3, 5, -1)[:, :, i : i + 1], alone, rtol=1e-12, atol=1e-14)


def test_a_field_may_have_all_dimensions_of_the_source():
    eta = shift.cosine(torch.full((1, 3, 4), 0.5, dtype=torch.float64))
    process = Process(schedule.scaled_linear(), eta)
    x_hat0 = torch.zeros(2, 3, 4)
    assert dosde.solve(lambda x, x_hat0, t: x_hat0, x_hat0, 2, process=process).shape == (2, 3, 4)


def test_a_stage_that_is_a_little_off_is_refused():
    """Where u is small, too: 1e-3 of its step."""
    times = grid.two_stage(grid.log_lam(80.0, 10.0))(PROCESS, 5)
    assert float(PROCESS(times[1]).u) < 0.01
    dosde.plan(PROCESS, 5, 2, method=method.srk, grid=times)
    off = times.clone()
    off[1] *= 1 + 1e-4
    with pytest.raises(ValueError, match=r"^grid: every second time must lie at 3/4 of its step"):
        dosde.plan(PROCESS, 5, 2, method=method.srk, grid=off)
