"""The diffusers scheduler: to the bit `solve`, in loops, in their own pipelines, after a save and a load; and its errors."""

import copy
import inspect
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from instances import seeded, wrong_calls

import dosde

diffusers = pytest.importorskip("diffusers")

from dosde.interop.diffusers import DoSDEScheduler  # noqa: E402

DOUBLE = torch.float64
TRAJECTORIES = np.load(Path(__file__).parent / "data" / "dossr_trajectories.npz")
NONE = {"shift": "none"}
FEW = {"solver": "few_step", "scale": 0.2}


def scheduler(**config):
    return DoSDEScheduler(**config)


def net(x, x_hat0, number):
    """A network of its own mind, in the dtype of its input, called with a timestep as theirs are."""
    return torch.tanh(0.3 * x + 0.1 * x_hat0) + (torch.as_tensor(number).float() / 1000).to(x.dtype)


def generators(kind):
    made = [seeded(seed) for seed in (3, 4)]
    return made if kind == "a list" else made[0]


def solved(s, x_hat0, steps, noise, net=net, skipped=0):
    """`solve` with the parts of the scheduler, from times[skipped] on."""
    steps_left = steps - skipped

    def ours(x, x_hat0, t):
        return net(x, x_hat0, torch.tensor(s.model_time(t), dtype=torch.float32))

    return dosde.solve(
        dosde.Denoiser(ours, s.process, s.predicts),
        x_hat0,
        steps_left,
        s.order_for(steps_left),
        method=s.method,
        grid=s.times(steps)[skipped:],
        noise=noise,
    )


def looped(s, x_hat0, steps, generator, net=net):
    s.set_timesteps(steps, x_hat0=x_hat0)
    state = torch.float64 if x_hat0.dtype == DOUBLE else torch.float32
    x = s.start(dosde.noise.Independent(generator)(0.0, 0.0, x_hat0.to(state)))
    for t in s.timesteps:
        assert x.dtype == x_hat0.dtype
        out = s.step(net(s.scale_model_input(x, t), x_hat0, t), t, x, generator)
        assert out.pred_original_sample.dtype == x.dtype
        x = out.prev_sample
    return x


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE).to(dtype)


CONFIGS = {
    "the default": {},
    **{f"dos {k}": {"solver_order": k} for k in (1, 2)},
    "dos, uniform": {"shift": "cosine", "t1": 0.6},
    "dos, linear": {"shift": "linear", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "adams": {"solver": "adams", "solver_order": 4},
    "adams, corrected": {"solver": "adams", "corrector": True, "tau": 0.5},
    "adams, tau 0": {"solver": "adams", "tau": 0, "variable": "log_lam"},
    "ode": {"solver": "ode", "shift": "cosine"},
    "ode, corrected": {"solver": "ode", "corrector": True, "solver_order": 2},
    "chain": {"solver": "chain", "solver_order": 2},
    "resshift": {"solver": "resshift"},
    "few_step": FEW,
    "few_step, tau 1": {**FEW, "shift": "cosine", "tau": 1},
    "few_step, dossr's grid": {**FEW, "timestep_spacing": "dossr"},
    "none": NONE,
    "none, leading": {**NONE, "timestep_spacing": "leading", "solver": "ode"},
    "none, trailing": {**NONE, "timestep_spacing": "trailing", "solver": "resshift"},
    "tables": {
        "num_train_timesteps": 200,
        "trained_betas": torch.linspace(0.001, 0.03, 200, dtype=DOUBLE).tolist(),
        "trained_etas": (torch.linspace(0, 1, 200, dtype=DOUBLE) ** 1.5).tolist(),
    },
}
KINDS = ["x0", "vp_eps", "v", "eps"]


@pytest.mark.parametrize("steps", [1, 3, 6])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_loop_is_solve(name, steps):
    for kind in KINDS if name in ("the default", "none") else ["vp_eps"]:
        s, x_hat0 = scheduler(**CONFIGS[name], prediction_type=kind), randn(2, 3, 4, 4)
        for form in ("one", "a list"):
            expected = solved(s, x_hat0, steps, generators(form))
            assert torch.equal(looped(s, x_hat0, steps, generators(form)), expected)
            assert torch.equal(looped(s, x_hat0, steps, generators(form)), expected)  # used again


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, DOUBLE])
@pytest.mark.parametrize("name", ["the default", "adams, corrected", "few_step, tau 1", "none"])
@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_loop_is_solve_in_every_dtype(name, dtype, kind):
    """The samples are rounded for the network, the state behind them is not; under all that switches gradients off."""
    s, x_hat0 = scheduler(**CONFIGS[name], prediction_type=kind), randn(2, 3, 4, 4, dtype=dtype)
    expected = solved(s, x_hat0, 5, generators("one"))
    assert torch.equal(looped(s, x_hat0, 5, generators("one")), expected)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(looped(s, x_hat0, 5, generators("one")), expected)


def test_a_sample_that_somebody_changed_is_taken_as_it_is():
    for mode in (torch.no_grad, torch.inference_mode):
        ends = []
        with mode():
            for change in (lambda x: x.mul_(2), lambda x: x * 2, lambda x: x, lambda x: x.clone()):
                s, x_hat0 = scheduler(solver="ode"), randn(1, 4, dtype=torch.bfloat16)
                s.set_timesteps(4, x_hat0=x_hat0)
                x = change(s.start(randn(1, 4)))
                ends.append(s.step(net(x, x_hat0, 0), s.timesteps[0], x).prev_sample)
        assert torch.equal(ends[0], ends[1])
        assert not torch.equal(ends[0], ends[2])
        assert torch.allclose(ends[2], ends[3], atol=0.05)


def test_variance_noise_and_draws():
    """It stands for the draw; a step whose plan has no noise draws none; without a generator, torch's own is used."""
    s, x_hat0, z = scheduler(), randn(2, 4), randn(6, 2, 4, seed=1)
    s.set_timesteps(5, x_hat0=x_hat0)
    x = s.start(z[0])
    for i, t in enumerate(s.timesteps):
        x, estimate = s.step(net(x, x_hat0, t), t, x, variance_noise=z[i + 1], return_dict=False)
        assert estimate.shape == x.shape
    draws = iter(z)
    assert torch.equal(x, solved(s, x_hat0, 5, lambda u, v, like: next(draws)))
    for s, drawn in ((scheduler(solver="ode"), False), (scheduler(), True)):
        s.set_timesteps(2, x_hat0=x_hat0)
        g = generators("one")
        before = g.get_state()
        s.step(x, s.timesteps[0], s.start(z[0]), g)
        assert torch.equal(g.get_state(), before) != drawn
    torch.manual_seed(5)
    first = looped(s, x_hat0, 3, None)
    torch.manual_seed(5)
    assert torch.equal(solved(s, x_hat0, 3, None), first)


def test_outputs_that_are_overwritten_do_not_matter():
    """A compiled network has one buffer for its output; a preview may be clamped in place."""
    s, x_hat0, buffer = scheduler(solver="ode", prediction_type="x0"), randn(1, 4), torch.empty(1, 4)
    expected = solved(s, x_hat0, 5, generators("one"))
    s.set_timesteps(5, x_hat0=x_hat0)
    x = s.start(torch.randn(1, 4, generator=generators("one")))
    for t in s.timesteps:
        buffer.copy_(net(x, x_hat0, t))
        out = s.step(buffer, t, x)
        out.pred_original_sample.zero_()
        x = out.prev_sample
    assert torch.equal(x, expected)


def test_gradients_pass_through_a_step():
    """For guidance by the estimate: d x_theta / d x."""
    s, x_hat0 = scheduler(), randn(1, 4)
    s.set_timesteps(3, x_hat0=x_hat0)
    x = s.start(randn(1, 4, seed=1)).requires_grad_()
    out = s.step(0.5 * x, s.timesteps[0], x)
    p, q, _ = dosde.prediction.to_x0("vp_eps", s.process(s.plan[0].t))
    grad = torch.autograd.grad(out.pred_original_sample.sum(), x)[0]
    assert torch.allclose(grad, torch.full_like(grad, float(0.5 * p + q)))


# -- The process, the times, the config -----------------------------------------------------------------------------------


@pytest.mark.parametrize("t1", [1 / 3, 0.5, 2 / 3])
@pytest.mark.parametrize("steps", [1, 5, 15])
def test_the_default_is_the_released_discretisation(t1, steps):
    s = scheduler(t1=t1)
    process, times = dosde.presets.dossr(steps, t1)
    assert torch.equal(s.times(steps), times)
    everywhere = torch.linspace(0, 1, 2001, dtype=DOUBLE)
    ours, released = s.process(everywhere), process(everywhere)
    assert torch.equal(ours.a, released.a)
    assert torch.equal(ours.b, released.b)
    assert torch.equal(ours.sigma, released.sigma)
    s.set_timesteps(steps)
    assert s.timesteps.dtype == torch.int64
    assert torch.equal(s.timesteps, (1000 * times[:-1]).round().long() - 1)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 3, 5, 15])
def test_trajectories_of_the_released_code(order, steps):
    s, x_hat0 = scheduler(solver_order=order), torch.from_numpy(TRAJECTORIES["x0_hat"]).to(DOUBLE)
    noise = iter(torch.from_numpy(TRAJECTORIES["noise_all"]).to(DOUBLE))
    s.set_timesteps(steps, x_hat0=x_hat0)
    x, states, estimates = s.start(next(noise)), [], []
    for t in s.timesteps:
        states.append(x)
        output = torch.tanh(0.3 * x + 0.1 * x_hat0) + 0.01 * int(t) / 1000
        x, estimate = s.step(output, t, x, variance_noise=next(noise), return_dict=False)
        estimates.append(estimate)
    recorded = f"f64/o{min(order, steps)}/s{steps}/"
    assert (s.timesteps.numpy() == TRAJECTORIES[recorded + "t"]).all()
    for ours, name in ((torch.stack(states), "x"), (torch.stack(estimates), "pred_x0"), (x, "final")):
        expected = TRAJECTORIES[recorded + name]
        assert np.abs(ours.numpy() - expected).max() <= 1e-12 * np.abs(expected).max()


def test_spacings():
    none = scheduler(**NONE)
    assert (none.times(50)[:-1] * 1000 - 1).round().tolist() == np.linspace(999, 0, 50).round().tolist()
    assert none.times(50)[-1] == 0
    assert none.times(1).tolist() == [1.0, 0.0]
    for spacing, steps in (("leading", 7), ("trailing", 7), ("linspace", 10), ("leading", 50), ("trailing", 50)):
        theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
        ours = DoSDEScheduler.from_config(theirs.config, **NONE, prediction_type="epsilon")
        theirs.set_timesteps(steps)
        ours.set_timesteps(steps)
        assert torch.equal(ours.timesteps, theirs.timesteps)
    for spacing in ("spaced", "leading", "trailing"):  # with a shift they begin at or below t1
        for shift in ("dossr", "cosine"):
            s = scheduler(shift=shift, timestep_spacing=spacing)
            assert 0.4 < s.times(8)[0] <= s.process.t1
    assert torch.equal(scheduler(shift="cosine").times(4), dosde.grid.uniform(scheduler(shift="cosine").process, 4))
    few = scheduler(**FEW)
    assert torch.equal(few.times(4), dosde.grid.few_step(0.2)(few.process, 4))
    few.set_timesteps(4)
    assert few.timesteps.dtype == torch.float32
    assert [few.model_time(t) for t in (1.0, 0.5, 0.001, 0.0, 0.3005)] == [999, 499, 0, 0, pytest.approx(299.5)]


def test_the_noise_schedule_is_theirs():
    for config in ({}, {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}):
        s = scheduler(**NONE, **config)
        theirs = diffusers.DDIMScheduler(
            **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **config}
        )
        alpha2 = s.process(torch.arange(1, 1001, dtype=DOUBLE) / 1000).alpha ** 2
        assert torch.allclose(alpha2, theirs.alphas_cumprod.double(), rtol=1e-4)


@pytest.mark.parametrize(("solver", "order", "eta"), [("ode", 1, 0.0), ("dos", 1, 1.0), ("resshift", 1, 1.0)])
def test_without_a_shift_it_is_ddim(solver, order, eta):
    """Both of their ends: eta = 0 is the ODE, eta = 1 the SDE and the chain, of order 1."""
    theirs = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    ours = scheduler(**NONE, solver=solver, solver_order=order, timestep_spacing="leading", steps_offset=0)
    theirs.set_timesteps(10)
    ours.set_timesteps(10)
    x = y = ours.start(randn(1, 4))
    for t in theirs.timesteps:
        z = randn(1, 4, seed=int(t) + 1)
        x = theirs.step(net(x, 0 * x, t), t, x, eta, variance_noise=z).prev_sample
        y = ours.step(net(y, 0 * y, t), t, y, variance_noise=z).prev_sample
    assert torch.allclose(x, y, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_saved_and_loaded(name, tmp_path):
    s = scheduler(**CONFIGS[name])
    s.save_pretrained(tmp_path)
    for again in (DoSDEScheduler.from_pretrained(tmp_path), DoSDEScheduler.from_config(s.config)):
        assert dict(again.config).keys() - {"_use_default_values"} >= set(CONFIGS[name])
        for each in (s, again):
            each.set_timesteps(6)
        assert again.plan == s.plan
        assert torch.equal(again.timesteps, s.timesteps)
        assert again.predicts == s.predicts


def test_their_names_of_predictions():
    for theirs, ours in (("epsilon", "vp_eps"), ("v_prediction", "v"), ("sample", "x0"), ("sigma_eps", "sigma_eps")):
        assert scheduler(prediction_type=theirs).predicts == ours


# -- add_noise and starts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16])
def test_add_noise_is_the_marginal(dtype):
    x0, x_hat0, z = (randn(4, 3, 2, seed=k, dtype=dtype) for k in range(3))
    numbers = torch.tensor([0, 321, 499, 999])
    for s in (scheduler(), scheduler(shift="cosine"), scheduler(**NONE)):
        got = s.add_noise(x0, z, numbers, source=x_hat0)
        expected = s.process.sample(x0.double(), x_hat0.double(), (numbers + 1) / 1000, z.double())
        assert got.dtype == dtype
        assert torch.allclose(got.double(), expected, atol={DOUBLE: 1e-14, torch.float32: 1e-5}.get(dtype, 0.02))
        for i, n in enumerate(numbers):
            one = s.add_noise(x0[i : i + 1], z[i : i + 1], n, source=x_hat0[i : i + 1])
            assert torch.allclose(one.double(), expected[i : i + 1], atol={DOUBLE: 1e-14}.get(dtype, 0.02))
        s.set_timesteps(5, x_hat0=x_hat0)
        assert torch.equal(s.add_noise(x0, z, numbers), got)
    assert torch.equal(s.add_noise(x0, z, numbers), scheduler(**NONE).add_noise(x0, z, numbers))


@pytest.mark.parametrize("begin", [0, 2])
@pytest.mark.parametrize("name", ["the default", "few_step", "none", "dos, uniform"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_img2img_starts(name, begin, dtype):
    """With the source set, and with none: add_noise at the first timestep is `start`, and the loop is `solve` from there."""
    s, x_hat0 = scheduler(**CONFIGS[name]), randn(2, 3, 4, 4, dtype=dtype)
    ends = []
    for source in (x_hat0, None):
        for make in (lambda z: s.start(z), lambda z: s.add_noise(x_hat0, z, s.timesteps[begin : begin + 1])):
            if source is None and s.x_hat0 is None and name != "none":
                s.set_timesteps(5)
                with pytest.raises(ValueError, match="x_hat0: None with a shift"):
                    s.start(x_hat0)
            s.set_timesteps(5, x_hat0=x_hat0)
            if source is None:
                s.set_timesteps(5)
                make = lambda z: s.add_noise(x_hat0, z, s.timesteps[begin : begin + 1].repeat(2))  # noqa: E731
            s.set_begin_index(begin)
            g = generators("one")
            x = make(torch.randn(2, 3, 4, 4, generator=g))
            for t in s.timesteps[begin:]:
                x = s.step(net(x, x_hat0, t), t, x, g).prev_sample
            ends.append(x)
    expected = solved(s, x_hat0, 5, generators("one"), skipped=begin)
    assert all(torch.equal(end, expected) for end in ends)


def test_a_preview_before_a_loop_does_not_decide_its_source():
    s = scheduler()
    s.set_timesteps(5)
    for picture in (randn(1, 4), randn(1, 4, seed=1)):
        x = s.add_noise(picture, torch.zeros(1, 4), s.timesteps[:1])
        assert torch.allclose(x, float(s.process(s.plan[0].t).alpha) * picture)
        assert s.x_hat0 is picture


# -- Pipelines -------------------------------------------------------------------------------------------------------------


def tiny_unet():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
    ).eval()


def pipeline(kind, s, unet):
    made = kind(
        vae=diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
                                    up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16),
        text_encoder=None, tokenizer=None, unet=unet, scheduler=s, safety_checker=None, feature_extractor=None,
        image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("name", ["the default", "few_step", "none", "ode, corrected"])
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_stock_img2img_pipeline_is_solve(name, strength, dtype):
    """Stable Diffusion's, untouched: a tiny random UNet, guidance, a list of generators; latents in for x_hat0, latents out."""
    pytest.importorskip("transformers")
    s, unet, x_hat0, steps = scheduler(**CONFIGS[name]), tiny_unet().to(dtype), randn(2, 4, 8, 8, dtype=dtype), 5
    words = randn(2, 3, 8, seed=1, dtype=dtype)
    got = pipeline(diffusers.StableDiffusionImg2ImgPipeline, s, unet)(
        image=x_hat0, prompt_embeds=words, negative_prompt_embeds=0 * words, strength=strength, num_inference_steps=steps,
        guidance_scale=3.0, generator=generators("a list"), output_type="latent",
    ).images  # fmt: skip

    def guided(x, x_hat0, t):
        both = unet(torch.cat([x, x]), t, encoder_hidden_states=torch.cat([0 * words, words])).sample
        low, high = both.chunk(2)
        return low + 3.0 * (high - low)

    # Theirs draws the noise of the start in the dtype of the latents.
    made, independent = iter(range(steps + 1)), dosde.noise.Independent(generators("a list"))
    expected = solved(
        s,
        x_hat0,
        steps,
        lambda u, v, like: independent(u, v, like.to(dtype) if next(made) == 0 else like),
        net=guided,
        skipped=steps - int(steps * strength),
    )
    assert torch.equal(got, expected)


@torch.no_grad()
def test_stock_text_to_image_pipelines_are_solve_from_zeros():
    """Stable Diffusion's scales its noise by init_noise_sigma; DDPM's starts at the noise as it is."""
    pytest.importorskip("transformers")
    s, unet, words, zeros = scheduler(**NONE, solver="adams"), tiny_unet(), randn(1, 3, 8), torch.zeros(1, 4, 8, 8)
    pipe = pipeline(diffusers.StableDiffusionPipeline, s, unet)
    got = pipe(prompt_embeds=words, height=16, width=16, num_inference_steps=6, guidance_scale=0.0,
               generator=generators("one"), output_type="latent").images  # fmt: skip
    call = lambda x, x_hat0, t: unet(x, t, encoder_hidden_states=words).sample  # noqa: E731
    assert torch.equal(got, solved(s, zeros, 6, generators("one"), net=call))

    torch.manual_seed(0)
    plain = diffusers.UNet2DModel(sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
                                  down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    pipe = diffusers.DDPMPipeline(plain, s)
    pipe.set_progress_bar_config(disable=True)
    got = pipe(generator=generators("one"), num_inference_steps=6, output_type="pt").images
    expected = solved(
        s,
        torch.zeros(1, 3, 8, 8),
        6,
        iter_scaled(dosde.noise.Independent(generators("one")), 1 / s.init_noise_sigma),
        net=lambda x, x_hat0, t: plain(x, t).sample,
    )
    assert torch.allclose(got, (expected / 2 + 0.5).clamp(0, 1), atol=1e-5)


@torch.no_grad()
def test_a_strength_that_leaves_no_step_is_refused_in_one_line():
    pytest.importorskip("transformers")
    pipe, words = pipeline(diffusers.StableDiffusionImg2ImgPipeline, scheduler(), tiny_unet()), randn(1, 3, 8)
    how = {"prompt_embeds": words, "negative_prompt_embeds": words, "num_inference_steps": 6, "output_type": "latent"}
    assert pipe(image=randn(1, 4, 8, 8), strength=1 / 6, **how).images.shape == (1, 4, 8, 8)
    with pytest.raises(ValueError, match=r"begin_index: 6, which leaves none of 6 steps; .* a strength of 0.167 or more$"):
        pipe(image=randn(1, 4, 8, 8), strength=0.1, **how)


def iter_scaled(noise, first):
    scales = iter([first])
    return lambda u, v, like: noise(u, v, like) * next(scales, 1.0)


def test_a_pipeline_with_it_is_saved_and_loaded(tmp_path):
    pytest.importorskip("transformers")
    made = pipeline(diffusers.StableDiffusionImg2ImgPipeline, scheduler(**FEW, t1=0.4), tiny_unet())
    made.save_pretrained(tmp_path)
    again = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(
        tmp_path, text_encoder=None, tokenizer=None, safety_checker=None
    )
    assert isinstance(again.scheduler, DoSDEScheduler)
    assert again.scheduler.config.t1 == 0.4
    assert again.scheduler.config.solver == "few_step"


def test_the_protocol():
    s = scheduler()
    assert (len(s), s.order, s.config.num_train_timesteps, s.compatibles) == (1000, 1, 1000, [])
    assert torch.equal(s.timesteps, torch.arange(999, -1, -1))
    assert s.init_noise_sigma == float(s.process(1.0).sigma)
    assert (s.begin_index, s.step_index, s.num_inference_steps) == (None, None, None)
    x = randn(1, 4)
    s.set_timesteps(4, "cpu", x)
    s.set_begin_index(1)
    assert s.init_noise_sigma == float(s.process(s.times(4)[1]).sigma)
    s.step(x, s.timesteps[1].item(), x)  # a number will do
    assert (s.begin_index, s.step_index, s.num_inference_steps) == (1, 2, 4)
    s.step(x, s.timesteps[2].clone(), x)
    s.step(x, int(s.timesteps[3]), x)
    s.set_timesteps(4)
    assert (s.begin_index, s.step_index, s.x_hat0) == (None, None, None)


# -- What can go wrong -----------------------------------------------------------------------------------------------------

X = torch.ones(2, 3)


def ready(steps=4, **config):
    s = scheduler(**config)
    s.set_timesteps(steps, x_hat0=X)
    return s


def twice():
    s = ready(1)
    s.step(X, s.timesteps[0], X)
    s.step(X, s.timesteps[0], X)


def not_a_number():
    s = ready(2)
    s.step(X, s.timesteps[0], X)
    s.step(X * math.nan, s.timesteps[1], X)


WRONG = {
    "shift": (lambda: scheduler(shift="sine"), ValueError, r"shift: 'sine'; one of dossr, cosine, linear, none"),
    "solver": (
        lambda: scheduler(solver="euler"),
        ValueError,
        r"solver: 'euler'; one of dos, resshift, adams, ode, chain, few_",
    ),
    "spacing": (lambda: scheduler(timestep_spacing="log"), ValueError, r"timestep_spacing: 'log'; one of dossr, uniform"),
    "schedule": (lambda: scheduler(beta_schedule="sigmoid"), ValueError, r"beta_schedule: 'sigmoid'; one of scaled_linear"),
    "prediction": (lambda: scheduler(prediction_type="flow"), ValueError, r"prediction_type: 'flow'; .*vp_eps.*epsilon"),
    "score": (lambda: scheduler(prediction_type="score"), ValueError, r"prediction_type: 'score'; one of"),
    "variable": (lambda: scheduler(variable="t"), ValueError, r"variable: 't'; one of lam, log_lam"),
    "few_step": (lambda: scheduler(solver="few_step"), ValueError, r"scale: None; few_step needs the std"),
    "few_step's grid": (lambda: scheduler(timestep_spacing="few_step"), ValueError, r"scale: None; few_step needs"),
    "scale": (lambda: scheduler(solver="few_step", scale=-1.0), ValueError, r"scale: -1"),
    "tau": (lambda: scheduler(tau=0.5), ValueError, r"tau: 0.5 with solver = 'dos'; None is needed"),
    "tau's range": (lambda: scheduler(solver="adams", tau=2), ValueError, r"tau: 2; a number from 0"),
    "corrector": (lambda: scheduler(**FEW, corrector=True), ValueError, r"corrector, .*'few_step'; False .*by itself"),
    "t1": (lambda: scheduler(t1=0), ValueError, r"t1: 0; a time in \(0, 1\]"),
    "betas": (lambda: scheduler(beta_end=1e-5), ValueError, r"beta_start, beta_end: 0.00085, 1e-05; 0 < beta_start"),
    "trained_betas": (lambda: scheduler(trained_betas=[0.1]), ValueError, r"trained_betas: 1 values with num_train_.* 1000"),
    "a beta": (
        lambda: scheduler(num_train_timesteps=2, trained_betas=[0.1, 1.0]),
        ValueError,
        r"trained_betas: 1 at index 1; numbers between 0 and 1",
    ),
    "trained_etas": (lambda: scheduler(trained_etas=torch.ones(1000)), TypeError, r"trained_etas: .*; a list of 1000 numbers"),
    "order": (lambda: scheduler(solver_order=0), ValueError, r"solver_order: 0; a positive integer"),
    "table": (lambda: scheduler(num_train_timesteps=0), ValueError, r"num_train_timesteps: 0; a positive integer"),
    "offset": (lambda: scheduler(steps_offset=-1), ValueError, r"steps_offset: -1; an integer >= 0"),
    "no timesteps": (lambda: scheduler().step(X, 499, X), ValueError, r"step: no timesteps are set; call set_timesteps"),
    "no timesteps, start": (lambda: scheduler().start(X), ValueError, r"start: no timesteps are set"),
    "no timesteps, begin": (lambda: scheduler().set_begin_index(0), ValueError, r"set_begin_index: no timesteps are set"),
    "steps": (lambda: ready(0), ValueError, r"num_inference_steps: 0; a positive integer"),
    "too many": (lambda: ready(1001, **NONE), ValueError, r"num_inference_steps: 1001; at most 1000"),
    "x_hat0": (lambda: scheduler().set_timesteps(3, x_hat0=X * math.nan), ValueError, r"x_hat0: .* holds NaN"),
    "x_hat0's type": (lambda: scheduler().set_timesteps(3, x_hat0=3), TypeError, r"x_hat0: a int; a floating tensor"),
    "eps at a = 0": (
        lambda: ready(shift="cosine", prediction_type="eps"),
        ValueError,
        r"t: 0.5; a = 0 there, where x0 does not follow from eps",
    ),
    "start": (lambda: ready().start(X[:1]), ValueError, r"noise: .*\(1, 3\).*; a floating tensor like x_hat0, .*\(2, 3\)"),
    "sample": (lambda: ready().step(X, 499, X[:1]), ValueError, r"sample: .*\(1, 3\).*; a floating tensor of shape \(2, 3\)"),
    "output": (lambda: ready().step(X[:1], 499, X), ValueError, r"model_output: .*\(1, 3\).*; .*shape \(2, 3\)"),
    "output's type": (lambda: ready().step(X.int(), 499, X), ValueError, r"model_output: a int32 .*; a floating tensor"),
    "variance_noise": (
        lambda: ready().step(X, 499, X, variance_noise=X[:1]),
        ValueError,
        r"variance_noise: .*\(1, 3\).*; .*shape \(2, 3\)",
    ),
    "generators": (
        lambda: ready().step(X, 499, X, generator=[torch.Generator()]),
        ValueError,
        r"noise: 1 generators; 2 are needed",
    ),
    "another timestep": (
        lambda: ready().step(X, 374, X),
        ValueError,
        r"timestep: 374; 499 is needed, the next \(timesteps\[0\]\)",
    ),
    "an element too early": (lambda: (s := ready()).step(X, s.timesteps[1], X), ValueError, r"timestep: 374; 499 is needed"),
    "two timesteps": (lambda: ready().step(X, torch.tensor([499, 499]), X), TypeError, r"timestep: .*; one number"),
    "after the end": (twice, ValueError, r"timestep: 499; all 1 steps are done, set_timesteps begins anew"),
    "nan": (not_a_number, ValueError, r"model: returned NaN or infinity at step 1, t = 0.25"),
    "begin_index": (lambda: ready().set_begin_index(4), ValueError, r"begin_index: 4, which leaves none .*; 0 to 3 .*0.25"),
    "begin_index behind the end": (lambda: ready().set_begin_index(5), ValueError, r"begin_index: 5; 0 to 3 is needed"),
    "no source": (lambda: scheduler().add_noise(X, X, torch.tensor(3)), ValueError, r"source: None, and no x_hat0 is set"),
    "source": (lambda: scheduler().add_noise(X, X, torch.tensor(3), X[:1]), ValueError, r"source: .*\(1, 3\).*shape \(2, 3\)"),
    "noise": (lambda: ready().add_noise(X, X[:1], torch.tensor(3)), ValueError, r"noise: .*\(1, 3\).*shape \(2, 3\)"),
    "timesteps": (lambda: ready().add_noise(X, X, torch.tensor([1000])), ValueError, r"timesteps: \[1000, 1000\]|\[1000\]"),
    "three timesteps": (lambda: ready().add_noise(X, X, torch.arange(3)), ValueError, r"timesteps: 3 of them; 1, or 2"),
}


test_wrong_calls = wrong_calls(WRONG)


def test_a_step_that_fails_changes_nothing():
    """What a caller mends, goes on."""
    s, x_hat0 = scheduler(), randn(2, 4)
    s.set_timesteps(3, x_hat0=x_hat0)
    g = generators("one")
    x = s.start(torch.randn(2, 4, generator=g))
    for t in s.timesteps:
        for output, timestep, noise in ((x[:1], t, g), (x, t, [g]), (x, 999, g)):
            with pytest.raises(ValueError, match=r"model_output|generators|timestep"):
                s.step(output, timestep, x, noise)
        x = s.step(net(x, x_hat0, t), t, x, g).prev_sample
    assert torch.equal(x, solved(s, x_hat0, 3, generators("one")))


def test_it_is_imported_where_asked_for_only():
    code = "import sys, dosde, dosde.interop; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    module = sys.modules["dosde.interop.diffusers"]
    assert module is not diffusers  # of the same last name, and neither hides the other
    assert module.SchedulerMixin is diffusers.SchedulerMixin


# -- Configs of diffusers' schedulers -----------------------------------------------------------------------------------------

OF_BETAS = (
    *("DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler"),
    *("DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
    *(
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "RePaintScheduler",
        "SASolverScheduler",
    ),
    *("TCDScheduler", "UniPCMultistepScheduler", "UnCLIPScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler"),
)
OF_ANOTHER_NOISE = (
    *(
        "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler",
        "CMStochasticIterativeScheduler",
        "CosineDPMSolverMultistepScheduler",
        "SCMScheduler",
    ),
    *("ScoreSdeVeScheduler", "KarrasVeScheduler", "IPNDMScheduler", "DDPMWuerstchenScheduler"),
)


@pytest.mark.parametrize("name", OF_BETAS)
def test_the_table_of_another_scheduler_is_taken_over_defaults_included(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of theirs, about numpy
        theirs = getattr(diffusers, name)()
    ours = DoSDEScheduler.from_config(theirs.config)
    T = theirs.config.num_train_timesteps
    times = (torch.arange(T, dtype=torch.float64) + 1) / T
    assert torch.allclose(ours.process.schedule(times)[0] ** 2, theirs.alphas_cumprod.double(), rtol=1e-3, atol=1e-6)
    assert len(ours) == T
    if "prediction_type" in theirs.config:
        assert ours.predicts == {"epsilon": "vp_eps"}[theirs.config.prediction_type]


@pytest.mark.parametrize("name", OF_ANOTHER_NOISE)
def test_another_noise_than_a_table_of_betas_is_refused_by_name(name, tmp_path):
    theirs = getattr(diffusers, name)()
    with pytest.raises(
        ValueError, match=r"^config: one with .*, without betas; the config of one with beta_schedule is needed"
    ):
        DoSDEScheduler.from_config(theirs.config)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"^config: {name}, without betas; the config of one with beta_schedule is needed"):
        DoSDEScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rescale_betas_zero_snr": True}, r"prediction_type: 'epsilon'; v, x0 or residual is needed where the table ends at"),
        ({"use_flow_sigmas": True, "prediction_type": "epsilon"}, r"prediction_type: 'epsilon'; flow_prediction is needed"),
        ({"variance_type": "learned_range"}, r"variance_type: 'learned_range'; a network that predicts no variance"),
        ({"beta_schedule": "exponential"}, r"beta_schedule: 'exponential'; one of scaled_linear, linear, squaredcos_cap_v2"),
    ],
)
def test_a_table_that_is_not_as_it_stands_is_refused(options, message):
    config = dict(diffusers.DPMSolverMultistepScheduler().config) | options
    with pytest.raises(ValueError, match=message):
        DoSDEScheduler.from_config(config)


def test_a_scheduler_from_a_file_of_another_is_the_same(tmp_path):
    diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=100).save_pretrained(tmp_path)
    ours = DoSDEScheduler.from_pretrained(tmp_path)
    assert ours.config.beta_schedule == "squaredcos_cap_v2"
    assert ours == DoSDEScheduler(
        beta_schedule="squaredcos_cap_v2",
        num_train_timesteps=100,
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=0,
    )


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_spacings_are_those_of_diffusers_at_every_number_of_steps(spacing, offset):
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    ours = DoSDEScheduler.from_config(theirs.config, **NONE, prediction_type="epsilon")
    for steps in range(2 if spacing == "linspace" else 1, 1001):  # one step of linspace begins at index 0 there
        theirs.set_timesteps(steps)
        indices = ours.times(steps)[:-1] * 1000 - 1
        # At some numbers, 61 say, theirs has one index more, and it is -1.
        assert torch.equal(indices.round().long(), theirs.timesteps[:steps]), steps


OPTIONS = {
    "rescale_betas_zero_snr": [True],
    "use_flow_sigmas": [True],
    "beta_schedule": ["scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", "laplace"],
    "prediction_type": ["v_prediction", "flow_prediction"],
    "trained_betas": [np.linspace(1e-4, 0.03, 1000)],
    "num_train_timesteps": [500],
    "beta_start": [0.001],
    "timestep_type": ["continuous"],
    "variance_type": ["fixed_small", "learned_range"],
    "snr_shift_scale": [1.0],
    "sigma_min": [0.1],
    "sigma_max": [10.0],
}


def outcome(config):
    try:
        return DoSDEScheduler.from_config(config, shift="none"), None  # which is made in less time
    except ValueError as error:
        return None, error


def test_every_scheduler_of_diffusers_is_taken_over_or_refused(caplog):
    """The table of betas to 1e-6 and the kind of prediction, or the option by its name; nothing else is said."""
    from diffusers import schedulers as module

    kinds = {getattr(module, name) for name in dir(module) if name.endswith("Scheduler")}
    kinds = {kind for kind in kinds if isinstance(kind, type) and hasattr(kind, "load_config")}
    taken, refused, names = 0, 0, {"config", *OPTIONS}
    with warnings.catch_warnings(), caplog.at_level("WARNING", logger="diffusers"):
        warnings.simplefilter("ignore")
        for kind in kinds:
            known = inspect.signature(kind.__init__).parameters
            for name, value in [("", None), *((n, v) for n, values in OPTIONS.items() if n in known for v in values)]:
                try:
                    theirs = kind(**({name: value} if name else {}))
                except (ValueError, TypeError, NotImplementedError, ImportError):
                    continue  # they refuse it, or need more
                ours, error = outcome(theirs.config)
                if error is not None:
                    refused += 1
                    assert error.argument in {*names, "invert_sigmas", "time_shift_type"}, (kind, name)
                    assert "\n" not in str(error)
                    continue
                taken += 1
                if ours.config.beta_schedule == "flow":
                    assert ours.predicts == "velocity"
                    assert ours.config.flow_shift == theirs.config.get("flow_shift", theirs.config.get("shift"))
                    continue
                times = (torch.arange(len(ours), dtype=DOUBLE) + 1) / len(ours)
                worst = (ours.process.schedule(times)[0] ** 2 - theirs.alphas_cumprod.double()).abs().max()
                assert worst < 1e-6, (kind, name, worst)
                named = {"epsilon": "vp_eps", "sample": "x0", "v_prediction": "v"}
                assert ours.predicts == named[theirs.config.get("prediction_type", "epsilon")]
    assert not [record for record in caplog.records if "DoSDEScheduler" in record.getMessage()]
    assert min(len(kinds), taken, refused) > 40


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", "dossr"])
def test_the_default_device_of_torch_changes_no_timestep(spacing):
    def times():
        s = DoSDEScheduler(timestep_spacing=spacing)
        s.set_timesteps(4)
        return s.timesteps

    expected = times()
    with torch.device("meta"):
        found = times()
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:order")  # log lam on the released grid amplifies
def test_schedulers_compare_pickle_and_copy():
    s = DoSDEScheduler(solver="adams", tau=0.5, variable="log_lam")
    s.set_timesteps(4, x_hat0=torch.ones(1, 4, 2, 2))
    for again in (pickle.loads(pickle.dumps(s)), copy.deepcopy(s), DoSDEScheduler.from_config(s.config)):
        assert again == s
        assert hash(again) == hash(s)
        assert again.process == s.process
        assert again.method == s.method
    assert s != DoSDEScheduler(solver="adams")
    x = again_x = s.start(torch.ones(1, 4, 2, 2))
    again = pickle.loads(pickle.dumps(s))
    for t in s.timesteps:
        x = s.step(x, t, x, torch.Generator().manual_seed(0)).prev_sample
        again_x = again.step(again_x, t, again_x, torch.Generator().manual_seed(0)).prev_sample
    assert torch.equal(x, again_x)


# -- Flow matching, zero terminal SNR, timesteps that are given ---------------------------------------------------------------


def test_flow_matching_of_order_1_is_flow_match_euler():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = DoSDEScheduler.from_config(theirs.config, solver="ode", solver_order=1)
    network = lambda x, t: torch.tanh(x) * (1 + t / 1000)  # noqa: E731
    for more in ({"num_inference_steps": 7}, {"sigmas": [1.0, 0.7, 0.4, 0.1]}):
        theirs.set_timesteps(**more)
        ours.set_timesteps(**more)
        assert torch.allclose(ours.timesteps, theirs.timesteps, rtol=1e-5)
        x = y = torch.randn(2, 4, 3, 3, generator=seeded())
        for t, s in zip(theirs.timesteps, ours.timesteps, strict=True):
            x = theirs.step(network(x, t), t, x).prev_sample
            y = ours.step(network(y, s), s, y).prev_sample
        assert torch.allclose(x, y, atol=1e-5)


def test_dynamic_shifting_is_theirs():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    ours = DoSDEScheduler.from_config(theirs.config)
    for more in ({"sigmas": [1.0, 0.6, 0.2]}, {"num_inference_steps": 4}):
        theirs.set_timesteps(mu=0.8, **more)
        ours.set_timesteps(mu=0.8, **more)
        assert torch.allclose(ours.timesteps, theirs.timesteps, rtol=1e-4)


def test_the_stock_sd3_pipeline_is_solve():
    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    sizes = {"sample_size": 8, "patch_size": 1, "in_channels": 4, "num_layers": 1, "attention_head_dim": 4, "out_channels": 4}
    heads = {"num_attention_heads": 2, "joint_attention_dim": 8, "caption_projection_dim": 8, "pooled_projection_dim": 8}
    net = SD3Transformer2DModel(**sizes, **heads, pos_embed_max_size=8).eval()
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, shift_factor=0.1, scaling_factor=1.5)
    scheduler = DoSDEScheduler.from_config(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config, solver="ode", solver_order=2
    )
    none = dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"))
    pipe = StableDiffusion3Pipeline(transformer=net, vae=vae, scheduler=scheduler, **none)
    pipe.set_progress_bar_config(disable=True)
    words, pooled = torch.randn(1, 5, 8, generator=seeded(1)), torch.randn(1, 8, generator=seeded(2))
    z = torch.randn(1, 4, 8, 8, generator=seeded())
    prompt = {"prompt_embeds": words, "pooled_prompt_embeds": pooled}
    how = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent", "height": 8, "width": 8}
    got = pipe(latents=z, **prompt, **how).images

    def model(x, x_hat0, t):
        return net(x, timestep=t.reshape(1).float() * 1000, encoder_hidden_states=words, pooled_projections=pooled).sample

    with torch.no_grad():
        denoiser = dosde.Denoiser(model, scheduler.process, "velocity")
        how = {"method": scheduler.method, "grid": scheduler.times(4), "noise": lambda u, u_next, like: z}
        expected = dosde.solve(denoiser, torch.zeros_like(z), 4, 2, **how)
    assert torch.allclose(got, expected, atol=1e-5)


def test_a_table_that_ends_at_alpha_0():
    theirs = diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    ours = DoSDEScheduler.from_config(theirs.config, **NONE | {"solver": "ode", "solver_order": 1})
    times = (torch.arange(1000, dtype=DOUBLE) + 1) / 1000
    assert torch.allclose(ours.process.schedule(times)[0] ** 2, theirs.alphas_cumprod.double(), atol=1e-6)
    ours.set_timesteps(5)
    x = torch.randn(1, 3, generator=seeded())
    for t in ours.timesteps:
        x = ours.step(torch.tanh(x), t, x).prev_sample
    assert x.isfinite().all()


def test_timesteps_and_sigmas_that_are_given():
    s = DoSDEScheduler(shift="none", solver="ode", solver_order=1, timestep_spacing="leading")
    s.set_timesteps(timesteps=[900, 500, 20])
    assert s.timesteps.tolist() == [900, 500, 20]
    lams = [float(s.process((i + 1) / 1000).lam) for i in (900, 500, 20)]
    s.set_timesteps(sigmas=lams)
    assert s.timesteps.tolist() == [900, 500, 20]
    s.set_timesteps(sigmas=[*lams, 0.0])
    assert s.timesteps.tolist() == [900, 500, 20]
    for wrong, message in (
        ({"timesteps": [20, 500]}, "^timesteps: .*; numbers that fall"),
        ({"timesteps": [900], "sigmas": [1.0]}, "^sigmas: with timesteps; timesteps or sigmas alone"),
        ({"num_inference_steps": 4, "mu": 0.5}, "^mu: 0.5 with use_dynamic_shifting = False"),
        ({}, "^num_inference_steps: None; a positive integer"),
        ({"sigmas": "abc"}, "^sigmas: 'abc'; decreasing numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            s.set_timesteps(**wrong)
    with pytest.raises(ValueError, match=r"^flow_shift: 0; a positive number"):
        DoSDEScheduler(beta_schedule="flow", shift="none", prediction_type="velocity", flow_shift=0)
