"""Pictures in files: depths, layouts, orientation, transparency, ranges, formats and their limits, and broken files."""

import io
import os
import random
import resource
import socket
import struct
import time
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pictures
import pytest
import tifffile
import torch
from instances import seeded
from PIL import Image, ImageCms

import backbones
from backbones.cli import main
from backbones.pictures import formats, metrics
from backbones.pictures import io as images
from backbones.pictures.resize import bicubic
from backbones.pictures.transparency import filled
from dosde.check import Refused

FLIPS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def integers(bits, channels, height=9, width=13):
    """Random samples, (height, width, channels)."""
    return np.random.default_rng([bits, channels]).integers(0, 2**bits, (height, width, channels))


def read(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    return images.read(tmp_path / "a")


def arrays(picture):
    """Colour and alpha as (height, width, channels), or None."""
    return [None if x is None else x[0].permute(1, 2, 0).double().numpy() for x in (picture.colour, picture.alpha)]


# -- TIFF and PNG of every depth --------------------------------------------------------------------------------------------

# name: (photometric interpretation, samples, ExtraSamples, samples in [0, 1] -> colour, and alpha or None)
TIFFS = {
    "white is zero": (0, 1, [], lambda x: (1 - x, None)),
    "grey": (1, 1, [], lambda x: (x, None)),
    "grey and alpha": (1, 2, [2], lambda x: (x[..., :1], x[..., 1:])),
    "grey times alpha": (1, 2, [1], lambda x: (divided(x[..., :1], x[..., 1:]), x[..., 1:])),
    "grey and something": (1, 2, [0], lambda x: (x[..., :1], None)),
    "white is zero and alpha": (0, 2, [2], lambda x: (1 - x[..., :1], x[..., 1:])),
    "colour": (2, 3, [], lambda x: (x, None)),
    "colour and alpha": (2, 4, [2], lambda x: (x[..., :3], x[..., 3:])),
    "colour times alpha": (2, 4, [1], lambda x: (divided(x[..., :3], x[..., 3:]), x[..., 3:])),
    "colour and something": (2, 4, [0], lambda x: (x[..., :3], None)),
    "colour and an unnamed sample": (2, 4, [], lambda x: (x[..., :3], x[..., 3:])),
    "colour, something and alpha": (2, 5, [0, 2], lambda x: (x[..., :3], x[..., 4:])),
    "CMYK": (5, 4, [], lambda x: ((1 - x[..., :3]) * (1 - x[..., 3:]), None)),
}


def divided(colour, alpha):
    return np.divide(colour, alpha, out=np.zeros(colour.shape), where=alpha > 0).clip(0, 1)


@pytest.mark.parametrize("kind", TIFFS)
def test_a_tiff_is_the_same_at_every_depth_and_in_every_layout(tmp_path, kind):
    photometric, samples, extras, meaning = TIFFS[kind]
    layouts = [
        {},
        {"order": ">"},
        {"apart": True},
        {"apart": True, "rows": 2, "order": ">"},
        {"rows": 4, "deflated": True},
        {"big": True, "order": ">", "rows": 3},
    ]
    for bits, layout in product((1, 2, 3, 4, 8, 10, 12, 14, 16), layouts):
        values = integers(bits, samples)
        tags = {338: (3, extras)} if extras else {}
        picture = read(tmp_path, pictures.tiff(values, bits, photometric, tags=tags, **layout))
        colour, alpha = arrays(picture)
        wanted, opacity = meaning(values / (2**bits - 1))
        assert np.abs(colour - wanted).max() < 1e-5, (bits, layout)
        assert (alpha is None) == (opacity is None), (bits, layout)
        assert opacity is None or np.abs(alpha - opacity).max() < 1e-6, (bits, layout)
        assert picture.bits == (8 if bits <= 8 else 16)


@pytest.mark.parametrize("compression", [None, "lzw", "adobe_deflate", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("bits", [8, 16])
def test_tiles_predictors_and_compressions(tmp_path, compression, bits):
    values = integers(bits, 3, 35, 45).astype(f"u{bits // 8}")
    for predictor, planes in product((False, True) if compression else (False,), ("contig", "separate")):
        data = io.BytesIO()
        array = values if planes == "contig" else values.transpose(2, 0, 1)
        how = {"photometric": "rgb", "planarconfig": planes, "compression": compression, "predictor": predictor}
        tifffile.imwrite(data, array, tile=(16, 16), byteorder=">", metadata=None, **how)
        assert np.array_equal(arrays(read(tmp_path, data.getvalue()))[0], np.float32(values) / np.float32(2**bits - 1))


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("most", [65535, 255])
def test_a_palette_of_a_tiff(tmp_path, bits, most):
    """Some write its colours in 8 bits."""
    table = np.random.default_rng(0).integers(0, most + 1, (3, 2**bits))
    values = integers(bits, 1)
    colour, alpha = arrays(read(tmp_path, pictures.tiff(values, bits, 3, tags={320: (3, table.ravel().tolist())})))
    assert np.abs(colour - (table if most == 255 else table >> 8).T[values[..., 0]] / 255).max() < 1e-6
    assert alpha is None


@pytest.mark.parametrize("compression", ["jpeg", "group3", "group4", "tiff_lzw"])
def test_codecs_of_pictures_in_a_tiff(tmp_path, compression):
    """JPEG (YCbCr) and fax: those of Pillow."""
    image = Image.fromarray(integers(8, 3).astype(np.uint8)).convert("1" if compression[0] == "g" else "RGB")
    image.save(tmp_path / "a.tif", compression=compression)
    colour, _ = arrays(images.read(tmp_path / "a.tif"))
    assert np.abs(colour * 255 - np.asarray(Image.open(tmp_path / "a.tif").convert("RGB"))).max() < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({339: (3, [3])}, "floating samples of 16 bits in a TIFF, of unknown range"),
        ({339: (3, [2])}, "signed samples of 16 bits"),
        ({258: (3, [16, 8, 16])}, r"samples of \(16, 8, 16\) bits in a TIFF; 1 to 16, all alike"),
        ({258: (3, [32] * 3)}, "samples of 32 bits"),
        ({262: (3, [8])}, "CIELAB in a TIFF, which is not understood; convert it to grey or RGB"),
        ({262: (3, [6])}, "JPEG or YCbCr of 16 bits in a TIFF; convert it to RGB"),
        ({262: (3, [777])}, "photometric interpretation 777"),
        ({259: (3, [7])}, "JPEG or YCbCr of 16 bits"),
        ({259: (3, [34712])}, "compression 34712 in a TIFF, which is not understood"),
        ({277: (3, [2])}, "2 samples a pixel"),
        ({317: (3, [3])}, "predictor 3"),
        ({32997: (4, [2])}, "a TIFF of depth 2"),
        ({256: (4, [60_000]), 257: (4, [60_000])}, "60000x60000 pixels in"),
        ({279: (4, [10**6])}, "it ends before its pixels do"),
        ({273: (4, [10**6])}, "it ends before its pixels do"),
        ({257: (4, [0])}, "13x0 pixels"),
    ],
)
def test_a_tiff_that_is_not_understood_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, pictures.tiff(integers(16, 3), 16, 2, tags=change))


# kind: (bits that it may have, samples)
PNGS = {0: ((1, 2, 4, 8, 16), 1), 2: ((8, 16), 3), 4: ((8, 16), 2), 6: ((8, 16), 4)}


@pytest.mark.parametrize(("kind", "bits"), [(kind, bits) for kind, (depths, _) in PNGS.items() for bits in depths])
@pytest.mark.parametrize("transparent", [False, True])
def test_a_png_is_the_same_at_every_depth(tmp_path, kind, bits, transparent):
    """Grey stays grey beside an alpha channel, and a transparent colour is one at all of its bits."""
    samples = PNGS[kind][1]
    values = integers(bits, samples)
    clear = struct.pack(f">{samples}H", *values[0, 0]) if transparent and kind in (0, 2) else None
    if bits == 16:
        values[0, 1] = values[0, 0] ^ 1  # another colour in the last bit alone
    picture = read(tmp_path, pictures.png(values, bits, kind, clear=clear))
    colour, alpha = arrays(picture)
    count = 3 if kind in (2, 6) else 1
    assert np.abs(colour - values[..., :count] / (2**bits - 1)).max() < 1e-7
    assert picture.bits == (8 if bits <= 8 else 16)
    if kind in (4, 6):
        assert np.abs(alpha[..., 0] - values[..., -1] / (2**bits - 1)).max() < 1e-7
    elif clear:
        assert np.array_equal(alpha[..., 0], (values != values[0, 0]).any(-1))
    else:
        assert alpha is None


def test_16_bits_of_netpbm(tmp_path):
    values = integers(10, 3)
    text = " ".join(map(str, values.ravel()))
    for data in (b"P6 13 9 1023\n" + values.astype(">u2").tobytes(), b"P3 13 9 1023 # a note\n" + text.encode()):
        picture = read(tmp_path, data)
        assert np.abs(arrays(picture)[0] - values / 1023).max() < 1e-5
        assert picture.bits == 16
    with pytest.raises(ValueError, match="it ends before its pixels do"):
        read(tmp_path, b"P6 13 9 1023\n" + values.astype(">u2").tobytes()[:-2])


@pytest.mark.parametrize("orientation", FLIPS)
def test_orientation_is_applied_once_at_every_depth(tmp_path, orientation):
    """From files and from images of PIL, that have been loaded or not."""
    turn = FLIPS[orientation]
    tags = {274: (3, [orientation])}
    exif = Image.Exif()
    exif[274] = orientation

    def upright(values, bits):
        image = Image.fromarray((values.squeeze() * (255 / (2**bits - 1))).round().astype(np.uint8))
        return np.asarray(image if turn is None else image.transpose(turn)) / 255

    chunk = [(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))]
    for bits, samples in product((1, 8, 12, 16), (1, 3)):
        values = integers(bits, samples)
        files = [pictures.tiff(values, bits, 2 if samples == 3 else 1, tags=tags)]
        if (bits, samples) != (1, 3) and bits != 12:
            files.append(pictures.png(values, bits, 2 if samples == 3 else 0, before=chunk))
        for data in files:
            colour, _ = arrays(read(tmp_path, data))
            assert np.abs(colour.squeeze() - upright(values, bits)).max() < 1 / 255
    image = Image.fromarray(integers(8, 3).astype(np.uint8))
    for suffix, how in {"tif": {}, "png": {}, "webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.items():
        for compression in ("raw", "tiff_lzw", "jpeg") if suffix == "tif" else (None,):
            more = {"compression": compression, "tiffinfo": {274: orientation}} if compression else {"exif": exif, **how}
            image.save(tmp_path / f"a.{suffix}", **more)
            loaded = Image.open(tmp_path / f"a.{suffix}")
            loaded.load()
            raw = Image.open(tmp_path / f"a.{suffix}")
            made = [images.read(tmp_path / f"a.{suffix}"), images.of_pil(loaded), images.of_pil(raw), images.of_pil(raw.copy())]
            close = 30 / 255 if "jp" in f"{suffix}{compression}" else 1e-6
            for picture in made:
                colour, _ = arrays(picture)
                assert np.abs(colour - upright(integers(8, 3), 8)).mean() < close


def test_transparent_colours_and_grey_in_images_of_pil(tmp_path):
    values = integers(16, 1)
    (tmp_path / "a.png").write_bytes(pictures.png(values, 16, 0, clear=struct.pack(">H", values[0, 0, 0])))
    picture = images.of_pil(Image.open(tmp_path / "a.png"))
    assert picture.bits == 16
    assert np.array_equal(arrays(picture)[1], values != values[0, 0])
    (tmp_path / "b.png").write_bytes(pictures.png(integers(16, 2), 16, 4))
    picture = images.of_pil(Image.open(tmp_path / "b.png"))
    assert (picture.colour.shape[1], picture.alpha is None) == (1, False)
    (tmp_path / "c.png").write_bytes(pictures.png(integers(16, 3), 16, 2, clear=struct.pack(">3H", *integers(16, 3)[0, 0])))
    assert images.of_pil(Image.open(tmp_path / "c.png")).alpha[0, 0, 0, 0] == 0
    loaded = Image.open(tmp_path / "c.png")
    loaded.load()
    assert images.of_pil(loaded).alpha[0, 0, 0, 0] == 0
    assert images.of_pil(Image.new("RGB", (3, 2))).colour.shape == (1, 3, 2, 3)  # it is in no file
    lab = Image.new("RGB", (3, 2), (200, 30, 60)).convert("LAB")
    assert lab.info["icc_profile"]
    assert images.of_pil(lab).profile is None  # of LAB, and the colours are RGB now


@pytest.mark.parametrize("kind", TIFFS)
def test_an_image_of_pil_that_is_not_loaded_is_read_in_full(tmp_path, kind):
    """From a file or a stream, which the image can go on with."""
    photometric, samples, extras, _ = TIFFS[kind]
    values = integers(16, samples)
    data = pictures.tiff(values, 16, photometric, tags={338: (3, extras), 274: (3, [6])} if extras else {274: (3, [6])})
    expected = read(tmp_path, data)
    try:
        files = [Image.open(tmp_path / "a"), Image.open(io.BytesIO(data))]
    except OSError:  # Pillow does not know all layouts
        return
    for image in files:
        picture = images.of_pil(image)
        assert torch.equal(picture.colour, expected.colour)
        assert picture.alpha is None if expected.alpha is None else torch.equal(picture.alpha, expected.alpha)
        image.load()
        assert sorted(image.size) == [9, 13]


@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 0), (16, 1), (8, 0)])
def test_a_loaded_tiff_of_pil(tmp_path, bits, photometric):
    """Pillow has turned it, but has left white that is zero, and 12 bits, as they were."""
    data = pictures.tiff(integers(bits, 1), bits, photometric, tags={274: (3, [6])})
    image = Image.open(io.BytesIO(data))  # of a file it maps grey into memory, and loses the orientation
    image.load()
    assert (images.of_pil(image).colour - read(tmp_path, data).colour).abs().max() < 1e-4


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".webp", ".bmp", ".pnm", ".ppm", ".pgm", ".gif"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_written_is_read(tmp_path, suffix, bits, channels):
    """Exactly, with the profile; grey stays grey, and hidden colours stay."""
    form = formats.WRITTEN[suffix]
    held = form.alpha if channels in (2, 4) else (form.grey if channels == 1 else form.colour)
    if not held or (bits == 16 and not form.wide):
        return
    for height, width in ((9, 13), (1, 1), (1, 7), (6, 1)):
        values = integers(bits, channels, height, width)
        x = torch.from_numpy(values / (2**bits - 1)).float().permute(2, 0, 1)[None]
        colour, alpha = (x[:, :-1], x[:, -1:]) if channels in (2, 4) else (x, None)
        profile = PROFILE if form.name not in ("BMP", "PPM", "GIF") else None
        images.write(tmp_path / f"a{suffix}", images.Picture(colour, alpha, bits, profile))
        back = images.read(tmp_path / f"a{suffix}")
        # WebP and GIF have colours, and three equal channels are their grey.
        assert torch.equal(back.colour, colour.expand(-1, 3, -1, -1) if suffix in (".webp", ".gif") else colour)
        assert back.alpha is None if alpha is None else torch.equal(back.alpha, alpha)
        assert (back.bits, back.profile, back.frames) == (bits, profile, 1)


# -- Transparency -----------------------------------------------------------------------------------------------------------


def hiding(loud, opacity=0.0):
    """A visible disc of soft colours, and something else behind transparency."""
    y, x = torch.meshgrid(torch.arange(28), torch.arange(30), indexing="ij")
    disc = (y - 13) ** 2 + (x - 14) ** 2 < 80
    soft = (0.4 + 0.2 * torch.rand(1, 3, 28, 30, generator=seeded(1))).round(decimals=2)
    other = torch.rand(1, 3, 28, 30, generator=seeded(2)).round() if loud else torch.full((1, 3, 28, 30), 0.5)
    return torch.where(disc, soft, other), torch.where(disc, 1.0, opacity)[None, None]


@pytest.mark.parametrize("name", ["embedded", "gaussian"])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_hidden_colours_do_not_bleed(tmp_path, name, scale):
    made = []
    for loud in (True, False):
        images.write(tmp_path / "a.png", images.Picture(*hiding(loud), 8, None))
        options = ["--backbone", name, "--steps", "2", "--scale", str(scale), "--overwrite"]
        assert main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), *options]) == 0
        made.append(images.read(tmp_path / "b.png"))
    assert torch.equal(made[0].alpha, made[1].alpha)
    visible = made[0].alpha > 0
    assert 0.2 < visible.float().mean() < 0.6
    assert ((made[0].colour - made[1].colour) * visible).abs().max() < 1.5 / 255


def test_nearly_hidden_colours_count_little():
    """At alpha 1/255 beside opaque pixels, a colour bleeds by no more than a hundredth."""
    made = [bicubic(filled(*hiding(loud, 1 / 255)), (112, 120)) for loud in (True, False)]
    opaque = bicubic(hiding(True)[1], (112, 120)) > 0.5
    assert ((made[0] - made[1]) * opaque).abs().max() < 0.01


@pytest.mark.parametrize("opacity", [1.0, 0.5, 1 / 255, 0.0])
def test_one_alpha_changes_no_colour(opacity):
    colour = torch.rand(1, 3, 9, 7)
    assert torch.equal(filled(colour, torch.full((1, 1, 9, 7), opacity)), colour)
    assert filled(colour, None) is colour


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 1), (2, 2), (33, 17)])
def test_filling_keeps_what_is_visible_and_lies_within_it(size):
    colour = 0.3 + 0.2 * torch.rand(2, 3, *size)
    alpha = (torch.rand(2, 1, *size) < 0.3).float()
    alpha[..., 0, 0] = 1
    loud = torch.where(alpha > 0, colour, 9.0)
    result = filled(loud, alpha)
    assert torch.equal(result * alpha, colour * alpha)
    assert 0.3 <= result.min() <= result.max() <= 0.5 + 1e-6


@pytest.mark.parametrize("bits", [8, 16])
def test_what_is_opaque_stays_opaque(tmp_path, bits):
    images.write(tmp_path / "a.png", images.Picture(torch.rand(1, 3, 11, 13), torch.ones(1, 1, 11, 13), bits, None))
    assert main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.tif"), "--steps", "1", "--scale", "2.7"]) == 0
    assert (tifffile.imread(tmp_path / "b.tif")[..., 3] == 2**bits - 1).all()


def test_images_of_pil_are_rounded():
    levels = torch.arange(256).float().reshape(1, 1, 16, 16) / 255
    like = images.Picture(levels, torch.ones(1, 1, 16, 16), 8, None)
    array = np.asarray(images.to_pil(levels.expand(-1, 3, -1, -1), like))
    assert np.array_equal(array[..., 0].ravel(), np.arange(256))
    assert (array[..., 1] == 255).all()


# -- Ranges -----------------------------------------------------------------------------------------------------------------

PICTURE = torch.rand(1, 3, 10, 12, generator=seeded(5)).mul(255).round() / 255
WRONG = {
    "0 to 255": (PICTURE * 255, "from .* to 255|from .*; values"),
    "-1 to 1": (PICTURE * 2 - 1, r"values in \[0, 1\]"),
    "NaN": (PICTURE.clone().index_fill(3, torch.tensor([2]), float("nan")), "holds NaN or infinity"),
    "infinity": (PICTURE / 0, "holds NaN or infinity"),
    "int32": ((PICTURE * 255).int(), "uint8, uint16, or floating"),
    "int64": ((PICTURE * 255).long(), "uint8, uint16, or floating"),
    "bool": (PICTURE > 0.5, "uint8, uint16, or floating"),
    "sparse": (PICTURE.to_sparse(), "a dense tensor with values is needed"),
    "meta": (PICTURE.to("meta"), "a dense tensor with values is needed"),
    "complex": (PICTURE.cfloat(), "uint8, uint16, or floating"),
    "array": (PICTURE.numpy(), "a tensor is needed"),
    "image": (Image.new("RGB", (4, 4)), "a tensor is needed"),
    "no batch": (PICTURE[0], "(batch|1), 1 or 3, height, width"),
    "two channels": (PICTURE[:, :2], "(batch|1), 1 or 3, height, width"),
    "empty": (PICTURE[..., :0], "(batch|1), 1 or 3, height, width|at least one pixel"),
}


LOADED = {name: backbones.load(name) for name in ("embedded", "gaussian")}


def made(name, picture):
    return backbones.upscale(LOADED[name], picture, 2, 2, noise=seeded(0))


@pytest.mark.parametrize("name", ["embedded", "gaussian"])
def test_the_types_of_pictures_that_are_taken(name):
    expected = made(name, PICTURE)
    assert torch.equal(made(name, (PICTURE * 255).round().to(torch.uint8)), expected)
    assert (made(name, (PICTURE * 65535).round().to(torch.uint16)) - expected).abs().max() < 1e-4
    assert torch.equal(made(name, PICTURE.double()), expected)
    for kind, close in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        assert (made(name, PICTURE.to(kind)) - expected).abs().max() < close
    assert (made(name, PICTURE * 1.004 - 0.002) - expected).abs().max() < 0.05
    torch.set_default_dtype(torch.float64)
    try:
        other = made(name, PICTURE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert other.dtype == expected.dtype == torch.float32
    assert torch.equal(other, expected)


@pytest.mark.parametrize("wrong", WRONG)
def test_pictures_of_other_ranges_are_refused(wrong):
    picture, message = WRONG[wrong]
    calls = [lambda name=name: made(name, picture) for name in LOADED]
    calls += [lambda name=name: LOADED[name].encode(picture, 2.0) for name in LOADED]
    if wrong != "-1 to 1":  # results overshoot, and are cut off
        calls += [lambda: metrics.psnr(picture, PICTURE, 0), lambda: metrics.ssim(PICTURE, picture, 0)]
    for call in calls:
        with pytest.raises(Refused, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [0, -1, 0.5, float("nan"), float("inf"), "2", None, True])
def test_scales_that_are_refused(scale):
    with pytest.raises(Refused, match=r"scale: .*a number of at least 1 is needed"):
        backbones.upscale(LOADED["embedded"], PICTURE, scale)


def test_metrics_take_the_types_of_pictures():
    truth = (PICTURE * 0.9 * 255).round() / 255
    expected = metrics.psnr(PICTURE, truth, 0)
    assert metrics.psnr((PICTURE * 255).round().byte(), truth, 0) == pytest.approx(expected, abs=1e-9)
    assert metrics.psnr((PICTURE * 65535).round().to(torch.uint16), truth.double(), 0) == pytest.approx(expected, abs=1e-9)


# -- Formats ----------------------------------------------------------------------------------------------------------------


def colourful(size=(13, 11)):
    return Image.fromarray(integers(8, 3, size[1], size[0]).astype(np.uint8))


def encoded(name, image=None, **how):
    data = io.BytesIO()
    (image or colourful()).save(data, name, **how)
    return data.getvalue()


WRITABLE = tuple(name for name in formats.READ if name not in ("PSD", "SUN"))  # by Pillow


def test_every_suffix_is_read_in_a_folder_and_by_its_name(tmp_path):
    by_hand = {
        "PSD": struct.pack(">4sH6xHIIHHIIIH", b"8BPS", 1, 3, 11, 13, 8, 3, 0, 0, 0, 0) + bytes(integers(8, 3).tobytes()[:429]),
        "SUN": struct.pack(">8I", 0x59A66A95, 13, 11, 24, 440, 1, 0, 0) + bytes(440),
    }
    for name, suffixes in formats.READ.items():
        data = encoded(name) if name in WRITABLE else by_hand[name]
        for suffix in suffixes:
            (tmp_path / f"{name}{suffix.upper()}").write_bytes(data)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    found, others = images.listed(tmp_path)
    assert len(found) == len(formats.SUFFIXES)
    assert [path.name for path in others] == ["notes.txt"]
    assert {images.read(path).colour.shape for path in found} == {(1, 3, 11, 13)}


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket.png"))
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "nowhere.png").symlink_to("nothing")
    (tmp_path / "loop.png").symlink_to("loop.png")
    found, others = images.listed(tmp_path)
    assert [path.name for path in found] == ["loop.png", "nowhere.png"]  # as what they are called: reading them says why
    assert [path.name for path in others] == ["link.png", "pipe.png", "socket.png"]
    for name, kind in {"pipe.png": "a named pipe", "link.png": "a named pipe", "socket.png": "a socket"}.items():
        with pytest.raises(ValueError, match=f"it is {kind}, and a file is needed"):
            images.read(tmp_path / name)
    with pytest.raises(ValueError, match="it is a device"):
        images.read(Path("/dev/zero"))
    with pytest.raises(ValueError, match="it is a folder"):
        images.read(tmp_path)
    for name in ("nowhere.png", "loop.png"):
        with pytest.raises(OSError, match=name):
            images.read(tmp_path / name)
    listener.close()


@pytest.mark.parametrize("name", ["TIFF", "WEBP", "GIF", "PNG", "MPO", "AVIF"])
def test_further_frames_are_not_dropped_silently(tmp_path, name, capsys):
    frames = [Image.fromarray(np.full((11, 13, 3), v, np.uint8)) for v in (100, 10, 200)]
    (tmp_path / "a.png").write_bytes(encoded(name, frames[0], save_all=True, append_images=frames[1:]))
    picture = images.read(tmp_path / "a.png")
    assert picture.frames == 3
    assert picture.colour.mean() * 255 == pytest.approx(100, abs=3)
    assert main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--steps", "1", "--scale", "1"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert lines == [f"note    {tmp_path / 'a.png'}: it has 3 frames or pages, and the first is taken"]


@pytest.mark.parametrize("pages", [1, 2, 7])
@pytest.mark.parametrize("big", [False, True])
def test_pages_are_counted(tmp_path, pages, big):
    assert read(tmp_path, pictures.tiff(integers(16, 3), 16, 2, pages=pages, big=big)).frames == pages


def picture_of(channels, height=4, width=4):
    x = torch.rand(1, channels, height, width)
    return images.Picture(x[:, :-1], x[:, -1:], 8, None) if channels in (2, 4) else images.Picture(x, None, 8, None)


@pytest.mark.parametrize(
    ("name", "channels", "size", "message"),
    [
        ("a.webp", 3, (16384, 8), "8x16384 pixels; .webp holds 16383 a side; write it as .png"),
        ("a.jpg", 3, (8, 65501), "65501x8 pixels; .jpg holds 65500 a side"),
        ("a.jfif", 4, (8, 8), "an alpha channel, which .jfif cannot hold"),
        ("a.gif", 1, (65536, 8), "65535 a side"),
        ("a.gif", 3, (8, 8), "it has colours, which .gif cannot hold"),
        ("a.gif", 2, (8, 8), "an alpha channel"),
        ("a.pgm", 3, (8, 8), "it has colours, which .pgm cannot hold"),
        ("a.ppm", 4, (8, 8), "an alpha channel"),
        ("a.bmp", 4, (8, 8), "an alpha channel"),
        ("a.pbm", 1, (8, 8), ".pbm; a file that ends in"),
        ("a.xyz", 1, (8, 8), ".xyz; a file that ends in .png"),
        ("a", 1, (8, 8), "no suffix; a file that ends in"),
    ],
)
def test_what_a_format_cannot_hold_is_found_before_the_work(tmp_path, name, channels, size, message):
    with pytest.raises(ValueError, match=message):
        images.check(tmp_path / name, picture_of(channels), size)


def test_a_name_that_is_too_long_is_found_before_the_work(tmp_path):
    with pytest.raises(OSError, match="File name too long"):
        images.check(tmp_path / ("n" * 252 + ".png"), picture_of(3))


@pytest.mark.parametrize(
    ("name", "height", "message"), [("b.webp", 300, "16383 a side"), ("b.jpg", 1100, "65500 a side"), ("b.gif", 3, "colours")]
)
def test_the_command_finds_the_limits_before_the_work(tmp_path, monkeypatch, capsys, name, height, message):
    colourful((2, height)).save(tmp_path / "a.png")
    monkeypatch.setattr(backbones, "upscale", None)
    assert main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / name), "--scale", "60"]) == 1
    assert message in capsys.readouterr().err


def test_quality(tmp_path, capsys):
    """JPEG has 95 and full colour, WebP no loss, unless --quality says otherwise."""
    colourful((40, 30)).save(tmp_path / "a.png")

    def run(out, *more):
        return main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / out), "--scale", "1", "--steps", "1", *more])

    assert run("png.png") == run("b.jpg") == run("c.webp") == 0
    assert run("d.jpg", "--quality", "40") == run("e.webp", "--quality", "40") == 0
    whole = images.read(tmp_path / "png.png").colour
    with Image.open(tmp_path / "b.jpg") as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
        assert image.quantization == Image.open(io.BytesIO(encoded("JPEG", quality=95, subsampling=0))).quantization
    assert torch.equal(images.read(tmp_path / "c.webp").colour, whole)
    errors = [(images.read(tmp_path / name).colour - whole).square().mean() for name in ("b.jpg", "d.jpg", "e.webp")]
    assert 4 * errors[0] < min(errors[1:])
    for out, value in (("f.jpg", "0"), ("f.jpg", "101"), ("f.png", "90"), ("folder", "90")):
        with pytest.raises(SystemExit) as stopped:
            run(out, "--quality", value)
        assert stopped.value.code == 2
        assert f"--quality: {value}" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


# -- Broken files -----------------------------------------------------------------------------------------------------------


def samples():
    """A small file of every format and many layouts."""
    colour, exif = colourful(), Image.Exif()
    exif[274] = 6
    clear = colour.copy()
    clear.putalpha(colour.convert("L"))
    files = [encoded(name) for name in WRITABLE]
    files += [encoded(name, clear) for name in ("PNG", "WEBP", "AVIF", "JPEG2000", "ICO", "BMP", "TGA", "TIFF")]
    files += [encoded(name, colour, exif=exif, icc_profile=PROFILE) for name in ("PNG", "JPEG", "WEBP", "TIFF")]
    files += [encoded(name, colour.quantize(7)) for name in ("PNG", "GIF", "BMP", "TIFF", "TGA", "PCX")]
    files += [encoded(name, colour.convert("1")) for name in ("PNG", "BMP", "PPM", "TIFF")]
    more = [Image.new("RGB", colour.size, value) for value in ("red", "blue")]
    files += [encoded(name, save_all=True, append_images=more) for name in ("PNG", "GIF", "WEBP", "TIFF", "MPO", "AVIF")]
    files += [encoded("TIFF", colour, compression=how) for how in ("jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits")]
    files += [encoded("TIFF", colour.convert("1"), compression="group4"), encoded("JPEG", progressive=True)]
    files += [encoded("JPEG", colour.convert("CMYK")), encoded("WEBP", lossless=True), encoded("ICO", bitmap_format="bmp")]
    files += [encoded("TGA", compression="tga_rle"), encoded("JPEG2000", no_jp2=True), encoded("SGI", colour.convert("L"))]
    files += [pictures.tiff(integers(bits, 3), bits, 2, tags={274: (3, [5])}, rows=4) for bits in (4, 8, 12, 16)]
    files += [pictures.tiff(integers(16, 4), 16, 2, order=">", apart=True, big=True, tags={338: (3, [1])}, deflated=True)]
    files += [pictures.png(integers(bits, 1), bits, 0, clear=b"\0\1") for bits in (2, 16)]
    files += [pictures.png(integers(16, 4), 16, 6)]
    files += [b"P6 13 9 1023\n" + integers(10, 3).astype(">u2").tobytes(), b"P2 3 2 255\n1 2 3 4 5 6\n", b"P3 1 1 999\n1 2 3\n"]
    files += [struct.pack(">4sH6xHIIHHIIIH", b"8BPS", 1, 3, 11, 13, 8, 3, 0, 0, 0, 0) + bytes(429)]
    return [*files, struct.pack(">8I", 0x59A66A95, 13, 11, 24, 440, 1, 0, 0) + bytes(440)]


def mutated(data, draw):
    """The file cut, or with bits, bytes, or numbers of a header changed, or bytes lost or repeated; more at its beginning."""
    changed, kind = bytearray(data), draw.randrange(5)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at = min(len(changed) - 1, int(draw.expovariate(1 / 40))) if draw.random() < 0.6 else draw.randrange(len(changed))
        if kind == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at] = draw.randrange(256)
        elif kind == 2:
            size = draw.choice([2, 4, 8])
            number = draw.choice([0, 1, 255, 256, 10_000, 16_383, 65_535, 2**31 - 1, 2**32 - 1, 2**64 - 1])
            changed[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, draw.choice(["little", "big"]))
        elif kind == 3:
            return bytes(changed[: max(1, at)])
        elif draw.random() < 0.5:
            del changed[at : at + draw.choice([1, 2, 4, 30])]
            changed = changed or bytearray(b"\0")
        else:
            changed[at:at] = changed[at : at + 50]
    return bytes(changed)


def test_2000_broken_pictures(tmp_path):
    """An error in one line, or a picture of the size that the file declares; in bounded time and memory, without a warning."""
    files, draw, path = samples(), random.Random(0), tmp_path / "a"
    before, read_well, slowest, reasons = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, 0.0, []
    for data in files:
        path.write_bytes(data)
        images.read(path)
    for i in range(2000):
        path.write_bytes(mutated(files[i % len(files)], draw))
        start = time.perf_counter()
        try:
            picture = images.read(path)
        except (OSError, ValueError) as error:
            reasons.append(str(error))
        else:
            read_well += 1
            height, width = picture.colour.shape[-2:]
            assert 0 <= picture.colour.min() <= picture.colour.max() <= 1, i
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    declared = Image.open(path).size
                except Exception:  # a layout that Pillow does not know
                    declared = (width, height)
            assert declared in ((width, height), (height, width)), i
        slowest = max(slowest, time.perf_counter() - start)
    assert 300 < read_well < 1700
    assert all(0 < len(reason) < 400 and "\n" not in reason for reason in reasons)
    assert slowest < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.5 * 2**20  # KiB


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF", "JPEG2000"])
def test_a_truncated_file_is_refused(tmp_path, name):
    data = encoded(name, colourful((60, 50)))
    for part in (0.2, 0.5, 0.9):
        with pytest.raises((OSError, ValueError)):
            read(tmp_path, data[: int(part * len(data))])


def test_a_small_file_that_declares_a_large_picture_is_refused(tmp_path):
    """Before its pixels take memory."""
    gif = bytearray(encoded("GIF"))
    gif[6:10] = struct.pack("<2H", 9000, 9000)
    for data in (
        bytes(gif),
        encoded("PNG", Image.new("1", (13000, 13000))),
        pictures.tiff(integers(8, 1), 8, 1, tags={256: (4, [9000]), 257: (4, [9000])}),
    ):
        assert len(data) < 40_000
        with pytest.raises(ValueError, match=r"(9000x9000|13000x13000) pixels in \d+ bytes; \d+ pixels at most are read"):
            read(tmp_path, data)
