"""The law of a plan, against solves with the exact model of Gaussian data: response by response, to rounding."""

import math
import pickle
import warnings

import pytest
import torch
from instances import DOUBLE, PROCESS, tensor, wrong_calls

import dosde
from dosde import Process, expansion, grid, method, presets, schedule, shift
from dosde.law import sensitivity

FIELD = Process(schedule.scaled_linear(), shift.cosine(tensor([0.4, 0.6, 0.9])))
CASES = {
    "dos": (PROCESS, 5, 3, {}),
    "dos of 20 steps": (PROCESS, 20, 3, {}),
    "one step": (PROCESS, 1, 1, {}),
    "from a finite lam": (PROCESS, 4, 2, {"grid": [0.45, 0.3, 0.2, 0.1, 0.0]}),
    "to a positive time": (PROCESS, 4, 2, {"grid": [0.5, 0.3, 0.2, 0.1, 0.05], "method": method.ode}),
    "adams, tau, corrector": (PROCESS, 6, 2, {"method": method.using(method.adams, tau=0.5, corrector=True)}),
    "resshift": (dosde.process.resshift(), 4, 1, {"method": method.resshift, "grid": grid.respaced(15)}),
    "few_step": (PROCESS, 4, 3, presets.few_step(0.3)),
    "few_step with noise": (PROCESS, 5, 2, presets.few_step(0.3, tau=1.0)),
    "a field": (FIELD, 5, 2, {}),
    "a field of scales": (PROCESS, 4, 2, {"method": method.matched(tensor([0.1, 0.2, 0.5]))}),
}
pytestmark = pytest.mark.filterwarnings("ignore:order:UserWarning", "ignore:scale:UserWarning")


class Draws:
    """Noise that is 1 in one draw and 0 in all others."""

    def __init__(self, which):
        self.which, self.count = which, -1

    def __call__(self, u, u_next, like):
        self.count += 1
        return torch.full_like(like, float(self.count == self.which))


def response(case, width, mu=0.0, draw=None, error=None):
    """The result of a solve with the exact model, at x_hat0 = 0; an error of 1 is added to the output of one step."""
    process, steps, order, how = case
    calls = iter(range(steps))

    def model(x, x_hat0, t):
        m = process(t)
        total = m.a**2 * width**2 + m.sigma**2
        x_theta = mu + m.a * width**2 / total * (x - m.a * mu - m.b * x_hat0)
        return x_theta + float(next(calls) == error)

    return dosde.solve(model, torch.zeros(1, 3, dtype=DOUBLE), steps, order, process=process, noise=Draws(draw), **how)[0]


@pytest.mark.parametrize("name", CASES)
def test_the_law_is_that_of_solves(name):
    process, steps, order, how = case = CASES[name]
    plan = dosde.plan(process, steps, order, **how)
    last = plan.marginals[-1]
    for width in (0.05, 0.3, 1.7):
        law = dosde.law(plan, width)
        count = 1 + sum(isinstance(step.noise, torch.Tensor) or step.noise > 0 for step in plan)  # no other step draws
        responses = torch.stack([response(case, width, draw=k) for k in range(count)])
        right = torch.sqrt(last.a**2 * width**2 + last.sigma**2)
        torch.testing.assert_close(responses.square().sum(0).sqrt() / right, law.std.expand(3), rtol=1e-10, atol=0)
        torch.testing.assert_close(response(case, width, mu=1.0) / last.a, law.mean.expand(3), rtol=1e-10, atol=0)
        for i in range(steps):
            expected = response(case, width, error=i) / last.a
            torch.testing.assert_close(expected, law.sensitivity[i].expand(3), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_sensitivity_of_a_plan_is_the_limit_of_narrow_data(name):
    process, steps, order, how = CASES[name]
    plan = dosde.plan(process, steps, order, **how)
    torch.testing.assert_close(dosde.law(plan, 1e-9).sensitivity, sensitivity(plan), rtol=1e-6, atol=1e-9)


def test_a_table_of_widths_is_its_elements():
    for name in ("dos", "a field"):
        process, steps, order, how = CASES[name]
        plan = dosde.plan(process, steps, order, **how)
        law = dosde.law(plan, [0.1, 0.5])
        for i, width in enumerate((0.1, 0.5)):
            alone = dosde.law(plan, width)
            assert torch.equal(alone.std, law.std[i])
            assert torch.equal(alone.mean, law.mean[i])
            assert torch.equal(alone.sensitivity, law.sensitivity[:, i])
            assert torch.equal(alone.amplification, law.amplification[i])


def test_more_steps_of_the_default_solve_are_worse_and_say_so():
    """The std of Gaussian data is 1.2 to 2.3 times the right one at 20 to 80 steps."""
    for steps in (3, 5, 10):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dosde.plan(PROCESS, steps)
    widths = [0.05, 0.1, 0.2, 0.3]
    for steps in (20, 40, 80, 160):
        with pytest.warns(UserWarning, match=rf"^order: 3 with {steps} steps; it multiplies errors .* Take \*\*presets"):
            plan = dosde.plan(PROCESS, steps)
        assert 1.1 < float(dosde.law(plan, widths).std.max()) < 2.5
    # What the warning says helps.
    instead = [
        presets.few_step(0.2),
        {"order": 1},
        {"method": method.using(method.adams, variable=expansion.log_lam)},
    ]
    for how in instead:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plan = dosde.plan(PROCESS, 20, **how)
        assert float(dosde.law(plan, 0.2).amplification) < 4


def test_a_plan_that_does_not_suit_the_scale_it_is_told_says_so():
    model = lambda x, x_hat0, t: 0 * x  # noqa: E731
    with pytest.warns(UserWarning, match=r"^scale: 0.2 with 3 steps; .* 0\.\d+ of it. Take \*\*presets.few_step\(0.2\), or"):
        dosde.solve(model, torch.zeros(1, 1), 3, 1, process=PROCESS, grid=grid.angle(0.2))
    with pytest.warns(UserWarning, match=r"^scale: 0.01 with 4 steps; .* 0\.\d+ of it"):
        dosde.plan(PROCESS, 4, method=method.matched(0.01))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in (*range(1, 13), 20, 50):
            for scale in (0.02, 0.2, 2.0):
                for tau in (0.0, 0.5, 1.0):
                    dosde.plan(PROCESS, steps, **presets.few_step(scale, tau))


def test_a_law_prints_as_a_table():
    rows = str(dosde.law(dosde.plan(PROCESS, 3, 2), [0.1, 0.4])).splitlines()
    assert rows[0] == "3 steps on Gaussian data; std and mean of the result are relative to the right ones"
    assert [row.split()[0] for row in rows[2:4]] == ["0.1", "0.4"]
    assert [row.split()[:2] for row in rows[-3:]] == [["0.5000", "0.3333"], ["0.3333", "0.1667"], ["0.1667", "0.0000"]]
    assert " .. " in str(dosde.law(dosde.plan(FIELD, 3, 2), 0.1))


def test_plans_and_laws_are_values():
    plan = dosde.plan(PROCESS, 3, 2)
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan
    assert again.marginals == plan.marginals
    assert pickle.loads(pickle.dumps(dosde.law(plan, 0.2))) == dosde.law(plan, 0.2)


PLAN = dosde.plan(PROCESS, 3, 2)


test_wrong_calls = wrong_calls(
    {
        "list": (lambda: dosde.law(list(PLAN), 0.2), TypeError, "^plan: a list; what dosde.plan returns is needed"),
        "zero": (lambda: dosde.law(PLAN, 0.0), ValueError, "^scale: 0.0; positive finite values are needed"),
        "infinite": (lambda: dosde.law(PLAN, math.inf), ValueError, "^scale: inf; positive"),
        "table": (lambda: dosde.law(PLAN, torch.ones(2, 2)), ValueError, r"^scale: shape \(2, 2\); a number or a 1-D table"),
        "flow": (
            lambda: dosde.law(dosde.plan(dosde.process.flow(), 3, 1, method=method.flow), 0.2),
            ValueError,
            "^plan: sigma = 0; a process with noise is needed",
        ),
    }
)
