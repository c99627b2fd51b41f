"""What the benchmarks share: command lines, Markdown tables, figures, goals, and the files that numbers are written to.

A benchmark has one `Report`, which says where its tables and figures go. Its main measures, prints the tables and calls
`write`: the numbers go into benchmarks/results as JSON, each table between two marks of a document, the figures into docs.
With `--out FOLDER` everything goes into that folder instead, and nothing in the repository changes.

benchmarks/results/goals.json has the goals that the benchmarks print beside what they measured (`judged`).
"""

import argparse
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Numbers = dict[str, Any]


# -- Command lines --------------------------------------------------------------------------------------------------------


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the docstring of a benchmark as its help, and with `--out`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, metavar="FOLDER", help="write there, and nothing into the repository")
    return made


# -- Tables ---------------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown: a line of headings, and a line a row."""
    headings = "| " + " | ".join(head).lstrip() + " |"
    return "\n".join([headings, "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)])


# -- Figures --------------------------------------------------------------------------------------------------------------


@contextmanager
def figure(path: Path, size: tuple[float, float], columns: int = 1, dpi: int = 90, **how: Any) -> Iterator[tuple[Any, Any]]:
    """(figure, axis), or (figure, axes) of one row, drawn without a display and saved at the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    made, axes = plt.subplots(1, columns, figsize=size, layout="constrained", **how)
    yield made, axes
    made.savefig(path, dpi=dpi)
    plt.close(made)


def counted(axis: Any, values: Sequence[int], **labels: Any) -> None:
    """Labels for an axis of numbers of calls or steps: every number is a tick, and there is a grid."""
    axis.set(**labels)
    axis.set_xticks(values, [str(n) for n in values])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


# -- Goals ----------------------------------------------------------------------------------------------------------------

_RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "at least": operator.ge,
    "more than": operator.gt,
    "at most": operator.le,
    "less than": operator.lt,
}


def goals(name: str) -> dict[str, str]:
    """The goals of a benchmark: {what: "at most 0.5"}."""
    found: dict[str, dict[str, str]] = json.loads((RESULTS / "goals.json").read_text())
    return found[name]


def met(goal: str, value: float) -> bool:
    """Whether a value reaches a goal such as "at most 0.5"."""
    relation, _, limit = goal.rpartition(" ")
    return _RELATIONS[relation](value, float(limit))


def judged(name: str, measured: Iterable[tuple[str, str, float]]) -> str:
    """Markdown: goals beside what was measured. measured: (what, the key of its goal, value) each."""
    wanted = goals(name)
    rows = [
        (what, wanted[key], f"{value:.3f}", "met" if met(wanted[key], value) else "missed") for what, key, value in measured
    ]
    return table(("asked", "goal", "measured", ""), rows)


# -- Files ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """Where a benchmark writes.

    tables: (document, mark) -> the table that stands there, made of the numbers. figures: file name -> what draws it, from the
    numbers, into a path.
    """

    name: str
    tables: Mapping[tuple[str, str], Callable[[Numbers], str]]
    figures: Mapping[str, Callable[[Numbers, Path], object]] = field(default_factory=dict)

    def write(self, numbers: Numbers, out: Path | None = None) -> None:
        """JSON, tables and figures; into the folder `out`, if there is one, instead of the repository."""
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        save(self.name, numbers, out or RESULTS)
        for (document, mark), made in self.tables.items():
            if out is None:
                insert(ROOT / document, mark, made(numbers))
            else:
                (out / f"{Path(document).stem}_{mark}.md").write_text(made(numbers) + "\n")
        for file, draw in self.figures.items():
            draw(numbers, (out or ROOT / "docs") / file)

    def stale(self) -> list[str]:
        """The documents whose tables are not those of the numbers in benchmarks/results, with their marks."""
        numbers = load(self.name)
        return [
            f"{document}, {mark}"
            for (document, mark), made in self.tables.items()
            if between((ROOT / document).read_text(), mark)[1] != made(numbers) + "\n"
        ]


def save(name: str, numbers: Numbers, folder: Path = RESULTS) -> None:
    """Writes NAME.json."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n")


def load(name: str) -> Numbers:
    """What `save` wrote to benchmarks/results."""
    numbers: Numbers = json.loads((RESULTS / f"{name}.json").read_text())
    return numbers


def between(document: str, name: str) -> tuple[str, str, str]:
    """A document as (before, between, after) the marks of a benchmark."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, rest = document.split(begin)
    inside, after = rest.split(end)
    return before + begin, inside, end + after


def insert(path: Path, name: str, table: str) -> None:
    """Puts a table between its marks."""
    before, _, after = between(path.read_text(), name)
    path.write_text(before + table + "\n" + after)
