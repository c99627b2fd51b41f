"""Where the numbers of a benchmark go: JSON in benchmarks/results, and its table between two marks of a document."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def save(name: str, numbers: dict[str, Any]) -> None:
    """Writes benchmarks/results/NAME.json."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(numbers, indent=1) + "\n")


def load(name: str) -> dict[str, Any]:
    """What `save` wrote."""
    numbers: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
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
