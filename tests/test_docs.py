"""The documents: their examples run, their links lead somewhere, their tables are what the benchmarks wrote."""

import ast
import re
import tomllib
from pathlib import Path

import ablation
import agreement
import contact_sheet
import convergence
import few_step
import laws
import mutants
import overhead
import paper_tables
import peers_pictures
import pipeline_memory
import posterior
import pytest
import report
import shipped
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
    "posterior.md",
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
def test_prose_is_wrapped(path):
    """Lines of prose have at most 120 characters. Tables, pictures, commands and what benchmarks write may be longer."""
    text = re.sub(
        r"^```.*?^```$|<!-- (\w+): begin -->.*?<!-- \1: end -->", "", path.read_text(), flags=re.DOTALL | re.MULTILINE
    )
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "![", "    "))]
    assert not long


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_files_that_are_named_exist(path):
    if path.name == "CHANGELOG.md":
        pytest.skip("it names files of earlier versions")
    for name in re.findall(r"\b((?:dosde|backbones|benchmarks|tests)/[\w/]+\.(?:py|json))\b", path.read_text()):
        assert (ROOT / name).exists(), name


BENCHMARKS = (
    laws,
    mutants,
    peers_pictures,
    agreement,
    ablation,
    convergence,
    few_step,
    overhead,
    paper_tables,
    pipeline_memory,
    posterior,
    shipped,
    stability,
    tune,
)
REPORTS = [*(benchmark.REPORT for benchmark in BENCHMARKS), few_step.RESSHIFT]


@pytest.mark.parametrize("written", REPORTS, ids=lambda written: written.name)
def test_tables_are_what_the_benchmarks_wrote(written):
    assert written.tables
    assert not written.stale()


def test_the_contact_sheet_is_of_the_draws_beside_it():
    assert report.between((ROOT / "docs" / "training.md").read_text(), "degradation")[1].strip() == contact_sheet.table()
    assert (ROOT / "docs" / "degradation.jpg").stat().st_size < 200_000


def test_the_readme_names_make_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", (ROOT / "README.md").read_text()):
        assert f"\n{target}:" in makefile


def test_there_is_one_version():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
    assert f"\nversion: {dosde.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {dosde.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_lines_of_what_is_written_outside_are_counted():
    document = (ROOT / "docs" / "extending.md").read_text()
    counts = {}
    for node in ast.parse("\n".join(re.findall(r"(?sm)^```python\n(.*?)^```", document))).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if ast.get_docstring(node):
                node.body = node.body[1:]
            counts[node.name] = sum(bool(line) for line in ast.unparse(node).splitlines())
    said = dict(re.findall(r"\| `(\w+)` (\d+) \|$", document, flags=re.MULTILINE))
    assert said
    assert {name: counts[name] for name in said} == {name: int(count) for name, count in said.items()}
