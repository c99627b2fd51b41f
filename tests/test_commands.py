"""Commands where files, streams, signals and packages are not as they should be: nothing is lost, and each fault has a line."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_evaluate import pixels
from test_evaluate import save as save_pixels

import backbones
import dosde
from backbones import whole
from backbones.cli import main
from backbones.commands import options
from backbones.option import Option
from backbones.pictures import colour, note, tiling
from backbones.pictures import io as images
from backbones.sd21 import loading

ROOT = Path(__file__).parents[1]


def save(path, seed=0, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)).save(path)


def upscale(*arguments, steps=1):
    return main(["upscale", *map(str, arguments), "--steps", str(steps)])


def refused(capsys, *arguments):
    """The last line of a command that has refused an argument."""
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def python(*arguments, **how):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, **how)


# -- No output is an input --------------------------------------------------------------------------------------------------


def by_link(path):
    path.with_name("other.png").symlink_to(path.name)
    return path.with_name("other.png")


def by_hard_link(path):
    path.with_name("other.png").hardlink_to(path)
    return path.with_name("other.png")


def by_dots(path):
    (path.parent / "b").mkdir()
    return path.parent / "b" / ".." / path.name


@pytest.mark.parametrize("other_name", [lambda path: path, by_link, by_hard_link, by_dots])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_no_result_replaces_an_input(tmp_path, capsys, monkeypatch, other_name, overwrite):
    """a_x4.png is the result of a.png, and is to be read itself."""
    save(tmp_path / "a.png")
    save(tmp_path / "a_x4.png", 1)
    before = (tmp_path / "a_x4.png").read_bytes()
    given = ["upscale", tmp_path / "a.png", other_name(tmp_path / "a_x4.png"), "-o", tmp_path, *overwrite]
    assert "a_x4.png; it is an input too" in refused(capsys, *given)
    monkeypatch.chdir(tmp_path)
    assert "a_x4.png; it is an input too" in refused(capsys, "upscale", "a.png", "./a_x4.png", "-o", ".", *overwrite)
    assert (tmp_path / "a_x4.png").read_bytes() == before


def test_a_name_in_other_letters_is_the_same_file_where_the_system_says_so(tmp_path, monkeypatch, capsys):
    save(tmp_path / "a.png")
    save(tmp_path / "A_X4.PNG", 1)
    here = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: here(tmp_path / "A_X4.PNG" if Path(path).name == "a_x4.png" else path))
    assert "it is an input too" in refused(capsys, "upscale", tmp_path / "a.png", tmp_path / "A_X4.PNG", "-o", tmp_path)


def test_results_are_not_written_below_what_is_searched(tmp_path, capsys):
    save(tmp_path / "in" / "a.png")
    for out in (tmp_path / "in" / "out", tmp_path / "link" / "out"):
        if out.parent.name == "link":
            out.parent.symlink_to("in")
        line = refused(capsys, "upscale", tmp_path / "in", "-o", out, "--recursive")
        assert "is needed with --recursive, or results would be taken for pictures next time" in line


def test_a_link_that_is_called_as_a_result_is_kept_and_named(tmp_path, capsys):
    save(tmp_path / "a.png")
    (tmp_path / "a_x4.png").symlink_to("a.png")
    assert "a_x4.png; it is the input itself" in refused(capsys, "upscale", tmp_path / "a.png", "-o", tmp_path)
    assert upscale(tmp_path / "a.png", tmp_path / "a_x4.png", "-o", tmp_path / "out") == 0  # two names, two results
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_x4.png", "a_x4_x4.png"]


def test_evaluate_and_convert_replace_no_input(tmp_path, capsys):
    save(tmp_path / "hr" / "a.png", side=16)
    (tmp_path / "a.json").hardlink_to(tmp_path / "hr" / "a.png")
    assert "a.json; it is an input too" in refused(capsys, "evaluate", "--pairs", tmp_path, "-o", tmp_path / "a.json")
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    (tmp_path / "link").symlink_to(weights)
    given = ["--pairs", tmp_path, "--backbone", "embedded", "--weights", weights]
    assert "link; it is an input too" in refused(capsys, "evaluate", *given, "-o", tmp_path / "link")
    assert "link; it is an input (" in refused(capsys, "convert", weights, "-o", tmp_path / "link")
    other = ["convert", tmp_path / "none.ckpt", "--preprocessor", weights, "-o", tmp_path / "link"]
    assert "link; it is an input (" in refused(capsys, *other)
    (tmp_path / "model" / "unet").mkdir(parents=True)
    inside = ["convert", tmp_path / "model", "-o", tmp_path / "model" / "unet" / "a.safetensors"]
    assert "which is read as a whole, is needed" in refused(capsys, *inside)
    assert weights.read_bytes() == b"weights"


# -- What is in a folder ----------------------------------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path):
    """A folder with two pictures, and with all that is none."""
    folder = tmp_path / "in"
    save(folder / "a.png")
    save(folder / "deep" / "b.png", 1)
    save(folder / "deep" / "er" / "a.jpg", 2)
    (folder / "notes.txt").touch()
    os.mkfifo(folder / "pipe.png")
    server = socket.socket(socket.AF_UNIX)
    before = Path.cwd()
    os.chdir(folder)
    server.bind("socket.png")  # a whole path may be too long for one
    os.chdir(before)
    server.close()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "up").symlink_to("..")
    (folder / ".hidden.png").touch()
    return folder


def test_what_is_no_picture_is_counted_and_costs_no_other(odd, tmp_path, capsys):
    assert upscale(odd, "-o", tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert f"note    {odd}: 3 files are not pictures, 2 folders are passed over (--recursive takes" in printed.out
    assert next(line for line in printed.err.splitlines() if "failed" in line).count("loop.png: [Errno") == 1
    assert "1 written, 0 kept, 1 failed" in printed.out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_x4.png"]


def test_recursive_keeps_the_tree(odd, tmp_path, capsys):
    assert upscale(odd, "-o", tmp_path / "out", "--recursive") == 1  # the loop
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert made == ["a_x4.png", "deep/b_x4.png", "deep/er/a_x4.png"]
    assert "3 files are not pictures, 1 folder is passed over" in capsys.readouterr().out


def test_a_pipe_that_is_named_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "a.png")
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "out") == 1
    assert "a.png: it is not a file" in capsys.readouterr().err


def test_no_pipe_and_no_device_is_read_or_replaced(tmp_path, capsys):
    save(tmp_path / "hr" / "a.png", side=16)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for given, said in (
        (["upscale", tmp_path / "hr", "-o", tmp_path / "out", "--weights", pipe], "pipe is neither; a file or a folder"),
        (["evaluate", "--pairs", tmp_path, "-o", pipe], "pipe; a file in an ordinary folder is needed"),
        (["evaluate", "--pairs", tmp_path, "-o", "/dev/null"], "/dev/null; a file in an ordinary folder is needed"),
        (["evaluate", "--pairs", tmp_path, "-o", "/dev/fd/1"], "/dev/fd/1; a file in an ordinary folder is needed"),
        (["evaluate", "--compare", pipe], "pipe; it is no JSON"),
        (["upscale", tmp_path / "hr", "-o", pipe], "pipe; it exists and is not a folder"),
    ):
        assert said in refused(capsys, *given)
    pipe.rename(tmp_path / "b.png")
    assert upscale(tmp_path / "hr" / "a.png", "-o", tmp_path / "b.png") == 1
    assert "b.png exists and is not a file" in capsys.readouterr().err


def test_two_runs_at_once_lose_no_picture(tmp_path, monkeypatch, capsys):
    """As `xargs -P` over folders with equal names: the other run has written the name while this one computed."""
    save(tmp_path / "p" / "a.png", 0)
    save(tmp_path / "q" / "a.png", 1)
    usual, inside = backbones.backbone.upscale, []

    def slow(*args, **how):
        if not inside:
            inside.append(1)
            assert upscale(tmp_path / "q" / "a.png", "-o", tmp_path / "out") == 0
        return usual(*args, **how)

    monkeypatch.setattr(backbones.backbone, "upscale", slow)
    assert upscale(tmp_path / "p" / "a.png", "-o", tmp_path / "out") == 1
    assert "a_x4.png is the result of another picture" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["PIL", "imagecodecs", "tifffile"])
def test_a_package_of_pictures_that_is_missing_is_named(package, tmp_path, monkeypatch, capsys):
    save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, package, None)
    line = refused(capsys, "upscale", tmp_path / "a.png", "-o", tmp_path / "out")
    assert "dosde upscale needs the extra 'images'" in line
    assert package in line
    assert not (tmp_path / "out").exists()


def test_a_folder_with_folders_alone_says_so(tmp_path, capsys):
    save(tmp_path / "in" / "deep" / "a.png")
    line = refused(capsys, "upscale", tmp_path / "in", "-o", tmp_path / "out")
    assert "a folder with pictures (.png" in line
    assert "folders inside it are passed over (--recursive takes" in line


def test_a_folder_inside_that_cannot_be_read_costs_itself_alone(tmp_path, monkeypatch, capsys):
    save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "locked").mkdir()
    usual = Path.iterdir

    def iterdir(path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return usual(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--recursive") == 1
    printed = capsys.readouterr()
    assert f"failed  {tmp_path / 'in' / 'locked'}: Permission denied" in printed.err
    assert "1 written, 0 kept, 1 failed" in printed.out


# -- What is kept -----------------------------------------------------------------------------------------------------------


def test_only_the_result_of_the_same_picture_and_options_is_kept(tmp_path, capsys):
    """As `xargs -n1` over folders with equal names, and another run with other options, would have it."""
    save(tmp_path / "p" / "a.png", 0)
    save(tmp_path / "q" / "a.png", 1)
    assert upscale(tmp_path / "p" / "a.png", "-o", tmp_path / "out") == 0
    assert upscale(tmp_path / "p" / "a.png", "-o", tmp_path / "out") == 0
    assert "0 written, 1 kept" in capsys.readouterr().out
    first = (tmp_path / "out" / "a_x4.png").read_bytes()
    for source, steps, more, said in (
        ("q", 1, [], "a_x4.png is the result of another picture; another OUT is needed, or --overwrite"),
        ("p", 2, [], "a_x4.png was made with other options (steps: 1, not 2); --overwrite makes it anew"),
        ("p", 1, ["--seed", "3"], "a_x4.png was made with other options (seed: 0, not 3)"),
        ("p", 1, ["--backbone", "gaussian"], 'a_x4.png was made with other options (backbone: "embedded", not "gaussian")'),
    ):
        assert upscale(tmp_path / source / "a.png", "-o", tmp_path / "out", *more, steps=steps) == 1
        assert said in capsys.readouterr().err
        assert (tmp_path / "out" / "a_x4.png").read_bytes() == first
    line = refused(capsys, "upscale", tmp_path / "p", tmp_path / "q", "-o", tmp_path / "out")
    assert "2 pictures would be written as" in line
    assert line.endswith("give each of them another OUT")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_note_changes_no_pixel_and_is_read_again(tmp_path, suffix, bits):
    import torch

    picture = images.Picture(torch.rand(1, 3, 9, 7), None, bits, None)
    images.write(tmp_path / f"a{suffix}", picture)
    images.write(tmp_path / f"b{suffix}", picture, text='{"source": "caf\u00e9"}')
    plain, noted = (images.read(tmp_path / f"{name}{suffix}") for name in "ab")
    assert torch.equal(plain.colour, noted.colour)
    assert plain.bits == noted.bits
    assert note.read(tmp_path / f"a{suffix}") is None
    expected = '{"source": "caf\\xe9"}' if suffix in (".png", ".jpg", ".webp") else None
    assert note.read(tmp_path / f"b{suffix}") == expected


def test_a_result_that_says_nothing_is_kept_and_that_is_said(tmp_path, capsys):
    save(tmp_path / "a.png")
    for suffix in ("png", "bmp"):
        save(tmp_path / f"b.{suffix}", 1)
        assert upscale(tmp_path / "a.png", "-o", tmp_path / f"b.{suffix}") == 0
        assert "exists, does not say what it was made of; --overwrite makes it anew" in capsys.readouterr().out


# -- Disks, streams, signals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_stops_the_run_at_its_first_picture(tmp_path, monkeypatch, capsys, number):
    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", i)
    usual, runs = os.replace, []

    def full(part, path):
        runs.append(path)
        if len(runs) == 2:
            raise OSError(number, os.strerror(number))
        usual(part, path)

    monkeypatch.setattr(os, "replace", full)
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "1 written, 0 kept, 1 failed, 2 not tried in " in printed.out
    assert f"1.png: [Errno {number}]" in printed.err
    assert "nothing more can be written to" in printed.err.splitlines()[-1]
    assert printed.err.splitlines()[-1].endswith("the same command goes on from here")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0_x4.png"]
    monkeypatch.undo()
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 0
    assert "3 written, 1 kept" in capsys.readouterr().out


STREAMS = """
import os, sys
from backbones.cli import main
import backbones.backbone  # once, for all that are forked

def closed(*numbers):
    for number in numbers:
        os.close(number)
        setattr(sys, {1: "stdout", 2: "stderr"}[number], None)  # as Python finds them

def full(number):
    os.dup2(os.open("/dev/full", os.O_WRONLY), number)

def unread():
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)

CASES = {
    "both": lambda: closed(1, 2),
    "err": lambda: closed(2),
    "full err": lambda: full(2),
    "full": lambda: full(1),
    "pipe": unread,
}
found = {}
for name, prepare in CASES.items():
    child = os.fork()
    if not child:
        prepare()
        os._exit(main(["upscale", "in", "--steps", "1", "-o", name]))
    found[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(found)
"""


def test_streams_that_are_closed_or_full_cost_no_picture(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / "in" / f"{name}.png")
    done = python("-c", STREAMS, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.splitlines()[-1] == "{'both': 0, 'err': 0, 'full err': 0, 'full': 1, 'pipe': 0}", done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("dosde: error: the standard output cannot be written: No space left on device") == 1
    for name in ("both", "err", "full err", "full", "pipe"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["a_x4.png", "b_x4.png", "c_x4.png"]
        for path in (tmp_path / name).iterdir():
            assert images.read(path).colour.shape == (1, 3, 32, 32)


def test_a_python_that_starts_with_closed_streams_answers(tmp_path):
    for streams, status in ((">&- 2>&-", 0), (">/dev/full", 1), ("| true", 0)):
        command = f"{sys.executable} -m dosde upscale --help {streams}"
        done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == status, streams
        assert "Exception" not in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_signal_leaves_whole_files_and_says_the_truth(tmp_path, monkeypatch, capsys, number, status, overwrite):
    for name in ("a", "b", "c"):
        save(tmp_path / "in" / f"{name}.png")
    usual = images.write

    def write(path, *rest, **how):
        if path.name == "b_x4.png":
            os.kill(os.getpid(), number)
        usual(path, *rest, **how)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(images, "write", write)
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", *(["--overwrite"] if overwrite else [])) == status
    last = capsys.readouterr().err.splitlines()[-1]
    start = "stopped; 1 of 3 are written; with --overwrite the same command starts again, without it goes on"
    assert last == (start if overwrite else "stopped; the same command goes on from here")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_x4.png"]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("number", "changed"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_stopped_evaluation_is_kept_and_goes_on(tmp_path, monkeypatch, capsys, number, changed):
    for i, name in enumerate("abc"):
        save_pixels(tmp_path / "hr" / f"{name}.png", pixels(20, 24, i))
    out, whole_out = tmp_path / "a.json", tmp_path / "whole.json"
    given = ["evaluate", "--pairs", str(tmp_path), "--steps", "1", "-o", str(out)]
    usual, calls = backbones.backbone.upscale, []

    def counted(*args, **how):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return usual(*args, **how)

    monkeypatch.setattr(backbones.backbone, "upscale", counted)
    assert main(given) == 128 + number
    what = f"stopped; 2 of 3 are in {out}, marked incomplete; the same command goes on from here"
    assert capsys.readouterr().err.splitlines()[-1] == what
    held = json.loads(out.read_text())
    assert (held["complete"], list(held["pictures"]), held["failed"]) == (False, ["a", "b"], {})
    assert "it is incomplete" in refused(capsys, "evaluate", "--compare", out)
    assert f"--out: {out} holds a stopped evaluation with nfe 1, not 2; another name" in refused(capsys, *given, "--steps", "2")
    if changed:  # so it is measured again
        save_pixels(tmp_path / "hr" / "b.png", pixels(20, 24, 9))
    assert main(given) == 0
    assert len(calls) == (5 if changed else 4)
    assert main([*given[:-1], str(whole_out)]) == 0
    assert json.loads(out.read_text()) == json.loads(whole_out.read_text())


# -- What is said -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--tile", "big"], "argument --tile: invalid value: 'big'; a whole number of pixels, 'auto' or 'none' is needed"),
        (["--tile", "1.5"], "argument --tile: invalid value: '1.5'; a whole number of pixels"),
        (["--max-memory", "much"], "argument --max-memory: invalid value: 'much'; a number of bytes above 0, such as 6G"),
        (["--max-memory", "-1"], "argument --max-memory: invalid value: '-1'; a number of bytes above 0"),
        (["--guidance", "x"], "argument --guidance: invalid value: 'x'; a number is needed"),
        (["--steps", "1.5"], "argument --steps: invalid int value: '1.5'; a whole number is needed"),
        (["--scale", "4x"], "argument --scale: invalid float value: '4x'; a number is needed"),
        (["-o", "a\0b"], "argument -o/--out: 'a\\x00b'; a name that this system can write is needed"),
        (["-o", "\ud800"], "argument -o/--out: '\\ud800'; a name that this system can write is needed"),
    ],
)
def test_a_text_that_is_no_value_is_told_what_is_legal(capsys, given, said):
    assert said in refused(capsys, "upscale", "a.png", "-o", "b", *given)


def test_errors_have_one_line_of_bounded_length(tmp_path, capsys):
    for given in (["x" * 100_000], ["a\nb" * 1000], ["a.png", "--tile", "9" * 3000 + "x"], ["a.png", "--nothing" * 1000]):
        line = refused(capsys, "upscale", *given, "-o", tmp_path / "out")
        assert line.startswith("dosde")
        assert len(line) < 1200
    save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b\nc\udcff.png").write_bytes(b"none")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("failed"))
    assert line.startswith(f"failed  {tmp_path}/in/b\\nc\\udcff.png: ")


def test_help_version_and_wrong_options_need_no_torch():
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['numpy'] = None\n"  # an import of one would raise
        "from dosde.__main__ import main\n"
        "for given in (['--help'], ['--version'], [], ['nothing'], ['upscale', '--help'], ['evaluate', '--help'],\n"
        "              ['convert', '--help'], ['train', '--help'], ['upscale', 'a', '-o', 'b', '--wrong'],\n"
        "              ['upscale', 'a', '-o', 'b', '--tile', 'big'], ['upscale', 'a', '-o', 'b', '--steps', '0'],\n"
        "              ['upscale', 'a', '-o', 'b', '--guidance', '2'], ['evaluate', '--across', 'nfe'],\n"
        "              ['upscale', 'a', '-o', 'b', '--backbone', 'c'], ['upscale', 'none.png', '-o', 'b'],\n"
        "              ['evaluate', '--pairs', 'a', '--scale', '1.5']):\n"
        "    try: main(given)\n"
        "    except SystemExit as stop: print(given, stop.code)\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("[")] == [*"0022000022222222"]
    assert "Traceback" not in done.stderr


def test_the_options_of_every_backbone_are_read_without_torch():
    code = "import sys, backbones\nfor name in backbones.NAMES: backbones.module(name).load\nprint('torch' in sys.modules)"
    assert python("-c", code).stdout == "False\n"


def test_every_public_name_of_the_package_is_there_however_it_is_imported():
    code = (
        "import dosde.plan, dosde.solve, dosde\n"
        "from dosde import *\n"
        "assert callable(dosde.plan) and callable(dosde.solve) and dosde.plan is plan\n"
        "assert all(getattr(dosde, name) is not None for name in dosde.__all__)\n"
        "assert dosde.recipe.maker and not hasattr(dosde, 'nothing')\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    for name in dosde.__all__:
        assert f'"{name}"' in (ROOT / "dosde" / "__init__.py").read_text()


def test_choices_that_are_named_without_torch_are_those_that_there_are():
    assert tuple(colour.COLOUR_FIXES) == loading.COLOUR_FIXES
    assert all(hasattr(dosde.method, name) for name in options.METHODS)


def test_the_legal_values_of_an_option_of_somebody_elses_are_its_help_or_its_own_words():
    def seven(text):
        if text != "7":
            raise ValueError("7 is needed")
        return 7

    assert options._parsed(Option("a number", seven))("7") == 7
    with pytest.raises(options.argparse.ArgumentTypeError, match=r"invalid value: '8'; 7 is needed"):
        options._parsed(Option("a number", seven))("8")


@pytest.mark.parametrize("kind", ["file", "package", "over", "gone"])
def test_another_package_called_backbones_is_named(tmp_path, kind):
    place = tmp_path / "project"
    place.mkdir()
    home = ROOT
    if kind == "file":
        (place / "backbones.py").write_text("raise RuntimeError('it is not to be run')")
        said = f"{place / 'backbones.py'} is another package of this name; {ROOT / 'backbones'} is needed"
    elif kind == "package":
        (place / "backbones").mkdir()
        (place / "backbones" / "__init__.py").touch()
        said = f"{place / 'backbones'} is another package of this name; {ROOT / 'backbones'} is needed"
    else:
        home = tmp_path / "site"
        shutil.copytree(ROOT / "dosde", home / "dosde")
        if kind == "over":
            (home / "backbones").mkdir()
            (home / "backbones" / "__init__.py").write_text("import nothing_that_is_there")
            said = f"another package of this name was installed over that of dosde, {home / 'backbones'}"
        else:
            said = f"{home / 'backbones'} is needed"
    done = python("-m", "dosde", "--version", cwd=place, env={**os.environ, "PYTHONPATH": str(home)})
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert f"dosde: error: backbones: {'' if kind == 'gone' else said}" in done.stderr
    assert said in done.stderr


def test_a_folder_called_backbones_that_is_no_package_is_in_nobodys_way(tmp_path):
    (tmp_path / "backbones").mkdir()
    done = python("-m", "dosde", "--version", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (0, f"dosde {dosde.__version__}\n")


# -- Tiles ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overlap", "multiple"), [(0, 1), (1, 1), (7, 1), (8, 8), (24, 8), (108, 4), (556, 4)])
def test_the_smallest_tile_costs_four_times_the_picture_at_most(overlap, multiple):
    least = tiling.least(overlap, multiple)
    assert least % multiple == 0
    for tile in (least, least + multiple, 3 * least):
        for side in (tile, tile + multiple, 2 * tile, 2 * tile + multiple, 20 * tile):
            boxes = tiling.boxes(side, side, tile, overlap, multiple)
            assert len(boxes) * tile * tile <= 4 * side * side
    if overlap > multiple:  # a tile less is too small for some picture
        side, tile = 400 * least, least - multiple
        assert len(tiling.boxes(side, tile, tile, overlap, multiple)) * tile > 2 * side


def test_a_tile_that_is_mostly_overlap_is_refused_with_the_least_that_is_not(tmp_path, capsys):
    save(tmp_path / "a.png")
    for tile in ("560", "1108", "-4"):
        line = refused(capsys, "upscale", tmp_path / "a.png", "-o", tmp_path / "b.png", "--tile", tile)
        assert f"--tile: {tile}; a multiple of 4 from 1112 is needed" in line
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "b.png", "--tile", "1112") == 0


def test_files_are_known_by_what_they_are(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to(tmp_path)
    assert whole.identity(tmp_path / "a") == whole.identity(tmp_path / "b") != whole.identity(tmp_path)
    assert whole.identity(tmp_path / "none") is None
    assert whole.within(tmp_path / "c" / "new" / "d", tmp_path)
    assert not whole.within(tmp_path / "c", tmp_path / "a")


def test_steps_that_make_it_worse_are_told_once_in_the_words_of_the_command(tmp_path, capsys, recwarn):
    from PIL import Image

    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    out = tmp_path / "out"
    assert main(["upscale", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "-o", str(out), "--steps", "20"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "amplifies" in line]
    assert told == [
        "warning: --steps 20 of this method amplifies errors of the network or the noise; better take --order 1, fewer steps, "
        "or --method few_step"
    ]
    assert not [w for w in recwarn if "order" in str(w.message)]
