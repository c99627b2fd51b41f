"""What makers return says which call made it: repr, equality, hash, pickle and copies, also of what is built of it."""

import copy
import pickle

import pytest
import torch
from instances import seeded

import dosde
from dosde import cold, expansion, grid, method, noise, presets, process, schedule, shift, srk
from dosde.recipe import Made, key, maker

CHANNELS = torch.tensor([0.3, 0.5, 0.85], dtype=torch.float64).reshape(3, 1, 1)
TABLE = torch.cumprod(1 - torch.linspace(0.001, 0.03, 50, dtype=torch.float64), 0)
T = torch.tensor([0.1, 0.35], dtype=torch.float64)

# Each makes the same thing whenever it is called, and another thing than all others. The text is its repr, if it is a call.
MAKERS = {
    "dosde.schedule.linear()": lambda: schedule.linear(1e-4, 0.02),
    "dosde.schedule.linear(T=500)": lambda: schedule.linear(T=500),
    "dosde.schedule.scaled_linear()": schedule.scaled_linear,
    "dosde.schedule.cosine(s=0.01)": lambda: schedule.cosine(0.01),
    "schedule of a table": lambda: schedule.from_alphas_cumprod(TABLE.clone()),
    "schedule of a longer table": lambda: schedule.from_alphas_cumprod(TABLE.tolist()[:-1]),
    "dosde.schedule.with_shift(shift=dosde.shift.linear(), kappa=2.0)": lambda: schedule.with_shift(shift.linear(), 2.0),
    "dosde.shift.none()": shift.none,
    "dosde.shift.cosine()": lambda: shift.cosine(t1=0.5),
    "dosde.shift.cosine(t1=0.4)": lambda: shift.cosine(0.4),
    "shift of channels": lambda: shift.cosine(CHANNELS.clone()),
    "shift of other channels": lambda: shift.cosine(CHANNELS.flip(0)),
    "dosde.shift.linear(t1=0.4)": lambda: shift.linear(0.4),
    "dosde.shift.from_table(etas=(0.0, 0.5, 1.0))": lambda: shift.from_table([0.0, 0.5, 1.0]),
    "dosde.shift.exponential(T=4, eta_min=0.01)": lambda: shift.exponential(4, 0.01),
    "dosde.expansion.v(scale=0.3)": lambda: expansion.v(0.3),
    "dosde.expansion.sqrt_v(scale=0.3)": lambda: expansion.sqrt_v(0.3),
    "dosde.grid.log_lam()": grid.log_lam,
    "dosde.grid.karras(rho=5.0)": lambda: grid.karras(rho=5.0),
    "dosde.tables.respaced(T=15)": lambda: grid.respaced(15),
    "dosde.grid.angle(scale=0.3)": lambda: grid.angle(0.3),
    "dosde.grid.few_step(scale=0.3)": lambda: grid.few_step(0.3),
    "dosde.srk.two_stage(grid=dosde.grid.log_lam())": lambda: srk.two_stage(grid.log_lam()),
    "dosde.method.matched(scale=0.2)": lambda: method.matched(0.2),
    "dosde.method.matched(scale=0.2, tau=0.5)": lambda: method.matched(0.2, 0.5),
    "matched by a field": lambda: method.matched(CHANNELS),
    "dosde.method.using(method=dosde.method.adams, variable=dosde.expansion.log_lam, tau=0.5)": lambda: method.using(
        method.adams, variable=expansion.log_lam, tau=0.5
    ),
    "dosde.method.using(method=dosde.method.ode, variable=dosde.expansion.v(scale=0.2), corrector=True)": lambda: method.using(
        method.ode, variable=expansion.v(0.2), corrector=True
    ),
    "dosde.noise.Independent()": noise.Independent,
    "dosde.noise.Brownian(seed=3)": lambda: noise.Brownian(3),
    "dosde.noise.Brownian(seed=[1, 2])": lambda: noise.Brownian([1, 2]),
    "dosde.srk.Stages(dosde.noise.Brownian(seed=0), points=32)": lambda: srk.Stages(noise.Brownian(0), 32),
    "dosde.cold.blur(std=2.0)": lambda: cold.blur(2.0),
    "dosde.Process(dosde.schedule.scaled_linear(), dosde.shift.cosine(t1=0.3))": lambda: dosde.Process(
        schedule.scaled_linear(), shift.cosine(0.3)
    ),
    "process of a field": lambda: dosde.Process(schedule.scaled_linear(), shift.cosine(CHANNELS)),
    "resshift": process.resshift,
    "resshift of 4": lambda: process.resshift(4, eta_min=0.01),
    "flow": lambda: process.flow(0.5),
    "dossr": lambda: presets.dossr()[0],
    "marginal": lambda: dosde.Process(schedule.scaled_linear(), shift.cosine(CHANNELS))(0.2),
    "denoiser": lambda: dosde.Denoiser(torch.tanh, process.resshift(), "x0"),
    "plan": lambda: tuple(dosde.plan(process.resshift(), 3)),
    "plan of a field": lambda: tuple(dosde.plan(dosde.Process(schedule.scaled_linear(), shift.cosine(CHANNELS)), 4)),
}


MADE = {name: make() for name, make in MAKERS.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_equal_calls_make_equal_things(name):
    make = MAKERS[name]
    first, again = make(), make()
    assert first is not again
    assert first == again
    assert hash(first) == hash(again)
    for other, another in MADE.items():
        if other != name:
            assert first != another


@pytest.mark.parametrize("name", MAKERS)
def test_copies_and_pickles_are_equal(name):
    one = MAKERS[name]()
    for copied in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert copied == one
        assert hash(copied) == hash(one)
        assert repr(copied) == repr(one)


@pytest.mark.parametrize("name", MAKERS)
def test_the_repr_is_the_call_and_has_no_address(name):
    one = MAKERS[name]()
    assert "0x" not in repr(one)
    assert len(repr(one)) < 2500
    assert "\n" not in repr(one)
    if "(" in name:
        assert repr(one) == name
        assert eval(name, {"dosde": dosde}) == one


def test_a_copy_computes_the_same():
    for make in (lambda: presets.dossr()[0], process.resshift, MAKERS["process of a field"]):
        one = make()
        again = pickle.loads(pickle.dumps(one))
        t = T.reshape(-1, *[1] * len(one.field_shape))
        assert one(t) == again(t)
        assert one.t1 == again.t1
    path = noise.Brownian(5)
    like = torch.zeros(2, 3)
    assert torch.equal(pickle.loads(pickle.dumps(path))(0.5, 0.7, like), path(0.5, 0.7, like))


def test_a_model_without_its_process_is_solved_under_an_equal_one():
    """`solve` refuses a process that differs from the model's; one made by the same calls does not."""
    model = dosde.Denoiser(lambda x, x_hat0, t: 0 * x, process.resshift(), "x0")
    x0 = dosde.solve(model, torch.ones(1, 2), 3, 1, process=process.resshift())
    assert torch.equal(x0, dosde.solve(model, torch.ones(1, 2), 3, 1))


def test_what_is_made_keeps_its_own_copy_of_a_tensor():
    t1 = CHANNELS.clone()
    one = shift.cosine(t1)
    before = one(T.reshape(-1, 1, 1, 1))
    t1.fill_(1.0)
    assert torch.equal(one(T.reshape(-1, 1, 1, 1)), before)
    assert one == shift.cosine(CHANNELS)


def test_a_denoiser_pickles_after_a_solve():
    model = dosde.Denoiser(torch.tanh, process.resshift(), "residual")
    model = dosde.Denoiser(_net, model.process, "residual")
    x0 = dosde.solve(model, torch.ones(1, 2), 3, 1, noise=seeded(0))
    again = pickle.loads(pickle.dumps(model))
    assert again == model
    assert torch.equal(dosde.solve(again, torch.ones(1, 2), 3, 1, noise=seeded(0)), x0)


def _net(x, x_hat0, t):
    return x - x_hat0


def test_a_function_of_ones_own_is_equal_to_itself_alone():
    def slow(t):
        return t**2

    assert dosde.Process(schedule.linear(), slow) == dosde.Process(schedule.linear(), slow)
    assert dosde.Process(schedule.linear(), slow) != dosde.Process(schedule.linear(), lambda t: t**2)
    assert "slow" in repr(dosde.Process(schedule.linear(), slow))
    assert "0x" not in repr(dosde.Process(schedule.linear(), slow))


@maker
def doubled(value, *, times=2, **options):
    return lambda: value * times


def test_keywords_that_were_not_named_are_part_of_the_call():
    made = doubled(3, times=4, colour="red")
    assert isinstance(made, Made)
    assert made() == 12
    assert made == doubled(value=3, colour="red", times=4)
    assert made != doubled(3, times=4)
    assert repr(made) == f"{__name__}.doubled(value=3, times=4, colour='red')"
    assert pickle.loads(pickle.dumps(made)) == made


def test_using_refuses_an_option_that_the_method_does_not_have():
    with pytest.raises(TypeError, match=r"corect: True; dosde\.method\.adams has no such option, one of variable, tau, corr"):
        method.using(method.adams, corect=True)
    with pytest.raises(TypeError, match=r"tau: 1; dosde\.method\.dos has no such option, there are none"):
        method.using(method.dos, tau=1)


def test_using_is_a_partial():
    own = method.using(method.adams, tau=0.5, corrector=True)
    assert dosde.plan(process.resshift(), 5, 2, method=own) == dosde.plan(
        process.resshift(), 5, 2, method=lambda m, order: method.adams(m, order, tau=0.5, corrector=True)
    )


def test_keys_tell_apart_what_differs_and_no_more():
    assert key(torch.tensor([1.0])) == key(torch.tensor([1.0], requires_grad=True))
    assert key(torch.tensor([1.0])) != key(torch.tensor([1.0], dtype=torch.float64))
    assert key(torch.zeros(2, 1)) != key(torch.zeros(1, 2))
    assert key(torch.ones(3, dtype=torch.bfloat16)) != key(torch.zeros(3, dtype=torch.bfloat16))
    assert key(torch.tensor(2.0).expand(3)) == key(torch.full((3,), 2.0))
    assert key({"a": [1, 2]}) == key({"a": (1, 2)})
