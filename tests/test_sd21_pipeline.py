"""DoSSRPipeline: number for number the released model, at any size, in batches and tiles, in half precision."""

import copy
import pickle
import threading

import golden_sd21
import numpy as np
import PIL.Image
import pytest
import torch
from instances import seeded
from safetensors.torch import save_file

import dosde
from dosde import method
from dosde.check import Refused
from dosde.noise import Brownian

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
import huggingface_hub

from backbones import weights
from backbones.pictures.io import mirrored
from backbones.sd21 import DoSSRPipeline, backbone, convert, malloc, parts, tiles
from backbones.sd21.prompts import PROMPT

LATENT, PIXEL = 3e-5, 1.5e-5  # the floors of float32 are 9e-6 and 4e-6


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd21") / "model.safetensors"
    save_file({name: torch.from_numpy(array) for name, array in golden_sd21.state_dict().items()}, path)
    made = DoSSRPipeline.from_single_file(path)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def recorded():
    return {name: torch.from_numpy(array) for name, array in golden_sd21.load("samples").items()}


def played(recorded, prefix=""):
    """The recorded noise as solve draws it: the start's, then one a step."""
    draws = [recorded[f"{prefix}noise_init"], *recorded[f"{prefix}noise_steps"].split(1)]
    return lambda *_: draws.pop(0)


def worst(a, b):
    return (a - b).abs().max().item()


# -- Parity -----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_modules(pipe):
    m = {name: torch.from_numpy(array) for name, array in golden_sd21.load("modules").items()}
    t = m["t"]
    down, middle = pipe.controlnet(m["z"], t, m["context"], m["hint"], return_dict=False)
    assert max(worst(own, m[f"control.{i}"]) for i, own in enumerate([*down, middle])) < LATENT
    scaled = pipe.controlnet(m["z"], t, m["context"], m["hint"], conditioning_scale=0.5, return_dict=False)
    for control, name in (((down, middle), "eps_control"), (scaled, "eps_control_scale0.5"), ((None, None), "eps_nocontrol")):
        residuals = {"down_block_additional_residuals": control[0], "mid_block_additional_residual": control[1]}
        assert worst(pipe.unet(m["z"], t, m["context"], **residuals, return_dict=False)[0], m[name]) < LATENT
    assert worst(pipe.vae.encode(m["vae_enc_in"]).latent_dist.parameters, m["vae_enc_moments"]) < LATENT
    assert worst(pipe.hint_encoder(m["vae_enc_in"]), m["cond_enc_moments"]) < LATENT
    assert worst(2 * pipe.decode(m["vae_dec_in"]) - 1, m["vae_dec_out"]) < PIXEL
    assert worst(pipe.unet.time_embedding(pipe.unet.time_proj(t)), m["unet_time_embed"]) < PIXEL


@torch.no_grad()
def test_stages(pipe, recorded):
    picture = recorded["lr_float"]
    reference = pipe.preprocess(picture)
    assert worst(pipe.hint(reference), recorded["cond_latent"]) < LATENT
    mean, noise = recorded["posterior_mean"], recorded["noise_posterior"]
    assert worst(pipe.source(reference), 0.18215 * mean) < LATENT
    sample = mean + torch.exp(0.5 * recorded["posterior_logvar"]) * noise
    assert worst(pipe.source(reference, noise), 0.18215 * sample) < LATENT
    assert worst(pipe.source(reference, noise), recorded["o1/s5/x0_hat"]) < LATENT
    assert worst(pipe.embed(recorded["tokens"].long()[:1]), recorded["context"]) < LATENT
    assert worst(pipe.embed(recorded["tokens"].long()[1:]), recorded["context_neg"]) < LATENT


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_latents(pipe, recorded, order, steps):
    how = {"num_inference_steps": steps, "order": order, "source": recorded["noise_posterior"], "noise": played(recorded)}
    latents = pipe(recorded["lr_float"], output_type="latent", **how).images
    assert worst(latents, recorded[f"o{order}/s{steps}/final_latent"]) < LATENT


@torch.no_grad()
@pytest.mark.parametrize("case", ["o1/s1", "o2/s3", "o3/s5"])
@pytest.mark.parametrize("fix", ["none", "wavelet", "adain"])
def test_pictures(pipe, recorded, case, fix):
    order, steps = int(case[1]), int(case[4])
    how = {"num_inference_steps": steps, "order": order, "source": recorded["noise_posterior"], "noise": played(recorded)}
    picture = pipe(recorded["lr_float"], output_type="pt", color_fix=fix, **how).images
    expected = recorded[f"{case}/decoded_pixels" if fix == "none" else f"{case}/pixels_{fix}"]
    assert worst(picture, expected.clamp(0, 1)) < PIXEL


def test_guidance(pipe, recorded):
    how = {"num_inference_steps": 3, "order": 2, "source": recorded["noise_posterior"], "guidance_scale": 3.0}
    latents = pipe(recorded["lr_float"], output_type="latent", noise=played(recorded), **how).images
    assert worst(latents, recorded["guided/final_latent"]) < LATENT
    picture = pipe(recorded["lr_float"], output_type="pt", color_fix="none", noise=played(recorded), **how).images
    assert worst(picture, recorded["guided/decoded_pixels"].clamp(0, 1)) < PIXEL


@pytest.mark.parametrize("fix", ["none", "wavelet", "adain"])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_files_of_the_released_command_line(pipe, recorded, fix, steps):
    image = PIL.Image.fromarray(recorded["lr_uint8"].numpy())
    how = {"source": recorded["cli/noise_posterior"], "noise": played(recorded, "cli/"), "color_fix": fix}
    made = pipe(image, num_inference_steps=steps, output_type="pt", **how).images[0].permute(1, 2, 0)
    made = (made * 255).numpy().astype(int)  # the release cuts off; PIL output is rounded
    difference = np.abs(made - recorded[f"cli/{fix}_s{steps}/png"].numpy().astype(int))
    assert difference.max() <= 1  # cut off at another multiple of 1/255
    assert (difference > 0).mean() < 5e-4


def test_another_shape_of_model(tmp_path):
    """Three levels in the U-Net, two in the VAE, latents of three channels, one block a level, a preprocessor of factor 2."""
    net = {
        "in_channels": 3,
        "block_out_channels": [32, 64, 96],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "transformer_layers_per_block": [1, 2, 1],
        "attention_head_dim": [4, 8, 12],
        "cross_attention_dim": 24,
        "use_linear_projection": False,
    }
    up = {"out_channels": 3, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]}
    encoder = {
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "latent_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
    }
    text = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "vocab_size": 49408}
    configs = {
        "unet": net | up,
        "controlnet": net | {"conditioning_channels": 3},
        "vae": encoder | {"up_block_types": ["UpDecoderBlock2D"] * 2},
        "hint_encoder": encoder,
        "text_encoder": text | {"max_position_embeddings": 12, "hidden_act": "gelu", "pad_token_id": 0},
        "preprocessor": {"num_feat": 8, "num_block": 1, "num_grow_ch": 4, "scale": 2},
    }
    generator = seeded()
    tensors = {
        component: {
            name: torch.randn(t.shape, generator=generator) / max(1, t[0].numel()) ** 0.5
            for name, t in parts.empty(component, config).state_dict().items()
        }
        for component, config in configs.items()
    }
    tables = {name: torch.from_numpy(table) for name, table in golden_sd21.load("schedule_buffers").items()}
    released = parts.to_released(tensors, tables)
    last = {n.replace("blocks.2.", "blocks.3."): t + 1 for n, t in released.items() if "resblocks.2." in n}  # it is not used
    save_file(released | last, tmp_path / "model.safetensors")
    pipe = DoSSRPipeline.from_single_file(tmp_path / "model.safetensors")
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.factor, pipe.multiple, pipe.preprocessor.config.scale) == (2, 8, 2)
    for component, config in configs.items():
        made = getattr(pipe, component).config
        for name, value in config.items():
            own = getattr(made, name)
            assert (list(own) if isinstance(own, list | tuple) else own) == value, (component, name)
    for tile in (None, 16, 24):
        picture = torch.rand(3, 9, 14, generator=generator)
        made = pipe(picture, 3, num_inference_steps=2, tile=tile, output_type="pt", guidance_scale=2.0).images
        assert made.shape == (1, 3, 27, 42)


# -- Sizes, modes, scales -----------------------------------------------------------------------------------------------------


def drawn(width, height, mode):
    """A picture of a mode, lighter to the right, with a dark square left of the middle and below it."""
    y, x = np.mgrid[:height, :width]
    grey = 120 + 100 * x / width
    grey[(abs(x - width * 0.3) < width * 0.1) & (abs(y - height * 0.7) < height * 0.1)] = 20
    rgb = np.stack([grey, 0.8 * grey + 20, 0.6 * grey + 40], -1).astype(np.uint8)
    image = PIL.Image.fromarray(rgb)
    if mode == "I;16":
        return PIL.Image.fromarray((grey * 257).astype(np.uint16))
    if mode == "RGBA":
        image.putalpha(PIL.Image.fromarray((x * 255 // max(1, width)).astype(np.uint8)))
    return image.convert(mode) if mode not in ("EXIF", "RGBA") else image


@pytest.mark.parametrize(
    ("size", "mode", "scale"),
    [
        ((1, 1), "RGB", 4),
        ((17, 17), "L", 1.5),
        ((24, 16), "RGBA", 3),
        ((31, 100), "P", 1),
        ((17, 17), "CMYK", 2),
        ((24, 16), "I;16", 6),
        ((17, 31), "LA", 4),
        ((16, 24), "EXIF", 2),
        ((9, 5), "1", 4),
        ((31, 20), "RGB", 0.5),
        ((130, 50), "RGB", 1),
    ],
)
def test_sizes_modes_and_scales(pipe, size, mode, scale):
    image = drawn(*size, mode)
    if mode == "EXIF":  # turned by a quarter
        image.getexif()[0x0112] = 6
        size = size[::-1]
    made = pipe(image, scale, num_inference_steps=1, generator=seeded()).images[0]
    assert made.size == tuple(max(1, round(side * scale)) for side in size)
    assert made.mode == {"L": "L", "I;16": "L", "1": "L", "LA": "LA", "RGBA": "RGBA"}.get(mode, "RGB")


@pytest.mark.parametrize("scale", [1, 2])
def test_hidden_colours_do_not_bleed(pipe, scale):
    """Two pictures that look alike give results that look alike, which are as opaque as they were."""
    made = []
    for hidden in (0, 255):
        array = np.array(drawn(24, 16, "RGB").convert("RGBA"))
        array[:8, :12] = hidden, 255 - hidden, hidden, 0
        made.append(np.array(pipe(PIL.Image.fromarray(array), scale, num_inference_steps=1, generator=seeded()).images[0]))
    assert np.array_equal(made[0][..., 3], made[1][..., 3])
    assert made[0][-4:, -4:, 3].min() == 255
    assert np.array_equal(made[0] * (made[0][..., 3:] > 0), made[1] * (made[1][..., 3:] > 0))


def test_the_backbone_refuses_other_ranges(pipe):
    model = backbone.DoSSR(pipe, pipe.encode_prompt(PROMPT), None, 1.0, "wavelet", "mode", None, None)
    for picture in (
        torch.rand(1, 3, 8, 8) * 255,
        torch.rand(1, 3, 8, 8).int(),
        torch.rand(1, 3, 8, 8) / 0,
        torch.rand(3, 8, 8),
    ):
        with pytest.raises(ValueError, match="picture: "):
            model.encode(picture, 2.0)


class Block(torch.nn.Module):
    """A VAE without weights: means of 8 x 8 pixels, in colours, and back."""

    device = torch.device("cpu")

    def __init__(self, pipe):
        super().__init__()
        self.config, self.dtype, self.factor = pipe.vae.config, torch.float32, pipe.factor

    def moments(self, picture):
        mean = torch.nn.functional.avg_pool2d(picture, self.factor)
        return torch.cat([mean, mean[:, :1], 0 * mean, 0 * mean[:, :1]], 1)

    def encode(self, picture):
        class Posterior:
            parameters = self.moments(picture)

        class Output:
            latent_dist = Posterior()

        return Output()

    forward = moments

    def decode(self, z, return_dict):
        return (torch.nn.functional.interpolate(z[:, :3], scale_factor=self.factor, mode="bilinear", align_corners=False),)


class Same(torch.nn.Module):
    """A U-Net (and ControlNet) that sees x0 = x_hat0: vp_eps = (x - alpha x_hat0)/sigma."""

    device = torch.device("cpu")

    def __init__(self, pipe, control):
        super().__init__()
        self.config, self.dtype, self.pipe, self.control = pipe.unet.config, torch.float32, pipe, control
        self.hint = None

    def forward(self, x, timestep, encoder_hidden_states, controlnet_cond=None, **_):
        if self.control:
            self.hint.append(controlnet_cond)
            return [], None
        m = self.pipe.scheduler.process((float(timestep) + 1) / 1000)
        return ((x - float(m.alpha) * self.hint.pop()) / float(m.sigma),)


@pytest.fixture
def blocks(pipe):
    """The pipeline with networks that change nothing, to see where pixels go."""
    unet, control = Same(pipe, False), Same(pipe, True)
    unet.hint = control.hint = []
    made = DoSSRPipeline(Block(pipe), Block(pipe), unet, control, pipe.scheduler, prompts=pipe.prompts)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("size", [(17, 17), (24, 16), (31, 100), (200, 51)])
@pytest.mark.parametrize("scale", [1, 1.5, 2, 3, 4, 6])
@pytest.mark.parametrize("tile", [None, 128])
def test_nothing_is_cropped_stretched_or_moved(blocks, size, scale, tile):
    """The centre of a drawn square lies where it was, to half a pixel of the output; the colour fix restores the detail."""
    image = drawn(*size, "RGB")
    made = blocks(image, scale, tile=tile, output_type="pt", grid=dosde.grid.uniform).images[0]  # to t = 0: no noise is left
    given = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert made.shape[1:] == (round(size[1] * scale), round(size[0] * scale))
    larger = torch.nn.functional.interpolate(given[None], made.shape[1:], mode="bicubic", antialias=True, align_corners=False)[
        0
    ].clamp(0, 1)
    for axis in (1, 2):
        places = torch.arange(made.shape[axis]) + 0.5
        weights = [(1 - p.mean(0)).sum(2 - axis) for p in (made, larger)]
        centres = [float((w * places).sum() / w.sum()) for w in weights]
        assert abs(centres[0] - centres[1]) < 0.5
    assert (made - larger).abs().mean() < 0.03


def test_inputs(pipe):
    """An array, a tensor and an image of the same picture give the same; lists of several sizes come back as lists."""
    array = np.array(drawn(16, 12, "RGB"))
    how = {"num_inference_steps": 1, "output_type": "np"}
    expected = pipe(PIL.Image.fromarray(array), generator=seeded(), **how).images
    assert expected.shape == (1, 48, 64, 3)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for given in (array, array / np.float32(255), tensor, tensor[None] / 255, [tensor], array.astype(np.uint16) * 257):
        assert np.array_equal(pipe(given, generator=seeded(), **how).images, expected)
    both = pipe([array, array[:8]], generator=[seeded(), seeded(1)], **how).images
    assert [image.shape for image in both] == [(48, 64, 3), (32, 64, 3)]
    assert np.array_equal(both[0], expected[0])
    assert np.array_equal(both[1], pipe(array[:8], generator=seeded(1), **how).images[0])
    assert pipe(array, generator=seeded(), return_dict=False, **how)[0].shape == (1, 48, 64, 3)


def test_bytes_of_either_order_and_premultiplied_grey(pipe):
    array = np.array(drawn(8, 8, "RGB"))
    how = {"num_inference_steps": 1, "output_type": "np"}
    expected = pipe(array, generator=seeded(), **how).images
    for kind in (">u2", "<u2"):
        assert np.array_equal(pipe((array.astype(np.uint16) * 257).astype(kind), generator=seeded(), **how).images, expected)
    made = pipe(drawn(8, 8, "LA").convert("La"), num_inference_steps=1).images[0]
    assert made.mode == "LA"


def test_mirrored():
    picture = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert mirrored(picture, 4)[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [0, 1, 2, 2]]
    assert mirrored(picture[..., :1], 8)[0, 0, 0].tolist() == [0] * 8
    assert mirrored(picture, 1) is picture


# -- Batches, generators, seeds ---------------------------------------------------------------------------------------------


def test_a_batch_equals_its_items_and_generators_equal_single_runs(pipe):
    pictures = torch.rand(3, 3, 16, 16, generator=seeded(7))
    how = {"output_type": "pt", "num_inference_steps": 3, "source": "sample"}
    together = pipe(pictures, generator=[seeded(i) for i in range(3)], **how).images
    for i in range(3):
        assert worst(together[i], pipe(pictures[i], generator=seeded(i), **how).images[0]) < PIXEL
    guided = pipe(pictures, generator=[seeded(i) for i in range(3)], guidance_scale=2.0, **how).images
    assert worst(guided[1], pipe(pictures[1], generator=seeded(1), guidance_scale=2.0, **how).images[0]) < 4 * PIXEL
    again = pipe(pictures, generator=[seeded(i) for i in range(3)], prompt=[""] * 3, **how).images
    assert worst(again[2], pipe(pictures[2], generator=seeded(2), prompt="", **how).images[0]) < PIXEL
    assert worst(again[2], together[2]) > PIXEL


def test_prompts_and_noise_are_one_a_picture(pipe):
    """Also for pictures of several sizes, and as embeddings of any dtype; numbers may be numpy's."""
    pictures = [torch.rand(3, 16, 16, generator=seeded(7)), torch.rand(3, 8, 16, generator=seeded(8))]
    prompts = ["", "clean, high-resolution, 8k"]
    embedded = torch.cat([pipe.encode_prompt(prompt) for prompt in prompts])
    how = {"output_type": "pt", "num_inference_steps": np.int64(2), "guidance_scale": np.float32(2), "scale": np.float64(2)}
    expected = [
        pipe(picture, prompt=prompt, negative_prompt=negative, generator=seeded(i), **how).images[0]
        for i, (picture, prompt, negative) in enumerate(zip(pictures, prompts, prompts[::-1], strict=True))
    ]
    for given in (
        {"prompt": prompts, "negative_prompt": prompts[::-1]},
        {"prompt": None, "prompt_embeds": embedded.double(), "negative_prompt_embeds": embedded.flip(0)},
    ):
        for noise in ("generator", "noise"):
            made = pipe(pictures, **given, **{noise: [seeded(0), seeded(1)]}, **how).images
            assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    empty = pipe(pictures[0], negative_prompt=None, generator=seeded(), **how).images
    assert torch.equal(empty, pipe(pictures[0], negative_prompt="", generator=seeded(), **how).images)


def test_the_same_seed_gives_the_same_bits(pipe):
    picture = torch.rand(3, 20, 12, generator=seeded(7))
    first, second, other = (pipe(picture, generator=seeded(i), output_type="pt").images for i in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_options_of_solve(pipe, recorded):
    """method, grid and noise are passed on: the same as a solve by hand with the stages."""
    picture = recorded["lr_float"]
    how = {"method": method.ode, "grid": dosde.grid.uniform, "noise": Brownian(3), "num_inference_steps": 4, "order": 2}
    got = pipe(picture, output_type="latent", **how).images
    with torch.no_grad():
        made = pipe.prepare(picture)
        model = pipe.denoiser(made.hint, pipe.encode_prompt("clean, high-resolution, 8k"))
    options = {"method": method.ode, "grid": dosde.grid.uniform, "noise": Brownian(3)}
    assert torch.equal(got, dosde.solve(model, made.x_hat0, 4, 2, **options))


def test_the_scheduler_drives_the_same_loop(pipe, recorded):
    """A loop over the scheduler, as diffusers' pipelines have it, gives the bits of the pipeline."""
    picture, scheduler = recorded["lr_float"], pipe.scheduler
    expected = pipe(picture, output_type="latent", generator=seeded(), num_inference_steps=4).images
    generator = seeded()
    with torch.no_grad():
        made, context = pipe.prepare(picture), pipe.encode_prompt("clean, high-resolution, 8k")
        scheduler.set_timesteps(4, x_hat0=made.x_hat0)
        x = scheduler.start(torch.randn(made.x_hat0.shape, generator=generator))
        for t in scheduler.timesteps:
            down, middle = pipe.controlnet(x, t, context, made.hint, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            out = pipe.unet(x, t, context, **residuals, return_dict=False)[0]
            x = scheduler.step(out, t, x, generator=generator).prev_sample
    assert torch.equal(x, expected)


def test_callback_sees_the_state_after_each_step(pipe):
    picture, seen = torch.rand(3, 16, 16), []

    def watch(owner, step, timestep, values):
        assert owner is pipe
        seen.append((step, timestep, values["latents"].clone()))
        return values

    how = {"output_type": "latent", "num_inference_steps": 3}
    final = pipe(picture, callback_on_step_end=watch, generator=seeded(), **how).images
    states, estimates = [], []

    def record(step, t, x, x_theta):
        states.append(x)
        estimates.append(x_theta.clone())

    with torch.no_grad():
        made = pipe.prepare(picture[None])
        model = pipe.denoiser(made.hint, pipe.encode_prompt("clean, high-resolution, 8k"))
        states.append(dosde.solve(model, made.x_hat0, 3, 3, grid=pipe.scheduler.times(3), noise=seeded(), callback=record))
    assert [(step, timestep) for step, timestep, _ in seen] == [(0, 499), (1, 333), (2, 166)]
    assert all(torch.equal(state, after) for state, (*_, after) in zip(states[1:], seen, strict=True))
    assert torch.equal(states[-1], final)

    def stop(owner, step, timestep, values):
        owner._interrupt = step == 1
        return {}

    stopped = pipe(picture, callback_on_step_end=stop, generator=seeded(), **how).images
    assert torch.equal(stopped, estimates[2])


@pytest.mark.parametrize("how", ["returned", "in place", "in place, and returned"])
def test_a_callback_may_change_the_latents(pipe, how):
    """As if the solve had gone on from there: the steps, one by one, of the same plan with the same noise."""
    picture, steps = torch.rand(3, 16, 16), 4
    options = {"method": dosde.method.ode, "order": 2, "grid": dosde.grid.uniform, "output_type": "latent"}

    def changing(owner, step, timestep, values):
        if how == "returned":
            return {"latents": values["latents"] * 0.9 + 0.05} if step != 1 else {}
        if step != 1:
            values["latents"].mul_(0.9).add_(0.05)
        return values if "returned" in how else None

    call = {"num_inference_steps": steps, "callback_on_step_end": changing} | options
    made = pipe(picture, generator=seeded(), **call).images
    with torch.inference_mode():  # whose tensors count no writes
        assert torch.equal(pipe(picture, generator=seeded(), **call).images, made)
    with torch.no_grad():
        made_of = pipe.prepare(picture[None])
        model = pipe.denoiser(made_of.hint, pipe.encode_prompt("clean, high-resolution, 8k"))
        plan = dosde.plan(model.process, steps, 2, method=dosde.method.ode, grid=dosde.grid.uniform)
        m, past = model.process(plan[0].t), []
        x = float(m.alpha) * made_of.x_hat0 + float(m.sigma) * torch.randn(1, 4, 8, 8, generator=seeded())
        for i, step in enumerate(plan):
            past = [model(x, made_of.x_hat0, torch.tensor(step.t, dtype=torch.float64)), *past]
            x = step.keep * x + step.hat * made_of.x_hat0 + sum(w * p for w, p in zip(step.new, past, strict=False))
            x = x * 0.9 + 0.05 if i != 1 else x
    assert worst(made, x) < 1e-5 * x.abs().max()


def test_the_official_callbacks_of_guidance(pipe):
    """SDCFGCutoffCallback: guided up to a step, then with the prompt alone, each picture with its own."""
    from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback

    pictures, read = torch.rand(2, 3, 16, 16), []
    prompts = ["", "clean, high-resolution, 8k"]
    how = {"num_inference_steps": 4, "output_type": "latent", "prompt": prompts, "guidance_scale": 5.0}

    def watched(owner, step, timestep, values):
        read.append((owner.num_timesteps, owner.guidance_scale, owner.do_classifier_free_guidance, owner.interrupt))
        read.append(len(values["prompt_embeds"]))
        return values

    watched.tensor_inputs = ["prompt_embeds"]
    callback = MultiPipelineCallbacks([watched, SDCFGCutoffCallback(cutoff_step_ratio=0.5)])
    made = pipe(pictures, callback_on_step_end=callback, generator=seeded(), **how).images
    assert read == [*((4, 5.0, True, False), 4) * 3, (4, 0.0, False, False), 2]
    with torch.no_grad():
        ready = pipe.prepare(pictures)
        context = torch.cat([pipe.encode_prompt(prompt) for prompt in prompts])
        guided = pipe.denoiser(ready.hint, context, pipe.encode_prompt(""), 5.0)
        plain = pipe.denoiser(ready.hint, context)
        times, calls = pipe.scheduler.times(4), []

        def model(x, x_hat0, t):
            calls.append(t)
            return (guided if len(calls) < 4 else plain)(x, x_hat0, t)

        expected = dosde.solve(model, ready.x_hat0, 4, 3, process=guided.process, grid=times, noise=seeded())
    assert torch.equal(made, expected)
    again = pipe(pictures, generator=seeded(), **how).images  # nothing of it stays
    assert torch.equal(again, pipe(pictures, generator=seeded(), callback_on_step_end=lambda *_: None, **how).images)
    assert not torch.equal(again, made)

    def weaker(owner, step, timestep, values):
        owner._guidance_scale = 2.0
        return {"negative_prompt_embeds": values["negative_prompt_embeds"] + 1}

    inputs = ["negative_prompt_embeds"]
    weak, calls = pipe.denoiser(ready.hint, context, pipe.encode_prompt("") + 1, 2.0), []

    def changed(x, x_hat0, t):
        calls.append(t)
        return (weak if len(calls) > 1 else guided)(x, x_hat0, t)

    with torch.no_grad():  # the second change adds one more
        two = dosde.solve(changed, ready.x_hat0, 2, 2, process=guided.process, grid=pipe.scheduler.times(2), noise=seeded())
        how |= {"num_inference_steps": 2}
        assert torch.equal(two, pipe(pictures, callback_on_step_end=weaker, generator=seeded(),
                                     callback_on_step_end_tensor_inputs=inputs, **how).images)  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"latents": torch.zeros(1)}, r"returned a float32 tensor of shape \(1,\) on cpu as latents; .*\(1, 4, 8, 8\)"),
        ({"latents": 3}, "returned a int as latents"),
        ({"prompt_embeds": torch.zeros(1, 77, 3)}, r"returned .* as prompt_embeds; a floating tensor of shape \(1, 77, 32\)"),
        (torch.zeros(1), "returned a float32 tensor .*; a dict with some of latents, prompt_embeds"),
        ("guidance", r"guidance_scale 3.0; 1 is needed in a solve that began without guidance"),
        ({"latents": torch.full((1, 4, 8, 8), float("nan"))}, "model: returned NaN or infinity at step 1"),
        ("again", "callback_on_step_end: called the pipeline that it is called by"),
    ],
)
def test_what_callbacks_may_not_do(pipe, answer, message):
    def callback(owner, *_):
        if answer == "guidance":
            owner._guidance_scale = 3.0
            return {}
        return owner(torch.rand(3, 16, 16)) if answer == "again" else answer

    with pytest.raises(ValueError, match=message) as caught:
        pipe(torch.rand(3, 16, 16), callback_on_step_end=callback, num_inference_steps=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"callback_on_step_end_tensor_inputs: .*'add_text_embeds'.*; some of latents"):
        pipe(torch.rand(3, 16, 16), callback_on_step_end_tensor_inputs=["add_text_embeds"])


# -- Tiles ------------------------------------------------------------------------------------------------------------------


def test_a_tile_as_large_as_the_picture_changes_no_bit(pipe):
    picture = torch.rand(3, 32, 20, generator=seeded(7))
    how = {"output_type": "pt", "num_inference_steps": 2}
    whole = pipe(picture, generator=seeded(), tile=None, **how).images
    for tile in (128, 512, "auto"):
        assert torch.equal(whole, pipe(picture, generator=seeded(), tile=tile, **how).images)


def test_tiles_share_the_noise_of_the_whole(blocks):
    """Networks that see one latent only: tiled is untiled to rounding, in all stages and through the solve."""
    picture = torch.rand(3, 100, 70, generator=seeded(7))
    whole = blocks(picture, generator=seeded(), tile=None, output_type="latent").images
    tiled = blocks(picture, generator=seeded(), tile=192, output_type="latent").images
    assert worst(whole, tiled) < 1e-5


def test_a_constant_picture_stays_free_of_a_grid(blocks):
    """Energy at all frequencies but 0, those of the tiles among them, over the total."""
    picture = torch.full((3, 100, 70), 0.4)
    made = blocks(picture, tile=128, output_type="pt", color_fix="none", grid=dosde.grid.uniform).images
    spectrum = torch.fft.fft2(made[0].double()).abs() ** 2
    total = spectrum.sum()
    spectrum[:, 0, 0] = 0
    assert spectrum.sum() < 1e-6 * total


def test_files_in_the_cache_of_a_container_count_as_free(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 100000\ninactive_file 700000\n")
    monkeypatch.setattr(tiles, "_CGROUP", tmp_path)
    assert tiles.free(torch.device("cpu")) == 800_000
    (tmp_path / "memory.max").write_text("max\n")
    assert tiles.free(torch.device("cpu")) > 800_000


def test_auto_tiles_follow_the_memory(pipe):
    small, large = (1, 3, 64, 64), (1, 3, 512, 512)
    assert pipe.tiles_for(small, 4, None) == tiles.Tiles()
    assert pipe.tiles_for(large, 4, 300) == tiles.Tiles(256, 256, 256, 256)
    assert pipe.tiles_for(small, 4, max_memory=2**30) == tiles.Tiles()
    plenty = pipe.tiles_for(large, 4, max_memory=2**40)
    assert plenty.solve == 1024  # what the network is good for
    costs = pipe.costs()
    for budget in (4 * 2**30, 2**30, 2**29):
        chosen = pipe.tiles_for(large, 4, max_memory=budget)
        for stage, bytes_a_pixel in costs.items():
            side = getattr(chosen, stage) or 2048
            assert bytes_a_pixel * side**2 < budget
    assert pipe.costs(guided=True)["solve"] == 2 * costs["solve"]
    with pytest.raises(
        ValueError, match=r"max_memory: 0.00098 GiB; .* GiB are needed for 1 x 2048 x 2048 pixels, even in tiles"
    ):
        pipe.tiles_for(large, 4, max_memory=2**20)
    with pytest.raises(ValueError, match=r"0.00098 GiB; 0.* GiB are needed for 50 x 64 x 64 pixels, even in tiles of 64"):
        pipe.tiles_for((50, 3, 16, 16), 4, max_memory=2**20)
    assert tiles.free(torch.device("cpu")) > 0


# -- Half precision -----------------------------------------------------------------------------------------------------------


def test_bfloat16(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    half = DoSSRPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    picture = torch.rand(3, 16, 16, generator=seeded(7))
    made = half(picture, generator=seeded(), output_type="pt").images
    assert made.dtype == torch.float32
    assert (made - pipe(picture, generator=seeded(), output_type="pt").images).square().mean().sqrt() < 0.03


def test_float16_that_overflows_is_run_wider(pipe, tmp_path):
    """Of the VAE; the picture is what bfloat16 gives, and one line says so."""
    pipe.save_pretrained(tmp_path)
    half = DoSSRPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    half.set_progress_bar_config(disable=True)
    torch.nn.Module.to(half.vae, torch.float16)
    with torch.no_grad():
        half.vae.decoder.conv_in.weight.mul_(1e4)  # GroupNorm undoes it, after the overflow
    latent = torch.randn(1, 4, 2, 2, generator=seeded())
    with torch.no_grad(), pytest.warns(UserWarning, match="decode: float16 overflows here; run in bfloat16 from now on"):
        picture = half.decode(latent)
    assert picture.isfinite().all()
    assert half.vae.dtype == torch.bfloat16
    with torch.no_grad():
        half.vae.decoder.conv_in.weight.fill_(float("nan"))
        with pytest.raises(ValueError, match=r"decode: NaN or infinity in its output \(bfloat16\)"):
            half.decode(latent)


# -- Loading, prompts, wrong calls --------------------------------------------------------------------------------------------


def test_save_load_and_components(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = DoSSRPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.text_encoder is None  # until a prompt asks for it
    picture = torch.rand(3, 16, 16, generator=seeded(7))
    how = {"output_type": "pt", "num_inference_steps": 2, "guidance_scale": 2.0}
    assert torch.equal(loaded(picture, generator=seeded(), **how).images, pipe(picture, generator=seeded(), **how).images)
    assert loaded.text_encoder is None
    again = DoSSRPipeline(**loaded.components)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(picture, generator=seeded(), **how).images, pipe(picture, generator=seeded(), **how).images)


def test_from_pipe_keeps_what_is_not_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "first")
    loaded = DoSSRPipeline.from_pipe(DoSSRPipeline.from_pretrained(tmp_path / "first"))
    loaded.save_pretrained(tmp_path / "second")
    names = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("first", "second")]
    assert names[0] == names[1]
    assert {"text_encoder", "released.safetensors"} < set(names[1])


def test_one_pass_for_equal_encoders_however_they_are_held(pipe):
    """Weights made in inference mode, below torch.compile, a VAE of another kind."""
    with torch.inference_mode():
        made = copy.deepcopy(pipe)
        for module in (made.vae, made.hint_encoder):
            for parameter in module.parameters():
                parameter.data = parameter.data.clone()
        assert not made._one_encoder()
        made.hint_encoder.load_state_dict({name: made.vae.state_dict()[name] for name in made.hint_encoder.state_dict()})
        made = copy.copy(made)
        made._compared = None
        assert made._one_encoder()
    made = copy.deepcopy(pipe)
    made.vae = torch.compile(made.vae, backend="eager")
    assert not made._one_encoder()
    made.vae = torch.nn.Identity()
    assert not made._one_encoder()


def test_pipelines_and_their_models_are_copied_and_pickled(pipe):
    picture, context = torch.rand(1, 3, 16, 16), pipe.encode_prompt("")
    how = {"output_type": "pt", "num_inference_steps": 1}
    expected = pipe(picture, generator=seeded(), **how).images
    with torch.no_grad():
        made = pipe.prepare(picture)
        model = pipe.denoiser(made.hint, context, context + 1, 2.0, tile=128)
        estimate = model(made.x_hat0, made.x_hat0, torch.tensor(0.4).double())
    for again in (copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))):
        assert torch.equal(again(pipe)(picture, generator=seeded(), **how).images, expected)
        with torch.no_grad():
            assert torch.equal(again(model)(made.x_hat0, made.x_hat0, torch.tensor(0.4).double()), estimate)


def test_a_pipeline_leaves_malloc_as_it_is(pipe, monkeypatch):
    """It lives in the processes of others; the command alone changes the settings."""
    monkeypatch.setattr(malloc, "_count", lambda more: pytest.fail("malloc is tuned"))
    for tile in (None, 128):
        pipe(torch.rand(3, 40, 40), tile=tile, num_inference_steps=1, output_type="pt")


def test_another_scheduler_is_refused(pipe):
    made = copy.deepcopy(pipe)
    made.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(TypeError, match="scheduler: DDIMScheduler; a DoSDEScheduler is needed"):
        made(torch.rand(3, 8, 8))


def test_what_the_hub_is_told(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path)
    told = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: (told.update(how, name=name), tmp_path)[1])
    DoSSRPipeline.from_pretrained("someone/dossr", revision="v2", token="secret", local_files_only=True)
    assert (told["name"], told["revision"], told["token"], told["local_files_only"]) == ("someone/dossr", "v2", "secret", True)


def test_other_prompts_need_the_text_tower(pipe, tmp_path):
    with pytest.raises(ValueError, match=r"prompt: 'a cat' needs a tokenizer, which this model lacks; one of \['clean, high-"):
        pipe(torch.rand(3, 8, 8), prompt="a cat")
    pipe.save_pretrained(tmp_path)
    loaded = DoSSRPipeline.from_pretrained(tmp_path)

    class Tokenizer:
        """A word is a token."""

        def __call__(self, prompt, padding=None, max_length=None, truncation=False, verbose=True):
            words = [320 + len(word) for word in prompt.split()]
            self.input_ids = [49406, *(words[: max_length - 2] if truncation else words), 49407]
            self.input_ids += [0] * ((max_length or 0) - len(self.input_ids))
            return self

        def decode(self, tokens):
            return " ".join("x" * (token - 320) for token in tokens)

    object.__setattr__(loaded, "tokenizer", Tokenizer())
    with torch.no_grad():
        embedded = loaded.encode_prompt("a cat")  # loads the text tower
        tokens = torch.tensor([[49406, 321, 323, 49407] + [0] * 73])
        assert torch.equal(embedded, pipe.embed(tokens))
        loaded.encode_prompt(" ".join(["a"] * 75))  # no warning, which would be an error
        with pytest.warns(
            UserWarning, match="^prompt: 77 tokens; 75 tokens are read, and these words of it are not: 'xx xxx'$"
        ):
            embedded = loaded.encode_prompt(" ".join(["a"] * 75 + ["bb", "ccc"]))
        assert torch.equal(embedded, pipe.embed(torch.tensor([[49406, *[321] * 75, 49407]])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": "a.png"}, "image: a.png; no such file"),
        ({"image": "https://a.org/b.png"}, r"image: 'https://a.org/b.png'; .*; diffusers.utils.load_image\(url\)"),
        ({"image": __file__}, r"image: .*test_sd21_pipeline.py cannot be read \(.*\); a picture is needed"),
        ({"image": 3}, "image: int; a PIL image, a path, an array, a tensor"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, r"latents: .*; noise=\(u, u_next, like\) -> z is what there is"),
        ({"eta": 0.0}, "eta: 0.0; method=dosde.method.ode is what there is for 0"),
        ({"timesteps": [3]}, r"timesteps: \[3\]; grid=times is what there is"),
        ({"height": 64}, "height: 64; scale=... is what there is"),
        ({"control_image": torch.zeros(1)}, "control_image: .*; image=... is what there is"),
        ({"clip_skip": 2}, "clip_skip: 2; prompt_embeds"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "cross_attention_kwargs: .*; pipe.unet.set_attn_processor"),
        ({"callback": print}, "callback: .*; callback_on_step_end=... is what there is"),
        ({"num_inference_step": 3}, "num_inference_step: 3; there is no such argument, num_inference_steps is the nearest"),
        ({"zzz": None}, "zzz: None; there is no such argument, the arguments are image, scale"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt: 0; a positive integer"),
        ({"num_images_per_prompt": 2, "generator": [torch.Generator()]}, "generator: 1 of them; one, or 2"),
        ({"strength": 0.1}, "strength: 0.1; at least 0.2 is needed for one of 5 steps"),
        ({"strength": 2}, "strength: 2; a number above 0, up to 1"),
        ({"strength": "x"}, "strength: 'x'; a number above 0, up to 1"),
        ({"image": []}, "image: an empty list"),
        ({"image": torch.rand(5, 8, 8)}, r"image: tensor of shape \(5, 8, 8\), float32; 1 to 4 channels"),
        ({"image": torch.rand(3, 0, 8)}, r"image: tensor of shape"),
        ({"image": 255 * torch.rand(3, 8, 8)}, r"image: tensor .* values in \[0, 1\] are needed"),
        ({"image": torch.full((3, 8, 8), float("nan"))}, r"values in \[0, 1\] are needed"),
        ({"image": torch.zeros(3, 8, 8, dtype=torch.int64)}, r"uint8, uint16, or floating"),
        ({"image": np.full((4, 4, 3), 200.0)}, r"image: array .* from 200 to 200; values in \[0, 1\] are needed"),
        ({"image": [np.zeros((4, 4, 3)), np.zeros((4, 4, 3), np.int32)]}, r"uint8, uint16, or floating"),
        ({"image": [[0.5, 0.5], [0.5, 0.5]]}, "image: float; a PIL image, a path, an array"),
        ({"image": np.zeros((4, 4), bool)}, r"uint8, uint16, or floating"),
        ({"image": np.zeros((0, 4, 3))}, r"is needed"),
        ({"image": PIL.Image.new("F", (4, 4))}, "mode F, 32 bits"),
        ({"scale": 0}, "scale: 0; a number above 0"),
        ({"scale": float("nan")}, "scale: nan; a number above 0"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0; a positive integer"),
        ({"num_inference_steps": 1000}, "steps: 1000"),
        ({"order": 0}, "order: 0; a positive integer"),
        ({"order": 4}, "order: 4"),
        ({"color_fix": "lab"}, "color_fix: 'lab'; one of wavelet, adain, none"),
        ({"source": "mean"}, "source: 'mean'; 'mode', 'sample'"),
        ({"source": torch.zeros(1, 4, 3, 3)}, "source: "),
        ({"tile": 64}, "tile: 64; 'auto', None, or a side of at least 128"),
        ({"tile": "big"}, "tile: 'big'"),
        ({"output_type": "jpg"}, "output_type: 'jpg'; one of pil, np, pt, latent"),
        ({"generator": [torch.Generator()] * 2}, "generator: 2 of them; one, or 1"),
        ({"prompt": ["a", "b"]}, "prompt: 2 of them; one, or 1"),
        ({"prompt": 3}, "prompt: 3; a string"),
        ({"callback_on_step_end": 3}, "callback_on_step_end: 3; a function"),
        ({"max_memory": 1000.0}, "max_memory: "),
        ({"guidance_scale": "x"}, "guidance_scale: 'x'; a number"),
        ({"grid": [0.5, 0.6]}, "grid"),
        ({"image": np.zeros((4, 4, 3), object)}, r"image: array of shape \(4, 4, 3\), object; uint8, uint16, or floating"),
        ({"max_memory": "6G"}, "max_memory: '6G'; a number of bytes"),
        ({"max_memory": float("nan")}, "max_memory: nan; a number of bytes"),
        ({"generator": 42}, "generator: 42; a torch.Generator"),
        ({"noise": 3}, "noise: 3; a torch.Generator, a list of them"),
        ({"noise": [torch.Generator()] * 2}, "noise: 2 of them; one, or 1"),
        ({"controlnet_conditioning_scale": [1.0]}, r"controlnet_conditioning_scale: \[1.0\]; a number"),
        ({"source": np.zeros(3)}, "source: ndarray; 'mode', 'sample'"),
        ({"source": torch.full((1, 4, 8, 8), float("nan"))}, "source: float32, or NaN"),
        ({"color_fix": ["wavelet"]}, r"color_fix: \['wavelet'\]; one of"),
        ({"prompt_embeds": torch.zeros(1, 77, 5)}, r"prompt_embeds: shape \(1, 77, 5\); a tensor \(1, tokens, 32\)"),
        ({"prompt_embeds": "a"}, "prompt_embeds: str; a tensor"),
        ({"guidance_scale": 2.0, "negative_prompt": 3}, "negative_prompt: 3; a string"),
        ({"guidance_scale": 2.0, "negative_prompt": "a cat"}, "negative_prompt: 'a cat' needs a tokenizer"),
    ],
)
def test_wrong_calls_are_refused_before_any_work(pipe, arguments, message, monkeypatch):
    monkeypatch.setattr(pipe.preprocessor, "forward", None)  # any work would raise a TypeError of another kind
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        pipe(**({"image": torch.rand(3, 8, 8)} | arguments))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, Refused) or "mode F" in message  # which is said of files, too


# -- Habits of diffusers' users -----------------------------------------------------------------------------------------------


def test_words_that_mean_nothing_are_passed_over(pipe):
    neutral = {"num_images_per_prompt": 1, "strength": 1.0, "guess_mode": False, "control_guidance_end": 1.0, "eta": None,
               "cross_attention_kwargs": None, "guidance_rescale": 0.0, "latents": None, "callback_steps": 1}  # fmt: skip
    picture, how = torch.rand(3, 8, 8), {"num_inference_steps": 1, "output_type": "pt"}
    expected = pipe(picture, generator=seeded(), **how).images
    assert torch.equal(pipe(picture, generator=seeded(), **how, **neutral).images, expected)


def test_several_images_of_each_picture(pipe):
    """Each as if it had been made alone, in the order of the pictures."""
    pictures = [torch.rand(3, 16, 16, generator=seeded(7)), torch.rand(3, 8, 16, generator=seeded(8))]
    embedded = torch.cat([pipe.encode_prompt(""), pipe.encode_prompt("clean, high-resolution, 8k")])
    how = {"output_type": "pt", "num_inference_steps": 1}
    made = pipe(
        pictures, num_images_per_prompt=2, prompt_embeds=embedded, generator=[seeded(i) for i in range(4)], **how
    ).images
    for i, image in enumerate(made):
        alone = pipe(pictures[i // 2], prompt_embeds=embedded[i // 2 :][:1], generator=seeded(i), **how).images[0]
        assert worst(image, alone) < PIXEL
    assert worst(made[0], made[1]) > PIXEL
    words = pipe(
        pictures,
        num_images_per_prompt=2,
        prompt=["", "clean, high-resolution, 8k"],
        generator=[seeded(i) for i in range(4)],
        **how,
    ).images
    assert all(torch.equal(a, b) for a, b in zip(words, made, strict=True))


@pytest.mark.parametrize("grid", [None, dosde.grid.uniform])
def test_strength_is_the_last_part_of_the_steps(pipe, grid):
    picture, steps, seen = torch.rand(3, 16, 16), 5, []
    how = {"output_type": "latent", "num_inference_steps": steps, "grid": grid}
    made = pipe(
        picture, strength=0.65, generator=seeded(), callback_on_step_end=lambda p, *_: seen.append(p.num_timesteps), **how
    )
    times = pipe.scheduler.times(steps) if grid is None else grid(pipe.scheduler.process, steps)
    with torch.no_grad():
        ready = pipe.prepare(picture[None])
        model = pipe.denoiser(ready.hint, pipe.encode_prompt("clean, high-resolution, 8k"))
        expected = dosde.solve(model, ready.x_hat0, 3, 3, grid=times[2:], noise=seeded())
    assert torch.equal(made.images, expected)
    assert seen == [3, 3, 3]


def test_pictures_by_their_paths(pipe, tmp_path):
    array = np.array(drawn(8, 8, "RGB"))
    PIL.Image.fromarray(array).save(tmp_path / "a.png")
    how = {"num_inference_steps": 1, "output_type": "np"}
    expected = pipe(array, generator=seeded(), **how).images
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), [tmp_path / "a.png"]):
        assert np.array_equal(pipe(given, generator=seeded(), **how).images, expected)


def test_two_threads_on_one_pipeline_get_what_they_would_get_alone(pipe):
    pictures, made = torch.rand(2, 3, 16, 16), {}
    how = {"output_type": "pt", "num_inference_steps": 2}
    scales = (1.0, 3.0)
    alone = [pipe(pictures[i], guidance_scale=scales[i], generator=seeded(i), **how).images for i in range(2)]
    seen = []

    def run(i):
        seen_of = lambda p, *_: seen.append(p.guidance_scale == scales[i])  # noqa: E731
        call = {"guidance_scale": scales[i], "generator": seeded(i), "callback_on_step_end": seen_of}
        made[i] = pipe(pictures[i], **call, **how).images

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(made[i], alone[i]) for i in range(2))
    assert seen == [True] * 4


@pytest.mark.parametrize("how", ["converted", "saved, .bin", "saved, sharded, fp16"])
def test_folders_of_every_kind_are_read(pipe, sd21_folder, tmp_path, how, caplog):
    """By DoSSRPipeline without a word, by diffusers' own DiffusionPipeline, and converted back to the same weights."""
    options = {"safe_serialization": "bin" not in how}
    options |= {"variant": "fp16"} if "fp16" in how else {}
    options |= {"max_shard_size": "8MB"} if "sharded" in how else {}  # of the large components
    if how == "converted":
        place = sd21_folder
    else:
        place = tmp_path / "saved"
        DoSSRPipeline.from_pretrained(sd21_folder).save_pretrained(place, **options)
    with caplog.at_level("INFO", logger="diffusers"):
        diffusers.utils.logging.enable_propagation()
        loaded = DoSSRPipeline.from_pretrained(place)
        diffusers.utils.logging.disable_propagation()
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    stock = diffusers.DiffusionPipeline.from_pretrained(place, variant=options.get("variant"))
    picture, call = torch.rand(3, 8, 8), {"num_inference_steps": 1, "output_type": "pt"}
    expected = pipe(picture, generator=seeded(), **call).images
    for each in (loaded, stock):
        assert type(each) is DoSSRPipeline
        each.set_progress_bar_config(disable=True)
        assert torch.equal(each(picture, generator=seeded(), **call).images, expected)
    loaded._load_text()
    assert loaded.text_encoder is not None
    convert.to_checkpoint(place, tmp_path / "back.safetensors")
    released = {name: torch.from_numpy(array) for name, array in golden_sd21.state_dict().items()}
    back = weights.read(tmp_path / "back.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in released.items())
    stock.save_pretrained(tmp_path / "again")  # with what it left in the folder
    assert (tmp_path / "again" / "released.safetensors").is_file()


def test_variants_that_are_not_there(sd21_folder, tmp_path):
    with pytest.raises(ValueError, match=r"variant: 'fp16'; None is needed: .* has no variants"):
        DoSSRPipeline.from_pretrained(sd21_folder, variant="fp16")
    pipe = DoSSRPipeline.from_pretrained(sd21_folder)
    for variant in ("fp16", "ema"):
        pipe.save_pretrained(tmp_path, variant=variant)
    with pytest.raises(ValueError, match=r"variant: \['ema', 'fp16'\]; one of them is needed as variant=..."):
        DoSSRPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="variant: 'bf16'; one of ema, fp16 is needed"):
        DoSSRPipeline.from_pretrained(tmp_path, variant="bf16")
    assert DoSSRPipeline.from_pretrained(tmp_path, variant="ema").unet.dtype == torch.float32


@pytest.mark.parametrize("name", ["vae", "hint_encoder", "unet", "controlnet", "scheduler"])
def test_a_component_that_is_missing_is_named(pipe, name):
    made = DoSSRPipeline(**{**pipe.components, name: None})
    with pytest.raises(TypeError, match=f"^{name}: NoneType; ") as caught:
        made(torch.rand(3, 8, 8))
    assert "\n" not in str(caught.value)
    assert DoSSRPipeline(**{**pipe.components, "preprocessor": None}).preprocessor is None
    if name in ("unet", "vae"):
        other = {"unet": pipe.vae, "vae": pipe.unet}[name]
        with pytest.raises(TypeError, match=rf"^{name}: {type(other).__name__}; an? (AutoencoderKL|UNet2DC\w+) is needed"):
            DoSSRPipeline(**{**pipe.components, name: other})(torch.rand(3, 8, 8))
    if name == "unet":
        with pytest.raises(TypeError, match=r"^unet: NoneType"):
            made.encode_prompt("")
    if name == "controlnet":
        with pytest.raises(TypeError, match=r"^controlnet: ControlNetModel; a LatentControlNet is needed"):
            DoSSRPipeline(**{**pipe.components, "controlnet": diffusers.ControlNetModel.from_unet(pipe.unet)})


def test_dtypes_and_safety_checkers(sd21_folder):
    for name in ("dtype", "torch_dtype"):
        assert DoSSRPipeline.from_pretrained(sd21_folder, **{name: torch.bfloat16}, safety_checker=None).dtype == torch.bfloat16
        path = sd21_folder.parent / "model.safetensors"
        assert DoSSRPipeline.from_single_file(path, **{name: torch.float16}, safety_checker=None).dtype == torch.float16
        with pytest.raises(TypeError, match=r"dtype: 'bfloat16'; a torch.dtype such as torch.float16"):
            DoSSRPipeline.from_pretrained(sd21_folder, **{name: "bfloat16"})
    with pytest.raises(ValueError, match=r"dtype: torch.float16, torch.bfloat16; one of dtype and torch_dtype"):
        DoSSRPipeline.from_pretrained(sd21_folder, dtype=torch.float16, torch_dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"config: 'x'; original_config=... is what there is"):
        DoSSRPipeline.from_single_file(path, config="x")


METHODS = (
    *("load_lora_weights", "fuse_lora", "set_adapters", "load_textual_inversion", "load_ip_adapter", "set_ip_adapter_scale"),
    *("enable_vae_tiling", "enable_vae_slicing", "upcast_vae", "run_safety_checker", "prepare_latents"),
)


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_stock_pipelines_that_are_not_here_say_so(pipe, name):
    assert not hasattr(pipe, name)
    with pytest.raises(AttributeError, match=f"^{name}: DoSSRPipeline has none; ") as caught:
        getattr(pipe, name)("a")
    assert isinstance(caught.value, Refused)
    assert "\n" not in str(caught.value)


def test_methods_of_stock_pipelines_that_are_here(pipe):
    """What changes memory and order of work alone gives the same picture; FreeU another one, until it is off."""
    made, picture = copy.deepcopy(pipe), torch.rand(3, 16, 16)
    how = {"num_inference_steps": 1, "output_type": "pt"}
    expected = pipe(picture, generator=seeded(), **how).images
    made.enable_attention_slicing()
    assert worst(made(picture, generator=seeded(), **how).images, expected) < PIXEL
    made.disable_attention_slicing()
    made.vae.enable_tiling()
    made.vae.enable_slicing()
    assert worst(made(picture, generator=seeded(), **how).images, expected) < PIXEL
    made.fuse_qkv_projections()
    assert worst(made(picture, generator=seeded(), **how).images, expected) < 4 * PIXEL
    made.unfuse_qkv_projections()
    made.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    other = made(picture, generator=seeded(), **how).images
    made.disable_freeu()
    assert worst(made(picture, generator=seeded(), **how).images, expected) < 4 * PIXEL
    assert not torch.equal(other, expected)
    made.to("cpu", torch.float64)
    assert worst(made(picture, generator=seeded(), **how).images, expected) < 1e-3


def test_torch_save_keeps_pipelines_schedulers_and_networks(pipe, tmp_path):
    pipe.scheduler.set_timesteps(3, x_hat0=torch.zeros(1, 4, 2, 2))
    picture, how = torch.rand(3, 8, 8), {"num_inference_steps": 1, "output_type": "pt"}
    torch.save({"pipe": pipe, "scheduler": pipe.scheduler, "unet": pipe.unet}, tmp_path / "all.pt")
    again = torch.load(tmp_path / "all.pt", weights_only=False)
    assert again["scheduler"] == pipe.scheduler
    assert again["scheduler"].plan == pipe.scheduler.plan
    assert torch.equal(
        again["pipe"](picture, generator=seeded(), **how).images, pipe(picture, generator=seeded(), **how).images
    )
    assert all(torch.equal(a, b) for a, b in zip(again["unet"].parameters(), pipe.unet.parameters(), strict=True))
