"""Mutations of the core: the part of small edits that the tests notice.

    python benchmarks/mutants.py [--count 200] [--seed 0] [--modules solve plan] [--out FOLDER]

An edit is one of: another operator, comparison or truth value, a number changed, a condition turned round, a statement left
out. A sample of all edits is drawn by the seed, a share for each module by its number of edits. For each edit the tests of the
core run on a copy of `dosde`, those of the edited module first, until one fails. An edit that no test notices survives.

Prints a table and the survivors, and writes benchmarks/results/mutants.json. It resumes: edits that
the results have are not run again, unless the module or its tests changed. A process is forked for each edit, so that torch is
imported once.
"""

import ast
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from report import RESULTS, Numbers, Report, parser, save, table

ROOT = Path(__file__).parents[1]
MODULES = [
    "schedule",
    "shift",
    "process",
    "expansion",
    "matching",
    "step",
    "method",
    "srk",
    "grid",
    "noise",
    "prediction",
    "plan",
    "solve",
    "check",
    "recipe",
    "objective",
    "law",
    "sde",
    "transition",
    "bridge",
    "bisection",
    "through",
]
TESTS = (  # fast ones first; those of the edited module come before all
    *(
        "plans",
        "details",
        "step",
        "errors",
        "recipe",
        "memory",
        "schedule",
        "process",
        "prediction",
        "expansion",
        "law",
        "bridge",
    ),
    *("through", "denoiser", "solve", "arguments"),
    *("objective", "noise", "parity", "cold", "reductions", "flow", "resshift", "few_steps", "orders"),
)
OF = {"srk": "details", "matching": "few_steps", "grid": "few_steps", "method": "step", "plan": "solve", "check": "errors"}
OF |= {"sde": "process", "transition": "process", "bisection": "process"}
SECONDS = 240  # after which an edit counts as noticed: it hangs
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Div,
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


@dataclass(frozen=True)
class Edit:
    """One edit: text `was` from `start` to `end` of the source becomes `now`."""

    module: str
    line: int
    start: int
    end: int
    was: str
    now: str

    @property
    def name(self) -> str:
        return f"{self.module}:{self.line}:{self.start}:{self.was} -> {self.now}"


def edits(module: str) -> list[Edit]:
    """All edits of a module, in the order of its source."""
    source = (ROOT / "dosde" / f"{module}.py").read_text()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    raw = source.encode()
    found = []
    tree = ast.parse(source)
    for node, now in changes(tree):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        found.append(Edit(module, node.lineno, start, end, raw[start:end].decode(), now))
    return sorted({e.name: e for e in found}.values(), key=lambda e: (e.start, e.now))


def changes(tree: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Nodes of code that runs, and the text that takes their place; no annotations, docstrings or messages."""
    for node in running(tree):
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            yield node, ast.unparse(ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right))
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            ops = [COMPARISONS[type(node.ops[0])](), *node.ops[1:]]
            yield node, ast.unparse(ast.Compare(node.left, ops, node.comparators))
        elif isinstance(node, ast.BoolOp):
            other = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
            yield node, f"({ast.unparse(ast.BoolOp(other, node.values))})"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            yield node, ast.unparse(node.operand)
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield node, str(not node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield node, str(node.value + 1) if isinstance(node.value, int) else repr(node.value * 1.1 or 0.1)
        elif isinstance(node, ast.IfExp):
            yield node, f"({ast.unparse(ast.IfExp(node.test, node.orelse, node.body))})"
        elif isinstance(node, ast.If | ast.While):
            yield node.test, f"not ({ast.unparse(node.test)})"
        elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            yield node, "pass"


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but annotations, the text of messages, and what only type checkers read."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            skipped.update(id(child) for child in ast.iter_child_nodes(node))
            continue
        hidden: list[ast.AST | None] = []
        if isinstance(node, ast.arg):
            hidden = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            hidden = [node.returns, *node.decorator_list]
        elif isinstance(node, ast.AnnAssign):
            hidden = [node.annotation]
        elif isinstance(node, ast.ClassDef):
            hidden = list(node.decorator_list)
        elif isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert | ast.Import | ast.ImportFrom):
            hidden = list(ast.iter_child_nodes(node))
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("shown", "needed", "advice"):
            hidden = [node.value]
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr):
            hidden = [node.value]  # a type
        skipped.update(id(part) for part in hidden if part is not None)
        yield node


def noticed(edit: Edit, folder: Path) -> str | None:
    """The test that fails with the edit, or None."""
    source = (ROOT / "dosde" / f"{edit.module}.py").read_bytes()
    (folder / "dosde" / f"{edit.module}.py").write_bytes(source[: edit.start] + edit.now.encode() + source[edit.end :])
    first = OF.get(edit.module, edit.module)
    order = sorted(TESTS, key=lambda name: name not in ("plans", first))
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in order]
    log = folder / "log"
    child = os.fork()
    if child == 0:
        code = 1
        try:  # whatever happens here, the child goes no further
            code = _tested(files, folder, log)
        finally:
            os._exit(code)
    try:
        code = _waited(child)
    finally:
        (folder / "dosde" / f"{edit.module}.py").write_bytes(source)
    if code == 0:
        return None
    failed = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0].split(" ", 1)[1].replace(f"{ROOT}/", "") if failed else "hangs or ends the process"


def _tested(files: list[str], folder: Path, log: Path) -> int:
    """Runs the tests on the copy in the folder, in a process of its own; 0 if all pass."""
    import pytest

    os.setpgid(0, 0)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    sys.path[:0] = [str(folder), str(ROOT / "tests"), str(ROOT)]
    options = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-k", "not strong"]
    return int(pytest.main([*options, *files]))


def _waited(child: int) -> int:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 1


def sampled(count: int, seed: int, modules: list[str]) -> list[Edit]:
    every = [edit for module in modules for edit in edits(module)]
    return random.Random(seed).sample(every, min(count, len(every)))


def state(module: str) -> str:
    """A digest of the module and of all tests that run for it."""
    digest = hashlib.sha256((ROOT / "dosde" / f"{module}.py").read_bytes())
    for name in TESTS:
        digest.update((ROOT / "tests" / f"test_{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def rates(numbers: Numbers) -> str:
    """The table: a row a module, and one for all."""
    rows = []
    for module, count in [*numbers["edits"].items(), ("all", sum(numbers["edits"].values()))]:
        own = [test for name, test in numbers["noticed"].items() if module in ("all", name.split(":")[0])]
        if own:
            good = sum(test is not None for test in own)
            rows.append((module, str(count), str(len(own)), str(good), f"{good / len(own):.0%}"))
    return table(("module", "edits", "tried", "noticed", "rate"), rows)


def summary(numbers: Numbers) -> str:
    """The table, and the edits that no test noticed."""
    alive = [f"`{name}`" for name, test in numbers["noticed"].items() if test is None]
    return rates(numbers) + f"\n\nSurvivors: {', '.join(alive) or 'none'}."


REPORT = Report("mutants", {("docs/proof.md", "mutants"): summary})


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--modules", nargs="+", default=MODULES, choices=MODULES)
    options = arguments.parse_args()
    for heavy in ("torch", "numpy", "scipy.integrate"):  # what tests import, once; not plugins of pytest
        importlib.import_module(heavy)

    path = (options.out or RESULTS) / "mutants.json"
    before: Numbers = json.loads(path.read_text()) if path.exists() else {"noticed": {}, "states": {}}
    states = {module: state(module) for module in MODULES}
    noticed_by: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(ROOT / "dosde", Path(place) / "dosde")
        broken = noticed(Edit("shift", 1, 0, 0, "", ""), Path(place))
        if broken is not None:
            raise SystemExit(f"tests: {broken} fails without any edit")
        for i, edit in enumerate(sampled(options.count, options.seed, options.modules)):
            if edit.name in before["noticed"] and before["states"].get(edit.module) == states[edit.module]:
                noticed_by[edit.name] = before["noticed"][edit.name]
            else:
                noticed_by[edit.name] = noticed(edit, Path(place))
            test = noticed_by[edit.name]
            print(f"{i + 1:4d}  {edit.name}  {test or 'SURVIVES'}", flush=True)
            if i % 10 == 9:
                save("mutants", numbers(options.seed, states, noticed_by), options.out or RESULTS)
    REPORT.write(numbers(options.seed, states, noticed_by), options.out)
    print(rates(numbers(options.seed, states, noticed_by)))
    for name, test in noticed_by.items():
        if test is None:
            print("survives ", name)


def numbers(seed: int, states: dict[str, str], noticed_by: dict[str, str | None]) -> Numbers:
    modules = {name.split(":")[0] for name in noticed_by}
    counts = {module: len(edits(module)) for module in MODULES if module in modules}
    return {"seed": seed, "edits": counts, "states": states, "noticed": noticed_by}


if __name__ == "__main__":
    main()
