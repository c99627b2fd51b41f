"""One network in six prediction types; conversions, and where they are undefined."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import FIELD_PROCESSES, PROCESS, PROCESSES, randn, seeded

import dosde
from dosde import prediction, schedule, shift
from dosde.prediction import convert
from dosde.process import Process

KINDS = ("x0", "eps", "vp_eps", "v", "score", "residual", "sigma_eps")
PAIRS = list(itertools.product(KINDS, KINDS))


def as_defined(x, x_hat0, x0, m):
    """Each kind from x0, straight from its definition."""
    vp_eps = (x - (m.a + m.b) * x0) / m.sigma
    eps = (x - m.a * x0 - m.b * x_hat0) / m.sigma
    return {
        "x0": x0,
        "eps": eps,
        "vp_eps": vp_eps,
        "v": (m.a + m.b) * vp_eps - m.sigma * x0,
        "score": -eps / m.sigma,
        "residual": x_hat0 - x0,
        "sigma_eps": m.sigma * eps,
    }


@pytest.mark.parametrize(("source", "target"), PAIRS)
@settings(max_examples=40)
@given(name=st.sampled_from(sorted(PROCESSES | FIELD_PROCESSES)), fraction=st.floats(0.05, 0.9))
def test_conversions_follow_the_definitions(source, target, name, fraction):
    process = (PROCESSES | FIELD_PROCESSES)[name]
    m = process(fraction * (process.t1 if not process.field_shape else 0.2))
    x, x_hat0, x0 = randn(2, 3, 3, 4), randn(2, 3, 3, 4), randn(2, 3, 3, 4)
    values = as_defined(x, x_hat0, x0, m)
    got = convert(values[source], x, x_hat0, m, source, target)
    scale = float(values[target].abs().max()) * float((1 + m.lam.max()) * (1 + 1 / m.lam.min()) ** 2)
    assert float((got - values[target]).abs().max()) < 1e-13 * scale


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_at_eta_1_all_is_finite_but_x0_from_eps(source, target):
    m = PROCESS(0.5)
    x, x_hat0, x0 = randn(4), randn(4), randn(4)
    values = as_defined(x, x_hat0, x0, m)
    noises = ("eps", "score", "sigma_eps")
    if source in noises and target not in noises:
        name = "sigma_eps" if source == "sigma_eps" else "eps"
        with pytest.raises(ValueError, match=rf"t: 0\.5; a = 0 there, where x0 does not follow from {name};"):
            convert(values[source], x, x_hat0, m, source, target)
    else:
        assert torch.allclose(convert(values[source], x, x_hat0, m, source, target), values[target])


@pytest.mark.parametrize("target", KINDS)
def test_at_sigma_0_only_what_needs_no_noise_is_left(target):
    m = PROCESS(0.0)
    x, x_hat0 = randn(4), randn(4)
    expected = {"x0": x, "residual": x_hat0 - x, "sigma_eps": torch.zeros_like(x)}
    if target in expected:
        for source in ("x0", "eps", "vp_eps", "v", "residual", "sigma_eps"):
            value = expected.get(source, torch.zeros_like(x))
            assert torch.allclose(convert(value, x, x_hat0, m, source, target), expected[target])
    else:
        with pytest.raises(ValueError, match="sigma = 0 there"):
            convert(x, x, x_hat0, m, "x0", target)


def test_the_time_that_is_named_is_one_where_it_is_so():
    m = PROCESS(torch.tensor([0.25, 0.5, 0.1], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^t: 0\.5; a = 0 there"):
        convert(randn(3), randn(3), randn(3), m, "eps", "x0")


def test_x0_does_not_follow_from_vp_eps_at_alpha_0():
    m = Process(schedule.cosine(), shift.cosine(0.5))(1.0)
    with pytest.raises(ValueError, match=r"t: 1; alpha = 0 there"):
        convert(randn(4), randn(4), randn(4), m, "vp_eps", "x0")


@pytest.mark.parametrize("predicts", [kind for kind in KINDS if kind != "score"])
@pytest.mark.parametrize("name", ["scaled_linear-cosine", "ve-linear", "resshift", "scaled_linear-channels"])
def test_one_network_in_all_types_gives_one_x_theta(predicts, name):
    process = (PROCESSES | FIELD_PROCESSES)[name]
    x_hat0 = randn(2, 3, 3, 4)
    times = [0.25, 0.2, 0.1, 0.02]

    def x_theta(x, x_hat0, t):
        return torch.tanh(x - 0.3 * x_hat0) + float(t)

    def net(x, x_hat0, t):
        return as_defined(x, x_hat0, x_theta(x, x_hat0, t), process(t))[predicts]

    def run(model, **how):
        seen = []
        dosde.solve(
            model,
            x_hat0,
            3,
            2,
            grid=times,
            noise=seeded(1),
            callback=lambda i, t, x, x_theta: seen.append(x_theta),
            **how,
        )
        return torch.stack(seen)

    ours = run(dosde.Denoiser(net, process, predicts=predicts))
    assert torch.allclose(ours, run(x_theta, process=process), atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("predicts", ["eps", "vp_eps", "v", "residual", "sigma_eps"])
def test_only_the_network_is_rounded(dtype, predicts):
    """A half-precision network whose output is exact: x_theta is that of float32, at eps near a = 0 too."""
    process, times = dosde.presets.dossr(5)
    x, x_hat0, value = torch.randn(1, 50), torch.randn(1, 50).to(dtype), torch.randn(1, 50).to(dtype)
    for t in times[:-1]:
        got = dosde.Denoiser(lambda *a: value, process, predicts)(x, x_hat0, t)
        p, q, r = (float(c) for c in prediction.to_x0(predicts, process(t)))
        expected = p * value.double() + q * x.double() + r * x_hat0.double()
        assert float((got - expected).abs().max()) < 1e-5 * (1 + abs(p) + abs(q))


def test_half_precision_scores_and_samples_are_computed_in_float32():
    x = torch.randn(1, 50).half()
    expected = PROCESS.score(x.double(), x.double(), 0 * x.double(), 0.01)
    assert torch.allclose(PROCESS.score(x, x, 0 * x, 0.01).double(), expected, rtol=1e-3)
    m = PROCESS(0.4995)
    x0 = torch.randn(1, 50).half()
    eps = convert(x0, x, x, m, "x0", "eps")
    assert convert(eps, x, x, m, "eps", "x0").isfinite().all()


def test_a_denoiser_converts_in_the_dtype_of_the_state():
    """x_theta of a bf16 network is float32: only the network itself is rounded."""
    dtypes = []

    def net(x, x_hat0, t):
        dtypes.append(x.dtype)
        return torch.zeros_like(x)

    x = torch.full((1, 4), 1.001)
    x_theta = dosde.Denoiser(net, PROCESS, "vp_eps")(x, x.bfloat16(), torch.tensor(0.3, dtype=torch.float64))
    assert dtypes == [torch.bfloat16]
    assert torch.allclose(x_theta, x / float(PROCESS(0.3).alpha))
    assert prediction.to_x0("v", PROCESS(0.5))[1].isfinite()
