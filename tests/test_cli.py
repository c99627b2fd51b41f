"""`dosde upscale`: every kind of picture, names, kept and broken files, exit status, and nothing half written."""

import importlib
import inspect
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import report
import torch
from PIL import Image, ImageCms, ImageOps

import backbones
from backbones.backbone import options as declared
from backbones.cli import main
from backbones.commands import options
from backbones.pictures import io as images

RAMP = np.add.outer(np.linspace(0, 120, 12), np.linspace(0, 120, 10))


def colour(channels=3, most=255):
    planes = [RAMP[..., None] + 10 * c for c in range(channels)]
    return (np.concatenate(planes, -1) * most / 255).astype(np.uint8 if most == 255 else np.uint16)


def save(path, mode, **how):
    array = {"L": colour(1)[..., 0], "LA": colour(2), "RGB": colour(), "RGBA": colour(4)}.get(mode)
    image = Image.fromarray(array) if array is not None else Image.fromarray(colour()).convert(mode)
    image.save(path, **how)


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


def run(*arguments):
    return main(["upscale", *map(str, arguments), "--steps", "2"])


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("RGB", ".png", "RGB"),
        ("RGB", ".jpg", "RGB"),
        ("RGB", ".webp", "RGB"),
        ("L", ".png", "L"),
        ("L", ".jpg", "L"),
        ("LA", ".png", "LA"),
        ("RGBA", ".png", "RGBA"),
        ("P", ".png", "RGB"),
        ("P", ".gif", "RGB"),
        ("1", ".png", "L"),
        ("CMYK", ".jpg", "RGB"),
        ("CMYK", ".tif", "RGB"),
    ],
)
def test_modes(tmp_path, mode, suffix, expected):
    source = tmp_path / f"a{suffix}"
    save(source, mode)
    assert run(source, "-o", tmp_path / "out", "--scale", 3) == 0
    with Image.open(tmp_path / "out" / "a_x3.png") as result:
        assert (result.size, result.mode) == ((30, 36), expected)
        before = np.asarray(opened(source).convert("RGB").resize((30, 36)), dtype=float)
        if mode not in ("P", "1"):
            assert np.abs(np.asarray(result.convert("RGB"), dtype=float) - before).mean() < 8


def test_a_palette_with_a_transparent_colour_keeps_it(tmp_path):
    image = Image.fromarray(colour()).quantize(8)
    image.info["transparency"] = 0
    image.save(tmp_path / "a.png", transparency=0)
    assert run(tmp_path / "a.png", "-o", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "a_x4.png") as result:
        assert result.mode == "RGBA"
        assert np.asarray(result)[..., 3].min() == 0


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_stay_16_bits(tmp_path, channels, suffix):
    array = colour(channels, 65535)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    cv2.imwrite(str(tmp_path / f"a{suffix}"), array[..., order])
    assert run(tmp_path / f"a{suffix}", "-o", tmp_path / "out", "--scale", 2) == 0
    result = cv2.imread(str(tmp_path / "out" / "a_x2.png"), cv2.IMREAD_UNCHANGED)
    result = result if channels == 1 else result[..., order]
    assert result.dtype == np.uint16
    assert len(np.unique(result)) > 400  # more levels than 8 bits have
    small = cv2.resize(result, (10, 12), interpolation=cv2.INTER_AREA).reshape(12, 10, channels)
    assert np.abs(small.astype(float) - array).mean() < 0.03 * 65535


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("wide", [False, True])
def test_exif_orientation(tmp_path, orientation, wide):
    image = Image.fromarray(colour())
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(opened(tmp_path / "a.png")), dtype=np.float32) / 255
    if wide:  # the same picture in 16 bits: OpenCV's pixels with the chunk that Pillow wrote
        data = (tmp_path / "a.png").read_bytes()
        start = data.index(b"eXIf") - 4
        chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
        _, plain = cv2.imencode(".png", colour().astype(np.uint16)[..., ::-1] * 257)
        (tmp_path / "a.png").write_bytes(plain.tobytes()[:33] + chunk + plain.tobytes()[33:])
    picture = images.read(tmp_path / "a.png")
    assert picture.bits == (16 if wide else 8)
    assert np.allclose(picture.colour[0].permute(1, 2, 0).numpy(), upright, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_colour_profile_is_kept(tmp_path, bits):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    images.write(tmp_path / "a.png", images.Picture(torch.rand(1, 3, 6, 5), None, bits, profile))
    assert run(tmp_path / "a.png", "-o", tmp_path / "b.png") == 0
    assert opened(tmp_path / "b.png").info["icc_profile"] == profile
    assert images.read(tmp_path / "b.png").bits == bits


def test_a_folder_with_one_broken_file(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "a.png", "RGB")
    save(folder / "c.jpg", "L")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "d.jpg").write_text("no picture")
    (folder / "e.png").touch()
    (folder / "notes.txt").write_text("not a picture, and not tried")
    assert run(folder, "-o", tmp_path / "out") == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_x4.png", "c_x4.png"]
    printed = capsys.readouterr()
    for name in ("b.png", "d.jpg", "e.png"):
        assert sum(f"failed  {folder / name}: " in line for line in printed.err.splitlines()) == 1
    assert printed.out.splitlines()[-1].startswith("2 written, 0 kept, 3 failed in ")


def test_existing_outputs_are_kept_unless_asked(tmp_path, capsys):
    save(tmp_path / "a.png", "RGB")
    save(tmp_path / "b.png", "RGB")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_x4.png").write_text("mine")
    assert run(tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "out") == 0
    assert (tmp_path / "out" / "a_x4.png").read_text() == "mine"
    assert "1 written, 1 kept, 0 failed" in capsys.readouterr().out
    assert run(tmp_path / "a.png", "-o", tmp_path / "out", "--overwrite") == 0
    assert opened(tmp_path / "out" / "a_x4.png").size == (40, 48)


def test_names(tmp_path):
    """Predictable; two that differ in their suffix only do not collide."""
    for name in ("a.png", "a.jpg", "b.png"):
        save(tmp_path / name, "RGB")
    assert run(tmp_path / "a.png", tmp_path / "a.jpg", tmp_path / "b.png", "-o", tmp_path / "out", "--scale", 1.5) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_jpg_x1.5.png", "a_png_x1.5.png", "b_x1.5.png"]
    assert run(tmp_path / "b.png", "-o", tmp_path / "deep" / "c.jpg") == 0
    assert opened(tmp_path / "deep" / "c.jpg").format == "JPEG"


def test_the_same_seed_gives_the_same_file_in_whatever_company(tmp_path):
    for name in ("a.png", "b.png"):
        save(tmp_path / name, "RGB")
    run(tmp_path / "b.png", "-o", tmp_path / "one.png")
    run(tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "out")
    run(tmp_path / "b.png", "-o", tmp_path / "other.png", "--seed", "1")
    one = (tmp_path / "one.png").read_bytes()
    assert one == (tmp_path / "out" / "b_x4.png").read_bytes()
    assert one != (tmp_path / "other.png").read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    save(tmp_path / "a.png", "RGB")

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert run(tmp_path / "a.png", "-o", tmp_path / "out") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_written_files_have_the_usual_permissions(tmp_path):
    images.write(tmp_path / "a.png", images.Picture(torch.rand(1, 3, 4, 4), None, 8, None))
    (tmp_path / "b").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "-o", "out", "--steps", "0"], "--steps: 0; a positive number is needed"),
        (["a.png", "-o", "out", "--order", "0"], "--order: 0; 1 to 5 is needed with --steps 5"),
        (["a.png", "-o", "out", "--order", "4"], "--order: 4; dos has orders 1 to 3, adams has any"),
        (
            ["a.png", "-o", "out", "--order", "4", "--method", "dos"],
            "--order: 4; 1 to 3 is needed with --method dos --steps 5",
        ),
        (
            ["a.png", "-o", "out", "--order", "3", "--steps", "2"],
            "--order: 3; 1 to 2 is needed with --steps 2",
        ),
        (["a.png", "-o", "out", "--order", "6", "--method", "ode"], "--order: 6; 1 to 5 is needed with --method ode"),
        (["a.png", "-o", "out", "--scale", "0"], "--scale: 0; a number above 0, up to 64, is needed"),
        (["a.png", "-o", "out", "--scale", "nan"], "--scale: nan; a number above 0, up to 64, is needed"),
        (["a.png", "-o", "out", "--scale", "0.5"], "--scale: 0.5; 1 to 64 is needed with --backbone embedded"),
        (["a.png", "-o", "out", "--scale", "big"], "argument --scale: invalid float value: 'big'"),
        (["a.png", "-o", "out", "--seed", "-1"], "--seed: -1; a number from 0"),
        (["a.png", "-o", "out", "--backbone", "sd"], "--backbone: 'sd'; one of embedded, gaussian, sd21"),
        (
            ["a.png", "-o", "out", "--backbone", "gaussian", "--method", "few_step"],
            "--method: few_step; a backbone that knows its residual scale is needed, and gaussian does not",
        ),
        (["a.png", "-o", "out", "--method", "euler"], "argument --method: invalid choice: 'euler'"),
        (["a.png"], "the following arguments are required: -o/--out"),
        (["missing.png", "-o", "out"], "INPUT: missing.png; no such file or folder"),
        (["empty", "-o", "out"], "INPUT: empty; a folder with pictures"),
        (["a.png", "b.png", "-o", "out.png"], "--out: out.png; a folder is needed for a folder or several pictures"),
        (["a.png", "-o", "b"], "--out: b; it exists and is not a folder"),
        (["a.png", "-o", "a.png"], "--out: a.png; it is the input itself"),
        (["a.png", "-o", "b/deeper"], "--out: "),
        (["a.png", "-o", "c.jp2"], "--out: c.jp2; a folder, or a file that ends in .png"),
        (["", "-o", "out"], "an empty name; a file or a folder is needed"),
        (["full", "-o", "full"], "--out: full; another folder than INPUT is needed"),
    ],
)
def test_usage_errors(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        save(tmp_path / name, "RGB")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    save(tmp_path / "full" / "a.png", "RGB")
    (tmp_path / "b").touch()
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(["upscale", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_help_and_version(capsys):
    for arguments, expected in (
        (["--help"], "upscale"),
        (["upscale", "--help"], "--overwrite"),
        (["--version"], "dosde 0."),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        assert expected in capsys.readouterr().out


def test_as_a_module(tmp_path):
    save(tmp_path / "a.png", "RGB")
    command = [sys.executable, "-m", "dosde", "upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, (tmp_path / "b.png").exists()) == (0, True), done.stderr


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_become_8_where_the_format_has_no_more(tmp_path, suffix, channels):
    cv2.imwrite(str(tmp_path / "a.png"), colour(channels, 65535)[..., ::-1])
    assert run(tmp_path / "a.png", "-o", tmp_path / f"b{suffix}", "--scale", 1) == 0
    result = np.asarray(opened(tmp_path / f"b{suffix}").convert("RGB"), dtype=float).mean()
    assert result == pytest.approx(colour(channels).mean(), abs=4)


def test_pictures_of_unknown_range_are_refused(tmp_path, capsys):
    Image.fromarray(colour(1)[..., 0].astype(np.float32) / 255).save(tmp_path / "a.tif")
    assert run(tmp_path / "a.tif", "-o", tmp_path / "out") == 1
    assert "a.tif: floating samples of 32 bits in a TIFF, of unknown range" in capsys.readouterr().err


def test_alpha_for_a_format_without_is_refused_before_the_work(tmp_path, capsys):
    save(tmp_path / "a.png", "RGBA")
    assert run(tmp_path / "a.png", "-o", tmp_path / "b.jpg") == 1
    assert "it has an alpha channel, which .jpg cannot hold; write it as .png" in capsys.readouterr().err


def test_a_transparent_colour_of_rgb_and_grey_is_kept(tmp_path):
    for mode, key, expected in (("RGB", (0, 10, 20), "RGBA"), ("L", 0, "LA")):
        save(tmp_path / "a.png", mode, transparency=key)
        assert run(tmp_path / "a.png", "-o", tmp_path / "out", "--overwrite") == 0
        assert opened(tmp_path / "out" / "a_x4.png").mode == expected


def test_a_killed_run_leaves_nothing_behind_after_the_next(tmp_path):
    save(tmp_path / "a.png", "RGB")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".a_x4.png.part").write_bytes(b"half")  # what kill -9 can leave
    assert run(tmp_path / "a.png", "-o", tmp_path / "out") == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a_x4.png"]


def test_two_processes_may_write_one_file(tmp_path):
    """As two runs over one folder do: neither fails, and nobody sees half a file."""
    code = (
        "import torch; from pathlib import Path; from backbones.pictures import io as images\n"
        "picture = images.Picture(torch.rand(1, 3, 200, 200), None, 8, None)\n"
        f"for _ in range(40): images.write(Path({str(tmp_path / 'a.png')!r}), picture)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    while any(one.poll() is None for one in runs):
        if (tmp_path / "a.png").exists():
            assert opened(tmp_path / "a.png").size == (200, 200)
    assert [one.returncode for one in runs] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_name_too_long_and_a_picture_too_large_cost_themselves_alone(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / ("n" * 251 + ".png"), "RGB")
    save(folder / "z.png", "RGB")
    Image.new("1", (9000, 9000)).save(folder / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert run(folder, "-o", tmp_path / "out") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["z_x4.png"]
    assert capsys.readouterr().err.count("failed  ") == 2


def test_a_broken_link_does_not_stop_a_resumed_run(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "a.png", "RGB")
    (folder / "b.png").symlink_to("nowhere.png")
    assert run(folder, "-o", tmp_path / "out") == 1
    save(tmp_path / "out" / "b_x4.png", "RGB")
    assert run(folder, "-o", tmp_path / "out") == 0


def test_ctrl_c_is_one_line(tmp_path, monkeypatch, capsys):
    def interrupted(path):
        raise KeyboardInterrupt

    save(tmp_path / "a.png", "RGB")
    monkeypatch.setattr(images, "read", interrupted)
    assert run(tmp_path / "a.png", "-o", tmp_path / "out") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; the same command goes on from here"


def test_the_document_lists_the_options_that_the_backbones_declare():
    """If it does not: print(backbones.commands.options.table()) is what belongs there."""
    document = (report.ROOT / "docs" / "upscale.md").read_text()
    assert report.between(document, "options")[1].strip() == options.table()


@pytest.mark.parametrize("name", backbones.NAMES)
def test_an_option_is_declared_once_beside_load(name, capsys):
    """Name, type and default are those of the keyword."""
    found = declared(backbones.module(name).load)
    keywords = inspect.signature(backbones.module(name).load).parameters
    assert set(found) <= set(keywords)
    with pytest.raises(SystemExit):
        main(["upscale", "--help"])
    shown = capsys.readouterr().out
    for one in found.values():
        assert f"--{one.flag} " in shown


def test_reading_the_options_needs_no_package_of_a_backbone():
    code = (
        "import sys\n"
        "for name in ('diffusers', 'transformers', 'PIL', 'cv2', 'safetensors', 'skimage'): sys.modules[name] = None\n"
        "from backbones.cli import main\n"
        "main(['evaluate', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "--max-memory SIZE" in done.stdout) == (0, True), done.stderr


def test_a_backbone_in_a_file_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import dosde, torch\n"
        "class Mine:\n"
        "    least_scale, residual_scale = 1.0, None\n"
        "    process = dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(0.5))\n"
        "    method = staticmethod(dosde.method.dos)\n"
        "    grid = staticmethod(dosde.grid.uniform)\n"
        "    def encode(self, picture, scale, noise=None):\n"
        "        return torch.nn.functional.interpolate(picture, scale_factor=scale), picture.shape\n"
        "    def denoiser(self, conditioning):\n"
        "        return lambda x, x_hat0, t: x_hat0\n"
        "    def decode(self, x0, conditioning):\n"
        "        return x0.clamp(0, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    picture = torch.rand(1, 3, 4, 5)
    larger = backbones.upscale(importlib.import_module("mine").Mine(), picture, 2, steps=1, noise=torch.Generator())
    assert (larger - picture.repeat_interleave(2, -1).repeat_interleave(2, -2)).abs().max() < 0.2
