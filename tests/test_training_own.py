"""Networks, degradations and backbones of a user's, and files that `dosde train` wrote: run by `dosde upscale`, without a line
in the package."""

import os
import re
import shutil
import sys
import textwrap

import numpy as np
import PIL.Image
import pytest
import torch
from instances import seeded
from test_training import ROOT, last, picture, tiny, train, whole, written  # noqa: F401

import backbones
import dosde
from backbones import embedded, named
from backbones.cli import main
from backbones.training import backbone, state
from backbones.weights import part
from dosde.check import Refused

SMALL = {"network": "backbones.embedded:Network", "options": {"width": 8, "blocks": 1, "embedding": 8}}

OWN = """
    import torch
    import dosde

    class Net(torch.nn.Module):
        multiple = 8

        def __init__(self, width):
            super().__init__()
            self.net = torch.nn.Conv2d(6, width, 3, padding=1)
            self.out = torch.nn.Conv2d(width, 3, 3, padding=1)

        def forward(self, x, x_hat0, t):
            assert x.shape[-1] % 8 == x.shape[-2] % 8 == 0 and t.shape == (len(x),)
            return x_hat0 + self.out(torch.relu(self.net(torch.cat([x, x_hat0], 1))))

    def every_fourth(hr, generator):
        return hr[:, ::4, ::4] + 0.02 * torch.rand(3, hr.shape[1] // 4, hr.shape[2] // 4, generator=generator)

    def exported(network, folder):
        x = torch.rand(1, 3, 16, 16)
        torch.save(network.state_dict(), folder / "mine.pt")
        return folder / "mine.pt"

    class Mine:
        least_scale, residual_scale = 1.0, None
        process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))
        method = staticmethod(dosde.method.dos)
        grid = staticmethod(dosde.grid.uniform)

        def __init__(self, weights=None, device="cpu"):
            self.weights = weights

        def encode(self, picture, scale, noise=None):
            return torch.nn.functional.interpolate(picture, scale_factor=scale), None

        def denoiser(self, conditioning):
            return lambda x, x_hat0, t: x_hat0

        def decode(self, x0, conditioning):
            return x0.clamp(0, 1)

    def load(weights, device="cpu"):
        return Mine(weights)

    def wrong():
        return 3

    def failing(**options):
        raise RuntimeError("no\\nluck")

    mine = Mine()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a module of a user's, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(tmp_path)])
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    (tmp_path / "own_network.py").write_text(textwrap.dedent(OWN))
    picture(tmp_path / "small.png", 9, 7)
    yield tmp_path
    sys.modules.pop("own_network", None)


def upscale(*arguments):
    return main(["upscale", "small.png", "-o", "out", "--overwrite", "--steps", "2", *map(str, arguments)])


def said(capsys):
    out = capsys.readouterr()
    return out.err


def test_a_network_of_ones_own_is_trained_resumed_run_and_exported(own, capsys):
    changes = {"model": {"network": "own_network:Net", "options": {"width": 4}}}
    changes["data"] = {"degradation": "own_network:every_fourth", "workers": 1}
    changes["optimizer"] = {"decay": "constant"}
    for steps, arguments in ((4, []), (6, ["--resume"])):
        assert main(["train", "--config", str(written(own / "a.toml", tiny("run", steps=steps, **changes))), *arguments]) == 0
    capsys.readouterr()
    for name in ("weights.safetensors", "checkpoints/00000006.safetensors"):
        assert upscale("--backbone", "own_network:Net", "--weights", f"run/{name}") == 0
        with PIL.Image.open("out/small_x4.png") as image:
            made = np.asarray(image)
        if name == "weights.safetensors":
            first = made
    assert made.shape == (28, 36, 3)
    assert np.array_equal(made, first)
    loaded = backbone.load("run/weights.safetensors")
    with PIL.Image.open("small.png") as image:
        small = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    larger = backbones.upscale(loaded, small, 4, 2, noise=seeded(0))
    assert np.abs(larger[0].permute(1, 2, 0).numpy() * 255 - made).max() <= 0.51
    # By hand: the averaged weights, the process of the config, x_hat0 continued to sides that the network takes.
    network = sys.modules["own_network"].Net(4)
    network.load_state_dict(part(last(own / "run"), "ema."))
    x_hat0 = embedded.source(small, (28, 36))
    x_hat0 = torch.cat([x_hat0, x_hat0.flip(2)[..., :4, :]], 2)
    x_hat0 = torch.cat([x_hat0, x_hat0.flip(3)[..., :4]], 3)
    model = dosde.Denoiser(lambda x, x_hat0, t: network(x, x_hat0, t.float()[None]), loaded.process, "x0")
    with torch.no_grad():
        x0 = dosde.solve(model, x_hat0, 2, noise=seeded(0))[..., :28, :36]
    assert torch.allclose(larger, ((x0 + 1) / 2).clamp(0, 1), atol=1e-6)
    changes["model"]["save"] = "own_network:exported"
    assert main(["train", "--config", str(written(own / "a.toml", tiny("other", steps=4, **changes)))]) == 0
    assert (own / "other" / "mine.pt").is_file()


def test_other_scales_and_grey_pictures(own):
    train("run", model={"network": "own_network:Net", "options": {"width": 4}}, steps=4)
    loaded = backbone.load("run/weights.safetensors", dtype="bfloat16")
    assert next(loaded.network.parameters()).dtype == torch.bfloat16
    made = backbones.upscale(loaded, torch.rand(2, 1, 5, 7), 2.5, 2)
    assert made.shape == (2, 1, 12, 18)
    assert 0 <= float(made.min()) <= float(made.max()) <= 1


@pytest.mark.parametrize("name", ["mine", "Mine", "load"])
def test_a_backbone_of_ones_own_is_an_object_a_class_or_a_function(own, name):
    weights = ["--weights", "anything.pt"] if name == "load" else []
    assert upscale("--backbone", f"own_network:{name}", "--scale", "3", *weights) == 0
    with PIL.Image.open("out/small_x3.png") as made, PIL.Image.open("small.png") as before:
        assert np.array_equal(np.asarray(made), np.asarray(before).repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("own_network:wrong", [], "own_network:wrong returned a int without process, encode"),
        ("own_network:failing", [], "own_network:failing: RuntimeError: no luck (own_network.py, line "),
        ("own_network:mine", ["--weights", "x"], "--weights: 'x'; own_network:mine has no keyword 'weights'"),
        ("own_network:load", ["--tile", "64", "--weights", "x"], "--tile: 64; own_network:load has no keyword 'tile'"),
        ("own_network:load", [], "own_network:load: TypeError: load() missing 1 required positional argument: 'weights'"),
        ("own_network:Net", [], "--weights: none; a file that `dosde train` wrote is needed for a network"),
        ("own_network:Nett", [], "the module own_network has no Nett (did you mean Net?)"),
        ("own_networks:Net", [], "there is no module own_networks, neither in "),
        ("own_network.py:Net", [], '"package.module:name" of something importable is needed, without .py'),
        ("own_network:torch.float32", [], "own_network:torch.float32 is a dtype"),
    ],
)
def test_a_backbone_of_ones_own_that_does_not_serve_is_one_line(own, capsys, name, arguments, expected):
    with pytest.raises(SystemExit) as stop:
        upscale("--backbone", name, *arguments)
    assert stop.value.code == 2
    last_line = said(capsys).splitlines()[-1]
    assert expected in last_line, last_line
    assert last_line.count("\n") == 0


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "import no_such_package",
            "the module broken fails: ModuleNotFoundError: No module named 'no_such_package' (broken.py, line 1)",
        ),
        ("x = 1\n1 / 0", "the module broken fails: ZeroDivisionError: division by zero (broken.py, line 2)"),
        ("def f(:", "the module broken fails: SyntaxError: "),
        ("raise SystemExit(3)", "the module broken fails: SystemExit: 3 (broken.py, line 1)"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['-x'])", "the module broken fails: SystemExit: 2"),
        ("raise ValueError('a\\nb')", "the module broken fails: ValueError: a b (broken.py, line 1)"),
        ("from dosde.check import Refused\nraise Refused('a', 1, 'b')", "the module broken fails: Refused: a: 1; b"),
    ],
)
def test_errors_of_a_module_of_ones_own_are_one_line_with_its_name(tmp_path, monkeypatch, code, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(Refused, match=r"^model\.network: 'broken:Net'; [^\n]*$") as error:
        named.found("model.network", "broken:Net")
    assert expected in str(error.value)


def test_the_folder_where_the_command_runs_comes_first(tmp_path, monkeypatch):
    """As for `python -m`: a module of a user's may be called as an installed one."""
    for place, code in (("installed", "Net = 4"), ("here", "Net = 5")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "own_twice.py").write_text(code)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "installed"), *sys.path])
    assert named.found("model.network", "own_twice:Net") == 5
    sys.modules.pop("own_twice")


def test_the_documented_network_is_trained_resumed_run_and_exported(own, capsys, monkeypatch):
    """The blocks of docs/training.md, as files and as commands."""
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    document = (ROOT / "docs" / "training.md").read_text().split("## A network of your own\n")[1].split("\n## The config")[0]
    blocks = dict(reversed(re.findall(r"^```(\w+)\n(.*?)^```", document, re.DOTALL | re.MULTILINE)))
    (own / "mine.py").write_text(blocks["python"])
    (own / "mine.toml").write_text(blocks["toml"])
    (own / "small.png").rename(own / "photo.png")
    for line in blocks["sh"].splitlines():
        assert main(line.split()[1:]) == 0, capsys.readouterr().err
    made = [np.asarray(PIL.Image.open(own / place / "photo_x4.png")) for place in ("larger", "other")]
    assert made[0].shape == (28, 36, 3)
    assert np.array_equal(*made)
    (own / "mine.toml").write_text(blocks["toml"].replace("[model]", '[model]\nsave = "mine:export"'))
    assert main(["train", "--config", "mine.toml", "--overwrite"]) == 0
    network = torch.export.load("runs/mine/mine.pt2").module()
    x = torch.rand(1, 3, 128, 128)
    assert network(x, x, torch.rand(1)).shape == x.shape
    sys.modules.pop("mine", None)


# -- Files that `dosde train` wrote -------------------------------------------------------------------------------------------


def test_results_and_checkpoints_of_the_backbone_embedded_are_known(own, capsys):
    train("run", model=SMALL, steps=4, data={"crop": 32})
    made = []
    for name in ("weights.safetensors", "checkpoints/00000004.safetensors"):
        for asked in ([], ["--backbone", "embedded"]):
            assert upscale("--weights", f"run/{name}", *asked) == 0
            with PIL.Image.open("out/small_x4.png") as image:
                made.append(np.asarray(image).astype(int))
    assert all(np.abs(picture - made[0]).max() <= 1 for picture in made)  # the result is rounded to float16
    averages = part(last(own / "run"), "ema.")
    network = embedded.load("run/checkpoints/00000004.safetensors").network
    assert all(torch.equal(tensor, averages[name]) for name, tensor in network.state_dict().items())
    os.remove("run/run.jsonl")  # a run of an earlier version
    for text in ("run", "run/"):
        with pytest.raises(SystemExit):
            upscale("--weights", text)
        expected = "--weights: run is the folder of a run of `dosde train`; run/weights.safetensors is its result"
        assert said(capsys).endswith(f"{expected}\n")
    os.remove("run/weights.safetensors")
    with pytest.raises(SystemExit):
        upscale("--weights", "run")
    assert "run/checkpoints/00000004.safetensors is its last checkpoint" in said(capsys)


@pytest.mark.parametrize("process", [{"kind": "resshift"}, {"kind": "flow", "kappa": 1.0}, {"shift": "none"}, {"t1": 0.25}])
def test_a_checkpoint_has_the_process_of_its_training(tmp_path, process):
    train(tmp_path / "run", model=SMALL, steps=4, data={"crop": 32}, process=process, objective={"t_min": 0.05})
    result, checkpoint = (
        embedded.load(path) for path in (tmp_path / "run" / "weights.safetensors", state.every(tmp_path / "run")[-1][1])
    )
    assert result.process == checkpoint.process
    assert result.network.config == checkpoint.network.config


def test_files_of_other_networks_say_what_they_are(whole, own, capsys):  # noqa: F811
    shutil.copy(whole / "weights.safetensors", "w.safetensors")
    shutil.copy(state.every(whole)[-1][1], "00000012.safetensors")
    train("run", model=SMALL, steps=4, data={"crop": 32})
    network = "training_networks:Network"
    for arguments, expected in (
        (["w.safetensors"], f"holds weights of the network {network}, which `dosde train` trained; --backbone {network} is"),
        (["00000012.safetensors"], f"holds weights of the network {network}"),
        (["w.safetensors", "--backbone", "embedded"], f"--backbone {network} is needed"),
        (["w.safetensors", "--backbone", "sd21"], f"--backbone {network} is needed"),
        (
            ["w.safetensors", "--backbone", "own_network:Net"],
            "TypeError: Net.__init__() missing 1 required positional argument",
        ),
        (["run/weights.safetensors", "--backbone", "sd21"], "holds a network of the backbone embedded; embedded is needed"),
        (["run/weights.safetensors", "--backbone", "own_network:Net"], "holds a network of the backbone embedded"),
    ):
        with pytest.raises(SystemExit):
            upscale("--weights", *arguments)
        line = said(capsys).splitlines()[-1]
        assert expected in line, line
    assert upscale("--weights", "w.safetensors", "--backbone", network) == 0
    with pytest.raises(Refused, match=rf"^checkpoint: w\.safetensors holds weights of the network {network}, which"):
        backbones.load("embedded", weights="w.safetensors")
