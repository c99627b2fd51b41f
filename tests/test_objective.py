"""Losses: against those recorded from the released DoSSR and ResShift, and by their equations."""

import golden_sd21
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from instances import PROCESS, PROCESSES, randn
from test_resshift import KINDS, LOSSES, RELEASED

from dosde import objective, prediction, presets, process


def test_the_released_training_step():
    """The release: x_t of the batch, x0 of the network's output, L1, in float32; a table index i is at t = (i + 1)/1000."""
    recorded = {key: torch.from_numpy(v) for key, v in golden_sd21.load("train_step").items()}
    released = presets.dossr()[0]
    t = (recorded["t"].double() + 1) / 1000
    x0, x_hat0, z, net = (recorded[key].double() for key in ("z0", "z_hat0", "noise", "model_output"))
    x = released.sample(x0, x_hat0, t, z)
    x_theta = prediction.convert(net, x, x_hat0, released(t.reshape(-1, 1, 1, 1)), "vp_eps", "x0")
    losses = objective.loss(net, "vp_eps", released, x0, x_hat0, t, z, norm="l1", of="x0")
    assert recorded["t"].tolist()[-1] > 900  # far beyond t1, where the release trains too
    for ours, key in ((x, "x_t"), (x_theta, "pred_x0"), (losses, "loss_per_sample"), (losses.mean()[None], "loss")):
        size = recorded[key].double().flatten(1 if ours.ndim > 1 else 0).abs().amax(-1)  # of each sample
        error = (ours - recorded[key]).flatten(1 if ours.ndim > 1 else 0).abs().amax(-1)
        assert (error <= 1e-5 * size).all(), key
    batch = (x0.float(), x_hat0.float(), t, z.float())
    single = objective.loss(net.float(), "vp_eps", released, *batch, norm="l1", of="x0")
    assert single.numpy() == pytest.approx(recorded["loss_per_sample"].numpy(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RELEASED)
def test_resshift_losses(name, kind):
    T, predicts = RELEASED[name], KINDS[kind]
    released, times = presets.resshift(T, T)
    x0, y, z = (torch.from_numpy(LOSSES[f"{name}/{key}"]) for key in ("x_start", "y", "noise"))
    index = torch.from_numpy(LOSSES[f"{name}/t"])
    t = (index.double() + 1) / T
    output = torch.tanh(0.3 * released.sample(x0, y, t, z) + 0.5 * y) + 0.01 * index.double().reshape(-1, 1, 1, 1)
    bound = objective.bound_weights(predicts, released, times).flip(0)[index]
    for weight, key in ((objective.plain_weight(predicts, released(t)), "plain"), (bound, "weighted")):
        ours = objective.loss(output, predicts, released, x0, y, t, z, weight=weight)
        assert ours.numpy() == pytest.approx(LOSSES[f"{name}/{kind}/{key}_norm0_latent1/mse"], rel=1e-12)


@given(
    name=st.sampled_from(sorted(PROCESSES)),
    predicts=st.sampled_from(["x0", "eps", "vp_eps", "v", "residual", "sigma_eps", "flow"]),
    norm=st.sampled_from(["l1", "l2"]),
    part=st.floats(0.05, 0.9),
)
def test_of_x0_is_the_error_of_x_theta(name, predicts, norm, part):
    """Computed by p |net - target|; the definition is through x_theta. Where eta = 0 there is no flow."""
    one = PROCESSES[name]
    t = torch.tensor([part, part / 2, 0.95 * part], dtype=torch.float64) * one.t1
    m = one(t.reshape(-1, 1, 1))
    if predicts == "flow" and not m.b.any():
        return
    x0, x_hat0, z, noise = randn(4, 3, 2, 5)
    value = objective.target(predicts, one, x0, x_hat0, t, z) + noise
    x_theta = prediction.convert(value, one.sample(x0, x_hat0, t, z), x_hat0, m, predicts, "x0")
    error = x_theta - x0
    expected = (error**2 if norm == "l2" else error.abs()).mean((1, 2))
    ours = objective.loss(value, predicts, one, x0, x_hat0, t, z, norm=norm, of="x0")
    assert ours.numpy() == pytest.approx(expected.numpy(), rel=1e-6)


def test_the_papers_loss_is_that_of_x0_weighted_by_u():
    """|eps_theta - eps|^2 = |x_theta - x0|^2 / lam^2 (Eq. 8 and 29)."""
    x0, x_hat0, z, net = randn(4, 3, 2, 5)
    t = torch.tensor([0.1, 0.3, 0.45], dtype=torch.float64)
    plain = objective.loss(net, "eps", PROCESS, x0, x_hat0, t, z)
    assert torch.allclose(plain, ((net - z) ** 2).mean((1, 2)))
    assert torch.allclose(objective.loss(net, "eps", PROCESS, x0, x_hat0, t, z, of="x0", weight=PROCESS(t).u), plain)


def test_the_least_loss_is_at_the_regression():
    """Of the flow: the best constant velocity at t is E[x_hat0 - x0]; gradients reach the network and nothing else."""
    x0, x_hat0, z = randn(3, 1000, 1)
    v = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    objective.loss(v.expand(1000, 1), "flow", process.flow(), x0, x_hat0, 0.5, z).mean().backward()
    assert float(v.grad) == pytest.approx(float(-2 * (x_hat0 - x0).mean()))


def test_weights_broadcast_and_half_precision_is_computed_in_float32():
    x0, x_hat0, z, net = randn(4, 2, 3, 4, 4)

    def v_loss(value, x0, x_hat0, z, **keywords):
        return objective.loss(value, "v", PROCESS, x0, x_hat0, 0.3, z, **keywords)

    plain, each = v_loss(net, x0, x_hat0, z), torch.tensor([1.0, 3.0])
    assert torch.allclose(v_loss(net, x0, x_hat0, z, weight=each), plain * each)
    first = v_loss(net, x0, x_hat0, z, weight=torch.tensor([3.0, 0, 0]).reshape(3, 1, 1))
    assert torch.allclose(first, v_loss(*(v[:, :1] for v in (net, x0, x_hat0, z))))
    half = v_loss(*(v.bfloat16() for v in (net, x0, x_hat0, z)))
    assert half.dtype == torch.float32
    assert torch.allclose(half.double(), plain, rtol=0.02)


X = torch.zeros(2, 3)


@pytest.mark.parametrize(("keywords", "message"), [
    ({"norm": "huber"}, "norm: 'huber'; l2 or l1"),
    ({"of": "eps"}, "of: 'eps'; net or x0"),
    ({"z": X[:1]}, r"value, x0, x_hat0, z: shapes \[\(2, 3\), \(2, 3\), \(2, 3\), \(1, 3\)\]"),
    ({"predicts": "noise"}, "predicts: 'noise'; one of x0, eps"),
    ({"t": 0.5, "of": "x0"}, r"t: 0.5; a = 0 there, where x0 does not follow from eps"),
    ({"t": torch.tensor([0.1, 0.2, 0.3])}, "one time, or 2 of them"),
])  # fmt: skip
def test_errors(keywords, message):
    with pytest.raises(ValueError, match=message):
        objective.loss(
            **({"value": X, "predicts": "eps", "process": PROCESS, "x0": X, "x_hat0": X, "t": 0.2, "z": X} | keywords)
        )
