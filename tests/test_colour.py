"""Colour fixes: the recorded pictures, the definitions written out, any size and dtype."""

import golden_sd21
import pytest
import torch
import torch.nn.functional as F

from backbones.pictures import colour


def recorded(name):
    return torch.tensor(golden_sd21.load("modules")[f"cf_{name}"])


def decompose(x, levels=5):
    """High and low frequencies as the definition has them: two-dimensional kernels, level by level."""
    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype)
    kernel = (torch.outer(kernel, kernel) / 16).expand(x.shape[1], 1, 3, 3)
    high = torch.zeros_like(x)
    for level in range(levels):
        padded = F.pad(x, (2**level,) * 4, mode="replicate")
        low = F.conv2d(padded, kernel, groups=x.shape[1], dilation=2**level)
        high, x = high + x - low, low
    return high, x


@pytest.mark.parametrize("name", ["wavelet", "adain"])
def test_parity_with_the_recorded_fixes(name):
    ours = colour.COLOUR_FIXES[name](recorded("content"), recorded("style"))
    assert float((ours - recorded(name)).abs().max()) < 5e-7


def test_the_definition_above_is_the_recorded_one():
    high, low = decompose(recorded("content"))
    assert float((high - recorded("high")).abs().max()) < 1e-6
    assert float((low - recorded("low")).abs().max()) < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1), (2, 3), (15, 16), (17, 31), (32, 33), (70, 20)])
@pytest.mark.parametrize("levels", [1, 3, 5, 7])
def test_wavelet_is_its_definition_at_any_size(size, levels):
    content, style = torch.rand(2, 2, 3, *size, dtype=torch.float64)
    expected = decompose(content, levels)[0] + decompose(style, levels)[1]
    assert torch.allclose(colour.wavelet(content, style, levels), expected, rtol=0, atol=1e-14)


def test_wavelet_of_itself_is_itself():
    x = torch.rand(1, 3, 20, 30)
    assert torch.equal(colour.wavelet(x, x), x)


def test_wavelet_takes_the_mean_and_keeps_the_detail():
    """A constant added to the style arrives; a checkerboard, which the first blur removes, does not."""
    content = torch.rand(1, 3, 80, 80, dtype=torch.float64)
    board = (torch.arange(80)[:, None] + torch.arange(80)) % 2 - 0.5
    assert torch.allclose(colour.wavelet(content, content + 0.25), content + 0.25)
    inner = (slice(None), slice(None), slice(32, -32), slice(32, -32))
    assert torch.allclose(colour.wavelet(content, content + board)[inner], content[inner])


def test_adain_has_the_moments_of_style():
    content, style = torch.rand(2, 2, 3, 40, 30, dtype=torch.float64)
    style = 0.5 * style + torch.rand(2, 3, 1, 1)
    result = colour.adain(content, style)
    assert torch.allclose(result.mean((-2, -1)), style.mean((-2, -1)))
    assert torch.allclose(result.std((-2, -1)), style.std((-2, -1)), rtol=1e-3)  # 1e-5 is added to both variances
    detail, expected = (x - x.mean((-2, -1), keepdim=True) for x in (result, content))
    assert torch.allclose(F.normalize(detail.flatten(2), dim=-1), F.normalize(expected.flatten(2), dim=-1))


@pytest.mark.parametrize("name", colour.COLOUR_FIXES)
def test_a_picture_of_one_pixel_or_one_colour(name):
    fix, flat = colour.COLOUR_FIXES[name], torch.full((1, 3, 9, 8), 0.25)
    pixel = fix(torch.full((1, 3, 1, 1), 0.7), torch.full((1, 3, 1, 1), 0.2))
    assert pixel.flatten().tolist() == pytest.approx([0.7 if name == "none" else 0.2] * 3)
    assert torch.allclose(fix(flat, flat + 0.5), flat if name == "none" else flat + 0.5)


@pytest.mark.parametrize("name", colour.COLOUR_FIXES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    content, style = torch.rand(2, 1, 3, 20, 24).to(dtype)
    fix = colour.COLOUR_FIXES[name]
    result = fix(content, style)
    assert result.dtype == torch.float32
    assert torch.equal(result, fix(content.float(), style.float()))


@pytest.mark.parametrize("name", colour.COLOUR_FIXES)
def test_what_it_is_given_stays_as_it_was(name):
    content, style = torch.rand(2, 1, 3, 9, 9)
    before = content.clone(), style.clone()
    colour.COLOUR_FIXES[name](content, style)
    assert torch.equal(content, before[0])
    assert torch.equal(style, before[1])


@pytest.mark.parametrize("name", colour.COLOUR_FIXES)
def test_strides_do_not_matter(name):
    content, style = torch.rand(2, 2, 20, 24, 3).permute(0, 1, 4, 2, 3)
    fix = colour.COLOUR_FIXES[name]
    assert torch.allclose(fix(content, style), fix(content.contiguous(), style.contiguous()), atol=1e-6)


@pytest.mark.parametrize(
    ("content", "style", "message"),
    [
        ((3, 4, 4), (3, 4, 4), r"content: shape \(3, 4, 4\); \(batch, channels, height, width\) is needed"),
        ((1, 3, 0, 4), (1, 3, 0, 4), r"content: shape \(1, 3, 0, 4\)"),
        ((1, 3, 4, 4), (1, 3, 4, 5), r"style: shape \(1, 3, 4, 5\); that of content, \(1, 3, 4, 4\), is needed"),
    ],
)
@pytest.mark.parametrize("name", colour.COLOUR_FIXES)
def test_errors(name, content, style, message):
    with pytest.raises(ValueError, match=message):
        colour.COLOUR_FIXES[name](torch.rand(content), torch.rand(style))
    with pytest.raises(ValueError, match=r"levels: 0; at least 1"):
        colour.wavelet(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4), 0)
