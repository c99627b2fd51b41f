"""The documents: their examples run, their links lead somewhere, their tables are what the benchmarks wrote."""

import re
from pathlib import Path

import ablation
import convergence
import degradation
import embedded
import few_step
import interop
import overhead
import paper_tables
import pipeline_memory
import pytest
import report
import stability
import tune

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_examples_run(path, capsys):
    """All Python blocks of a document, one after the other, as one script."""
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    script = "\n".join(blocks)
    if path.name in ("README.md", "own_model.md", "methods.md", "interop.md"):
        assert blocks
    exec(compile(script, str(path), "exec"), {"__name__": "example"})
    for comment in re.findall(r"^    print\(error\) +# (.*)$", script, flags=re.MULTILINE):
        assert comment in capsys.readouterr().out


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_files_that_are_named_exist(path):
    for name in re.findall(r"\b((?:dosde|backbones|benchmarks|tests)/[\w/]+\.(?:py|json))\b", path.read_text()):
        assert (ROOT / name).exists(), name


BENCHMARKS = (ablation, convergence, embedded, few_step, interop, overhead, paper_tables, pipeline_memory, stability, tune)
REPORTS = [*(benchmark.REPORT for benchmark in BENCHMARKS), few_step.RESSHIFT]


@pytest.mark.parametrize("written", REPORTS, ids=lambda written: written.name)
def test_tables_are_what_the_benchmarks_wrote(written):
    assert written.tables
    assert not written.stale()


def test_the_contact_sheet_is_of_the_draws_beside_it():
    assert report.between((ROOT / "docs" / "training.md").read_text(), "degradation")[1].strip() == degradation.table()
    assert (ROOT / "docs" / "degradation.jpg").stat().st_size < 200_000


def test_the_readme_names_make_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", (ROOT / "README.md").read_text()):
        assert f"\n{target}:" in makefile
