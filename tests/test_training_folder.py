"""The folder of a run: what is removed and replaced is what the run wrote, and nothing that it reads is among it."""

import json
import os
import shutil

import pytest
import test_training
from test_training import last, losses, picture, same, tiny, whole, written  # noqa: F401

from backbones.cli import main
from backbones.training import config, record, state
from dosde.check import Refused

CONSTANT = {"optimizer": {"warmup": 0, "decay": "constant"}, "checkpoint": {"every": 2, "keep": 2}}


def train(out, start="new", **changes):
    """Two steps, if not said otherwise, so few that a constant rate is what they can have."""
    return test_training.train(out, start, **{"steps": 2, **CONSTANT, **changes})


def contents(folder):
    """Every file and link below a folder, with what it holds."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def users(folder):
    """Files of a user's, under the names that a run has and beside them."""
    for name in ("checkpoints/best.pt", "checkpoints/1.safetensors", "checkpoints/.mine.part", "validation/mine.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"mine")
    for name in ("tensorboard/events.out.tfevents.1", "pipeline/mine.json", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"mine")
    return contents(folder)


@pytest.mark.parametrize("start", ["overwrite", "resume"])
def test_where_no_run_was_nothing_is_removed(tmp_path, monkeypatch, start):
    """As `out = "."` in a project, with pictures to train on in a folder that is called as one of a run's."""
    monkeypatch.chdir(tmp_path)
    before = users(tmp_path)
    train(".", start, steps=3)
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before
    train(".", "overwrite", steps=3)
    train(".", "resume", steps=3)
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before


def test_overwrite_removes_a_run_and_nothing_else(tmp_path):
    out = tmp_path / "run"
    pictures = {"validation": {"every": 2, "pictures": "procedural", "count": 1, "crop": 32, "steps": [1]}}
    train(out, steps=4, **pictures)
    run = set(contents(out))
    assert {name.split("/")[0] for name in run} >= {
        "run.jsonl",
        "log.jsonl",
        "weights.safetensors",
        "checkpoints",
        "validation",
    }
    before = {name: content for name, content in users(out).items() if name not in run}
    assert len(before) == 7
    train(out, "overwrite", steps=1)
    after = contents(out)
    assert {name: after.get(name) for name in before} == before
    assert set(after) - set(before) - {name for name in after if name.startswith("tensorboard")} == {
        *("run.jsonl", "log.jsonl", "weights.safetensors", "checkpoints/00000001.safetensors"),
    }


@pytest.mark.parametrize(
    "name",
    [
        *("run.jsonl", "log.jsonl", "weights.safetensors", "checkpoints/00000003.safetensors"),
        *("validation/00000002_a_1.png", "checkpoints", "tensorboard"),
    ],
)
@pytest.mark.parametrize("start", ["overwrite", "resume"])
def test_what_a_run_would_replace_and_did_not_write_is_refused(tmp_path, name, start):
    out = tmp_path / "run"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(b"mine")
    with pytest.raises(Refused, match=rf"^out: .* holds {name}, which the run would write .*; move it away, or"):
        train(out, start)
    assert contents(out) == {name: b"mine"}


@pytest.mark.parametrize("name", ["checkpoints", "validation", "tensorboard", "pipeline", "log.jsonl", "weights.safetensors"])
def test_links_out_of_the_folder_are_not_followed(tmp_path, name):
    """In a run that had the same files: they have been moved elsewhere, and may be somebody's now."""
    out, there = tmp_path / "run", tmp_path / "elsewhere"
    train(out, steps=2, validation={"every": 2, "pictures": "procedural", "count": 1, "crop": 32, "steps": [1]})
    if not (out / name).exists():
        (out / name).mkdir()
    shutil.move(out / name, there)
    (out / name).symlink_to(there)
    before = contents(tmp_path)
    for start in ("overwrite", "resume"):
        with pytest.raises(Refused, match=rf"^out: .* holds {name}, which the run would write"):
            train(out, start, steps=4)
    assert contents(tmp_path) == before


def test_keep_removes_checkpoints_of_this_run_alone(tmp_path):
    """Not one that was copied here from another run, which a run may go on from."""
    train(tmp_path / "other", steps=2)
    checkpoint = tmp_path / "other" / "checkpoints" / "00000002.safetensors"
    out = tmp_path / "run"
    train(out, steps=1)
    shutil.copy(checkpoint, out / "checkpoints")
    train(out, "resume", steps=8)
    assert [step for step, _ in state.every(out)] == [2, 6, 8]
    assert losses(out)[8] == losses(train(tmp_path / "whole", steps=8).parent)[8]
    assert state.every(out)[0][1].read_bytes() == checkpoint.read_bytes()


def test_runs_of_versions_without_a_record_go_on_and_are_replaced(whole, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "run.jsonl").unlink()
    (out / "checkpoints" / "00000012.safetensors").unlink()
    (out / "weights.safetensors").unlink()
    before = {name: content for name, content in users(out).items() if name not in contents(whole)}
    del before["tensorboard/events.out.tfevents.1"]  # which is called as tensorboard calls its own
    test_training.train(out, "resume", checkpoint={"every": 1, "keep": 1})
    assert same(last(out), last(whole))
    assert [path.name for _, path in state.every(out)] == ["1.safetensors", "00000012.safetensors"]
    (out / "run.jsonl").unlink()
    train(out, "overwrite", steps=1)
    assert losses(out).keys() == {1}
    after = contents(out)
    assert {name: after.get(name) for name in before} == before


def test_a_log_of_a_user_is_no_log_of_an_earlier_version(whole, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "run.jsonl").unlink()
    (out / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n')
    with pytest.raises(Refused, match=r"holds log\.jsonl, which the run would write"):
        train(out, "overwrite")


def test_checkpoints_without_the_keys_of_this_version_go_on(whole, tmp_path):  # noqa: F811
    """The keys that have come since have their defaults."""
    from safetensors.torch import load_file, save_file

    from backbones.weights import metadata

    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    step, path = state.every(whole)[0]
    about = metadata(path)
    before = json.loads(about["config"])
    for source in before["data"]["sources"]:
        del source["hr"], source["lr"]
    del before["validation"]["lr"]
    save_file(load_file(path), out / "checkpoints" / path.name, {**about, "config": json.dumps(before)})
    test_training.train(out, "resume")
    assert (step, same(last(out), last(whole))) == (10, True)


def test_a_record_of_somebody_elses_names_nothing_outside(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (tmp_path / "mine").write_text("mine")
    (out / "sub").mkdir()
    (out / "sub" / "mine").write_text("mine")
    lines = [{"dosde train": "0.1.0"}, *({"file": name} for name in ("../mine", str(tmp_path / "mine"), "sub/mine"))]
    lines += [{"file": "checkpoints/../../mine"}, {"file": 3}, [], 5]
    (out / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"fi')
    assert record.read(out).names == set()
    train(out, "overwrite", steps=1)
    assert (tmp_path / "mine").is_file()
    assert (out / "sub" / "mine").is_file()


def names_of(place, tmp_path):
    """A folder by several names."""
    (tmp_path / "link").symlink_to(place, target_is_directory=True)
    return [str(place), os.path.relpath(place), f"{place.parent}/x/../{place.name}", str(tmp_path / "link")]


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("validation.pictures", "run/validation"),
        ("validation.pictures", "run"),
        ("data.sources[0].path", "run/validation"),
        ("data.sources[0].path", "run"),
        ("data.sources[0].path", "."),
        ("data.sources[0].hr", "run/validation"),
        ("data.sources[0].lr", "run"),
        ("validation.lr", "run/validation"),
        ("model.weights", "run/checkpoints"),
    ],
)
def test_a_run_that_reads_what_it_writes_is_refused(tmp_path, key, place):
    out = tmp_path / "run"
    train(out, steps=2, validation={"every": 2, "pictures": "procedural", "count": 1, "crop": 32, "steps": [1]})
    before = contents(out)
    picture(tmp_path / "a.png", 40, 40)
    other = str(tmp_path / "other")
    for name in names_of((tmp_path / place).resolve(), tmp_path):
        changes = {
            "validation.pictures": {"validation": {"every": 2, "pictures": name, "crop": 24, "steps": [1]}},
            "validation.lr": {"validation": {"every": 2, "pictures": other, "lr": name, "crop": 24, "steps": [1]}},
            "data.sources[0].path": {"data": {"sources": [{"kind": "folder", "path": name}]}},
            "data.sources[0].hr": {"data": {"sources": [{"kind": "pairs", "hr": name, "lr": other}]}},
            "data.sources[0].lr": {"data": {"sources": [{"kind": "pairs", "hr": other, "lr": name}]}},
            "model.weights": {"model": {"weights": f"{name}/00000002.safetensors"}},
        }[key]
        for start in ("overwrite", "resume"):
            with pytest.raises(Refused) as error:
                train(out, start, **changes)
            assert error.value.argument == key, name
        assert contents(out) == before, name


def test_links_to_what_the_run_writes_are_refused(tmp_path):
    train(tmp_path / "run", steps=2, validation={"every": 2, "pictures": "procedural", "count": 1, "crop": 32, "steps": [1]})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").symlink_to(next((tmp_path / "run" / "validation").iterdir()))
    with pytest.raises(Refused, match=r"^data\.sources\[0\]\.path: .*photos holds .*a\.png; a folder without links to"):
        train(tmp_path / "run", "overwrite", data={"sources": [{"kind": "folder", "path": str(tmp_path / "photos")}]})


def test_pictures_and_weights_in_the_folder_that_no_run_writes_are_read(tmp_path):
    out = tmp_path / "run"
    train(out, steps=2)
    shutil.move(out / "weights.safetensors", out / "start.safetensors")
    (out / "photos").mkdir()
    picture(out / "photos" / "a.png")
    sources = {"sources": [{"kind": "folder", "path": str(out / "photos")}]}
    train(out, "overwrite", steps=2, data=sources, model={"weights": str(out / "start.safetensors")})
    assert (out / "photos" / "a.png").is_file()
    assert (out / "start.safetensors").is_file()


def test_a_new_run_needs_an_empty_folder(tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    path = written(tmp_path / "config.toml", tiny(out, steps=1, **CONSTANT))
    assert main(["train", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert "holds files; --resume goes on with it, --overwrite starts anew and leaves what no run wrote" in said
    assert main(["train", "--config", str(path), "--overwrite"]) == 0
    assert (out / "notes.txt").read_text() == "mine"


def test_homes_are_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sources = [{"kind": "folder", "path": "~/a"}, {"kind": "pairs", "hr": "~/b", "lr": "~/c"}]
    made = config.parse(
        tiny(
            "~/runs",
            data={"sources": sources},
            model={"weights": "~/w.safetensors"},
            validation={"pictures": "~/v", "lr": "~/l"},
        )
    )
    assert made.out == f"{tmp_path}/runs"
    assert dict(config.inputs(made)) == {
        "data.sources[0].path": f"{tmp_path}/a",
        "data.sources[1].hr": f"{tmp_path}/b",
        "data.sources[1].lr": f"{tmp_path}/c",
        "model.weights": f"{tmp_path}/w.safetensors",
        "validation.pictures": f"{tmp_path}/v",
        "validation.lr": f"{tmp_path}/l",
    }
    tables = {"model": None, "task": "sd21", "sd21": {"weights": "~/s", "cache": "~/k"}}
    content = {name: value for name, value in {**tiny("~"), **tables}.items() if value is not None}
    content["objective"] = {"predicts": "vp_eps"}
    own = config.parse(content)
    assert (own.out, own.sd21.weights, own.sd21.cache) == (str(tmp_path), f"{tmp_path}/s", f"{tmp_path}/k")
    root = os.path.expanduser("~root")
    assert config.parse(tiny("~root/runs")).out == f"{root}/runs"
    with pytest.raises(Refused, match=r"^out: '~nobody-here/runs'; there is no home of ~nobody-here"):
        config.parse(tiny("~nobody-here/runs"))
    assert config.parse(tiny("./~x")).out == "./~x"
