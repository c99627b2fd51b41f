"""The peers of the benchmarks against the packages that they come from, in float64 on the same noise; their laws and slopes."""

import itertools
import math
import sys

import numpy as np
import overhead
import pytest
import torch
from instances import seeded
from peers import PEERS, exact, exponential, taylor
from posterior import Measured, of_azula, of_the_field

BY_NAME = {peer.name: peer for peer in PEERS}
LAMS = np.geomspace(20, 0.02, 11).tolist()
UNEVEN = [20, 9, 5, 2.5, 2, 0.7, 0.4, 0.2, 0.03]
GRIDS = [LAMS, UNEVEN, [*UNEVEN, 0]]


def mixture(y, lam):
    """x_theta of two Gaussians at -1 and 2 in every coordinate, of std 0.3 and 0.5."""
    parts = ((-1, 0.3**2 + lam**2), (2, 0.5**2 + lam**2))  # mean, variance of y
    logs = [-((y - m) ** 2).sum(-1, keepdim=True) / (2 * v) - y.shape[-1] / 2 * math.log(v) for m, v in parts]
    p = torch.softmax(torch.cat(logs, -1), -1)
    each = [m + (1 - lam**2 / v) * (y - m) for m, v in parts]
    return p[..., :1] * each[0] + p[..., 1:] * each[1]


def start(lam):
    return lam * torch.randn(6, 2, dtype=torch.float64)


def noises(seed=1):
    generator = seeded(seed)
    return lambda *args, **kwargs: torch.randn(6, 2, dtype=torch.float64, generator=generator)


def worst(x, y):
    return (x - y).abs().max().item()


def k_diffusion(name, y, lams, **how):
    try:
        sampling = overhead.k_diffusion_sampling()
    except ImportError as error:
        pytest.skip(str(error))
    sigmas = torch.tensor(lams, dtype=torch.float64)
    return getattr(sampling, f"sample_{name}")(lambda x, s: mixture(x, s[0].item()), y, sigmas, disable=True, **how)


@pytest.mark.parametrize("lams", GRIDS, ids=["even", "uneven", "to 0"])
@pytest.mark.parametrize(
    ("name", "theirs", "how"),
    [
        ("euler", "euler", {}),
        ("euler ancestral", "euler_ancestral", {}),
        ("heun", "heun", {}),
        ("dpm++ 2s", "dpmpp_2s_ancestral", {"eta": 0.0}),
        ("dpm++ 2m", "dpmpp_2m", {}),
        ("dpm++ 2m sde", "dpmpp_2m_sde", {"solver_type": "midpoint"}),
        ("dpm++ 2m sde heun", "dpmpp_2m_sde", {"solver_type": "heun"}),
        ("dpm++ 3m sde", "dpmpp_3m_sde", {}),
    ],
)
def test_against_k_diffusion(name, theirs, how, lams):
    if BY_NAME[name].stochastic or name == "dpm++ 2s":
        how = how | {"noise_sampler": noises()}
    y = start(lams[0])
    assert worst(BY_NAME[name].sample(mixture, y, lams, noises()), k_diffusion(theirs, y, lams, **how)) < 1e-12


def diffusers(kind, y, lams, **config):
    """A variance-preserving scheduler on sigma/alpha = lams, from y to y: x = alpha y."""
    scheduler = getattr(pytest.importorskip("diffusers"), kind)(prediction_type="sample", **config)
    steps = len(lams) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.tensor(lams, dtype=torch.float64)
    scheduler.timesteps = torch.arange(1, steps + 1).flip(0)  # labels only
    alphas = 1 / torch.sqrt(1 + scheduler.sigmas**2)
    x = y * alphas[0]
    for n, t in enumerate(scheduler.timesteps):
        x = scheduler.step(mixture(x / alphas[n], lams[n]), t, x, return_dict=False)[0]
    return x / alphas[-1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, of tensors turned into arrays
@pytest.mark.parametrize("lams", GRIDS[:2], ids=["even", "uneven"])
@pytest.mark.parametrize(
    ("name", "kind", "config", "tolerance"),
    [
        # This scheduler steps in float32.
        ("dpm++ 3m", "DPMSolverMultistepScheduler", {"solver_order": 3, "final_sigmas_type": "sigma_min"}, 1e-5),
        ("deis log 2", "DEISMultistepScheduler", {"solver_order": 2}, 1e-12),
        ("deis log 3", "DEISMultistepScheduler", {"solver_order": 3}, 1e-12),
        ("unipc 2 bh1", "UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh1"}, 1e-12),
        ("unipc 2 bh2", "UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}, 1e-12),
        ("unipc 3 bh1", "UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh1"}, 1e-12),
        ("unipc 3 bh2", "UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh2"}, 1e-12),
        ("sa 2+1 tau 0", "SASolverScheduler", {"predictor_order": 2, "corrector_order": 2}, 1e-12),
        ("sa 2+1 tau 1", "SASolverScheduler", {"predictor_order": 2, "corrector_order": 2}, 1e-12),
        ("unipc 3 bh1", "SASolverScheduler", {"predictor_order": 3, "corrector_order": 4}, 1e-11),
        ("sa 3+3 tau 1", "SASolverScheduler", {"predictor_order": 3, "corrector_order": 4}, 1e-11),
    ],
)
def test_against_diffusers(name, kind, config, tolerance, lams, monkeypatch):
    y = start(lams[0])
    if kind == "SASolverScheduler":
        pytest.importorskip("diffusers").SASolverScheduler  # noqa: B018  imported on this access
        config = config | {"tau_func": lambda t: torch.tensor(float(name.endswith("tau 1")), dtype=torch.float64)}
        monkeypatch.setattr(sys.modules["diffusers.schedulers.scheduling_sasolver"], "randn_tensor", noises())
    theirs = diffusers(kind, y, lams, lower_order_final=False, **config)
    assert worst(BY_NAME[name].sample(mixture, y, lams, noises()), theirs) < tolerance


def waves():
    """Noise that needs no generator."""
    count = itertools.count()
    return lambda: math.sqrt(2) * torch.sin(7.0 * next(count) + torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))


# What the released er_sde_solver.py (9c4b527; ve_*) and the step functions of the released sa_solver.py gave here.
RELEASED = {
    "er-sde 1": [2.046354639450, 1.844781010996, -0.956659547555, -1.151559511450],
    "er-sde 2": [2.102578347348, 1.869750631216, -1.004834020891, -1.228924811254],
    "er-sde 3": [2.092697825883, 1.857887058790, -0.994971531455, -1.223607556503],
    "sa 2+1 tau 0": [-0.817405521312, -0.480333206938, 2.190801338820, 0.897021233956],
    "sa 2+1 tau 1": [-1.127141181073, 0.193675881082, 0.087937173927, 0.931764764580],
    "sa 3+3 tau 1": [0.618158274384, 1.527586257883, -0.085975963367, 0.079551864146],
}


@pytest.mark.parametrize("name", RELEASED)
def test_against_the_released_code(name):
    y = 20 * torch.tensor([[-0.4, 0.3], [1.0, -0.7]], dtype=torch.float64)
    ours = BY_NAME[name].sample(mixture, y, UNEVEN, waves())
    assert worst(ours.flatten(), torch.tensor(RELEASED[name], dtype=torch.float64)) < 1e-11


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_calls_and_end(peer):
    seen = []

    def model(y, lam):
        seen.append(lam)
        return mixture(y, lam)

    y, lams = start(20).float(), [*UNEVEN, 0]
    end = peer.sample(model, y, lams, lambda: noises()().float())
    assert len(seen) == peer.calls(len(lams) - 1)
    assert end.isfinite().all()
    assert end.dtype == y.dtype
    assert peer.stochastic == (worst(peer.sample(mixture, y, lams, lambda: 0 * y), end) > 1e-3)


class Noises:
    """y as coefficients of independent unit normals, one a row: the laws of linear problems, without sampling."""

    def __init__(self, std, steps):
        self.y = torch.zeros(steps + 1, len(std), dtype=torch.float64)
        self.y[0] = std
        self.drawn = itertools.count(1)

    def draw(self):
        z = torch.zeros_like(self.y)
        z[next(self.drawn)] = 1
        return z


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_known_target_keeps_its_marginals(peer):
    noises = Noises(torch.tensor([UNEVEN[0]], dtype=torch.float64), len(UNEVEN))
    end = peer.sample(lambda y, lam: 0 * y, noises.y, UNEVEN, noises.draw)
    assert (end**2).sum().item() == pytest.approx(UNEVEN[-1] ** 2, rel=1e-12)


STD = torch.tensor([0.5, 1.0, 1.7], dtype=torch.float64)  # of Gaussian data


def error(sampler, steps):
    """Of the variance, on a grid whose first steps are short, so that the lower orders of the start do not show."""
    lams = [4 * (0.1 / 4) ** ((i / steps) ** 2) for i in range(steps + 1)]
    noises = Noises(torch.sqrt(STD**2 + lams[0] ** 2), steps)
    end = sampler(lambda y, lam: STD**2 / (STD**2 + lam**2) * y, noises.y, lams, noises.draw)
    return ((end**2).sum(0) - STD**2 - lams[-1] ** 2).abs().max().item()


BY_ORDER = {
    1: ["euler", "euler ancestral", "er-sde 1"],
    2: ["heun", "dpm++ 2s", "dpm++ 2m", "dpm++ 3m", "deis 2", "deis log 2", "sa 2+1 tau 0", "sa 2+1 tau 1", "sa 3+3 tau 1"],
    3: ["deis 3", "deis log 3", "unipc 2 bh1", "unipc 2 bh2"],
    4: ["unipc 3 bh1", "unipc 3 bh2"],
}
SAMPLERS = {
    **{name: (BY_NAME[name].sample, order) for order, names in BY_ORDER.items() for name in names},
    "dpm++ 3m sde at tau 0": (exponential(taylor, 3), 2),
    **{name: (BY_NAME[name].sample, 2) for name in ("dpm++ 2m sde", "dpm++ 2m sde heun", "dpm++ 3m sde")},
    "lagrange 3": (exponential(exact, 3), 3),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_slope(name):
    """The weak order; of a deterministic method, its ODE order. er-sde 2 and 3 have none to show: their sums are of order 1."""
    sampler, order = SAMPLERS[name]
    steps = 320 if order == 2 else 80
    slope = math.log2(error(sampler, steps) / error(sampler, 2 * steps))
    assert slope == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("lams", GRIDS, ids=["even", "uneven", "to 0"])
@pytest.mark.parametrize(("name", "same"), [("azula DDIM", "euler"), ("azula xEAB 2", "log-linear 2")])
def test_against_azula(name, same, lams):
    """On the noise levels and the denoiser of benchmarks/posterior.py, with a call at the last level or without."""
    pytest.importorskip("azula.sample")
    final, levels = lams[-1] == 0, lams[:-1] if lams[-1] == 0 else lams
    problem = Measured(None, lambda y, sigma: mixture(y, float(sigma[0])), torch.zeros(1, 64))
    if same == "euler":
        expected = of_the_field(same)(problem, levels, final, 4)
    else:
        y = levels[0] * torch.randn(4, 64, generator=seeded())
        sample = exponential(exact, 2)
        expected = sample(lambda y, lam: problem.denoiser(y, torch.full((4,), lam)), y, lams, noises())
    assert worst(of_azula(name)(problem, levels, final, 4), expected) < 1e-4
