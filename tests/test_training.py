"""dosde train: configs, the same run on one process and two, killed and resumed, what goes wrong, and the ControlNet."""

import json
import math
import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import types
from dataclasses import MISSING, fields, is_dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import training_processes
from instances import seeded
from safetensors.torch import load_file, save_file
from training_networks import Network

import backbones
import dosde
from backbones import embedded, evaluation
from backbones.cli import main
from backbones.pictures import degradation
from backbones.training import config, loop, pixels, state, stream, validation
from backbones.weights import part, read_safetensors
from dosde.check import Refused

accelerate = pytest.importorskip("accelerate")

ROOT = Path(__file__).parents[1]
TINY = {
    "task": "embedded",
    "steps": 12,
    "batch": 4,
    "log_every": 1,
    "data": {"crop": 16, "scale": 4, "length": 10},
    "model": {"network": "training_networks:Network"},
    "optimizer": {"lr": 3e-3, "warmup": 4, "decay": "cosine"},
    "checkpoint": {"every": 5},
}


def tiny(out, **changes):
    """The content of a config; changes: tables are merged."""
    content = {**TINY, "out": str(out)}
    for name, value in changes.items():
        content[name] = {**content.get(name, {}), **value} if isinstance(value, dict) else value
    return content


def written(path, content):
    """As TOML."""
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in content.items() if name not in tables]
    for table, keys in tables.items():
        inside = {key: value for key, value in keys.items() if not isinstance(value, dict)}
        lines += [f"[{table}]", *(f"{key} = {toml(value)}" for key, value in inside.items())]
        for key, value in keys.items():
            if isinstance(value, dict):
                lines += [f"[{table}.{key}]", *(f"{k} = {toml(v)}" for k, v in value.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def toml(value):
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[" + ", ".join("{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in one.items()) + "}" for one in value) + "]"
    return json.dumps(value)


def train(out, start="new", **changes):
    return loop.train(config.parse(tiny(out, **changes)), start=start, progress=False)


def test_members_learn_the_same_in_parts_of_a_batch_and_parts_too_small_are_refused(tmp_path):
    how = {"model": MEMBERS, "process": {"t1": 0.25}, "data": {"crop": 32}, "batch": 4}
    for parts in (1, 2):
        train(tmp_path / f"{parts}", accumulate=parts, **how)
    one, two = (last(tmp_path / f"{parts}") for parts in (1, 2))
    for name, tensor in one.items():
        if name.startswith("model."):
            assert torch.allclose(tensor, two[name], rtol=1e-3, atol=1e-5), name
            assert name.startswith("model.members")
    with pytest.raises(ValueError, match=r"batch: 4 in 1 x 4 parts .*; in each a multiple of the 2 members is needed"):
        train(tmp_path / "4", accumulate=4, **how)
    assert not (tmp_path / "4").exists()


def test_what_is_refused_leaves_the_run_before_as_it_was_and_overwrite_leaves_nothing_of_it(tmp_path):
    train(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(ValueError, match=r"^model, objective: the loss of a sample: .* positional argument"):
        train(tmp_path / "run", "overwrite", model={"network": "training_networks:Deaf"})
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    own = tmp_path / "run" / "weights.safetensors"
    with pytest.raises(ValueError, match=r"^model\.weights: .*safetensors is in .*; something that the run does not write is"):
        train(tmp_path / "run", "overwrite", model={"weights": str(own)})
    assert own.is_file()
    with pytest.raises(loop.Stopped):
        train(tmp_path / "run", "overwrite", model={"network": "training_networks:Failing"}, checkpoint={"every": 20})
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"run.jsonl", "log.jsonl", "tensorboard"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validation": {"every": 3, "pictures": "procedural", "crop": 32}}, "validation: of the first picture: t: 0.5; a = 0"),
        ({"objective": {"of": "x0", "times": "table", "table": 8}}, "model, objective: the loss of a sample: t: 0.5; a = 0"),
        ({"objective": {"of": "x0", "t_max": 1.0}}, "model, objective: the loss of a sample: t: 0.99"),
        ({"objective": {"predicts": "flow"}, "process": {"shift": "none"}}, "the loss of a sample: t: "),
    ],
)
def test_what_cannot_be_trained_or_validated_is_refused_before_the_run(tmp_path, changes, said):
    changes = {**changes, "objective": {"predicts": "eps", **changes.get("objective", {})}}
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        train(tmp_path / "run", **changes)
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_was_trained_upscales(tmp_path):
    """The network of the backbone embedded: its file has what the command needs, the process of the config among it."""
    sizes = {"network": "backbones.embedded:Network", "options": {"width": 8, "blocks": 1, "embedding": 8}}
    path = train(tmp_path / "run", model=sizes, process={"t1": 0.25}, data={"crop": 32})
    backbone = embedded.load(path)
    assert backbone.process.t1 == 0.25
    assert backbone.network.config.width == 8
    averaged = {name[4:]: tensor for name, tensor in last(tmp_path / "run").items() if name.startswith("ema.")}
    for name, tensor in backbone.network.state_dict().items():
        assert torch.allclose(tensor.float(), averaged[name], rtol=1e-3, atol=1e-6), name
    made = backbones.upscale(backbone, torch.rand(1, 3, 8, 8), 4, 2, noise=seeded(0))
    assert made.shape == (1, 3, 32, 32)
    released = config.parse(tiny(tmp_path, model=sizes, process={"kind": "dossr"}))
    with pytest.raises(ValueError, match="process: dossr; vp with a cosine shift or none, resshift, or flow, is needed"):
        pixels.Embedded(released)
    for changes, said in (
        ({"objective": {"predicts": "v"}}, r"objective\.predicts: 'v'; x0 is needed for backbones\.embedded:Network"),
        ({"data": {"scale": 2}}, r"data\.scale: 2; 4 is needed for backbones\.embedded:Network"),
        ({"process": {"kind": "flow"}}, r"process\.kappa: 0; above 0 is needed for backbones\.embedded:Network"),
    ):
        with pytest.raises(ValueError, match=said):
            pixels.Embedded(config.parse(tiny(tmp_path, model=sizes, **changes)))


def losses(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def last(out):
    return load_file(state.every(out)[-1][1])


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(out)
    return out


# -- Configs ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stepss": 3}, "stepss: 3; no such key, a config has task, out, steps"),
        ({"optimizer": {"rate": 1}}, "optimizer.rate: 1; no such key, optimizer has lr, betas"),
        ({"optimizer": {"lr": "big"}}, "optimizer.lr: 'big'; a number is needed"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr: 0; a number above 0 is needed"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr: nan; a number above 0 is needed"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas: [0.9]; two numbers in [0, 1) is needed"),
        ({"optimizer": {"warmup": 13}}, "optimizer.warmup: 13; at most steps, 12, is needed"),
        ({"steps": 1.5}, "steps: 1.5; a whole number is needed"),
        ({"steps": True}, "steps: True; a whole number is needed"),
        ({"seed": -1}, "seed: -1; a whole number from 0 to 2^63 - 1 is needed"),
        ({"precision": "fp8"}, "precision: 'fp8'; one of no, bf16 is needed"),
        ({"task": "sd3"}, "task: 'sd3'; one of embedded, sd21, resshift is needed"),
        ({"ema": 0.9}, "ema: 0.9; a table is needed"),
        ({"accumulate": 3}, "accumulate: 3; a divisor of batch, 4, is needed"),
        ({"data": {"crop": 18}}, "data.crop: 18; a multiple of data.scale, 4, is needed"),
        ({"data": {"sources": []}}, "data.sources: []; at least one source is needed"),
        (
            {"data": {"sources": [{"kind": "web"}]}},
            "data.sources[0].kind: 'web'; one of folder, pairs, bundled, procedural is needed",
        ),
        ({"data": {"sources": [{"kind": "folder"}]}}, "data.sources[0].path: ''; the name of a folder is needed"),
        ({"data": {"sources": [{"weight": 1.0}]}}, "data.sources[0].kind: missing; one of folder"),
        ({"objective": {"predicts": "epsilon"}}, "objective.predicts: 'epsilon'; one of x0, eps, vp_eps, v"),
        ({"objective": {"weight": "bound"}}, "objective.weight: 'bound'; needs times = 'table'"),
        ({"objective": {"t_min": 0.6}}, "objective.t_min: 0.6; a time below 0.5 is needed"),
        ({"process": {"kind": "flow"}, "objective": {"predicts": "eps"}}, "objective.predicts: 'eps'; x0 or flow is needed"),
        ({"data": {"length": 10**12}}, "data.length: 1000000000000; a whole number from 1 to 10^8 is needed"),
        ({"model": {"options": {"at": date(2026, 1, 1)}}}, "model.options: {'at': datetime.date(2026, 1, 1)}; numbers, texts"),
        ({"validation": {"pictures": ""}}, "validation.pictures: ''; held_out, procedural, or the name of a folder is needed"),
        (
            {"objective": {"weight": "bound", "times": "table", "table": 1, "t_max": 1.0}},
            "objective.weight: 'bound'; ",
        ),
        ({"sd21": {"weights": "folder"}}, "sd21: not of the task embedded; leave the table [sd21] out"),
        ({"task": "sd21"}, "model: not of the task sd21; leave the table [model] out"),
    ],
)
def test_a_wrong_config_is_one_line(changes, said):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        config.parse(tiny("runs/none", **changes))
    assert said in str(error.value)
    assert isinstance(error.value, Refused)
    assert said.startswith(error.value.argument)


def test_missing_keys_and_files_that_are_no_configs(tmp_path):
    with pytest.raises(ValueError, match=r"^out: missing; the name of a folder is needed$"):
        config.parse({"task": "embedded", "steps": 1})
    with pytest.raises(ValueError, match=r"^out: 'a\\x00b'; the name of a folder is needed$"):
        config.parse(tiny("a\0b"))
    with pytest.raises(ValueError, match=r"^config: .*none.toml; a TOML file is needed \(No such file"):
        config.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("steps = = 1")
    with pytest.raises(ValueError, match=r"^config: .*bad.toml is not TOML"):
        config.load(tmp_path / "bad.toml")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_config_may_have_a_byte_order_mark_and_any_ends_of_lines(tmp_path, mark, end):
    text = written(tmp_path / "a.toml", tiny("runs/é")).read_text()
    (tmp_path / "a.toml").write_bytes((mark + text.replace("\n", end)).encode())
    assert config.load(tmp_path / "a.toml") == config.parse(tiny("runs/é"))


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-16", "a.toml: it is UTF-16; a TOML file in UTF-8 is needed"),
        ("utf-32", "a.toml: it is UTF-32; a TOML file in UTF-8 is needed"),
        ("utf-16-le", "a TOML file in UTF-8 is needed"),
        ("utf-16-be", "a TOML file in UTF-8 is needed"),
        ("latin-1", "a.toml: line 2 is not UTF-8; a TOML file in UTF-8 is needed"),
    ],
)
def test_a_config_in_another_encoding_is_one_line(tmp_path, encoding, said):
    (tmp_path / "a.toml").write_bytes('task = "embedded"\nout = "é"\n'.encode(encoding))
    with pytest.raises(Refused, match=r"^config: [^\n]*$") as error:
        config.load(tmp_path / "a.toml")
    assert str(error.value).endswith(said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stepss": 3}, "(did you mean steps?)"),
        ({"optimizer": {"Lr": 1}}, "(did you mean optimizer.lr?)"),
        ({"lr": 3}, "(did you mean optimizer.lr or validation.lr?)"),
        ({"optimizer": {"seed": 3}}, "(did you mean seed?)"),
        ({"optimiser": {"lr": 3}}, "(did you mean optimizer?)"),
        ({"data": {"sources": [{"kind": "folders", "path": "a"}]}}, "(did you mean folder?)"),
        ({"data": {"sources": [{"kind": "folder", "paths": "a"}]}}, "(did you mean data.sources[0].path?)"),
        ({"process": {"schedule": "scaled-linear"}}, "(did you mean scaled_linear?)"),
    ],
)
def test_typing_errors_of_a_config_are_answered(changes, said):
    with pytest.raises(Refused, match=r"^[^\n]*$") as error:
        config.parse(tiny("runs/none", **changes))
    assert str(error.value).endswith(said)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_the_examples_are_configs(path):
    made = config.load(path)
    assert made.task == tomllib.loads(path.read_text())["task"]


def test_the_document_has_every_key_and_its_default():
    def keys(kind, prefix):
        for one in fields(kind):
            default = one.default_factory() if one.default is MISSING and one.default_factory is not MISSING else one.default
            if is_dataclass(default):
                yield from keys(type(default), f"{prefix}{one.name}.")
            elif one.name == "sources":
                yield "| `data.sources` | procedural |"
                yield from keys(config.SourceOfPictures, "data.sources.")
            else:
                shown = "needed" if default is MISSING else f"`{json.dumps(default)}`"
                yield f"| `{prefix}{one.name}` | {shown} |"

    inside = (ROOT / "docs" / "training.md").read_text().split("<!-- config: begin -->\n")[1].split("\n<!-- config: end -->")[0]
    rows = inside.splitlines()[2:]
    assert [row[: row.index("|", row.index("|", 1) + 1) + 1] for row in rows] == list(keys(config.Config, ""))


@pytest.mark.parametrize("kind", ["vp", "dossr", "resshift", "flow"])
def test_times(kind):
    made = config.made_process(config.Process(kind, kappa=1.0))
    part = torch.arange(1000, dtype=torch.float64) / 1000
    t = config.Times(made, config.Objective(t_min=0.1))(part)
    assert t.numpy() == pytest.approx((0.1 + (made.t1 - 0.1) * part).numpy(), abs=1e-12)
    t = config.Times(made, config.Objective(times="table", table=15, t_max=1.0))(part)
    assert sorted(set(t.tolist())) == [(i + 1) / 15 for i in range(15)]
    assert t.unique(return_counts=True)[1].min() >= 66


def test_weights():
    made = config.made_process(config.Process("resshift", T=4))
    wanted = config.Objective(times="table", table=4, weight="bound", t_max=1.0)
    times = config.Times(made, wanted)
    bound = dosde.objective.bound_weights("x0", made, [1.0, 0.75, 0.5, 0.25, 0.0]).flip(0)
    assert torch.equal(config.weights(made, wanted, times, torch.tensor([0.25, 1.0, 0.5]).double()), bound[[0, 3, 1]])
    u = config.weights(made, config.Objective(weight="u", weight_max=3.0), times, torch.tensor([0.25, 1.0]).double())
    assert u.tolist() == [3.0, made(1.0).u.item()]


def test_the_learning_rate():
    own = config.Optimizer(lr=1.0, warmup=4, decay="cosine", final=0.1)
    rates = [loop.learning_rate(own, k, 104) for k in range(105)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1, 1]
    assert rates[54] == pytest.approx(0.55)
    assert rates[104] == pytest.approx(0.1)
    assert loop.learning_rate(replace(own, decay="constant"), 99, 104) == 1


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_processes_share_the_samples_of_each_step(world, accumulate):
    whole = list(stream.Share(7, 0, 8, 1, 0, 1, 0, 5))
    shares = [list(stream.Share(7, 0, 8, accumulate, rank, world, 2, 5)) for rank in range(world)]
    for step in range(2, 5):
        parts = [share[(step - 2) * accumulate + part] for share in shares for part in range(accumulate)]
        assert sorted(key for part in parts for key in part) == sorted(whole[step])
        assert len({len(part) for part in parts}) == 1


# -- Runs ---------------------------------------------------------------------------------------------------------------------


def test_a_run(whole, tmp_path):
    """Its log, checkpoints, result; weights in steps of AdamW, the average by its formula."""
    found = losses(whole)
    assert list(found) == list(range(1, 13))
    assert [step for step, _ in state.every(whole)] == [10, 12]
    result = load_file(whole / "weights.safetensors")
    assert same(result, part(last(whole), "ema."))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "optimizer": {"betas": [0.5, 0.7], "eps": 1e-3, "weight_decay": 0.3, "clip": 0.02},
            "objective": {"predicts": "residual", "norm": "l1", "of": "x0", "weight": "u", "weight_max": 2.0, "t_min": 0.1},
            "ema": {"decay": 0.5, "warmup": False},
        },
    ],
    ids=["usual", "other"],
)
def test_a_run_by_hand(changes, tmp_path):
    """The same steps without accelerate and without the task."""
    changes = {"model": {"options": {"dropout": 0.0}}, **changes}
    made = config.parse(tiny(tmp_path, **changes))
    train(tmp_path / "plain", **changes)
    own, wanted = made.optimizer, made.objective
    network, process = pixels.Embedded(made).trainable, config.made_process(made.process)
    optimizer = torch.optim.AdamW(network.parameters(), betas=own.betas, eps=own.eps, weight_decay=own.weight_decay)
    average = [p.detach().clone() for p in network.parameters()]
    samples, norms = stream.Stream(config.made_samples(made.data, 0), 0, ((3, 16, 16),)), []
    for step, keys in enumerate(stream.Share(10, 0, 4, 1, 0, 1, 0, 12)):
        batch = torch.utils.data.default_collate([samples[key] for key in keys])
        x0, x_hat0 = 2 * batch["hr"] - 1, embedded.source(batch["lr"], (16, 16))
        t = wanted.t_min + (0.5 - wanted.t_min) * batch["part"]
        value = network(process.sample(x0, x_hat0, t, batch["noise0"]), x_hat0, t.float())
        error = (value - x0).square() if wanted.predicts == "x0" else (x_hat0 - value - x0).abs()
        weight = 1.0 if wanted.weight == "one" else process(t).u.clamp(max=2.0).float().reshape(-1, 1, 1, 1)
        loss = (weight * error).mean()
        assert losses(tmp_path / "plain")[step + 1] == pytest.approx(loss.item(), rel=1e-5)
        optimizer.param_groups[0]["lr"] = loop.learning_rate(own, step, 12)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(network.parameters(), own.clip).item())
        optimizer.step()
        decay = min(0.999, (1 + step) / (10 + step)) if made.ema.warmup else 0.5
        average = [decay * v + (1 - decay) * p.detach() for v, p in zip(average, network.parameters(), strict=True)]
    assert not changes.get("optimizer") or min(norms) > own.clip
    result = load_file(tmp_path / "plain" / "weights.safetensors")
    for (name, _), value in zip(network.named_parameters(), average, strict=True):
        assert torch.allclose(result[name], value, atol=1e-6), name


def test_samples_are_those_of_the_config(tmp_path):
    sources = [
        {"kind": "bundled", "names": ["coins", "rocket"], "weight": 3},
        {"kind": "procedural"},
    ]
    made = config.parse(tiny(tmp_path, data={"degradation": "real-esrgan", "shrink": 1.5, "sources": sources}))
    samples = config.made_samples(made.data, 7)
    assert (samples.seed, samples.degradation, len(samples)) == (7, replace(degradation.REAL_ESRGAN, scale=4), 10)
    bundled, procedural = samples.source.sources
    assert (bundled.names, bundled.shrink, bundled.crop, procedural.crop) == (["coins", "rocket"], 1.5, 16, 16)
    assert samples.source.shares.tolist() == [0.75, 0.25]
    assert config.made_samples(config.parse(tiny(tmp_path)).data, 7).degradation == replace(degradation.BICUBIC, scale=4)


def two_processes(path, *arguments, **variables):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"ACCELERATE_USE_CPU": "true", "MASTER_PORT": str(port), **variables}
    return training_processes.two(["train", "--config", str(path), *arguments], path.parent, **common)


def assert_same_run(one, two):
    assert losses(one).keys() == losses(two).keys()
    assert list(losses(two).values()) == pytest.approx(list(losses(one).values()), rel=1e-5)
    a, b = last(one), last(two)
    assert a.keys() == b.keys()
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5


def test_two_processes_have_the_losses_of_one(tmp_path):
    """Accumulation too. Dropout is of each process, so there is none."""
    without = {"model": {"options": {"dropout": 0.0}}}
    train(tmp_path / "one", **without)
    two_processes(written(tmp_path / "two.toml", tiny(tmp_path / "two", accumulate=2, **without)))
    assert_same_run(tmp_path / "one", tmp_path / "two")


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
MEMBERS = {"network": "backbones.embedded:Network", "options": {"width": 8, "blocks": 1, "embedding": 8, "members": 2}}


def test_two_processes_that_share_the_weights_have_the_losses_of_one(tmp_path):
    """FSDP2: of the network that ships, tied and with members, in parts, validated, resumed sharded and on one process."""
    pictures = {"every": 4, "pictures": "procedural", "count": 1, "crop": 32, "steps": [1]}
    changes = {"model": MEMBERS, "batch": 8, "validation": pictures, "optimizer": {"decay": "constant"}}
    train(tmp_path / "one", **changes)
    for steps, *arguments in ((6,), (10, "--resume")):
        path = written(tmp_path / "two.toml", tiny(tmp_path / "two", steps=steps, accumulate=2, **changes))
        two_processes(path, *arguments, **SHARDED)
    train(tmp_path / "two", "resume", **changes)
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_bf16_of_shared_weights_rounds_neither_what_the_network_gets_nor_what_it_returns(tmp_path):
    """FSDP's own bf16 does: losses differ by 1e-5 at the first step and 5e-4 at the second."""
    changes = {"model": MEMBERS, "precision": "bf16", "steps": 4}
    train(tmp_path / "one", **changes)
    two_processes(written(tmp_path / "two.toml", tiny(tmp_path / "two", **changes)), **SHARDED)
    assert list(losses(tmp_path / "two").values()) == pytest.approx(list(losses(tmp_path / "one").values()), rel=1e-5)


@pytest.mark.parametrize(("rank", "when"), [("0", "validation"), ("1", "step")])
def test_two_processes_stop_at_the_same_step(tmp_path, rank, when):
    """On SIGTERM, whichever of them gets it; test_training_stop.py has the rest."""
    pictures = {"every": 2, "pictures": "procedural", "count": 2, "crop": 32, "steps": [1]}
    changes = {"model": {"network": "training_networks:Signalled"}, "validation": pictures}
    path = written(tmp_path / "config.toml", tiny(tmp_path / "run", **changes))
    variables = {"TRAINING_SIGNALS": "SIGTERM", "TRAINING_RANK": rank, "TRAINING_WHEN": when}
    said = two_processes(path, status=143, **variables)
    step = 2 if when == "validation" else 4
    assert f"stopped by SIGTERM: the checkpoint of step {step} is saved" in said[0]
    assert "stopped" not in said[1]
    assert [found for found, _ in state.every(tmp_path / "run")] == [step]


def environment():
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    return {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def test_killed_and_resumed_it_goes_on_bit_for_bit(whole, tmp_path):
    out = tmp_path / "run"
    path = written(tmp_path / "config.toml", tiny(out))
    slowly = {**environment(), "TRAINING_SLEEP": "0.1"}
    process = subprocess.Popen([sys.executable, "-m", "dosde", "train", "--config", path], env=slowly)
    while not state.every(out) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [step for step, _ in state.every(out)] == [5]
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')  # a line cut off
    (out / "checkpoints" / ".00000007.safetensors.part").write_bytes(b"half")
    assert main(["train", "--config", str(path), "--resume"]) == 0
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"00000010.safetensors", "00000012.safetensors"}
    assert losses(out) == losses(whole)
    assert same(last(out), last(whole))
    assert same(load_file(out / "weights.safetensors"), load_file(whole / "weights.safetensors"))


def test_workers_change_nothing(whole, tmp_path):
    train(tmp_path / "run", data={"workers": 1}, steps=6, optimizer={"decay": "constant"})
    train(tmp_path / "other", steps=6, optimizer={"decay": "constant"})
    assert same(last(tmp_path / "run"), last(tmp_path / "other"))
    assert train(tmp_path / "run", "resume", steps=8, optimizer={"decay": "constant"})  # more steps, at a constant rate
    assert [step for step, _ in state.every(tmp_path / "run")] == [6, 8]


def test_validation_and_bf16(tmp_path):
    pictures = {"every": 2, "pictures": "procedural", "count": 2, "crop": 32, "steps": [1, 3], "method": "few_step"}
    train(tmp_path / "run", steps=4, precision="bf16", validation=pictures)
    train(tmp_path / "wide", steps=4)
    wide, half = (np.array(list(losses(tmp_path / name).values())) for name in ("wide", "run"))
    assert 1e-6 < np.abs(half / wide - 1).max() < 1e-2  # rounded to 8 bits, but no more
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rows = [line for line in lines if "psnr" in line]
    assert [(row["step"], row["solve_steps"]) for row in rows] == [(2, 1), (2, 3), (4, 1), (4, 3)]
    assert all(10 < row["psnr"] < 40 and 0 < row["ssim"] < 1 and len(row["pictures"]) == 2 for row in rows)
    assert len(list((tmp_path / "run" / "validation").glob("*.png"))) == 8
    assert all(t.dtype == torch.float32 for t in load_file(tmp_path / "run" / "weights.safetensors").values())


def test_a_validation_is_of_the_averages_as_they_upscale(tmp_path):
    """Without dropout, by the order that is asked for, with the noise of the seed."""
    pictures = {"every": 4, "pictures": "procedural", "count": 1, "crop": 32, "steps": [3], "order": 2}
    changes = {"steps": 4, "seed": 5, "validation": pictures, "optimizer": {"lr": 0.1}}
    train(tmp_path / "run", **changes)
    made = config.parse(tiny(tmp_path / "run", **changes))
    ((name, (hr, lr)),) = validation.validation_pictures(made.validation, made.data, made.seed).items()
    network = Network().eval()
    network.load_state_dict(part(last(tmp_path / "run"), "ema."))
    model = dosde.Denoiser(lambda x, x_hat0, t: network(x, x_hat0, t.float()[None]), config.made_process(made.process), "x0")
    noise = seeded(5)
    with torch.no_grad():
        x0 = dosde.solve(model, embedded.source(lr[None], (32, 32)), 3, 2, noise=noise)
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    psnr = evaluation.psnr(((x0 + 1) / 2).clamp(0, 1), hr[None], 4)
    assert (list(row["pictures"]), row["psnr"]) == ([name], pytest.approx(psnr, abs=1e-4))


def test_validation_folders(tmp_path):
    """Pictures of one name are told apart; one that cannot be read is an error."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "a.bmp", "sub/a.png"):
        picture(folder / name, 40, 40)
    wanted = {"every": 1, "pictures": str(folder), "crop": 32, "steps": [1]}
    train(tmp_path / "run", steps=4, validation=wanted)
    assert len(list((tmp_path / "run" / "validation").glob("00000004_*.png"))) == 3
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"^validation\.pictures: .*a\.png cannot be read \("):
        train(tmp_path / "other", validation=wanted)


def test_a_validation_crop_too_small_to_measure_is_refused_before_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"^validation.crop: 16; 19 or more is needed, for SSIM without a border"):
        train(tmp_path / "run", validation={"every": 2, "pictures": "procedural", "crop": 16})
    assert not (tmp_path / "run").exists()


def test_tensorboard_where_it_is_installed(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            assert (folder, purge_step) == (tmp_path / "run" / "tensorboard", 1)

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def add_image(self, name, picture, step):
            written.append((name, step, tuple(picture.shape)))

        def close(self):
            written.append("closed")

    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    train(tmp_path / "run", steps=4, log_every=2, validation={"every": 4, "pictures": "procedural", "count": 1, "crop": 32})
    assert [name for name, *_ in written if name == "train/loss"] == ["train/loss"] * 2
    assert ("validation/psnr_5", 4) in written
    assert ("procedural0/1", 4, (3, 32, 32)) in written
    assert written[-1] == "closed"


def test_measures():
    """As dosde evaluate has them: of 8 bits, Y from 16 to 235, without a border."""
    hr = torch.randint(0, 200, (1, 3, 40, 40)) / 255
    off = hr + 20.3 / 255
    off[..., :4, :] = 0
    psnr, ssim = validation.measured(off, hr, 4)
    assert psnr == pytest.approx(20 * math.log10(255 / (219 * 20 / 255)), abs=1e-4)
    assert 0.9 < ssim < 1


def test_it_learns(tmp_path):
    """From a bicubic picture: the last losses are below the first ones, by more than their scatter."""
    train(tmp_path / "run", steps=80, batch=8, optimizer={"lr": 1e-2}, data={"length": 4}, model={"options": {"dropout": 0.0}})
    found = np.array(list(losses(tmp_path / "run").values()))
    assert found[-20:].mean() < 0.9 * found[:20].mean()


def test_an_own_save_and_weights_to_start_from(whole, tmp_path):
    changes = {"model": {"save": "training_networks:save", "weights": str(state.every(whole)[-1][1])}}
    job = pixels.Embedded(config.parse(tiny(tmp_path, **changes)))
    assert same(job.trainable.state_dict(), load_file(whole / "weights.safetensors"))
    path = train(tmp_path / "run", steps=4, **changes)
    assert path.name == "own.pth"
    assert same(torch.load(path, weights_only=True), part(last(tmp_path / "run"), "ema."))
    network = pixels.Embedded(
        config.parse(tiny(tmp_path)), network=lambda: Network(3), save=lambda net, folder: folder
    ).trainable
    assert network.net[0].out_channels == 3


def test_weights_that_no_output_depends_on(tmp_path):
    """Have no gradient, and so no state of the optimizer; and a part called `model` is a part."""
    how = {"model": {"network": "training_networks:Unused"}, "optimizer": {"decay": "constant"}}
    train(tmp_path / "whole", **how)
    train(tmp_path / "run", steps=5, **how)
    path = train(tmp_path / "run", "resume", **how)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert same(load_file(path), load_file(tmp_path / "whole" / "weights.safetensors"))
    again = {"network": "training_networks:Unused", "weights": str(path)}
    assert same(pixels.Embedded(config.parse(tiny(tmp_path, model=again))).trainable.state_dict(), load_file(path))


def test_a_network_of_the_folder_where_the_command_runs(tmp_path):
    """The installed command's, too, whose path does not begin with it."""
    (tmp_path / "own_network.py").write_text("from training_networks import Network as Own\n")
    path = written(tmp_path / "config.toml", tiny("run", steps=4, model={"network": "own_network:Own"}))
    command = [
        sys.executable,
        "-P",
        "-c",
        f"import sys; from backbones.cli import main; sys.exit(main(['train', '--config', {str(path)!r}]))",
    ]
    assert subprocess.run(command, cwd=tmp_path, env=environment(), check=False).returncode == 0
    assert (tmp_path / "run" / "weights.safetensors").is_file()


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_checkpoints_are_kept(keep, tmp_path):
    train(tmp_path / "run", steps=5, optimizer={"decay": "constant"}, checkpoint={"every": 1, "keep": keep})
    assert [step for step, _ in state.every(tmp_path / "run")] == list(range(6 - keep, 6))


def test_a_result_that_cannot_be_written(tmp_path, capsys):
    """Weights beyond float16's largest number, in the network that ships."""
    how = {"model": MEMBERS, "optimizer": {"lr": 1e6, "clip": 0.0, "warmup": 0}}
    path = written(tmp_path / "config.toml", tiny(tmp_path / "run", steps=1, **how))
    assert main(["train", "--config", str(path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("dosde train: error: the result cannot be written (")
    assert said.endswith("; the checkpoint of step 1 stays\n")


# -- What goes wrong ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [{}, {"save": "training_networks:save"}, None], ids=["own", "save", "embedded"])
def test_a_task_and_its_config_pickle(tmp_path, model):
    content = {"model": MEMBERS} if model is None else {"model": model}
    made = config.parse(tiny(tmp_path, **content))
    assert pickle.loads(pickle.dumps(made)) == made
    job = pixels.Embedded(made)
    again = pickle.loads(pickle.dumps(job))
    batch = {"hr": torch.rand(2, 3, 16, 16), "lr": torch.rand(2, 3, 4, 4), "part": torch.rand(2).double()}
    batch["noise0"] = torch.randn(2, 3, 16, 16)
    found = [one.losses(one.trainable.eval(), batch).tolist() for one in (job, again)]
    assert found[0] == found[1]


def test_nan_stops_and_the_last_checkpoint_stays(tmp_path, capsys):
    changes = {"model": {"network": "training_networks:Failing"}, "checkpoint": {"every": 2}}
    path = written(tmp_path / "config.toml", tiny(tmp_path / "run", **changes))
    assert main(["train", "--config", str(path)]) == 1
    said = capsys.readouterr().err
    assert said == "dosde train: error: step 6: the loss is nan; the checkpoint of step 4 stays\n"
    assert [step for step, _ in state.every(tmp_path / "run")] == [2, 4]
    assert all(t.isfinite().all() for t in last(tmp_path / "run").values())


def test_a_full_disk_stops_and_the_last_checkpoint_stays(tmp_path, capsys):
    """No file may grow beyond a size at which the log fits, and a wider network's checkpoint does not."""
    out = tmp_path / "run"
    train(out, steps=5, optimizer={"decay": "constant"})
    before = state.every(out)[-1][1].read_bytes()
    path = written(tmp_path / "config.toml", tiny(out, optimizer={"decay": "constant"}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        assert main(["train", "--config", str(path), "--resume"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert said.startswith("dosde train: error: ")
    assert "00000010.safetensors cannot be written" in said
    assert said.count("\n") == 1
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["00000005.safetensors"]
    assert state.every(out)[-1][1].read_bytes() == before
    assert main(["train", "--config", str(path), "--resume"]) == 0


def picture(path, width=24, height=20):
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(path)


def test_a_broken_picture_is_left_out(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture(folder / "a.png")
    picture(folder / "b.png")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:300])
    with pytest.warns(UserWarning, match="b.png: cannot be read and is left out"):
        train(tmp_path / "run", steps=4, data={"sources": [{"kind": "folder", "path": str(folder)}]})


def test_pictures_that_all_vanish_stop_a_run(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture(folder / "a.png")

    class Vanishing(pixels.Embedded):
        def losses(self, network, batch):
            (folder / "a.png").write_bytes(b"gone")
            return super().losses(network, batch)

    changed = config.parse(tiny(tmp_path / "run", data={"sources": [{"kind": "folder", "path": str(folder)}]}))
    with (
        pytest.warns(UserWarning, match="a.png: cannot be read"),
        pytest.raises(loop.Stopped, match=r"^after step 0: folder: none of 1 pictures can be read"),
    ):
        loop.train(changed, task=Vanishing, progress=False)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "data.sources[0]: folder: .*it holds no pictures"),
        ((8,), "data.sources[0]: folder: 1 of 1 pictures are smaller than"),
    ],
)
def test_folders_that_do_not_serve(tmp_path, capsys, files, said):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for side in files:
        picture(folder / f"{side}.png", side, side)
    path = written(tmp_path / "a.toml", tiny(tmp_path / "run", data={"sources": [{"kind": "folder", "path": str(folder)}]}))
    assert main(["train", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in said.split(".*"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"network": "no_such:Network"}, "model.network: 'no_such:Network'; there is no module no_such"),
        ({"options": {"depth": 3}}, "model.options: {'depth': 3}; "),
        ({"options": {"width": -3}}, "model.options: {'width': -3}; "),
        ({"weights": "none.safetensors"}, "model.weights: checkpoint: none.safetensors; no such file"),
    ],
)
def test_networks_that_cannot_be_made(tmp_path, model, said):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        train(tmp_path / "run", model=model)
    assert said in str(error.value)


def test_a_checkpoint_of_another_shape(whole, tmp_path):
    wider = {"model": {"options": {"width": 9}, "weights": str(whole / "weights.safetensors")}}
    with pytest.raises(
        ValueError, match=r"net.0.weight has shape \(8, 7, 3, 3\); \(9, 7, 3, 3\), as the network of the config"
    ):
        train(tmp_path / "run", **wider)
    shutil.copytree(whole, tmp_path / "run")
    step, file = state.every(tmp_path / "run")[-1]
    tensors, metadata = read_safetensors(file)
    tensors["ema.net.0.weight"] = torch.zeros(2, 3)
    save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match=r"00000012.safetensors: net.0.weight has shape \(2, 3\); \(8, 7, 3, 3\)"):
        train(tmp_path / "run", "resume")
    del tensors["ema.net.0.weight"]
    save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match=r"00000012.safetensors has no tensor net.0.weight"):
        train(tmp_path / "run", "resume")
    shutil.copy(state.every(whole)[-1][1], file)
    tensors = read_safetensors(file)[0]
    save_file({name: t for name, t in tensors.items() if not name.startswith("optimizer.exp_avg_sq.net.0")}, file, metadata)
    with pytest.raises(ValueError, match=r"00000012.safetensors has no tensor net.0.(weight|bias)"):
        train(tmp_path / "run", "resume")
    save_file({name: t for name, t in tensors.items() if not name.startswith("optimizer.")}, file, metadata)
    with pytest.raises(ValueError, match=r"00000012.safetensors has no state of the optimizer"):
        train(tmp_path / "run", "resume")
    file.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"checkpoint: .*00000012.safetensors is a text file"):
        train(tmp_path / "run", "resume")
    assert step == 12


def test_a_resume_with_another_config(whole):
    with pytest.raises(ValueError, match=r"^optimizer.lr: 0.5; 0.003 is needed, as in the run that is resumed"):
        train(whole, "resume", optimizer={"lr": 0.5})
    with pytest.raises(ValueError, match=r"^steps: 20; 12 is needed"):
        train(whole, "resume", steps=20)
    with pytest.raises(ValueError, match=r"holds a run with a checkpoint of step 12; --resume goes on"):
        train(whole)
    assert train(whole, "resume", checkpoint={"every": 3}).exists()  # nothing left to do; and this may be another
