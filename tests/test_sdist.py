"""The source distribution holds what the repository holds, and the wheel what runs."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MADE = ("PKG-INFO", "setup.cfg", "dosde.egg-info/")
CODE = "import sys; from setuptools import build_meta as b; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)"


def tracked():
    """The files of the repository, where this is one."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("a clone, and git, are needed")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


def test_the_source_distribution_holds_the_repository_and_the_wheel_what_runs(tmp_path):
    pytest.importorskip("setuptools")
    files = tracked()
    for name in files:
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "copy" / name)
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    subprocess.run(command, cwd=tmp_path / "copy", capture_output=True, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in (member.name for member in archive if member.isfile())}
    assert {name for name in held if not name.startswith(MADE)} == files
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        runs = {name for name in wheel.namelist() if ".dist-info/" not in name}
    code = {name for name in files if name.startswith(("dosde/", "backbones/")) and name.endswith((".py", "/py.typed"))}
    assert runs == code | {"backbones/embedded/weights.safetensors"}
