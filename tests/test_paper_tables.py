"""benchmarks/paper_tables.py: rows take the calls they say, compare what the paper compares, and say why where it is not so."""

import re

import paper_networks
import paper_tables
import pytest
import report
import shipped
import torch
from instances import seeded

from backbones import embedded
from backbones.pictures.degradation import BICUBIC
from backbones.training import config
from backbones.training.data import Bundled, Samples
from dosde import cold

ROWS = [(key, row) for key, table in paper_tables.TABLES.items() for row in table.rows]


def test_every_config_is_used_and_they_differ_in_the_process_alone():
    assert {row.network for _, row in ROWS} == set(paper_tables.NAMES)
    plain = {name: config.load(paper_tables.CONFIGS / f"{name}.toml").as_dict() for name in paper_tables.NAMES}
    free = ("out", "process", "objective", "model.network")
    for name, values in plain.items():
        assert values["out"] == f"runs/paper/{name}"
        assert config.difference(values, plain["t1_half"], free) is None
    domain = [name for name in paper_tables.NAMES if name.startswith("t1_") or name == "ddpm"]
    assert len({str(plain[name]["objective"]) for name in domain}) == 1


@pytest.fixture(scope="module")
def small():
    """Networks of the rows, but tiny and untrained."""
    made = {}
    for name in paper_tables.NAMES:
        wanted = config.load(paper_tables.CONFIGS / f"{name}.toml")
        options = {"scale": 0.12, "width": 8, "blocks": 1, "embedding": 4}
        if wanted.model.network.startswith("paper_networks"):
            made[name] = getattr(paper_networks, wanted.model.network.split(":")[1])(**options)
        else:
            wanted.model.options.clear()
            wanted.model.options.update(options)
            made[name] = paper_tables.task(wanted).trainable
    return made


@pytest.mark.parametrize(("key", "row"), ROWS, ids=lambda v: v if isinstance(v, str) else v.name)
def test_a_row_takes_as_many_calls_as_it_says(key, row, small):
    network, calls = small[row.network], []
    hook = network.register_forward_hook(lambda *_: calls.append(1))
    x_hat0 = torch.rand(1, 3, 16, 16, generator=seeded(0)) - 0.5
    with torch.no_grad():
        x0 = row.solve(network, x_hat0, seeded(1))
    hook.remove()
    said = re.search(r"(\d) calls?", row.name)
    wanted = 0 if row.name == "bicubic" else int(said[1]) if said else int(row.name) if key == "fig4" else 5
    assert len(calls) == wanted
    assert x0.shape == x_hat0.shape
    assert float((x0 - x_hat0).square().mean().sqrt()) < 1


def test_orders_and_calls_are_ordered_alike_without_any_training():
    """As docs/paper_tables.md warns: the best linear estimate, which an untrained network is, has Table 3 and Figure 4 to 5."""
    hr, x_hat0 = shipped.pairs()["coffee"]
    hr, x_hat0 = (p[..., :192, :192] for p in (hr, embedded.source(x_hat0, hr.shape[-2:])))
    network = embedded.Network(embedded.Config(scale=0.12, width=8, blocks=1, embedding=4)).eval()
    for key, count in (("3", 3), ("fig4", 5)):
        nets = [network] * len(paper_tables.SEEDS)
        rows = [paper_tables.measured(row, nets, {"coffee": (hr, x_hat0)}) for row in paper_tables.TABLES[key].rows[:count]]
        texture = [paper_tables.mean(row, "texture") for row in rows]
        assert texture == sorted(texture, reverse=True)
        assert texture[-1] < 0.9 * texture[0]


def test_the_blur_is_the_one_nearest_to_bicubic():
    samples = Samples(Bundled(64), BICUBIC, seed=1)
    pairs = [samples[epoch, i] for epoch in range(3) for i in range(len(samples))]
    x0 = 2 * torch.stack([pair["hr"] for pair in pairs]) - 1
    x_hat0 = embedded.source(torch.stack([pair["lr"] for pair in pairs]), (64, 64))
    errors = {std: float((cold.blur(std)(x0, torch.tensor(1.0)) - x_hat0).square().mean()) for std in (1.55, 1.75, 1.95)}
    assert min(errors, key=errors.get) == paper_networks.STD


def test_cold_diffusion_learns_from_blurred_pictures(small):
    """The loss of a network that returns what it gets is that of the blur."""
    wanted = config.load(paper_tables.CONFIGS / "cold.toml")
    task = paper_tables.task(wanted)
    assert isinstance(task, paper_networks.Cold)
    hr, part = torch.rand(2, 3, 16, 16), torch.tensor([0.0, 0.75]).double()
    losses = task.losses(lambda x, x_hat0, t: x, {"hr": hr, "lr": hr[..., ::4, ::4], "part": part, "noise0": hr})
    expected = [
        ((cold.blur(1.75)(x[None], torch.tensor(t)) - x) * 2).square().mean() for x, t in zip(hr, (1.0, 0.25), strict=True)
    ]
    assert losses.tolist() == pytest.approx([float(e) for e in expected], rel=1e-4)


def test_a_velocity_is_that_of_the_flow(small):
    """The two networks are one: x0 = x - v at t = 1."""
    v, sharp = small["flow"], small["cold"]
    sharp.load_state_dict(v.state_dict())
    x, t = torch.rand(2, 3, 16, 16), torch.tensor([0.3, 1.0])
    assert torch.allclose(sharp(x, x, t), x - v(x, x, t))


@pytest.mark.parametrize("key", list(paper_tables.TABLES))
def test_a_reason_is_given_where_the_order_differs_and_nowhere_else(key):
    rows = report.load("paper_tables")["tables"][key]
    table = paper_tables.TABLES[key]
    assert [row["name"] for row in rows] == [row.name for row in table.rows]
    assert bool(table.why) == ("holds in" in paper_tables.verdict(key, rows))


def test_the_verdict_counts():
    table = paper_tables.TABLES["3"]
    rows = [{"name": row.name, "texture": [value, value]} for row, value in zip(table.rows, (0.5, 0.4, 0.3), strict=True)]
    assert paper_tables.verdict("3", rows) == "The paper's order holds here (Solver-1 < Solver-2 < Solver-3)."
    rows[2]["texture"] = [0.4, 0.5]
    assert "holds in 1 of 2 places, not in: Solver-2 0.400, Solver-3 0.450." in paper_tables.verdict("3", rows)
    rows[2]["texture"] = [0.3, 0.5]
    said = "holds in 1 of 2 places, not in: Solver-2 0.400, Solver-3 0.400 (but in 1 of 2 trainings)."
    assert said in paper_tables.verdict("3", rows)
