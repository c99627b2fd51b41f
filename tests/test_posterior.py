"""Posteriors of linear measurements: adjoints, the exact law on Gaussian priors, other libraries' objects, wrong use."""

import copy
import math
import pickle

import pytest
import torch
from instances import DOUBLE, PROCESS, randn, seeded, tensor, wrong_calls
from torch import nn

import dosde
from backbones.pictures.resize import bicubic
from dosde import grid, method, posterior, presets
from dosde.interop import from_denoiser
from dosde.interop.k_diffusion import sample_dosde

# -- Operators --------------------------------------------------------------------------------------------------------------

KERNEL = tensor([[0.0, 0.1, 0.05], [0.2, 0.4, 0.1], [0.05, 0.1, 0.0]])
TALL = torch.linspace(0.1, 0.5, 15, dtype=DOUBLE).reshape(5, 3)
PICTURE = (2, 3, 12, 8)
DOWN = posterior.downsampling((12, 8), (3, 2))
OPERATORS = {
    "downsampling": (DOWN, PICTURE),
    "downsampling, odd": (posterior.downsampling((12, 8), (5, 8)), PICTURE),
    "blur": (posterior.blur(KERNEL), PICTURE),
    "blur, tall": (posterior.blur(TALL), PICTURE),
    "blur, circular": (posterior.blur(TALL, "circular"), PICTURE),
    "mask": (posterior.mask(torch.arange(96).reshape(12, 8) % 3 == 0), PICTURE),
    "grey": (posterior.grey(), PICTURE),
    "grey of two": (posterior.grey((0.3, 0.9)), (2, 2, 5)),
    "matrix": (posterior.matrix(torch.arange(12.0, dtype=DOUBLE).reshape(3, 4)), (2, 5, 4)),
    "linear": (posterior.linear(lambda x: x.flip(-1).cumsum(-1)[..., ::2].flatten(1), (3, 12, 8)), PICTURE),
    "blurred and smaller": (DOWN @ posterior.blur(KERNEL), PICTURE),
    "three": (posterior.grey() @ DOWN @ posterior.blur(KERNEL), PICTURE),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_adjoint_is_the_adjoint(name):
    A, shape = OPERATORS[name]
    x, w = randn(*shape), randn(*shape)
    v = torch.randn_like(A(x))
    torch.testing.assert_close((A(x) * v).sum(), (x * A.adjoint(v)).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(A(2 * x - w), 2 * A(x) - A(w), rtol=1e-12, atol=1e-12)
    assert A.adjoint(v).shape == x.shape
    assert A(x.float()).dtype == A.adjoint(v.float()).dtype == torch.float32
    with torch.inference_mode():
        torch.testing.assert_close(A.adjoint(v.clone()), A.adjoint(v))
    for again in (copy.deepcopy(A), A if "linear" in name else pickle.loads(pickle.dumps(A))):
        assert again == A
        assert torch.equal(again.adjoint(v), A.adjoint(v))


def test_operators_are_what_their_names_say():
    x = randn(*PICTURE)
    assert torch.equal(DOWN(x), bicubic(x, (3, 2)))
    delta = torch.zeros(1, 1, 7, 7, dtype=DOUBLE)
    delta[..., 3, 3] = 1
    assert torch.equal(posterior.blur(KERNEL)(delta)[0, 0, 2:5, 2:5], KERNEL)  # a convolution, not a correlation
    torch.testing.assert_close(posterior.grey()(torch.ones(1, 3, 4, 4)), torch.ones(1, 1, 4, 4))
    assert torch.equal(posterior.mask(tensor([1, 0, 1]))(tensor([[5, 6, 7]])), tensor([[5, 0, 7]]))


# -- Gaussian priors --------------------------------------------------------------------------------------------------------


class Prior:
    """N(mean, Q diag(c) Q^T) in d dimensions, a measurement of it, and the closed forms."""

    def __init__(self, d, m, noise=0.1, white=None, square=False):
        g = seeded(3)

        def draw(*shape):
            return torch.randn(*shape, generator=g, dtype=DOUBLE)

        self.q = torch.linalg.qr(draw(d, d))[0]
        self.c = torch.arange(1, d + 1, dtype=DOUBLE) ** -1.5 if white is None else torch.full((d,), white**2, dtype=DOUBLE)
        self.mean, self.noise = draw(d), noise
        self.rows = draw(m, d) / math.sqrt(d) + (2 * torch.eye(d, dtype=DOUBLE) if square else 0)
        self.C = self.q @ torch.diag(self.c) @ self.q.mT
        self.A = posterior.matrix(self.rows)
        self.measurement = draw(1, m)

    def __call__(self, y, sigma):
        s2 = sigma.reshape(-1, 1) ** 2
        return self.mean.to(y) + ((y - self.mean.to(y)) @ self.q.to(y) * (self.c.to(y) / (self.c.to(y) + s2))) @ self.q.mT.to(y)

    def law(self):
        """Mean and covariance of x0 given the measurement."""
        cross = self.C @ self.rows.mT
        seen = self.rows @ cross + self.noise**2 * torch.eye(len(self.rows), dtype=DOUBLE)
        gain = torch.linalg.solve(seen, cross.mT).mT
        return self.mean + gain @ (self.measurement[0] - self.rows @ self.mean), self.C - gain @ cross.mT

    def given(self, y, sigma):
        """E[x0 | y, measurement]."""
        mean, C = self.law()
        return mean + (y - mean) @ torch.linalg.solve(C + sigma**2 * torch.eye(len(C), dtype=DOUBLE), C)


class Flat(Prior):
    """A prior of infinite variance: its denoiser is the identity. Only a regular A gives it a posterior."""

    def __call__(self, y, sigma):
        return y

    def law(self):
        inverse = torch.linalg.inv(self.rows)
        return inverse @ self.measurement[0], self.noise**2 * inverse @ inverse.mT


FULL, WHITE, FLAT = Prior(6, 3), Prior(6, 3, white=0.4), Flat(4, 4, noise=0.3, square=True)
EXACT = {
    "mmps": (FULL, posterior.mmps(FULL, FULL.measurement, FULL.A, FULL.noise, iterations=3)),
    "mmps, white": (WHITE, posterior.mmps(WHITE, WHITE.measurement, WHITE.A, WHITE.noise, iterations=3)),
    "mmps, flat": (FLAT, posterior.mmps(FLAT, FLAT.measurement, FLAT.A, FLAT.noise, iterations=4)),
    "jacobian_free": (FULL, posterior.jacobian_free(FULL, FULL.measurement, FULL.A, FULL.noise, posterior.full(FULL.C))),
    "jacobian_free, in a basis": (
        FULL,
        posterior.jacobian_free(
            FULL,
            FULL.measurement,
            FULL.A,
            FULL.noise,
            posterior.Covariance(FULL.c, lambda x: x @ FULL.q.to(x), lambda x: x @ FULL.q.mT.to(x)),
        ),
    ),
    "jacobian_free, white": (
        WHITE,
        posterior.jacobian_free(WHITE, WHITE.measurement, WHITE.A, WHITE.noise, posterior.Covariance(0.4**2)),
    ),
    "pigdm": (WHITE, posterior.pigdm(WHITE, WHITE.measurement, WHITE.A, WHITE.noise, std=0.4)),
    "diffpir": (FLAT, posterior.diffpir(FLAT, FLAT.measurement, FLAT.A, FLAT.noise)),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_denoiser_is_that_of_the_posterior(name):
    prior, denoiser = EXACT[name]
    y = randn(5, len(prior.mean))
    for sigma in (1e-3, 0.05, 0.3, 1.0, 7.0, 100.0):
        expected = prior.given(y, sigma)
        torch.testing.assert_close(denoiser(y, torch.full((5,), sigma, dtype=DOUBLE)), expected, rtol=1e-7, atol=1e-7)
        close = denoiser(y.float(), torch.full((5,), sigma))
        torch.testing.assert_close(close, expected.float(), rtol=2e-3, atol=2e-3)
    sigmas = tensor([1e-3, 0.05, 0.3, 1.0, 7.0])  # one a sample
    alone = [denoiser(y[i : i + 1], sigmas[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(denoiser(y, sigmas), torch.cat(alone))
    end = denoiser(y.float(), torch.full((5,), 1e15))  # what from_denoiser calls lam = infinity
    if not isinstance(prior, Flat):
        torch.testing.assert_close(end, prior.law()[0].float().expand(5, -1), rtol=2e-3, atol=2e-3)


def solved(denoiser, d, steps, draws, **how):
    """Mean and covariance of the result of a solve, exactly: by its responses to each element of each draw, in one batch."""
    unit = torch.cat([torch.zeros(1, draws, d, dtype=DOUBLE), torch.eye(draws * d, dtype=DOUBLE).reshape(-1, draws, d)])
    count = iter(range(draws))
    x = dosde.solve(
        from_denoiser(denoiser, PROCESS),
        torch.zeros(len(unit), d, dtype=DOUBLE),
        steps,
        process=PROCESS,
        noise=lambda u, u_next, like: unit[:, next(count)],
        **how,
    )
    responses = x[1:] - x[0]
    return x[0], responses.mT @ responses


@pytest.mark.parametrize("name", [name for name in EXACT if "flat" not in name and name != "diffpir"])
def test_the_law_of_few_steps_is_the_posterior(name):
    prior, denoiser = EXACT[name]
    mean, C = prior.law()
    scale = math.sqrt(float(C.trace()) / len(C))
    found, covariance = solved(denoiser, len(C), 4, 1, **presets.few_step(scale))
    assert float((found - mean).norm()) < 0.02 * scale * math.sqrt(len(C))
    assert float((covariance - C).norm()) < 0.1 * float(C.norm())


@pytest.mark.parametrize("name", EXACT)
def test_the_law_of_many_steps_tends_to_the_posterior(name):
    """From lam = 1000 on, at x_hat0 in place of x0; the ODE has one draw."""
    prior, denoiser = EXACT[name]
    mean, C = prior.law()
    how = {"method": method.using(method.ode, variable=dosde.expansion.log_lam), "order": 2}
    errors = []
    for steps in (40, 80):
        found, covariance = solved(denoiser, len(C), steps, 1, grid=grid.log_lam(1000.0, 1e-3), **how)
        errors.append(float((covariance - C).norm() / C.norm()))
        assert float((found - mean).norm()) < 0.03 * float(C.trace().sqrt())
    assert errors[1] < 0.02
    assert errors[1] < 0.5 * errors[0]


def test_the_reverse_sde_tends_to_the_posterior_as_well():
    prior, denoiser = EXACT["jacobian_free"]
    mean, C = prior.law()
    how = {"method": method.using(method.adams, variable=dosde.expansion.log_lam), "order": 2}
    found, covariance = solved(denoiser, len(C), 60, 61, grid=grid.log_lam(100.0, 1e-2), **how)
    assert float((found - mean).norm()) < 0.03 * float(C.trace().sqrt())
    assert float((covariance - C).norm() / C.norm()) < 0.04


def test_samplers_of_k_diffusion_take_the_posterior():
    prior, denoiser = EXACT["mmps"]
    mean, C = prior.law()
    sigmas = torch.cat([torch.logspace(2, -2, 30, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)])
    x = 100 * torch.randn(4000, 6, generator=seeded(), dtype=DOUBLE)
    x0 = sample_dosde(denoiser, x, sigmas, disable=True, order=2, method=method.ode)
    torch.testing.assert_close(x0.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(x0.mT), C, rtol=0, atol=0.05)


def test_guidance_is_bounded_and_lowers_the_residual():
    denoiser = posterior.dps(FULL, FULL.measurement, FULL.A, FULL.noise)
    y = randn(5, 6)
    for sigma in (0.1, 1.0, 100.0):
        sigmas = torch.full((5,), sigma, dtype=DOUBLE)
        before, after = FULL(y, sigmas), denoiser(y, sigmas)
        r = FULL.measurement - FULL.A(before)
        J = FULL.q @ torch.diag(FULL.c / (FULL.c + sigma**2)) @ FULL.q.mT
        square = r.square().mean(1, keepdim=True).clamp(min=FULL.noise**2)
        torch.testing.assert_close(after, before + sigma**2 * (r / square) @ FULL.rows @ J)
    half = posterior.dps(FULL, FULL.measurement, FULL.A, FULL.noise, weight=0.5)(y, sigmas)
    torch.testing.assert_close(half - before, (after - before) / 2)


def test_the_weight_of_the_prior_is_that_of_its_equation():
    y, sigma = randn(5, 6), 0.3
    x0 = FULL(y, torch.full((5,), sigma, dtype=DOUBLE))
    found = posterior.diffpir(FULL, FULL.measurement, FULL.A, FULL.noise, weight=3.0)(y, torch.full((5,), sigma, dtype=DOUBLE))
    gradient = (FULL.A(found) - FULL.measurement) @ FULL.rows / FULL.noise**2 + 3 * (found - x0) / sigma**2
    assert float(gradient.abs().max()) < 1e-6


def test_the_scale_is_the_std_of_the_posterior():
    for name in ("mmps", "jacobian_free", "pigdm"):
        prior, denoiser = EXACT[name]
        C = prior.law()[1]
        right = math.sqrt(float(C.trace()) / len(C))
        found = posterior.scale(denoiser, torch.zeros(64, len(C), dtype=DOUBLE), 100.0, probes=16, noise=seeded())
        assert abs(found - right) < 0.02 * right
        found = posterior.scale(denoiser, torch.zeros(64, len(C)), 20.0, noise=seeded())
        assert abs(found - right) < 0.05 * right


# -- What else denoisers are ------------------------------------------------------------------------------------------------


class Physics(nn.Module):
    """The interface of a linear physics of deepinv: A, A_adjoint, and A_dagger, which is no adjoint; calling it adds noise."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rows", FULL.rows)

    def A(self, x, **kwargs):
        return x @ self.rows.mT

    def A_adjoint(self, y, **kwargs):
        return y @ self.rows

    def A_dagger(self, y, **kwargs):
        return y @ torch.linalg.pinv(self.rows).mT

    def forward(self, x):
        return self.A(x) + torch.randn(len(x), 3)


def test_physics_of_deepinv_and_pairs_are_operators():
    y, sigma, physics = randn(2, 6), torch.full((2,), 0.3, dtype=DOUBLE), Physics()
    expected = EXACT["mmps"][1](y, sigma)
    for A in (physics, (physics.A, physics.A_adjoint), [physics.A, physics.A_adjoint]):
        torch.testing.assert_close(posterior.mmps(FULL, FULL.measurement, A, 0.1, iterations=3)(y, sigma), expected)


class Net(nn.Module):
    """A module in single precision that returns what diffusers' do, with a largest sigma."""

    sigma_max = 80.0

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, y, sigma, shift=0.0):
        assert y.dtype == sigma.dtype == torch.float32
        assert float(sigma.max()) <= 80
        return (self.gain * FULL(y, sigma) + shift,)


def test_modules_keywords_and_inference_mode():
    net = Net()
    denoiser = posterior.mmps(net, FULL.measurement, FULL.A, 0.1, iterations=3)
    assert denoiser.sigma_max == 80
    assert EXACT["mmps"][1].sigma_max == EXACT["pigdm"][1].sigma_max == 1000
    assert not hasattr(EXACT["jacobian_free"][1], "sigma_max")
    y, sigma = randn(2, 6), torch.full((2,), 0.3, dtype=DOUBLE)
    torch.testing.assert_close(denoiser(y, sigma), EXACT["mmps"][1](y, sigma), rtol=1e-4, atol=1e-4)
    moved = posterior.jacobian_free(net, FULL.measurement, FULL.A, 0.1, posterior.full(FULL.C))
    assert not torch.allclose(moved(y, sigma), moved(y, sigma, shift=1.0))
    x_hat0 = torch.zeros(2, 6)
    expected = dosde.solve(from_denoiser(denoiser, PROCESS), x_hat0, 3, process=PROCESS, noise=seeded())
    with torch.inference_mode():
        inside = dosde.solve(from_denoiser(denoiser, PROCESS), x_hat0.clone(), 3, process=PROCESS, noise=seeded())
    assert torch.equal(expected, inside)
    assert net.gain.grad is None
    assert not expected.requires_grad


def test_pictures_take_every_operator():
    def prior(y, sigma):
        return y / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    x0 = randn(*PICTURE)
    for name in ("downsampling", "blur", "mask", "grey", "three", "linear"):
        A = OPERATORS[name][0]
        denoiser = posterior.pigdm(prior, A(x0), A, 0.01, iterations=60)
        found = denoiser(randn(*PICTURE), torch.full((2,), 50.0, dtype=DOUBLE))
        assert float((A(found) - A(x0)).abs().max()) < 0.05  # large sigma, little noise: the measurement decides


def test_denoisers_of_posteriors_are_values():
    denoiser = posterior.mmps(FULL, FULL.measurement, FULL.A, 0.1, iterations=3)
    assert denoiser == EXACT["mmps"][1] != posterior.mmps(FULL, FULL.measurement, FULL.A, 0.2, iterations=3)
    assert repr(denoiser).startswith("dosde.posterior.methods.mmps(denoiser=")
    assert "weight=2.0" in repr(posterior.dps(FULL, FULL.measurement, FULL.A, 0.1, weight=2.0))


# -- Wrong use --------------------------------------------------------------------------------------------------------------

Y, SIGMA = torch.zeros(2, 6, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE)


def call(make=posterior.mmps, denoiser=FULL, measurement=FULL.measurement, operator=FULL.A, noise=0.1, y=Y, sigma=SIGMA, **how):
    return lambda: make(denoiser, measurement, operator, noise, **how)(y, sigma)


@torch.no_grad()
def without_gradients(y, sigma):
    return FULL(y, sigma)


class NonLinear:
    """A physics of deepinv that is not linear: no adjoint."""

    def A(self, x):
        return x**2


test_wrong_calls = wrong_calls(
    {
        "shape": (call(measurement=torch.zeros(1, 4)), ValueError, r"^measurement: shape \(1, 4\); \(2, 3\), that of A x0"),
        "batch": (call(measurement=torch.zeros(3, 3)), ValueError, r"^measurement: shape \(3, 3\); \(2, 3\), that of A x0"),
        "shape, cheap": (call(posterior.diffpir, measurement=torch.zeros(1, 4)), ValueError, "^measurement: shape"),
        "integers": (call(measurement=torch.zeros(1, 3, dtype=torch.int64)), ValueError, "^measurement: a int64 tensor"),
        "nan": (call(measurement=torch.full((1, 3), math.nan)), ValueError, "^measurement: holds NaN"),
        "no tensor": (call(measurement="x0"), TypeError, "^measurement: 'x0'; a tensor is needed"),
        "no adjoint": (
            call(operator=lambda x: x[:, :3]),
            TypeError,
            r"^operator: .*, without an adjoint; an Operator, a pair .* or posterior.linear\(A, shape\) is needed",
        ),
        "not linear": (call(operator=NonLinear()), TypeError, "^operator: a NonLinear, without an adjoint; an Operator"),
        "three": (call(operator=(abs, abs, abs)), TypeError, "^operator: .*; an Operator, a pair"),
        "none": (call(operator=None), TypeError, "^operator: a NoneType; an Operator, a pair"),
        "a pseudo-inverse": (
            call(operator=(Physics().A, Physics().A_dagger)),
            ValueError,
            "^operator: <A x, A x> = .*; an adjoint, <A x, v> = <x, A.T v>, is needed, and no pseudo-inverse",
        ),
        "another x": (
            call(operator=posterior.matrix(torch.ones(3, 5))),
            ValueError,
            r"^operator: fails for x0 of shape \(2, 6\) .*; a linear map of x0 is needed",
        ),
        "another size": (
            call(operator=DOWN, y=torch.zeros(2, 3, 8, 8), denoiser=lambda y, sigma: y),
            ValueError,
            r"^size: \(12, 8\); \(8, 8\), that of x0 of shape \(2, 3, 8, 8\), is needed",
        ),
        "adjoint of another shape": (
            call(operator=(FULL.A.forward, lambda v: v)),
            ValueError,
            r"^operator: returned a float64 tensor of shape \(2, 3\) on cpu; A.T A x0 must have the shape of x0, \(2, 6\)",
        ),
        "no noise": (call(noise=0.0), ValueError, "^noise: 0.0; a positive std is needed"),
        "negative": (call(noise=-1.0), ValueError, "^noise: -1.0; a positive std"),
        "infinite": (call(noise=math.inf), ValueError, "^noise: inf; a positive std"),
        "iterations": (call(iterations=0), ValueError, "^iterations: 0; a positive integer"),
        "weight": (call(posterior.diffpir, weight=0), ValueError, "^weight: 0; a positive number"),
        "guidance": (call(posterior.dps, weight=math.nan), ValueError, "^weight: nan; a positive number"),
        "std": (call(posterior.pigdm, std=-1), ValueError, "^std: -1; a positive number"),
        "no denoiser": (call(denoiser=3), TypeError, "^denoiser: 3; a function is needed"),
        "covariance": (
            call(posterior.jacobian_free, covariance=2.0),
            TypeError,
            "^covariance: 2.0; a dosde.Covariance",
        ),
        "variance": (lambda: posterior.Covariance(0.0), ValueError, "^variance: 0.0; positive finite values"),
        "indefinite": (
            lambda: posterior.full(torch.diag(tensor([1, -1]))),
            ValueError,
            "^matrix: its least eigenvalue is -1; a symmetric positive",
        ),
        "no gradients": (
            call(denoiser=without_gradients),
            ValueError,
            "^denoiser: .*without_gradients; one that gradients pass through is needed",
        ),
        "one sigma": (call(sigma=torch.tensor(1.0)), TypeError, r"^sigma: shape \(\); a tensor of shape \(2,\), one sigma"),
        "a number": (call(sigma=1.0), TypeError, r"^sigma: 1.0; a tensor of shape \(2,\)"),
        "y": (call(y=None), TypeError, "^y: a NoneType; a floating tensor"),
        "output": (
            call(denoiser=lambda y, sigma: y[:1]),
            ValueError,
            r"^denoiser: returned shape \(1, 6\); shape \(2, 6\) is needed",
        ),
        "even kernel": (lambda: posterior.blur(torch.ones(2, 3)), ValueError, r"^kernel: shape \(2, 3\); a 2-D tensor of odd"),
        "borders": (lambda: posterior.blur(torch.ones(3, 3), "same"), ValueError, "^borders: 'same'; one of reflect, circular"),
        "larger": (
            lambda: posterior.downsampling((8, 8), (9, 4)),
            ValueError,
            r"^to: \(9, 4\); a \(height, width\)",
        ),
        "size": (lambda: posterior.downsampling((8,), (4,)), ValueError, r"^size: \(8,\); \(height, width\), positive"),
        "rows": (lambda: posterior.matrix(torch.ones(3)), ValueError, r"^rows: shape \(3,\); a matrix \(m, d\)"),
        "a dead denoiser": (
            lambda: posterior.scale(lambda y, sigma: 0 * y, torch.zeros(1, 3), 1.0),
            ValueError,
            "^denoiser: has a variance of 0 at sigma = 1; one whose output follows its input",
        ),
        "sigma": (lambda: posterior.scale(FULL, torch.zeros(1, 6), 0.0), ValueError, "^sigma: 0.0; a positive number"),
    }
)
