"""Kernels by their formulas, draws by their frequencies, operations by their statistics, the whole by a second composition."""

import dataclasses
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import scipy.stats
import torch
from instances import seeded

from backbones.pictures import degradation
from backbones.pictures.degradation import (
    BICUBIC,
    MODES,
    REAL_ESRGAN,
    Blur,
    Degradation,
    Drawn,
    Noise,
    Resize,
    Stage,
    Step,
)

SIZES = range(7, 22, 2)
TURNED = (2.0, 0.7, 0.5)
FAMILIES = {
    "gaussian": lambda size, *widths: degradation.gaussian(size, *widths),
    "generalised, pointed": lambda size, *widths: degradation.generalised(size, *widths, beta=0.5),
    "generalised, flat": lambda size, *widths: degradation.generalised(size, *widths, beta=4),
    "plateau": lambda size, *widths: degradation.plateau(size, *widths, beta=1.7),
}
DRAWS = 4000


@pytest.fixture(scope="module")
def drawn():
    generator = np.random.default_rng(0)
    return [degradation.sample(REAL_ESRGAN, generator) for _ in range(DRAWS)]


def ramp(height=96, width=96):
    """Colours that change slowly, with an edge."""
    y, x = torch.meshgrid(torch.linspace(0.1, 0.9, height), torch.linspace(0.1, 0.9, width), indexing="ij")
    return torch.stack([x, y, torch.where(x + y > 1, 0.8, 0.3)])


# Kernels.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_kernels_sum_to_one_and_have_their_symmetries(make, size):
    turned, round_ = make(size, *TURNED), make(size, 1.3, 1.3, 0.0)
    for kernel in (turned, round_):
        assert kernel.shape == (size, size)
        assert kernel.dtype == np.float32
        assert kernel.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], rtol=1e-6)
    np.testing.assert_allclose(round_, np.rot90(round_), rtol=1e-6)
    np.testing.assert_allclose(round_, round_[::-1], rtol=1e-6)
    assert abs(turned - turned[::-1]).max() > 1e-3 * turned.max()
    # A quarter turn swaps the axes; a circle has no angle.
    np.testing.assert_allclose(make(size, 2.0, 0.7, math.pi / 2), make(size, 0.7, 2.0, 0.0), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(make(size, 1.3, 1.3, 0.4), round_, rtol=1e-5)


def test_gaussian_has_the_covariance_of_its_name():
    sigma_x, sigma_y, angle = 3.5, 2.0, 0.6
    kernel = degradation.gaussian(61, sigma_x, sigma_y, angle).astype(np.float64)
    y, x = np.mgrid[:61, :61] - 30
    measured = [[(kernel * a * b).sum() for b in (x, y)] for a in (x, y)]
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    np.testing.assert_allclose(measured, turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T, rtol=1e-4)


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.6, 4.0])
def test_generalised_and_plateau_follow_their_formulas(beta):
    steps = np.arange(-4, 5)
    for make, form in (
        (degradation.generalised, lambda r2: np.exp(-(r2**beta) / 2)),
        (degradation.plateau, lambda r2: 1 / (1 + r2**beta)),
    ):
        kernel = make(9, 1.5, 2.5, 0.0, beta)
        np.testing.assert_allclose(kernel[4] / kernel[4, 4], form((steps / 1.5) ** 2), rtol=1e-5, atol=1e-30)
        np.testing.assert_allclose(kernel[:, 4] / kernel[4, 4], form((steps / 2.5) ** 2), rtol=1e-5, atol=1e-30)
    np.testing.assert_array_equal(degradation.generalised(9, 1.5, 2.5, 0.3, 1.0), degradation.gaussian(9, 1.5, 2.5, 0.3))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cutoff", [math.pi / 5, 1.4, math.pi])
def test_sinc_is_the_bessel_kernel(size, cutoff):
    y, x = np.mgrid[:size, :size] - size // 2
    r = np.where((x == 0) & (y == 0), 1e-9, np.hypot(x, y))
    expected = cutoff * scipy.special.j1(cutoff * r) / (2 * math.pi * r)
    np.testing.assert_allclose(degradation.sinc(size, cutoff), expected / expected.sum(), rtol=1e-5, atol=1e-7)
    assert degradation.sinc(size, cutoff).sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)


def test_sinc_passes_below_its_cutoff_and_stops_above():
    cutoff = 1.0
    response = np.fft.fft2(np.fft.ifftshift(degradation.sinc(201, cutoff)))
    along = 2 * math.pi * np.abs(np.fft.fftfreq(201))
    frequency = np.hypot(along, along[:, None])
    assert abs(response.imag).max() < 1e-6
    np.testing.assert_allclose(response.real[frequency < 0.8 * cutoff], 1, atol=0.05)
    np.testing.assert_allclose(response.real[frequency > 1.2 * cutoff], 0, atol=0.05)


@pytest.mark.parametrize("size", [0, 8, -3])
def test_kernels_of_even_size_are_refused(size):
    with pytest.raises(ValueError, match=f"size: {size}; an odd number"):
        degradation.gaussian(size, 1, 1)


# Draws.


def frequency(hits, p):
    """Within five standard deviations of n p."""
    hits = list(hits)
    n, found = len(hits), sum(hits)
    assert n > 100
    assert abs(found - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1e-9, (found / n, p)


def uniform(values, low, high):
    values = np.array(list(values))
    assert len(values) > 100
    assert values.min() >= low
    assert values.max() <= high
    assert scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-5


@pytest.mark.parametrize("index", [0, 1])
def test_blurs_are_drawn_as_listed(drawn, index):
    stage = REAL_ESRGAN.stages[index]
    blurs = [d.steps[index].blur for d in drawn]
    frequency([b is not None for b in blurs], (1, 0.8)[index])
    blurs = [b for b in blurs if b is not None]
    frequency([b.kind == "sinc" for b in blurs], 0.1)
    for size in SIZES:
        frequency([b.size == size for b in blurs], 1 / 8)
    rings, others = [b for b in blurs if b.kind == "sinc"], [b for b in blurs if b.kind != "sinc"]
    uniform([b.cutoff for b in rings if b.size < 13], math.pi / 3, math.pi)
    uniform([b.cutoff for b in rings if b.size >= 13], math.pi / 5, math.pi)
    for kind, p in stage.kinds:
        frequency([b.kind == kind for b in others], p)
    uniform([b.sigma_x for b in others], *stage.sigma)
    turned = [b for b in others if "aniso" in b.kind]
    uniform([b.sigma_y for b in turned], *stage.sigma)
    uniform([b.angle for b in turned], -math.pi, math.pi)
    assert all(b.sigma_x == b.sigma_y and b.angle == 0 for b in others if "aniso" not in b.kind)
    assert all(b.beta == 1 for b in others if " " not in b.kind)
    for family, high in (("generalised", 4), ("plateau", 2)):
        betas = [b.beta for b in others if b.kind.startswith(family)]
        frequency([beta <= 1 for beta in betas], 0.5)
        uniform([beta for beta in betas if beta > 1], 1, high)
        assert min(betas) >= (1 if family == "plateau" else 0.5)


@pytest.mark.parametrize("index", [0, 1])
def test_resizes_noise_and_jpeg_are_drawn_as_listed(drawn, index):
    steps = [d.steps[index] for d in drawn]
    up, down, keep = ((0.2, 0.7, 0.1), (0.3, 0.4, 0.3))[index]
    factors = [s.resize.factor for s in steps]
    frequency([f > 1 for f in factors], up)
    frequency([f < 1 for f in factors], down)
    frequency([f == 1 for f in factors], keep)
    uniform([f for f in factors if f > 1], 1, (1.5, 1.2)[index])
    uniform([f for f in factors if f < 1], (0.15, 0.3)[index], 1)
    for mode in MODES:
        frequency([s.resize.mode == mode for s in steps], 1 / 3)
    frequency([s.noise.kind == "gaussian" for s in steps], 0.5)
    frequency([s.noise.grey for s in steps], 0.4)
    uniform([s.noise.strength for s in steps if s.noise.kind == "gaussian"], 1, (30, 25)[index])
    uniform([s.noise.strength for s in steps if s.noise.kind == "poisson"], 0.05, (3, 2.5)[index])
    counts = np.bincount([s.quality for s in steps], minlength=101)
    assert counts[:30].sum() == counts[96:].sum() == 0
    assert scipy.stats.chisquare(counts[30:96]).pvalue > 1e-5


def test_the_end_is_drawn_as_listed_and_seeds_are_not_shared(drawn):
    frequency([d.sinc is not None for d in drawn], 0.8)
    uniform([d.sinc.cutoff for d in drawn if d.sinc], math.pi / 3, math.pi)
    frequency([d.jpeg_first for d in drawn], 0.5)
    for mode in MODES:
        frequency([d.mode == mode for d in drawn], 1 / 3)
    assert len({step.noise.seed for d in drawn for step in d.steps}) == 2 * DRAWS


def test_what_was_drawn_is_readable(drawn):
    assert str(degradation.sample(BICUBIC, np.random.default_rng(0))) == "bicubic"
    for d in drawn[:100]:
        text = str(d)
        assert text.count("JPEG") == 2
        assert "\n" not in text
        assert ("JPEG" in text.rsplit("; ", 1)[1]) != d.jpeg_first


# Operations.


@pytest.mark.parametrize("strength", [1.0, 10.0, 30.0])
def test_gaussian_noise_has_its_std(strength):
    flat = torch.full((3, 200, 200), 0.5)
    colour = degradation.noisy(flat, Noise("gaussian", strength, False, 1)) - flat
    grey = degradation.noisy(flat, Noise("gaussian", strength, True, 1)) - flat
    for noise, count in ((colour, 120_000), (grey[0], 40_000)):
        assert float(255 * noise.std()) == pytest.approx(strength, rel=5 / math.sqrt(2 * count))
        assert abs(float(255 * noise.mean())) < 5 * strength / math.sqrt(count)
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    assert abs(np.corrcoef(colour.flatten(1))[np.triu_indices(3, 1)]).max() < 5 / 200


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_poisson_noise_has_a_variance_proportional_to_intensity(grey, strength):
    values = torch.arange(256) / 255
    picture = values[None, :, None].expand(3, 256, 2000)
    noise = (degradation.noisy(picture, Noise("poisson", strength, grey, 1)) - picture).double()
    middle = slice(64, 160)  # where nothing is cut off
    count = 2000 if grey else 6000
    one = noise[:1] if grey else noise
    variance = one.permute(1, 0, 2).flatten(1).var(1)[middle] / (strength**2 * values[middle] / 256)
    assert float(variance.mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / count / 96))
    assert abs(float(np.polyfit(values[middle], variance, 1)[0])) < 5 * math.sqrt(2 / count / 96) / float(values[middle].std())
    assert torch.equal(noise[0], noise[1]) == grey


def test_poisson_noise_of_few_values_has_few_counts():
    """n is a power of two: 3 values are counted as 4."""
    picture = torch.tensor([0.25, 0.5, 0.75])[None, :, None].expand(3, 3, 20_000)
    noise = degradation.noisy(picture, Noise("poisson", 0.1, False, 1)) - (picture * 255).round() / 255
    assert float(noise[:, 1].var()) == pytest.approx(0.1**2 * 0.5 / 4, rel=0.05)


def test_jpeg_is_lossy_in_range_and_better_with_quality():
    picture = torch.rand(3, 41, 66, generator=seeded(0))
    errors = []
    for quality in (30, 60, 95):
        result = degradation.jpeg(picture, quality)
        assert result.shape == picture.shape
        assert result.min() >= 0
        assert result.max() <= 1
        assert torch.equal(result, (result * 255).round() / 255)
        errors.append(float((result - picture).abs().mean()))
    assert errors[0] > errors[1] > errors[2] > 1 / 255


def test_jpeg_has_colour_at_half_the_resolution():
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float()
    coloured = torch.stack([0.5 + 0.1 * board, torch.full_like(board, 0.5), 0.6 - 0.1 * board])
    bright = (0.4 + 0.2 * board).expand(3, -1, -1)
    lost, kept = (degradation.jpeg(p, 95) for p in (coloured, bright))
    assert float((lost[0] - lost[2]).std()) < 0.1 * float((coloured[0] - coloured[2]).std())
    assert float(kept.std()) > 0.9 * float(bright.std())


# The whole.


def test_apply_is_the_composition_that_the_module_states():
    picture = ramp(97, 90)
    first, second, last = (
        Blur("aniso", 9, 2.0, 0.7, 0.4),
        Blur("plateau iso", 7, 1.1, 1.1, beta=1.5),
        Blur("sinc", 15, cutoff=1.5),
    )
    noise = Noise("gaussian", 5.0, False, 3), Noise("poisson", 0.4, True, 4)
    steps = Step(first, Resize(0.7, "bilinear"), noise[0], 80), Step(second, Resize(1.1, "bicubic"), noise[1], 60)

    def filtered(x, blur):
        rows = [scipy.ndimage.correlate(plane, blur.kernel, mode="mirror") for plane in x.numpy()]
        return torch.from_numpy(np.stack(rows))

    def resized(x, size, mode):
        options = {} if mode == "area" else {"align_corners": False}
        return torch.nn.functional.interpolate(x[None], size, mode=mode, **options)[0]

    x = degradation.noisy(resized(filtered(picture, first), (67, 62), "bilinear"), noise[0])
    x = filtered(degradation.jpeg(x, 80), second)
    x = degradation.noisy(resized(x, (26, 24), "bicubic"), noise[1])
    for jpeg_first in (False, True):
        if jpeg_first:
            y = filtered(resized(degradation.jpeg(x, 60), (24, 22), "area"), last)
        else:
            y = degradation.jpeg(filtered(resized(x, (24, 22), "area"), last), 60)
        result = degradation.apply(picture, Drawn(4, steps, last, "area", jpeg_first))
        assert result.shape == (3, 24, 22)
        assert float((result - y).abs().mean()) < 1e-3 + (0.5 / 255 if jpeg_first else 0)


@pytest.mark.parametrize("size", [(64, 64), (101, 66), (33, 131), (7, 9), (4, 4)])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("parameters", [REAL_ESRGAN, BICUBIC], ids=["real_esrgan", "bicubic"])
def test_the_result_has_the_size_the_range_and_8_bits(size, scale, parameters):
    picture = ramp(*size)
    before = picture.clone()
    for seed in range(5):
        result = degradation.degrade(picture, scale, seed, parameters)
        assert result.shape == (3, size[0] // scale, size[1] // scale)
        assert result.dtype == torch.float32
        assert torch.equal(result, (255 * result).round().clamp(0, 255) / 255)
    assert torch.equal(picture, before)


def test_bicubic_is_torchs():
    picture = torch.rand(3, 60, 84, generator=seeded(0))
    for scale, size in ((4, (15, 21)), (3, (20, 28))):
        expected = torch.nn.functional.interpolate(picture[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
        for seed in range(2):
            assert torch.equal(degradation.degrade(picture, scale, seed, BICUBIC), (expected * 255).round() / 255)


def test_the_picture_remains_in_its_place():
    """On a slope, where blur changes nothing: the mean of many degradations moves by less than a sixth of a pixel."""
    y, x = torch.meshgrid(torch.linspace(0.3, 0.7, 128), torch.linspace(0.3, 0.7, 128), indexing="ij")
    picture = torch.stack([x, y, (x + y) / 2])
    plain, *many = (
        degradation.degrade(picture, 4, seed, parameters)
        for seed, parameters in [(0, BICUBIC)] + [(n, REAL_ESRGAN) for n in range(200)]
    )
    away = (torch.stack(many).mean(0) - plain)[:, 8:-8, 8:-8].mean((1, 2))
    assert float(away.abs().max()) < 0.4 / 32 / 6


CODE = """
import hashlib, torch
from backbones.pictures import degradation
picture = torch.linspace(0, 1, 3 * 67 * 80).reshape(3, 67, 80)
lows = [degradation.degrade(picture, 4, [7, n]) for n in range(12)]
print(hashlib.sha256(b"".join(low.numpy().tobytes() for low in lows)).hexdigest())
"""


def test_a_seed_gives_the_same_bits_in_another_process(capsys):
    exec(CODE, {})
    here = capsys.readouterr().out.strip()
    root = Path(__file__).parents[1]
    there = subprocess.run([sys.executable, "-c", CODE], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    assert here == there


def test_global_random_states_are_neither_read_nor_changed():
    picture = ramp()

    def states():
        return torch.get_rng_state().tolist(), random.getstate(), [np.array(s).tolist() for s in np.random.get_state()[1:]]  # noqa: NPY002

    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = states()
        results.append(degradation.degrade(picture, 4, 5))
        assert states() == before
    assert torch.equal(*results)
    assert not torch.equal(results[0], degradation.degrade(picture, 4, 6))


@pytest.mark.parametrize("mode", MODES)
def test_resizes_are_torchs_whatever_the_number_of_threads(mode):
    """Torch's bilinear, with which threads matter, is replaced; the others must not change with them."""
    generator = seeded(0)
    try:
        for _ in range(12):
            h, w, *size = torch.randint(1, 260, (4,), generator=generator).tolist()
            picture = torch.rand(3, h, w, generator=generator)
            options = {} if mode == "area" else {"align_corners": False}
            expected = torch.nn.functional.interpolate(picture[None], size, mode=mode, **options)[0]
            results = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                results.append(degradation._resized(picture, size, mode))
            torch.testing.assert_close(results[0], expected, rtol=0, atol=1e-4)  # torch's places are in float32
            assert torch.equal(*results)
    finally:
        torch.set_num_threads(1)


def test_one_stage_and_three_are_possible():
    stage = REAL_ESRGAN.stages[1]
    for stages in ((stage,), (*REAL_ESRGAN.stages, stage)):
        drawn = degradation.sample(Degradation(stages, scale=2), np.random.default_rng(0))
        assert len(drawn.steps) == len(stages)
        assert degradation.apply(ramp(31, 40), drawn).shape == (3, 15, 20)


# Errors.


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 3, 8, 8), (3, 3, 8), (8, 8)])
def test_wrong_pictures_are_refused(shape):
    with pytest.raises(ValueError, match="picture: shape"):
        degradation.degrade(torch.zeros(shape), 4, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blur": 1.5}, "blur: 1.5; a probability"),
        ({"resize": (0.5, 0.5, 0.5)}, "resize: .*; probabilities that sum to 1"),
        ({"sigma": (3, 0.2)}, "sigma: .*; 0 < low <= high"),
        ({"factor": (0.2, 0.9)}, "factor: .*; a range around 1"),
        ({"quality": (30, 101)}, "quality: .*; at most 100"),
        ({"sizes": (7, 8)}, "sizes: .*; odd numbers"),
        ({"kinds": (("box", 1.0),)}, "kinds: .*box"),
    ],
)
def test_impossible_stages_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(REAL_ESRGAN.stages[0], **change)


@pytest.mark.parametrize("scale", [0, -4, 2.5])
def test_impossible_scales_are_refused(scale):
    with pytest.raises(ValueError, match="scale: "):
        degradation.degrade(ramp(), scale, 0)
    assert isinstance(REAL_ESRGAN.stages[0], Stage)
