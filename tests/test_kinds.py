"""Files that are no weights, or those of another network, say what they are, in one line; and nothing in them is executed."""

import collections
import gzip
import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile

import golden_sd21
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save, save_file

from backbones import embedded, weights
from backbones.kinds import kind_of, kind_of_tensors
from dosde.check import Refused

TENSORS = {"a.weight": torch.ones(3, 4), "a.bias": torch.ones(3)}


def torch_file(content=TENSORS, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())
    return buffer.getvalue()


def picture(form):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(buffer, form)
    return buffer.getvalue()


def saved(write, *arrays):
    buffer = io.BytesIO()
    write(buffer, *arrays)
    return buffer.getvalue()


def script():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), buffer)
        return buffer.getvalue()


class Callback:
    """As trainers have them in their checkpoints."""


FILES = {
    "empty": (b"", "an empty file; download it again"),
    "zeros": (bytes(5000), "a file of zeros, .*; download it again"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "a Git LFS pointer, .*; `git lfs pull`",
    ),
    "html": (b"\n<!DOCTYPE html>\n<html><head><title>404</title>", "an HTML page, .*; download it again"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document, .*; download it again"),
    "json": (b'{"error": "Repository not found"}', "a JSON file; "),
    "index": (
        b'{"metadata": {}, "weight_map": {"a": "b-00001-of-00002.safetensors"}}',
        "the index of weights in several files; ",
    ),
    "config": (b'{"_class_name": "AutoencoderKL"}', "a configuration, without weights; "),
    "text": ("Gewichte für später".encode(), "a text file; "),
    "yaml": (b"model:\n  target: cldm.cldm.ControlLDM\n", "a text file; "),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(50), "a GGUF file, .*; "),
    "ggml": (b"lmgg" + bytes(50), "a GGML file; "),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\xd4\x01\n\x0f\n\x05input", "an ONNX file; "),
    "saved_model.pb": (b"\x08\x01\x12\xf3\x12\n\x8a\x04\n\x0e\n\x03Add", r"a model of TensorFlow \(saved_model.pb\); "),
    "graph.pb": (b"\x0a\x2a\x0a\x05input\x12\x0bPlaceholder\x2a\x0b\x0a\x05dtype\x12\x02\x30\x01", "a graph of TensorFlow"),
    "tf index": (bytes([0, 0, 9]) + b"x" * 60 + bytes.fromhex("57fb808b247547db"), "the index of a checkpoint of TensorFlow"),
    "h5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file, as Keras writes; "),
    "keras": (zipped(**{"metadata.json": "{}", "config.json": "{}", "model.weights.h5": "x"}), "a model of Keras; "),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(20), "a model of TensorFlow Lite; "),
    "flax": (b"\x81\xa6params\x82\xa4conv\x81\xa6kernel\xc7\x00", r"a file of Flax \(.msgpack\); "),
    "script": (script(), "a TorchScript archive, a program; the state_dict of its module is needed"),
    "exported": (zipped(**{"archive/archive_format": "pt2", "archive/models/model.json": "{}"}), "a program that torch.export"),
    "gzip": (gzip.compress(b"weights"), "a gzip archive; unpack it first"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "a 7z archive; unpack it first"),
    "zip": (
        zipped(**{"a/model.pth": "x", "a/readme.txt": "y"}),
        r"a zip archive \(a/model.pth, a/readme.txt\); unpack it first",
    ),
    "tar": (tarred(), "a tar archive; unpack it first"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "a zstd archive; unpack it first"),
    "npy": (saved(np.save, np.ones(3)), r"a numpy array \(.npy\); "),
    "npz": (saved(np.savez, np.ones(3)), r"an archive of numpy arrays \(.npz\); "),
    "png": (picture("PNG"), "a PNG picture; "),
    "jpeg": (picture("JPEG"), "a JPEG picture; "),
    "webp": (picture("WEBP"), "a WebP picture; "),
    "tiff": (picture("TIFF"), "a TIFF picture; "),
    "bmp": (picture("BMP"), "a BMP picture; "),
    "pdf": (b"%PDF-1.7\n", "a PDF document; "),
    "pickle": (pickle.dumps({"a": np.ones(2)}), r"a pickle of Python objects \(numpy.*\), which reading would execute; "),
    "cut": (torch_file()[:-100], "a PyTorch file that is cut off; download it again"),
    "cut early": (torch_file()[:100], "a PyTorch file that is cut off; download it again"),
    "cut tensors": (save(TENSORS)[:-5], r"a .safetensors file that is cut off, \d+ of \d+ bytes; download it again"),
    "cut header": (save(TENSORS)[:40], "a .safetensors file that is cut off in its header, at 40 bytes; "),
    "broken header": (b"\x0b\0\0\0\0\0\0\0{" + b"'a': 3}   " + bytes(9), "a .safetensors file with a broken header; "),
    "cut, of before 1.6": (torch_file(_use_new_zipfile_serialization=False)[:-20], "no whole file of tensors"),
    "bytes": (bytes(range(200, 256)) * 9, "a file of no known kind; "),
    "parquet": (b"PAR1" + bytes(range(99)), "a file of no known kind; "),
    "core ml": (b"\x08\x05\x12\x9a\x01\n\x1d\n\x05image", "a model of Core ML; "),
    "too long": (save(TENSORS) + b"more", r"a .safetensors file that is too long, \d+ of \d+ bytes; download it again"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_holds_no_weights_says_what_it_is(name, suffix, tmp_path):
    content, what = FILES[name]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    for read in (weights.read, embedded.load):
        with pytest.raises(Refused, match=rf"^checkpoint: .*model\{suffix} is {what}") as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300
    with pytest.raises(Refused, match=rf"model\{suffix} (is {what.partition('; ')[0]}|cannot be read)"):
        weights.read_safetensors(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".bin", ".weights", ""])
def test_weights_are_read_whatever_their_suffix(suffix, legacy, tmp_path):
    path = tmp_path / f"model{suffix}"
    for content in (torch_file(_use_new_zipfile_serialization=not legacy), save(TENSORS)):
        path.write_bytes(content)
        assert kind_of(path) is None
        read = weights.read(path)
        assert read.keys() == TENSORS.keys()
        assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pytorch-lightning_version": "2.0", "state_dict": TENSORS, "callbacks": {Callback: 1}},
         r"is a checkpoint of PyTorch Lightning that holds more than tensors \(test_kinds.Callback\), .*; refused"),
        (torch.nn.Linear(2, 2), r"is a whole module that holds more than tensors \(torch.nn.modules.linear.Linear\)"),
        ({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1}]}, "is the state of an optimizer; "),
        ({"epoch": 3, "model": TENSORS}, "'epoch' is a int, and tensors are inside 'model': save that part alone; "),
        (collections.OrderedDict(), "holds a OrderedDict; tensors by name are needed"),
        (torch.ones(2), "holds a float32 tensor of shape .*; tensors by name are needed"),
        ([1], "holds a list; tensors by name are needed"),
    ],
)  # fmt: skip
def test_pickles_of_other_things(content, message, tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(torch_file(content))
    with pytest.raises(Refused, match=f"^checkpoint: .*model.ckpt:? {message}") as caught:
        weights.read(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(torch_file({"pytorch-lightning_version": "2.0", "state_dict": TENSORS, "optimizer_states": [{"lr": 1}]}))
    assert weights.read(path).keys() == TENSORS.keys()


def test_folders_and_what_is_no_file(tmp_path):
    for name, content, what in (
        ("empty", {}, "an empty folder"),
        (
            "pipeline",
            {"model_index.json": '{"_class_name": "StableDiffusionXLPipeline"}'},
            "a folder of StableDiffusionXLPipeline",
        ),
        (
            "own",
            {"model_index.json": '{"_class_name": "DoSSRPipeline"}'},
            "a folder of DoSSRPipeline; a file .*from_pretrained",
        ),
        ("unet", {"config.json": '{"_class_name": "UNet2DConditionModel"}'}, "a folder of UNet2DConditionModel alone"),
        ("clip", {"config.json": '{"architectures": ["CLIPTextModel"]}'}, "a folder of CLIPTextModel alone"),
        ("run", {"checkpoints": None, "pipeline": None}, "the folder of a run of `dosde train`; .*run/pipeline is its result"),
        ("distributed", {".metadata": "", "__0_0.distcp": ""}, "a distributed checkpoint of PyTorch"),
        ("other", {"a.txt": "a"}, "a folder"),
    ):
        (tmp_path / name).mkdir()
        for inside, text in content.items():
            (tmp_path / name / inside).mkdir() if text is None else (tmp_path / name / inside).write_text(text)
        with pytest.raises(Refused, match=f"^checkpoint: .*{name} is {what}"):
            weights.read(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match=r"pipe; it is no file that can be read to its end"):
        weights.read(tmp_path / "pipe")
    with pytest.raises(Refused, match=r"^checkpoint: https://a.org/b.ckpt; a file of this machine is needed: download it"):
        weights.read("https://a.org/b.ckpt")


def named(*names, shape=(4, 4)):
    return {name: torch.ones(shape) for name in names}


def released(*prefixes):
    return {name: torch.from_numpy(array) for name, array in golden_sd21.state_dict().items() if name.startswith(prefixes)}


NETWORKS = {
    "a LoRA": named("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"),
    "a LoRA ": named("unet.down_blocks.0.attentions.0.to_q.lora_A.weight"),
    "an IP-adapter": named("image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight"),
    "a textual inversion": named("emb_params"),
    "a textual inversion ": named("<cat>", shape=(1024,)),
    "a ControlNet alone": released("control_model."),
    "a ControlNet alone ": named(
        "conv_in.weight", "controlnet_down_blocks.0.weight", "controlnet_cond_embedding.conv_in.weight"
    ),
    "a ControlNet of another kind": named("input_hint_block.0.weight", "input_blocks.0.0.weight"),
    "a VAE alone": released("first_stage_model."),
    "a VAE alone ": named("encoder.conv_in.weight", "decoder.conv_out.weight", "quant_conv.weight"),
    "a U-Net alone": released("model.diffusion_model."),
    "a U-Net alone ": named("down_blocks.0.resnets.0.time_emb_proj.weight", "conv_in.weight"),
    "a text tower alone": released("cond_stage_model."),
    "a text tower alone ": named("text_model.embeddings.token_embedding.weight"),
    "a checkpoint of Stable Diffusion 2": released("model.", "first_stage_model.", "cond_stage_model."),
    "a checkpoint of Stable Diffusion 1": named(
        "model.diffusion_model.out.2.weight", "first_stage_model.a", "cond_stage_model.transformer.text_model.a"
    ),
    "a checkpoint of Stable Diffusion XL": named("model.diffusion_model.label_emb.0.0.weight", "conditioner.embedders.0.a"),
    "an RRDBNet": {n.removeprefix("preprocess_model."): t for n, t in released("preprocess_model.").items()},
    "a SwinIR": named("conv_first.weight", "layers.0.residual_group.a", shape=(8, 3, 3, 3)),
    "a network of ResShift": named("input_blocks.0.0.weight", "input_blocks.1.1.blocks.0.attn.relative_position_bias_table"),
    "an autoencoder of VQGAN": named("encoder.conv_in.weight", "decoder.conv_out.weight", "quantize.embedding.weight"),
    "the embeddings of prompts": named("embeddings", shape=(2, 77, 8)),
    "the state of an optimizer": named("optimizer.exp_avg.a", "optimizer.step.a"),
}


@pytest.mark.parametrize("what", NETWORKS)
def test_another_network_is_named(what, tmp_path):
    """Where DoSSR is needed, where an RRDBNet is, and where a network of the backbone embedded is."""
    pytest.importorskip("diffusers")
    from backbones.sd21 import DoSSRPipeline, rrdb

    path, what = tmp_path / "model.safetensors", what.strip()
    save_file(NETWORKS[f"{what} " if f"{what} " in NETWORKS else what], path)
    with pytest.raises(Refused, match=f"^checkpoint: {what}.*, with no tensor .*; a checkpoint of DoSSR or DiffBIR") as caught:
        DoSSRPipeline.from_single_file(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(Refused, match=rf"^checkpoint: .*model.safetensors is {what}"):
        embedded.load(path)
    if what != "an RRDBNet":
        with pytest.raises(Refused, match=rf"^.*model.safetensors: {what}.*, .*; .* RRDBNet"):
            rrdb.load(path)


def test_files_of_our_own_are_known(tmp_path):
    pytest.importorskip("diffusers")
    from backbones.sd21 import DoSSRPipeline

    path = tmp_path / "00000005.safetensors"
    save_file(named("model.a", "ema.a", "optimizer.exp_avg.a"), path, {"step": "5", "config": "{}"})
    with pytest.raises(Refused, match=r"^checkpoint: a checkpoint of `dosde train`, whose result .*, with no tensor"):
        DoSSRPipeline.from_single_file(path)
    with pytest.raises(Refused, match="is a checkpoint of `dosde train`"):
        embedded.load(path)
    with pytest.raises(Refused, match=r"^checkpoint: a network of the backbone embedded, with no tensor"):
        DoSSRPipeline.from_single_file(embedded.WEIGHTS)
    save_file(TENSORS, path, {"network": "mine:Net", "options": "{}"})
    with pytest.raises(Refused, match=r"is a network that `dosde train` made \(mine:Net\)"):
        embedded.load(path)
    assert kind_of_tensors({name: array.shape for name, array in golden_sd21.state_dict().items()}) == (
        "a checkpoint of DoSSR or DiffBIR"
    )
    assert kind_of_tensors({"a": (1, 2)}) is None


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]},
         "is of StableDiffusionPipeline, and names no vae"),
        ({"_class_name": "DoSSRPipeline"}, "names no vae"),
    ],
)  # fmt: skip
def test_folders_of_other_pipelines(index, message, tmp_path):
    pytest.importorskip("diffusers")
    from backbones.sd21 import DoSSRPipeline, convert

    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "pipeline").mkdir()
    with pytest.raises(Refused, match=r"^weights: .*run is the folder of a run of `dosde train`; .*pipeline is its result"):
        DoSSRPipeline.from_pretrained(tmp_path / "run")
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    with pytest.raises(Refused, match=r"^weights: .*a.png is a PNG picture; a folder written by `dosde convert` is needed"):
        DoSSRPipeline.from_pretrained(tmp_path / "a.png")
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(Refused, match=message):
        DoSSRPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(Refused, match=r"--base: .* is a folder of StableDiffusionXLPipeline; a folder of SD 2.1-base"):
        convert.checked_base(tmp_path)
