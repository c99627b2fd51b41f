"""The backbone `gan`: an RRDBNet alone, in every layout of its names, in tiles, at any scale, from the command line."""

import json

import pytest
import torch
import torch.nn.functional as F
from instances import seeded
from safetensors.torch import save_file

pytest.importorskip("diffusers")

import backbones
from backbones import cli
from backbones.pictures import io as images
from backbones.pictures.resize import bicubic
from backbones.sd21 import rrdb
from dosde.check import Refused


def network(scale=4, **sizes):
    """A small one whose pictures lie about in [0, 1]."""
    net = rrdb.RRDBNet(num_feat=8, num_block=2, num_grow_ch=4, scale=scale, **sizes)
    generator = seeded(scale)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (1 / max(1, tensor[0].numel())) ** 0.5)
        net.conv_last.bias.fill_(0.5)
    return net.eval()


def first_names(net):
    """The tensors by the names of the first ESRGAN: layers of a Sequential, activations and resizes counted."""
    ups = len(net.ups)
    trunk = len(net.body)
    last = {f"conv_up{k + 1}": 3 + 3 * k for k in range(ups)} | {"conv_hr": 2 + 3 * ups, "conv_last": 4 + 3 * ups}
    names = {"conv_first": "model.0", "conv_body": f"model.1.sub.{trunk}"} | {k: f"model.{n}" for k, n in last.items()}
    made = {}
    for name, tensor in net.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module.startswith("body."):
            _, block, dense, conv = module.split(".")
            module = f"model.1.sub.{block}.{dense.upper()}.{conv}.0"
        made[f"{names.get(module, module)}.{kind}"] = tensor
    return made


def bsrgan_names(net):
    """The tensors by the names of BSRGAN."""
    made = {}
    for name, tensor in net.state_dict().items():
        for new, old in {"body.": "RRDB_trunk.", "conv_body": "trunk_conv", "conv_up": "upconv", "conv_hr": "HRconv"}.items():
            name = old + name.removeprefix(new) if name.startswith(new) else name
        made[name.replace(".rdb", ".RDB")] = tensor
    return made


LAYOUTS = {"Real-ESRGAN": lambda net: dict(net.state_dict()), "BSRGAN": bsrgan_names, "ESRGAN": first_names}


@pytest.fixture
def picture():
    return F.interpolate(torch.rand(1, 3, 5, 6, generator=seeded(1)), (19, 25), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("scale", "sizes"), [(4, {}), (2, {}), (1, {}), (2, {"num_up": 1}), (1, {"num_up": 0}), (8, {"num_up": 3})]
)
def test_every_layout_gives_what_its_network_gives(layout, scale, sizes, picture, tmp_path):
    """x2 and x1 by folded pixels, as Real-ESRGAN's, and by fewer doublings, as BSRGAN's and ESRGAN's; x8 by more."""
    net = network(scale, **sizes)
    save_file(LAYOUTS[layout](net), tmp_path / "net.safetensors")
    ours = backbones.upscale(backbones.load("gan", weights=tmp_path / "net.safetensors"), picture, scale, 1)
    with torch.no_grad():
        expected = net(images.mirrored(picture, net.fold))[..., : 19 * scale, : 25 * scale].clamp(0, 1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_the_seed_the_method_and_the_batch_change_nothing(picture):
    import dosde
    from backbones.gan.backbone import GAN

    gan = GAN(network())
    plain = backbones.upscale(gan, picture, 4, 1)
    for method in (dosde.method.dos, dosde.method.ode, dosde.method.adams):
        torch.testing.assert_close(backbones.upscale(gan, picture, 4, 1, method=method, noise=seeded(5)), plain)
    both = backbones.upscale(gan, torch.cat([picture, picture.flip(-1)]), 4, 1)
    torch.testing.assert_close(both[:1], plain)
    with pytest.raises(Refused, match=r"^steps: 5; 1 is needed"):
        backbones.upscale(gan, picture)


@pytest.mark.parametrize("scale", [0.5, 1.5, 3, 4, 5.2])
@pytest.mark.parametrize("grey", [False, True])
def test_any_scale_and_grey(scale, grey, picture):
    from backbones.gan.backbone import GAN

    net = network(2)
    given = picture[:, :1] if grey else picture
    ours = backbones.upscale(GAN(net), given, scale, 1)
    assert ours.shape == (1, 1 if grey else 3, round(19 * scale), round(25 * scale))
    with torch.no_grad():
        made = net(images.mirrored(given.expand(-1, 3, -1, -1), 2))[..., :38, :50].clamp(0, 1)
    made = images.luma(made) if grey else made
    torch.testing.assert_close(ours, bicubic(made, ours.shape[-2:]).clamp(0, 1), rtol=0, atol=1e-6)


def test_tiles_leave_no_seam():
    """A network that sees less than a quarter of the overlap gives the same in tiles, also where pixels are folded."""
    from backbones.gan.backbone import GAN

    for scale in (4, 2):
        net = network(scale)
        net.body = torch.nn.Sequential()
        large = torch.rand(1, 3, 90, 131, generator=seeded(2))
        whole = backbones.upscale(GAN(net, None), large, scale, 1)
        torch.testing.assert_close(backbones.upscale(GAN(net, 64 * scale), large, scale, 1), whole, rtol=0, atol=1e-5)
    with pytest.raises(Refused, match=r"^tile: 255; 256 or more is needed"):
        GAN(network(), 255)


def test_the_command_line_knows_the_file_by_what_it_holds(picture, tmp_path, capsys):
    images.write(tmp_path / "a.png", images.Picture(picture, None, 8, None))
    for layout, renamed in LAYOUTS.items():
        torch.save({"params_ema": renamed(network())}, tmp_path / f"{layout}.pth")
        out = tmp_path / f"{layout}.png"
        assert cli.main(["upscale", str(tmp_path / "a.png"), "-o", str(out), "--weights", str(tmp_path / f"{layout}.pth")]) == 0
    with torch.no_grad():
        expected = network()(images.read(tmp_path / "a.png").colour).clamp(0, 1)
    for layout in LAYOUTS:
        torch.testing.assert_close(images.read(tmp_path / f"{layout}.png").colour, expected, rtol=0, atol=0.51 / 255)
    capsys.readouterr()
    asked = ["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--weights", str(tmp_path / "ESRGAN.pth")]
    for more, message in {
        ("--steps", "5"): "--steps: 5; the backbone gan calls its network once, without a solver; leave it out",
        ("--method", "dos"): "--method: dos; the backbone gan calls its network once, without a solver; leave it out",
        ("--order", "2"): "--order: 2; 1 to 1 is needed with --steps 1",
        ("--tile", "100"): "--tile: 100; 256 or more is needed",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            cli.main([*asked, *more])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_files_that_hold_another_network_are_refused(tmp_path):
    tensors = dict(network().state_dict())
    for change, message in (
        ({"conv_up2.weight": None}, r"conv_up2\.weight: missing"),
        ({"attention.weight": torch.zeros(1)}, r"attention\.weight: unexpected"),
        (
            {**dict.fromkeys(tensors), "conv_first.weight": torch.zeros(1), "layers.0.residual_group.a": torch.zeros(1)},
            "a SwinIR",
        ),
    ):
        save_file({k: v for k, v in (tensors | change).items() if v is not None}, tmp_path / "a.safetensors")
        with pytest.raises(Refused, match=message) as caught:
            backbones.load("gan", weights=tmp_path / "a.safetensors")
        assert caught.value.argument == "checkpoint"
        assert "\n" not in str(caught.value)
    save_file(dict(network(num_up=2, in_channels=1, out_channels=1).state_dict()), tmp_path / "grey.safetensors")
    with pytest.raises(Refused, match="3 channels in and out are needed"):
        backbones.load("gan", weights=tmp_path / "grey.safetensors")


def test_evaluate_says_what_was_run(picture, tmp_path):
    save_file(dict(network().state_dict()), tmp_path / "net.safetensors")
    (tmp_path / "hr").mkdir()
    large = F.interpolate(picture, (64, 64), mode="bicubic").clamp(0, 1)
    images.write(tmp_path / "hr" / "a.png", images.Picture(large, None, 8, None))
    out = tmp_path / "a.json"
    asked = ["--hr", tmp_path / "hr", "-o", out, "--weights", tmp_path / "net.safetensors"]
    assert cli.main(["evaluate", *map(str, asked)]) == 0
    made = json.loads(out.read_text())
    assert (made["method"]["backbone"], made["protocol"]["nfe"]) == ("gan", 1)
