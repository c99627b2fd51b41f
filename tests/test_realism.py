"""The measures of benchmarks/realism.py know what they should, and what they should not."""

import numpy as np
import pytest
import realism
import torch
from instances import seeded
from scipy import ndimage

from backbones.training.data import Bundled


@pytest.fixture(scope="module")
def truth():
    return Bundled(64).whole("astronaut")[None, :, 40:296, 100:356].contiguous()


def blurred(picture, std):
    return torch.from_numpy(ndimage.gaussian_filter(picture.numpy(), (0, 0, std, std), mode="reflect"))


def test_the_picture_itself_has_no_error(truth):
    assert realism.spectrum_error(truth, truth, 4) == 0
    assert realism.texture_error(truth, truth, 4) == 0


def test_the_power_is_that_of_white_noise():
    """Flat, and its variance at every frequency."""
    noise = 0.1 * torch.randn(1, 1, 256, 320, generator=seeded(0)).expand(-1, 3, -1, -1)
    frequency, power = realism.radial(noise)
    assert frequency[0] == pytest.approx(0.5 / 192)
    assert frequency[-1] == pytest.approx(0.5 - 0.5 / 192)
    assert power[20:].mean() == pytest.approx(0.01, rel=0.02)
    assert power[20:] == pytest.approx(0.01, rel=0.25)


def test_a_wave_is_in_its_ring():
    wave = 0.5 + 0.3 * torch.cos(2 * torch.pi * 0.2 * torch.arange(200)).expand(1, 3, 150, 200)
    frequency, power = realism.radial(wave)
    assert frequency[power.argmax()] == pytest.approx(0.2, abs=1 / 192)


def test_twice_the_power_is_three_decibels(truth):
    louder = 0.5 + 2**0.5 * (truth - 0.5)
    assert realism.spectrum_error(louder, truth, 4) == pytest.approx(10 * np.log10(2), rel=1e-3)


def test_what_the_input_knows_is_not_asked_for(truth):
    """A slow gradient changes neither; the same picture mirrored has the same texture."""
    ramp = 0.2 * torch.linspace(-1, 1, 256)[:, None]
    assert realism.spectrum_error(truth + ramp, truth, 4) < 0.3
    assert realism.texture_error(truth + ramp, truth, 4) < 0.02
    assert realism.texture_error(truth.flip(3), truth, 4) < 0.2


def test_errors_grow_with_what_is_missing(truth):
    for measure in (realism.spectrum_error, realism.texture_error):
        errors = [measure(blurred(truth, std), truth, 4) for std in (0.5, 1.0, 2.0)]
        assert errors == sorted(errors)
        assert errors[0] > 0.05
    assert realism.texture_error(blurred(truth, 8.0), truth, 4) == pytest.approx(1, abs=0.03)


def test_grain_of_the_right_power_passes_the_spectrum_and_not_the_texture(truth):
    """The same amplitudes with random phases."""
    y = truth.mean(1, keepdim=True)
    noise = torch.randn(y.shape, generator=seeded(1))
    phases = torch.fft.fft2(noise) / torch.fft.fft2(noise).abs()
    grain = torch.fft.ifft2(torch.fft.fft2(y - y.mean()).abs() * phases).real + y.mean()
    grain, y = (p.expand(-1, 3, -1, -1) for p in (grain, y))
    assert realism.spectrum_error(grain, y, 4) < 1.5
    assert realism.texture_error(grain, y, 4) > 0.3


def test_grain_is_what_noise_adds_where_the_truth_is_flat(truth):
    """Detail where the truth has detail is none, nor is a shift of brightness."""
    noise = torch.randn(1, 1, 256, 256, generator=seeded(0)).expand(-1, 3, -1, -1)
    board = (torch.arange(256)[:, None] + torch.arange(128)) % 2 - 0.5
    flat = torch.cat([0.5 + 0.02 * board.expand(1, 3, -1, -1), 0.5 + 0.2 * noise[..., 128:]], 3)
    assert realism.grain(flat, flat) == 1
    assert realism.grain(truth + 0.1, truth) == pytest.approx(1, abs=1e-5)
    assert realism.grain(flat + 0.02 * noise, flat) == pytest.approx(3**0.5, rel=0.05)  # (2 d)^2 + 2 std^2, d = 0.01
    assert realism.grain(0.5 + 2 * (flat - 0.5), flat) == pytest.approx(2, rel=0.01)
    assert realism.grain(blurred(truth, 1.0), truth) < 1
    constant = torch.full_like(truth, 0.5)
    assert realism.grain(constant, constant) == 1
    assert realism.grain(constant + noise / 255, constant) == pytest.approx(13**0.5, rel=0.02)  # (2 + 1/6) over 1/6
