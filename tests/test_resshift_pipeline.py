"""ResShiftPipeline: number for number the released networks, at any size, scale, number of steps, in tiles, in half."""

import copy
import json
from types import SimpleNamespace

import golden_resshift
import numpy as np
import PIL.Image
import pytest
import resshift as resshift_benchmark
import resshift_networks
import torch

import backbones
import dosde
from backbones.cli import main
from dosde import method, presets
from dosde.check import Refused

pytest.importorskip("diffusers")

import diffusers

from backbones.resshift import ResShiftPipeline, convert, network, pipeline, stages
from dosde.interop.diffusers import DoSDEScheduler

NET, LATENT, PIXEL = 4e-5, 6e-5, 3e-5  # the floors of float32 are 4e-6, 2e-5 and 6e-6


@pytest.fixture(scope="module")
def pipe(resshift_folder):
    made = ResShiftPipeline.from_pretrained(resshift_folder)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def inpainting(resshift_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("inpainting") / "resshift_inpainting_imagenet_s4.pth"
    torch.save(golden_resshift.state_dict("unet_inpaint"), path)
    made = ResShiftPipeline.from_single_file(path, autoencoder=resshift_folder.parent / "autoencoder_vq_f4.pth")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def tiny():
    return resshift_networks.tiny()


@pytest.fixture(scope="module")
def recorded():
    return golden_resshift.recorded()


def played(*draws):
    """Noise as solve draws it: the start's, then one a step."""
    left = [draw.float() for draw in draws]
    return lambda *_: left.pop(0)


def worst(a, b):
    return (a - b).abs().max().item()


def sparse(x):
    return x[..., ::4, ::4]


# -- Parity -----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_modules(pipe, inpainting, recorded):
    r, unet = recorded, pipe.unet
    out = unet(r["unet/u2/x"].float(), r["unet/u2/t"], r["unet/u2/lq"].float())
    assert worst(sparse(out), r["unet/u2/out"]) < NET
    time = unet.time_embed(network.sinusoid(r["unet/time_embed/t"], 32))
    assert worst(time, r["unet/time_embed/out"]) < 1e-6
    x, emb = r["unet/input_blocks.1.0/x"].float(), r["unet/input_blocks.1.0/emb"]
    assert worst(unet.input_blocks[1][0](x, emb), r["unet/input_blocks.1.0/out"]) < 1e-5
    layer = unet.input_blocks[1][1](r["unet/input_blocks.1.1/x"].float())[:, ::4]
    assert worst(layer, r["unet/input_blocks.1.1/out"]) < 1e-5
    features = inpainting.unet.feature_extractor(r["unet_inpaint/feature_extractor/x"].float())[:, ::4]
    assert worst(features, r["unet_inpaint/feature_extractor/out"]) < 1e-5


def test_masks(recorded):
    sizes = [name.removeprefix("mask/") for name in recorded if name.startswith("mask/")]
    assert len(sizes) == 7
    for size in sizes:
        height, width = map(int, size.split("x"))
        assert torch.equal(network.mask(8, 4, height, width) == network.HIDDEN, recorded[f"mask/{size}"])


@torch.no_grad()
def test_autoencoder(pipe, recorded):
    picture = recorded["vq/picture_uint8"].permute(2, 0, 1)[None] / 127.5 - 1
    assert worst(stages.encode(pipe.vqvae, picture, 4, None, pipe._bar), recorded["vq/picture_z"]) < LATENT
    codes = stages.quantised(recorded["vq/z"], pipe.vqvae.quantize.embedding.weight)
    assert worst(codes, recorded["vq/quantised"]) < 1e-6
    assert worst(sparse(2 * pipe.decode(recorded["vq/z"]) - 1), recorded["vq/decoded"]) < PIXEL


@torch.no_grad()
@pytest.mark.parametrize(("how", "prefix"), [(method.resshift, "T4/"), (method.ode, "T4/ode/")])
def test_sampler(pipe, recorded, how, prefix):
    made = pipe.prepare(recorded["T4/lq_uint8"].permute(2, 0, 1)[None] / 255)
    assert worst(sparse(made.x_hat0), recorded["T4/z_y"]) < LATENT
    states, estimates = [], []
    solver = {
        "method": how,
        "grid": pipe.scheduler.times(4),
        "callback": lambda *all: [states.append(all[2]), estimates.append(all[3])],
    }
    noise = played(recorded["T4/noise_init"], *recorded["T4/noise_steps"])
    states.append(dosde.solve(pipe.denoiser(made.lq), made.x_hat0, 4, 1, noise=noise, **solver))
    for at, expected in zip(recorded[f"{prefix}x_at"], recorded[f"{prefix}x"], strict=True):
        assert worst(sparse(states[at]), expected) < LATENT
    if how is method.resshift:
        for at, expected in zip(recorded["T4/pred_x0_at"], recorded["T4/pred_x0"], strict=True):
            assert worst(sparse(estimates[at]), expected) < LATENT
    decoded = 2 * pipe.decode(states[-1]) - 1
    assert worst(sparse(decoded[..., 64:128, 96:160]), recorded[f"{prefix}decoded"]) < PIXEL


def test_the_call_is_the_published_sampler(pipe, recorded):
    image = PIL.Image.fromarray(recorded["T4/lq_uint8"].numpy())
    noise = [recorded["T4/noise_init"], *recorded["T4/noise_steps"]]
    picture = pipe(image, noise=played(*noise), output_type="pt").images
    expected = recorded["T4/decoded"].clamp(-1, 1) / 2 + 0.5
    assert worst(sparse(picture[..., 64:128, 96:160]), expected) < PIXEL
    written = np.asarray(pipe(image, noise=played(*noise)).images[0]).astype(int)
    assert np.abs(written - (picture[0] * 255).permute(1, 2, 0).numpy()).max() < 0.501  # rounded, as in the release


def test_one_step_is_the_prediction_at_the_last_index(pipe, recorded):
    noise = played(recorded["T4/noise_init"])
    latents = pipe(recorded["T4/lq_uint8"].numpy(), num_inference_steps=1, noise=noise, output_type="latent").images
    assert worst(sparse(latents), recorded["T4/one_step/latent"]) < LATENT


# -- Any size, scale, number of steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 5, 64])
def test_padding_reflects(side):
    picture = torch.rand(1, 3, side, 3 * side)
    padded = stages.reflected(picture, 64)
    assert all(s % 64 == 0 for s in padded.shape[-2:])
    assert torch.equal(padded[..., :side, : 3 * side], picture)
    if side > 32:
        assert torch.equal(padded, picture)
    if side == 5:  # as torch's, as often as it takes
        assert torch.equal(padded[..., :9, :29], torch.nn.functional.pad(picture, (0, 14, 0, 4), mode="reflect"))


@pytest.mark.parametrize(("scale", "size"), [(4, (28, 44)), (3, (21, 33)), (0.5, (4, 6)), (5.5, (38, 60))])
def test_scales(tiny, scale, size):
    picture = tiny(torch.rand(1, 3, 7, 11), scale, 1, output_type="pt").images
    assert picture.shape == (1, 3, *size)
    assert 0 <= picture.min() < picture.max() <= 1


@pytest.mark.parametrize(("stages", "scale"), [(1, 2), (2, 1)])
def test_the_branch_of_the_picture_tells_the_scale(stages, scale):
    """x2 and x1 networks, whose picture is larger than the latent: the same sizes whole and in tiles."""
    pipe = resshift_networks.tiny([[8, 16]] * stages)
    assert (pipe.scale, pipe.multiple) == (scale, 32)
    made = pipe.prepare(torch.rand(1, 3, 21, 70), scale)
    assert made.lq.shape[-2:] == (-(-21 // (32 // scale)) * 32 // scale, -(-70 // (32 // scale)) * 32 // scale)
    assert made.x_hat0.shape[-2:] == tuple(side * scale // 4 for side in made.lq.shape[-2:])
    for tile in (None, 64):
        pictures = pipe(torch.rand(1, 3, 21, 70), scale, 2, tile=tile, output_type="pt").images
        assert pictures.shape == (1, 3, 21 * scale, 70 * scale)


def test_grey_stays_grey_and_lists_may_have_several_sizes(tiny):
    images = [PIL.Image.new("L", (8, 6), 90), PIL.Image.new("RGBA", (5, 5), (9, 90, 200, 100))]
    made = tiny(images, 2, 1).images
    assert [(one.mode, one.size) for one in made] == [("L", (16, 12)), ("RGBA", (10, 10))]


@pytest.mark.parametrize("T", [4, 15])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 15, 16, 50])
def test_any_number_of_steps(steps, T):
    process = dosde.process.resshift(T, eta_min=presets.RESSHIFT_ETA_MIN[T])
    times = dosde.grid.table(T)(process, steps)
    index = times[:-1] * T - 1
    assert len(index) == steps
    assert times[-1] == 0
    assert index[0] == T - 1
    assert steps == 1 or abs(index[-1]) < 1e-12
    assert steps > T or torch.equal(index.round(), index)
    for how, order in ((method.resshift, 1), (method.dos, 3), (method.ode, 3)):  # which warns where errors are multiplied
        dosde.plan(process, steps, min(order, steps), grid=times, method=how)
    if steps == T:
        assert torch.allclose(times, presets.resshift(T, T)[1])


@pytest.mark.parametrize("T", [4, 15])
def test_the_scheduler_has_the_process(T):
    scheduler = DoSDEScheduler(**convert.standard(T))
    process = dosde.process.resshift(T, eta_min=presets.RESSHIFT_ETA_MIN[T])
    for t in torch.linspace(0, 1, 31, dtype=torch.float64):
        m, n = process(t), scheduler.process(t)
        assert max(worst(m.a, n.a), worst(m.b, n.b), worst(m.sigma, n.sigma)) < 1e-12
    x = torch.ones(1, 3, 2, 2)
    scaled = scheduler.scale_model_input(x, torch.tensor(T - 1))
    assert torch.allclose(scaled, x / (4 * 0.9801 + 1) ** 0.5)
    etas = scheduler.config.trained_etas
    for wrong, message in (
        ({"kappa": 2.0}, "trained_etas are needed"),
        ({"kappa": 0.0, "trained_etas": etas}, "kappa: 0.0; a"),
    ):
        with pytest.raises(Refused, match=message):
            DoSDEScheduler(num_train_timesteps=T, **wrong)
    with pytest.raises(Refused, match="timestep: None"):
        scheduler.scale_model_input(x)


def test_other_solvers_on_its_process(tiny):
    picture = torch.rand(1, 3, 16, 16, generator=torch.manual_seed(1))
    own = tiny(picture, generator=torch.manual_seed(0), output_type="pt").images
    for how in (presets.few_step(0.4), {"method": method.dos}, {"method": method.ode}, {"method": method.adams}):
        made = tiny(picture, num_inference_steps=3, generator=torch.manual_seed(0), output_type="pt", **how).images
        assert made.isfinite().all()
        assert worst(made, own) > 1e-3


def test_the_scheduler_alone_makes_the_bits_of_the_call(pipe, recorded):
    scheduler, lq = pipe.scheduler, recorded["T4/lq_uint8"].permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        made = pipe.prepare(lq)
        scheduler.set_timesteps(4, x_hat0=made.x_hat0)
        assert scheduler.timesteps.tolist() == [3, 2, 1, 0]
        x = scheduler.start(recorded["T4/noise_init"].float())
        for i, t in enumerate(scheduler.timesteps):
            out = pipe.unet(scheduler.scale_model_input(x, t), t.float(), made.lq)
            x = scheduler.step(out, t, x, variance_noise=recorded["T4/noise_steps"][i].float()).prev_sample
    noise = played(recorded["T4/noise_init"], *recorded["T4/noise_steps"])
    assert torch.equal(x, pipe(lq, noise=noise, output_type="latent").images)


def test_tiles_cut_x_and_the_picture_alike(tiny):
    """With a network of one pixel a pixel, tiles change nothing, however much larger the picture is than x."""

    class Pointwise:
        dtype, multiple = torch.float32, 4
        config = SimpleNamespace(lq_widths=[[8, 8], [8, 8]])

        def __call__(self, x, timestep, lq):
            sizes.append(x.shape[-2:])
            return x * timestep + torch.nn.functional.avg_pool2d(lq[:, :3], 4)

    x, lq, sizes = torch.rand(2, 3, 24, 40), torch.rand(2, 4, 96, 160), []
    whole, tiled = (
        stages.Net(Pointwise(), tiny.scheduler, lq, tile, tiny._bar)(x, x, torch.tensor(0.5, dtype=torch.float64))
        for tile in (None, 16)
    )
    assert worst(whole, tiled) < 1e-6
    assert sizes == [(24, 40)] + 6 * [(16, 16)]


def test_tiles(tiny):
    picture = torch.rand(1, 3, 20, 50, generator=torch.manual_seed(1))
    how = {"num_inference_steps": 2, "output_type": "pt"}
    whole, tiled = (tiny(picture, generator=torch.manual_seed(0), tile=tile, **how).images for tile in (None, 64))
    assert whole.shape == tiled.shape == (1, 3, 80, 200)
    assert worst(whole, tiled) > 1e-3


def test_codes_are_looked_for_in_pieces(pipe, monkeypatch):
    z, codebook = torch.randn(2, 3, 9, 7), pipe.vqvae.quantize.embedding.weight.detach()
    whole = stages.quantised(z, codebook)
    distances = (z[:, None] - codebook[None, :, :, None, None]).square().sum(2)
    assert torch.equal(whole, codebook[distances.argmin(1)].movedim(-1, 1))
    monkeypatch.setattr(stages, "_DISTANCES", 100)
    assert torch.equal(stages.quantised(z, codebook), whole)


def test_half_precision(tiny):
    picture = torch.rand(1, 3, 16, 16, generator=torch.manual_seed(1))
    half = copy.deepcopy(tiny)
    for module in (half.unet, half.vqvae):
        torch.nn.Module.to(module, torch.bfloat16)
    made = [p(picture, generator=torch.manual_seed(0), output_type="latent").images for p in (tiny, half)]
    assert made[0].dtype == made[1].dtype == torch.float32
    assert 0 < (made[0] - made[1]).square().mean().sqrt() < 0.03 * made[0].std()
    assert half.decode(made[0]).dtype == torch.float32


def test_a_callback_sees_each_step_and_may_end_the_solve(tiny):
    seen = []

    def each(pipe, step, timestep, tensors):
        seen.append((step, timestep, tensors["latents"].shape))
        pipe._interrupt = step == 1

    tiny(torch.rand(1, 3, 8, 8), callback_on_step_end=each, generator=torch.manual_seed(0))
    assert seen == [(0, 3.0, (1, 3, 8, 8)), (1, 2.0, (1, 3, 8, 8))]


def test_training_by_hand(tiny):
    """What docs/resshift.md says, on one batch."""
    pipe, process, T = copy.deepcopy(tiny), tiny.scheduler.process, len(tiny.scheduler)
    hr, random = torch.rand(4, 3, 32, 32, generator=torch.manual_seed(0)), torch.manual_seed(1)
    optimizer, losses = torch.optim.Adam(pipe.unet.parameters(), 1e-3), []
    z0, made = pipe.encode(hr), pipe.prepare(torch.nn.functional.avg_pool2d(hr, 4))
    for _ in range(30):
        t = (torch.randint(T, (len(z0),), generator=random) + 1).double() / T
        z = torch.randn(z0.shape, generator=random)
        x = process.sample(z0, made.x_hat0, t, z)
        scaled = x * presets.resshift_input_scale(process.over_batch(t, x)).to(x)
        out = pipe.unet(scaled, t * T - 1, made.lq)
        loss = dosde.objective.loss(out, "x0", process, z0, made.x_hat0, t, z, norm="l2", of="x0").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_benchmark_compares_the_samplers(tiny, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "tiny")
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8))
    image.save(tmp_path / "a.png")
    given = [str(tmp_path / "a.png"), "--weights", str(tmp_path / "tiny"), "--side", "64", "--out", str(tmp_path / "out")]
    resshift_benchmark.main(given)
    made = json.loads((tmp_path / "out" / "resshift.json").read_text())
    assert [(row["sampler"], row["calls"]) for row in made["rows"]][:3] == [("published", 4), ("published", 2), ("ode 1", 2)]
    assert len(made["rows"]) == 9
    assert made["residual_scale"] > 0
    assert all(0 < row["psnr"] < 40 for row in made["rows"])


# -- Inpainting ---------------------------------------------------------------------------------------------------------------


def test_inpainting_keeps_what_is_known(inpainting):
    picture, mask = torch.rand(1, 3, 40, 56), torch.zeros(1, 1, 40, 56)
    mask[..., 8:20, 10:30] = 1
    made = inpainting(picture, 1, 2, mask=mask, output_type="pt").images
    assert torch.equal(made[mask.expand_as(made) == 0], picture[mask.expand_as(made) == 0])
    assert worst(made, picture) > 0.05
    for wrong, message in ((None, "white where the image is unknown"), (mask[..., :9, :], "size of the picture, 56 x 40")):
        with pytest.raises(Refused, match=message):
            inpainting(picture, 1, 2, mask=wrong)


def test_a_mask_needs_a_network_for_it(tiny, tmp_path, capsys):
    with pytest.raises(Refused, match="does not inpaint"):
        tiny(torch.rand(1, 3, 8, 8), mask=torch.ones(1, 1, 8, 8))
    tiny.save_pretrained(tmp_path / "tiny")
    PIL.Image.new("L", (8, 8), 255).save(tmp_path / "a.png")
    arguments = ["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--weights", str(tmp_path / "tiny")]
    for mask, message in (("a.png", "this network does not inpaint"), ("none.png", "cannot be read")):
        with pytest.raises(SystemExit):
            main([*arguments, "--mask", str(tmp_path / mask)])
        assert f"--mask: {'a mask' if mask == 'a.png' else tmp_path / mask}" in (said := capsys.readouterr().err)
        assert message in said


# -- The command, and what is saved -------------------------------------------------------------------------------------------


def test_saving_and_loading(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "saved")
    again = ResShiftPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 8, 8)
    a, b = (p(picture, 4, 1, generator=torch.manual_seed(0), output_type="pt").images for p in (tiny, again))
    assert torch.equal(a, b)
    assert again.scheduler == tiny.scheduler


def test_diffusers_finds_the_class_by_the_folder(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "tiny")
    assert isinstance(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "tiny"), ResShiftPipeline)


def test_the_licence_is_said_once(resshift_folder, caplog):
    pipeline.say_licence.cache_clear()
    for _ in range(2):
        ResShiftPipeline.from_pretrained(resshift_folder)
    said = [record.message for record in caplog.records if record.name == "backbones.resshift.pipeline"]
    assert said == ["ResShift's weights are under the S-Lab License 1.0: not for commercial use"]


def test_the_command_chooses_the_backbone_by_the_folder(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "tiny")
    assert backbones.named_by(tmp_path / "tiny") == "resshift"
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8))
    image.save(tmp_path / "a.png")
    arguments = ["upscale", str(tmp_path / "a.png"), "--weights", str(tmp_path / "tiny")]
    assert main([*arguments, "-o", str(tmp_path / "b.png")]) == 0  # in as many steps as the table has
    made = tiny(image, generator=torch.Generator().manual_seed(0), output_type="np").images[0]
    with PIL.Image.open(tmp_path / "b.png") as written:
        assert np.array_equal(np.asarray(written), (made * 255).round().astype(np.uint8))
    for how, steps in (("few_step", 3), ("dos", 50), ("ode", 2), ("resshift", 9)):
        assert main([*arguments, "--steps", str(steps), "--method", how, "-o", str(tmp_path / f"{how}.png")]) == 0


def test_sinsr_runs_one_step_and_no_other(tiny, tmp_path, capsys):
    sinsr = ResShiftPipeline(tiny.unet, tiny.vqvae, DoSDEScheduler(**convert.standard(15)), distilled_steps=1)
    sinsr.save_pretrained(tmp_path / "sinsr")
    assert ResShiftPipeline.from_pretrained(tmp_path / "sinsr").default_steps == 1
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    arguments = ["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--weights", str(tmp_path / "sinsr")]
    assert main(arguments) == 0  # in one step
    with pytest.raises(SystemExit):
        main([*arguments, "--steps", "4", "--overwrite"])
    assert "--steps: 4; 1 is needed: these weights (SinSR's) were distilled to it" in capsys.readouterr().err
    with pytest.raises(Refused, match="steps: 4; 1 is needed"):
        sinsr(torch.rand(1, 3, 8, 8), num_inference_steps=4)


def test_wrong_weights_say_what_they_are(resshift_folder, sd21_folder, tmp_path):
    for weights, message in (
        (resshift_folder.parent / "resshift_realsrx4_s4_v3.pth", "a folder is needed; `dosde convert U-NET AUTOENCODER"),
        (sd21_folder, "is of a DoSSRPipeline"),
        (tmp_path, "has no model_index.json"),
    ):
        with pytest.raises(Refused, match=message):
            backbones.load("resshift", weights=weights)
    assert convert.concerns([resshift_folder])
    assert not convert.concerns([sd21_folder])
