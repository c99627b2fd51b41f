"""Parity with all that was recorded from the released ResShift code (tests/data/README.md), in float64 to 1e-12."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import dosde
from dosde import grid, method, objective, prediction, presets
from dosde.process import resshift

DATA = Path(__file__).parent / "data"
SCHEDULES, FORWARD, POSTERIOR_C, TRAJECTORIES, LOSSES = (
    np.load(DATA / f"resshift_{name}.npz") for name in ("schedules", "forward", "posterior_c", "trajectories", "losses")
)
KINDS = {"xstart": "x0", "residual": "residual", "epsilon": "eps", "epsilon_scale": "sigma_eps"}
RELEASED = {"T15": 15, "T4": 4}


def released(T=15, kappa=2.0, least=0.04, end=0.99, p=0.3):
    """In its own settings: the least noise level, and the last sqrt(eta), where ours has etas.

    sqrt(eta_1) is least/kappa, and least itself for kappa < 1.
    """
    return resshift(T, kappa, (least / max(kappa, 1)) ** 2, end**2, p)


SETTINGS = {
    "conf_T15": {},
    "journal_T4": {"T": 4, "least": 0.2},
    **{f"abl_T{T}": {"T": T} for T in (2, 10, 20, 30, 40, 50)},
    **{f"abl_T15_p{p}": {"p": p} for p in (0.5, 1.0, 2.0, 3.0)},
    **{f"abl_T15_k{kappa}": {"kappa": kappa} for kappa in (0.5, 1.0, 8.0, 16.0)},
    "abl_T15_end0.999": {"end": 0.999},
    "abl_T15_end_sqrt0.999": {"end": 0.999499874937461},
}
RESPACED = {f"respace_T15_to{n}": (15, n) for n in (2, 3, 4, 5, 7, 8, 14, 15)} | {
    f"respace_T4_to{n}": (4, n) for n in (2, 3, 4)
}
# More steps than the table has: the release takes the table, ours raises.
CLIPPED = {"respace_T15_to20": (15, 15), "respace_T4_to8": (4, 4)}


def process_and_times(name):
    if name in SETTINGS:
        process, T = released(**SETTINGS[name]), SETTINGS[name].get("T", 15)
        return process, grid.respaced(T)(process, T)
    T, steps = (RESPACED | CLIPPED)[name]
    return presets.resshift(steps, T)


def close(ours, theirs, tolerance=1e-12):
    """To 1e-12 of the largest number, and of 1."""
    ours = ours.numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * max(1, np.abs(theirs).max())


def test_no_schedule_is_left_out():
    assert {key.split("/")[0] for key in SCHEDULES} == set(SETTINGS | RESPACED | CLIPPED)


@pytest.mark.parametrize("name", SETTINGS | RESPACED | CLIPPED)
def test_schedules(name):
    """Recorded by index; our plans run downwards."""
    process, times = process_and_times(name)
    recorded = {key.removeprefix(name + "/"): SCHEDULES[key] for key in SCHEDULES if key.startswith(name + "/")}
    if "timestep_map" in recorded:
        T = (RESPACED | CLIPPED)[name][0]
        assert (times.flip(0)[1:] * T).round().long().tolist() == (recorded["timestep_map"] + 1).tolist()
    m, before = process(times[:-1].flip(0)), process(times[1:].flip(0))
    plan = dosde.plan(process, len(times) - 1, 1, method=method.resshift, grid=times)[::-1]
    variance = torch.tensor([step.noise**2 for step in plan], dtype=torch.float64)
    clipped = torch.cat([variance[1:2], variance[1:]])
    ours = {
        "sqrt_etas": m.b.sqrt(),
        "etas": m.b,
        "etas_prev": before.b,
        "alpha": m.b - before.b,
        "posterior_variance": variance,
        "posterior_variance_clipped": clipped,
        "posterior_log_variance_clipped": clipped.log(),
        "posterior_mean_coef1": [step.keep for step in plan],
        "posterior_mean_coef2": [step.new[0] for step in plan],
        "scale_in_norm1_latent1": presets.resshift_input_scale(m),
        "scale_in_norm1_latent0": presets.resshift_input_scale(m, latent=False),
    }
    for key in ("weight_loss_mse", "weight_loss_mse_xstart_residual"):  # the first in the respaced ones
        if key in recorded:
            ours[key] = objective.bound_weights("x0", process, times).flip(0)
            assert torch.equal(ours[key], objective.bound_weights("residual", process, times).flip(0))
    if "weight_loss_mse_eps_epsscale" in recorded:
        ours["weight_loss_mse_eps_epsscale"] = objective.bound_weights("eps", process, times).flip(0)
        scaled = objective.bound_weights("sigma_eps", process, times).flip(0) / objective.plain_weight("sigma_eps", m)
        assert torch.allclose(scaled, ours["weight_loss_mse_eps_epsscale"], rtol=1e-14, atol=0)
    assert set(recorded) - {"timestep_map"} <= set(ours)
    for key in set(recorded) - {"timestep_map"}:
        # Weights of eps have 1/(1 - eta)^2: there 1e-15 in the recorded eta counts 2/(1 - eta) times, as much as 1e-11.
        tolerance = max(1e-12, 1e-14 / float(m.a.min())) if key == "weight_loss_mse_eps_epsscale" else 1e-12
        close(ours[key], recorded[key], tolerance)
    assert max(abs(step.hat) for step in plan) < 1e-13


@pytest.mark.parametrize("name", RELEASED)
def test_forward(name):
    T = RELEASED[name]
    process, times = presets.resshift(T, T)
    recorded = {key.removeprefix(f"{name}/f64/"): FORWARD[key] for key in FORWARD if key.startswith(f"{name}/f64/")}
    x0, y, z = (torch.from_numpy(FORWARD[f"{name}/{key}"]) for key in ("x_start", "y", "noise"))
    t = (torch.from_numpy(FORWARD[f"{name}/t"]).double() + 1) / T
    x = process.sample(x0, y, t, z)
    m, by_sample = process(t.reshape(-1, 1, 1, 1)), process(t)
    plan = {round(T * step.t): step for step in dosde.plan(process, T, 1, method=method.resshift, grid=times)}
    steps = [plan[round(T * float(s))] for s in t]
    variance = torch.tensor([step.noise**2 for step in steps], dtype=torch.float64)
    clipped = torch.where(variance > 0, variance, plan[2].noise ** 2)
    sigma_eps = objective.target("sigma_eps", process, x0, y, t, z)
    states = []
    dosde.solve(
        lambda x, x_hat0, t: x, y, T, 1, process=process, grid=times, method=method.resshift,
        noise=lambda u, u_next, like: z, callback=lambda i, t, x, x_theta: states.append(x),
    )  # fmt: skip
    ours = {
        "q_sample": x,
        "q_mean": process.sample(x0, y, t, torch.zeros_like(z)),
        "q_variance": by_sample.sigma**2,
        "q_log_variance": 2 * by_sample.sigma.log(),
        "post_mean": torch.stack([s.keep * x[i] + s.hat * y[i] + s.new[0] * x0[i] for i, s in enumerate(steps)]),
        "post_variance": variance,
        "post_log_variance_clipped": clipped.log(),
        "eps_from_xstart": prediction.convert(x0, x, y, m, "x0", "eps"),
        "xstart_from_eps": prediction.convert(z, x, y, m, "eps", "x0"),
        "eps_scaled": sigma_eps,
        "xstart_from_eps_scale": prediction.convert(sigma_eps, x, y, m, "sigma_eps", "x0"),
        "xstart_from_residual": prediction.convert(y - x0, x, y, m, "residual", "x0"),
        "prior_sample": states[0],
        "scale_input": x * presets.resshift_input_scale(m),
    }
    assert set(ours) == set(recorded)
    for key, values in ours.items():
        close(values, recorded[key])
    close(prediction.convert(x0, x, y, m, "x0", "sigma_eps"), recorded["eps_scaled"])


@pytest.mark.parametrize("name", ["T15", "T4", "T15_p1", "T15_k8", "T15_to5"])
def test_the_ratio_c_of_its_steps(name):
    process = released(**{"T4": {"T": 4, "least": 0.2}, "T15_p1": {"p": 1.0}, "T15_k8": {"kappa": 8.0}}.get(name, {}))
    T = 4 if name == "T4" else 15
    times = grid.respaced(T)(process, 5 if name == "T15_to5" else T)
    m = process(times.flip(0))
    recorded = {key.removeprefix(name + "/"): POSTERIOR_C[key] for key in POSTERIOR_C if key.startswith(name + "/")}
    for ours, key in ((m.b, "eta"), (m.a, "a"), (m.b, "b"), (m.sigma, "sigma"), (m.lam, "lambda")):
        close(ours, recorded[key])
    for how, key in ((method.resshift, "c_resshift"), (method.dos, "c_sde")):
        plan = dosde.plan(process, len(times) - 1, 1, method=how, grid=times)[-2::-1]
        close(torch.tensor([s.keep for s in plan], dtype=torch.float64) * m.sigma[2:] / m.sigma[1:-1], recorded[key])


def net(T, lq, process, gain=1.0, scale=presets.resshift_input_scale):
    """The closed-form network of the records."""

    def f(x, x_hat0, t):
        scaled = x * scale(process(t)).to(x)
        return gain * (torch.tanh(0.3 * scaled + 0.5 * lq.to(x)) + 0.01 * round(T * float(t) - 1))

    return f


def trajectory(kind, steps, T, clip=False, dtype=torch.float64, source="y", lq="y", noise="noise_", **network):
    """States, outputs and times of a solve with the recorded noise."""
    process, times = presets.resshift(steps, T)
    y, lq = (torch.from_numpy(TRAJECTORIES[key]).to(dtype) for key in (source, lq))
    draws = (torch.from_numpy(TRAJECTORIES[noise + key]).to(dtype) for key in ("init", "steps"))
    z = iter([next(draws), *next(draws)])
    denoiser = dosde.Denoiser(net(T, lq, process, **network), process, predicts=KINDS[kind])
    model = (lambda x, x_hat0, t: denoiser(x, x_hat0, t).clamp(-1, 1)) if clip else denoiser
    seen = []
    final = dosde.solve(
        model, y, steps, 1, process=process, grid=times, method=method.resshift,
        noise=lambda u, u_next, like: next(z), callback=lambda *step: seen.append(step),
    )  # fmt: skip
    return {
        "x_T": seen[0][2],
        "sample": torch.stack([*(x for _, _, x, _ in seen[1:]), final]),
        "pred_xstart": torch.stack([x_theta for *_, x_theta in seen]),
        "t_model": torch.tensor([round(T * float(t)) - 1 for _, t, _, _ in seen]),
    }


def agree(ours, name, tolerance=1e-12):
    recorded = {key.removeprefix(name + "/"): TRAJECTORIES[key] for key in TRAJECTORIES if key.startswith(name + "/")}
    assert "sample" in recorded
    for key in set(recorded) - {"mean"}:
        close(ours[key], recorded[key], tolerance)


@pytest.mark.parametrize(("name", "kind"), [*itertools.product(RELEASED, KINDS)])
def test_trajectories_of_four_prediction_types(name, kind):
    T = RELEASED[name]
    ours = trajectory(kind, T, T)
    agree(ours, f"{name}/{kind}")
    plan = dosde.plan(presets.resshift(T, T)[0], T, 1, method=method.resshift, grid=presets.resshift(T, T)[1])
    before = [ours["x_T"], *ours["sample"][:-1]]
    mean = [s.keep * x + s.new[0] * x_theta for s, x, x_theta in zip(plan, before, ours["pred_xstart"], strict=True)]
    close(torch.stack(mean), TRAJECTORIES[f"{name}/{kind}/mean"])
    agree(trajectory(kind, T, T, clip=True, gain=2.5), f"{name}/{kind}_clip_gain2.5")


@pytest.mark.parametrize(
    ("name", "kind", "T", "steps"),
    [(f"T15/respace{n}", "xstart", 15, n) for n in (2, 3, 4, 5, 8)]
    + [("T15/respace5", "residual", 15, 5), ("T4/respace2", "xstart", 4, 2)],
)
def test_respaced_trajectories(name, kind, T, steps):
    """a + b = 1, so that ours, which starts at (a + b) y + sigma z of the first time kept, starts as the release does."""
    agree(trajectory(kind, steps, T), f"{name}/{kind}")


@pytest.mark.parametrize("name", RELEASED)
def test_trajectories_of_other_input_scales(name):
    T = RELEASED[name]
    agree(trajectory("xstart", T, T, scale=lambda m: torch.ones_like(m.sigma)), f"{name}/xstart_noscale")
    pixels = trajectory("xstart", T, T, scale=lambda m: presets.resshift_input_scale(m, latent=False))
    agree(pixels, f"{name}/xstart_pixelscale")


def test_trajectory_whose_network_sees_another_picture_than_the_source():
    agree(trajectory("xstart", 4, 4, source="sf4/z_y", lq="sf4/y", noise="sf4/noise_"), "sf4/xstart")


@pytest.mark.parametrize(("name", "kind"), [*itertools.product(RELEASED, ("xstart", "epsilon"))])
def test_trajectories_in_float32(name, kind):
    """The release computes these in float32 throughout, the network included."""
    T = RELEASED[name]
    agree(trajectory(kind, T, T, dtype=torch.float32), f"{name}/{kind}_asis32", tolerance=2e-6)


@pytest.mark.parametrize(("name", "kind"), [*itertools.product(RELEASED, KINDS)])
def test_losses(name, kind):
    T, predicts = RELEASED[name], KINDS[kind]
    process, times = presets.resshift(T, T)
    x0, y, z = (torch.from_numpy(LOSSES[f"{name}/{key}"]) for key in ("x_start", "y", "noise"))
    index = torch.from_numpy(LOSSES[f"{name}/t"])
    t = (index.double() + 1) / T
    x, m = process.sample(x0, y, t, z), process(t.reshape(-1, 1, 1, 1))
    close(x, LOSSES[f"{name}/z_t"])
    target = objective.target(predicts, process, x0, y, t, z)
    bound = objective.bound_weights(predicts, process, times).flip(0)[index]
    plain = objective.plain_weight(predicts, process(t))
    for key, scale in (
        ("norm1_latent1", presets.resshift_input_scale(m)),
        ("norm1_latent0", presets.resshift_input_scale(m, latent=False)),
        ("norm0_latent1", 1),
    ):
        output = torch.tanh(0.3 * x * scale + 0.5 * y) + 0.01 * index.double().reshape(-1, 1, 1, 1)
        error = ((output - target) ** 2).mean((1, 2, 3))
        close(plain * error, LOSSES[f"{name}/{kind}/plain_{key}/mse"])
        close(bound * error, LOSSES[f"{name}/{kind}/weighted_{key}/mse"])
        if key == "norm1_latent1":
            x_theta = prediction.convert(output, x, y, m, predicts, "x0")
            close(x_theta, LOSSES[f"{name}/{kind}/pred_xstart"])
            by_x0 = objective.bound_weights("x0", process, times).flip(0)[index]
            weighted = by_x0 * ((x_theta - x0) ** 2).mean((1, 2, 3))
            assert weighted.numpy() == pytest.approx((bound * error).numpy(), rel=1e-9)


@pytest.mark.parametrize("how", [method.dos, method.adams, method.ode, method.resshift], ids=lambda how: how.__name__)
def test_every_method_runs_on_its_process_and_is_exact_for_a_perfect_network(how):
    """A network that knows x0: whatever the steps, the residual returned leads to it."""
    process, times = presets.resshift(5)
    truth, y = torch.rand(1, 3, 4, 4, dtype=torch.float64), torch.rand(1, 3, 4, 4, dtype=torch.float64)
    model = dosde.Denoiser(lambda x, x_hat0, t: x_hat0 - truth, process, predicts="residual")
    assert torch.allclose(dosde.solve(model, y, 5, 1, grid=times, method=how), truth, atol=1e-13, rtol=0)


@pytest.mark.parametrize("predicts", ["x0", "eps", "vp_eps", "v", "residual", "sigma_eps"])
@pytest.mark.parametrize("name", ["scaled_linear-cosine", "resshift"])
def test_a_target_is_what_leads_back_to_x0(predicts, name):
    process = {"resshift": resshift(), "scaled_linear-cosine": dosde.Process(dosde.schedule.scaled_linear())}[name]
    x0, y, z = torch.randn(3, 2, 3, 4, 5, dtype=torch.float64)
    t = torch.tensor([0.1, 0.4], dtype=torch.float64)
    m = process(t.reshape(-1, 1, 1, 1))
    x = process.sample(x0, y, t, z)
    value = objective.target(predicts, process, x0, y, t, z)
    assert torch.allclose(prediction.convert(value, x, y, m, predicts, "x0"), x0, atol=1e-13)
    assert torch.allclose(prediction.convert(x0, x, y, m, "x0", predicts), value, atol=1e-12)
    half = objective.target(predicts, process, x0.half(), y.half(), t, z.half())
    assert half.dtype == torch.float16
    assert torch.allclose(half.double(), value, rtol=5e-3, atol=5e-3)


def test_weights_of_a_field():
    """Element by element those of its etas."""
    paces = torch.tensor([0.4, 0.5], dtype=torch.float64)
    schedule, times = dosde.schedule.scaled_linear(), [0.35, 0.2, 0.1, 0.0]
    field = dosde.Process(schedule, dosde.shift.cosine(paces.reshape(2, 1, 1)))
    together = objective.bound_weights("eps", field, times)
    assert together.shape == (3, 2, 1, 1)
    for i, pace in enumerate(paces):
        alone = objective.bound_weights("eps", dosde.Process(schedule, dosde.shift.cosine(pace)), times)
        assert torch.allclose(together[:, i, 0, 0], alone, rtol=1e-12)
