"""The benchmark of the pipeline at its small size, and its table in the documents."""

import math

import pytest
import torch
from instances import seeded

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import pipeline as benchmark


@pytest.fixture(scope="module")
def rows():
    return benchmark.measure(benchmark.parsed(["--size", "small", "--dtype", "float32,bfloat16", "--steps", "2"]))


def test_the_stages_sum_to_the_total(rows):
    assert {(r["name"], r["dtype"]) for r in rows} == {(n, d) for n in ("ours", "released") for d in ("float32", "bfloat16")}
    for row in rows:
        (run,) = row["runs"]
        assert sum(run[stage] for stage in benchmark.STAGES) == pytest.approx(run["total"], rel=1e-3, abs=1e-3)
        idle = {stage for stage in benchmark.STAGES if run[stage] == 0}
        assert idle == ({"text"} if row["name"] == "ours" else set())


def test_its_texts_name_every_row_and_goal(rows):
    assert benchmark.table(rows).count("\n") == 1 + len(rows)
    assert benchmark.judged(rows).count("at most") == 3


def test_it_puts_back_what_it_replaces():
    pipe = benchmark.random_pipeline("small")
    pipe.set_progress_bar_config(disable=True)
    attributes, weights = set(vars(pipe)), [p.stride() for p in pipe.vae.parameters()]
    clock = benchmark.Clock(torch.device("cpu"))
    with benchmark.plain(pipe):
        text = benchmark.random_module("text_encoder", benchmark.text_config(32) | {"num_hidden_layers": 1})
        seconds = benchmark.run_once(pipe, clock, torch.rand(3, 16, 16), 1, text, {}, None)
    assert math.isfinite(seconds["total"])
    assert set(vars(pipe)) == attributes
    assert "forward" not in vars(pipe.unet)
    assert weights == [p.stride() for p in pipe.vae.parameters()]


def test_the_released_computation_has_our_numbers():
    pipe = benchmark.random_pipeline("small")
    pipe.set_progress_bar_config(disable=True)

    def run():
        return pipe(torch.full((3, 16, 16), 0.4), num_inference_steps=2, output_type="pt", generator=seeded(0))

    ours = run().images
    with benchmark.plain(pipe):
        theirs = run().images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


def test_the_table_is_what_the_benchmark_wrote():
    written = benchmark.reported("pipeline")
    assert written.tables
    assert not written.stale()
    assert not benchmark.reported("another").tables
