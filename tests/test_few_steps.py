"""Correctors as predict and correct, levels of noise, law-matched weights, the two-stage scheme, the recommended preset."""

import functools
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import PROCESS, PROCESSES, model, seeded, tensor

import dosde
from backbones.exact import gaussian
from dosde import expansion, grid, matching, method, noise, presets, schedule, shift
from dosde.process import Process, resshift

DOUBLE = torch.float64
FIELD = Process(schedule.scaled_linear(), shift.cosine(torch.tensor([0.4, 0.6])))


# -- Correctors -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:order")
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variable", [expansion.lam, expansion.v(0.5)], ids=["lam", "v"])
@pytest.mark.parametrize("times", [[0.5, 0.4, 0.3, 0.22, 0.1, 0.0], [0.45, 0.4, 0.25, 0.2, 0.1, 0.03]], ids=["ends", "inside"])
def test_a_folded_corrector_is_predict_evaluate_correct(tau, order, variable, times):
    """The state corrected after each evaluation, with the same z, without a call: what the plan folds into the next step."""
    m = PROCESS(tensor(times))
    rho = expansion.ratio(m.lam)
    power = 1 + tau**2
    steps = len(times) - 1
    predict = expansion.weights(m.lam, order, power, variable)
    correct = expansion.weights(m.lam, order + 1, power, variable, implicit=True)
    z = torch.randn(steps + 1, 4, dtype=DOUBLE, generator=seeded(0))
    x_hat0 = tensor([0.3, -0.8, 0.1, 1.0])

    def advanced(x, n, outputs, weights):
        c = rho[n] ** tau**2
        keep = c * m.sigma[n + 1] / m.sigma[n]
        total = sum(w * output for w, output in zip(weights[:, n], outputs, strict=False))
        new = m.sigma[n + 1] * torch.sqrt((1 - c) * (1 + c)) * z[n + 1]
        return keep * x + (m.b[n + 1] - keep * m.b[n]) * x_hat0 + m.a[n + 1] * total + new

    state = (m.a[0] + m.b[0]) * x_hat0 + m.sigma[0] * z[0]  # corrected
    guess, outputs = state, []
    for n in range(steps):
        outputs.insert(0, model(guess, x_hat0, tensor(times[n])))
        if n:
            state = advanced(state, n - 1, outputs, correct)
        guess = advanced(state, n, outputs, predict)

    draws = iter(z)
    how = functools.partial(method.adams, variable=variable, tau=tau, corrector=True)
    first = True

    def drawn(u, u_next, like):
        nonlocal first
        value = next(draws)
        if not first and tau == 0:
            raise AssertionError("an ODE draws no noise")
        first = False
        return value

    x0 = dosde.solve(model, x_hat0, steps, order, process=PROCESS, method=how, grid=times, noise=drawn)
    assert torch.allclose(x0, guess, atol=1e-12, rtol=0)


def test_a_corrector_costs_no_call_and_one_output():
    calls = []

    def counted(x, x_hat0, t):
        calls.append(float(t))
        return model(x, x_hat0, t)

    how = functools.partial(method.ode, corrector=True)
    dosde.solve(counted, torch.zeros(1, 4), 6, 2, process=PROCESS, method=how)
    assert len(calls) == 6
    assert max(len(step.new) for step in dosde.plan(PROCESS, 6, 2, method=how)) == 3


def test_the_weights_of_a_corrector_are_exact_for_polynomials():
    lams = tensor([4.0, 2.5, 1.0, 0.6])
    weights = expansion.weights(lams, 3, 2, implicit=True)
    n = 2  # from 1 to 0.6, nodes 0.6, 1, 2.5
    nodes = lams[[3, 2, 1]]
    w = (0.6 / torch.linspace(1.0, 0.6, 200001, dtype=DOUBLE)) ** 2
    middle = torch.linspace(1.0, 0.6, 200001, dtype=DOUBLE)
    for degree in range(3):
        exact = torch.trapezoid(middle**degree, w)
        assert float((weights[:, n] * nodes**degree).sum()) == pytest.approx(float(exact), rel=1e-9)


# -- Levels of noise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scaled_linear-cosine", "ve-linear", "resshift", "linear-none"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_levels_of_noise_contain_the_known_ones(name, order):
    process = PROCESSES[name]

    def planned(how, order=order):
        return dosde.plan(process, 6, order, method=how, grid=grid.karras(3, 0.2))

    def same(p, q):
        return all(
            torch.allclose(
                tensor([s.keep, s.hat, s.noise, *s.new]), tensor([r.keep, r.hat, r.noise, *r.new]), atol=1e-12, rtol=0
            )
            for s, r in zip(p, q, strict=True)
        )

    adams = method.adams
    assert same(planned(functools.partial(adams, tau=lambda m: m.lam)), planned(adams))
    assert same(planned(functools.partial(adams, tau=lambda m: torch.ones_like(m.lam))), planned(method.ode))
    assert same(planned(functools.partial(adams, tau=lambda m: m.lam**0.25)), planned(functools.partial(adams, tau=0.5)))
    assert same(planned(functools.partial(adams, tau=method.chain), 1), planned(method.resshift, 1))
    flat = functools.partial(adams, tau=lambda m: torch.ones_like(m.lam), variable=expansion.v(0.4), corrector=True)
    ode = functools.partial(method.ode, variable=expansion.v(0.4), corrector=True)
    assert same(*(dosde.plan(PROCESS, 5, order, method=how, grid=grid.angle(0.4)) for how in (flat, ode)))


def test_er_sde_of_order_1_is_as_published():
    """x_t = phi_t/phi_s x_s + (1 - phi_t/phi_s) x_theta + sqrt(lam_t^2 - lam_s^2 (phi_t/phi_s)^2) z, in y."""
    process = Process(schedule.ve(lambda t: 5 * t), shift.none())
    for step in dosde.plan(
        process, 5, 1, method=functools.partial(method.adams, tau=method.er_sde), grid=[1, 0.6, 0.4, 0.2, 0.1, 0]
    ):
        s, t = 5 * step.t, 5 * step.t_next
        ratio = t * (math.exp(t**0.3) + 10) / (s * (math.exp(s**0.3) + 10))
        assert step.keep == pytest.approx(ratio, abs=1e-13)
        assert step.new == (pytest.approx(1 - ratio, abs=1e-13),)
        assert step.noise == pytest.approx(math.sqrt(t**2 - (s * ratio) ** 2), abs=1e-13)


LEVELS = [0.0, 0.3, 0.7, 1.0, method.er_sde, method.chain]


@pytest.mark.parametrize("tau", LEVELS, ids=["0", "0.3", "0.7", "1", "er_sde", "chain"])
@pytest.mark.parametrize("corrector", [False, True])
def test_at_every_level_the_law_tends_to_the_truth(tau, corrector):
    target = gaussian.diagonal(tensor([0.7, -0.3]), tensor([0.04, 1.3]))
    x_hat0 = tensor([0.1, -0.2])
    how = functools.partial(method.adams, tau=tau, corrector=corrector)
    errors = []
    for steps in (40, 160):
        law = target.law(PROCESS, x_hat0, steps=steps, order=2, method=how, grid=torch.linspace(0.5, 0.1, steps + 1))
        errors.append(float((law.variance - target.at(PROCESS, float(torch.tensor(0.1)), x_hat0).variance).abs().max()))
    assert errors[1] < min(errors[0] / 8, 2e-3)


def test_a_final_denoise_returns_the_last_output():
    outputs = []
    how = functools.partial(method.adams, denoise=True)
    keep = lambda i, t, x, x_theta: outputs.append(x_theta)  # noqa: E731
    x0 = dosde.solve(model, torch.ones(1, 4), 5, 3, process=PROCESS, method=how, callback=keep)
    assert torch.equal(x0, outputs[-1])
    inside = {"grid": [0.5, 0.4, 0.2, 0.1]}
    assert dosde.plan(PROCESS, 3, 2, method=how, **inside) == dosde.plan(PROCESS, 3, 2, method=method.adams, **inside)


# -- The two-stage scheme -------------------------------------------------------------------------------------------------


def test_srk_is_roesslers_sra1():
    """On dm = x_theta du + dW by hand, from the increment and the integral of one path."""
    times = grid.two_stage(lambda p, n: torch.linspace(0.45, 0.1, n + 1, dtype=DOUBLE))(PROCESS, 6)
    path = noise.Brownian(3)
    z0 = torch.randn(1, 3, dtype=DOUBLE, generator=seeded(1))
    x_hat0, like = torch.tensor([[0.3, -0.5, 0.8]], dtype=DOUBLE), torch.zeros(1, 3, dtype=DOUBLE)
    points = 8

    def drive(u, u_next, like):
        return z0 if u == 0 else path(u, u_next, like)

    def at(t):
        m = PROCESS(t)
        return float(m.u), float(m.a), float(m.b)

    def x_theta(m, t):
        u, a, b = at(t)
        return model(a * m / u + b * x_hat0, x_hat0, t)

    m0 = PROCESS(times[0])
    m = float(m0.u) * (m0.a * x_hat0 + m0.sigma * z0) / m0.a
    for s, stage in zip(times[:-1:2], times[1::2], strict=True):
        u = at(s)[0]
        h = (at(stage)[0] - u) * 4 / 3  # to the bit: a path has other values at other times, however near
        ends = [u + h * i / points for i in range(points + 1)]
        parts = [path(v, w, like) * math.sqrt(w - v) for v, w in itertools.pairwise(ends)]
        area = sum((u + h - (v + w) / 2) * part for (v, w), part in zip(itertools.pairwise(ends), parts, strict=True))
        first = x_theta(m, s)
        second = x_theta(m + 0.75 * h * first + 1.5 * area / h, stage)
        m = m + h * (first / 3 + 2 * second / 3) + sum(parts)
    u, a, b = at(times[-1])
    x = dosde.solve(
        model, x_hat0, 6, 2, process=PROCESS, method=method.srk, grid=times, noise=noise.Stages(drive, points=points)
    )
    assert torch.allclose(x, a * m / u + b * x_hat0, atol=1e-10, rtol=0)


def test_srk_ends_at_0_with_a_step_without_a_stage():
    times = grid.two_stage(grid.karras(10, 0.1))(PROCESS, 5)
    assert times.shape == (6,)
    assert times[-1] == 0
    plan = dosde.plan(PROCESS, 5, 2, method=method.srk, grid=times)
    assert plan[-1].new == (1.0,)
    with pytest.raises(ValueError, match=r"steps: 4 with a grid that ends at t = 0; an odd number"):
        grid.two_stage(grid.karras(10, 0.1))(PROCESS, 4)
    with pytest.raises(ValueError, match=r"grid: every second time must lie at 3/4"):
        dosde.plan(PROCESS, 4, 2, method=method.srk)
    with pytest.raises(ValueError, match=r"order: 3; srk"):
        dosde.plan(PROCESS, 5, 3, method=method.srk, grid=times)


# -- Law-matched weights --------------------------------------------------------------------------------------------------


def stds(scale, width, steps, order=None, tau=0.0, process=PROCESS):
    """The std of the law of the preset, over the width of the Gaussian data."""
    target = gaussian.diagonal(tensor([0.4]), tensor([width**2]))
    law = target.law(process, tensor([0.1]), steps=steps, order=order or min(3, steps), **presets.few_step(scale, tau))
    assert float(law.mean - 0.4) == pytest.approx(0, abs=1e-10)
    return float(law.variance.sqrt()) / width


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_gaussian_data_of_about_the_scale_get_their_law(tau):
    """The stated error of the law from 3 calls on: data of std s within 3%, of half and twice that 11%, from 5 calls 8%."""
    for steps in (3, 4, 5, 7, 10, 20, 50):
        far = 0.11 if steps < 5 else 0.08
        assert stds(0.2, 0.2, steps, tau=tau) == pytest.approx(1, abs=0.03)
        for width in (0.1, 0.4):
            assert stds(0.2, width, steps, tau=tau) == pytest.approx(1, abs=far)


def test_one_call_returns_the_mean_and_white_noise():
    assert stds(0.2, 0.2, 1) == pytest.approx(math.exp(-(matching.SPREAD**2) / 2), rel=5e-3)


@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:scale", "ignore:order")  # times that do not suit it
@given(
    name=st.sampled_from(sorted(PROCESSES)),
    steps=st.integers(1, 50),
    order=st.integers(1, 5),
    scale=st.floats(1e-3, 30),
    tau=st.sampled_from([0.0, 0.4, 1.0]),
    own=st.booleans(),
)
def test_plans_of_any_scale_and_grid_are_sane(name, steps, order, scale, tau, own):
    """keep a_s + sum new = a_t and keep b_s + hat = b_t; weights that do not run away; noise near that of the marginal."""
    process, order = PROCESSES[name], min(order, steps)
    how = presets.few_step(scale, tau)
    times = how["grid"](process, steps) if own else torch.linspace(process.t1, 0.01, steps + 1, dtype=DOUBLE)
    plan = dosde.plan(process, steps, order, method=how["method"], grid=times)
    m = process(times)
    for i, step in enumerate(plan):
        s, t = (type(m)(m.t[j], m.a[j], m.b[j], m.sigma[j]) for j in (i, i + 1))
        size = 1 + sum(map(abs, step.new))
        assert step.keep * float(s.a) + sum(step.new) == pytest.approx(float(t.a), abs=1e-11 * size)
        assert step.keep * float(s.b) + step.hat == pytest.approx(float(t.b), abs=1e-11 * size)
        assert sum(map(abs, step.new)) <= (12 if own else 60) * float(t.a) + 1e-12
        if t.sigma > 0 and own:
            assert (
                0.2 * float(t.sigma)
                <= math.hypot(step.keep * float(s.sigma), step.noise)
                <= 3 * math.hypot(t.sigma, t.a * scale)
            )


@pytest.mark.filterwarnings("ignore:scale", "ignore:order")  # uniform times do not suit it
def test_a_field_of_scales_is_its_elements():
    few = torch.tensor([0.05, 0.2, 0.2, 0.7], dtype=DOUBLE)
    times = grid.few_step(0.2)(PROCESS, 5)
    for tau in (0.0, 1.0):
        plan = dosde.plan(PROCESS, 5, 3, method=method.matched(few, tau), grid=times)
        for j, s in enumerate(few.tolist()):
            alone = dosde.plan(PROCESS, 5, 3, method=method.matched(s, tau), grid=times)
            for step, own in zip(plan, alone, strict=True):
                got = [torch.as_tensor(v, dtype=DOUBLE).expand(4)[j] for v in (step.keep, step.hat, step.noise, *step.new)]
                assert [float(v) for v in got] == pytest.approx([own.keep, own.hat, own.noise, *own.new], abs=1e-12)


@pytest.mark.filterwarnings("ignore:scale", "ignore:order")  # uniform times do not suit it
def test_a_field_of_many_scales_is_interpolated():
    many = torch.logspace(-2, 0, 300, dtype=DOUBLE).reshape(3, 10, 10)
    times = grid.few_step(0.2)(PROCESS, 4)
    plan = dosde.plan(PROCESS, 4, 3, method=method.matched(many), grid=times)
    for j in (0, 47, 211, 299):
        alone = dosde.plan(PROCESS, 4, 3, method=method.matched(float(many.reshape(-1)[j])), grid=times)
        for step, own in zip(plan, alone, strict=True):
            assert [float(w.reshape(-1)[j]) for w in step.new] == pytest.approx(list(own.new), abs=2e-3)
            assert float(step.keep.reshape(-1)[j]) == pytest.approx(own.keep, abs=2e-3)
    x0 = dosde.solve(model, torch.zeros(2, 3, 10, 10), 4, process=PROCESS, **presets.few_step(many))
    assert x0.shape == (2, 3, 10, 10)


def test_a_field_of_eta_and_one_of_scales():
    process = Process(schedule.scaled_linear(), shift.cosine(tensor([0.4, 0.6]).reshape(2, 1, 1)))
    few = torch.tensor([0.1, 0.3, 0.5], dtype=DOUBLE)
    plan = dosde.plan(process, 4, 2, method=method.matched(few), grid=[0.6, 0.38, 0.3, 0.1, 0.0])
    assert plan[2].new[1].shape == (2, 1, 3)
    x0 = dosde.solve(
        model, torch.zeros(1, 2, 4, 3), 4, 2, process=process, method=method.matched(few), grid=[0.6, 0.38, 0.3, 0.1, 0]
    )
    assert x0.isfinite().all()


def test_matching_beats_one_width_on_a_spread_of_them():
    """What it is for: at three calls the worst error over widths from half to twice the scale, to order 2 in v."""
    times = grid.few_step(0.2)(PROCESS, 3)

    def worst(how, order):
        errors = []
        for width in (0.1, 0.15, 0.2, 0.3, 0.4):
            target = gaussian.diagonal(tensor([0.0]), tensor([width**2]))
            law = target.law(PROCESS, tensor([0.0]), steps=3, order=order, method=how, grid=times)
            errors.append(abs(float(law.variance.sqrt()) / width - 1))
        return max(errors)

    in_v = functools.partial(method.ode, variable=expansion.v(0.2), corrector=True)
    assert worst(method.matched(0.2), 3) < 0.3 * worst(in_v, 2)


# -- The preset as users call it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "process",
    [PROCESS, resshift(), Process(schedule.linear(), shift.none()), presets.dossr()[0]],
    ids=["dosde", "resshift", "ddpm", "dossr"],
)
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_the_preset_runs_at_1_to_50_calls_on_every_process(process, tau):
    for steps in (1, 2, 3, 7, 50):
        seen = []
        x0 = dosde.solve(
            lambda x, h, t: 0.9 * h,
            torch.ones(2, 3),
            steps,
            process=process,
            callback=lambda i, t, x, x_theta, seen=seen: seen.append(float(t)),
            **presets.few_step(0.1, tau),
        )
        assert len(seen) == steps
        assert seen[0] == process.t1
        assert (x0 - 0.9).abs().max() < (0.5 if steps == 1 else 1e-4)


def test_order_1_makes_up_for_the_width_that_one_output_lacks():
    for steps in (2, 3, 10):
        assert stds(0.2, 0.2, steps, order=1) == pytest.approx(1, abs=0.1)


def test_elements_whose_only_step_is_the_last_get_white_noise():
    process = Process(schedule.scaled_linear(), shift.cosine(tensor([0.05, 0.9])))
    target = gaussian.diagonal(tensor([0.4, 0.4]), tensor([0.04, 0.04]))
    times = [0.9, 0.6, 0.4, 0.2, 0.1, 0.0]
    law = target.law(process, tensor([0.0, 0.0]), steps=5, order=3, method=method.matched(0.2), grid=times)
    assert float(law.variance[0].sqrt()) == pytest.approx(0.2 * math.exp(-(matching.SPREAD**2) / 2), rel=5e-3)
    assert 0.1 < float(law.variance[1].sqrt()) < 0.3


def test_one_step_of_many_scales_from_a_finite_lam_keeps_the_mean():
    process = Process(schedule.ve(lambda t: 3 * t), shift.none())
    many = torch.logspace(-4, 1, 200, dtype=DOUBLE)
    step = dosde.plan(process, 1, 1, method=method.matched(many), grid=[1.0, 0.0])[0]
    assert float((step.keep + step.new[0] - 1).abs().max()) < 1e-12


def test_a_scale_is_copied_and_plans_are_not_shared():
    s = tensor([0.1, 0.3])
    how = method.matched(s)
    before = dosde.plan(PROCESS, 3, 2, method=how, grid=grid.few_step(0.2))
    s.mul_(100)
    before[1].new[0].mul_(0)
    after = dosde.plan(PROCESS, 3, 2, method=how, grid=grid.few_step(0.2))
    assert torch.equal(after[2].new[0], before[2].new[0])
    assert after[1].new[0].abs().min() > 0


def test_methods_have_their_own_default_order():
    assert len(dosde.plan(PROCESS, 4, method=method.resshift)) == 4
    times = grid.two_stage(grid.karras(10, 0.1))(PROCESS, 5)
    assert dosde.plan(PROCESS, 5, method=method.srk, grid=times)[1].new[1] < 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: presets.few_step(0), r"scale: 0; positive finite values"),
        (lambda: presets.few_step(-0.1), r"scale: -0.1; positive"),
        (lambda: presets.few_step(float("nan")), r"scale: nan; positive"),
        (lambda: presets.few_step(torch.tensor([0.1, 0.0])), r"scale: \(2,\), least 0, largest 0.1; positive"),
        (lambda: presets.few_step(0.1, tau=2), r"tau: 2; a number from 0 \(the ODE\) to 1"),
        (lambda: presets.few_step(0.1, tau=True), r"tau: True; a number is needed"),
        (lambda: expansion.v(-1), r"scale: -1; positive"),
        (lambda: expansion.v(torch.ones(3)), r"scale: tensor\(.*; a number is needed"),
        (lambda: presets.few_step(True), r"scale: True; a number or a tensor"),
        (
            lambda: dosde.plan(FIELD, 3, **presets.few_step(0.1)),
            r"grid: eta is a field of shape \(2,\), and grids in the angle",
        ),
        (lambda: grid.two_stage(grid.uniform)(FIELD, 3), r"process: eta is a field of shape \(2,\); two_stage needs one clock"),
        (
            lambda: grid.two_stage(lambda p, n: torch.linspace(0.4, 0.1, n + 1))(PROCESS, 3),
            r"steps: 3 with a grid that ends above",
        ),
        (lambda: noise.Stages(noise.Brownian(0), points=2.5), r"points: 2.5; a positive integer"),
        (
            lambda: dosde.plan(PROCESS, 3, 2, method=functools.partial(method.adams, tau=lambda m: 1.0)),
            r"tau: .* returns a float",
        ),
        (lambda: dosde.plan(PROCESS, 3, 2, method=functools.partial(method.adams, tau=-1)), r"tau: -1; a number from 0"),
        (
            lambda: dosde.plan(PROCESS, 3, 2, method=functools.partial(method.adams, tau=lambda m: 1 / m.lam)),
            r"tau: .*lambda.* goes from 0 to 0.268723 in step 0; a function of the marginal",
        ),
        (
            lambda: dosde.solve(None.__class__, torch.zeros(1, 4), process=PROCESS, **presets.few_step(0.1)),
            r"model: a type; a function",
        ),
        (
            lambda: dosde.solve(model, torch.zeros(1, 4), process=PROCESS, **presets.few_step(torch.ones(5))),
            r"method: its scale, or eta, is a field of shape \(5,\); one that broadcasts against x_hat0, \(1, 4\)",
        ),
    ],
)
def test_what_users_get_wrong(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        wrong()


def test_a_scale_that_is_no_number():
    with pytest.raises(TypeError, match=r"scale: 'big'; a number or a tensor is needed"):
        presets.few_step("big")


def test_the_default_order_is_3_or_what_the_steps_allow():
    for steps, order in ((1, 1), (2, 2), (3, 3), (9, 3)):
        assert dosde.plan(PROCESS, steps) == dosde.plan(PROCESS, steps, order)


def test_seeds_batches_and_half_precision_with_the_preset():
    how = presets.few_step(0.3, tau=1.0)
    g = [seeded(i) for i in range(3)]
    x_hat0 = torch.randn(3, 4, 5)
    batch = dosde.solve(model, x_hat0, 4, process=PROCESS, noise=g, **how)
    for i in range(3):
        own = dosde.solve(model, x_hat0[i : i + 1], 4, process=PROCESS, noise=seeded(i), **how)
        assert torch.equal(batch[i : i + 1], own)
    half = dosde.solve(model, x_hat0.bfloat16(), 4, process=PROCESS, noise=seeded(0), **how)
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
