"""LPIPS and DISTS: their networks by recorded numbers, their properties, their files, `dosde evaluate --metric-weights`.

With DOSDE_METRIC_WEIGHTS, a folder that benchmarks/metric_weights.py wrote, the real weights are tried too.
"""

import io
import json
import os
import pickle
from pathlib import Path

import metric_weights
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from instances import seeded
from packages import Package

from backbones import cli, weights
from backbones.pictures import io as images
from backbones.pictures import metrics, perceptual
from dosde.check import Refused


def filled(module):
    """With weights that keep the size of the features, and positive ones for what compares them."""
    generator = seeded(0)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            drawn = (
                torch.randn(tensor.shape, generator=generator)
                if tensor.ndim > 1
                else torch.rand(tensor.shape, generator=generator)
            )
            tensor.copy_(drawn * (2 / max(1, tensor[0].numel())) ** 0.5 if "weight" in name else drawn * 0.1)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def networks():
    made = {
        "lpips": filled(perceptual.LPIPS("alex")),
        "lpips_vgg": filled(perceptual.LPIPS("vgg")),
        "dists": filled(perceptual.DISTS()),
    }
    made["dists"].features.load_state_dict(made["lpips_vgg"].features.state_dict())  # one file has both
    return made


@pytest.fixture(scope="module")
def folder(networks, tmp_path_factory):
    """Files as the benchmark writes them, of other weights."""
    made = tmp_path_factory.mktemp("metric-weights")
    weights.write(made / "lpips_alex.safetensors", networks["lpips"].state_dict())
    weights.write(made / "lpips_vgg.safetensors", networks["lpips_vgg"].state_dict())
    weights.write(made / "dists.safetensors", {name: getattr(networks["dists"], name) for name in ("alpha", "beta")})
    return made


def pictures(size=(48, 64)):
    """Two that are not alike, and have structure."""
    smooth = F.interpolate(torch.rand(2, 3, 12, 16, generator=seeded(1)), size, mode="bicubic").clamp(0, 1)
    return smooth[:1], (smooth[:1] * 0.7 + 0.3 * smooth[1:]).clamp(0, 1)


RECORDED = {"lpips": 0.01575, "lpips_vgg": 0.0167213, "dists": 0.0685174}


@pytest.mark.parametrize("name", RECORDED)
def test_the_networks_are_those_whose_published_values_were_met(networks, name):
    """Recorded by the code that gives the published values with the real weights."""
    torch.testing.assert_close(networks[name](*pictures()), torch.tensor([RECORDED[name]]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", RECORDED)
def test_equal_pictures_have_no_distance_and_the_order_does_not_count(networks, name):
    network, (one, other) = networks[name], pictures()
    assert abs(float(network(one, one))) < 1e-6
    torch.testing.assert_close(network(one, other), network(other, one), rtol=1e-5, atol=1e-6)
    both = network(torch.cat([one, other]), torch.cat([other, other]))
    torch.testing.assert_close(both, torch.cat([network(one, other), network(other, other)]), rtol=1e-4, atol=1e-6)
    nearer = one + 0.3 * (other - one)
    assert 0 < float(network(nearer, one)) < float(network(other, one))


@pytest.mark.parametrize("name", RECORDED)
def test_gradients_are_finite_where_features_are_zero(networks, name):
    flat = torch.zeros(1, 3, 40, 40, requires_grad=True)
    networks[name](flat, pictures((40, 40))[0]).sum().backward()
    assert flat.grad.isfinite().all()
    assert flat.grad.abs().max() > 0


@pytest.mark.parametrize(("network", "least"), perceptual.LEAST.items())
def test_the_least_size_is_the_least(network, least):
    made = filled(perceptual.LPIPS(network))
    one, other = pictures((least, least))
    assert float(made(one, other)) > 0
    small = one[..., :-1]
    with pytest.raises(Refused, match=rf"^picture: shape \(1, 3, {least}, {least - 1}\); .* of {least} pixels a side or more"):
        made(small, small)


def test_other_shapes_are_refused(networks):
    one, other = pictures()
    for wrong in (one[:, :1], one[0], one[:0]):
        with pytest.raises(Refused, match=r"^picture: shape .*; \(batch, 3, height, width\)"):
            networks["dists"](wrong, other)
    with pytest.raises(Refused, match=r"^picture: shape .*; shape \(1, 3, 48, 64\), as the truth has"):
        networks["dists"](one[..., 1:], other)
    with pytest.raises(Refused, match=r"^network: 'squeeze'; one of alex, vgg is needed"):
        perceptual.LPIPS("squeeze")


# -- Files --------------------------------------------------------------------------------------------------------------------


def test_files_are_read_and_others_are_refused(networks, folder, tmp_path):
    one, other = pictures()
    assert torch.equal(perceptual.lpips(folder)(one, other), networks["lpips"](one, other))
    assert torch.equal(perceptual.lpips(folder, "vgg")(one, other), networks["lpips_vgg"](one, other))
    assert torch.equal(perceptual.dists(folder)(one, other), networks["dists"](one, other))
    with pytest.raises(Refused, match=r"^metric_weights: .* has no lpips_alex.safetensors; .*benchmarks/metric_weights.py"):
        perceptual.lpips(tmp_path)
    weights.write(tmp_path / "lpips_alex.safetensors", networks["lpips_vgg"].state_dict())
    with pytest.raises(Refused, match=r"lpips_alex.safetensors"):
        perceptual.lpips(tmp_path)


def test_dosde_evaluate_takes_the_folder(networks, folder, tmp_path, capsys):
    for i, of in enumerate(("hr", "results")):
        (tmp_path / of).mkdir()
        images.write(tmp_path / of / "a.png", images.Picture(pictures()[i], None, 8, None))
    out = tmp_path / "a.json"
    asked = ["evaluate", "--hr", tmp_path / "hr", "--results", tmp_path / "results", "-o", out, "--metric-weights", folder]
    assert cli.main([*map(str, asked), "--metrics", "psnr,lpips,lpips_vgg,dists"]) == 0
    made = json.loads(out.read_text())
    truth, picture = (images.read(tmp_path / of / "a.png").colour for of in ("hr", "results"))
    for name in networks:
        assert made["mean"][name] == pytest.approx(float(networks[name](picture, truth)), rel=1e-4)
    assert made["lower_better"] == ["lpips", "lpips_vgg", "dists"]
    assert "LPIPS 0.1, AlexNet, on R, G, B with the border" in made["protocol"]["metrics"]["lpips"]
    assert "SHA-256" in made["protocol"]["metrics"]["dists"]
    for metric, message in {
        "psnr": f"--metric-weights: {folder}; it is for the metrics lpips, lpips_vgg, dists",
        "psnr,dists": f"--metric-weights: {tmp_path} has no lpips_vgg.safetensors; a folder that",
    }.items():
        asked[-1] = folder if metric == "psnr" else tmp_path
        with pytest.raises(SystemExit) as stopped:
            cli.main([*map(str, asked), "--metrics", metric])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_pickle_that_names_anything_but_arrays_is_refused():
    held = {"AlexNet_0": {}}
    for k, (outputs, inputs) in enumerate([(2, 3)]):
        kernel = np.arange(outputs * inputs * 4, dtype=np.float32).reshape(2, 2, inputs, outputs)
        held["AlexNet_0"][f"Conv_{k}"] = {"kernel": kernel, "bias": np.zeros(outputs, np.float32)}
    for k in range(5):
        held[f"NetLinLayer_{k}"] = {"Conv_0": {"kernel": np.full((1, 1, 4, 1), k, np.float32)}}
    made = metric_weights.lpips_tensors(pickle.dumps(held, 3).replace(b"numpy._core", b"numpy.core"), "alex")
    assert made["features.0.weight"].shape == (2, 3, 2, 2)
    assert float(made["features.0.weight"][1, 2, 0, 1]) == held["AlexNet_0"]["Conv_0"]["kernel"][0, 1, 2, 1]
    assert made["heads.3"].tolist() == [3.0] * 4
    with pytest.raises(pickle.UnpicklingError, match=r"posix.system: arrays of numpy alone are read"):
        metric_weights.Arrays(io.BytesIO(b"cposix\nsystem\n(S'true'\ntR.")).load()


def test_a_package_with_another_content_is_refused(tmp_path):
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"another")
    with pytest.raises(ValueError, match="not the file that is known as a 1"):
        Package("a", "1", "a-1-py3-none-any.whl", "0" * 64, "MIT").read(tmp_path, "x")


@pytest.mark.skipif("DOSDE_METRIC_WEIGHTS" not in os.environ, reason="the weights are not in the repository")
def test_real_weights_tell_what_people_tell():
    """A shift of half a pixel is nearer than a blur of the same PSNR; DISTS of a texture shifted is small."""
    folder = Path(os.environ["DOSDE_METRIC_WEIGHTS"])
    truth = images.read(Path(__file__).parents[1] / "benchmarks" / "data" / "chelsea.png").colour[..., 100:228, 150:278]
    blurred = F.avg_pool2d(F.pad(truth, (3, 3, 3, 3), mode="reflect"), 7, 1)
    noisy = (truth + 0.02 * torch.randn(truth.shape, generator=seeded(0))).clamp(0, 1)
    for name, metric in metrics.metrics(["lpips", "lpips_vgg", "dists"], 0, metric_weights=folder).items():
        assert metric.value(truth, truth) < 1e-6, name
        assert 0.001 < metric.value(noisy, truth) < 0.15 < metric.value(blurred, truth) < 0.8, name
