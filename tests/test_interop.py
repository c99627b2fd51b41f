"""k-diffusion both ways: its formulas (and the package, where it is) on our models, our solvers under its signature."""

import functools
import math
import subprocess
import sys
from itertools import pairwise

import agreement
import pytest
import torch
from instances import METHODS, PROCESS, PROCESSES, seeded, wrong_calls

import dosde
from backbones.exact import gaussian
from dosde import expansion, method, schedule, shift
from dosde.interop.k_diffusion import as_denoiser, sample_dosde
from dosde.process import Process

DOUBLE = torch.float64
MEAN, VARIANCE = torch.tensor([0.7, -0.3], dtype=DOUBLE), torch.tensor([0.04, 1.3], dtype=DOUBLE)
TARGET = gaussian.diagonal(MEAN, VARIANCE)
X_HAT0 = torch.tensor([[0.1, -0.2]], dtype=DOUBLE)


def exact(y, sigma):
    """The denoiser of the target in y = x0 + sigma eps."""
    c = VARIANCE / (VARIANCE + sigma[:, None] ** 2)
    return MEAN + c * (y - MEAN)


def log_sigmas(first, last, steps):
    return torch.logspace(math.log10(first), math.log10(last), steps + 1, dtype=DOUBLE)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE)


def package(name):
    """A sampler of k-diffusion's own."""
    try:
        return getattr(agreement.k_diffusion_sampling(), name)
    except ImportError:
        pytest.skip("k-diffusion is not installed")


def ancestral(model, x, sigmas, noise_sampler):
    """Euler's ancestral sampler: down to sigma_down, and noise back up, with sigma_down^2 + sigma_up^2 = sigma_next^2."""
    for sigma, sigma_next in pairwise(sigmas):
        denoised = model(x, sigma.expand(len(x)))
        up = sigma_next * torch.sqrt(1 - (sigma_next / sigma) ** 2)
        down = sigma_next**2 / sigma
        x = x + (down - sigma) * (x - denoised) / sigma
        if sigma_next > 0:
            x = x + up * noise_sampler(sigma, sigma_next)
    return x


# -- Our models under their samplers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["scaled_linear-cosine", "linear-linear", "cosine-cosine_late", "ve-none", "resshift", "dossr"]
)
@pytest.mark.parametrize("sigma", [1e-3, 0.2, 1.0, 30.0])
def test_a_model_becomes_the_denoiser_of_the_plain_process(name, sigma):
    """E[x0 | x_t] on any process is E[x0 | y] at sigma = lam: it does not see a, b or x_hat0."""
    process = PROCESSES[name]
    sigma = min(sigma, 0.9 * float(process(process.t1).lam))
    y, sigma = randn(3, 2), torch.full((3,), sigma, dtype=DOUBLE)
    f = as_denoiser(TARGET.model(process), X_HAT0.expand(3, 2), process)
    assert torch.allclose(f(y, sigma), exact(y, sigma), atol=1e-12 * float(1 + 1 / sigma[0]), rtol=0)


def ode_law(sampler, first, last, steps):
    """Mean and std of what an ODE sampler makes of the model from x_hat0 + first z: affine in z, so two runs tell all."""
    f, sigmas = as_denoiser(TARGET.model(PROCESS), X_HAT0, PROCESS), log_sigmas(first, last, steps)
    at_0, at_1 = (sampler(f, X_HAT0 + first * z, sigmas, disable=True) for z in (0.0, 1.0))
    return at_0, at_1 - at_0


SAMPLERS = {
    "euler": (lambda: agreement.euler, 1),
    "dpmpp_2m": (lambda: agreement.dpmpp_2m, 2),
    "sample_euler": (lambda: package("sample_euler"), 1),
    "sample_dpmpp_2m": (lambda: package("sample_dpmpp_2m"), 2),
    "sample_heun": (lambda: package("sample_heun"), 2),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_their_samplers_reach_the_exact_law_of_a_gaussian(name):
    sampler, order = SAMPLERS[name]
    first, last = 20.0, 0.1
    shrink = torch.sqrt((VARIANCE + last**2) / (VARIANCE + first**2))
    mean, std = MEAN + shrink * (X_HAT0 - MEAN), shrink * first
    errors = []
    for steps in (40, 80):
        law = ode_law(sampler(), first, last, steps)
        errors.append(max(float((law[0] - mean).abs().max()), float((law[1] - std).abs().max())))
    assert errors[1] < {1: 0.1, 2: 5e-3}[order]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("name", ["sample_euler", "sample_dpmpp_2m"])
def test_the_formulas_are_those_of_the_package(name):
    formula = {"sample_euler": agreement.euler, "sample_dpmpp_2m": agreement.dpmpp_2m}[name]
    y, sigmas = 10 * randn(4, 2), log_sigmas(10.0, 0.1, 12)
    assert torch.allclose(formula(exact, y, sigmas), package(name)(exact, y, sigmas, disable=True), atol=1e-13, rtol=0)


@pytest.mark.parametrize(("x_hat0", "state"), [(torch.float16, torch.float32), (torch.bfloat16, torch.float16)])
def test_half_precision(x_hat0, state):
    """A network in the dtype of x_hat0; x and the conversion in float32, whatever y is in."""
    source, y = X_HAT0.to(x_hat0), (5 * randn(1, 2)).to(state)
    seen = []

    def net(x, h, t):
        seen.append((x.dtype, h.dtype))
        return torch.full_like(x, 0.5)

    sigma = torch.tensor([5.0])
    got = as_denoiser(dosde.Denoiser(net, PROCESS, "eps"), source)(y, sigma)
    assert seen == [(x_hat0, x_hat0)]
    assert got.dtype == state
    # With eps, x_theta = (x - b x_hat0 - sigma eps)/a = y - lam eps: the conversion is exact in y.
    assert torch.allclose(got.double(), (y.double() - 5.0 * 0.5), atol=2e-2 if state == torch.float16 else 1e-5)
    as_denoiser(net, source, PROCESS)(y, sigma)
    assert seen[1] == (x_hat0, x_hat0)


def test_the_largest_lam_in_float32_is_still_on_the_process():
    process = PROCESSES["resshift"]
    most = process(process.t1).lam
    f = as_denoiser(lambda x, x_hat0, t: x_hat0 + t, X_HAT0, process)
    above = torch.nextafter(most.float(), torch.tensor(math.inf)).reshape(1)
    assert float(above) > float(most)
    assert torch.allclose(f(X_HAT0, above), X_HAT0 + 1)


def test_extra_arguments_arrive():
    f = as_denoiser(lambda x, x_hat0, t, scale: scale * x_hat0, X_HAT0, PROCESS)
    assert torch.equal(f(X_HAT0, torch.tensor([1.0]), scale=3), 3 * X_HAT0)


# -- Our solvers under their signature ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"resshift", "adams_chain"}))
@pytest.mark.parametrize("end", [0.0, 0.05])
def test_both_ways_one_after_the_other_are_a_solve(name, end):
    """x_hat0 -> y -> x: the plan in lam is that of the process, as c depends on lam alone (that of the chain on alpha, too)."""
    how, order, steps = METHODS[name], 2, 7
    times = torch.linspace(0.45, end, steps + 1, dtype=DOUBLE)
    m = PROCESS(times)
    z = randn(steps + 1, 1, 2)
    model = TARGET.model(PROCESS)
    draws, redraws = iter(z), iter(z[1:])
    expected = dosde.solve(
        model, X_HAT0, steps, order, process=PROCESS, method=how, grid=times, noise=lambda u, v, like: next(draws)
    )
    start = X_HAT0 + m.lam[0] * z[0]
    y = sample_dosde(
        as_denoiser(model, X_HAT0, PROCESS),
        start,
        m.lam,
        disable=True,
        order=order,
        method=how,
        noise_sampler=lambda sigma, sigma_next: next(redraws),
    )
    assert torch.allclose(m.a[-1] * y + m.b[-1] * X_HAT0, expected, atol=1e-13, rtol=0)


def test_ode_of_order_1_is_euler_and_the_sde_euler_ancestral():
    y = 10 * randn(3, 2)
    sigmas = torch.cat([log_sigmas(10.0, 0.1, 9), torch.zeros(1, dtype=DOUBLE)])
    ours = sample_dosde(exact, y, sigmas, disable=True, order=1, method=method.ode)
    assert torch.allclose(ours, agreement.euler(exact, y, sigmas), atol=1e-13, rtol=0)

    def z(sigma, sigma_next):
        return randn(3, 2, seed=int(1e6 * sigma) + int(1e3 * sigma_next))

    ours = sample_dosde(exact, y, sigmas, disable=True, order=1, method=method.dos, noise_sampler=z)
    assert torch.allclose(ours, ancestral(exact, y, sigmas, z), atol=1e-13, rtol=0)
    theirs = package("sample_euler_ancestral")(exact, y, sigmas, disable=True, noise_sampler=z)
    assert torch.allclose(ours, theirs, atol=1e-13, rtol=0)


def test_it_starts_at_x_as_given_and_tells_all():
    """The state, to the bit; the callback's dict; the caller's sigmas; extra_args; the batch of sigma; no write to x."""
    x = torch.randn(3, 2)
    kept = x.clone()
    sigmas, told, asked, drawn = torch.tensor([7.3, 2.1, 0.4, 0.0]), [], [], []

    def model(x, sigma, scale):
        asked.append(sigma)
        return scale * x

    def noise_sampler(sigma, sigma_next):
        drawn.append((sigma, sigma_next))
        return torch.ones(3, 2)

    sample_dosde(model, x, sigmas, {"scale": 0.5}, told.append, True, 2, noise_sampler=noise_sampler)
    assert torch.equal(x, kept)
    assert torch.equal(told[0]["x"], x)
    assert [set(report) for report in told] == [{"x", "i", "sigma", "sigma_hat", "denoised"}] * 3
    assert [report["i"] for report in told] == [0, 1, 2]
    assert torch.equal(torch.stack([report["sigma"] for report in told]), sigmas[:-1])
    assert torch.equal(torch.stack([report["sigma_hat"] for report in told]), sigmas[:-1])
    assert all(torch.equal(report["denoised"], 0.5 * report["x"]) for report in told)
    assert [(s.tolist(), s.dtype) for s in asked] == [([float(v)] * 3, torch.float32) for v in sigmas[:-1]]
    assert drawn == [*pairwise(sigmas[:-1])]  # the last step, to 0, draws none


def test_the_default_on_their_grids_is_calm_and_right():
    """Karras's grid ends with a long step to 0; no warning (they are errors here), and the target's law."""
    ramp = torch.linspace(80 ** (1 / 7), 0.03 ** (1 / 7), 40, dtype=DOUBLE) ** 7
    sigmas = torch.cat([ramp, torch.zeros(1, dtype=DOUBLE)])
    torch.manual_seed(1)
    x0 = sample_dosde(exact, 80 * torch.randn(20000, 2, dtype=DOUBLE), sigmas, disable=True)
    assert torch.allclose(x0.mean(0), MEAN, atol=0.03)
    assert torch.allclose(x0.var(0), VARIANCE, rtol=0.04)


def test_their_noise_sampler_is_one_of_ours():
    """A Brownian tree of the package. (Its ends a little outside the sigmas: torchsde rounds them, and warns.)"""
    tree = package("BrownianTreeNoiseSampler")
    x = 80 * torch.randn(2, 4)
    sigmas = torch.cat([torch.logspace(1.9, -1.5, 12), torch.zeros(1)])
    sampler = tree(x, 0.03, 80.0, seed=3)
    first, second = (sample_dosde(lambda x, s: x / (1 + s[:, None] ** 2), x, sigmas, None, None, True, noise_sampler=sampler)
                     for _ in range(2))  # fmt: skip
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_of_a_solve(dtype):
    """The model sees the dtype of x, the state is float32: the result is that of float32 with a rounded model."""
    x, sigmas = (10 * randn(2, 3)).to(dtype), log_sigmas(10.0, 0.05, 20).float()
    seen = []

    def model(x, sigma):
        seen.append((x.dtype, sigma.dtype))
        return torch.full_like(x, 0.25)

    log_ode = functools.partial(method.ode, variable=expansion.log_lam)
    got = sample_dosde(model, x, sigmas, disable=True, method=log_ode)
    assert set(seen) == {(dtype, dtype)}
    assert got.dtype == dtype
    expected = 0.25 + 0.005 * (x.double() - 0.25)
    assert torch.equal(got, expected.to(dtype))


@pytest.mark.parametrize(
    ("disable", "terminal", "shown"), [(None, True, 1), (None, False, 0), (True, True, 0), (False, False, 1)]
)
def test_progress_as_theirs(disable, terminal, shown, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    sample_dosde(lambda x, s: x / 2, torch.ones(1, 1), torch.tensor([1.0, 0.5, 0.1]), disable=disable, order=1)
    assert ("solve" in capsys.readouterr().err) == bool(shown)


X, SIGMAS, ONE = torch.ones(2, 3), torch.tensor([4.0, 2.0, 1.0, 0.0]), torch.tensor([1.0, 1.0])
FIELD = Process(schedule.linear(), shift.cosine(torch.tensor([0.3, 0.5, 0.4])))


def half(x, *rest):
    return x / 2


WRONG = {
    "rising": (lambda: sample_dosde(half, X, SIGMAS.flip(0)), ValueError, r"sigmas: \[0\.0, 1\.0.*; they must decrease"),
    "twice": (lambda: sample_dosde(half, X, torch.ones(4)), ValueError, r"sigmas: \[1\.0, 1\.0.*; they must decrease"),
    "negative": (lambda: sample_dosde(half, X, SIGMAS - 1), ValueError, r"sigmas: .*-1\.0\]; they must .* one >= 0"),
    "infinite": (lambda: sample_dosde(half, X, 1 / SIGMAS.flip(0)), ValueError, r"sigmas: \[inf, .* from a finite one"),
    "nan": (lambda: sample_dosde(half, X, SIGMAS * math.nan), ValueError, r"sigmas: \[nan, .*; they must decrease"),
    "one sigma": (lambda: sample_dosde(half, X, SIGMAS[:1]), ValueError, r"sigmas: shape \(1,\); a 1-D tensor of at least two"),
    "2-D": (lambda: sample_dosde(half, X, SIGMAS[None]), ValueError, r"sigmas: shape \(1, 4\); a 1-D"),
    "a list": (lambda: sample_dosde(half, X, [2.0, 1.0]), TypeError, r"sigmas: a list; a 1-D floating tensor"),
    "x of integers": (lambda: sample_dosde(half, X.int(), SIGMAS), TypeError, r"x: a int32 tensor .*; a floating tensor"),
    "x nan": (lambda: sample_dosde(half, X * math.nan, SIGMAS), ValueError, r"x: a float32 tensor .*; .* all finite"),
    "x empty": (lambda: sample_dosde(half, X[:0], SIGMAS), ValueError, r"x: .*\(0, 3\).*; a batch of at least one"),
    "no model": (lambda: sample_dosde(None, X, SIGMAS), TypeError, r"model: a NoneType; a function is needed"),
    "callback": (lambda: sample_dosde(half, X, SIGMAS, callback=3), TypeError, r"callback: a int; a function"),
    "noise_sampler": (lambda: sample_dosde(half, X, SIGMAS, noise_sampler=3), TypeError, r"noise_sampler: a int; a function"),
    "order": (lambda: sample_dosde(half, X, SIGMAS, order=4), ValueError, r"order: 4 with steps = 3; 1 to 3"),
    "noise shape": (
        lambda: sample_dosde(half, X, SIGMAS, noise_sampler=lambda s, t: X[:1], disable=True),
        ValueError,
        r"noise_sampler: returned .*\(1, 3\).*; a floating tensor of shape \(2, 3\)",
    ),
    "model's shape": (
        lambda: sample_dosde(lambda x, s: x[:1], X, SIGMAS, disable=True),
        ValueError,
        r"model: returned .*\(1, 3\).* at step 0, t = 1; shape \(2, 3\)",
    ),
    "sigma of a batch": (lambda: as_denoiser(half, X, PROCESS)(X, ONE[:1]), ValueError, r"sigma: .*\(1,\).*; .*shape \(2,\)"),
    "sigma a number": (lambda: as_denoiser(half, X, PROCESS)(X, 1.0), ValueError, r"sigma: a float; .*shape \(2,\)"),
    "two sigmas": (
        lambda: as_denoiser(half, X, PROCESS)(X, SIGMAS[:2]),
        ValueError,
        r"sigma: \[4\.0, 2\.0\]; one value for the whole batch",
    ),
    "sigma not taken": (
        lambda: as_denoiser(half, X, PROCESSES["resshift"])(X, 200 * ONE),
        ValueError,
        r"sigma: 200, as lam: 200\.0; this process has lam from 0 at t = 0 to 99\.4",
    ),
    "y": (
        lambda: as_denoiser(half, X, PROCESS)(X[:, :2], ONE),
        ValueError,
        r"y: .*\(2, 2\).*; .*shape \(2, 3\), that of x_hat0",
    ),
    "model's shape in y": (
        lambda: as_denoiser(lambda x, h, t: x[:1], X, PROCESS)(X, ONE),
        ValueError,
        r"model: returned .*\(1, 3\).* at sigma = 1, t = 0\.2\d+; a floating tensor of shape \(2, 3\)",
    ),
    "field": (lambda: as_denoiser(half, X, FIELD), ValueError, r"process: eta is a field of shape \(3,\); one lam"),
    "no process": (lambda: as_denoiser(half, X), ValueError, r"process: None.* pass process="),
    "x_hat0": (lambda: as_denoiser(half, X.int(), PROCESS), TypeError, r"x_hat0: a int32 tensor"),
    "model of ours": (lambda: as_denoiser(3, X, PROCESS), TypeError, r"model: a int; a function \(x, x_hat0, t\)"),
}


test_wrong_calls = wrong_calls(WRONG)


# -- One model, three libraries -------------------------------------------------------------------------------------------


def test_solve_k_diffusion_and_torchdiffeq_agree_as_steps_grow():
    pytest.importorskip("torchdiffeq")
    rows = agreement.measure((20, 40))
    assert len(rows) == 6
    for name, (coarse, fine) in rows.items():
        order = 1 if name.endswith((" 1", "Euler")) else 3 if " 3 " in name else 2
        assert fine < {1: 0.03, 2: 2e-3, 3: 1e-4}[order]
        assert math.log2(coarse / fine) > order - 0.2, name


def test_nothing_of_theirs_is_imported():
    code = "import sys, dosde.interop.k_diffusion; sys.exit('k_diffusion' in sys.modules or 'torchsde' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
