"""Orders as slopes, in float64: the error over a sequence of step counts, halved steps, tolerance 0.2."""

import functools

import pytest
import torch
from instances import v2

import dosde
from backbones import gaussian
from backbones.mixture import Mixture
from dosde import expansion, method, schedule, shift
from dosde.noise import Brownian
from dosde.process import Process

PROCESS = Process(schedule.scaled_linear(), shift.cosine(0.5))
END = 0.1  # above t = 0: there lam goes like sqrt(t), which no polynomial in lam follows at a uniform grid in t
DOUBLE = torch.float64


def times(steps):
    """From t1 (lam infinite) to END, finer near t1: 1/lam goes like (t1 - t)^2, so the low-order start does not show."""
    s = torch.linspace(0, 1, steps + 1, dtype=DOUBLE)
    return PROCESS.t1 + (END - PROCESS.t1) * s**2


def slope(error, counts):
    """Between the two finest, with all errors well above rounding."""
    errors = [error(n) for n in counts]
    assert all(e > 1e-13 for e in errors)
    return float(torch.log2(torch.tensor(errors[-2] / errors[-1])))


def zeros(u, u_next, like):
    return torch.zeros_like(like)


@pytest.mark.parametrize("variable", [expansion.lam, expansion.log_lam, v2], ids=["lam", "log_lam", "v"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ode_order(order, variable):
    """A two-component mixture; the reference is order 4 on 4,000 steps."""
    law = Mixture(
        torch.tensor([0.3, 0.7], dtype=DOUBLE),
        torch.tensor([[0.0, 1.0], [1.0, -0.5]], dtype=DOUBLE),
        torch.stack([0.3 * torch.eye(2, dtype=DOUBLE), 0.5 * torch.eye(2, dtype=DOUBLE)]),
    )
    x_hat0 = torch.tensor([[0.2, 0.1], [0.8, -0.4]], dtype=DOUBLE)

    @functools.cache
    def run(steps, order, variable):
        return dosde.solve(
            law.model(PROCESS),
            x_hat0,
            steps,
            order,
            process=PROCESS,
            method=functools.partial(method.ode, variable=variable),
            grid=times(steps),
            noise=torch.Generator().manual_seed(3),
        )

    exact = run(4000, 4, expansion.lam)
    got = slope(lambda n: float((run(n, order, variable) - exact).abs().max()), (80, 160, 320))
    assert got == pytest.approx(order, abs=0.2)


DRIFT = {
    ("dos", 1): 1,
    ("dos", 2): 2,
    ("dos", 3): 2,
    ("adams", 1): 1,
    ("adams", 2): 2,
    ("adams", 3): 3,
    ("adams", 4): 4,
}


@pytest.mark.parametrize(("name", "order"), DRIFT)
def test_order_on_the_drift(name, order):
    """x_theta a smooth function of lam alone: what is left is the expansion. The paper's third solver is of order 2."""

    def model(x, x_hat0, t):
        lam = PROCESS(t).lam
        return torch.sin(3 / (1 + lam)).expand_as(x)

    how = {"dos": method.dos, "adams": method.adams}[name]

    def run(steps, order, how):
        x_hat0 = torch.zeros(1, dtype=DOUBLE)
        return float(dosde.solve(model, x_hat0, steps, order, process=PROCESS, method=how, grid=times(steps), noise=zeros))

    exact = run(6000, 4, method.adams)
    got = slope(lambda n: abs(run(n, order, how) - exact), (100, 200, 400))
    assert got == pytest.approx(DRIFT[name, order], abs=0.2)


@pytest.mark.parametrize(("name", "order"), [("dos", 1), ("dos", 2), ("dos", 3), ("adams", 3), ("posterior", 1)])
def test_weak_order_of_an_sde_method(name, order):
    """The exact law of the output on a Gaussian: variance error of order 1, 2, 2. (Its mean is exact: a martingale.)"""
    target = gaussian.diagonal(torch.tensor([0.7, -0.3], dtype=DOUBLE), torch.tensor([0.04, 1.3], dtype=DOUBLE))
    x_hat0 = torch.tensor([0.1, -0.2], dtype=DOUBLE)
    exact = target.at(PROCESS, END, x_hat0)
    how = getattr(method, name)

    def error(steps):
        law = target.law(PROCESS, x_hat0, steps=steps, order=order, method=how, grid=times(steps))
        assert float((law.mean - exact.mean).abs().max()) < 1e-12
        return float((law.variance - exact.variance).abs().max())

    assert slope(error, (100, 200, 400)) == pytest.approx({1: 1, 2: 2, 3: 2}[order], abs=0.2)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_law_of_an_ode_method_has_its_order(order):
    target = gaussian.diagonal(torch.tensor([0.7], dtype=DOUBLE), torch.tensor([0.3], dtype=DOUBLE))
    x_hat0 = torch.tensor([0.1], dtype=DOUBLE)
    exact = target.at(PROCESS, END, x_hat0)

    def error(steps):
        law = target.law(PROCESS, x_hat0, steps=steps, order=order, method=method.ode, grid=times(steps))
        return float((law.variance - exact.variance).abs().max())

    assert slope(error, (80, 160, 320)) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("name", "order"), [("dos", 1), ("dos", 2), ("dos", 3), ("adams", 3)])
def test_strong_order_1(name, order):
    """On one Brownian path a sample: RMS distance to the same path's solution on a fine grid goes like the step."""
    law = Mixture(
        torch.tensor([0.4, 0.6], dtype=DOUBLE),
        torch.tensor([[-0.6], [0.8]], dtype=DOUBLE),
        torch.tensor([[[0.1]], [[0.2]]], dtype=DOUBLE),
    )
    x_hat0 = torch.zeros(200, 1, dtype=DOUBLE)
    path = Brownian(seed=5)

    def run(steps):
        return dosde.solve(
            law.model(PROCESS),
            x_hat0,
            steps,
            order,
            process=PROCESS,
            method=getattr(method, name),
            grid=torch.linspace(PROCESS.t1, END, steps + 1, dtype=DOUBLE),
            noise=path,
        )

    exact = run(1024)

    def error(n):
        return float((run(n) - exact).square().mean().sqrt())

    # The reference has an error of its own, one part in eight of the finest compared: measure over two octaves.
    assert (slope(error, (16, 32)) + slope(error, (32, 64))) / 2 == pytest.approx(1, abs=0.2)
