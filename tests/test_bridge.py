"""Bridges against their published formulas, and solves that begin at the source itself; fields of noise; a wider start."""

import math

import pytest
import torch
from instances import DOUBLE, PROCESS, randn, seeded, tensor, wrong_calls

import dosde
from dosde import Process, expansion, method, presets, process, schedule, shift

BRIDGES = {
    "brownian": process.bridge(),
    "ve": process.bridge(schedule.ve(lambda t: 3 * t)),
    "vp": process.bridge(schedule.linear()),
    "goub": process.bridge(schedule.linear(), to_source=True),
}
TIMES = [0.05, 0.3, 0.77, 0.99]


def test_the_brownian_bridge():
    p = BRIDGES["brownian"]
    for t in TIMES:
        m = p(t)
        assert [float(v) for v in (m.a, m.b, m.sigma)] == pytest.approx([1 - t, t, math.sqrt(t * (1 - t))], rel=1e-12)
        assert [float(v) for v in (p.f(t), p.h(t), p.g(t))] == pytest.approx([-1 / (1 - t), 1 / (1 - t), 1], rel=1e-9)


@pytest.mark.parametrize(("name", "plain"), [("ve", schedule.ve(lambda t: 3 * t)), ("vp", schedule.linear())])
def test_ddbm(name, plain):
    """Zhou et al. 2024, Eq. 8: mean and variance by the ratio of signal to noise."""
    end = plain(torch.ones((), dtype=DOUBLE))
    for t in TIMES:
        alpha, sigma = plain(tensor(t))
        ratio = (end[0] / end[1]) ** 2 / (alpha / sigma) ** 2
        m = BRIDGES[name](t)
        expected = (alpha * (1 - ratio), ratio * alpha / end[0], sigma * torch.sqrt(1 - ratio))
        assert [float(v) for v in (m.a, m.b, m.sigma)] == pytest.approx([float(v) for v in expected], rel=1e-12)


def test_goub():
    """Yue et al. 2024: alpha = exp(-theta), sigma^2(s, t) = 1 - exp(-2 theta(s, t)), a diffusion that relaxes to the source."""
    plain = schedule.linear()

    def theta(t):
        return -torch.log(plain(tensor(t))[0])

    for t in TIMES:
        whole, before, after = (1 - torch.exp(-2 * v) for v in (theta(1.0), theta(t), theta(1.0) - theta(t)))
        pull = torch.exp(-theta(t)) * after / whole
        m = BRIDGES["goub"](t)
        expected = (pull, 1 - pull, torch.sqrt(before * after / whole))
        assert [float(v) for v in (m.a, m.b, m.sigma)] == pytest.approx([float(v) for v in expected], rel=1e-9)


def test_dbim_is_the_ode_of_order_1_after_one_noisy_step():
    """Zheng et al. 2025, Eq. 12: x_t = a x0 + b x_T + sqrt(c_t^2 - rho^2) (x_s - a_s x0 - b_s x_T)/c_s + rho eps."""
    for p in BRIDGES.values():
        plan = dosde.plan(p, 4, 1, method=method.ode)
        m, n = plan.marginals[0], plan.marginals[1]
        first = plan[0]
        expected = (0, float(n.b), float(n.a), float(n.sigma))
        assert (first.keep, first.hat, first.new[0], first.noise) == pytest.approx(expected)
        assert (float(m.a), float(m.b), float(m.sigma)) == (0, 1, 0)
        for step, s, t in zip(plan[1:], plan.marginals[1:], plan.marginals[2:], strict=False):
            k = float(t.sigma / s.sigma)
            expected = (k, float(t.b) - k * float(s.b), float(t.a) - k * float(s.a), 0)
            assert (step.keep, step.hat, step.new[0], step.noise) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", BRIDGES)
@pytest.mark.parametrize("how", [{"method": method.dos}, {"method": method.ode}, presets.few_step(0.3)])
def test_a_solve_from_the_source_has_the_law_of_the_target(name, how):
    """Exact in the mean; in the std with the steps, or with few by few_step."""
    few = "grid" in how
    law = dosde.law(dosde.plan(BRIDGES[name], 4 if few else 60, 2 if few else 1, **how), 0.3)
    assert float(law.mean) == pytest.approx(1, abs=1e-9)
    assert float(law.std) == pytest.approx(1, abs=0.03 if few else 0.25)


@pytest.mark.parametrize(
    ("how", "order", "expected"), [(method.dos, 1, 1), (method.dos, 2, 2), (method.ode, 1, 1), (method.ode, 2, 2)]
)
def test_orders_on_a_bridge(how, order, expected):
    """The error of the std on Gaussian data, at times that end above 0."""
    errors = []
    for steps in (100, 200):
        times = torch.linspace(1, 0.1, steps + 1, dtype=DOUBLE)
        errors.append(abs(float(dosde.law(dosde.plan(BRIDGES["vp"], steps, order, method=how, grid=times), 0.7).std) - 1))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(expected, abs=0.25)


def test_the_first_step_draws_once():
    draws = []

    def noise(u, u_next, like):
        draws.append((u, u_next))
        return torch.zeros_like(like)

    dosde.solve(lambda x, x_hat0, t: x_hat0, randn(1, 2), 4, 1, process=BRIDGES["vp"], method=method.ode, noise=noise)
    assert len(draws) == 1


# -- Fields of noise ----------------------------------------------------------------------------------------------------------

W = tensor([0.4, 0.7, 1.0])
METHODS = {
    "dos": {"method": method.dos},
    "adams": {"method": method.using(method.adams, variable=expansion.log_lam, tau=0.5, corrector=True)},
    "ode": {"method": method.ode},
    "resshift": {"method": method.resshift, "order": 1},
    "matched": {"method": method.matched(0.3)},
}


@pytest.mark.filterwarnings("ignore:order", "ignore:scale")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("both", [False, True])
def test_a_field_of_noise_is_each_of_its_values(name, both):
    """As in UPSR: sigma is times w by pixel, alone and with a field of eta."""
    eta = shift.linear(tensor([0.9, 1.0, 1.0])) if both else shift.linear()
    whole = Process(schedule.scaled(schedule.with_shift(shift.linear(), 2.0), W), eta)
    assert whole.field_shape == (3,)
    x_hat0, z = randn(1, 3), [randn(1, 3) for _ in range(9)]
    how = {"order": 2, **METHODS[name], "steps": 4, "grid": [0.89, 0.6, 0.4, 0.2, 0.0]}

    def solved(p, pick):
        draws = iter(z)
        model = lambda x, x_hat0, t: torch.tanh(x) - 0.2 * x_hat0  # noqa: E731
        return dosde.solve(model, x_hat0[:, pick], process=p, noise=lambda u, u_next, like: next(draws)[:, pick], **how)

    together = solved(whole, slice(None))
    for i in range(3):
        one = shift.linear(0.9) if both and i == 0 else shift.linear()
        alone = Process(schedule.scaled(schedule.with_shift(shift.linear(), 2.0), float(W[i])), one)
        assert torch.allclose(together[:, i], solved(alone, [i])[:, 0], rtol=1e-9)
    for value, expected in zip(whole.g(0.5), W, strict=True):
        p = Process(schedule.scaled(schedule.with_shift(shift.linear(), 2.0), float(expected)), shift.linear())
        assert both or torch.allclose(value, p.g(0.5))


# -- The start ----------------------------------------------------------------------------------------------------------------


def test_a_spread_makes_the_first_state_as_wide_as_the_marginal():
    """From a > 0 the state of x0 = x_hat0 + spread eps has the variance sigma^2 + a^2 spread^2."""
    times, std = [0.3, 0.2, 0.1, 0.0], 0.8
    m = PROCESS(0.3)
    first = []
    model = lambda x, x_hat0, t: first.append(x.clone()) or x_hat0  # noqa: E731
    x_hat0 = torch.full((200_000, 1), 0.5, dtype=DOUBLE)
    dosde.solve(model, x_hat0, 3, 1, process=PROCESS, grid=times, noise=seeded(), spread=std)
    assert float(first[0].mean()) == pytest.approx(float(m.alpha) * 0.5, abs=0.01)
    assert float(first[0].std()) == pytest.approx(math.hypot(float(m.sigma), float(m.a) * std), rel=0.01)


def test_a_spread_of_0_and_one_at_a_0_change_nothing():
    x_hat0 = randn(2, 3)
    how = {"process": PROCESS, "steps": 3, "order": 1}
    model = lambda x, x_hat0, t: torch.tanh(x)  # noqa: E731
    plain = dosde.solve(model, x_hat0, noise=seeded(), **how)
    assert torch.equal(plain, dosde.solve(model, x_hat0, noise=seeded(), spread=0.0, **how))
    assert torch.equal(plain, dosde.solve(model, x_hat0, noise=seeded(), spread=tensor([1.0, 2.0, 3.0]), **how))  # a(t1) = 0


def test_sinsr_is_the_ode_of_order_1_on_resshift():
    """Wang et al. 2024, Eq. 9: x_s = k x_t + (1 - eta_s - k (1 - eta_t)) x0 + (eta_s - k eta_t) y, k = sqrt(eta_s/eta_t)."""
    p, times = presets.resshift(15)
    for step in dosde.plan(p, 15, 1, method=method.ode, grid=times)[:-1]:
        eta_t, eta_s = (float(p(t).b) for t in (step.t, step.t_next))
        k = math.sqrt(eta_s / eta_t)
        expected = (k, eta_s - k * eta_t, 1 - eta_s - k * (1 - eta_t))
        assert (step.keep, step.hat, step.new[0]) == pytest.approx(expected, abs=1e-15)


test_wrong_calls = wrong_calls(
    {
        "negative": (
            lambda: dosde.solve(lambda x, x_hat0, t: x, torch.zeros(1, 1), 2, process=PROCESS, spread=-1.0),
            ValueError,
            "^spread: -1.0; finite values >= 0",
        ),
        "shape": (
            lambda: dosde.solve(lambda x, x_hat0, t: x, torch.zeros(1, 1), 2, process=PROCESS, spread=torch.ones(3)),
            ValueError,
            r"^spread: it is a field of shape \(3,\)",
        ),
        "field": (
            lambda: dosde.solve(
                lambda x, x_hat0, t: x,
                torch.zeros(1, 2),
                2,
                process=Process(schedule.scaled(schedule.linear(), W), shift.none()),
            ),
            ValueError,
            r"^process: .* is a field of shape \(3,\)",
        ),
        "bridge": (lambda: process.bridge(3), TypeError, "^schedule: 3; a function or None is needed"),
    }
)
