"""Solves that gradients flow through: the same bits, right gradients, and torch.func around a whole solve."""

import functools
import itertools

import pytest
import torch
from instances import DOUBLE, PROCESS, randn, seeded, tensor, wrong_calls

import dosde
from dosde import Process, expansion, method, presets, schedule, shift

FIELD = Process(schedule.scaled_linear(), shift.cosine(tensor([0.4, 0.5])))
HOW = {
    "dos": {"order": 2},
    "adams": {"method": method.using(method.adams, variable=expansion.log_lam, tau=0.5, corrector=True), "order": 2},
    "ode": {"method": method.ode, "order": 3},
    "resshift": {"method": method.resshift, "process": dosde.process.resshift(), "order": 1},
    "few_step": presets.few_step(0.3),
    "field": {"process": FIELD, "order": 2},
    "field of scales": {"method": method.matched(tensor([0.1, 0.4]))},
    "bridge": {"process": dosde.process.bridge(), "order": 2},
    "flow": {"process": dosde.process.flow(), "method": method.flow, "order": 1},
}
Z = [torch.randn(3, 2, dtype=DOUBLE, generator=seeded(i)) for i in range(9)]
pytestmark = pytest.mark.filterwarnings("ignore:order", "ignore:scale")


def solved(name, x_hat0, weight, **more):
    draws = iter(Z)
    how = {"process": PROCESS, "steps": 3, "noise": lambda u, u_next, like: next(draws), **HOW[name], **more}
    return dosde.solve(lambda x, x_hat0, t: torch.tanh(weight * x) - 0.2 * x_hat0, x_hat0, **how)


@pytest.mark.parametrize("name", HOW)
def test_the_same_bits_and_right_gradients(name):
    x_hat0, weight = randn(3, 2), tensor(0.7)
    plain = solved(name, x_hat0, weight)
    for kind in (True, "checkpoint"):
        assert torch.equal(plain, solved(name, x_hat0, weight, differentiable=kind))
    x_hat0.requires_grad_()
    weight.requires_grad_()
    for kind in (True, "checkpoint"):
        assert torch.autograd.gradcheck(functools.partial(solved, name, differentiable=kind), (x_hat0, weight))
    assert not solved(name, x_hat0, weight).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_in_other_dtypes(dtype):
    x_hat0 = torch.randn(2, 3, 4, 4, generator=seeded()).to(dtype)
    net = torch.nn.Conv2d(3, 3, 3, padding=1).to(dtype)
    model = dosde.Denoiser(lambda x, x_hat0, t: net(x), PROCESS, "v")
    results = [dosde.solve(model, x_hat0, 4, noise=seeded(1), differentiable=kind) for kind in (False, True, "checkpoint")]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    results[1].float().sum().backward()
    assert float(net.weight.grad.abs().sum()) > 0


def test_gradients_reach_the_noise_and_the_spread():
    scale, spread = tensor(0.9).requires_grad_(), tensor(0.3).requires_grad_()

    def run(scale, spread):
        draws = iter(Z)
        noise = lambda u, u_next, like: scale * next(draws)  # noqa: E731
        model = lambda x, x_hat0, t: torch.tanh(x)  # noqa: E731
        how = {"process": PROCESS, "grid": [0.3, 0.2, 0.1, 0.0], "noise": noise, "spread": spread}
        return dosde.solve(model, torch.zeros(3, 2, dtype=DOUBLE), 3, 2, differentiable=True, **how)

    assert torch.autograd.gradcheck(run, (scale, spread))


def test_gradients_reach_the_coefficients_of_a_method_of_ones_own():
    keep = tensor(0.5).requires_grad_()

    def own(marginals, order):
        return [
            dosde.step.Step(float(s.t), float(t.t), float(s.u), float(t.u), keep * (i > 0), 0.0, (float(t.a),), 0.0)
            for i, (s, t) in enumerate(itertools.pairwise(marginals))
        ]

    def run(keep_now):
        return dosde.solve(
            lambda x, x_hat0, t: torch.tanh(x), randn(2, 2), 3, 1, process=PROCESS, method=own, differentiable=True
        )

    run(keep).sum().backward()
    assert float(keep.grad) != 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of jvp
def test_torch_func_around_a_whole_solve():
    x_hat0, weight = randn(4, 3, 2), tensor(0.7)
    run = functools.partial(solved, "dos", differentiable=True)
    each = torch.stack([run(one, weight) for one in x_hat0])
    assert torch.allclose(torch.vmap(run, in_dims=(0, None))(x_hat0, weight), each)
    one = x_hat0[0]
    reverse = torch.func.jacrev(run, argnums=1)(one, weight)
    forward = torch.func.jacfwd(run, argnums=1)(one, weight)
    assert torch.allclose(reverse, forward)
    step = 1e-6
    assert torch.allclose(reverse, (run(one, weight + step) - run(one, weight - step)) / (2 * step), atol=1e-7)


def test_torch_compile_around_a_whole_solve():
    """It calls the solve as it is; a network that is compiled itself stays compiled."""
    compiled = []

    def backend(module, inputs):
        compiled.append(module)
        return module.forward

    net = torch.nn.Linear(2, 2)
    for inner in (net, torch.compile(net, backend=backend)):
        model = dosde.Denoiser(lambda x, x_hat0, t, inner=inner: inner(x), PROCESS, "x0")
        run = lambda x, model=model: 2 * dosde.solve(model, x, 3, noise=seeded())  # noqa: E731
        x_hat0 = torch.zeros(1, 2)
        assert torch.equal(torch.compile(run, backend="eager")(x_hat0), run(x_hat0))
    assert len(compiled) >= 1


def test_checkpointing_calls_the_model_again():
    calls = []

    def model(x, x_hat0, t):
        calls.append(float(t))
        return torch.tanh(x)

    x_hat0 = randn(2, 2).requires_grad_()
    result = dosde.solve(model, x_hat0, 3, 1, process=PROCESS, noise=seeded(), differentiable="checkpoint")
    assert len(calls) == 3
    result.sum().backward()
    assert len(calls) == 6


def test_a_model_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match=r"^model: returned NaN or infinity at step 1"):
        dosde.solve(lambda x, x_hat0, t: x / (t > 0.4), randn(1, 2), 3, 1, process=PROCESS, differentiable=True)


def through_vmap(**how):
    model = lambda x, x_hat0, t: x  # noqa: E731
    torch.vmap(lambda x: dosde.solve(model, x, 2, 1, process=PROCESS, noise=lambda u, v, like: 0 * like, **how))(randn(2, 3, 4))


def of_transformed_parameters():
    def run(weight):
        return dosde.solve(lambda x, x_hat0, t: weight * x, randn(1, 2), 2, 1, process=PROCESS).sum()

    torch.func.grad(run)(tensor(1.0))


def of_a_learnt_schedule():
    w = tensor(2.0).requires_grad_()
    process = Process(schedule.ve(lambda t: w * t), shift.cosine())
    dosde.solve(lambda x, x_hat0, t: x, randn(1, 2), 2, 1, process=process, differentiable=True)


test_wrong_calls = wrong_calls(
    {
        "name": (
            lambda: dosde.solve(lambda x, x_hat0, t: x, randn(1, 2), 2, process=PROCESS, differentiable="yes"),
            ValueError,
            "^differentiable: 'yes'; True, False or \"checkpoint\" is needed",
        ),
        "vmap": (through_vmap, ValueError, "^differentiable: False; True is needed inside torch.func"),
        "parameters": (of_transformed_parameters, ValueError, "^differentiable: False; True is needed inside torch.func"),
        "schedule": (of_a_learnt_schedule, ValueError, "^process: its schedule or shift carries a graph; only a method of"),
    }
)
