"""The stationary Gaussian model of photographs: exact for its own model, any size, better than bicubic in the mean."""

from pathlib import Path

import numpy as np
import pytest
import torch
from instances import seeded
from PIL import Image

import backbones
from backbones.exact import gaussian, photograph

PHOTO = Path(__file__).parents[1] / "benchmarks" / "data" / "chelsea.png"


def chelsea():
    image = Image.open(PHOTO)
    small = image.resize((64, 64), Image.Resampling.BICUBIC)
    tensor = [torch.from_numpy(np.array(i)).permute(2, 0, 1)[None] / 255 for i in (image, small)]
    return tensor[0], tensor[1]


def test_the_transfer_of_bicubic_downsampling_is_pillows():
    """A cosine of frequency rho shrinks by K(rho) when Pillow downsamples it."""
    n, s = 64, 4
    for k in (4, 20, 40):
        rho = k / n
        wave = torch.cos(torch.pi * (torch.arange(n * s) + 0.5) * k / (n * s))
        small = np.asarray(Image.fromarray(wave.expand(8, -1).numpy()).resize((n, 8), Image.Resampling.BICUBIC))[4]
        expected = np.cos(np.pi * (np.arange(n) + 0.5) * k / n)
        inner = slice(8, -8)  # Pillow cuts its kernel off at the border, the model mirrors the picture
        transfer = (small[inner] * expected[inner]).sum() / (expected[inner] ** 2).sum()
        assert transfer == pytest.approx(float(photograph._blur(torch.tensor([rho]))), abs=0.01)


def test_the_fit_finds_the_power_law():
    h = w = 96
    rho = torch.sqrt((torch.arange(h) / h)[:, None] ** 2 + (torch.arange(w) / w) ** 2).clamp(min=0.5 / h)
    z = torch.randn(1, 3, h, w) * (0.02 * rho**-2.5).sqrt()
    A, beta = photograph._fit(z, torch.ones(h, w), 1e-9)
    assert A.flatten().tolist() == pytest.approx([0.02] * 3, rel=0.15)
    assert beta.flatten().tolist() == pytest.approx([2.5] * 3, abs=0.15)


def test_the_posterior_is_bayes_for_each_mode():
    """Mean and variance of x | z with z = K x + n, from the precision form, at a mode below Nyquist; the prior above."""
    _, small = chelsea()
    backbone = photograph.StationaryGaussian()
    x_hat0, posterior = backbone.encode(small, 4)
    z = gaussian.dct2(x_hat0)
    assert torch.allclose(z[..., 64:, :], torch.zeros(()), atol=1e-4)
    A, beta = photograph._fit(
        z[..., :64, :64],
        photograph._blur(torch.arange(64) / 64)[:, None] * photograph._blur(torch.arange(64) / 64),
        photograph._ROUNDING * 16,
    )
    y, x = 20, 31
    rho = (y**2 + x**2) ** 0.5 / 64
    K = float(photograph._blur(torch.tensor([y / 64])) * photograph._blur(torch.tensor([x / 64])))
    prior = (A * rho**-beta)[0, :, 0, 0]
    variance, mean = posterior.variance[0, :, y, x], posterior.mean[0, :, y, x]
    noise = 1 / (1 / variance - 1 / prior) * K**2  # from 1/variance = 1/S + K^2/n^2
    y, x = y / 64, x / 64
    folded = 0.0
    for q, p in ((2 - y, x), (y, 2 - x), (2 - y, 2 - x)):  # the frequencies that downsampling folds onto this one
        k = float(photograph._blur(torch.tensor([q])) * photograph._blur(torch.tensor([p])))
        folded = folded + k**2 * (A * (q**2 + p**2) ** (-beta / 2))[0, :, 0, 0]
    assert torch.allclose(noise, photograph._ROUNDING * 16 + folded, rtol=1e-3)
    y, x = 20, 31
    assert torch.allclose(mean, variance * K / noise * z[0, :, y, x], rtol=1e-3, atol=1e-4)
    above = (A * (70**2 / 64**2 + 1) ** (-beta / 2))[0, :, 0, 0]
    assert torch.allclose(posterior.variance[0, :, 70, 64], above, rtol=1e-4)
    assert posterior.mean[0, :, 70, 64].tolist() == [0, 0, 0]


def test_one_call_is_the_posterior_mean_and_beats_bicubic():
    truth, small = chelsea()
    backbone = backbones.load("gaussian")
    mean = backbones.upscale(backbone, small, 4, 1, 1)
    posterior = backbone.encode(small, 4)[1]
    assert torch.allclose(mean, backbone.decode(gaussian.idct2(posterior.mean)), atol=1e-5)
    resized = Image.fromarray((255 * small[0].permute(1, 2, 0)).byte().numpy()).resize((256, 256), Image.Resampling.BICUBIC)
    bicubic = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 255
    assert float((mean - truth).square().mean()) < 0.95 * float((bicubic - truth).square().mean())


def test_its_samples_have_more_power_above_nyquist_than_bicubic_and_about_that_of_the_photograph():
    truth, small = chelsea()
    sample = backbones.upscale(backbones.load("gaussian"), small, 4, 5, 3, noise=seeded(0))

    def high(picture):
        modes = gaussian.dct2(picture)
        return float(modes[..., 64:, 64:].square().sum())

    assert 0.3 < high(sample) / high(truth) < 3


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (5, 5), (17, 31)])
@pytest.mark.parametrize("scale", [1, 1.5, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_scale(size, scale, channels):
    picture = torch.rand(1, channels, *size)
    result = backbones.upscale(backbones.load("gaussian"), picture, scale, 3, 2)
    assert result.shape == (1, channels, max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    assert result.isfinite().all()
    assert 0 <= float(result.min()) <= float(result.max()) <= 1


def test_a_flat_picture_stays_flat():
    picture = torch.full((1, 3, 20, 30), 0.25)
    result = backbones.upscale(backbones.load("gaussian"), picture, 4, 5, 3)
    assert float((result - 0.25).abs().max()) < 0.01


@pytest.mark.parametrize(
    ("picture", "scale", "message"),
    [
        (torch.rand(1, 2, 4, 4), 4, r"picture: shape \(1, 2, 4, 4\); \(batch, 1 or 3, height, width\)"),
        (torch.rand(3, 4, 4), 4, r"picture: shape \(3, 4, 4\)"),
        (torch.rand(1, 3, 4, 4), 0.5, r"scale: 0\.5; a number of at least 1"),
    ],
)
def test_errors(picture, scale, message):
    with pytest.raises(ValueError, match=message):
        backbones.upscale(backbones.load("gaussian"), picture, scale)
    with pytest.raises(ValueError, match=r"backbone: 'sd'; one of embedded"):
        backbones.load("sd")
