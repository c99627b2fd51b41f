"""What `mkdocs.yml` cannot say: pages that are made of other files of the repository.

The front page is README.md; `results/` holds the tables in benchmarks/results; `api/` has a page for each public module of
dosde and backbones, found by walking the packages, so that a module that moves takes its page along. A link that leaves docs/
leads to such a page, or else to the file in the repository.
"""

import ast
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/dosde/dosde/blob/main/"
PACKAGES = ("dosde", "backbones")
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Warns", "Examples")  # of Google's style
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # file -> page


def modules(package: Path) -> Iterator[tuple[str, ...]]:
    """The public modules below a package, the package first: ("dosde",), ("dosde", "cold"), ..."""
    yield package.relative_to(ROOT).parts
    entries = [path for path in package.iterdir() if not path.name.startswith("_")]
    for path in sorted(entries, key=lambda path: path.stem):
        if (path / "__init__.py").exists():
            yield from modules(path)
        elif path.suffix == ".py":
            yield path.relative_to(ROOT).with_suffix("").parts


def api_page(module: tuple[str, ...]) -> str:
    """Where the page of a module stands. A package is the index of its folder."""
    path = "/".join(("api", *module))
    return f"{path}/index.md" if (ROOT.joinpath(*module) / "__init__.py").exists() else f"{path}.md"


def pages() -> dict[str, str]:
    """File of the repository -> page of the site, for all files outside docs/ that have a page."""
    tables = {f"benchmarks/results/{path.name}": f"results/{path.name}" for path in (ROOT / "benchmarks/results").glob("*.md")}
    return PAGES | tables


def api_nav(package: Path) -> list[Any]:
    """The part of the navigation below a package."""
    entries: list[Any] = []
    for module in modules(package):
        if len(module) == len(package.relative_to(ROOT).parts) + 1 and (ROOT.joinpath(*module) / "__init__.py").exists():
            entries.append({module[-1]: api_nav(ROOT.joinpath(*module))})
        elif len(module) <= len(package.relative_to(ROOT).parts) + 1:
            entries.append(api_page(module))
    return entries


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Completes the navigation."""
    results = [page for page in pages().values() if page.startswith("results/")]
    assert config.nav is not None
    config.nav += [
        {"Tables": sorted(results)},
        {"API": [{package: api_nav(ROOT / package)} for package in PACKAGES]},
        {"Project": ["contributing.md", "changelog.md"]},
    ]
    return config


def api_text(module: tuple[str, ...]) -> str:
    """The page of a module. That of a package shows what its own file defines, and a line for each module in it."""
    name, path = ".".join(module), ROOT.joinpath(*module)
    text = f"---\ntitle: {module[-1]}\n---\n\n# `{name}`\n\n::: {name}\n"
    if not path.is_dir():
        return text
    body = ast.parse((path / "__init__.py").read_text()).body
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    text += f"    options: {{members: {json.dumps(defined) if defined else 'false'}}}\n\n"
    for inner in modules(path):
        if len(inner) == len(module) + 1:
            file = ROOT.joinpath(*inner)
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            summary = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
            text += f"- [`{inner[-1]}`]({posixpath.relpath(api_page(inner), posixpath.dirname(api_page(module)))}): {summary}\n"
    return text


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for path, page in pages().items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    for package in PACKAGES:
        for module in modules(ROOT / package):
            files.append(File.generated(config, api_page(module), content=api_text(module)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links, which are relative to the file in the repository, made relative to its page."""
    here = page.file.src_uri
    if here.startswith("api/"):
        return markdown
    source = {page: path for path, page in pages().items()}.get(here, f"docs/{here}")

    def moved(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        if not target or "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = pages().get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        link = REPOSITORY + path if place is None else posixpath.relpath(place, posixpath.dirname(here) or ".")
        return f"{match[1]}{link}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"(\]\()([^)\s]+)\)", moved, markdown)


class Docstrings(griffe.Extension):
    """Docstrings as this project writes them: equations are code, and doctests are examples.

    An indented block after a line that ends in a colon would be a box with that line as its title, and a doctest would be a
    quotation.
    """

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(self.rewritten(obj.docstring.value.splitlines()))

    @staticmethod
    def rewritten(lines: list[str]) -> list[str]:
        made: list[str] = []
        example = False
        for line in lines:
            if line.startswith(">>>") and not example:
                made += ["Examples:"]
                example = True
            elif example and line and not made[-1].strip() and not line.startswith(">>>"):
                example = False  # prose after a blank line
            last = made[-1] if made else ""
            if line.startswith("    ") and last.endswith(":") and last[0] != " " and last[:-1] not in SECTIONS:
                made.append("")
            made.append(f"    {line}".rstrip() if example else line)
        return made
