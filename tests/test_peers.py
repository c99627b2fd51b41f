"""The peers of the benchmarks against the packages that they come from, in float64 on the same noise, and their ODE slopes."""

import math
import sys

import numpy as np
import overhead
import pytest
import torch
from peers import PEERS

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
    generator = torch.Generator().manual_seed(seed)
    return lambda *args, **kwargs: torch.randn(6, 2, dtype=torch.float64, generator=generator)


def worst(x, y):
    return (x - y).abs().max().item()


def k_diffusion(name, y, lams, **how):
    try:
        sampling = overhead._k_diffusion_sampling()
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
