"""dosde evaluate: metrics against formulas written out here, which pixels are measured, the protocol, and what goes wrong."""

import hashlib
import json
import math
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from instances import seeded
from PIL import Image
from scipy.signal import convolve2d

from backbones import embedded, evaluation, load, upscale
from backbones.cli import main
from backbones.pictures import degradation
from backbones.pictures import io as images

KEYS = ("scale", "border", "crop", "channel", "lr", "lr_sha256", "pictures", "metrics", "seed", "nfe")


def pixels(height=44, width=52, seed=0, channels=3):
    """Blocks and noise, so that nothing is flat and nothing is symmetric."""
    drawn = np.random.default_rng(seed)
    blocks = drawn.integers(0, 200, (height // 4 + 1, width // 4 + 1, channels)).repeat(4, 0).repeat(4, 1)[:height, :width]
    return (blocks + drawn.integers(0, 56, blocks.shape)).astype(np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array if array.shape[2] == 3 else array[..., 0]).save(path)


def tensor(array):
    return torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)[None] / 255


def luma(array, border=0):
    """In float64, by the weights as MATLAB's rgb2ycbcr has them."""
    y = 16 + (65.481 * array[..., 0] + 128.553 * array[..., 1] + 24.966 * array[..., 2]) / 255
    return y[border : y.shape[0] - border, border : y.shape[1] - border]


def written(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def run(*arguments):
    return main(["evaluate", *map(str, arguments)])


@pytest.fixture
def pair(tmp_path):
    """Three pictures of high resolution, of which the scale 4 divides not all sides, and one is grey."""
    for i, (name, size, channels) in enumerate((("a", (44, 52), 3), ("b", (47, 49), 3), ("c", (40, 44), 1))):
        save(tmp_path / "pair" / "hr" / f"{name}.png", pixels(*size, i, channels))
    return tmp_path / "pair"


def add_lr(pair, form="{}x4.png"):
    for path in (pair / "hr").iterdir():
        colour = images.read(path).colour
        low = degradation.degrade(colour[0].expand(3, -1, -1), 4, 0, degradation.BICUBIC)[None, : colour.shape[1]]
        images.write(pair / "lr" / form.format(path.stem), images.Picture(low, None, 8, None))


# -- Metrics ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("colour", "difference"),
    [((255, 0, 0), 65.481), ((0, 255, 0), 128.553), ((0, 0, 255), 24.966), ((255, 255, 255), 219), ((0, 51, 0), 25.7106)],
)
def test_the_weights_of_the_brightness(colour, difference):
    black, other = np.zeros((12, 12, 3), np.uint8), np.full((12, 12, 3), colour, np.uint8)
    assert evaluation.psnr(tensor(other), tensor(black), 0) == pytest.approx(20 * math.log10(255 / difference), abs=1e-9)


@pytest.mark.parametrize("border", [0, 1, 4])
def test_psnr_by_its_formula(border):
    one, other = pixels(seed=1), pixels(seed=2)
    error = ((luma(one, border) - luma(other, border)) ** 2).mean()
    assert evaluation.psnr(tensor(one), tensor(other), border) == pytest.approx(10 * math.log10(255**2 / error), abs=1e-9)


@pytest.mark.parametrize("border", [0, 3])
def test_ssim_by_wangs_formula(border):
    one, other = pixels(seed=1), pixels(seed=2) // 2 + pixels(seed=1) // 2
    x, y = luma(one, border), luma(other, border)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def mean(values):
        return convolve2d(values, window, mode="valid")

    a, b = mean(x), mean(y)
    variances, covariance = mean(x * x) - a * a + mean(y * y) - b * b, mean(x * y) - a * b
    c, d = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * a * b + c) * (2 * covariance + d) / ((a * a + b * b + c) * (variances + d))).mean()
    assert 0.2 < expected < 0.9
    assert evaluation.ssim(tensor(one), tensor(other), border) == pytest.approx(expected, abs=1e-9)


def test_pictures_are_rounded_and_cut_off_and_grey_is_three_equal_channels():
    one, other = pixels(seed=1), pixels(seed=2)
    off = tensor(one) + 0.49 / 255
    assert evaluation.psnr(off, tensor(other), 2) == evaluation.psnr(tensor(one), tensor(other), 2)
    assert evaluation.psnr(off, tensor(one), 2) == math.inf
    bright = np.full((16, 16, 3), 255, np.uint8)
    assert evaluation.psnr(tensor(bright) + 0.3, tensor(bright), 0) == math.inf
    grey = pixels(seed=3, channels=1)
    for measure in (evaluation.psnr, evaluation.ssim):
        assert measure(tensor(grey), tensor(other), 2) == measure(tensor(grey.repeat(3, 2)), tensor(other), 2)


def test_the_border_is_not_looked_at():
    one = pixels(seed=1)
    other = one.copy()
    other[:3], other[-3:], other[:, :3], other[:, -3:] = 0, 0, 0, 0
    assert evaluation.psnr(tensor(other), tensor(one), 3) == math.inf
    assert evaluation.ssim(tensor(other), tensor(one), 3) == 1
    assert evaluation.psnr(tensor(other), tensor(one), 2) < 30


@pytest.mark.parametrize(
    ("picture", "truth", "border", "message"),
    [
        (torch.rand(3, 20, 20), torch.rand(1, 3, 20, 20), 0, r"picture: shape \(3, 20, 20\); \(1, 1 or 3, height, width\)"),
        (torch.rand(1, 3, 20, 20), torch.rand(2, 3, 20, 20), 0, r"truth: shape \(2, 3, 20, 20\)"),
        (torch.rand(1, 3, 20, 21), torch.rand(1, 3, 20, 20), 0, "picture: 21x20 pixels; 20x20, as the truth has, are needed"),
        (torch.rand(1, 3, 20, 30), torch.rand(1, 3, 20, 30), 5, "border: 5; 11 or more of 30x20 pixels must be left"),
        (torch.rand(1, 3, 20, 30), torch.rand(1, 3, 20, 30), -1, "border: -1; 11 or more"),
        (
            torch.rand(1, 3, 20, 20) * math.nan,
            torch.rand(1, 3, 20, 20),
            0,
            "picture: .*, holds NaN or infinity",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(picture, truth, border, message):
    with pytest.raises(ValueError, match=message):
        evaluation.ssim(picture, truth, border)


# -- Which pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}.png", "{}x4.bmp", "{}_x4.png"])
def test_names(pair, form):
    add_lr(pair, form)
    save(pair / "lr" / "a_x3.png", pixels())  # of another scale
    found = evaluation.found(pair, 4)
    assert {name: [path.name for path in files] for name, files in found.lr.items()} == {n: [form.format(n)] for n in "abc"}


LAYOUTS = {
    "HR and LR": ("HR/a.png LR/a.png", ""),
    "scale in LR": ("HR/a.png LR/X4/ax4.png LR/X2/ax2.png", ""),
    "Set5 of EDSR": ("HR/a.png LR_bicubic/X4/ax4.png LR_bicubic/X3/ax3.png", ""),
    "DIV2K": ("DIV2K_valid_HR/0801.png DIV2K_valid_LR_bicubic/X4/0801x4.png", ""),
    "BasicSR": ("GTmod12/a.png LRbicx4/a.png LRbicx2/a.png", ""),
    "gt and lq": ("gt/a.png lq/a.jpg", ""),
    "Set14 to Urban100": ("img_001_SRF_4_HR.png img_001_SRF_4_LR.png", ""),
    "in a folder of the scale": ("image_SRF_4/img_001_SRF_4_HR.png image_SRF_4/img_001_SRF_4_LR.png image_SRF_2/none.png", ""),
    "RealSR": ("Canon_001_HR.png Canon_001_LR4.png", ""),
    "RealSR, all scales": ("4/Canon_001_HR.png 4/Canon_001_LR4.png 2/Canon_001_LR2.png", ""),
    "DRealSR": ("test_HR/Canon_1_x4.png test_LR/Canon_1_x1.png", ""),
    "one folder": ("0801.png 0801x4.png", ""),
    "one folder, small letters": ("a_hr.png a_lr_x4.png", ""),
    "roles in folders": ("hr/a_HR.png lr/a_LR.png", ""),
    "a picture without a partner": ("hr/a.png lr/ax4.png lr/b.png lr/ax3.png", "ax3.png b.png"),
    "other methods beside": (
        "img_001_SRF_4_HR.png img_001_SRF_4_LR.png img_001_SRF_4_bicubic.png",
        "img_001_SRF_4_bicubic.png",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_data_sets_have(tmp_path, layout):
    """The one picture of high resolution has the one of low resolution; what belongs to none is named."""
    files, alone = LAYOUTS[layout]
    for name in files.split():
        save(tmp_path / name, pixels(8, 8))
    pairs = evaluation.found(tmp_path, 4)
    high, low = files.split()[:2]
    assert [str(path.relative_to(tmp_path)) for files in pairs.hr.values() for path in files] == [high]
    assert [str(path.relative_to(tmp_path)) for files in pairs.lr.values() for path in files] == [low]
    assert [path.name for path in pairs.unpaired] == alone.split()
    if alone:
        count = len(alone.split())
        assert pairs.unpaired_lines()[0].split(": ")[1].startswith("1 file is" if count == 1 else f"{count} files are")


@pytest.mark.parametrize("form", ["{}_x4", "{}", "{}x4"])
def test_results_of_every_layout_are_found(tmp_path, form):
    for high, low in (("img_001_SRF_4_HR", "img_001_SRF_4_LR"), ("Canon_001_HR", "Canon_001_LR4")):
        save(tmp_path / high / f"{high}.png", pixels(8, 8))
        save(tmp_path / high / f"{low}.png", pixels(2, 2))
        for name in (high, low, high.removesuffix("_HR")):
            results = tmp_path / f"{high}-{name}"
            save(results / f"{form.format(name)}.png", pixels(8, 8))
            assert [len(files) for files in evaluation.found(tmp_path / high, 4, None, results).results.values()] == [1]


def test_a_name_is_not_cut_to_that_of_another_picture(tmp_path):
    for name in ("hr/a", "hr/a_x4", "hr/b", "hr/b_HR", "lr/a", "lr/a_x4", "lr/b", "lr/b_HR"):
        save(tmp_path / f"{name}.png", pixels(8, 8))
    low = evaluation.found(tmp_path, 4).lr
    assert {name: [path.stem for path in files] for name, files in low.items()} == {n: [n] for n in ("a", "a_x4", "b", "b_HR")}


def test_folders_that_are_named(pair, tmp_path, capsys):
    add_lr(pair)
    (pair / "hr").rename(tmp_path / "sharp")
    (pair / "lr").rename(tmp_path / "small")
    given = ["--hr", tmp_path / "sharp", "--lr", tmp_path / "small", "--steps", "1"]
    assert run(*given, "-o", tmp_path / "a.json") == 0
    made = written(tmp_path / "a.json")
    assert (made["protocol"]["lr"], list(made["pictures"]), made["unpaired"]) == ("given", ["a", "b", "c"], [])
    assert run(*given[:2], "--steps", "1", "-o", tmp_path / "b.json") == 0
    assert written(tmp_path / "b.json")["protocol"]["lr"] == "antialiased bicubic, 8 bits"


def test_folders_of_which_two_could_be_meant_are_named(tmp_path, capsys):
    for name in ("DIV2K_train_HR", "DIV2K_valid_HR"):
        save(tmp_path / name / "a.png", pixels(8, 8))
    with pytest.raises(
        ValueError, match=r"has DIV2K_train_HR/, DIV2K_valid_HR/; one of them is needed: --hr and --lr say which"
    ):
        evaluation.found(tmp_path, 4)


def test_a_named_pipe_is_no_picture(pair):
    os.mkfifo(pair / "hr" / "d.png")
    assert list(evaluation.found(pair, 4).hr) == ["a", "b", "c"]


def test_a_name_that_is_no_text_is_measured(pair, capsys):
    (pair / "hr" / "a.png").rename(pair / "hr" / "a\udcff.png")
    assert run("--pairs", pair, "--steps", "1") == 0
    assert "a\\udcff" in capsys.readouterr().out


def larger(low):
    return low.repeat_interleave(4, -1).repeat_interleave(4, -2)


def seen(pairs, name):
    """Low resolution and truth as a method and a metric get them."""
    got = []

    def upscaled(low):
        got.append(low)
        return larger(low)

    def value(picture, truth):
        got.append(truth)
        return 0.0

    evaluation.measured(pairs, name, {"psnr": evaluation.Metric(value, "")}, upscaled)
    return got


def test_low_resolution_is_given_or_made(pair):
    """Of b, 49x47: cut to 48x44 at the right and below."""
    truth = tensor(pixels(47, 49, 1))[..., :44, :48]
    low, high = seen(evaluation.found(pair, 4), "b")
    assert torch.equal(high, truth)
    assert torch.equal(low[0], degradation.degrade(truth[0], 4, 0, degradation.BICUBIC))
    assert torch.equal(low, (low * 255).round() / 255)
    assert seen(evaluation.found(pair, 4), "c")[0].shape == (1, 1, 10, 11)
    assert seen(evaluation.found(pair / "hr", 4), "b")[0].equal(low)  # a folder of high resolution alone
    other = pixels(11, 12, 7)
    save(pair / "lr" / "bx4.png", other)
    assert torch.equal(seen(evaluation.found(pair, 4), "b")[0], tensor(other))


def test_a_crop_is_in_the_middle_and_low_resolution_is_cut_alike(pair):
    """Of 44x48: rows from (44 - 16)//2 = 14, moved to 12; columns from 16."""
    add_lr(pair)
    low, high = seen(evaluation.found(pair, 4, crop=16), "b")
    assert torch.equal(high, tensor(pixels(47, 49, 1))[..., 12:28, 16:32])
    assert torch.equal(low, images.read(pair / "lr" / "bx4.png").colour[..., 3:7, 4:8])
    made = seen(evaluation.found(pair / "hr", 4, crop=16), "b")[0]
    assert torch.equal(made[0], degradation.degrade(high[0], 4, 0, degradation.BICUBIC))


def test_results_are_cut_as_the_truth(pair, tmp_path):
    """A result has the size of the picture, of what the scale divides of it, or of the crop."""
    truth = pixels(47, 49, 1)
    by = evaluation.metrics(["psnr"], 0)
    for box, crop in (((47, 49), None), ((44, 48), None), ((47, 49), 16), ((44, 48), 16)):
        save(tmp_path / "results" / "b_x4.png", truth[: box[0], : box[1]])
        pairs = evaluation.found(pair, 4, crop, tmp_path / "results")
        assert evaluation.measured(pairs, "b", by).values == {"psnr": math.inf}
    save(tmp_path / "results" / "b_x4.png", truth[12:28, 16:32])
    assert evaluation.measured(evaluation.found(pair, 4, 16, tmp_path / "results"), "b", by).values == {"psnr": math.inf}
    with pytest.raises(ValueError, match="the result has 16x16 pixels; 48x44 are needed"):
        evaluation.measured(evaluation.found(pair, 4, None, tmp_path / "results"), "b", by)


def digest(folder, **how):
    pairs = evaluation.found(folder, 4, **how)
    rows = {name: evaluation.measured(pairs, name, {}, larger) for name in pairs.hr}
    made = evaluation.document(pairs, {}, rows, {}, border=0, seed=None, nfe=None, method={})["protocol"]
    return made["pictures"]["sha256"], made["lr_sha256"]


def test_digests_are_of_names_and_pixels(pair):
    before = digest(pair)
    assert before[1] is None
    add_lr(pair)
    given = digest(pair)
    assert given[0] == before[0]
    other = np.asarray(Image.open(pair / "lr" / "ax4.png")).copy()
    other[0, 0, 0] ^= 1
    save(pair / "lr" / "ax4.png", other)
    assert digest(pair)[0] == given[0]
    assert digest(pair)[1] != given[1]
    save(pair / "hr" / "a.bmp", pixels(44, 52, 0))
    (pair / "hr" / "a.png").unlink()
    assert digest(pair / "hr") == before  # in another format
    assert digest(pair / "hr", crop=32) != before
    (pair / "hr" / "a.bmp").rename(pair / "hr" / "aa.bmp")
    assert digest(pair / "hr") != before
    changed = pixels(44, 52, 0)
    changed[43, 51, 2] ^= 1
    (pair / "hr" / "aa.bmp").unlink()
    save(pair / "hr" / "a.png", changed)
    assert digest(pair / "hr") != before


# -- The command ------------------------------------------------------------------------------------------------------------


def test_results_may_have_the_names_that_upscale_gives(pair):
    """Of ax4.png it makes ax4_x4.png; two that could be meant are that picture's failure."""
    for name in ("a_x4", "bx4_x4", "c"):
        save(pair / "results" / f"{name}.png", pixels())
    results = evaluation.found(pair, 4, None, pair / "results").results
    assert {name: [path.stem for path in files] for name, files in results.items()} == {
        "a": ["a_x4"],
        "b": ["bx4_x4"],
        "c": ["c"],
    }
    save(pair / "results" / "a.jpg", pixels())
    two = evaluation.found(pair, 4, None, pair / "results")
    with pytest.raises(ValueError, match=r"2 pictures \(a.jpg, a_x4.png\) among the results; one is needed"):
        evaluation.measured(two, "a", {})


def test_the_backbone_itself_and_the_files_that_upscale_wrote_give_the_same_numbers(pair, tmp_path, capsys):
    add_lr(pair)
    solver = ["--steps", "3", "--order", "2", "--method", "adams", "--seed", "7"]
    assert run("--pairs", pair, "-o", tmp_path / "one.json", *solver) == 0
    assert main(["upscale", str(pair / "lr"), "-o", str(tmp_path / "larger"), *solver]) == 0
    capsys.readouterr()
    given = ["--seed", "7", "--nfe", "3"]
    assert run("--pairs", pair, "--results", tmp_path / "larger", "-o", tmp_path / "other.json", *given) == 0
    one, other = written(tmp_path / "one.json"), written(tmp_path / "other.json")
    assert one["protocol"] == other["protocol"]
    assert (one["pictures"], one["mean"]) == (other["pictures"], other["mean"])
    assert 10 < one["mean"]["psnr"] < 40
    digest = hashlib.sha256(embedded.WEIGHTS.read_bytes()).hexdigest()
    method = {
        "backbone": "embedded",
        "weights": "weights.safetensors",
        "sha256": digest,
        "steps": 3,
        "order": 2,
        "method": "dosde.method.adams",
        "options": {},
    }
    assert {key: value for key, value in one["method"].items() if key not in ("dosde", "torch")} == method
    assert other["method"] == {"results": str(tmp_path / "larger")}
    assert evaluation.compare([tmp_path / "one.json", tmp_path / "other.json"]).count("*") == 5


def test_what_is_written_and_printed(pair, tmp_path, capsys):
    assert run("--pairs", pair, "-o", tmp_path / "a.json", "--steps", "2", "--seed", "3", "--border", "2") == 0
    made = written(tmp_path / "a.json")
    assert tuple(made["protocol"]) == KEYS == evaluation.PROTOCOL
    for key, value in {"scale": 4, "border": 2, "crop": None, "lr_sha256": None, "seed": 3, "nfe": 2}.items():
        assert made["protocol"][key] == value
    assert made["protocol"]["lr"] == "antialiased bicubic, 8 bits"
    assert made["protocol"]["pictures"]["count"] == 3
    assert "scikit-image" in made["protocol"]["metrics"]["psnr"]
    assert (made["failed"], made["lower_better"], made["method"]["order"]) == ({}, [], 2)
    assert list(made["pictures"]) == ["a", "b", "c"]
    for name in ("psnr", "ssim"):
        assert made["mean"][name] == pytest.approx(np.mean([row[name] for row in made["pictures"].values()]), abs=1e-12)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["picture", "psnr", "ssim"]
    assert rows[1] == ["a", *(f"{value:.4f}" for value in made["pictures"]["a"].values())]
    assert rows[4] == ["mean", *(f"{value:.4f}" for value in made["mean"].values())]
    assert rows[5][:4] == ["3", "measured,", "0", "failed"]
    assert rows[6] == ["wrote", str(tmp_path / "a.json")]
    # The same by hand: border and noise are what the protocol says.
    picture = images.read(pair / "hr" / "a.png").colour
    low = degradation.degrade(picture[0], 4, 0, degradation.BICUBIC)[None]
    expected = evaluation.psnr(upscale(load("embedded"), low, 4, 2, noise=seeded(3)), picture, 2)
    assert made["pictures"]["a"]["psnr"] == pytest.approx(expected, abs=1e-9)


def test_weights_are_named_and_hashed(pair, tmp_path):
    path = tmp_path / "tiny.safetensors"
    embedded.save(path, embedded.Network(embedded.Config(width=8, blocks=1, embedding=16)), {})
    out = tmp_path / "a.json"
    assert run("--pairs", pair, "--weights", path, "--backbone", "embedded", "--tile", "none", "-o", out, "--steps", "2") == 0
    method = written(out)["method"]
    assert (method["weights"], method["sha256"]) == ("tiny.safetensors", hashlib.sha256(path.read_bytes()).hexdigest())
    assert (method["backbone"], method["order"], method["method"]) == ("embedded", 2, "dosde.method.dos")
    assert method["options"] == {"tile": None}


def test_equal_pictures_have_an_infinite_psnr_and_so_has_the_mean(pair, tmp_path, capsys):
    assert run("--pairs", pair / "hr", "--results", pair / "hr", "-o", tmp_path / "a.json") == 0
    made = written(tmp_path / "a.json")
    assert made["mean"] == {"psnr": "inf", "ssim": 1.0}
    assert made["pictures"]["b"] == {"psnr": "inf", "ssim": 1.0}
    assert (made["protocol"]["seed"], made["protocol"]["nfe"]) == (None, None)
    assert capsys.readouterr().out.splitlines()[4].split() == ["mean", "inf", "1.0000"]
    assert evaluation.compare([tmp_path / "a.json"]).splitlines()[1].split()[1:] == ["inf*", "1.0000*"]


def test_a_broken_picture_costs_that_picture_alone(pair, tmp_path, capsys):
    add_lr(pair)
    for name in ("d.png", "e.jpg", "e.png", "g.png", "h.png"):
        save(pair / "hr" / name, pixels())
    save(pair / "hr" / "f.png", pixels(3, 40))
    for name, size in (("e", (11, 13)), ("f", (1, 10)), ("g", (10, 13)), ("h", (12, 13))):
        save(pair / "lr" / f"{name}.png", pixels(*size))
    (pair / "hr" / "a.png").write_bytes((pair / "hr" / "a.png").read_bytes()[:60])
    assert run("--pairs", pair, "-o", tmp_path / "a.json", "--steps", "1") == 1
    made = written(tmp_path / "a.json")
    assert list(made["pictures"]) == ["b", "c"]
    assert made["protocol"]["pictures"]["count"] == 2
    expected = {
        "d": "no picture of low resolution; one is needed",
        "e": "2 pictures (e.jpg, e.png) of high resolution; one is needed",
        "f": "it has 40x3 pixels; 4x4 or more are needed",
        "g": "of low resolution it has 13x10 pixels; 13x11, of 52x44, are needed",
        "h": "of low resolution it has 13x12 pixels; 13x11, of 52x44, are needed",
    }
    assert {name: made["failed"][name] for name in expected} == expected
    assert set(made["failed"]) == {"a", *expected}
    printed = capsys.readouterr()
    for name, reason in expected.items():
        assert f"failed  {name}: {reason}" in printed.err.splitlines()
    assert "2 measured, 6 failed" in printed.out


def test_what_is_missing_or_too_small_among_results_and_for_a_crop(pair, tmp_path, capsys):
    for name, size in (("a", (44, 52)), ("b_x4", (44, 47)), ("unasked", (4, 4))):
        save(tmp_path / "results" / f"{name}.png", pixels(*size))
    out = tmp_path / "a.json"
    assert run("--pairs", pair, "--results", tmp_path / "results", "-o", out) == 1
    assert written(out)["failed"] == {
        "b": "the result has 47x44 pixels; 48x44 are needed",
        "c": "no picture among the results; one is needed",
    }
    assert run("--pairs", pair, "--crop", "44", "-o", out, "--steps", "1") == 1
    assert written(out)["failed"] == {"c": "it has 44x40 pixels; 44x44 or more are needed"}
    assert run("--pairs", pair, "--crop", "100", "-o", out, "--steps", "1") == 1
    assert written(out)["mean"] == {}
    assert "0 measured, 3 failed" in capsys.readouterr().out


def test_nan_is_a_failure_not_a_number(pair):
    nan = {"lpips": evaluation.Metric(lambda picture, truth: math.nan, "")}
    with pytest.raises(ValueError, match="lpips is not a number"):
        evaluation.measured(evaluation.found(pair, 4, None, pair / "hr"), "a", nan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--pairs: none; a folder of pictures is needed, or --compare and files"),
        (["--pairs", "missing"], "--pairs: missing; no such folder"),
        (["--pairs", "empty"], "--pairs: empty; a folder with pictures (.png"),
        (["--pairs", "half"], "--pairs: half; it has lr/, and hr/ beside it is needed"),
        (["--pairs", "pair", "--results", "missing"], "--results: missing; no such folder"),
        (["--pairs", "pair", "--results", "empty"], "--results: empty; a folder with pictures (.png"),
        (["--pairs", "pair", "--metrics", "psnr,fid"], "--metrics: 'fid'; of psnr, ssim, lpips, lpips_vgg, dists, clipiqa"),
        (["--pairs", "pair", "--metrics", ""], "--metrics: ''; of psnr, ssim"),
        (["--pairs", "pair", "--border", "-1"], "--border: -1; a number from 0 to 21 is needed"),
        (["--pairs", "pair", "--border", "22"], "--border: 22; a number from 0 to 21 is needed"),
        (["--pairs", "pair", "--crop", "16", "--border", "8"], "--border: 8; a number from 0 to 7 is needed"),
        (["--pairs", "pair", "--crop", "18"], "--crop: 18; a multiple of the scale, 4, is needed"),
        (["--pairs", "pair", "--crop", "0"], "--crop: 0; a multiple of the scale, 4, is needed"),
        (["--pairs", "pair", "--scale", "1.5"], "--scale: 1.5; a whole number from 1 to 64 is needed"),
        (["--pairs", "pair", "--scale", "0"], "--scale: 0; a whole number from 1 to 64 is needed"),
        (["--pairs", "pair", "--scale", "nan"], "--scale: nan; a whole number from 1 to 64 is needed"),
        (["--pairs", "pair", "-o", "deep/a.json"], "--out: deep/a.json; No such file or directory"),
        (["--pairs", "pair", "-o", "file/a.json"], "--out: file/a.json; Not a directory"),
        (["--pairs", "pair", "-o", "empty"], "--out: empty; it is a folder, and a file is needed"),
        (
            ["--pairs", "pair", "-o", "pair/hr/a.png"],
            "--out: pair/hr/a.png; it is called as a picture, and a name such as a.json",
        ),
        (["--pairs", "pair", "--steps", "0"], "--steps: 0; a positive number is needed"),
        (["--pairs", "pair", "--order", "6"], "--order: 6; 1 to 5 is needed with --steps 5"),
        (["--pairs", "pair", "--seed", "-1"], "--seed: -1; a number from 0"),
        (["--pairs", "pair", "--backbone", "sd"], "--backbone: 'sd'; one of embedded, gaussian, sd21"),
        (
            ["--pairs", "pair", "--backbone", "gaussian", "--tile", "64"],
            "--tile: needs --backbone embedded or sd21 or resshift or gan, and the backbone is gaussian",
        ),
        (
            ["--pairs", "pair", "--weights", "no.safetensors", "--backbone", "embedded"],
            "--weights: no.safetensors; no such file",
        ),
        (["--pairs", "pair", "--nfe", "5"], "--nfe: 5; it is for --results, otherwise --steps says it"),
        (["--pairs", "pair", "--results", "pair/hr", "--nfe", "-1"], "--nfe: -1; a number from 0 is needed"),
        (["--pairs", "pair", "--results", "pair/hr", "--seed", "-1"], "--seed: -1; a number from 0"),
        (["--pairs", "pair", "--results", "pair/hr", "--steps", "5"], "--steps: 5; with --results nothing is upscaled"),
        (["--pairs", "pair", "--results", "pair/hr", "--guidance", "2"], "--guidance: 2.0; with --results nothing is upscaled"),
        (["--pairs", "pair", "--lr", "pair/hr"], "--lr: pair/hr; it is for --hr"),
        (["--pairs", "pair", "--hr", "pair/hr"], "--hr: pair/hr; it is for use without --pairs"),
        (["--hr", "pair/hr", "--lr", "empty"], "--lr: empty; a folder with pictures (.png"),
        (["--pairs", "pair", "--across", "nfe"], "--across: nfe; it is for --compare"),
        (["--compare", "file", "--metrics", "psnr"], "--metrics: psnr; --compare takes --across alone"),
        (["--compare", "file", "--pairs", "pair"], "--pairs: pair; --compare takes --across alone"),
        (["--compare", "file", "--across", "steps"], "--across: 'steps'; of scale, border, crop, channel, lr"),
        (["--compare", "none.json"], "--compare: none.json; No such file or directory; a file that `dosde evaluate -o` wrote"),
        (["--compare", "file"], "--compare: file; it is no JSON; a file that `dosde evaluate -o` wrote is needed"),
        (["--compare", "other.json"], "--compare: other.json; it holds something else; a file that"),
    ],
)
def test_usage_errors(pair, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(pair.parent)
    (pair.parent / "empty").mkdir()
    (pair.parent / "half" / "lr").mkdir(parents=True)
    (pair.parent / "file").touch()
    (pair.parent / "other.json").write_text('{"protocol": {}, "mean": {}, "lower_better": []}')
    before = sorted(pair.parent.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("dosde evaluate: error: " + message)
    assert printed.out == ""  # before any work
    assert sorted(pair.parent.rglob("*")) == before


def test_a_folder_that_cannot_be_written_to(pair, tmp_path, monkeypatch, capsys):
    def locked(path, *args, **how):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", locked)
    with pytest.raises(SystemExit) as stopped:
        run("--pairs", pair, "-o", tmp_path / "a.json")
    assert stopped.value.code == 2
    what = f"--out: {tmp_path / 'a.json'}; Permission denied: a file in a folder that can be written to is needed"
    assert capsys.readouterr().err.splitlines()[-1] == f"dosde evaluate: error: {what}"


def test_a_failed_write_leaves_what_was_there(pair, tmp_path, monkeypatch, capsys):
    before = '{"protocol": {}, "pictures": {}}'
    (tmp_path / "a.json").write_text(before)

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert run("--pairs", pair / "hr", "--results", pair / "hr", "-o", tmp_path / "a.json") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "pair"]
    assert (tmp_path / "a.json").read_text() == before
    assert capsys.readouterr().err.splitlines()[-1] == "dosde evaluate: error: --out: No space left on device"


def test_ctrl_c_is_one_line(pair, tmp_path, monkeypatch, capsys):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "read", interrupted)
    assert run("--pairs", pair, "-o", tmp_path / "a.json") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; nothing was written"
    assert not (tmp_path / "a.json").exists()


# -- pyiqa ------------------------------------------------------------------------------------------------------------------


def stub(monkeypatch, calls):
    """A pyiqa whose metrics are the mean of the picture, or its mean error with sign, so that the order shows."""

    class Network:
        def __init__(self, name, device):
            self.lower_better = name == "lpips"
            self.name = name

        def __call__(self, picture, reference=None):
            calls.append((self.name, tuple(picture.shape), reference is not None))
            assert picture.min() >= 0
            assert picture.max() <= 1
            assert (reference is not None) == (self.name == "lpips")
            return (picture.mean() if reference is None else (picture - reference).mean()).reshape(1, 1)

    module = types.ModuleType("pyiqa")
    module.__version__ = "0.1.99"
    module.create_metric = lambda name, device: Network(name, device)
    monkeypatch.setitem(sys.modules, "pyiqa", module)


def test_metrics_of_pyiqa(pair, tmp_path, monkeypatch):
    calls = []
    stub(monkeypatch, calls)
    bright = pixels(40, 44, 2, 1) // 2
    save(tmp_path / "results" / "c.png", bright)
    for name, size, seed in (("a", (44, 52), 0), ("b", (47, 49), 1)):
        save(tmp_path / "results" / f"{name}.png", pixels(*size, seed))
    names = "psnr,lpips,topiq,clipiqa,musiq,maniqa"
    out = tmp_path / "a.json"
    assert run("--pairs", pair, "--results", tmp_path / "results", "--metrics", names, "-o", out) == 0
    made = written(out)
    error = (bright.astype(float) - pixels(40, 44, 2, 1)).mean() / 255
    assert error < -0.1
    assert made["pictures"]["c"]["lpips"] == pytest.approx(error, abs=1e-6)  # of the picture from the truth, with its border
    assert made["pictures"]["c"]["topiq"] == pytest.approx(bright.mean() / 255, abs=1e-6)
    assert made["lower_better"] == ["lpips"]
    described = made["protocol"]["metrics"]
    assert list(described) == names.split(",")
    assert described["lpips"] == "lpips, on R, G, B with the border, with reference, lower is better; pyiqa 0.1.99"
    assert described["topiq"] == "topiq_nr, on R, G, B with the border, no reference, higher is better; pyiqa 0.1.99"
    assert [call for call in calls if call[1] == (1, 3, 40, 44)] == [
        (name, (1, 3, 40, 44), name == "lpips") for name in ("lpips", "topiq_nr", "clipiqa", "musiq", "maniqa")
    ]


@pytest.mark.parametrize("name", ["lpips", "lpips_vgg", "dists", "clipiqa", "musiq", "maniqa", "topiq"])
def test_without_pyiqa(pair, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    assert run("--pairs", pair, "--steps", "1") == 0  # which has no use for it
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run("--pairs", pair, "--metrics", f"psnr,{name}")
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    own = "a folder of weights (--metric-weights), or " if name in ("lpips", "lpips_vgg", "dists") else ""
    needs = f"needs {own}the extra 'iqa' (in the repository: pip install '.[iqa]')"
    assert printed.err.splitlines()[-1] == f"dosde evaluate: error: --metrics: {name}; {needs}"
    assert printed.out == ""


def test_a_pyiqa_that_cannot_load_a_metric(pair, monkeypatch, capsys):
    stub(monkeypatch, [])

    def offline(name, device):
        raise OSError("<urlopen error [Errno -2] Name or\nservice not known>")

    monkeypatch.setattr(sys.modules["pyiqa"], "create_metric", offline)
    with pytest.raises(SystemExit):
        run("--pairs", pair, "--metrics", "topiq")
    why = "<urlopen error [Errno -2] Name or service not known>"
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"dosde evaluate: error: --metrics: topiq; pyiqa cannot load its topiq_nr ({why})"


# -- Comparison -------------------------------------------------------------------------------------------------------------


def result(path, mean, lower=(), **protocol):
    usual = dict.fromkeys(KEYS, 4) | {"pictures": {"count": 2, "sha256": "ab"}, "metrics": dict.fromkeys(mean, "")}
    made = {"protocol": usual | protocol, "method": {}, "lower_better": list(lower), "mean": mean, "pictures": {}, "failed": {}}
    path.write_text(json.dumps(made))
    return path


@pytest.mark.parametrize("key", KEYS)
def test_results_whose_protocols_differ_are_refused_unless_across(tmp_path, capsys, key):
    one = result(tmp_path / "a.json", {"psnr": 30.0})
    other = {"pictures": {"count": 2, "sha256": "cd"}, "metrics": {"psnr": "another"}}.get(key, 5)
    two = result(tmp_path / "b.json", {"psnr": 31.0}, **{key: other})
    with pytest.raises(SystemExit) as stopped:
        run("--compare", one, one, two)
    assert stopped.value.code == 2
    values = {"pictures": ('{"sha256": "ab"}', '{"sha256": "cd"}'), "metrics": ('{"psnr": ""}', '{"psnr": "another"}')}
    a, b = values.get(key, ("4", "5"))
    expected = f"--compare: the protocols differ in {key}: {a} in {one} and {b} in {two}; the same is needed, or --across {key}"
    printed = capsys.readouterr()
    assert (printed.out, printed.err.splitlines()[-1]) == ("", f"dosde evaluate: error: {expected}")
    assert run("--compare", one, two, "--across", key) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["file", *([] if key in values else [key]), "psnr"]
    assert printed[2].split() == [str(two), *([] if key in values else ["5"]), "31.0000*"]


def test_the_first_key_that_differs_is_named(tmp_path):
    one = result(tmp_path / "a.json", {"psnr": 30.0})
    two = result(tmp_path / "b.json", {"psnr": 30.0}, nfe=1, border=0, seed=None)
    with pytest.raises(ValueError, match=r"differ in border: 4 in .*a\.json and 0 in .*b\.json"):
        evaluation.compare([one, two])
    with pytest.raises(ValueError, match=r"differ in seed: 4 in .*a\.json and null in .*b\.json"):
        evaluation.compare([one, two], ["border", "nfe"])


def test_the_best_of_each_column(tmp_path):
    means = ({"psnr": 30.0, "lpips": 0.2}, {"psnr": "inf", "lpips": 0.1}, {"psnr": 31.0, "lpips": 0.1})
    paths = [result(tmp_path / f"{i}.json", mean, ["lpips"], nfe=None if i else 3) for i, mean in enumerate(means)]
    header, *rows, note = [line.split() for line in evaluation.compare(paths, ["nfe"]).splitlines()]
    assert header == ["file", "nfe", "psnr", "lpips"]
    assert [row[1:] for row in rows] == [["3", "30.0000", "0.2000"], ["-", "inf*", "0.1000*"], ["-", "31.0000", "0.1000*"]]
    assert " ".join(note) == "* best; of lpips the least"


def test_metrics_that_not_all_have(tmp_path):
    paths = [result(tmp_path / "a.json", {"psnr": 30.0}), result(tmp_path / "b.json", {"ssim": 0.5}), tmp_path / "c.json"]
    result(paths[2], {})
    rows = [line.split() for line in evaluation.compare(paths, ["metrics"]).splitlines()]
    assert [row[1:] for row in rows[1:4]] == [["30.0000*", "-"], ["-", "0.5000*"], ["-", "-"]]


def test_hidden_colours_are_not_measured_and_do_not_bleed(pair, tmp_path):
    """Two pictures that look alike have the same values."""
    made = []
    for hidden in (0, 255):
        for path in (pair / "hr").iterdir():
            with Image.open(path) as image:
                array = np.array(image.convert("RGBA"))
            array[:20, :20] = hidden, 255 - hidden, hidden, 0
            Image.fromarray(array).save(path)
        assert run("--pairs", pair, "-o", tmp_path / "a.json", "--steps", "2") == 0
        made.append(written(tmp_path / "a.json")["mean"])
    assert made[0] == made[1]


def test_a_file_of_somebody_is_not_replaced(tmp_path):
    """Results are; so is an empty file."""
    for content in ('{"mine": 1}', "[1, 2]", "notes", '{"protocol": 1}'):
        path = tmp_path / "notes.json"
        path.write_text(content)
        with pytest.raises(ValueError, match=r"^out: .*notes.json; it holds no results of dosde evaluate; another name"):
            evaluation.check_ours(path)
        assert path.read_text() == content
    for content in ("", '{"protocol": {}, "pictures": {}, "complete": true}'):
        path.write_text(content)
        evaluation.check_ours(path)
