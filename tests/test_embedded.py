"""The network that the repository trains, its file and its backbone: with small random weights, and what ships."""

import copy
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import realism
import torch
from instances import seeded
from PIL import Image
from safetensors.torch import load_file, save_file

import backbones
import dosde
from backbones import evaluation
from backbones.cli import main
from backbones.embedded import WEIGHTS, Config, Embedded, Network, ProcessConfig, load, save, source
from backbones.pictures import degradation
from backbones.pictures import io as images
from backbones.pictures.resize import bicubic
from backbones.training import config
from backbones.training.data import HELD_OUT, held_out
from backbones.weights import metadata

SMALL = Config(width=8, blocks=2, embedding=16)
DIFFUSION = ProcessConfig("domain_shift", {"t1": None, "schedule": "cosine"})
PROCESSES = [
    ProcessConfig(),
    DIFFUSION,
    ProcessConfig("resshift"),
    ProcessConfig("flow"),
    ProcessConfig("flow", {"kappa": 0.1}),
]
KEY = "dosde.embedded"
BIAS = "members.0.first.parametrizations.bias.original"


def network(config=SMALL):
    """With weights that answer to everything: those that start at 0 do not."""
    made = Network(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return made.eval().requires_grad_(False)


def pictures(batch, height, width):
    return torch.randn(batch, 3, height, width), torch.rand(batch, 3, height, width) * 2 - 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(3)
    save(path, network(), {"pictures": "none", "steps": 0})
    return path


def test_the_default_network_is_within_its_limits(tmp_path):
    made = Network()
    assert 5e4 < sum(p.numel() for p in made.parameters()) < 3e6
    save(tmp_path / "a.safetensors", made, {})
    assert (tmp_path / "a.safetensors").stat().st_size < 8e6


@pytest.mark.parametrize("config", PROCESSES)
@pytest.mark.parametrize("size", [(8, 8), (16, 24), (40, 8)])
def test_shapes_and_times(config, size):
    """Finite from t = 0 over t1 to 1; one time, or one a sample, is the same."""
    made = network(Config(width=8, blocks=2, embedding=16, process=config))
    x, x_hat0 = pictures(4, *size)
    times = torch.tensor([0.0, made.process.t1 / 3, made.process.t1, 1.0], dtype=torch.float64)
    out = made(x, x_hat0, times)
    assert out.shape == x.shape
    assert out.isfinite().all()
    for i, t in enumerate(times):
        assert torch.allclose(out[i : i + 1], made(x[i : i + 1], x_hat0[i : i + 1], t), atol=1e-5)


def test_at_the_ends_it_is_what_is_known_there():
    """t = 0: x is x0. t1: x holds nothing, so the answer does not depend on it."""
    made = network()
    x, x_hat0 = pictures(2, 16, 16)
    assert torch.allclose(made(x, x_hat0, 0.0), x, atol=1e-6)
    at_t1 = made(x, x_hat0, made.process.t1)
    assert torch.equal(at_t1, made(x + 1, x_hat0, made.process.t1))
    assert not torch.allclose(at_t1, x_hat0, atol=1e-3)


def test_untrained_it_is_the_best_linear_estimate():
    """F = 0: of a Gaussian residual of std s the posterior mean, and the stated gain in error."""
    made, process = Network(SMALL), ProcessConfig().process()
    x_hat0 = torch.rand(1, 3, 256, 256) * 2 - 1
    x0 = x_hat0 + SMALL.scale * torch.randn_like(x_hat0)
    for t in (0.05, 0.2, 0.4):
        x = process.sample(x0, x_hat0, t, torch.randn_like(x0))
        with torch.no_grad():
            error = (made(x, x_hat0, t) - x0).square().mean()
        assert float(error) == pytest.approx(1 / (SMALL.scale**-2 + float(process(t).u)), rel=0.02)


def test_what_the_network_sees_and_is_asked_has_unit_variance(monkeypatch):
    """At every time, if the residual has the std that the configuration says: w that of cos theta, the target 1."""
    made = Network(SMALL)
    x_hat0 = torch.rand(1, 3, 128, 128) * 2 - 1
    x0 = x_hat0 + SMALL.scale * torch.randn_like(x_hat0)
    seen = []
    monkeypatch.setattr(made, "_predicted", lambda w, x_hat0, theta: seen.append(w) or torch.ones_like(w))
    for t in (0.02, 0.1, 0.3, 0.45, 0.5):
        m = made.process(t)
        x = made.process.sample(x0, x_hat0, t, torch.randn_like(x0))
        n = float(torch.hypot(SMALL.scale * m.a, m.sigma))
        cos, sin = SMALL.scale * float(m.a) / n, float(m.sigma) / n
        made(x, x_hat0, t)
        w = seen[-1]
        assert float(w.std()) == pytest.approx(cos, rel=0.02, abs=1e-6)
        asked = (x0 - x_hat0 - SMALL.scale * w) / (SMALL.scale * sin)
        assert float(asked.std()) == pytest.approx(1, rel=0.02)


def test_the_correction_scales_what_is_seen():
    """F = F0 + F1 w, element by element: with F0 = 0 and F1 = c, x0 = x_hat0 + s w (1 + c sin theta)."""
    made = Network(SMALL)
    c = torch.tensor([0.5, -1.0, 2.0])
    with torch.no_grad():
        numbers = made.members[0].last.parametrizations.bias.original
        numbers.copy_(torch.cat([torch.zeros(3), c]).repeat_interleave(len(numbers) // 6))
    x, x_hat0 = pictures(1, 16, 16)
    for t in (0.1, 0.4):
        m = made.process(t)
        n = torch.hypot(SMALL.scale * m.a, m.sigma)
        w = SMALL.scale * m.a / n**2 * (x - m.alpha * x_hat0)
        expected = x_hat0 + SMALL.scale * w * (1 + c[:, None, None] * m.sigma / n)
        assert torch.allclose(made(x, x_hat0, t), expected.float(), atol=1e-5)


def test_of_several_members_each_learns_from_its_samples_and_the_mean_is_what_runs():
    made = network(Config(width=8, blocks=1, embedding=16, members=3))
    x, x_hat0 = pictures(6, 8, 8)
    t = torch.linspace(0.05, 0.45, 6, dtype=torch.float64)
    alone = []
    for member in made.members:
        one = Network(Config(width=8, blocks=1, embedding=16)).eval()
        one.members[0].load_state_dict(member.state_dict())
        alone.append(one(x, x_hat0, t))
    alone = torch.stack(alone)
    assert torch.allclose(made(x, x_hat0, t), alone.mean(0), atol=1e-5)
    assert torch.allclose(made(x[:1], x_hat0[:1], t[:1]), alone.mean(0)[:1], atol=1e-5)

    made.train().requires_grad_()
    out = made(x, x_hat0, t)
    for i in range(6):
        assert torch.allclose(out[i], alone[i % 3, i], atol=1e-5)
    assert torch.equal(made(x, x_hat0, 0.2), made(x, x_hat0, torch.full((6,), 0.2, dtype=torch.float64)))
    out[1].sum().backward()
    learnt = [any(p.grad is not None and p.grad.any() for p in member.parameters()) for member in made.members]
    assert learnt == [False, True, False]
    with pytest.raises(ValueError, match=r"x: a batch of 5; a multiple of the 3 members is needed in training mode"):
        made(x[:5], x_hat0[:5], t[:5])


def test_an_output_sees_the_radius_and_no_further():
    config = Config(width=8, blocks=3, embedding=16)
    made, size = network(config).double(), 256
    x, x_hat0 = (p.double() for p in pictures(1, size, size))
    x2, at = x.clone(), 123
    x2[..., at, at] += 1
    changed = (made(x, x_hat0, 0.2) != made(x2, x_hat0, 0.2)).any(1)[0].nonzero()
    reach = int((changed - at).abs().max())
    assert config.radius - config.fold < reach <= config.radius


@pytest.mark.parametrize("size", [(96, 304), (304, 272)])
def test_tiles_give_what_the_whole_gives(size):
    config = Config(width=8, blocks=2, embedding=16)
    made = network(config)
    whole, tiled = Embedded(made, tile=None), Embedded(made, tile=216)
    assert tiled.overlap >= 4 * config.radius
    x, x_hat0 = pictures(1, *size)
    for t in (0.1, 0.4):
        t = torch.tensor(t, dtype=torch.float64)
        assert torch.allclose(whole.denoiser(None)(x, x_hat0, t), tiled.denoiser(None)(x, x_hat0, t), atol=2e-6)
    picture = torch.rand(1, 3, size[0] // 4, size[1] // 4)
    results = [backbones.upscale(b, picture, 4, 3, noise=seeded(0)) for b in (whole, tiled)]
    assert torch.allclose(*results, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (17, 31)])
@pytest.mark.parametrize("scale", [1, 1.5, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_scale(weights, size, scale, channels):
    picture = torch.rand(2, channels, *size)
    result = backbones.upscale(backbones.load("embedded", weights=weights), picture, scale, 3)
    assert result.shape == (2, channels, max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    assert result.isfinite().all()
    assert 0 <= float(result.min()) <= float(result.max()) <= 1


def test_grey_is_the_luma_of_three_equal_channels(weights):
    backbone = load(weights)
    grey = torch.rand(1, 1, 6, 6)
    results = [backbones.upscale(backbone, p, 4, 2, noise=seeded(0)) for p in (grey, grey.repeat(1, 3, 1, 1))]
    luma = torch.einsum("bchw,c->bhw", results[1], torch.tensor([0.299, 0.587, 0.114]))
    assert torch.allclose(results[0][:, 0], luma, atol=1e-5)


def test_the_source_is_pillows_bicubic():
    small = (80 + 90 * torch.rand(1, 3, 9, 7)).round()  # no overshoot, which Pillow cuts off between rows and columns
    image = Image.fromarray(small[0].permute(1, 2, 0).byte().numpy()).resize((28, 36), Image.Resampling.BICUBIC)
    theirs = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    assert float((source(small / 255, (36, 28)) - (2 * theirs - 1)).abs().max()) < 2.5 / 255


def test_the_same_seed_gives_the_same_picture_and_another_another(weights):
    backbone, picture = load(weights), torch.rand(1, 3, 8, 8)
    one, same, other = (backbones.upscale(backbone, picture, noise=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=1e-3)


def test_one_step_is_the_mean_and_several_are_the_paper_s(weights):
    backbone, picture = load(weights), torch.rand(1, 3, 8, 8)
    x_hat0, conditioning = backbone.encode(picture, 4)
    mean = backbone.decode(backbone.network(x_hat0, x_hat0, backbone.process.t1), conditioning)
    assert torch.allclose(backbones.upscale(backbone, picture, 4, 1), mean, atol=1e-6)
    usual = dosde.plan(backbone.process, 5, method=backbone.method, grid=backbone.grid)
    assert usual == dosde.plan(backbone.process, 5, 3)


def test_every_backbone_has_a_default_method():
    gaussian = backbones.load("gaussian")
    picture = torch.rand(1, 3, 8, 8)
    results = [
        backbones.upscale(gaussian, picture, 4, 4, noise=seeded(0), **how)
        for how in ({}, {"method": dosde.method.dos, "order": 3})
    ]
    assert torch.equal(*results)


def test_few_step_needs_no_number(tmp_path):
    """Of a backbone that knows its residual scale; and the command line's few_step is that preset."""
    assert backbones.load("gaussian").residual_scale is None
    backbone, picture = backbones.load("embedded"), torch.rand(1, 3, 8, 8, generator=seeded(0))
    assert backbone.residual_scale == backbone.network.config.scale
    few = dosde.presets.few_step(backbone.residual_scale)
    small = images.Picture((picture * 255).round() / 255, None, 8, None)
    images.write(tmp_path / "a.png", small)
    for how, given in (({}, []), (few, ["--method", "few_step"])):
        out = tmp_path / f"{len(given)}.png"
        assert main(["upscale", str(tmp_path / "a.png"), "-o", str(out), "--steps", "4", "--device", "cpu", *given]) == 0
        made = backbones.upscale(backbone, small.colour, 4, 4, noise=seeded(0), **how)
        assert float((images.read(out).colour - made).abs().max()) < 1 / 255
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "2.png").read_bytes()


def test_other_scales_are_made_from_four_times(weights):
    backbone, picture = load(weights), torch.rand(1, 3, 9, 7)
    four = backbones.upscale(backbone, picture, 4, 2, noise=seeded(0))
    for scale, size in ((2, (18, 14)), (1, (9, 7)), (6.5, (58, 46))):
        other = backbones.upscale(backbone, picture, scale, 2, noise=seeded(0))
        assert torch.equal(other, bicubic(four, size).clamp(0, 1))


# -- What ships -----------------------------------------------------------------------------------------------------


def test_what_ships_is_small_and_says_what_it_is():
    assert WEIGHTS.stat().st_size < 8e6
    backbone = backbones.load("embedded", device="cpu")
    count = sum(p.numel() for p in backbone.network.parameters())
    assert count <= 3e6
    for document in ("README.md", "docs/embedded.md"):
        assert f"{round(count, -3) // 1000} thousand weights" in (WEIGHTS.parents[2] / document).read_text()
    made = config.filled(json.loads(backbone.about["config"])).plain()
    wanted = tomllib.loads((Path(__file__).parents[1] / "configs" / "embedded.toml").read_text())
    parsed = json.loads(json.dumps(config.parse(wanted).as_dict()))
    for table in ("data", "process", "objective", "model", "optimizer", "ema"):
        assert made[table].items() <= parsed[table].items(), table
    assert int(backbone.about["step"]) == wanted["steps"]
    trained = {name for one in made["data"]["sources"] for name in one["names"]}
    assert not trained & {Path(file).stem for files in HELD_OUT.values() for file in files}


@pytest.mark.parametrize("name", ["chelsea", "coffee"])
def test_what_ships_beats_bicubic_in_the_mean_and_has_detail_in_a_sample(name):
    """On what it never saw. benchmarks/shipped.py has the numbers."""
    hr = held_out()[name][None, :, 40:200, 100:260]
    lr = degradation.apply(hr[0], degradation.sample(degradation.BICUBIC, np.random.default_rng(0)))[None]
    bicubic = (source(lr, hr.shape[-2:]) + 1) / 2
    backbone = backbones.load("embedded", device="cpu")
    mean, sample = (backbones.upscale(backbone, lr, 4, n, noise=seeded(0)) for n in (1, 5))
    assert evaluation.psnr(mean, hr, 4) > evaluation.psnr(bicubic, hr, 4) + 0.4
    assert evaluation.ssim(mean, hr, 4) > evaluation.ssim(bicubic, hr, 4)
    assert realism.spectrum_error(sample, hr, 4) < 0.5 * realism.spectrum_error(bicubic, hr, 4)
    assert evaluation.psnr(sample, hr, 4) > evaluation.psnr(bicubic, hr, 4) - 1
    assert realism.grain(sample, hr) < 2  # no speckle
    assert float((mean.mean((-2, -1)) - hr.mean((-2, -1))).abs().max()) < 1 / 255  # no drift of colours


# -- The file -----------------------------------------------------------------------------------------------------


def test_a_file_gives_the_network_back_in_float16(tmp_path):
    config = Config(0.12, 8, 3, 2, 16, process=ProcessConfig("domain_shift", {"t1": 1 / 3}))
    made, about = network(config), {"pictures": ["a", "b"], "steps": 5}
    save(tmp_path / "a.safetensors", made, about)
    assert {t.dtype for t in load_file(tmp_path / "a.safetensors").values()} == {torch.float16}
    state = torch.get_rng_state()
    back = load(tmp_path / "a.safetensors", device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert back.network.members[0].first.weight.is_contiguous(memory_format=torch.channels_last)
    assert (back.network.config, dict(back.about)) == (config, about)
    for name, tensor in back.network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, made.state_dict()[name].half().float())
    x, x_hat0 = pictures(1, 8, 8)
    assert torch.allclose(back.network(x, x_hat0, 0.1), made(x, x_hat0, 0.1), atol=1e-2)
    save(tmp_path / "b.safetensors", back.network, about)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_it_trains_in_half_precision_and_can_be_copied():
    """Gradients of every weight, under autocast; the copy of an average has the weights' layout and process."""
    made = network().requires_grad_()
    x, x_hat0 = pictures(2, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = made(x, x_hat0, torch.tensor([0.1, 0.4]))
    out.square().mean().backward()
    assert out.dtype == torch.float32
    for name, parameter in made.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    twin = copy.deepcopy(made)
    assert twin.members[0].first.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(twin(x, x_hat0, 0.2), made(x, x_hat0, 0.2))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(weights, dtype):
    x, x_hat0 = pictures(1, 16, 16)
    half, full = (load(weights, device="cpu", dtype=d).network(x, x_hat0, 0.3) for d in (dtype, "float32"))
    assert half.dtype == torch.float32
    assert float((half - full).abs().max()) < 0.05 * SMALL.scale * 3


def edited(path, weights, tensors=None, **described):
    own, said = load_file(weights), json.loads(metadata(weights)[KEY])
    own = own if tensors is None else tensors(own)
    said["config"].update(described.pop("config", {}))
    said.update(described)
    save_file(own, path, {KEY: json.dumps(said)})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"tensors": lambda t: {n: v for n, v in t.items() if n != BIAS}},
            r"a\.safetensors: no tensor members\.0\.first\.param.*bias",
        ),
        ({"tensors": lambda t: t | {"more": torch.ones(1)}}, r"a\.safetensors: unexpected tensor more"),
        (
            {"tensors": lambda t: t | {BIAS: torch.ones(3)}},
            r"members\.0\.first\.param.*bias.* is float32 \(3,\); floating \(1,\) is needed",
        ),
        (
            {"tensors": lambda t: t | {BIAS: t[BIAS] * torch.nan}},
            r"a\.safetensors: members\.0\.first\.param.*bias.* is not finite",
        ),
        ({"format": 1}, r"a\.safetensors: dosde\.embedded: format 1, predicts x0; 2 and x0 are known"),
        ({"predicts": "eps"}, r"predicts eps"),
        ({"config": {"depth": 3}}, r"a\.safetensors: dosde\.embedded: depth: unknown; the keys are scale, "),
        ({"config": {"width": 0}}, r"width: 0; a positive integer"),
        ({"config": {"width": 80}}, r"\d+ weights; \d+ or more are needed for what its config says"),
        ({"config": {"embedding": 10**9}}, r"\d+ weights; 10000000\d+ or more are needed"),
        ({"config": {"channels": 10**6}}, r"\d+ weights; \d+ or more are needed"),
        ({"config": {"fold": 10**4}}, r"\d+ weights; \d+ or more are needed"),
        ({"config": {"blocks": 10**3000}}, r"blocks: 1000+; a positive integer"),
        ({"config": {"scale": 10**400}}, r"scale: 1000+; a positive number"),
        ({"config": {"process": {"kind": "flow", "parameters": {"kappa": 10**400}}}}, r"process: flow with "),
        ({"config": {"fold": 2}}, r"members\.0\.first\.param.* is float16 \(891,\); floating \(\d+,\) is needed"),
        ({"config": {"members": 10**9}}, r"\d+ weights; \d+ or more are needed"),
        ({"config": {"width": 8 * 10**5}}, r"\d+ weights; \d{13} or more are needed for what"),
        ({"config": {"scale": 0}}, r"scale: 0; a positive number"),
        ({"config": {"process": {"kind": "cold", "parameters": {}}}}, r"process: kind 'cold'; one of domain_shift, "),
        ({"config": {"process": {"kind": "flow", "parameters": {"beta": 1}}}}, r"process: flow with \{'beta': 1\}"),
        ({"about": 5}, r"a\.safetensors: dosde\.embedded: "),
    ],
)
def test_wrong_files(tmp_path, weights, edit, message):
    edited(tmp_path / "a.safetensors", weights, **edit)
    with pytest.raises(ValueError, match=message) as raised:
        load(tmp_path / "a.safetensors")
    assert "\n" not in str(raised.value)


def test_files_that_are_none(tmp_path, weights):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=r"checkpoint: .*a\.safetensors; no such file"):
        load(path)
    path.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"a\.safetensors is a \.safetensors file that is cut off, \d+ of \d+ bytes"):
        load(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"a\.safetensors is no network of the backbone embedded"):
        load(path)
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt is no network of the backbone embedded"):
        load(tmp_path / "a.pt")


def test_a_missing_package_is_blamed_itself(monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"^the backbone embedded needs the extra 'images'.*safetensors") as caught:
        backbones.load("embedded")
    assert "weights" not in str(caught.value)


def test_what_cannot_be_saved(tmp_path):
    made = network()
    with pytest.raises(ValueError, match=r"path: .*a\.pt; a file that ends in \.safetensors"):
        save(tmp_path / "a.pt", made, {})
    with pytest.raises(ValueError, match=r"about: .*what JSON can hold"):
        save(tmp_path / "a.safetensors", made, {"loss": float("nan")})
    made.get_parameter(BIAS)[0] = 1e6
    with pytest.raises(ValueError, match=r"network: members\.0\.first\.param.*bias.* is not finite in float16"):
        save(tmp_path / "a.safetensors", made, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"width": 12}, r"width: 12; a multiple of 8"),
        ({"width": (8, 8)}, r"width: \(8, 8\); a positive integer"),
        ({"blocks": 1.5}, r"blocks: 1\.5; a positive integer"),
        ({"fold": 0}, r"fold: 0; a positive integer"),
        ({"embedding": True}, r"embedding: True"),
        ({"scale": float("nan")}, r"scale: nan; a positive number"),
        ({"process": "ddpm"}, r"process: 'ddpm'; a ProcessConfig"),
    ],
)
def test_wrong_configurations(how, message):
    with pytest.raises(ValueError, match=message):
        Config(**how)


def test_wrong_arguments(weights):
    made = network()
    for shapes in (((1, 3, 8, 8), (1, 3, 8, 16)), ((1, 3, 8, 10),) * 2, ((1, 1, 8, 8),) * 2, ((3, 8, 8),) * 2):
        with pytest.raises(ValueError, match=r"H and W multiples of 4, is needed"):
            made(*(torch.zeros(s) for s in shapes), 0.2)
    with pytest.raises(ValueError, match=r"tile: 101; a multiple of 4 from 216 is needed"):
        load(weights, tile=101)
    with pytest.raises(ValueError, match=r"dtype: 'int8'; auto, float32"):
        load(weights, dtype="int8")
    backbone = load(weights)
    with pytest.raises(ValueError, match=r"picture: shape \(1, 2, 4, 4\)"):
        backbones.upscale(backbone, torch.rand(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"scale: 0\.5; a number of at least 1"):
        backbones.upscale(backbone, torch.rand(1, 3, 4, 4), 0.5)


# -- The command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_upscale(weights, tmp_path, mode):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)).convert(mode).save(tmp_path / "a.png")
    command = ["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--backbone", "embedded"]
    assert main([*command, "--weights", str(weights)]) == 0
    with Image.open(tmp_path / "b.png") as image:
        assert (image.size, image.mode) == ((48, 36), mode)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "missing.safetensors"], "--weights: missing.safetensors; no such file"),
        (["--prompt", "a"], "--prompt: needs --backbone sd21, and the backbone is embedded"),
        (["--weights", "WEIGHTS", "--tile", "101"], "--tile: 101; a multiple of 4 from 216 is needed"),
        (["--weights", "WEIGHTS", "--device", "nowhere"], "--device: nowhere"),
        (["--weights", "WEIGHTS", "--order", "6"], "--order: 6; 1 to 5 is needed with --steps 5"),
    ],
)
def test_upscale_errors(weights, tmp_path, capsys, arguments, message):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    given = [str(weights) if a == "WEIGHTS" else a for a in arguments]
    with pytest.raises(SystemExit) as stopped:
        main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--backbone", "embedded", *given])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_neither_diffusers_nor_sympy_is_needed(weights):
    """sympy takes half a second: tensors on the meta device ask for it where they are indexed."""
    code = (
        "import sys\n"
        "for name in ('diffusers', 'transformers', 'accelerate'): sys.modules[name] = None\n"
        "import backbones, torch\n"
        f"backbone = backbones.load('embedded', weights={str(weights)!r}, device='cpu')\n"
        "assert 'sympy' not in sys.modules\n"
        "backbones.upscale(backbone, torch.rand(1, 3, 4, 4))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
