"""Orders as slopes, in float64, tolerance 0.2: the studies of benchmarks/convergence.py, whose table the docs show."""

import pytest
from convergence import DETERMINISTIC, METHODS, NOISES, QUICK, drift, late, ode, slope, started, strong, weak

STOCHASTIC = [(name, order) for name, (_, orders) in METHODS.items() if name not in DETERMINISTIC for order in orders]
ODES = [(name, order) for name, (_, orders) in METHODS.items() if name in DETERMINISTIC for order in orders]
# The paper's third solver keeps the two-point first derivative.
EXPANSION = {
    (name, order): min(order, 2) if name == "dos" else order + name.endswith("corrector")
    for name, order in STOCHASTIC
    if name not in ("resshift", "srk", *NOISES)
}


def measured(study, name, order, *args):
    how = METHODS[name][0]
    errors = [study(how, order, steps, *args) for steps in QUICK[study.__name__]]
    assert min(errors) > 1e-12  # well above rounding
    return slope(errors)


@pytest.mark.parametrize(("name", "order"), EXPANSION)
def test_order_of_the_expansion(name, order):
    assert measured(drift, name, order) == pytest.approx(EXPANSION[name, order], abs=0.2)


@pytest.mark.filterwarnings("ignore:order")  # the first steps, from lam = infinity, lie close together in v
@pytest.mark.parametrize(("name", "order"), ODES)
def test_an_ode_method_has_its_order(name, order):
    expected = order + name.endswith("corrector")
    assert measured(ode, name, order) == pytest.approx(expected, abs=0.2)
    assert measured(weak, name, order) == pytest.approx(expected, abs=0.2)


@pytest.mark.filterwarnings("ignore:order")  # the outputs of a graded start lie close together
@pytest.mark.parametrize(
    ("name", "order"), [("ode", 3), ("ode", 4), ("ode, v", 3), ("ode, corrector", 2), ("ode, corrector", 3)]
)
def test_from_a_finite_lam_a_graded_start_keeps_the_order_and_nothing_else_does(name, order):
    """The first step is of order 1, or 2 with the corrector, and its error stays."""
    corrected = name.endswith("corrector")
    assert measured(started, name, order, corrected) == pytest.approx(order + corrected, abs=0.25)
    if order + corrected == 4:
        assert measured(late, name, order) < 3.4


@pytest.mark.parametrize(("name", "order"), [p for p in STOCHASTIC if p[0] not in ("resshift", "srk")])
def test_strong_order_1(name, order):
    finest = 1024 if name in NOISES else 2048  # the other noises have a reference of their own
    assert measured(strong, name, order, NOISES.get(name, 1.0), finest) == pytest.approx(1, abs=0.2)


def test_srk_has_strong_order_one_and_a_half_and_solver_1_has_one():
    srk, dos = METHODS["srk"][0], METHODS["dos"][0]
    errors = [strong(srk, 2, calls) for calls in (64, 128)]
    assert slope(errors) == pytest.approx(1.5, abs=0.2)
    assert errors[-1] < strong(dos, 1, 128) / 5


@pytest.mark.parametrize(("name", "order"), STOCHASTIC)
def test_weak_order_1_2_2(name, order):
    assert measured(weak, name, order) == pytest.approx(min(order + name.endswith("corrector"), 2), abs=0.2)


@pytest.mark.filterwarnings("ignore:order")
@pytest.mark.parametrize(("name", "order"), [("dos", 1), ("dos", 3), ("adams", 3), ("ode", 2)])
def test_on_the_default_grid_the_last_steps_leave_order_1(name, order):
    """Towards t = 0 lam goes like sqrt(t), and the weak order of all of these is about 1: the docs say so."""
    assert measured(weak, name, order, True) == pytest.approx(1, abs=0.25)


def test_the_posterior_of_the_chain_does_not_follow_the_path_of_the_sde():
    """It has the marginals, not the joint law: its noise is less than that of Eq. 7, however small the step."""
    assert measured(strong, "resshift", 1) == pytest.approx(0, abs=0.2)
