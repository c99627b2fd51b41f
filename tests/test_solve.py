"""The loop: what it leaves alone, its callback, half precision, and a fuzz over shapes, dtypes, steps, orders, methods."""

import functools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import FIELD_PROCESSES, METHODS, MOST, PROCESS, PROCESSES, model, seeded
from overhead import Latents
from torch.utils._python_dispatch import TorchDispatchMode

import dosde
from dosde import expansion, method, schedule, shift
from dosde.process import Process


@pytest.mark.filterwarnings("ignore:order")  # high orders on 50 uniform steps amplify, and say so
@pytest.mark.parametrize("how", METHODS)
@settings(max_examples=40)
@given(data=st.data())
def test_fuzz(how, data):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    steps = data.draw(st.integers(1, 30))
    order = data.draw(st.integers(1, min(steps, MOST.get(how, 5))))
    process = PROCESSES[data.draw(st.sampled_from(sorted(PROCESSES)))]
    x_hat0 = torch.randn(shape, generator=seeded(data.draw(st.integers(0, 9)))).to(dtype)
    before = x_hat0.clone()
    x0 = dosde.solve(model, x_hat0, steps, order, process=process, method=METHODS[how])
    assert (x0.shape, x0.dtype, x0.device) == (x_hat0.shape, dtype, x_hat0.device)
    assert x0.isfinite().all()
    assert torch.equal(x_hat0, before)
    assert x0.untyped_storage().data_ptr() != x_hat0.untyped_storage().data_ptr()


@pytest.mark.filterwarnings("ignore:order")  # v extrapolates from lam = infinity and 1000, which lie close together in it
@pytest.mark.parametrize("name", FIELD_PROCESSES)
@pytest.mark.parametrize("how", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fields(name, how, dtype):
    x_hat0 = torch.randn(2, 3, 3, 4).to(dtype)
    x0 = dosde.solve(model, x_hat0, 7, MOST.get(how, 3), process=FIELD_PROCESSES[name], method=METHODS[how])
    assert (x0.shape, x0.dtype) == (x_hat0.shape, dtype)
    assert x0.isfinite().all()


@pytest.mark.parametrize("name", ["scaled_linear-channels", "ve-pixels"])
def test_a_field_is_solved_element_by_element(name):
    """A model without crosstalk on a field of eta: each element as a process of its eta alone gives it."""
    field = FIELD_PROCESSES[name]
    x_hat0 = torch.randn(1, 3, 3, 4, dtype=torch.float64)
    grid = torch.linspace(field.t1, 0, 9, dtype=torch.float64)
    zero = lambda u, u_next, like: torch.full_like(like, 0.3)  # noqa: E731
    together = dosde.solve(model, x_hat0, 8, 3, process=field, method=method.adams, grid=grid, noise=zero)
    eta = field.shift
    for place in [(0, 0, 0), (2, 1, 3), (1, 2, 2)]:

        def alone(t, place=place):
            return eta(t.reshape(-1, 1, 1, 1)).expand(-1, 3, 3, 4)[(slice(None), *place)].reshape(t.shape)

        process = Process(field.schedule, alone)
        one = x_hat0[(slice(None), *place)].reshape(1, 1)
        marginals = [process(t) for t in grid]
        x = None
        past = []
        for step in method.adams(marginals, 3):
            if x is None:
                m = marginals[0]
                x = m.alpha * one + m.sigma * 0.3
            past = [model(x, one, step.t), *past[:2]]
            x = step.keep * x + step.hat * one + sum(w * p for w, p in zip(step.new, past, strict=False)) + step.noise * 0.3
        assert float(x) == pytest.approx(float(together[(slice(None), *place)]), abs=1e-12)


def test_callback_gets_every_step_and_copies():
    seen = []
    x_hat0 = torch.randn(2, 3, 4, 4)
    x0 = dosde.solve(model, x_hat0, 4, 2, process=PROCESS, callback=lambda *args: seen.append(args))
    assert [i for i, *_ in seen] == [0, 1, 2, 3]
    assert [round(float(t), 3) for _, t, *_ in seen] == [0.5, 0.375, 0.25, 0.125]
    for _, t, x, x_theta in seen:
        assert (t.ndim, t.dtype) == (0, torch.float64)
        assert torch.equal(model(x, x_hat0, t), x_theta)  # x was not overwritten afterwards
    assert not torch.equal(x0, seen[-1][2])


def test_a_callback_changes_nothing():
    x_hat0 = torch.randn(2, 3, 4, 4)
    g = lambda: seeded(0)  # noqa: E731
    plain = dosde.solve(model, x_hat0, process=PROCESS, noise=g())
    assert torch.equal(plain, dosde.solve(model, x_hat0, process=PROCESS, noise=g(), callback=lambda *a: None))


@pytest.mark.parametrize("order", [1, 3])
def test_a_model_may_return_its_input_or_one_buffer_cast(order):
    """x_theta = x shares memory with the state that is written in place; a copy must give the same."""
    x_hat0 = torch.randn(1, 3, 4, 4)
    g = lambda: seeded(0)  # noqa: E731
    for same, copy in (
        (lambda x, h, t: x, lambda x, h, t: x.clone()),
        (lambda x, h, t: x.view_as(x), lambda x, h, t: x + 0),
    ):
        a = dosde.solve(same, x_hat0, 6, order, process=PROCESS, noise=g())
        assert torch.equal(a, dosde.solve(copy, x_hat0, 6, order, process=PROCESS, noise=g()))


def test_models_see_their_own_dtype_and_the_state_stays_float32():
    seen = []

    def half(x, x_hat0, t):
        seen.append((x.dtype, x_hat0.dtype))
        return model(x, x_hat0, t)

    x_hat0 = torch.randn(1, 3, 8, 8)
    g = lambda: seeded(0)  # noqa: E731
    dosde.solve(half, x_hat0.bfloat16(), process=PROCESS)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    # A model that rounds its output only: the loop must not round anything else.
    exact = dosde.solve(model, x_hat0, 200, 1, process=PROCESS, noise=g())
    rounded = dosde.solve(lambda *a: model(*a).bfloat16(), x_hat0, 200, 1, process=PROCESS, noise=g())
    assert float((exact - rounded).std()) < 2e-3


@pytest.mark.filterwarnings("ignore:order")  # order 3 on 20 uniform steps and more amplifies
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, n) for name in ("dossr", "uniform", "log_lam", "karras") for n in (1, 2, 5, 20, 150)]
    + [("dossr", 499)],  # the most that the released grid has
)
@pytest.mark.parametrize("predicts", ["vp_eps", "v", "x0"])
def test_half_precision_is_close_to_float32(dtype, name, steps, predicts):
    """At every step count and preset, for a network in half precision, orders up to 3."""
    if name == "dossr":
        process, grid = dosde.presets.dossr(steps)
    else:
        process = PROCESS
        grid = {"uniform": dosde.grid.uniform, "log_lam": dosde.grid.log_lam(), "karras": dosde.grid.karras()}[name]
    # Grids laid in lam end with a jump to 0, over which lam is the wrong variable: see dosde.grid.
    log = functools.partial(method.adams, variable=expansion.log_lam)
    how = log if name in ("log_lam", "karras") else method.dos
    x_hat0 = (0.5 * torch.randn(1, 4, 8, 8)).to(dtype).float()
    model = dosde.Denoiser(network(process, predicts), process, predicts)
    for order in {1, min(3, steps)}:
        results = [
            dosde.solve(model, x_hat0.to(kind), steps, order, method=how, grid=grid, noise=seeded(0)).float()
            for kind in (torch.float32, dtype)
        ]
        assert results[1].isfinite().all()
        eps = torch.finfo(dtype).eps
        difference = results[0] - results[1]
        assert float(difference.std()) < 2 * eps  # the network's own rounding, through weights that sum to a few
        assert float(difference.abs().max()) < 10 * eps


def network(process, predicts):
    """The exact prediction for x0 ~ N(x_hat0, 0.2^2), computed in the dtype of its input."""

    @functools.cache  # every solve asks for the same times
    def scalars(t):
        m = process(t)
        return float(m.a), float(m.alpha), float(m.sigma)

    def net(x, x_hat0, t):
        a, alpha, sigma = scalars(float(t))
        gain = a * 0.04 / (a * a * 0.04 + sigma * sigma)
        x0 = x_hat0 + gain * (x - alpha * x_hat0)
        if predicts == "x0":
            return x0
        vp_eps = (x - alpha * x0) / sigma
        return vp_eps if predicts == "vp_eps" else alpha * vp_eps - sigma * x0

    return net


def test_gradients_are_not_recorded():
    weight = torch.ones(1, requires_grad=True)
    assert not dosde.solve(lambda x, h, t: weight * x, torch.randn(1, 4), process=PROCESS).requires_grad


def test_progress_shows_a_bar(capsys):
    dosde.solve(model, torch.zeros(1, 4), 3, 1, process=PROCESS, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_import_needs_torch_and_numpy_alone():
    code = "import sys, torch, numpy; before = set(sys.modules); import dosde; print(*(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in out.stdout.split()}
    assert "dosde" in loaded
    assert loaded - {"dosde", "numpy"} <= sys.stdlib_module_names


def test_a_plan_that_amplifies_says_so():
    with pytest.warns(UserWarning, match=r"order: 3 with 200 steps; it multiplies .* by up to 1\d\d\d, those of step 198 most"):
        dosde.plan(PROCESS, 200, 3, grid=dosde.grid.log_lam())


@pytest.mark.filterwarnings("ignore:order")
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("how", [method.dos, method.ode])
def test_few_latents_are_alive_and_few_operations_touch_them(order, how):
    """At most order + 3 alive: x, x_hat0, outputs, noise. A step: the model, a scaling, order + 2 adds, a sum, a draw."""
    x_hat0, steps = torch.randn(1, 4, 8, 8), 30
    with Latents(x_hat0.numel()) as latents:
        dosde.solve(lambda x, h, t: torch.ones(1, 4, 8, 8), x_hat0, steps, order, process=PROCESS, method=how)
    assert latents.most <= order + 3
    assert latents.operations <= (order + 6) * steps + 5  # and the start


@pytest.mark.filterwarnings("ignore:order")
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    "how", [functools.partial(method.adams, corrector=True), method.matched(0.2), method.matched(0.2, tau=1)]
)
def test_a_corrector_keeps_one_latent_more(order, how):
    x_hat0 = torch.randn(1, 4, 8, 8)
    with Latents(x_hat0.numel()) as latents:
        dosde.solve(lambda x, h, t: torch.ones(1, 4, 8, 8), x_hat0, 12, order, process=PROCESS, method=how)
    assert latents.most <= order + 4


def test_nothing_in_the_loop_waits_for_the_device():
    """No value of a tensor is read between the first model call and the last."""
    reads = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                reads.append("read")
            return func(*args, **(kwargs or {}))

    def silent(x, x_hat0, t):
        reads.append("call")
        return 0.5 * x

    process = Process(schedule.scaled_linear(), shift.cosine(torch.tensor([0.4, 0.5]).reshape(2, 1, 1)))
    for own in (PROCESS, process):
        reads.clear()
        with Reads():
            dosde.solve(silent, torch.randn(1, 2, 8, 8), 5, 3, process=own)
        first, last = reads.index("call"), len(reads) - 1 - reads[::-1].index("call")
        assert reads[first : last + 1] == ["call"] * 5


def test_the_state_is_float32_whatever_the_noise_is():
    seen = []

    def half(u, u_next, like):
        seen.append(like.dtype)
        return torch.randn(like.shape).bfloat16()

    dosde.solve(model, torch.zeros(1, 4), 5, 2, process=PROCESS, noise=half)
    assert set(seen) == {torch.float32}


def test_a_model_that_uses_gradients_leaves_no_graph():
    def guided(x, x_hat0, t):
        with torch.enable_grad():
            x = x.requires_grad_()
            return 0.5 * x - 0.1 * torch.autograd.grad((x**2).sum(), x)[0]

    seen = []
    x0 = dosde.solve(guided, torch.randn(1, 4), process=PROCESS, callback=lambda *a: seen.append(a))
    assert not x0.requires_grad
    assert not any(x_theta.requires_grad for _, _, _, x_theta in seen)


def test_inside_inference_mode():
    g = lambda: seeded(0)  # noqa: E731
    x_hat0 = torch.randn(1, 4)
    outside = dosde.solve(model, x_hat0, process=PROCESS, noise=g())
    with torch.inference_mode():
        assert torch.equal(dosde.solve(model, x_hat0, process=PROCESS, noise=g()), outside)
        assert float(PROCESS.f(0.25)) == pytest.approx(float(dosde.Process(PROCESS.schedule, PROCESS.shift).f(0.25)))
    assert float(PROCESS.f(0.25)) < -7


def test_another_default_device_does_not_matter():
    with torch.device("meta"):
        process = Process(schedule.from_alphas_cumprod([0.9, 0.5, 0.1]), shift.from_table([0.2, 0.6, 1.0]))
        assert process.f(0.2).device.type == "cpu"
        plan = dosde.plan(process, 3, 2)
        assert dosde.presets.dossr(5)[1].device.type == "cpu"
    assert plan == dosde.plan(process, 3, 2)


def test_a_learned_schedule_can_be_planned():
    scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    process = Process(schedule.ve(lambda t: scale * t), shift.cosine(0.5))
    assert len(dosde.plan(process, 3, 2)) == 3


@pytest.mark.filterwarnings("ignore:order")
def test_a_variable_that_saturates_drops_its_nodes():
    """tanh(lam) is 1 to rounding above 20: those outputs coincide and drop out, and nothing is infinite."""
    how = functools.partial(method.adams, variable=torch.tanh)
    x0 = dosde.solve(lambda x, h, t: torch.full_like(x, 0.25), torch.zeros(1, 4), 50, 2, process=PROCESS, method=how)
    assert torch.allclose(x0, torch.full((1, 4), 0.25), atol=1e-4)
