"""Noise: the law, Brownian additivity and refinement, batches that equal their items."""

import itertools
import math

import pytest
import torch
from instances import PROCESS, model, seeded
from scipy import stats

import dosde
from dosde import method
from dosde.noise import Brownian, Independent

LIKE = torch.zeros(2000, dtype=torch.float64)


@pytest.mark.parametrize("noise", [Brownian(seed=1), Independent(seeded(1))], ids=["path", "draws"])
@pytest.mark.parametrize(("u", "u_next"), [(0, 0), (0, 1e-9), (0, 1), (0.3, 0.300001), (1, 2), (0.7, 900.0), (1e-4, 3e4)])
def test_unit_normal(noise, u, u_next):
    z = noise(float(u), float(u_next), LIKE)
    assert z.dtype == LIKE.dtype
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3


def test_brownian_has_the_covariance_of_brownian_motion():
    path, clock = Brownian(seed=2), [0.02, 0.3, 0.99, 1.0, 1.01, 5.0, 300.0]
    w = torch.stack([path.value(u, LIKE.shape) for u in clock])
    for i, j in itertools.product(range(len(clock)), repeat=2):
        correlation = float((w[i] * w[j]).mean()) / math.sqrt(clock[i] * clock[j])
        expected = min(clock[i], clock[j]) / math.sqrt(clock[i] * clock[j])
        assert correlation == pytest.approx(expected, abs=4.5 / math.sqrt(len(LIKE)))


def test_increments_are_independent():
    path, clock = Brownian(seed=3), [0.0, 1e-3, 0.2, 0.21, 0.9, 1.7, 64.0, 65.0]
    z = torch.stack([path(u, v, LIKE) for u, v in itertools.pairwise(clock)])
    assert float((z @ z.T / len(LIKE) - torch.eye(len(z))).abs().max()) < 4.5 / math.sqrt(len(LIKE))
    assert float((path(0.0, 0.0, LIKE) * z).mean(1).abs().max()) < 4.5 / math.sqrt(len(LIKE))


def test_one_path_whatever_is_asked_in_whatever_order():
    clock = torch.rand(40, dtype=torch.float64, generator=seeded(0)).mul(6).exp().tolist()
    forth = {u: Brownian(seed=4).value(u, LIKE.shape) for u in sorted(clock)}
    same = Brownian(seed=4)
    for u in clock:
        assert torch.equal(same.value(u, LIKE.shape), forth[u])
    coarse = Brownian(seed=4)(1.0, 400.0, LIKE) * math.sqrt(399)
    fine = sum(
        Brownian(seed=4)(u, v, LIKE) * math.sqrt(v - u)
        for u, v in itertools.pairwise([1.0, *sorted(u for u in clock if u < 400), 400.0])
    )
    assert torch.allclose(coarse, fine, atol=1e-12)
    assert not torch.allclose(Brownian(seed=5)(1.0, 400.0, LIKE) * math.sqrt(399), coarse)


def test_refining_a_solve_on_one_path_refines_one_picture():
    x_hat0 = torch.randn(1, 3, 8, 8, dtype=torch.float64)

    def run(steps, seed):
        times = torch.linspace(0.5, 0.05, steps + 1, dtype=torch.float64)
        return dosde.solve(model, x_hat0, steps, 2, process=PROCESS, grid=times, noise=Brownian(seed))

    far = (run(40, 0) - run(40, 1)).std()
    near = (run(40, 0) - run(80, 0)).std()
    assert float(near) < 0.05 * float(far)


@pytest.mark.parametrize("shape", [(3, 8, 8), (5,), (1, 7, 3), (4, 33, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("how", [method.dos, method.ode])
def test_a_batch_is_its_items_bit_for_bit(shape, dtype, how):
    def elementwise(x, x_hat0, t):  # no matrix product, whose order of summation depends on the batch
        return (x * 0.5 + x_hat0 * 0.2).clamp(-1, 1)

    x_hat0 = torch.randn(3, *shape).to(dtype)
    for make in (lambda *seeds: [seeded(s) for s in seeds], lambda *seeds: Brownian(list(seeds))):
        together = dosde.solve(elementwise, x_hat0, 4, 3, process=PROCESS, method=how, noise=make(7, 8, 9))
        for i in range(3):
            alone = dosde.solve(elementwise, x_hat0[i : i + 1], 4, 3, process=PROCESS, method=how, noise=make(7 + i))
            assert torch.equal(together[i : i + 1], alone)


def test_the_same_seed_gives_the_same_picture_and_another_another():
    x_hat0 = torch.randn(1, 3, 8, 8)
    runs = [dosde.solve(model, x_hat0, process=PROCESS, noise=seeded(s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    torch.manual_seed(5)
    first = dosde.solve(model, x_hat0, process=PROCESS)
    torch.manual_seed(5)
    assert torch.equal(first, dosde.solve(model, x_hat0, process=PROCESS))


def test_noise_is_asked_on_the_clock():
    """For the start from u = 0, then one step after the other; not at all where a step has none."""
    asked = []

    def noise(u, u_next, like):
        asked.append((u, u_next))
        return torch.zeros_like(like)

    dosde.solve(model, torch.zeros(1, 4), 3, 1, process=PROCESS, noise=noise, grid=[0.4, 0.2, 0.1, 0.0])
    u = [float(PROCESS(t).u) for t in (0.4, 0.2, 0.1)]
    assert asked == [(0.0, u[0]), (u[0], u[1]), (u[1], u[2])]
    asked.clear()
    dosde.solve(model, torch.zeros(1, 4), 3, 1, process=PROCESS, noise=noise, method=method.ode)
    assert asked == [(0.0, 0.0)]


def test_seeds_are_their_own_paths():
    """Seeds beyond 32 bits, and the place of a draw, do not run into each other."""
    places = [Brownian(seed).value(1.0, LIKE.shape) for seed in (7, 7 + 2**32, 8)]
    places += [Brownian(seed)(0.0, 0.0, LIKE) for seed in (7, 7 + 2**32)]
    for a, b in itertools.combinations(places, 2):
        assert abs(float((a * b).mean())) < 4.5 / math.sqrt(len(LIKE))
