"""Training of ResShift's U-Net, on small random networks and on the recorded ones."""

import pytest
from test_training import last, losses, same

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

import resshift_networks

import backbones
from backbones.cli import main
from backbones.resshift import ResShiftPipeline
from backbones.training import backbone, config, loop
from backbones.training.state import every
from dosde.check import Refused


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resshift") / "tiny"
    resshift_networks.tiny().save_pretrained(folder)
    return folder


def content(weights, out, **changes):
    made = {
        "task": "resshift",
        "out": str(out),
        "steps": 12,
        "batch": 2,
        "log_every": 1,
        "data": {"crop": 32, "length": 4},
        "resshift": {"weights": str(weights)},
        "objective": {"times": "table", "table": 4, "t_max": 1.0},
        "optimizer": {"lr": 2e-3},
        "ema": {"decay": 0.0},
        "validation": {"every": 12, "count": 1, "crop": 32, "steps": [4], "pictures": "procedural"},
    }
    for name, value in changes.items():
        made[name] = {**made.get(name, {}), **value} if isinstance(value, dict) else value
    return made


def test_a_run_learns_and_its_folder_upscales(weights, tmp_path):
    result = loop.train(config.parse(content(weights, tmp_path / "run")), progress=False)
    assert result == tmp_path / "run" / "pipeline"
    found = list(losses(tmp_path / "run").values())
    assert sum(found[-4:]) < 0.7 * sum(found[:4])
    before, after = (ResShiftPipeline.from_pretrained(folder) for folder in (weights, result))
    assert same(before.vqvae.state_dict(), after.vqvae.state_dict())
    assert not same(before.unet.state_dict(), after.unet.state_dict())
    assert main(["convert", str(result), "-o", str(tmp_path / "released")]) == 0


def test_a_run_goes_on_where_it_stopped(weights, tmp_path):
    whole = content(weights, tmp_path / "whole", steps=4, validation={"every": 0})
    half = {**whole, "out": str(tmp_path / "half"), "steps": 2}
    loop.train(config.parse(whole), progress=False)
    loop.train(config.parse(half), progress=False)
    loop.train(config.parse({**half, "steps": 4}), start="resume", progress=False)
    assert same(last(tmp_path / "whole"), last(tmp_path / "half"))
    for place in ("pipeline", "."):
        reads_itself = {**half, "steps": 5, "resshift": {"weights": str(tmp_path / "half" / place)}}
        with pytest.raises(Refused, match=r"^resshift\.weights: "):
            loop.train(config.parse(reads_itself), start="resume", progress=False)
    path = every(tmp_path / "half")[-1][1]
    with pytest.raises(Refused, match=r"is a checkpoint of the U-Net of the backbone resshift; "):
        backbone.chosen(path, None)
    with pytest.raises(Refused, match=r"holds weights of the backbone resshift, .* \(--backbone resshift\) is needed"):
        backbones.load("embedded", weights=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resshift": {"weights": ""}}, "resshift.weights: ''; a folder written by"),
        ({"resshift": {"weights": "nowhere"}}, "resshift.weights: nowhere"),
        ({"data": {"crop": 48}}, "data.crop: 48; a multiple of 32"),
        ({"data": {"scale": 2}}, "data.scale: 2; 4, by which the networks enlarge"),
        ({"objective": {"predicts": "eps"}}, "objective.predicts: 'eps'; 'x0'"),
        ({"sd21": {"weights": "folder"}}, "sd21: not of the task resshift"),
    ],
)
def test_wrong_configs(weights, tmp_path, changes, message):
    with pytest.raises(Refused) as refused:
        loop.train(config.parse(content(weights, tmp_path / "run", **changes)), progress=False)
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()
