"""torchsde as the independent solver: Eq. 7 in t has the law of the model and of `solve`, the collapsed form their path."""

import math

import pytest
import torch
from instances import PROCESS, seeded

import dosde
from backbones.exact import gaussian
from dosde import method, reference, shift
from dosde.noise import Brownian
from dosde.process import Process

DOUBLE = torch.float64
TARGET = gaussian.full(torch.tensor([0.8, -0.5], dtype=DOUBLE), torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=DOUBLE))
SOURCE = torch.tensor([-0.6, 0.9], dtype=DOUBLE)
START, END, SAMPLES = 0.45, 0.08, 20_000


class WrongSign(Process):
    """The score with its sign turned."""

    def score(self, x, x_hat0, x_theta, t):
        return -super().score(x, x_hat0, x_theta, t)


class WrongShift(Process):
    """h without its 1/(1 - eta)."""

    def h(self, t):
        m = self(t)
        return super().h(t) * m.a / m.alpha


class NoShift(Process):
    """The shift forgotten: h = 0."""

    def h(self, t):
        return 0 * super().h(t)


class WrongNoise(Process):
    """The forward diffusion of plain VP, g^2 = beta."""

    def g(self, t):
        return Process(self.schedule, shift.none()).g(t)


def distance(process, samples, steps):
    """Of the sample law that torchsde reaches with this process' f, h, g, score from the exact law, in standard errors."""
    generator = seeded(0)
    x_hat0 = SOURCE.expand(samples, 2)
    x = TARGET.at(PROCESS, START, SOURCE).sample((samples, 2), generator)
    x = reference.reverse_sde(TARGET.model(PROCESS), process, x, x_hat0, START, END, steps=steps, seed=1)
    exact = TARGET.at(PROCESS, END, SOURCE)
    modes = exact.basis.modes(x)
    mean = (modes.mean(0) - exact.mean) / (exact.variance / samples).sqrt()
    variance = (modes.var(0) / exact.variance - 1) / math.sqrt(2 / samples)
    correlation = torch.corrcoef(modes.T)[0, 1] * math.sqrt(samples)
    return float(torch.cat([mean, variance, correlation[None]]).abs().max())


def test_equation_7_in_t_has_the_law_of_the_process():
    """4.5 standard errors of 20,000 samples, plus the bias of 400 Euler steps (which is below one)."""
    assert distance(PROCESS, SAMPLES, 400) < 5


def test_a_tenth_of_the_samples_is_enough_for_the_right_process():
    """So that what the next test notices is the mistake."""
    assert distance(PROCESS, 2000, 200) < 5


@pytest.mark.parametrize("wrong", [WrongSign, WrongShift, NoShift, WrongNoise])
def test_a_wrong_sign_or_coefficient_is_noticed(wrong):
    """The same measure."""
    assert distance(wrong(PROCESS.schedule, PROCESS.shift), 2000, 200) > 10


def test_torchsde_and_solve_reach_one_law():
    """From the start of `solve`, which is not the marginal, both reach the same (inexact) law."""
    steps, start = 300, 0.25
    grid = torch.linspace(start, END, steps + 1, dtype=DOUBLE)
    law = TARGET.law(PROCESS, SOURCE, steps=steps, order=2, method=method.dos, grid=grid)
    exact = TARGET.at(PROCESS, END, SOURCE)
    m = PROCESS(start)
    generator = seeded(0)
    x_hat0 = SOURCE.expand(SAMPLES, 2)
    x = m.alpha * x_hat0 + m.sigma * torch.randn(SAMPLES, 2, dtype=DOUBLE, generator=generator)
    x = reference.reverse_sde(TARGET.model(PROCESS), PROCESS, x, x_hat0, start, END, steps=400, seed=2)
    modes = law.basis.modes(x)
    errors = torch.cat(
        [
            (modes.mean(0) - law.mean) / (law.variance / SAMPLES).sqrt(),
            (modes.var(0) / law.variance - 1) / math.sqrt(2 / SAMPLES),
        ]
    )
    assert float(errors.abs().max()) < 5
    # The start matters: the exact law is visibly another.
    assert float(((law.mean - exact.mean) / (law.variance / SAMPLES).sqrt()).abs().max()) > 5


def test_the_collapsed_form_on_one_path():
    """dm = x_theta du + dW on one path, by torchsde in 384 steps: `solve` tends to it as its steps grow from 6 to 96."""
    x_hat0 = SOURCE.expand(20, 2).contiguous()
    path = Brownian(seed=6)
    model = TARGET.model(PROCESS)
    fine = torch.linspace(START, END, 97, dtype=DOUBLE)
    exact = reference.collapsed(model, PROCESS, x_hat0, fine, path, substeps=4)

    def error(n, order):
        x = dosde.solve(model, x_hat0, n, order, process=PROCESS, grid=fine[:: 96 // n], noise=path)
        return float((x - exact).square().mean().sqrt())

    for order in (1, 2):
        errors = [error(n, order) for n in (6, 24, 96)]
        assert errors[0] > 2 * errors[1] > 4 * errors[2]
        assert errors[2] < 0.015


@pytest.mark.parametrize("start", [START, 0.5])
def test_solver_1_is_euler_maruyama_of_the_collapsed_form(start):
    """One Euler step of torchsde in u for each step of Solver-1: the same numbers, though neither knows the other."""
    x_hat0 = SOURCE.expand(5, 2).contiguous()
    path = Brownian(seed=8)
    times = torch.linspace(start, END, 13, dtype=DOUBLE)
    model = TARGET.model(PROCESS)
    euler = reference.collapsed(model, PROCESS, x_hat0, times, path, substeps=1)
    ours = dosde.solve(model, x_hat0, 12, 1, process=PROCESS, grid=times, noise=path)
    assert torch.allclose(ours, euler, rtol=0, atol=1e-9)


def test_the_collapsed_form_needs_the_right_path():
    x_hat0 = SOURCE.expand(20, 2).contiguous()
    model = TARGET.model(PROCESS)
    fine = torch.linspace(START, END, 25, dtype=DOUBLE)
    exact = reference.collapsed(model, PROCESS, x_hat0, fine, Brownian(seed=6), substeps=2)
    other = dosde.solve(model, x_hat0, 24, 1, process=PROCESS, grid=fine, noise=Brownian(seed=7))
    assert float((other - exact).square().mean().sqrt()) > 0.2
