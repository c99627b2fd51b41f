"""Parity with numbers recorded from the released DoSSR code (tests/data/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch

import dosde

DATA = Path(__file__).parent / "data"
SCHEDULES = np.load(DATA / "dossr_schedules.npz")
TRAJECTORIES = np.load(DATA / "dossr_trajectories.npz")
STEPS = (1, 2, 3, 4, 5, 7, 10, 15)


def indices(times):
    return (times * 1000).round().long().numpy() - 1


@pytest.mark.parametrize("steps", range(1, 101))
def test_index_grid(steps):
    _, times = dosde.presets.dossr(steps)
    assert (indices(times)[::-1] == SCHEDULES[f"trunc_12/grid/{steps}"]).all()


@pytest.mark.parametrize(("name", "t1"), [("12", 1 / 2), ("13", 1 / 3), ("23", 2 / 3)])
@pytest.mark.parametrize("steps", STEPS)
def test_tables(name, t1, steps):
    process, times = dosde.presets.dossr(steps, t1)
    recorded = f"trunc_{name}/s{steps}/"
    assert (indices(times)[::-1] == SCHEDULES[recorded + "timesteps"]).all()
    m = process(times.flip(0))
    for ours, theirs in (
        (m.alpha**2, "alphas_cumprod"),
        (m.sigma, "sigmas"),
        (m.a, "alphas_multi_one_minus_etas"),
        (m.lam, "lambdas"),
        (m.b / m.alpha, "etas"),
    ):
        assert ours.numpy() == pytest.approx(SCHEDULES[recorded + theirs], rel=1e-12, abs=0)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("f64", 1e-12), ("f32", 2e-5)])
def test_trajectories_of_solver_1_2_3(order, steps, dtype, tolerance):
    process, times = dosde.presets.dossr(steps)

    def net(x, x_hat0, t):
        return torch.tanh(0.3 * x + 0.1 * x_hat0) + 0.01 * round(1000 * float(t) - 1) / 1000

    kind = torch.float64 if dtype == "f64" else torch.float32
    noise = iter(torch.from_numpy(TRAJECTORIES["noise_all"]).to(kind))
    seen = []
    final = dosde.solve(
        dosde.Denoiser(net, process, predicts="vp_eps"),
        torch.from_numpy(TRAJECTORIES["x0_hat"]).to(kind),
        steps,
        min(order, steps),
        grid=times,
        noise=lambda u, u_next, like: next(noise),
        callback=lambda i, t, x, x_theta: seen.append((float(t), x, x_theta)),
    )
    recorded = f"{dtype}/o{order}/s{steps}/"
    assert (indices(torch.tensor([t for t, _, _ in seen])) == TRAJECTORIES[recorded + "t"]).all()
    for ours, theirs in (
        (torch.stack([x for _, x, _ in seen]), "x"),
        (torch.stack([x_theta for _, _, x_theta in seen]), "pred_x0"),
        (final, "final"),
    ):
        expected = TRAJECTORIES[recorded + theirs]
        assert np.abs(ours.numpy() - expected).max() <= tolerance * np.abs(expected).max()
