"""Networks of diffusers on our processes, against diffusers' own samplers, and against closed forms."""

import copy
import math
import pickle

import pytest
import torch
from instances import DOUBLE, PROCESS, randn, seeded, wrong_calls

import dosde
from dosde import Process, Refused, expansion, method, schedule, shift
from dosde.interop.networks import from_model, path_of

diffusers = pytest.importorskip("diffusers")
MEAN, STD = 0.3, 0.7


def unet(**more):
    torch.manual_seed(0)
    names = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    sizes = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "norm_num_groups": 4}
    return diffusers.UNet2DModel(**names, **sizes, **more).eval()


def conditional():
    torch.manual_seed(0)
    names = {
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "block_out_channels": (8,),
    }
    sizes = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 4}
    return diffusers.UNet2DConditionModel(**names, **sizes).eval()


def sd3():
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 1, "attention_head_dim": 4}
    heads = {"num_attention_heads": 2, "joint_attention_dim": 8, "caption_projection_dim": 8, "pooled_projection_dim": 8}
    return diffusers.SD3Transformer2DModel(**sizes, **heads, out_channels=4, pos_embed_max_size=8).eval()


SCHEDULERS = {
    "ddpm": diffusers.DDPMScheduler(),
    "v, zero SNR": diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "sample": diffusers.DDPMScheduler(prediction_type="sample", beta_schedule="squaredcos_cap_v2"),
    "sd": diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "edm": diffusers.EDMEulerScheduler(sigma_max=80.0),
    "edm, v": diffusers.EDMDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_max=80.0),
}


class Exact(torch.nn.Module):
    """What a network that was trained exactly on N(MEAN, STD^2) under a scheduler returns, from its input and time alone."""

    def __init__(self, scheduler):
        super().__init__()
        self.path, self.lam = path_of(scheduler, "interpolate"), None

    def forward(self, x, timestep):
        at = self.path.call(self.lam)
        assert float(timestep[0]) == pytest.approx(at.time, rel=1e-5)
        y = x / at.scale
        x_theta = MEAN + STD**2 / (STD**2 + self.lam**2) * (y - MEAN)
        return (x_theta - at.keep * y) / at.gain


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("process", ["own", "shifted", "resshift", "flow of noise"])
def test_one_prior_through_every_convention_is_one_x_theta(name, process):
    """At 20 lams, on the network's own process and on any other: at equal lam x_theta is the same."""
    net = Exact(SCHEDULERS[name])
    processes = {"shifted": PROCESS, "resshift": dosde.process.resshift()}
    processes |= {"own": None, "flow of noise": Process(schedule.flow(), shift.none())}
    model = from_model(net, SCHEDULERS[name], process=processes[process], time="interpolate")
    p = model.process
    x_hat0, y = randn(2, 3), randn(2, 3)
    lams = torch.logspace(-2, math.log10(min(float(p(p.t1).lam), model.sigma_max, 1e3) * 0.999), 20, dtype=DOUBLE)
    for t in p.time(lams[lams >= p(0.0).lam]):
        m = p(t)
        net.lam = float(m.lam)
        expected = MEAN + STD**2 / (STD**2 + m.lam**2) * (y - MEAN)
        assert torch.allclose(model(m.a * y + m.b * x_hat0, x_hat0, t), expected, rtol=0, atol=1e-9)


def test_calls_are_those_of_the_schedulers():
    """scale_model_input or precondition_inputs, the timesteps, and the conversion of outputs, of diffusers itself."""
    y, value = torch.randn(1, 3, generator=seeded()), torch.randn(1, 3, generator=seeded(1))
    for name in ("edm", "edm, v"):
        scheduler = SCHEDULERS[name]
        for sigma in (0.01, 1.0, 40.0):
            at = path_of(scheduler).call(sigma)
            assert torch.allclose(at.scale * y, scheduler.precondition_inputs(y, sigma))
            assert at.time == pytest.approx(float(scheduler.precondition_noise(sigma)))
            assert torch.allclose(at.keep * y + at.gain * value, scheduler.precondition_outputs(y, value, sigma), atol=1e-6)
    for name in ("ddpm", "v, zero SNR", "sample", "sd"):
        table = SCHEDULERS[name].alphas_cumprod.double()
        for i in (0, 17, 500, 998):
            lam = float(((1 - table[i]) / table[i]).sqrt())
            at = path_of(SCHEDULERS[name]).call(lam)
            assert at.time == i
            assert at.scale == pytest.approx(float(table[i].sqrt()), rel=1e-5)
    at = path_of(SCHEDULERS["flow"]).call(3.0)
    assert (at.scale, at.time) == pytest.approx((0.25, 750.0))
    assert path_of(SCHEDULERS["v, zero SNR"]).call(1e15).time == 999


@torch.no_grad()
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_ode_of_order_1_is_ddim(kind):
    net, scheduler = unet(), diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(8)
    indices = scheduler.timesteps.tolist()
    x = z = torch.randn(2, 3, 8, 8, generator=seeded())
    for t in indices[:-1]:
        x = scheduler.step(net(x, t).sample, t, x, eta=0.0).prev_sample
    model = from_model(net, scheduler)
    times = torch.tensor([(i + 1) / 1000 for i in indices], dtype=DOUBLE)
    how = {"method": method.ode, "grid": times, "noise": lambda u, u_next, like: z / model.process(times[0]).sigma.to(z)}
    assert torch.allclose(dosde.solve(model, torch.zeros(2, 3, 8, 8), 7, 1, **how), x, atol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, of diffusers' tensors turned into arrays
def test_order_2_in_log_lam_tends_to_dpm_solver_multistep():
    """Their difference falls with the square of the steps: both are of order 2."""
    net = unet()
    z = torch.randn(1, 3, 8, 8, generator=seeded())
    differences = []
    for steps in (12, 24):
        scheduler = diffusers.DPMSolverMultistepScheduler(
            solver_order=2, final_sigmas_type="sigma_min", lower_order_final=False
        )
        scheduler.set_timesteps(steps)
        indices = scheduler.timesteps.tolist()
        x = z
        for t in indices[:-1]:
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
        model = from_model(net, scheduler)
        times = torch.tensor([(i + 1) / 1000 for i in indices], dtype=DOUBLE)
        how = {"method": method.using(method.ode, variable=expansion.log_lam), "grid": times}
        first = model.process(times[0]).sigma.to(z)
        ours = dosde.solve(model, torch.zeros_like(z), len(indices) - 1, 2, noise=lambda u, v, like, s=first: z / s, **how)
        differences.append(float((ours - x).abs().max() / x.abs().max()))
    assert differences[1] < differences[0] / 2.5
    assert differences[1] < 0.02


@torch.no_grad()
def test_ode_of_order_1_is_flow_match_euler():
    net, scheduler = sd3(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    cond = {"encoder_hidden_states": torch.randn(1, 5, 8, generator=seeded(1)), "pooled_projections": torch.ones(1, 8)}
    scheduler.set_timesteps(6)
    x = z = torch.randn(2, 4, 8, 8, generator=seeded())
    both = {name: value.expand(2, *value.shape[1:]) for name, value in cond.items()}
    for t in scheduler.timesteps:
        x = scheduler.step(net(hidden_states=x, timestep=t.expand(2), **both).sample, t, x).prev_sample
    model = from_model(net, scheduler, process=Process(schedule.flow(), shift.none()), cond=both)
    how = {"method": method.ode, "grid": scheduler.sigmas.double(), "noise": lambda u, u_next, like: z}
    assert torch.allclose(dosde.solve(model, torch.zeros_like(z), 6, 1, **how), x, atol=1e-5)


@torch.no_grad()
def test_guidance_is_one_batched_call_and_none_at_1():
    net = conditional()
    calls = []
    net.register_forward_pre_hook(lambda module, args, kwargs: calls.append(len(args[0])), with_kwargs=True)
    given, without = (torch.randn(1, 4, 8, generator=seeded(i)) for i in range(2))
    x_hat0 = torch.randn(3, 4, 8, 8, generator=seeded(2))

    def one(guidance, **more):
        calls.clear()
        words = {"cond": {"encoder_hidden_states": given}, "uncond": {"encoder_hidden_states": without}, **more}
        if isinstance(guidance, int):
            words["cond"] = {"encoder_hidden_states": given.expand(3, -1, -1)}
        model = from_model(net, SCHEDULERS["sd"], process=PROCESS, guidance=guidance, **words)
        return model(x_hat0, x_hat0, PROCESS.time(1.0))

    plain = one(1)
    assert calls == [3]
    other = one(0.0)  # without the condition
    both = one(3.0)
    assert calls == [6]
    assert torch.allclose(both, other + 3 * (plain - other), atol=1e-5)
    each = one(torch.tensor([1.0, 3.0, 0.0]))
    assert torch.allclose(each, torch.stack([plain[0], both[1], other[2]]), atol=1e-5)
    assert not torch.allclose(one(3.0, guidance_rescale=0.7), both, atol=1e-3)


@torch.no_grad()
def test_other_networks_and_outputs():
    process = PROCESS
    learned = unet()
    learned.conv_out = torch.nn.Conv2d(8, 6, 3, padding=1)
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        norm_num_groups=4,
    )
    line = diffusers.UNet1DModel(
        sample_size=64, in_channels=2, out_channels=2, block_out_channels=(32, 32), extra_in_channels=0, layers_per_block=1,
        down_block_types=("DownBlock1D", "AttnDownBlock1D"), up_block_types=("AttnUpBlock1D", "UpBlock1D"),
    )  # fmt: skip
    networks = [(learned, (1, 3, 8, 8), {}), (unet().to(torch.bfloat16), (2, 3, 8, 8), {})]
    networks += [(dit, (2, 4, 8, 8), {"class_labels": torch.tensor([1, 2])}), (line, (2, 2, 64), {})]
    for net, shape, cond in networks:
        model = from_model(net, SCHEDULERS["ddpm"], process=process, cond=cond)
        assert dosde.solve(model, torch.zeros(shape), 2).shape == shape


def test_a_network_trained_with_a_shift_keeps_its_process():
    from dosde.interop.diffusers import DoSDEScheduler

    scheduler, net = DoSDEScheduler(), unet()
    model = from_model(net, scheduler)
    assert model.process == scheduler.process
    with torch.no_grad():
        assert dosde.solve(model, torch.zeros(1, 3, 8, 8), 2, grid=scheduler.times(2)).shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"^process: .*; its own is needed, or none: this network was trained with a shift"):
        from_model(net, scheduler, process=PROCESS)


def test_every_scheduler_of_diffusers_is_understood_or_refused_by_name():
    understood, refused = [], []
    for name in dir(diffusers.schedulers):
        if not name.endswith("Scheduler") or name in ("ScoreSdeVpScheduler",):  # which has no table
            continue
        try:
            scheduler = getattr(diffusers.schedulers, name)()
        except Exception:  # an abstract one, or one of a library that is not here
            continue
        try:
            path = path_of(scheduler)
        except Refused as error:
            refused.append(str(error))
            continue
        understood.append(name)
        table = getattr(scheduler, "alphas_cumprod", None)
        if isinstance(table, torch.Tensor) and "FlowMatch" not in name:
            m = path.process((torch.arange(len(table)) + 1.0) / len(table))
            assert torch.allclose(m.a**2, table.double().reshape(-1), atol=1e-6), name
    assert len(understood) >= 20
    assert {"DDPMScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"} <= set(understood)
    assert not any("\n" in error for error in refused)


@torch.no_grad()
@pytest.mark.parametrize("name", SCHEDULERS)
def test_models_copy_and_pickle(name):
    model = from_model(unet(), SCHEDULERS[name])
    x = torch.randn(1, 3, 8, 8, generator=seeded())
    expected = dosde.solve(model, x, 3, 2, noise=seeded())
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(dosde.solve(again, x, 3, 2, noise=seeded()), expected)
    path = path_of(SCHEDULERS[name])
    assert pickle.loads(pickle.dumps(path)) == path == path_of(SCHEDULERS[name])


NET = lambda x, timestep: x  # noqa: E731
E, D = {"encoder_hidden_states": torch.zeros(1, 4, 8)}, SCHEDULERS["ddpm"]
test_wrong_calls = wrong_calls(
    {
        "scheduler": (lambda: from_model(NET, "sd"), TypeError, "^scheduler: a str; a scheduler of diffusers, or its config"),
        "kind": (
            lambda: from_model(NET, {**D.config, "prediction_type": "score"}),
            ValueError,
            "^prediction_type: 'score'; one of epsilon, v_prediction, sample is needed",
        ),
        "flow without flow": (
            lambda: from_model(NET, {**D.config, "prediction_type": "flow_prediction"}),
            ValueError,
            "^prediction_type: 'flow_prediction'; one of epsilon, v_prediction, sample is needed",
        ),
        "times turned round": (
            lambda: from_model(NET, diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)),
            ValueError,
            "^invert_sigmas: True; False is needed in the config of FlowMatchEuler",
        ),
        "eps": (
            lambda: from_model(NET, diffusers.DDIMScheduler(rescale_betas_zero_snr=True)),
            ValueError,
            "^prediction_type: 'epsilon' with rescale_betas_zero_snr; eps tells nothing of x0 at alpha = 0",
        ),
        "guidance": (lambda: from_model(NET, D, cond=E, guidance=2.0), ValueError, "^uncond: None; the keywords without"),
        "keywords": (
            lambda: from_model(NET, D, cond=E, uncond={}, guidance=2.0),
            ValueError,
            "^uncond: encoder_hidden_states is",
        ),
        "time": (lambda: from_model(NET, D, time="linear"), ValueError, "^time: 'linear'; one of nearest, interpolate"),
        "rescale": (
            lambda: from_model(NET, D, guidance_rescale=2.0),
            ValueError,
            "^guidance_rescale: 2.0; a number from 0 to 1",
        ),
        "process": (lambda: from_model(NET, D, process="x"), TypeError, "^process: 'x'; a dosde.Process or None"),
        "shape": (
            lambda: dosde.solve(from_model(lambda x, timestep: x[:, :1], D), torch.zeros(1, 3, 2), 2),
            ValueError,
            r"^net: returned shape \(1, 1, 2\); shape \(1, 3, 2\)",
        ),
        "batch": (
            lambda: dosde.solve(
                from_model(NET, D, cond={"y": torch.zeros(3, 2)}, uncond={"y": torch.zeros(3, 2)}, guidance=2.0),
                torch.zeros(2, 3),
                2,
            ),
            ValueError,
            "^cond: y: a float32 tensor of shape .*; a batch of 1 or 2 is needed",
        ),
    }
)


@pytest.mark.parametrize("config", [{}, {"prediction_type": "v"}, {"beta_schedule": "flow", "prediction_type": "velocity"}])
def test_a_scheduler_of_ours_without_a_shift_is_as_one_of_diffusers(config):
    from dosde.interop.diffusers import DoSDEScheduler

    net = lambda x, timestep: torch.tanh(x)  # noqa: E731
    ours = from_model(net, DoSDEScheduler(shift="none", **config), process=PROCESS)
    if "beta_schedule" in config:
        theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    else:
        kind = "v_prediction" if config else "epsilon"
        table = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        theirs = diffusers.DDPMScheduler(prediction_type=kind, **table)
    x, x_hat0, t = randn(1, 3), randn(1, 3), PROCESS.time(1.3)
    assert torch.equal(ours(x, x_hat0, t), from_model(net, theirs, process=PROCESS)(x, x_hat0, t))
