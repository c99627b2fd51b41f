"""The released checkpoint layout and diffusers folders: exact both ways, every tensor accounted for, nothing executed."""

import gzip
import json
import pickle
import sys
from pathlib import Path

import golden_sd21
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from backbones.cli import main

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import backbones
from backbones import weights
from backbones.sd21 import DoSSRPipeline, convert, names
from backbones.sd21 import parts as released_parts
from dosde import presets

DATA = Path(__file__).parent / "data" / "sd21"


@pytest.fixture(scope="module")
def released():
    """The recorded model, in the released layout."""
    return {name: torch.from_numpy(array) for name, array in golden_sd21.state_dict().items()}


@pytest.fixture(scope="module")
def folder(sd21_folder):
    return sd21_folder


def same(a, b):
    """Two mappings of tensors, bit for bit."""
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.fixture(scope="module")
def full():
    """name -> shape of the full-size checkpoint."""
    return {
        name: tuple(shape) for name, shape in json.loads(gzip.decompress((DATA / "real_layout.json.gz").read_bytes())).items()
    }


def test_full_size_both_ways_on_the_meta_device(full):
    parts = released_parts.to_parts({name: torch.empty(shape, device="meta") for name, shape in full.items()})
    for component, config in parts.configs.items():
        module = released_parts.empty(component, config)
        shapes = {name: tuple(t.shape) for name, t in module.state_dict().items()}
        assert shapes == {name: tuple(t.shape) for name, t in parts.tensors[component].items()}
    back = released_parts.to_released(parts.tensors, parts.unused)
    assert {name: tuple(t.shape) for name, t in back.items()} == full
    counts = {name: sum(t.numel() for t in own.values()) / 1e6 for name, own in parts.tensors.items()}
    # golden/README's counts; the text tower's last block, projection and scale are not used.
    expected = {"unet": 865.9, "controlnet": 363.2, "vae": 83.7, "hint_encoder": 34.2, "preprocessor": 16.7}
    assert all(abs(counts[name] - count) < 0.06 for name, count in expected.items())
    assert parts.configs["unet"]["attention_head_dim"] == [5, 10, 20, 20]
    assert parts.configs["text_encoder"]["num_hidden_layers"] == 23
    assert parts.configs["text_encoder"]["num_attention_heads"] == 16


@pytest.mark.parametrize(
    ("shape", "replace"),
    [
        # Other widths, depths, levels: what a checkpoint of another configuration would hold.
        ("unet", {"block_out_channels": [64, 96], "layers_per_block": 1, "attention_head_dim": [8, 12]}),
        ("unet", {"layers_per_block": 3, "transformer_layers_per_block": [2, 2], "block_out_channels": [32, 64]}),
        ("vae", {"block_out_channels": [32, 64, 96], "layers_per_block": 1, "latent_channels": 3}),
        ("text_encoder", {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6}),
    ],
)
def test_sizes_are_those_of_the_tensors(shape, replace):
    """A configuration -> its module -> released names and shapes -> the configuration."""
    unet = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [32, 64],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "transformer_layers_per_block": [1, 1],
        "attention_head_dim": [4, 8],
        "cross_attention_dim": 24,
        "use_linear_projection": True,
        "sample_size": 64,
    }
    vae = {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [32, 64],
        "layers_per_block": 2,
        "latent_channels": 4,
        "mid_block_add_attention": True,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }
    text = {"vocab_size": 100, "max_position_embeddings": 9, "projection_dim": 48, "hidden_act": "gelu", "pad_token_id": 0}
    config = {"unet": unet, "vae": vae, "text_encoder": text}[shape] | replace
    if shape == "vae":
        levels = len(config["block_out_channels"])
        config |= {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    shapes = {name: tuple(t.shape) for name, t in released_parts.empty(shape, config).state_dict().items()}
    prefix = names.PREFIXES[shape]
    renamed = {prefix + e.name: e.shape(shapes) for e in names.entries(shape, shapes)}
    if shape == "text_encoder":  # a block that is not used
        renamed |= {n.replace("blocks.0.", "blocks.3."): s for n, s in renamed.items() if "blocks.0." in n}
    assert names.configs(renamed)[shape] == config


def test_heads_are_taken_from_the_original_config(released, tmp_path):
    path = tmp_path / "cldm.yaml"
    path.write_text("model:\n  params:\n    unet_config:\n      params:\n        num_head_channels: 16\n")
    assert convert.heads_of(path) == names.Heads(16)
    assert convert.heads_of(golden_sd21.manifest()["config"]) == names.Heads(8)
    assert convert.heads_of(golden_sd21.manifest()) == names.Heads(8, 4)
    configs = released_parts.to_parts(released, names.Heads(16, 2)).configs
    assert configs["unet"]["attention_head_dim"] == configs["controlnet"]["attention_head_dim"] == [2, 4, 8, 8]
    assert configs["text_encoder"]["num_attention_heads"] == 2
    with pytest.raises(ValueError, match=r"num_head_channels is 64 in it; a divisor of the widths \[32, 64, 128, 128\]"):
        released_parts.to_parts(released, names.Heads(64))
    with pytest.raises(ValueError, match="num_head_channels is None in it"):
        convert.heads_of({"model": {}})


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_round_trip_is_exact(released, folder, tmp_path, suffix, capsys):
    out = tmp_path / f"back{suffix}"
    assert main(["convert", str(folder), "-o", str(out)]) == 0
    assert same(weights.read(out), released)
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name]
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    assert out.stat().st_mode == usual
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mode == usual
    assert capsys.readouterr().out == f"wrote   {out}\n"


def test_a_saved_pipeline_converts_back_too(released, folder, tmp_path):
    """save_pretrained carries along what from_pretrained left in the folder."""
    DoSSRPipeline.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    convert.to_checkpoint(tmp_path / "saved", tmp_path / "back.safetensors")
    assert same(weights.read(tmp_path / "back.safetensors"), released)


def test_half_precision_of_the_checkpoint_is_kept(released, tmp_path):
    half = {name: t.half() if name not in names.TABLES else t for name, t in released.items()}
    save_file(half, tmp_path / "half.safetensors")
    convert.to_folder(convert.parts_of_checkpoint(tmp_path / "half.safetensors"), tmp_path / "folder")
    convert.to_checkpoint(tmp_path / "folder", tmp_path / "back.safetensors")
    assert same(weights.read(tmp_path / "back.safetensors"), half)


def test_dtype(folder, released, tmp_path):
    save_file(released, tmp_path / "model.safetensors")
    assert main(["convert", str(tmp_path / "model.safetensors"), "-o", str(tmp_path / "f"), "--dtype", "bfloat16"]) == 0
    for component in ("unet", "vae", "text_encoder", "prompts"):
        was, now = released_parts.of_folder(folder, component), released_parts.of_folder(tmp_path / "f", component)
        assert same({name: t.bfloat16() for name, t in was.items()}, now)


@pytest.mark.parametrize("wrap", ["state_dict", "module.", "pickle"])
def test_wrappings(released, folder, tmp_path, wrap):
    prefix = "module." if wrap == "module." else ""
    content = {prefix + name: tensor for name, tensor in released.items()}
    torch.save({"state_dict": content, "global_step": 3} if wrap == "state_dict" else content, tmp_path / "model.ckpt")
    assert same(weights.read(tmp_path / "model.ckpt"), released)


def test_tensors_that_share_storage(released, tmp_path):
    """As torch.save keeps them, and safetensors does not."""
    one, two = "control_model.zero_convs.0.0.bias", "control_model.zero_convs.1.0.bias"
    tied = released | {two: released[one]}
    torch.save(tied, tmp_path / "tied.ckpt")
    assert main(["convert", str(tmp_path / "tied.ckpt"), "-o", str(tmp_path / "folder")]) == 0
    assert main(["convert", str(tmp_path / "folder"), "-o", str(tmp_path / "back.safetensors")]) == 0
    assert same(weights.read(tmp_path / "back.safetensors"), tied)


def test_stored_prompts_are_the_recorded_embeddings(folder):
    recorded = golden_sd21.load("samples")
    tokens = torch.from_numpy(recorded["tokens"]).long()
    for i, (prompt, own) in enumerate(convert.TOKENS.items()):
        assert tokens[i].tolist() == [*own, *[0] * (77 - len(own))]
        stored = DoSSRPipeline.from_pretrained(folder).encode_prompt(prompt)
        assert (stored - torch.from_numpy(recorded["context" if i == 0 else "context_neg"])).abs().max() < 1e-5


def test_tables_are_those_of_the_release(released, folder):
    scheduler = DoSSRPipeline.from_pretrained(folder).scheduler
    tables = convert.tables(scheduler)
    assert set(tables) == set(names.TABLES)
    for name, table in tables.items():
        assert torch.allclose(table, released[name], rtol=2e-6, atol=1e-9), name


@pytest.mark.parametrize(("T1", "t1"), [(500, 0.5), (333, 0.333), (666, 0.666)])
def test_the_process_is_read_from_the_tables(T1, t1):
    process, _ = presets.dossr(5, t1 + 1e-4)
    eta = process((torch.arange(1000, dtype=torch.float64) + 1) / 1000)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    lambdas = (eta.b / eta.alpha).float()
    assert int((lambdas < 1).sum()) == T1
    config = convert.scheduler_config({"betas": betas.float(), "lambdas": lambdas})
    assert config == {"num_train_timesteps": 1000, "shift": "dossr", "t1": t1}
    other = convert.scheduler_config({"betas": betas.float() * 1.1, "lambdas": lambdas**2})
    assert len(other["trained_betas"]) == len(other["trained_etas"]) == 1000
    assert convert.scheduler_config({"betas": betas.float()})["shift"] == "none"


# -- DiffBIR v1, and where fine-tuning starts -------------------------------------------------------------------------------


def test_diffbir(released, tmp_path):
    """Its tables know no eta and its preprocessor is another network: plain diffusion in 50 steps, and an exact round trip."""
    theirs = {n: t for n, t in released.items() if "lambdas" not in n and not n.startswith("preprocess_model.")}
    theirs |= {"preprocess_model.conv_first.weight": torch.ones(4, 3, 3, 3), "preprocess_model.layers.0.x": torch.ones(2)}
    save_file(theirs, tmp_path / "diffbir.safetensors")
    rrdb = {n.removeprefix("preprocess_model."): t for n, t in released.items() if n.startswith("preprocess_model.")}
    torch.save({"params_ema": rrdb}, tmp_path / "esrgan.pth")
    arguments = [
        str(tmp_path / "diffbir.safetensors"),
        "-o",
        str(tmp_path / "f"),
        "--preprocessor",
        str(tmp_path / "esrgan.pth"),
    ]
    assert main(["convert", *arguments]) == 0
    pipe = DoSSRPipeline.from_pretrained(tmp_path / "f")
    assert pipe.scheduler.config.shift == "none"
    assert pipe.preprocessor is not None
    times = pipe.scheduler.times(50) * 1000 - 1
    assert len(times) == 51
    assert times[0] == 999
    assert pipe.scheduler.process.t1 == 1
    pipe.set_progress_bar_config(disable=True)
    picture = pipe(torch.rand(3, 8, 8), num_inference_steps=2, output_type="pt").images
    assert picture.shape == (1, 3, 32, 32)
    convert.to_checkpoint(tmp_path / "f", tmp_path / "back.safetensors")
    assert same(weights.read(tmp_path / "back.safetensors"), theirs)


@pytest.fixture(scope="module")
def base(folder, tmp_path_factory):
    """A folder of SD 2.1-base, shrunken."""
    place = tmp_path_factory.mktemp("base")
    for component in ("unet", "vae", "text_encoder"):
        (place / component).symlink_to(folder / component)
    return place


def test_start_of_fine_tuning(base, released, tmp_path):
    rrdb = {n.removeprefix("preprocess_model."): t for n, t in released.items() if n.startswith("preprocess_model.")}
    save_file(rrdb, tmp_path / "rrdb.safetensors")
    arguments = ["--base", str(base), "--preprocessor", str(tmp_path / "rrdb.safetensors"), "-o", str(tmp_path / "start")]
    assert main(["convert", *arguments]) == 0
    pipe = DoSSRPipeline.from_pretrained(tmp_path / "start")
    encoder = {n: t for n, t in pipe.vae.state_dict().items() if n.startswith(("encoder.", "quant_conv."))}
    assert same(dict(pipe.hint_encoder.state_dict()), encoder)
    unet, control = pipe.unet.state_dict(), pipe.controlnet.state_dict()
    for name, tensor in control.items():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond")):
            assert not tensor.any(), name
        else:
            assert torch.equal(tensor, unet[name]), name
    # The ControlNet adds nothing yet: the U-Net's own output.
    x, hint, context = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), pipe.encode_prompt("")
    m = pipe.denoiser(hint, context)
    with torch.no_grad():
        alone = pipe.unet(x, torch.tensor(499.0), context, return_dict=False)[0]
        assert torch.equal(m.net(x, x, torch.tensor(0.5, dtype=torch.float64)), alone)
    # As the two encoders agree, one pass serves both.
    calls = []
    pipe.vae.encoder.register_forward_hook(lambda *_: calls.append("vae"))
    pipe.hint_encoder.encoder.register_forward_hook(lambda *_: calls.append("hint"))
    with torch.no_grad():
        made = pipe.prepare(torch.rand(1, 3, 16, 16))
        assert calls == ["vae"]
        assert torch.equal(made.hint, made.x_hat0)
        pipe.hint_encoder.quant_conv.bias[0] += 1
        pipe.prepare(torch.rand(1, 3, 16, 16))
    assert calls == ["vae", "hint", "vae"]
    # It converts to the released layout, with tables of its own, but for the text block that SD 2.1-base has not.
    convert.to_checkpoint(tmp_path / "start", tmp_path / "start.safetensors")
    back = weights.read(tmp_path / "start.safetensors")
    assert set(released) - set(back) == {n for n in released if names.unused(n, 2) and n not in names.TABLES}


# -- What is refused --------------------------------------------------------------------------------------------------------


def dropped(t):
    del t["control_model.zero_convs.3.0.bias"]


def added(t):
    t["model.diffusion_model.extra.weight"] = torch.zeros(2)


def reshaped(t):
    t["first_stage_model.encoder.conv_out.weight"] = torch.zeros(8, 64, 3, 3)


def counted(t):
    t["model.diffusion_model.out.2.bias"] = t["model.diffusion_model.out.2.bias"].long()


def without_control(t):
    for name in [n for n in t if n.startswith("control_model.")]:
        del t[name]


def without_hint(t):
    t["control_model.input_blocks.0.0.weight"] = t["control_model.input_blocks.0.0.weight"][:, :4].contiguous()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dropped, "no tensor control_model.zero_convs.3.0.bias"),
        (added, "unexpected tensor model.diffusion_model.extra.weight"),
        (reshaped, r"first_stage_model.encoder.conv_out.weight has shape (8, 64, 3, 3); (8, 128, 3, 3) is needed"),
        (counted, "model.diffusion_model.out.2.bias is int64; a floating tensor is needed"),
        (without_control, "no tensor control_model.*, the controlnet"),
        (without_hint, "a ControlNet with a latent hint, which takes more, is needed"),
    ],
)
def test_every_tensor_is_accounted_for(released, tmp_path, capsys, change, message):
    tensors = dict(released)
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    assert main(["convert", str(tmp_path / "model.safetensors"), "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


class Trap:
    def __reduce__(self):
        return Path.touch, (Path(Trap.place),)


def test_files_that_are_no_checkpoints(released, tmp_path, capsys):
    Trap.place = str(tmp_path / "executed")
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callback": Trap()}, tmp_path / "trap.ckpt")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"state_dict": Trap()}))
    torch.save({"state_dict": released, "callbacks": {Path: 1}}, tmp_path / "classes.ckpt")  # as training frameworks do
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "page.ckpt").write_text("<html>not found</html>")
    (tmp_path / "text.safetensors").write_text("hello, hello, hello")
    save_file(released, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-1000])
    torch.save(released, tmp_path / "whole.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:100000])
    torch.save({"a": 3}, tmp_path / "number.ckpt")
    for name, message in {
        "trap.ckpt": "holds more than tensors (getattr), which loading would execute; refused",
        "old.pth": "is a pickle of Python objects (pathlib.Path.touch), which reading would execute",
        "classes.ckpt": "holds more than tensors (pathlib.Path), which loading would execute; refused",
        "page.ckpt": "is an HTML page, as a download that failed leaves; download it again",
        "text.ckpt": "is a text file",
        "text.safetensors": "is a text file",
        "cut.safetensors": "is a .safetensors file that is cut off, ",
        "cut.ckpt": "is a PyTorch file that is cut off; download it again",
        "number.ckpt": "'a' is a int; tensors by name",
        "missing.ckpt": "no such file",
        "model.zip": "no such file",
    }.items():
        assert main(["convert", str(tmp_path / name), "-o", str(tmp_path / "out")]) == 1
        said = capsys.readouterr().err
        assert message in said
        assert name in said
        assert said.count("\n") == 1
        with pytest.raises(ValueError, match=name):
            DoSSRPipeline.from_single_file(tmp_path / name)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["accelerate", "transformers", "yaml", "safetensors.torch"])
def test_a_missing_package_is_blamed_itself(folder, tmp_path, monkeypatch, capsys, package):
    (tmp_path / "cldm.yaml").write_text("num_head_channels: 8")
    monkeypatch.setitem(sys.modules, package, None)
    source = [str(folder.parent / "model.safetensors"), "--original-config", str(tmp_path / "cldm.yaml")]
    assert outcome(["convert", *source, "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the backbones sd21, resshift and gan need the extra 'sd21'" in said
    assert package in said
    assert not (tmp_path / "out").exists()


def test_psutil_is_missed_before_any_picture(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ImportError, match=r"the backbone sd21 needs the extra 'sd21'.*psutil"):
        backbones.load("sd21", weights=folder, device="cpu", progress=False)
    assert backbones.load("sd21", weights=folder, device="cpu", progress=False, tile=None)


def outcome(arguments):
    """The exit status of the command."""
    try:
        return main(arguments)
    except SystemExit as stopped:
        return stopped.code


def test_an_empty_folder_is_replaced_also_behind_a_link(folder, tmp_path, monkeypatch, capsys):
    model = str(folder.parent / "model.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert main(["convert", model, "-o", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "model_index.json").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["convert", model, "-o", "."]) == 1
    assert "--out: .; a folder other than the current one is needed" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".ckpt"])
def test_a_full_disk_is_one_line_and_leaves_nothing(folder, tmp_path, monkeypatch, capsys, suffix):
    def full(*_, **__):
        raise safetensors.SafetensorError("I/O error:\nNo space left on device (os error 28)")

    def closed(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 4 vs 2")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    monkeypatch.setattr(torch, "save", closed)
    source = folder if suffix else folder.parent / "model.safetensors"
    assert main(["convert", str(source), "-o", str(tmp_path / f"out{suffix}")]) == 1
    said = capsys.readouterr().err
    assert "cannot be written (" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_of_convert(folder, base, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    model = str(folder.parent / "model.safetensors")
    for arguments, code, message in (
        ([model, "-o", str(tmp_path / "full")], 1, "it exists and is not an empty folder"),
        ([model, "-o", str(tmp_path / "a.ckpt")], 1, "a folder is needed for a checkpoint"),
        ([str(folder), "-o", str(tmp_path / "a")], 1, "a file that ends in .safetensors or .ckpt is needed"),
        ([str(folder), "-o", model], 1, "it exists"),
        ([str(folder), "-o", str(tmp_path / "a.ckpt"), "--dtype", "float16"], 2, "--dtype: only for a conversion to a folder"),
        (["-o", str(tmp_path / "a")], 2, "CHECKPOINT: none; one is needed, or --base and --preprocessor"),
        (["-o", str(tmp_path / "a"), "--base", str(tmp_path), "--preprocessor", "x.pth"], 1, "lacks unet/"),
        (["-o", str(tmp_path / "a"), "--base", str(base), "--preprocessor", "x.pth"], 1, "x.pth"),
    ):
        assert outcome(["convert", *arguments]) == code
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


def test_a_base_that_left_the_hub(tmp_path, monkeypatch, capsys):
    import huggingface_hub

    def gone(*_, **__):
        raise OSError("404 Client Error\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gone)
    name = "stabilityai/stable-diffusion-2-1-base"
    assert main(["convert", "--base", name, "--preprocessor", "a.pth", "-o", str(tmp_path / "o")]) == 1
    said = capsys.readouterr().err
    assert "has left the hub: pass a folder of SD 2.1-base in diffusers' layout" in said
    assert said.count("\n") == 1
    with pytest.raises(ValueError, match="has left the hub"):
        DoSSRPipeline.from_pretrained(name)


@pytest.mark.parametrize("component", ["unet", "vae", "controlnet", "hint_encoder", "scheduler", "preprocessor", "prompts"])
def test_a_folder_that_lacks_a_component(folder, tmp_path, component):
    for place in folder.iterdir():
        if place.name != component:
            (tmp_path / place.name).symlink_to(place)
    with pytest.raises(ValueError, match=f"lacks {component}/") as caught:
        DoSSRPipeline.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_with_a_truncated_file(folder, tmp_path):
    for place in folder.iterdir():
        if place.name != "unet":
            (tmp_path / place.name).symlink_to(place)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text((folder / "unet" / "config.json").read_text())
    weights = "diffusion_pytorch_model.safetensors"
    with pytest.raises(ValueError, match="no weights of the component 'unet'"):
        DoSSRPipeline.from_pretrained(tmp_path)
    (tmp_path / "unet" / weights).write_bytes((folder / "unet" / weights).read_bytes()[:-5000])
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        DoSSRPipeline.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
