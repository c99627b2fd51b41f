"""Plans are what they were in version 0.1.0, and how long a reader's path is."""

import ast
import inspect
import textwrap
from pathlib import Path

import numpy as np
import plans
import pytest

import dosde

RECORDED = np.load(Path(__file__).parent / "data" / "plans.npz")
ROOT = Path(__file__).parents[1]
PATH = ("schedule", "shift", "process", "step", "method", "expansion", "grid", "prediction", "plan", "solve")


@pytest.mark.parametrize("name", plans.CASES)
def test_plans_are_those_of_the_first_release(name):
    """Bit for bit on the machine that recorded them; another's exp and tan may differ in the last digits."""
    got, recorded = plans.numbers(name), RECORDED[name]
    assert got.shape == recorded.shape
    scale = np.abs(recorded[np.isfinite(recorded)]).max()
    assert np.allclose(got, recorded, rtol=1e-9, atol=1e-12 * min(scale, 1.0))


def test_all_plans_were_recorded():
    assert set(RECORDED.files) == set(plans.CASES)
    assert len(plans.CASES) == 40


def test_a_readers_path_is_short():
    """At most 900 lines of code from the schedule to the loop, and at most 15 in the loop with what leads to it."""
    assert sum(len(code_lines((ROOT / "dosde" / f"{name}.py").read_text())) for name in PATH) <= 900


def test_the_loop_is_what_design_says():
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(dosde.solve)))
    body = code_lines(source)
    first = next(i for i, line in enumerate(body) if line.strip().startswith("x = start("))
    loop = body[first:]
    assert len(loop) <= 15
    assert not any("raise" in line or "check." in line for line in loop)


def code_lines(source: str) -> list[str]:
    """Lines with code: no blank ones, no comments, no docstrings."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose.update(range(node.lineno, node.end_lineno + 1))
    lines = source.splitlines()
    return [line for i, line in enumerate(lines, 1) if i not in prose and line.strip() and not line.strip().startswith("#")]
