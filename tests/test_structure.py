"""How the modules hang together, read from their imports: no circle, no arrow back up, no name with an underscore taken."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("dosde", "backbones")
    for path in sorted((ROOT / package).rglob("*.py"))
}
# What each room of backbones may import is what stands before it. `backbones` itself (its `load` knows every backbone) is
# behind the backbones, and before what runs them.
ROOMS = (
    *("whole", "kinds", "weights", "named", "pictures", "option", "backbone", "exact", "embedded", "sd21", "resshift", "gan"),
    *("backbones", "evaluation", "training", "commands", "cli"),
)


def imports(module: str) -> Iterator[tuple[str, str | None]]:
    """(module, name that is taken from it or None) of each import within our packages, functions' own ones included."""
    tree = ast.parse(FILES[module].read_text())
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    aliases: dict[str, str] = {}
    for node in running(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name in FILES:
                    aliases[name.asname or name.name] = name.name
                    yield name.name, None
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            for name in node.names:
                if f"{origin}.{name.name}" in FILES:
                    aliases[name.asname or name.name] = f"{origin}.{name.name}"
                    yield f"{origin}.{name.name}", None
                elif origin in FILES:
                    yield origin, name.name
    for node in ast.walk(tree):  # module._name is taken as well
        if isinstance(node, ast.Attribute) and node.attr[0] == "_" and ast.unparse(node.value) in aliases:
            yield aliases[ast.unparse(node.value)], node.attr


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`, which never run."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING" and child in tree.body:
            continue
        yield from running(child)


ARROWS = {module: list(imports(module)) for module in FILES}


def room(module: str) -> int:
    """The place in `ROOMS` of a module of backbones."""
    _, _, inside = module.partition(".")
    return ROOMS.index(inside.split(".")[0] or "backbones")


@pytest.mark.parametrize("package", ["dosde", "backbones"])
def test_no_module_imports_itself_by_way_of_others(package):
    left = {
        module: {other for other, _ in arrows if other.split(".")[0] == package}
        for module, arrows in ARROWS.items()
        if module.split(".")[0] == package
    }
    while free := {module for module, others in left.items() if not others & set(left)}:
        left = {module: others for module, others in left.items() if module not in free}
    assert not left, "each of these imports another of them"


def test_the_mathematics_knows_no_network():
    below = [(module, other) for module, arrows in ARROWS.items() for other, _ in arrows if module.startswith("dosde")]
    assert [module for module, other in below if other.split(".")[0] == "backbones"] == ["dosde.__main__"]


def test_every_module_has_a_room():
    assert {module.split(".")[1] for module in FILES if module.startswith("backbones.")} <= set(ROOMS)


def test_no_room_imports_one_behind_it():
    back = [
        (module, other)
        for module, arrows in ARROWS.items()
        for other, _ in arrows
        if module.startswith("backbones") and other.startswith("backbones") and room(other) > room(module)
    ]
    assert back == []


def test_no_module_takes_a_name_with_an_underscore():
    taken = {
        (module, f"{other}.{name}")
        for module, arrows in ARROWS.items()
        for other, name in arrows
        if other != module and name is not None and name[0] == "_" and not name.startswith("__")
    }
    assert taken == set()


def test_importing_backbones_is_light():
    heavy = (
        "cv2",
        "PIL",
        "skimage",
        "scipy",
        "diffusers",
        "transformers",
        "safetensors",
        "backbones.training",
        "backbones.sd21",
    )
    code = f"import sys, backbones; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
