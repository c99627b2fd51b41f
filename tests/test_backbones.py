"""Closed-form models: Gaussians in every basis, mixtures and their posteriors, the exact law of a plan."""

import copy
import math
import pickle
from functools import partial

import pytest
import scipy.fft
import torch
from instances import PROCESS, randn, seeded
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import backbones
import dosde
from backbones.exact import gaussian
from backbones.exact.mixture import Mixture
from dosde import expansion, grid, method, schedule, shift
from dosde.process import Process

FIELD = Process(schedule.scaled_linear(), shift.linear(torch.tensor([0.6, 1.0])))
DOUBLE = torch.float64


def spectrum(h, w):
    """Positive, and symmetric under f -> -f."""
    fy, fx = torch.fft.fftfreq(h, dtype=DOUBLE)[:, None], torch.fft.fftfreq(w, dtype=DOUBLE)
    power = 0.1 / (0.05 + fy**2 + 2 * fx**2 + fx * fy)
    return (power + power.flip(-2, -1).roll((1, 1), (-2, -1))) / 2


def gaussians():
    root = randn(6, 6)
    return {
        "diagonal": (gaussian.diagonal(randn(6), randn(6).square()), (6,)),
        "full": (gaussian.full(randn(6), root @ root.T / 6), (6,)),
        "fourier": (gaussian.fourier(randn(4, 5), spectrum(4, 5)), (4, 5)),
        "cosine": (gaussian.cosine(randn(4, 5), randn(4, 5).square()), (4, 5)),
    }


def covariance(target, shape):
    """Of x0, as a matrix, from the basis: column j is basis^T diag basis e_j."""
    n = math.prod(shape)
    modes = target.basis.modes(torch.eye(n, dtype=DOUBLE).reshape(n, *shape)) * target.variance
    return target.basis.pixels(modes).reshape(n, n)


@pytest.mark.parametrize("name", ["diagonal", "full", "fourier", "cosine"])
@pytest.mark.parametrize("t", [0.5, 0.3, 0.01])
def test_x_theta_of_a_gaussian_is_the_conditional_mean(name, t):
    """E[x0 | x] by matrix algebra: mean + a C (a^2 C + sigma^2)^-1 (x - a mean - b x_hat0); at a = 0, the mean."""
    target, shape = gaussians()[name]
    n = math.prod(shape)
    C, m = covariance(target, shape), PROCESS(t)
    x, x_hat0 = randn(1, *shape), randn(1, *shape)
    mean = target.basis.pixels(target.mean).reshape(n)
    seen = m.a**2 * C + m.sigma**2 * torch.eye(n, dtype=DOUBLE)
    residual = x.reshape(n) - m.a * mean - m.b * x_hat0.reshape(n)
    expected = mean + m.a * C @ torch.linalg.solve(seen, residual)
    got = target.model(PROCESS)(x, x_hat0, torch.tensor(t, dtype=DOUBLE))
    assert torch.allclose(got.reshape(n), expected, atol=1e-11)


@pytest.mark.parametrize("name", ["full", "fourier", "cosine"])
def test_bases_are_orthogonal_and_samples_have_the_covariance(name):
    target, shape = gaussians()[name]
    x = randn(3, *shape)
    assert torch.allclose(target.basis.pixels(target.basis.modes(x)), x, atol=1e-12)
    assert torch.allclose(target.basis.modes(x).square().sum(), x.square().sum())
    n, count = math.prod(shape), 40_000
    draws = target.sample((count, *shape), seeded(0)).reshape(count, n)
    C = covariance(target, shape)
    scale = (C.diagonal()[:, None] * C.diagonal() + C**2).sqrt() / math.sqrt(count)
    assert float(((torch.cov(draws.T) - C) / scale).abs().max()) < 5
    assert torch.allclose(C, C.T, atol=1e-12)


def test_a_fourier_gaussian_is_stationary():
    target, shape = gaussians()["fourier"]
    C = covariance(target, shape).reshape(4, 5, 4, 5)
    moved = C.roll((1, 2), (0, 1)).roll((1, 2), (2, 3))
    assert torch.allclose(C, moved, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 8), (5, 7), (1, 6), (16, 3)])
def test_dct_is_scipys(shape):
    x = randn(2, *shape)
    expected = torch.from_numpy(scipy.fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho"))
    assert torch.allclose(gaussian.dct2(x), expected, atol=1e-12)
    assert torch.allclose(gaussian.idct2(expected), x, atol=1e-12)


@pytest.mark.parametrize(("how", "order"), [(method.dos, 1), (method.dos, 3), (method.adams, 2), (method.ode, 3)])
def test_the_law_of_a_plan_is_that_of_its_samples(how, order):
    target = gaussian.full(randn(2), torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=DOUBLE))
    x_hat0, count = randn(2), 40_000
    law = target.law(PROCESS, x_hat0, steps=4, order=order, method=how)
    x = dosde.solve(
        target.model(PROCESS),
        x_hat0.expand(count, 2),
        4,
        order,
        process=PROCESS,
        method=how,
        noise=seeded(1),
    )
    modes = law.basis.modes(x)
    assert float(((modes.mean(0) - law.mean) / (law.variance / count).sqrt()).abs().max()) < 4.5
    assert float(((modes.var(0) / law.variance - 1) / math.sqrt(2 / count)).abs().max()) < 4.5


def mixture(k=3, d=2):
    roots = randn(k, d, d)
    return Mixture(randn(k).softmax(0), 2 * randn(k, d), roots @ roots.mT / d + 0.05 * torch.eye(d, dtype=DOUBLE))


def density(law):
    """The same mixture as a torch distribution."""
    return MixtureSameFamily(Categorical(law.weights), MultivariateNormal(law.means, law.covariances))


@pytest.mark.parametrize("t", [0.499, 0.3, 0.05])
def test_x_theta_of_a_mixture_by_tweedie(t):
    """x_theta from the gradient of the log density of x_t, which torch's own mixture gives (Eq. 9 solved for x_theta)."""
    law, m = mixture(), PROCESS(t)
    x, x_hat0 = randn(7, 2).requires_grad_(), randn(7, 2)
    at_t = Mixture(law.weights, m.a * law.means, m.a**2 * law.covariances + m.sigma**2 * torch.eye(2, dtype=DOUBLE))
    log_p = density(at_t).log_prob(x - m.b * x_hat0).sum()
    score = torch.autograd.grad(log_p, x)[0]
    got = law.model(PROCESS)(x.detach(), x_hat0, torch.tensor(t, dtype=DOUBLE))
    assert torch.allclose(PROCESS.score(x.detach(), x_hat0, got, t), score, rtol=1e-8)


def test_x_theta_of_a_mixture_at_eta_1_is_its_mean():
    law = mixture()
    got = law.model(PROCESS)(randn(3, 2), randn(3, 2), torch.tensor(0.5, dtype=DOUBLE))
    assert torch.allclose(got, (law.weights[:, None] * law.means).sum(0).expand(3, 2))


def test_conditioning_is_bayes():
    """p(x0 | y) / (p(x0) p(y | x0)) does not depend on x0."""
    law, A, noise = mixture(k=3, d=4), randn(2, 4), 0.3
    y = randn(5, 2)
    posterior = law.given(y, A, noise)
    x0 = randn(50, 4)
    for i in range(5):
        one = Mixture(posterior.weights[i], posterior.means[i], posterior.covariances)
        likelihood = MultivariateNormal(y[i], noise**2 * torch.eye(2, dtype=DOUBLE)).log_prob(x0 @ A.T)
        ratio = density(one).log_prob(x0) - density(law).log_prob(x0) - likelihood
        assert torch.allclose(ratio, ratio[:1], atol=1e-8)


def test_a_posterior_solves_each_item_of_the_batch():
    """The model of a batch of posteriors is, item by item, that of each."""
    law, A, y = mixture(k=3, d=4), randn(2, 4), randn(5, 2)
    posterior = law.given(y, A, 0.3)
    x, x_hat0, t = randn(5, 4), randn(5, 4), torch.tensor(0.2, dtype=DOUBLE)
    together = posterior.model(PROCESS)(x, x_hat0, t)
    for i in range(5):
        one = Mixture(posterior.weights[i], posterior.means[i], posterior.covariances)
        assert torch.allclose(one.model(PROCESS)(x[i : i + 1], x_hat0[i : i + 1], t), together[i : i + 1])


def test_solve_samples_a_mixture():
    """200 steps of order 2 in log lam on a bimodal law: weights of the modes and their spread."""
    law = Mixture(
        torch.tensor([0.3, 0.7], dtype=DOUBLE),
        torch.tensor([[-1.0], [1.0]], dtype=DOUBLE),
        torch.tensor([[[0.04]], [[0.01]]], dtype=DOUBLE),
    )
    count = 20_000
    x0 = dosde.solve(
        law.model(PROCESS),
        torch.full((count, 1), 0.2, dtype=DOUBLE),
        200,
        2,
        process=PROCESS,
        method=partial(method.adams, variable=expansion.log_lam),
        grid=grid.log_lam(80, 0.01),
        noise=seeded(0),
    )
    left = x0 < 0
    assert float(left.double().mean()) == pytest.approx(0.3, abs=4.5 * math.sqrt(0.21 / count))
    assert float(x0[left].std()) == pytest.approx(0.2, rel=0.03)
    assert float(x0[~left].std()) == pytest.approx(0.1, rel=0.03)
    draws = law.sample(count, seeded(0))
    assert float((draws < 0).double().mean()) == pytest.approx(0.3, abs=4.5 * math.sqrt(0.21 / count))


@pytest.mark.parametrize("name", ["diagonal", "full", "fourier", "cosine", "mixture"])
def test_closed_forms_copy_pickle_and_compare_by_value(name):
    target, shape = (mixture(), (2,)) if name == "mixture" else gaussians()[name]
    x, x_hat0, t = randn(2, *shape), randn(2, *shape), torch.tensor(0.3, dtype=DOUBLE)
    expected = target.model(PROCESS)(x, x_hat0, t)
    for other in (copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        assert (other, hash(other), repr(other)) == (target, hash(target), repr(target))
        assert torch.equal(other.model(PROCESS)(x, x_hat0, t), expected)
    assert "0x" not in repr(target)


@pytest.mark.parametrize(
    ("name", "options", "shown"),
    [
        ("embedded", {}, "backbones.load('embedded')"),
        ("embedded", {"tile": None, "device": "cpu"}, "backbones.load('embedded', tile=None, device='cpu')"),
        ("gaussian", {}, "backbones.load('gaussian')"),
        ("gaussian", {"process": PROCESS}, f"backbones.load('gaussian', process={PROCESS})"),
    ],
)
def test_backbones_print_as_the_call_that_loads_them_copy_and_pickle(name, options, shown):
    backbone = backbones.load(name, **options)
    picture, noise = torch.rand(1, 3, 6, 5), torch.Generator()
    expected = backbones.upscale(backbone, picture, 2, 2, noise=noise.manual_seed(0))
    assert repr(backbone) == shown
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert repr(other) == shown
        assert torch.equal(backbones.upscale(other, picture, 2, 2, noise=noise.manual_seed(0)), expected)


@pytest.mark.parametrize("name", ["embedded", "gaussian"])
def test_the_default_device_of_torch_changes_no_picture(name):
    """On "meta" no number can be read: whatever is made there by default fails."""
    picture = torch.rand(1, 3, 6, 5)
    expected = backbones.upscale(backbones.load(name), picture, 4, 2, noise=seeded())
    with torch.device("meta"):
        found = backbones.upscale(backbones.load(name), picture, 4, 2, noise=seeded())
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian.full(randn(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])), r"covariance: eigenvalue -1"),
        (lambda: gaussian.full(randn(2), randn(2, 3)), r"covariance: shape \(2, 3\)"),
        (lambda: gaussian.diagonal(randn(2), -torch.ones(2)), r"variance: values that are negative"),
        (lambda: gaussian.fourier(randn(4, 4), torch.rand(4, 4)), r"spectrum: not symmetric"),
        (
            lambda: Mixture(torch.ones(2), randn(2, 3), torch.eye(3).expand(2, 3, 3)),
            r"weights: \[1\.0, 1\.0\]; .* sum to 1",
        ),
        (
            lambda: Mixture(torch.ones(2) / 2, randn(3, 3), torch.eye(3).expand(2, 3, 3)),
            r"shapes \(2,\), \(3, 3\), \(2, 3, 3\)",
        ),
        (lambda: gaussian.full(randn(2), torch.eye(2, dtype=DOUBLE)).model(FIELD), r"process: eta is a field of shape \(2,\)"),
        (lambda: mixture().model(FIELD), r"process: eta is a field of shape \(2,\)"),
        (lambda: mixture().given(randn(1, 2), randn(2, 2), 0.0), r"noise: 0\.0; a positive std"),
        (lambda: mixture().given(randn(1, 3), randn(2, 2), 0.1), r"A, y: shapes \(2, 2\), \(1, 3\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
