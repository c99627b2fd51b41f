"""The documents: their examples run, their links lead somewhere, their tables are what the benchmarks wrote."""

import re
import tomllib
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

import dosde

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/results/*.md")])
HAVE_EXAMPLES = (
    "README.md",
    "start.md",
    "own_model.md",
    "methods.md",
    "few_steps.md",
    "extending.md",
    "embedded.md",
    "interop.md",
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_examples_run(path, capsys, tmp_path, monkeypatch):
    """All Python blocks of a document, one after the other, as one script. What it says that they print, they print."""
    monkeypatch.chdir(tmp_path)
    document = path.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", document, flags=re.DOTALL | re.MULTILINE)
    assert blocks or path.stem not in HAVE_EXAMPLES
    script = "\n".join(blocks)
    exec(compile(script, str(path), "exec"), {"__name__": "example"})
    shown = capsys.readouterr().out
    for comment in re.findall(r"^    print\(error\) +# (.*)$", script, flags=re.MULTILINE):
        assert comment in shown
    for step in re.findall(r"^    (t \d.\d+ -> .*)$", document, flags=re.MULTILINE):
        assert step in shown.splitlines()
    if path.parent == ROOT / "docs":
        for picture in tmp_path.iterdir():  # a page that writes a picture shows it
            assert f"]({picture.name})" in document


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_files_that_are_named_exist(path):
    if path.name == "CHANGELOG.md":
        pytest.skip("it names files of earlier versions")
    for name in re.findall(r"\b((?:dosde|backbones|benchmarks|tests)/[\w/]+\.(?:py|json))\b", path.read_text()):
        assert (ROOT / name).exists(), name


def test_tables_are_what_the_benchmarks_wrote():
    orders, costs = report.load("convergence"), report.load("overhead")
    inside = report.between((ROOT / "docs" / "methods.md").read_text(), "convergence")[1]
    assert inside.strip() == convergence.table(orders["rows"])
    few = (ROOT / "docs" / "few_steps.md").read_text()
    assert report.between(few, "few_step")[1].strip() == few_step.document(report.load("few_step"))
    assert report.between(few, "few_step_resshift")[1].strip() == few_step.resshift_document(report.load("few_step_resshift"))
    assert report.between(few, "stability")[1].strip() == stability.table(report.load("stability")["rows"])
    assert report.between(few, "ablation")[1].strip() == ablation.table(report.load("ablation")["rows"])
    assert report.between(few, "tune")[1].strip() == tune.table(report.load("tune")["rows"])
    inside = report.between((ROOT / "docs" / "benchmarks.md").read_text(), "overhead")[1]
    rows, counts = costs["times"], costs["counts"]
    assert inside.strip() == overhead.table(rows, counts) + "\n\n" + overhead.goals(rows, counts)
    held, document = report.load("pipeline_memory"), (ROOT / "docs" / "benchmarks.md").read_text()
    assert report.between(document, "pipeline_memory")[1].strip() == pipeline_memory.table(held["rows"])
    assert report.between(document, "pipeline_stages")[1].strip() == pipeline_memory.stage_table(held["stages"])
    numbers, document = report.load("embedded"), (ROOT / "docs" / "embedded.md").read_text()
    assert report.between(document, "embedded")[1].strip() == embedded.table(numbers)
    assert report.between(document, "embedded_goals")[1].strip() == embedded.goals(numbers)
    assert report.between(document, "embedded_cost")[1].strip() == embedded.cost(numbers)
    assert report.between(document, "embedded_again")[1].strip() == embedded.again(numbers)
    numbers, document = report.load("paper_tables"), (ROOT / "docs" / "paper_tables.md").read_text()
    assert report.between(document, "paper_tables")[1].strip() == paper_tables.document(numbers)
    numbers, document = report.load("interop"), (ROOT / "docs" / "interop.md").read_text()
    assert report.between(document, "interop")[1].strip() == interop.table(numbers["steps"], numbers["rows"])


def test_the_contact_sheet_is_of_the_draws_beside_it():
    assert report.between((ROOT / "docs" / "training.md").read_text(), "degradation")[1].strip() == degradation.table()
    assert (ROOT / "docs" / "degradation.jpg").stat().st_size < 200_000


def test_the_readme_names_make_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", (ROOT / "README.md").read_text()):
        assert f"\n{target}:" in makefile


def test_there_is_one_version():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
    assert f"\nversion: {dosde.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {dosde.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
