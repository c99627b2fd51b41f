"""RRDBNet: the recorded numbers, files as people have them, and what is refused."""

import pickle
import re

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("diffusers")
import golden_sd21
from safetensors.torch import save_file

from backbones.sd21 import rrdb

PREFIX = "preprocess_model."


@pytest.fixture(scope="module")
def recorded():
    return {name: torch.tensor(array) for name, array in golden_sd21.load("modules").items() if name.startswith("rrdb_")}


@pytest.fixture(scope="module")
def weights():
    return {k.removeprefix(PREFIX): torch.tensor(v) for k, v in golden_sd21.state_dict().items() if k.startswith(PREFIX)}


def small(scale=4, **sizes):
    return rrdb.RRDBNet(num_feat=4, num_block=1, num_grow_ch=2, scale=scale, **sizes)


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_parity_with_the_recorded_network(recorded, weights):
    net = rrdb.from_state_dict(weights)
    seen = {}
    net.conv_first.register_forward_hook(lambda module, args, out: seen.update(rrdb_conv_first=out))
    net.body.register_forward_hook(lambda module, args, out: seen.update(rrdb_body=out))
    with torch.no_grad():
        seen["rrdb_out"] = net(recorded["rrdb_in"])
    for name, ours in seen.items():
        assert relative(ours, recorded[name]) < 2e-6, name


def test_gradients_are_those_without_writing_in_place(weights):
    """A LeakyReLU in place changes what it is given, and autograd must not notice."""
    net = rrdb.from_state_dict(weights)
    picture = torch.rand(1, 3, 5, 6, requires_grad=True)
    (ours,) = torch.autograd.grad(net(picture).square().sum(), picture)

    def leaky(x):
        return torch.where(x > 0, x, 0.2 * x)

    def dense(d, x):
        outs = [x]
        for conv in (d.conv1, d.conv2, d.conv3, d.conv4):
            outs.append(leaky(conv(torch.cat(outs, 1))))
        return x + 0.2 * d.conv5(torch.cat(outs, 1))

    f = first = net.conv_first(picture)
    for block in net.body:
        f = f + 0.2 * dense(block.rdb3, dense(block.rdb2, dense(block.rdb1, f)))
    f = first + net.conv_body(f)
    for conv in (net.conv_up1, net.conv_up2):
        f = leaky(conv(f.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    (plain,) = torch.autograd.grad(net.conv_last(leaky(net.conv_hr(f))).square().sum(), picture)
    assert relative(ours, plain) < 1e-5


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 5), (8, 8)])
def test_any_size(scale, size):
    with torch.no_grad():
        assert small(scale)(torch.rand(2, 3, *size)).shape == (2, 3, scale * size[0], scale * size[1])


def test_scale_2_folds_its_pixels_into_the_channels_of_conv_first():
    net, plain = small(2), small(4, in_channels=12)
    plain.load_state_dict(net.state_dict())
    picture = torch.rand(1, 3, 6, 8)
    assert torch.equal(net(picture), plain(F.pixel_unshuffle(picture, 2)))


@pytest.mark.parametrize("sizes", [{}, {"scale": 2}, {"scale": 1}, {"in_channels": 1, "out_channels": 1}, {"in_channels": 4}])
def test_sizes_come_from_the_shapes(sizes):
    net = small(**sizes)
    assert rrdb.config_of({k: v.shape for k, v in net.state_dict().items()}).items() <= dict(net.config).items()


def older(name):
    """The names of ESRGAN."""
    name = re.sub(r"^body\.(\d+)\.rdb(\d)", r"RRDB_trunk.\1.RDB\2", name)
    for old, new in (("trunk_conv", "conv_body"), ("upconv1", "conv_up1"), ("upconv2", "conv_up2"), ("HRconv", "conv_hr")):
        name = name.replace(new, old) if name.startswith(new) else name
    return name


WRAPPINGS = {
    "bare": lambda tensors: tensors,
    "params": lambda tensors: {"params": tensors},
    "params_ema first": lambda tensors: {"params": {k: v + 1 for k, v in tensors.items()}, "params_ema": tensors},
    "lightning": lambda tensors: {"state_dict": tensors, "epoch": 3},
    "parallel": lambda tensors: {"module." + k: v for k, v in tensors.items()},
    "ESRGAN": lambda tensors: {older(k): v for k, v in tensors.items()},
    "BSRGAN, parallel": lambda tensors: {"params": {"module." + older(k): v for k, v in tensors.items()}},
    "halves": lambda tensors: {k: v.half() for k, v in tensors.items()},  # the recorded weights are halves in value
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_files_as_people_have_them(wrapping, weights, recorded, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(WRAPPINGS[wrapping](weights), path)
    net = rrdb.load(path)
    assert {k: v.dtype for k, v in net.state_dict().items()} == dict.fromkeys(weights, torch.float32)
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())
    assert not net.training


def test_older_names_are_what_they_should_be(weights):
    names = {older(k) for k in weights}
    assert {"RRDB_trunk.1.RDB3.conv5.bias", "trunk_conv.weight", "upconv2.bias", "HRconv.weight", "conv_last.bias"} <= names


def test_safetensors_and_diffusers_folders(weights, tmp_path):
    save_file(weights, tmp_path / "net.safetensors")
    net = rrdb.load(str(tmp_path / "net.safetensors"))
    net.save_pretrained(tmp_path / "folder")
    again = rrdb.RRDBNet.from_pretrained(tmp_path / "folder")
    for k, v in weights.items():
        assert torch.equal(net.state_dict()[k], v)
        assert torch.equal(again.state_dict()[k], v)


def test_the_network_does_not_share_memory_with_what_it_was_made_of(weights):
    net = rrdb.from_state_dict(weights)
    assert net.conv_first.bias.data_ptr() != weights["conv_first.bias"].data_ptr()


class Code:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_broken_files(weights, tmp_path):
    good, tensors = tmp_path / "good.pth", tmp_path / "good.safetensors"
    torch.save(weights, good)
    save_file(weights, tensors)
    contents = {
        "cut.pth": good.read_bytes()[:5000],
        "cut_late.pth": good.read_bytes()[:-100],
        "cut.safetensors": tensors.read_bytes()[:5000],
        "code.pth": pickle.dumps({"conv_first.weight": Code()}),
        "text.pth": b"<html>not found</html>",
        "text.safetensors": b"<html>not found</html>",
        "empty.pth": b"",
        "empty.safetensors": b"",
        "zip.pth": b"PK\x03\x04" + bytes(100),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        what = "cut off|empty file|HTML page|zip archive that is cut off|a pickle of Python objects"
        with pytest.raises(ValueError, match=rf"{name} is .*({what})"):
            rrdb.load(tmp_path / name)
    torch.save({"conv_first.weight": Code()}, tmp_path / "zipped_code.pth")
    with pytest.raises(ValueError, match=r"zipped_code\.pth holds more than tensors"):
        rrdb.load(tmp_path / "zipped_code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds a list; tensors by name are needed$"):
        rrdb.load(tmp_path / "list.pth")
    with pytest.raises(ValueError, match="no such file"):
        rrdb.load(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="no such file"):
        rrdb.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_first.weight": None}, r"conv_first\.weight: missing"),
        ({"body.0.rdb2.conv3.bias": None}, r"body\.0\.rdb2\.conv3\.bias: missing"),
        ({"body.1.rdb1.conv1.weight": None}, r"body\.1\.rdb1\.conv1\.weight: missing"),
        ({"body.999999999.rdb1.conv1.bias": torch.zeros(8)}, r"body\.2\.rdb1\.conv1\.weight: missing"),
        ({"conv_up3.weight": torch.zeros(1)}, r"conv_up3\.weight: unexpected"),
        ({"conv_hr.bias": torch.zeros(3)}, r"conv_hr\.bias: shape \(3,\); \(16,\) is needed"),
        ({"conv_first.weight": torch.zeros(16, 3, 5, 5)}, r"conv_first\.weight: shape \(16, 3, 5, 5\)"),
        ({"conv_first.weight": torch.zeros(16, 0, 3, 3)}, r"conv_first\.weight: shape \(16, 0, 3, 3\)"),
        ({"conv_hr.bias": torch.zeros(16, dtype=torch.int64)}, r"conv_hr\.bias: torch\.int64; a tensor of floats"),
        ({"epoch": 3}, r"epoch: int; a tensor of floats"),
    ],
)
def test_tensors_that_are_refused_are_named(change, message, weights, tmp_path):
    tensors = {k: v for k, v in (weights | change).items() if v is not None}
    with pytest.raises(ValueError, match="^" + message) as error:
        rrdb.from_state_dict(tensors)
    assert "\n" not in str(error.value)
    torch.save(tensors, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"net\.pth: " + (message if "epoch" not in change else "'epoch' is a int")):
        rrdb.load(tmp_path / "net.pth")


@pytest.mark.parametrize(("sizes", "message"), [({"scale": 3}, "scale: 3; 1, 2 or 4"), ({"num_block": 0}, "num_block: 0")])
def test_sizes_that_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        rrdb.RRDBNet(**sizes)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)])
def test_pictures_that_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"picture: shape {shape}; (batch, 3, height, width)")):
        small()(torch.rand(shape))
