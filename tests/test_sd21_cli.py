"""dosde upscale --backbone sd21: what the command does for every backbone, and the options of this one."""

import os
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import PIL.Image
import pytest
import torch

from backbones.cli import main

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from backbones.sd21 import DoSSRPipeline, malloc


@pytest.fixture(scope="module")
def weights(sd21_folder):
    return sd21_folder


def save(path, width=12, height=9, mode="RGB", seed=0):
    array = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    PIL.Image.fromarray(array).convert(mode).save(path)


def pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image)


def test_a_folder_with_broken_files(weights, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    save(photos / "a.png")
    save(photos / "b.png", 17, 5, "LA")
    (photos / "text.png").write_text("hello")
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (photos / "vast.png").write_bytes(data + struct.pack(">I", 0) + b"IEND\xaeB`\x82")
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:200])
    arguments = ["upscale", str(photos), "-o", str(tmp_path / "out"), "--weights", str(weights), "--steps", "2"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "2 written, 0 kept, 3 failed" in said.out
    failed = [line for line in said.err.splitlines() if line.startswith("failed")]
    assert [line.split(":")[0].split("/")[-1] for line in failed] == ["cut.png", "text.png", "vast.png"]
    assert "exceeds limit" in failed[2]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_x4.png", "b_x4.png"]
    assert pixels(tmp_path / "out" / "b_x4.png").shape == (20, 68, 2)
    # The same picture and seed as the pipeline's own.
    pipe = DoSSRPipeline.from_pretrained(weights)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        PIL.Image.open(photos / "a.png"), num_inference_steps=2, generator=torch.manual_seed(0), output_type="np"
    ).images
    assert np.array_equal(pixels(tmp_path / "out" / "a_x4.png"), (made[0] * 255).round().astype(np.uint8))
    assert main(arguments) == 1
    assert "0 written, 2 kept, 3 failed" in capsys.readouterr().out


def test_options(weights, tmp_path, capsys):
    save(tmp_path / "a.png", 40, 12)
    made = {}
    for name, options in {
        "plain": [],
        "again": ["--dtype", "float32", "--device", "cpu", "--max-memory", "4G", "--prompt", "clean, high-resolution, 8k"],
        "its solver": ["--method", "dos", "--order", "2"],
        "whole": ["--tile", "none"],
        "tiled": ["--tile", "128"],
        "sampled": ["--source", "sample"],
        "guided": ["--guidance", "2", "--negative-prompt", ""],
        "plain colours": ["--color-fix", "none"],
        "order": ["--method", "ode", "--order", "1"],
        "half": ["--dtype", "bfloat16"],
    }.items():
        out = tmp_path / f"{name}.png"
        assert (
            main(["upscale", str(tmp_path / "a.png"), "-o", str(out), "--weights", str(weights), "--steps", "2", *options]) == 0
        )
        made[name] = pixels(out)
        assert made[name].shape == (48, 160, 3)
    assert np.array_equal(made["plain"], made["again"])
    assert np.array_equal(made["plain"], made["its solver"])
    assert np.array_equal(made["plain"], made["whole"])
    for name in ("tiled", "sampled", "guided", "plain colours", "order", "half"):
        assert not np.array_equal(made["plain"], made[name]), name
    out = tmp_path / "small.png"
    assert (
        main(["upscale", str(tmp_path / "a.png"), "-o", str(out), "--weights", str(weights), "--steps", "1", "--scale", ".5"])
        == 0
    )
    assert pixels(out).shape == (6, 20, 3)


def test_the_command_keeps_memory_while_a_picture_runs(weights, tmp_path, monkeypatch):
    inside = []
    monkeypatch.setattr(
        DoSSRPipeline, "finish", lambda pipe, x0, reference, *_, **__: (inside.append(malloc._inside), reference)[1]
    )
    save(tmp_path / "a.png")
    out = tmp_path / "out.png"
    assert main(["upscale", str(tmp_path / "a.png"), "-o", str(out), "--weights", str(weights), "--steps", "1"]) == 0
    assert (inside, malloc._inside) == ([1], 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "sd21"], "--weights: none; the backbone sd21 needs a folder"),
        (["--weights", "nowhere"], "--weights: nowhere; no such folder"),
        (["--weights", "run/weights.safetensors"], "--weights: run/weights.safetensors; no such file"),
        (["--weights", "."], "--weights: . has no model_index.json"),
        (
            ["--backbone", "gaussian", "--tile", "256"],
            "--tile: needs --backbone embedded or sd21 or resshift or gan, and the backbone is gaussian",
        ),
        (["--guidance", "2"], "--guidance: needs --backbone sd21"),
        (["WEIGHTS", "--guidance", "nan"], "--guidance: nan; a number is needed"),
        (["WEIGHTS", "--guidance", "2", "--negative-prompt", "a cat"], "--negative-prompt: 'a cat' needs a tokenizer"),
        (["--weights", "a.png"], "--weights: a.png is a PNG picture; a .safetensors file"),
        (["WEIGHTS", "--tile", "64"], "--tile: 64; 'auto', None, or a side of at least 128"),
        (["WEIGHTS", "--tile", "big"], "argument --tile: invalid"),
        (["WEIGHTS", "--max-memory", "much"], "argument --max-memory: invalid"),
        (["WEIGHTS", "--prompt", "a cat"], "--prompt: 'a cat' needs a tokenizer, which this model lacks"),
        (["WEIGHTS", "--device", "tpu"], "--device: tpu"),
        (["WEIGHTS", "--color-fix", "lab"], "argument --color-fix: invalid choice"),
    ],
)
def test_wrong_options(weights, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    save("a.png")
    given = ["--weights", str(weights), *options[1:]] if options[0] == "WEIGHTS" else options
    with pytest.raises(SystemExit) as stopped:
        main(["upscale", "a.png", "-o", "out", *given])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_too_little_memory_costs_the_picture_alone(weights, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    save(photos / "large.png", 900, 900)
    save(photos / "small.png")
    options = ["--weights", str(weights), "--steps", "1", "--max-memory", "150M"]
    assert main(["upscale", str(photos), "-o", str(tmp_path / "out"), *options]) == 1
    assert "large.png: max_memory: 0.15 GiB; " in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["small_x4.png"]


def test_a_killed_run_resumes_to_the_same_files(weights, tmp_path):
    photos, out, whole = tmp_path / "photos", tmp_path / "out", tmp_path / "whole"
    photos.mkdir()
    for i in range(5):
        save(photos / f"{i}.png", 16, 16, seed=i)
    arguments = ["upscale", str(photos), "--weights", str(weights), "--steps", "3"]
    command = [sys.executable, "-m", "dosde", *arguments, "-o", str(out)]
    run = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    for _ in range(1200):
        if len(list(out.glob("*.png"))) >= 2 or run.poll() is not None:
            break
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = len(list(out.glob("*.png")))
    assert 2 <= done < 5
    (out / ".3_x4.png.part").write_bytes(b"half")  # as a kill during a write leaves it
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # rounding depends on the number of threads
    try:
        assert main([*arguments, "-o", str(out)]) == 0
        assert main([*arguments, "-o", str(whole)]) == 0
    finally:
        torch.set_num_threads(threads)
    names = sorted(p.name for p in whole.iterdir())
    assert names == sorted(p.name for p in out.iterdir())
    for name in names:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
