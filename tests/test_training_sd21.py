"""Fine-tuning of the ControlNet, on the shrunken model of the released code."""

import contextlib
import gzip
import json
import os
import shutil
import sys

import golden_sd21
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import SHARDED, last, losses, same, two_processes, written

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from backbones.sd21 import DoSSRPipeline, names
from backbones.training import config, loop
from backbones.training.sd21 import SD21
from backbones.weights import part

SHIFTS = ("in_layers.2.bias", "emb_layers.1.bias", "emb_layers.1.weight")  # of channels, before a normalisation of each


@pytest.fixture(scope="module")
def weights(sd21_folder):
    return sd21_folder


def content(weights, out, **changes):
    made = {
        "task": "sd21",
        "out": str(out),
        "steps": 6,
        "batch": 2,
        "log_every": 1,
        "data": {"crop": 64, "length": 4},
        "sd21": {"weights": str(weights)},
        "objective": {"predicts": "vp_eps", "norm": "l1", "of": "x0", "times": "table", "t_max": 1.0},
        "optimizer": {"lr": 1e-3},
        "ema": {"decay": 0.0},
    }
    for name, value in changes.items():
        made[name] = {**made.get(name, {}), **value} if isinstance(value, dict) else value
    return made


def train(weights, out, start="new", **changes):
    return loop.train(config.parse(content(weights, out, **changes)), start=start, progress=False)


def job_of(folder, **changes):
    job = SD21(config.parse(content(folder, "runs/none", **changes)))
    job.place(torch.device("cpu"))
    return job


def test_the_released_training_step(weights):
    """From latents, noise and times as recorded, the output of the networks and the loss; the recorded hint is z_hat0."""
    recorded = {key: torch.from_numpy(v) for key, v in golden_sd21.load("train_step").items()}
    job = job_of(weights)
    t = (recorded["t"].double() + 1) / 1000
    part = (recorded["t"].double() + 0.5) / 1000
    assert torch.equal(job.loss.times(part), t)
    moments = torch.cat([recorded["z0"] / job.pipe.vae.config.scaling_factor, torch.full_like(recorded["z0"], -30.0)], 1)
    batch = {"moments": moments, "z_hat0": recorded["z_hat0"], "part": part, "noise0": recorded["noise"]}
    with torch.no_grad():
        value = job.net(job.trainable, recorded["x_t"], recorded["z_hat0"], t)
    found = job.losses(job.trainable, {**batch, "noise1": torch.zeros_like(recorded["z0"])})
    assert (value - recorded["model_output"]).abs().max() < 1e-4 * recorded["model_output"].abs().max()
    assert found.detach().numpy() == pytest.approx(recorded["loss_per_sample"].numpy(), rel=1e-5)

    # Gradients: some recorded whole, of all the norm and the sum, under the released names.
    found.mean().backward()
    own = {name: parameter.grad for name, parameter in job.trainable.named_parameters()}
    gradients = {entry.name: entry.join(own) for entry in names.entries("controlnet", own)}
    info = json.loads(gzip.decompress((golden_sd21.DATA / "train_info.json.gz").read_bytes()))
    known = info["grad_norm_sum_absmax"]
    assert set(known) == set(gradients)
    largest = max(norm for norm, _, _ in known.values())
    # A normalisation of single channels takes off what some weights add, and a softmax over one place what a query and a key
    # do. Their exact gradient is 0; in float32 it is rounding, which is another one for other numbers of threads.
    none = {name for name, (norm, _, _) in known.items() if norm < 3e-6 * largest}
    shifts = {f"input_blocks.{i}.0.{layer}" for i in (1, 2) for layer in SHIFTS}
    assert none == shifts | {f"middle_block.1.transformer_blocks.0.attn1.to_{kind}.weight" for kind in "qk"}
    for name, (norm, total, _) in known.items():
        floor = 1e-6 * largest
        if name in none:
            assert float(gradients[name].norm()) < 5e-6 * largest, name
        else:
            assert float(gradients[name].norm()) == pytest.approx(norm, rel=1e-4, abs=floor), name
        assert float(gradients[name].sum()) == pytest.approx(
            total, abs=(1e-4 * norm + floor) * gradients[name].numel() ** 0.5
        ), name
    whole = {name.removeprefix("grad/"): value for name, value in recorded.items() if name.startswith("grad/")}
    assert len(whole) == 9
    for name, value in whole.items():
        assert (gradients[name] - value).abs().max() < 1e-4 * value.abs().max() + 1e-6 * largest, name


def test_the_released_step_from_pictures_to_the_loss(weights):
    """HR and LR through the encoders, the posterior's sample, noise and times as recorded."""
    recorded = {key: torch.from_numpy(v) for key, v in golden_sd21.load("train_shared_step").items()}
    job = job_of(weights)
    hr, lq = (recorded["batch_jpg"] + 1) / 2, recorded["batch_hint"]
    hr, lq = hr.permute(0, 3, 1, 2), lq.permute(0, 3, 1, 2)
    lr = torch.nn.functional.interpolate(lq, scale_factor=0.25, mode="bicubic", antialias=True)
    plain = torch.nn.functional.interpolate(lq, scale_factor=0.25, mode="bicubic")
    assert min(float((made - recorded["pre_lq"]).abs().max()) for made in (lr, plain)) < 1e-5
    moments, z_hat0 = job.encoded(hr, recorded["pre_lq"])
    z0 = job.pipe.latent(moments, recorded["noise_posterior"], None)
    for made, key in ((z0, "z0"), (z_hat0, "z_hat0")):
        assert (made - recorded[key]).abs().max() < 1e-5 * recorded[key].abs().max().clamp(min=1), key
    part = (recorded["t"].double() + 0.5) / 1000
    batch = {"hr": hr, "lr": recorded["pre_lq"], "part": part, "noise0": recorded["noise"]}
    with torch.no_grad():
        found = job.losses(job.trainable, {**batch, "noise1": recorded["noise_posterior"]})
    assert float(found.mean()) == pytest.approx(float(recorded["loss"]), rel=1e-5)


def test_the_latents(weights):
    """Of pictures: the posterior of HR, the hint encoder's mode of the preprocessor's picture, not clamped."""
    job = job_of(weights)
    hr, lr = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 16, 16)
    moments, z_hat0 = job.encoded(hr, lr)
    pipe = job.pipe
    with torch.no_grad():
        larger = pipe.preprocessor(lr)
        assert not ((larger >= 0) & (larger <= 1)).all()
        assert torch.equal(z_hat0, pipe.hint(larger))
        posterior = pipe.vae.encode(2 * hr - 1).latent_dist
    assert torch.equal(moments.chunk(2, 1)[0], posterior.mean)
    n = torch.randn_like(posterior.mean)
    assert torch.allclose(pipe.latent(moments, n, None), (posterior.mean + posterior.std * n) * 0.18215, atol=1e-5)


def test_only_the_controlnet_trains_and_its_loss_falls(weights, tmp_path):
    """On one cached sample; and the result is a pipeline of which only the ControlNet has changed."""
    cache = {"cache": str(tmp_path / "cache"), "cache_samples": 1}
    path = train(weights, tmp_path / "run", steps=24, sd21=cache, optimizer={"lr": 4e-3, "warmup": 3})
    found = torch.tensor(list(losses(tmp_path / "run").values()))
    assert found[-8:].mean() < 0.9 * found[:8].mean()
    before, after = (DoSSRPipeline.from_pretrained(folder) for folder in (weights, path))
    for name in ("vae", "unet", "hint_encoder", "preprocessor"):
        assert same(getattr(before, name).state_dict(), getattr(after, name).state_dict()), name
    trained = part(last(tmp_path / "run"), "ema.")
    assert same(after.controlnet.state_dict(), trained)
    changed = [name for name, value in before.controlnet.state_dict().items() if not torch.equal(value, trained[name])]
    assert len(changed) > 0.9 * len(trained)
    assert after.encode_prompt("").shape[1] == 77


def test_the_pipeline_is_replaced_where_the_run_wrote_it_and_is_no_source_of_weights(weights, tmp_path):
    out, how = tmp_path / "run", {"optimizer": {"lr": 1e-3}}
    first = train(weights, out, steps=1, **how)
    before = {path: path.read_bytes() for path in first.rglob("*.safetensors")}
    for place in ("pipeline", "pipeline/../pipeline", "."):
        with pytest.raises(ValueError, match=r"^sd21\.weights: "):
            train(out / place, out, "resume", steps=2, **how)
    (first / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"^out: .* holds pipeline/mine\.txt, which the run would write"):
        train(weights, out, "overwrite", steps=1, **how)
    assert {path: path.read_bytes() for path in before} == before
    (first / "mine.txt").unlink()
    train(weights, out, "resume", steps=2, **how)
    assert {path: path.read_bytes() == content for path, content in before.items()} == {
        path: path.parent.name != "controlnet" for path in before
    }


def test_cached_latents_are_those_that_are_made(weights, tmp_path):
    """The first epoch has the losses that it has without; then a cache of other data is refused."""
    cache = {"cache": str(tmp_path / "cache"), "cache_samples": 4}
    train(weights, tmp_path / "a", steps=2)
    train(weights, tmp_path / "b", steps=2, sd21=cache)
    a, b = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert list(b.values()) == pytest.approx(list(a.values()), rel=1e-4)
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(files) == 5
    assert set(load_file(tmp_path / "cache" / "00000000.safetensors")) == {"moments", "z_hat0"}
    train(weights, tmp_path / "c", steps=1, sd21=cache)
    assert files == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert losses(tmp_path / "c") == {1: b[1]}
    with pytest.raises(ValueError, match=r"^sd21.cache: .* holds latents of other data or weights \(data\)"):
        train(weights, tmp_path / "d", steps=1, sd21=cache, data={"degradation": "real-esrgan"})


@pytest.mark.parametrize(
    ("name", "holds", "said"),
    [
        ("unet", None, "lacks unet/"),
        ("model_index.json", None, "has no model_index.json"),
        ("model_index.json", b"[", "is not the index of a pipeline"),
        ("vae/config.json", b"{}", "folder cannot be loaded"),
        ("vae/config.json", b"{", "vae"),
        ("scheduler/scheduler_config.json", b"{", "scheduler"),
        ("controlnet/config.json", b'{"cross_attention_dim": 7}', "controlnet"),
        ("controlnet/diffusion_pytorch_model.safetensors", b"text", "controlnet"),
    ],
)
def test_a_folder_of_weights_that_is_not_whole_is_one_line(weights, tmp_path, name, holds, said):
    shutil.copytree(weights, tmp_path / "folder")
    path = tmp_path / "folder" / name
    if path.is_dir():
        shutil.rmtree(path)
    elif holds is None:
        path.unlink()
    else:
        path.write_bytes(holds)
    with pytest.raises(ValueError, match=r"^sd21\.weights: [^\n]*$") as error:
        job_of(tmp_path / "folder")
    assert said in str(error.value)


def test_a_cache_is_known_by_content(weights, tmp_path):
    """Weights in another folder are the same; other ones in the same folder are not; nor are other pictures."""
    shutil.copytree(weights, tmp_path / "folder")
    for seed in range(2):
        save_picture(tmp_path / "photos" / f"{seed}.png", seed)
        save_picture(tmp_path / "hr" / f"{seed}.png", seed)
        save_picture(tmp_path / "lr" / f"{seed}.png", seed, 24)

    def cached(folder=tmp_path / "folder", photos="photos", **changes):
        sources = [{"kind": "folder", "path": str(tmp_path / photos)}, {"kind": "pairs"} | pairs]
        own = {"cache": str(tmp_path / "cache"), "cache_samples": 1}
        changes = {"sd21": own, "data": {"sources": sources}, **changes}
        job = job_of(folder, **changes)
        job.samples(config.made_samples(config.parse(content(folder, "runs/none", **changes)).data, 0), 0, 1)

    pairs = {"hr": str(tmp_path / "hr"), "lr": str(tmp_path / "lr")}
    cached()
    cached(weights)
    (tmp_path / "photos").rename(tmp_path / "moved")
    cached(photos="moved")
    other = r"^sd21\.cache: .* holds latents of other data or weights \({}\); another folder is needed"
    for path in ("moved/1.png", "lr/0.png"):
        before, stat = (tmp_path / path).read_bytes(), (tmp_path / path).stat()
        save_picture(tmp_path / path, 7, 96 if "moved" in path else 24)
        os.utime(tmp_path / path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with pytest.raises(ValueError, match=other.format("pictures")):
            cached(photos="moved")
        (tmp_path / path).write_bytes(before)
    for component, key in (("vae", "encoder.conv_in.bias"), ("hint_encoder", None)):
        file = next((tmp_path / "folder" / component).glob("*.safetensors"))
        before = load_file(file)
        key = key or next(iter(before))
        save_file({**before, key: before[key] + 1}, file, {"format": "pt"})
        with pytest.raises(ValueError, match=other.format("weights")):
            cached(photos="moved")
        save_file(before, file, {"format": "pt"})


def save_picture(path, seed, side=96):
    path.parent.mkdir(exist_ok=True)
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(path)


def test_a_cache_knows_the_function_that_makes_pictures_worse(weights, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    changes = {"sd21": {"cache": str(tmp_path / "cache"), "cache_samples": 1}, "data": {"degradation": "own_worse:half"}}
    for step, code in enumerate(("hr[:, ::4, ::4]", "hr[:, ::4, ::4] / 2")):
        (tmp_path / "own_worse.py").write_text(f"def half(hr, generator):\n    return {code}\n")
        sys.modules.pop("own_worse", None)
        job, data = job_of(weights, **changes), config.parse(content(weights, "runs/none", **changes)).data
        with pytest.raises(ValueError, match=r"weights \(degradation\)") if step else contextlib.nullcontext():
            job.samples(config.made_samples(data, 0), 0, 1)


def test_no_process_makes_latents_before_the_folder_is_known_to_have_none(weights, tmp_path, monkeypatch):
    """Else the first would find the second's, and take them for those of another run."""
    changes, found = {"sd21": {"cache": str(tmp_path / "cache"), "cache_samples": 2}}, []
    job, data = job_of(weights, **changes), config.parse(content(weights, "runs/none", **changes)).data
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: found.append(list(tmp_path.rglob("*.safetensors"))))
    job.samples(config.made_samples(data, 0), 1, 2)
    assert found == [[]]
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["00000001.safetensors"]


def test_an_embedded_prompt_is_kept(weights, tmp_path, monkeypatch):
    """Of a prompt that the pipeline does not carry: the text tower runs once."""
    asked = []

    def encode_prompt(self, prompt, argument):
        asked.append(prompt)
        return torch.full((1, 77, 64), 0.5)

    monkeypatch.setattr(DoSSRPipeline, "encode_prompt", encode_prompt)
    made = [job_of(weights, sd21={"prompt": "a cat", "cache": str(tmp_path)}).context for _ in range(2)]
    assert asked == ["a cat"]
    assert torch.equal(*made)
    shutil.copytree(weights, tmp_path / "folder")  # the same tower, and then another one
    file = next((tmp_path / "folder" / "text_encoder").glob("*.safetensors"))
    for add in (0, 1):
        before = load_file(file)
        key = next(name for name in before if name.endswith("final_layer_norm.bias"))
        save_file({**before, key: before[key] + add}, file, {"format": "pt"})
        job_of(tmp_path / "folder", sd21={"prompt": "a cat", "cache": str(tmp_path)})
        assert asked == ["a cat"] * (1 + add)


def test_gradient_checkpointing_gives_the_same_gradients(weights):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        job = job_of(weights, sd21={"gradient_checkpointing": checkpointing})
        job.trainable.train()
        shape = job.noise_shapes[0]
        batch = {
            "hr": torch.rand(1, 3, 64, 64),
            "lr": torch.rand(1, 3, 16, 16),
            "part": torch.tensor([0.3], dtype=torch.float64),
        }
        batch |= {name: torch.randn(1, *shape) for name in ("noise0", "noise1")}
        job.losses(job.trainable, batch).mean().backward()
        gradients.append({name: p.grad for name, p in job.trainable.named_parameters() if p.grad is not None})
        assert not any(p.requires_grad for p in [*job.pipe.unet.parameters(), *job.pipe.vae.parameters()])
    assert len(gradients[0]) == len(list(job.trainable.parameters()))
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("variables", [{}, SHARDED], ids=["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one(weights, tmp_path, variables):
    """With everything that saves memory: latents from files, gradient checkpointing, parts of a batch."""
    own = {"cache": str(tmp_path / "cache"), "cache_samples": 4, "gradient_checkpointing": True}
    changes = {"steps": 2, "batch": 4, "accumulate": 2, "sd21": own}
    two_processes(written(tmp_path / "two.toml", content(weights, tmp_path / "two", **changes)), **variables)
    train(weights, tmp_path / "one", **changes)
    assert list(losses(tmp_path / "two").values()) == pytest.approx(list(losses(tmp_path / "one").values()), rel=1e-5)


def test_validation_bf16_and_resume(weights, tmp_path):
    pictures = {"every": 1, "pictures": "procedural", "count": 1, "crop": 60, "steps": [2]}
    train(weights, tmp_path / "run", steps=2, checkpoint={"every": 1}, validation=pictures)
    (tmp_path / "run" / "checkpoints" / "00000002.safetensors").rename(tmp_path / "second.safetensors")
    train(weights, tmp_path / "run", "resume", steps=2, checkpoint={"every": 1}, validation=pictures)
    assert same(last(tmp_path / "run"), load_file(tmp_path / "second.safetensors"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "psnr" in row] == [1, 2]
    train(weights, tmp_path / "half", steps=1, precision="bf16")
    assert losses(tmp_path / "half")[1] == pytest.approx(losses(tmp_path / "run")[1], rel=0.05)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"predicts": "v"}}, "objective.predicts: 'v'; 'vp_eps', as the pipeline's, is needed"),
        ({"data": {"crop": 12}}, "data.crop: 12; a multiple of "),
        ({"sd21": {"weights": "none"}}, "weights: none; no such folder"),
        ({"process": {"kind": "vp"}}, "process: not of the task sd21"),
    ],
)
def test_what_does_not_suit_the_pipeline(weights, tmp_path, changes, said):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        train(weights, tmp_path / "run", **changes)
    assert said in str(error.value)
