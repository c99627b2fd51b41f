"""Tiling: a partition of unity, the untiled function wherever it is covered, no grid, sizes that are refused."""

import weakref
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from backbones.pictures.tiling import _axis, boxes, tiled


@st.composite
def axes(draw):
    """size, tile, overlap, multiple, scale of one axis."""
    multiple = draw(st.sampled_from([1, 2, 3, 8]))
    tile = multiple * draw(st.integers(1, 24))
    overlap = multiple * draw(st.integers(0, tile // multiple - 1))
    size = multiple * draw(st.integers(1, 120))
    scale = draw(st.sampled_from([Fraction(1), Fraction(4), Fraction(8), Fraction(1, multiple)]))
    return size, tile, overlap, multiple, scale


@given(axes())
def test_the_weights_are_a_partition_of_unity(axis):
    size, tile, _, multiple, scale = axis
    spans = _axis(*axis)
    total = torch.zeros(int(size * scale), dtype=torch.float64)
    for span in spans:
        assert span.tile.start % multiple == 0
        assert span.tile.stop - span.tile.start == min(tile, size)
        assert float(span.weight.min()) >= 0
        assert span.part.stop - span.part.start == len(span.weight) == span.out.stop - span.out.start
        assert span.out.start - span.part.start == span.tile.start * scale
        total[span.out] += span.weight
    assert float((total - 1).abs().max()) < 1e-15
    assert spans[0].tile.start == 0
    assert spans[-1].tile.stop == size


@given(axes())
def test_there_are_as_few_tiles_as_the_overlap_permits_and_they_lie_evenly(axis):
    size, tile, overlap, multiple, _ = axis
    starts = [span.tile.start for span in _axis(*axis)]
    assert len(starts) == (1 if size <= tile else 1 + -((tile - size) // (tile - overlap)))
    gaps = {b - a for a, b in pairwise(starts)}
    assert max(gaps, default=0) <= tile - overlap
    assert max(gaps, default=0) - min(gaps, default=0) <= multiple


@given(axes())
def test_what_is_near_the_inner_border_of_a_tile_has_no_weight(axis):
    """A quarter of the overlap; where an output pixel is too large to be in between (overlap below two of them), a step."""
    size, tile, overlap, _, scale = axis
    if overlap * scale < 2:
        return
    for span in _axis(*axis):
        near = span.part.start / scale if span.tile.start else Fraction(overlap)
        far = tile - span.part.stop / scale if span.tile.stop < size else Fraction(overlap)
        assert min(near, far) >= Fraction(overlap, 4)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.integers(0, 19))
def test_boxes_cover_the_picture(height, width, tile, overlap):
    seen = torch.zeros(height, width)
    found = boxes(height, width, tile, min(overlap, tile - 1))
    for box in found:
        seen[..., *box] += 1
        assert seen[..., *box].shape == (min(tile, height), min(tile, width))
    assert float(seen.min()) >= 1
    assert len(set(map(str, found))) == len(found)


def network(layers, dtype):
    return nn.Sequential(*layers).to(dtype).requires_grad_(False)


def plain(radius, dtype):
    layers = [nn.Conv2d(3, 8, 2 * radius + 1, padding=radius), nn.SiLU(), nn.Conv2d(8, 2, 1)]
    return network(layers, dtype)


def encoder(dtype):
    """1/4; looks 1 pixel to the left and 4 to the right of its own 4. Padded at the right alone, as the VAE of SD is."""
    down = [[nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(6, 6, 3, stride=2)] for _ in range(2)]
    return network([nn.Conv2d(3, 6, 3, padding=1), nn.SiLU(), *down[0], nn.SiLU(), *down[1]], dtype)


def decoder(dtype):
    """4 times as large: 1 + 1/2 + 1/4 pixels around, rounded up to 2."""
    up = [[nn.Upsample(scale_factor=2), nn.Conv2d(6, 6, 3, padding=1), nn.SiLU()] for _ in range(2)]
    return network([nn.Conv2d(3, 6, 3, padding=1), nn.SiLU(), *up[0], *up[1]], dtype)


CASES = {
    "radius 0": (lambda dtype: plain(0, dtype), (33, 50), 16, 0, 1, 1),
    "radius 1": (lambda dtype: plain(1, dtype), (33, 50), 16, 4, 1, 1),
    "radius 2, overlap over half": (lambda dtype: plain(2, dtype), (41, 23), 12, 9, 1, 1),
    "radius 3": (lambda dtype: plain(3, dtype), (64, 40), 24, 12, 1, 4),
    "encoder": (encoder, (64, 100), 40, 20, Fraction(1, 4), 4),
    "decoder": (decoder, (20, 33), 16, 8, 4, 1),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 2e-15)])
@pytest.mark.parametrize("case", CASES)
def test_a_function_that_looks_no_further_than_a_quarter_of_the_overlap_is_what_it_is_untiled(case, dtype, tolerance):
    make, size, tile, overlap, scale, multiple = CASES[case]
    function, picture = make(dtype), torch.randn(2, 3, *size, dtype=dtype)
    expected = function(picture)
    result = tiled(function, [picture], tile, overlap, scale, multiple)
    assert result.dtype == dtype
    assert float((result - expected).abs().max()) < tolerance * float(expected.abs().max())


def test_one_that_looks_further_is_not():
    """Or the test above would prove nothing."""
    function, picture = plain(4, torch.float64), torch.randn(1, 3, 33, 50, dtype=torch.float64)
    assert float((tiled(function, [picture], 16, 4) - function(picture)).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(16, 16), (9, 16), (1, 1)])
def test_one_tile_is_the_function_itself(dtype, size):
    function, picture, given_ = plain(3, dtype), torch.randn(2, 3, *size).to(dtype), []

    def watched(x):
        given_.append(x)
        return function(x)

    assert torch.equal(tiled(watched, [picture], 16, 4), function(picture))
    assert given_[0] is picture


def test_a_constant_picture_has_no_grid():
    """A net that pads with zeros answers otherwise at the border of a tile; what is covered must not show."""
    function, stride, radius = plain(2, torch.float32), 24, 2
    side = 8 * stride
    size = side + 16  # a multiple of the stride is left when the border of the picture itself is cut off
    picture = torch.full((1, 3, size, size), 0.7)

    def grid(overlap):
        result = tiled(function, [picture], stride + overlap, overlap)[..., radius : radius + side, radius : radius + side]
        energy = torch.fft.fft2(result.double()).abs() ** 2
        constant = energy[..., 0, 0].sum()
        return float((energy.sum() - constant) / energy.sum())

    assert [b[1].start for b in boxes(size, size, stride + 8, 8)][:3] == [0, 22, 44]
    assert grid(8) < 1e-12
    assert grid(0) > 1e-4  # what it is against


def test_a_difference_between_tiles_that_nothing_covers_is_blended_without_a_step():
    """Tiles that each answer with their mean: the result rises no faster than the ramp."""
    picture = torch.linspace(0, 1, 200).expand(1, 1, 40, 200)
    result = tiled(lambda x: x.mean((-2, -1), keepdim=True).expand_as(x), [picture], 40, 20)
    steps = result.diff(dim=-1)
    assert float(steps.min()) >= -1e-6
    assert float(steps.max()) < 2.1 * 0.1 / 10  # twice the mean slope of a ramp of 10 pixels between means 0.1 apart
    assert float(result.diff(dim=-2).abs().max()) < 1e-6


def test_inputs_are_cropped_alike_and_progress_counts():
    x, hint, seen, corners = torch.randn(2, 4, 30, 45), torch.randn(1, 2, 30, 45), [], []

    def function(x, hint):
        assert x.is_contiguous()
        corners.append((x.shape, hint.shape))
        return x * hint.sum(1, keepdim=True)

    result = tiled(function, [x, hint], 16, 4, progress=lambda done, count: seen.append((done, count)))
    assert torch.allclose(result, function(x, hint), atol=1e-6)
    count = len(boxes(30, 45, 16, 4))
    assert seen == [(i + 1, count) for i in range(count)]
    assert set(corners[:-1]) == {((2, 4, 16, 16), (1, 2, 16, 16))}


def test_no_more_than_one_output_of_a_tile_is_alive():
    outputs = []

    def function(x):
        assert all(reference() is None for reference in outputs)
        out = x * 2
        outputs.append(weakref.ref(out))
        return out

    tiled(function, [torch.randn(1, 1, 40, 40)], 16, 4)
    assert len(outputs) == 9


def test_what_a_function_returns_stays_as_it_was():
    """Inputs and outputs may be the same tensor: nothing is weighted in place."""
    x = torch.randn(1, 3, 33, 50)
    before = x.clone()
    assert torch.allclose(tiled(lambda x: x, [x], 16, 6), before, atol=1e-6)
    assert torch.equal(x, before)


def test_half_precision_is_summed_in_float32():
    x = torch.randn(1, 3, 40, 40).bfloat16()
    assert torch.equal(tiled(lambda x: x, [x], 16, 8), x)


def test_gradients_pass_also_after_inference_mode():
    x, net = torch.randn(1, 3, 20, 21, requires_grad=True, dtype=torch.float64), plain(1, torch.float64)
    with torch.inference_mode():
        tiled(net, [x], 8, 4)
    (ours,) = torch.autograd.grad(tiled(net, [x], 8, 4).square().sum(), x)
    (untiled,) = torch.autograd.grad(net(x).square().sum(), x)
    assert torch.allclose(ours, untiled)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 0}, "tile: 0; a multiple of 1, at least 1, is needed"),
        ({"tile": 12, "multiple": 8}, "tile: 12; a multiple of 8, at least 8"),
        ({"overlap": -1}, "overlap: -1; a multiple of 1 from 0 to below tile = 16"),
        ({"overlap": 16}, "overlap: 16; a multiple of 1 from 0 to below tile = 16"),
        ({"overlap": 4, "multiple": 8}, "overlap: 4; a multiple of 8"),
        ({"multiple": 0}, "multiple: 0; at least 1"),
        ({"overlap": 0, "multiple": 16}, "inputs: a side of 40; a multiple of 16, at least 16"),
        ({"scale": Fraction(1, 8)}, "scale: 1/8 with multiple = 1; scale multiple must be a whole number above 0"),
        ({"scale": 0}, "scale: 0 with multiple = 1"),
        ({"scale": 2}, r"function: returned \(1, 3, 16, 16\); height and width \(32, 32\) are needed, as scale is 2"),
        ({"scale": 2, "tile": 64}, r"function: returned \(1, 3, 40, 48\); height and width \(80, 96\)"),
        ({"inputs": []}, "inputs: shapes none; one or more"),
        ({"inputs": [torch.ones(3)]}, r"inputs: shapes \(3,\); one or more"),
        ({"inputs": [torch.ones(4, 4), torch.ones(4, 5)]}, r"inputs: shapes \(4, 4\), \(4, 5\); one or more"),
        ({"inputs": [torch.ones(1, 3, 0, 4)]}, "inputs: a side of 0; a multiple of 1, at least 1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiled(**{"function": lambda x: x, "inputs": [torch.ones(1, 3, 40, 48)], "tile": 16, "overlap": 8} | arguments)


@pytest.mark.parametrize(("tile", "overlap", "multiple"), [(0, 0, 1), (8, 8, 1), (8, 2, 4), (8, 4, 0)])
def test_errors_of_boxes(tile, overlap, multiple):
    with pytest.raises(ValueError, match="is needed"):
        boxes(16, 16, tile, overlap, multiple)
