"""Denoisers of other libraries on our processes, and the kinds and schedules of flows from noise and of zero terminal SNR."""

import math

import pytest
import torch
from instances import DOUBLE, PROCESSES, randn, seeded, tensor, wrong_calls

import dosde
from dosde import Denoiser, Process, interop, presets, schedule, shift
from dosde.prediction import convert, to_x0, velocity

MEAN, STD = 0.3, 0.7
TABLE = schedule.zero_terminal_snr(torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=DOUBLE) ** 2, 0))
PLAIN = {
    "table": Process(schedule.scaled_linear(), shift.none()),
    "zero SNR": Process(schedule.from_alphas_cumprod(TABLE), shift.none()),
    "flow": Process(schedule.flow(), shift.none()),
    "flow, shift 3": Process(schedule.flow(3.0), shift.none()),
}


def exact(y, sigma):
    """E[x0 | x0 + sigma eps = y] for N(MEAN, STD^2)."""
    sigma = sigma.reshape(-1, *[1] * (y.ndim - 1))
    return MEAN + STD**2 / (STD**2 + sigma**2) * (y - MEAN)


class EDM(torch.nn.Module):
    """The exact denoiser under EDM's preconditioning, as its networks have it."""

    sigma_data = 0.5

    def forward(self, y, sigma):
        sigma = sigma.reshape(-1, *[1] * (y.ndim - 1))
        root = torch.sqrt(sigma**2 + self.sigma_data**2)
        c_skip, c_out, c_in = self.sigma_data**2 / root**2, sigma * self.sigma_data / root, 1 / root
        inner = (exact(c_in * y / c_in, sigma.reshape(-1)) - c_skip * y) / c_out  # what F would have to return
        return c_skip * y + c_out * inner


@pytest.mark.parametrize("name", [name for name in PROCESSES if not PROCESSES[name].field_shape])
def test_a_denoiser_gives_the_exact_x_theta_at_every_lam_both_ends_included(name):
    process = PROCESSES[name]
    model = interop.from_denoiser(exact, process)
    x_hat0, x0, z = randn(2, 3), randn(2, 3), randn(2, 3)
    for t in torch.linspace(process.t1, 0, 20, dtype=DOUBLE):
        m = process(t)
        x = process.sample(x0, x_hat0, t, z)
        total = m.a**2 * STD**2 + m.sigma**2
        expected = MEAN + m.a * STD**2 / total * (x - m.a * MEAN - m.b * x_hat0)
        assert torch.allclose(model(x, x_hat0, t), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PLAIN)
def test_one_prior_through_all_kinds_is_one_x_theta(name):
    """At 20 lams, the last of which is lam = infinity where the table ends at alpha = 0."""
    process = PLAIN[name]
    kinds = {"vp_eps", "v", "x0", *(["velocity"] if "flow" in name else [])}
    x_hat0, x0, z = randn(2, 3), randn(2, 3), randn(2, 3)

    def net(kind):
        def call(x, x_hat0, t):
            m = process(t)
            x_theta = MEAN + m.a * STD**2 / (m.a**2 * STD**2 + m.sigma**2) * (x - m.a * MEAN)
            return convert(x_theta, x, x_hat0, m, "x0", kind)

        return call

    general = [Denoiser(net(own), process, own) for own in [velocity(process.schedule)] if name != "zero SNR"]  # alpha' = inf
    for t in torch.linspace(1, 0.001, 20, dtype=DOUBLE):
        x = process.sample(x0, x_hat0, t, z)
        expected = interop.from_denoiser(EDM(), process)(x, x_hat0, t)
        models = [Denoiser(net(kind), process, kind) for kind in kinds if process(t).a > 0 or kind != "vp_eps"]
        for model in (*models, interop.from_denoiser(exact, process), *general):
            assert torch.allclose(model(x, x_hat0, t), expected, rtol=0, atol=1e-12)


def test_eps_at_zero_terminal_snr_is_refused_with_what_to_do():
    model = Denoiser(lambda x, x_hat0, t: x, PLAIN["zero SNR"], "vp_eps")
    with pytest.raises(ValueError, match=r"^t: 1; alpha = 0 there, where x0 does not follow from vp_eps; predict v or x0"):
        dosde.solve(model, torch.zeros(1, 1), 3, 1)
    assert dosde.solve(Denoiser(lambda x, x_hat0, t: -x, PLAIN["zero SNR"], "v"), torch.zeros(1, 1), 3, 1).isfinite().all()


@pytest.mark.parametrize("name", ["scaled_linear-cosine", "resshift", "cosine-none"])
def test_a_solve_with_a_denoiser_has_the_law_of_the_prior(name):
    process = PROCESSES[name]
    model = interop.from_denoiser(exact, process)
    x0 = dosde.solve(model, torch.zeros(40_000, 1, dtype=DOUBLE), 8, noise=seeded(), **presets.few_step(STD))
    assert float(x0.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x0.std()) == pytest.approx(STD, rel=0.03)


def test_above_the_largest_sigma_the_denoiser_is_called_at_it_about_the_source():
    process = PROCESSES["scaled_linear-cosine"]
    seen = []

    class Limited:
        sigma_max = 80.0

        def __call__(self, y, sigma):
            seen.append((float(sigma[0]), y.clone()))
            return y

    model = interop.from_denoiser(Limited(), process)
    x_hat0, z = randn(1, 4), randn(1, 4)
    for t in (process.t1, process.time(300.0), process.time(20.0)):
        m = process(t)
        model(process.sample(x_hat0, x_hat0, t, z), x_hat0, torch.as_tensor(t))
        sigma, y = seen[-1]
        assert sigma == pytest.approx(min(float(m.lam), 80.0))
        assert torch.allclose(y, x_hat0 + sigma * z, rtol=1e-9)


def test_at_lam_0_the_state_is_x0_and_nothing_is_called():
    model = interop.from_denoiser(lambda y, sigma: 1 / 0, PROCESSES["scaled_linear-cosine"])
    x = randn(1, 4)
    assert torch.equal(model(x, x, torch.tensor(0.0)), x)


class Output:
    def __init__(self, sample):
        self.sample = sample


@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: (v, None), lambda v: {"sample": v}, Output])
def test_outputs_of_every_form(wrap):
    model = interop.from_denoiser(lambda y, sigma, gain: wrap(gain * y), PLAIN["table"], gain=0.5)
    x, t = randn(2, 3), torch.tensor(0.5)
    y = x / PLAIN["table"](t).a
    assert torch.allclose(model(x, x, t), 0.5 * y)
    assert torch.allclose(model(x, x, t, gain=2.0), 2 * y)  # of model_kwargs


def test_keywords_for_the_model_reach_it_through_solve():
    given = []

    def model(x, x_hat0, t, label):
        given.append(label)
        return x_hat0

    process = PROCESSES["scaled_linear-cosine"]
    dosde.solve(model, torch.zeros(1, 1), 3, process=process, model_kwargs={"label": 7})
    net = Denoiser(model, process, "x0")
    dosde.solve(net, torch.zeros(1, 1), 2, model_kwargs={"label": 8})
    assert given == [7, 7, 7, 8, 8]


def test_a_network_of_another_dtype_gets_its_own():
    net = torch.nn.Conv2d(3, 3, 3, padding=1).to(torch.bfloat16)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, y, sigma):
            assert y.dtype == sigma.dtype == torch.bfloat16
            return self.net(y)

    model = interop.from_denoiser(Net(), PLAIN["table"])
    assert dosde.solve(model, torch.zeros(1, 3, 4, 4), 2).dtype == torch.float32


def test_the_flow_of_noise():
    m = PLAIN["flow"](0.3)
    assert (float(m.a), float(m.b), float(m.sigma)) == pytest.approx((0.7, 0, 0.3))
    shifted = PLAIN["flow, shift 3"](0.5)  # 3/4 of noise, as diffusers has it
    assert (float(shifted.a), float(shifted.sigma)) == pytest.approx((0.25, 0.75))
    x, eps = tensor([0.4]), tensor([-1.1])
    k, q, _ = to_x0("velocity", m)
    assert torch.allclose(k * (eps - x) + q * (0.7 * x + 0.3 * eps), x)


def test_zero_terminal_snr_is_the_rescaling_of_lin():
    table = torch.tensor([0.9, 0.5, 0.2], dtype=DOUBLE)
    alpha = schedule.zero_terminal_snr(table).sqrt()
    assert torch.allclose(alpha, (table.sqrt() - 0.2**0.5) * 0.9**0.5 / (0.9**0.5 - 0.2**0.5))
    process = Process(schedule.from_alphas_cumprod(schedule.zero_terminal_snr(table)), shift.none())
    for i in range(3):
        assert torch.allclose(process((i + 1) / 3).a, alpha[i], rtol=1e-12, atol=1e-15)
        assert torch.allclose(process((i + 1) / 3).sigma ** 2, 1 - alpha[i] ** 2)
    assert float(process.g(0.9)) > 0


P = PROCESSES["scaled_linear-cosine"]
test_wrong_calls = wrong_calls(
    {
        "denoiser": (lambda: interop.from_denoiser(3, P), TypeError, "^denoiser: a int; a function"),
        "process": (lambda: interop.from_denoiser(exact, "sd"), TypeError, "^process: 'sd'; a dosde.Process"),
        "field": (
            lambda: interop.from_denoiser(exact, Process(schedule.linear(), shift.cosine(tensor([0.4, 0.5])))),
            ValueError,
            r"^process: eta or sigma is a field \(2,\); one lam for all of x",
        ),
        "flow": (lambda: interop.from_denoiser(exact, dosde.process.flow()), ValueError, "^process: sigma = 0; a process with"),
        "shape": (
            lambda: dosde.solve(interop.from_denoiser(lambda y, sigma: y[:, :1], P), torch.zeros(1, 3, 2), 2),
            ValueError,
            r"^denoiser: returned shape \(1, 1, 2\); shape \(1, 3, 2\) is needed",
        ),
        "nothing": (
            lambda: dosde.solve(interop.from_denoiser(lambda y, sigma: None, P), torch.zeros(1, 3), 2),
            TypeError,
            "^denoiser: returned a NoneType; a tensor is needed",
        ),
        "kwargs": (
            lambda: dosde.solve(exact, torch.zeros(1, 3), 2, process=P, model_kwargs=3),
            TypeError,
            "^model_kwargs: 3; a mapping",
        ),
        "shift": (lambda: schedule.flow(0.0), ValueError, "^shift: 0.0; a positive number"),
    }
)


def test_sigma_max_that_is_infinite_is_none():
    class Endless:
        sigma_max = math.inf

        def __call__(self, y, sigma):
            return exact(y, sigma)

    assert interop.from_denoiser(Endless(), P).sigma_max == interop.from_denoiser(exact, P).sigma_max == 1e15
