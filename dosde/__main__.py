"""`dosde`, or `python -m dosde`: the command line, which is in the package `backbones` beside this one."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; exit status 2 where another package is in the way of ours."""
    ours = Path(__file__).resolve().parents[1] / "backbones"
    found = _place("backbones")
    if found != ours:
        shown = "there is none" if found is None else f"{found} is another package of this name"
        advice = "rename that one, or take its folder out of the path of Python (the current folder, PYTHONPATH)"
        print(
            f"dosde: error: backbones: {shown}; {ours} is needed: {advice if found else 'install dosde anew'}", file=sys.stderr
        )
        return 2
    try:
        whole = hasattr(importlib.import_module("backbones"), "NAMES") and (ours / "cli.py").is_file()
    except Exception:  # whatever another package does
        whole = False
    if not whole:
        shown = f"another package of this name was installed over that of dosde, {ours}"
        print(f"dosde: error: backbones: {shown}; uninstall that one, and install dosde anew", file=sys.stderr)
        return 2
    from backbones.cli import main as command

    return command(argv)


def _place(package: str) -> Path | None:
    """The folder or the file of a package that an import would find."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin or "").resolve()


if __name__ == "__main__":
    raise SystemExit(main())
