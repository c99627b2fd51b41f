"""ResShift's released files and diffusers folders: exact both ways, every tensor accounted for, wrong files named."""

import golden_resshift
import golden_sd21
import pytest
import torch
from safetensors.torch import save_file

from backbones.cli import main
from dosde.check import Refused

pytest.importorskip("diffusers")

from backbones import weights
from backbones.resshift import ResShiftPipeline, convert, folders, names
from backbones.resshift.network import SwinUNet

UNETS = {"x4": 118.6, "x2": 118.6, "inpaint": 118.7, "faceir": 118.9}  # millions of parameters


@pytest.fixture(scope="module")
def files(resshift_folder):
    place = resshift_folder.parent
    return [place / "resshift_realsrx4_s4_v3.pth", place / "autoencoder_vq_f4.pth"]


def same(a, b):
    """Two mappings of tensors, bit for bit."""
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def on_meta(layout):
    """Tensors of a full-size layout."""
    return {
        name: torch.empty(shape, device="meta", dtype=torch.int64 if name.endswith("_index") else torch.float32)
        for name, shape in layout.items()
    }


RELEASES = golden_resshift.layouts()["releases"] | {"resshift_x2_s4.pth": ["x2", "vq_f4", "autoencoder_vq_f4.pth", 4]}


@pytest.mark.parametrize("release", [name for name in RELEASES if "v1" not in name])
def test_full_size_both_ways_on_the_meta_device(release, monkeypatch):
    unet, vq, autoencoder, T = RELEASES[release]
    layouts = {release: golden_resshift.layouts()["unet"][unet], autoencoder: golden_resshift.layouts()["autoencoder"][vq]}
    monkeypatch.setattr(names, "read", lambda path: on_meta(layouts[path.name]))
    made = convert.parts_of_checkpoints([autoencoder, release])
    assert len(made.configs["scheduler"]["trained_etas"]) == T
    assert made.configs["pipeline"] == {"distilled_steps": 1 if "SinSR" in release else None}
    module = convert.empty("unet", made.configs["unet"])
    assert shapes(module.state_dict() | module.released_buffers()) == {n: tuple(s) for n, s in layouts[release].items()}
    assert abs(sum(t.numel() for t in module.state_dict().values()) / 1e6 - UNETS[unet]) < 0.06
    vqvae = convert.empty("vqvae", made.configs["vqvae"])
    assert shapes(vqvae.state_dict()) == shapes(made.tensors["vqvae"])
    back = convert.released_vq(made.tensors["vqvae"])
    assert shapes(back) == {name: tuple(shape) for name, shape in layouts[autoencoder].items()}
    scale = 2 ** (len(made.configs["vqvae"]["block_out_channels"]) - 1 - len(made.configs["unet"]["lq_widths"]))
    assert scale == {"x4": 4, "x2": 2}.get(unet, 1)


def test_there_and_back(files, resshift_folder, tmp_path):
    assert main(["convert", str(resshift_folder), "-o", str(tmp_path / "back")]) == 0
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["autoencoder_vq_f4.pth", "resshift_s4.pth"]
    for name, network in (("resshift_s4.pth", "unet"), ("autoencoder_vq_f4.pth", "vq")):
        assert same(weights.read(tmp_path / "back" / name), golden_resshift.state_dict(network))
    again = [str(p) for p in (tmp_path / "back").iterdir()]
    assert main(["convert", *again, "-o", str(tmp_path / "again")]) == 0
    for path in resshift_folder.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(resshift_folder)).read_bytes()


def test_half_types_and_what_training_left(files, tmp_path):
    loss = {"loss.discriminator.main.0.weight": torch.randn(3)}
    save_file(
        {n: t.half() if t.is_floating_point() else t for n, t in golden_resshift.state_dict("unet").items()},
        tmp_path / "resshift_s15.safetensors",
    )
    torch.save(golden_resshift.state_dict("vq") | loss, tmp_path / "autoencoder.ckpt")
    given = [str(tmp_path / name) for name in ("autoencoder.ckpt", "resshift_s15.safetensors")]
    assert main(["convert", *given, "-o", str(tmp_path / "folder")]) == 0
    assert main(["convert", str(tmp_path / "folder"), "-o", str(tmp_path / "back")]) == 0
    assert same(weights.read(tmp_path / "back" / "resshift_s15.pth"), weights.read(given[1]))
    assert same(weights.read(tmp_path / "back" / "autoencoder_vq_f4.pth"), weights.read(given[0]))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes(prefix, tmp_path):
    save_file({prefix + name: t for name, t in golden_resshift.state_dict("vq").items()}, tmp_path / "a.safetensors")
    assert names.read(tmp_path / "a.safetensors").keys() == golden_resshift.state_dict("vq").keys()


SWIN = {"channels": 32, "depth": 3, "heads": 2, "window": 4, "hidden": 48}


@pytest.mark.parametrize(
    "config",
    [
        {"lq_widths": [[8, 24]], "widths": [32, 96, 64], "layers": [1, 3, 2], "swin": [SWIN, None, SWIN], "sample_size": 16},
        {"in_channels": 4, "lq_channels": 5, "widths": [64], "layers": [1], "swin": [SWIN], "sample_size": 20},
        {"widths": [32, 32], "layers": [2, 1], "swin": [SWIN | {"window": 7}, SWIN | {"window": 7}], "sample_size": 14},
        {"widths": [32, 64], "layers": [1, 1], "swin": [SWIN | {"window": 8}, SWIN | {"window": 4}], "sample_size": 8},
        {"widths": [32, 64], "layers": [1, 1], "swin": [None, SWIN | {"depth": 1}], "sample_size": 8},
    ],
)
def test_sizes_are_those_of_the_tensors(config):
    """A configuration -> its network -> released names and shapes -> the configuration."""
    config = {"in_channels": 3, "lq_channels": 3, "lq_widths": [], "time_channels": 16, "time_width": 40} | config
    config["middle_swin"] = (config["swin"][-1] or SWIN) | {"heads": 4, "channels": 64}
    module = SwinUNet(**config)
    assert names.unet_config(shapes(module.state_dict() | module.released_buffers())) == config
    side = module.multiple
    with torch.no_grad():
        lq = torch.zeros(1, config["lq_channels"], module.reduction * side, 2 * module.reduction * side)
        assert module(torch.zeros(1, config["in_channels"], side, 2 * side), 0, lq).shape[-2:] == (side, 2 * side)


def test_an_autoencoder_of_uneven_depth(resshift_folder):
    config = folders.config_of(resshift_folder, "vqvae") | {
        "block_out_channels": [32, 32, 64, 64],
        "layers_per_block": [1, 2, 1, 3],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 6,
        "vq_embed_dim": 5,
    }
    module = convert.filled(
        "vqvae", config, {n: torch.zeros(t.shape) for n, t in convert.empty("vqvae", config).state_dict().items()}
    )
    released = convert.released_vq(dict(module.state_dict()))
    assert released["decoder.up.3.block.3.conv1.weight"].shape == (64, 64, 3, 3)
    found = names.vq_config(shapes(released))
    assert found == {name: config[name] for name in found}
    with torch.no_grad():
        z = module.encode(torch.zeros(1, 3, 16, 24)).latents
        assert z.shape == (1, 5, 2, 3)
        assert module.decode(z).sample.shape == (1, 3, 16, 24)


# -- What no tensor tells -----------------------------------------------------------------------------------------------------


def test_the_yaml_of_the_release(files):
    config = {
        "diffusion": golden_resshift.manifest()["diffusion"]["T15"],
        "model": golden_resshift.manifest()["networks"]["unet"]["config"],
    }
    made = convert.parts_of_checkpoints(files, config)
    assert made.configs["scheduler"] == convert.standard(15)
    sinsr = config | {"model": {"params": {"in_channels": 6}}}
    unet = names.Sizes(shapes(golden_resshift.state_dict("unet")), "")
    assert convert.released_of("model_100000.pth", unet, sinsr).distilled_steps == 1
    for changed, message in (
        (sinsr, "in_channels is 6 in it, as in SinSR's"),
        ({"diffusion": {"steps": 4}}, "kappa is None"),
        (
            {"diffusion": {"params": {**config["diffusion"]["params"], "predict_type": "velocity"}}},
            "predict_type is 'velocity'",
        ),
        ({"diffusion": {"params": {**config["diffusion"]["params"], "schedule_name": "cosine"}}}, "schedule_name is 'cosine'"),
    ):
        with pytest.raises(Refused, match=message):
            convert.parts_of_checkpoints(files, changed)


def test_a_name_that_tells_nothing(files, tmp_path):
    (tmp_path / "unet.pth").write_bytes(files[0].read_bytes())
    with pytest.raises(Refused, match="neither a tensor nor this name tells the steps of the table"):
        convert.parts_of_checkpoints([tmp_path / "unet.pth", files[1]])


# -- Wrong files ---------------------------------------------------------------------------------------------------------------


def changed(name, change, tmp_path):
    """The released file of a network, with changed tensors."""
    tensors = dict(golden_resshift.state_dict(name))
    change(tensors)
    path = tmp_path / {"unet": "resshift_s4.pth", "vq": "autoencoder.pth"}[name]
    torch.save(tensors, path)
    return path


def swin_mask(tensors):
    tensors["input_blocks.1.1.blocks.1.attn_mask"] = tensors["input_blocks.1.1.blocks.1.attn_mask"].flip(0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("unet", lambda t: t.pop("middle_block.2.out_layers.3.bias"), "no tensor middle_block.2.out_layers.3.bias"),
        ("unet", lambda t: t.update(extra=torch.zeros(1)), "unexpected tensor extra"),
        ("unet", lambda t: t.update({"out.0.bias": torch.zeros(5)}), r"out.0.bias has shape \(5,\)"),
        ("unet", lambda t: t.update({"out.0.bias": torch.zeros(32, dtype=int)}), "out.0.bias is int64"),
        ("unet", lambda t: t.pop("output_blocks.3.1.blocks.1.attn_mask"), "no tensor output_blocks.3.1.blocks.1.attn_mask"),
        ("unet", swin_mask, "attn_mask holds other values; the mask that ResShift's networks were trained with"),
        ("unet", lambda t: t.pop("out.2.weight"), "no tensor out.2.weight"),
        ("vq", lambda t: t.pop("quantize.embedding.weight"), "is an autoencoder without codebook"),
        ("vq", lambda t: t.update({"encoder.down.1.attn.0.q.weight": torch.zeros(1)}), "unexpected tensor encoder.down.1.attn"),
        ("vq", lambda t: t.pop("decoder.mid.attn_1.q.bias"), "no tensor decoder.mid.attn_1.q.bias"),
        ("vq", lambda t: t.update({"quantize.embedding.weight": torch.zeros(64, 4)}), "in the U-Net, of 4 in the autoencoder"),
    ],
)
def test_wrong_tensors(files, tmp_path, capsys, name, change, message):
    path = changed(name, change, tmp_path)
    given = [path, files[1]] if name == "unet" else [files[0], path]
    with pytest.raises(Refused, match=message):
        convert.parts_of_checkpoints(given)


def test_wrong_files_say_what_they_are(files, tmp_path, capsys):
    save_file({n: torch.from_numpy(a) for n, a in golden_sd21.state_dict().items()}, tmp_path / "dossr.safetensors")
    save_file({"conv_first.weight": torch.zeros(1), "body.0.rdb1.conv1.weight": torch.zeros(1)}, tmp_path / "rrdb.safetensors")
    for given, message in (
        ([files[0], tmp_path / "dossr.safetensors"], "is a checkpoint of DoSSR or DiffBIR; "),
        ([files[0], tmp_path / "rrdb.safetensors"], "is an RRDBNet"),
        ([files[0]], "no file with a VQ autoencoder"),
        ([files[1]], "no file with a U-Net of ResShift"),
        ([files[0], files[0]], "each is a U-Net of ResShift"),
    ):
        assert main(["convert", *map(str, given), "-o", str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_conversion_that_fails_leaves_nothing(files, resshift_folder, tmp_path, monkeypatch):
    def full(path, *_):
        raise OSError(f"{path} cannot be written (No space left on device)")

    monkeypatch.setattr(weights, "write", full)
    assert main(["convert", *map(str, files), "-o", str(tmp_path / "folder")]) == 1
    assert main(["convert", str(resshift_folder), "-o", str(tmp_path / "back")]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["model.pth", "model.safetensors"])
def test_a_folder_goes_back_to_two_files(resshift_folder, tmp_path, capsys, out):
    assert main(["convert", str(resshift_folder), "-o", str(tmp_path / out)]) == 1
    assert "a folder is needed, since ResShift's release has two files" in capsys.readouterr().err


def test_from_single_file_is_the_folder(files, resshift_folder):
    pipe = ResShiftPipeline.from_single_file(files[0], autoencoder=files[1], dtype=torch.bfloat16)
    assert pipe.unet.dtype == pipe.vqvae.dtype == torch.bfloat16
    assert pipe.scheduler == ResShiftPipeline.from_pretrained(resshift_folder).scheduler
