"""What the benchmarks share: goals, tables, and where everything is written."""

import json

import few_step
import overhead
import pytest
import report


@pytest.mark.parametrize(
    ("goal", "reached", "missed"),
    [("at least 2", 2.0, 1.9), ("more than 0", 0.1, 0.0), ("at most 0.5", 0.5, 0.51), ("less than 20", 19.9, 20.0)],
)
def test_goals(goal, reached, missed):
    assert report.met(goal, reached)
    assert not report.met(goal, missed)


def test_every_goal_is_judged_and_can_be_missed():
    few = report.load("few_step")
    said = few_step.judged(few)
    assert said.count("\n") == 1 + sum(len(few_step.comparisons(few, which)) for which in few["problems"])
    assert "| tuned: excess of few_step at 5, and of the best peer, dpm++ 3m | at most 0.5 | 0.509 | missed |" in said
    assert {one.goal for one in few_step.comparisons(few, "tuned")} == set(report.goals("few_step"))
    costs = report.load("overhead")
    said = overhead.judged(costs["times"], costs["counts"])
    assert "k-diffusion 2M SDE | at least 2 | 1.250 | missed |" in said
    assert "| latents alive beyond the order | at most 3 | 3.000 | met |" in said


def test_a_report_goes_to_a_folder_and_changes_nothing_else(tmp_path):
    before = {path: path.read_bytes() for path in (report.ROOT / few_step.TABLES, *report.RESULTS.iterdir())}
    numbers = report.load("few_step_resshift")
    written = report.Report("made", few_step.RESSHIFT.tables, {"made.png": lambda numbers, path: path.write_text("drawn")})
    written.write(numbers, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"made.json", "few_step_few_step_resshift.md", "made.png"}
    assert json.loads((tmp_path / "out" / "made.json").read_text()) == numbers
    inside = report.between((report.ROOT / few_step.TABLES).read_text(), "few_step_resshift")[1]
    assert (tmp_path / "out" / "few_step_few_step_resshift.md").read_text() == inside
    assert {path: path.read_bytes() for path in before} == before
    changed = report.Report("few_step_resshift", {(few_step.TABLES, "few_step_resshift"): lambda numbers: "| another |"})
    assert changed.stale() == [f"{few_step.TABLES}, few_step_resshift"]
