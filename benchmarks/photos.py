"""The photographs that the network of configs/clean.toml is trained on: fetched, checked, cut into tiles.

    python benchmarks/photos.py fetch PHOTOS      # 99 MB of Debian packages, by apt-get download; nothing is installed
    python benchmarks/photos.py pack PHOTOS TILES
    python benchmarks/photos.py credits           # writes docs/credits.md

benchmarks/data/photos.tsv names each of the 182 pictures with its package, its place in it, SHA-256, licence and author. The
packages are Debian 12's; on another system download the .deb files by hand (snapshot.debian.org keeps them) and give --debs.

Pack: pictures of more than 1800 pixels a side are soft at full size, so they are halved. Every picture is cut into tiles of 192
to 383 pixels a side, uncompressed, so that a crop costs milliseconds. A tile is kept with a probability proportional to the
detail that a 4x smaller picture loses of it, up to 1 at the upper quartile: skies are many and teach little.
"""

import argparse
import csv
import hashlib
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import report
import torch
import torch.nn.functional as F
from PIL import Image
from report import ROOT
from torch import Tensor

LIST = ROOT / "benchmarks" / "data" / "photos.tsv"
VERSIONS = {
    "gcompris-qt-data": "3.1-2",
    "lomiri-wallpapers-16.04": "20.04.0-2",
    "lomiri-wallpapers-20.04": "20.04.0-2",
    "lxqt-themes": "1.2.0-1",
    "palapeli-data": "4:22.12.3-1",
}
"""Of the packages in Debian 12."""
LARGE, SIDE, SCALE = 1800, 192, 4


def listed() -> list[dict[str, str]]:
    """The rows of the list, by column."""
    with LIST.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


# -- Fetching -----------------------------------------------------------------------------------------------------------------


def resources(path: Path) -> dict[str, bytes]:
    """The files in a Qt resource file, by name. gcompris keeps its pictures in such.

    The format: big-endian numbers; a header with the places of a tree, of the data and of the names. A node of the tree has the
    place of its name, flags (1: compressed by zlib, 2: a folder), and either the number and the place of its children or the
    place of its data.

    Raises:
        ValueError: The file is none of them.
    """
    held = path.read_bytes()
    if held[:4] != b"qres":
        raise ValueError(f"{path}: no Qt resource file")
    version, tree, data, names = struct.unpack(">4I", held[4:20])
    size = 14 if version == 1 else 22

    def walk(node: int, above: str) -> Iterator[tuple[str, bytes]]:
        start = tree + node * size
        at, flags, first, second = struct.unpack(">IHII", held[start : start + 14])
        (length,) = struct.unpack(">H", held[names + at : names + at + 2])
        name = held[names + at + 6 : names + at + 6 + 2 * length].decode("utf-16-be") if node else ""
        place = f"{above}/{name}" if above else name
        if flags & 2:
            for child in range(second, second + first):
                yield from walk(child, place)
        else:
            at = data + second
            (length,) = struct.unpack(">I", held[at : at + 4])
            raw = held[at + 4 : at + 4 + length]
            yield place, zlib.decompress(raw[4:]) if flags & 1 else raw

    return dict(walk(0, ""))


def unpacked(package: str, debs: Path, folder: Path) -> Path:
    """The files of a package, whose .deb is downloaded into `debs` unless it is there."""
    name = f"{package}_{VERSIONS[package].replace(':', '%3a')}_all.deb"
    if not (debs / name).is_file():
        subprocess.run(["apt-get", "download", f"{package}={VERSIONS[package]}"], cwd=debs, check=True)
    subprocess.run(["dpkg-deb", "-x", debs / name, folder / package], check=True)
    return folder / package


def fetch(photos: Path, debs: Path | None) -> None:
    """Writes every photograph of the list, and the copyright files of the packages, into a folder.

    Raises:
        ValueError: A file is not the one of the list.
        subprocess.CalledProcessError: A package cannot be downloaded or unpacked.
    """
    photos.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for package in VERSIONS:
            root = unpacked(package, debs or folder, folder)
            (photos / f"{package}.copyright").write_bytes((root / "usr/share/doc" / package / "copyright").read_bytes())
            bundles: dict[str, dict[str, bytes]] = {}
            rows = [row for row in listed() if row["package"] == package]
            for row in rows:
                path, _, inside = row["path"].partition(":")
                if inside and path not in bundles:
                    bundles[path] = resources(root / path)
                raw = bundles[path][inside] if inside else (root / path).read_bytes()
                if hashlib.sha256(raw).hexdigest() != row["sha256"]:
                    raise ValueError(f"{package}: {row['path']} is not the file that {LIST.name} names")
                (photos / row["file"]).write_bytes(raw)
            print(f"{package}: {len(rows)} photographs")


# -- Packing ------------------------------------------------------------------------------------------------------------------


def resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, height, width), by antialiased bicubic interpolation."""
    return F.interpolate(picture[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def read(path: Path) -> Tensor:
    """(3, height, width) in [0, 1], halved where it is large."""
    with Image.open(path) as image:
        picture = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    height, width = picture.shape[1:]
    return resized(picture, (height // 2, width // 2)) if max(height, width) > LARGE else picture


def tiles(picture: Tensor) -> list[Tensor]:
    """Those of a picture, without overlap; none of one that is smaller than a tile."""
    rows, columns = (n // SIDE for n in picture.shape[1:])
    return [tile for row in picture.chunk(rows, 1) for tile in row.chunk(columns, 2)] if rows and columns else []


def detail(tile: Tensor) -> float:
    """The root mean square of what is lost, on the scale from -1 to 1."""
    height, width = (n // SCALE * SCALE for n in tile.shape[1:])
    tile = tile[:, :height, :width]
    smaller = resized(tile, (height // SCALE, width // SCALE))
    return 2 * float((tile - resized(smaller, (height, width))).square().mean().sqrt())


def pack(photos: Path, out: Path) -> None:
    """Writes the tiles.

    Raises:
        FileExistsError: There is such a folder already.
    """
    out.mkdir(parents=True)
    generator, made = np.random.default_rng(0), []
    for path in sorted(photos / row["file"] for row in listed()):
        for i, tile in enumerate(tiles(read(path))):
            name = out / f"{path.stem}__{i:03d}.bmp"
            Image.fromarray((255 * tile).round().byte().permute(1, 2, 0).numpy()).save(name)
            made.append((name, detail(tile)))
    most = float(np.quantile([one for _, one in made], 0.75))
    kept = []
    for name, one in made:
        if generator.random() < one / most:
            kept.append(one)
        else:
            name.unlink()
    std = float(np.sqrt(np.mean(np.square(kept))))
    print(f"{len(kept)} of {len(made)} tiles; detail: upper quartile {most:.4f}, root mean square of those kept {std:.4f}")


def write_credits() -> None:
    """Writes the table of docs/credits.md."""
    lines = ["| picture | package | licence | author |", "|---|---|---|---|"]
    for row in listed():
        name = row["file"].split("__", 1)[1].rsplit(".", 1)[0].replace("__", ": ")
        cells = (name, row["package"], row["licence"], row["author"] or "named by the package's upstream")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    report.insert(ROOT / "docs" / "credits.md", "credits", "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="get the photographs out of Debian packages")
    fetching.add_argument("photos", type=Path)
    fetching.add_argument("--debs", type=Path, help="a folder with the .deb files, or for them")
    packing = commands.add_parser("pack", help="cut them into tiles")
    packing.add_argument("photos", type=Path)
    packing.add_argument("tiles", type=Path)
    commands.add_parser("credits", help="write docs/credits.md")
    given = parser.parse_args()
    if given.command == "fetch":
        fetch(given.photos, given.debs)
    elif given.command == "pack":
        pack(given.photos, given.tiles)
    else:
        write_credits()


if __name__ == "__main__":
    main()
