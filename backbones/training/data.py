"""Pictures to train on, square and in colour, each a function of (seed, epoch, index) whatever the number of workers.

A source makes the picture with a number from a generator: `Folder`, `Pairs`, `Bundled`, `Procedural`, or `Mixed` of them.
`Samples` is the data set of a source for torch's DataLoader, with the low-resolution picture where a degradation is given, and
`Order` the endless, resumable order in which to draw from it:

    >>> from backbones.pictures.degradation import REAL_ESRGAN
    >>> samples = Samples(Procedural(64), REAL_ESRGAN, seed=1)
    >>> {name: tuple(picture.shape) for name, picture in samples[0, 7].items()}  # epoch 0, index 7
    {'hr': (3, 64, 64), 'lr': (3, 16, 16)}
    >>> list(Order(len(samples), seed=1, start=10_000, stop=10_002))  # after 10 epochs
    [(10, 869), (10, 49)]
"""

import importlib.util
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from backbones import named
from backbones.pictures import io as images
from backbones.pictures import procedural
from backbones.pictures.degradation import Degradation, apply, sample
from backbones.pictures.resize import bicubic
from dosde.check import Refused, form

TRAINED = {
    "skimage": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "cell.png",
        "clock_motion.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "page.png",
        "retina.jpg",
        "rocket.jpg",
        "text.png",
    ),
    "sklearn": ("flower.jpg",),
}
"""What `Bundled` has, by the package that brings it."""

HELD_OUT = {"skimage": ("chelsea.png", "coffee.png"), "sklearn": ("china.jpg",)}
"""Never trained on: to measure by."""

_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


Made = Tensor | tuple[Tensor, Tensor]


class Source(Protocol):
    """Pictures of one size."""

    @property
    def crop(self) -> int:
        """The length of their sides."""

    def __len__(self) -> int:
        """The pictures of an epoch."""

    def picture(self, index: int, generator: np.random.Generator) -> Made:
        """(3, crop, crop), float32 in [0, 1], all chance from this generator; or it and its lr, where the source has that."""


@dataclass(frozen=True)
class Samples(Dataset[dict[str, Tensor]]):
    """A data set of dict(hr=(3, crop, crop), lr=(3, crop/scale, crop/scale)), by (epoch, index), or by an index in epoch 0.

    Args:
        source: makes the pictures.
        degradation: makes lr from hr, where the source has no lr; None: there is hr alone.
        seed: the seed of crops and degradations.

    Raises:
        Refused: the scale of the degradation does not divide the crop.
    """

    source: Source
    degradation: "Degradation | Own | None" = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.degradation is not None and self.source.crop % self.degradation.scale:
            raise Refused("crop", self.source.crop, f"a multiple of the scale {self.degradation.scale} is needed")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self.source):
            raise IndexError(f"index: {index} of {len(self.source)} pictures")
        made = self.source.picture(index, np.random.default_rng([self.seed, epoch, index, 0]))
        if isinstance(made, tuple):
            return {"hr": made[0], "lr": made[1]}
        if self.degradation is None:
            return {"hr": made}
        return {"hr": made, "lr": degraded(made, self.degradation, np.random.default_rng([self.seed, epoch, index, 1]))}


@dataclass(frozen=True)
class Own:
    """A degradation of a user's, which is found by its name in every process.

    Args:
        name: "package.module:name" of a function (hr, generator) -> lr, from (3, height, width) in [0, 1] and a
            torch.Generator to (3, height/scale, width/scale). What leaves [0, 1] a little is clamped.
        scale: the scale.
    """

    name: str
    scale: int

    @property
    def found(self) -> Any:
        """The function."""
        return named.found("data.degradation", self.name)

    def __call__(self, hr: Tensor, generator: torch.Generator) -> Tensor:
        """lr.

        Raises:
            Refused: the function fails, or returns something else.
        """
        try:
            lr = self.found(hr.clone(), generator)
        except Refused:
            raise
        except Exception as error:  # whatever a function of one's own does
            raise Refused("data.degradation", self.name, "it fails", f"{self.name}: {named.said(error)}") from error
        shape = (len(hr), *(side // self.scale for side in hr.shape[1:]))
        if not isinstance(lr, Tensor) or tuple(lr.shape) != shape or not lr.is_floating_point():
            needed = f"a floating tensor of shape {shape}, 1/data.scale of hr, is needed"
            raise Refused("data.degradation", self.name, needed, f"{self.name} returned {form(lr)}")
        low, high = lr.aminmax()
        if not (low >= -1 and high <= 2):  # NaN, or 0 to 255
            shown = f"{self.name} returned values from {low:g} to {high:g}"
            raise Refused("data.degradation", self.name, "finite values from 0 to 1 are needed", shown)
        return lr.detach().float().clamp(0, 1)


def degraded(hr: Tensor, degradation: Degradation | Own, generator: np.random.Generator) -> Tensor:
    """lr of a picture (3, height, width)."""
    if isinstance(degradation, Own):
        return degradation(hr, torch.Generator().manual_seed(int(generator.integers(2**63))))
    return apply(hr, sample(degradation, generator))


@dataclass(frozen=True)
class Order(Sampler[tuple[int, int]]):
    """(epoch, index) of the samples, epoch after epoch, each in an order of its own that follows from (seed, epoch).

    Args:
        length: the samples of an epoch.
        seed: the seed of the orders.
        start: the number of the first sample, counted through all epochs.
        stop: the number after the last one; None: there is no end.
    """

    length: int
    seed: int = 0
    start: int = 0
    stop: int | None = None

    def __iter__(self) -> Iterator[tuple[int, int]]:
        number = self.start
        while self.stop is None or number < self.stop:
            epoch, first = divmod(number, self.length)
            order = np.random.default_rng([self.seed, epoch]).permutation(self.length).tolist()
            for index in order[first : None if self.stop is None else first + self.stop - number]:
                yield epoch, index
                number += 1

    def __len__(self) -> int:
        if self.stop is None:
            raise TypeError("an order without stop has no length")
        return max(0, self.stop - self.start)


class Folder:
    """Pictures of a folder and the folders in it, in full resolution, cropped, mirrored and turned at random.

    Grey becomes colour; alpha is dropped. A picture that cannot be read is named in a warning, and another one takes its place.

    Args:
        path: the folder.
        crop: side of the squares.
        small: "refuse": pictures smaller than the crop are an error; "skip": they are left out, and counted in `skipped`.
        shrink: see `cropped`.

    Raises:
        Refused: there is no such folder, no picture in it, or pictures are too small.
    """

    def __init__(self, path: Path | str, crop: int, small: str = "refuse", shrink: float = 1.0) -> None:
        if small not in ("refuse", "skip"):
            raise Refused("small", small, "'refuse' or 'skip' is needed")
        self.crop, self.shrink = _positive("crop", crop), _shrink(shrink)
        root = Path(path)
        found = sorted(p for p in root.rglob("*") if p.suffix.lower() in images.SUFFIXES and p.is_file())
        if not found:
            raise Refused("folder", root, "it holds no pictures" if root.is_dir() else "there is no such folder")
        sizes = {p: size for p in found if (size := _size(p)) is not None}
        too_small = [p for p, size in sizes.items() if min(size) < crop]
        if too_small and small == "refuse":
            named = ", ".join(f"{p.relative_to(root)} ({sizes[p][0]}x{sizes[p][1]})" for p in too_small[:5])
            more = ", ..." if len(too_small) > 5 else ""
            shown = f"{len(too_small)} of {len(found)} pictures are smaller than the crop {crop}: {named}{more}"
            raise Refused("folder", root, "larger pictures, or small = 'skip', are needed", shown)
        self.skipped = len(too_small)
        self.paths = [p for p, size in sizes.items() if min(size) >= crop]
        if not self.paths:
            raise Refused("folder", root, f"none of {len(found)} pictures can be read and is as large as the crop {crop}")
        self._broken: set[Path] = set()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def files(self) -> list[Path]:
        """What it reads."""
        return self.paths

    def picture(self, index: int, generator: np.random.Generator) -> Tensor:
        """A crop of the picture with this number, or of another one where it cannot be read.

        Raises:
            Refused: no picture of the folder can be read.
        """
        first = self._read(self.paths[index])
        if first is not None:
            return cropped(first, self.crop, generator, self.shrink)
        for other in generator.permutation(len(self.paths)):
            colour = self._read(self.paths[other])
            if colour is not None:
                return cropped(colour, self.crop, generator, self.shrink)
        shown = f"none of {len(self.paths)} pictures can be read, {self.paths[index]} among them"
        raise Refused("folder", self.paths[index], "pictures that can be read are needed", shown)

    def _read(self, path: Path) -> Tensor | None:
        if path in self._broken:
            return None
        try:
            colour = images.read(path).colour
            if min(colour.shape[-2:]) < self.crop:
                raise ValueError(f"it has become smaller than the crop {self.crop}")
        except MemoryError:
            raise
        except Exception as error:  # whatever is wrong with a file costs that file alone
            _warn(path, error)
            self._broken.add(path)
            return None
        return colour[0].expand(3, -1, -1)


class Pairs:
    """Pictures of a folder and the same in low resolution, of another one (or of the same), cropped, mirrored and turned alike.

    A pair is two files of one name, but for marks such as _HR, _LR4 or x4. A pair that cannot be read is named in a warning.

    Args:
        hr: the folder of high-resolution pictures, and the folders in it.
        lr: the folder of the low-resolution ones.
        crop: side of the squares of hr, a multiple of the scale.
        scale: how many times as large hr is.
        small: as of `Folder`.

    Raises:
        Refused: a folder has no pictures, a picture has no partner, or one of another size, or is too small.
    """

    def __init__(self, hr: Path | str, lr: Path | str, crop: int, scale: int, small: str = "refuse") -> None:
        if small not in ("refuse", "skip"):
            raise Refused("small", small, "'refuse' or 'skip' is needed")
        self.crop, self.scale = _positive("crop", crop), _positive("scale", scale)
        if crop % scale:
            raise Refused("crop", crop, f"a multiple of the scale {scale} is needed")
        pairs = matched(Path(hr), Path(lr), scale)
        self.pairs: list[tuple[Path, Path]] = []
        too_small: list[tuple[Path, Path]] = []
        for large, little in pairs:
            sizes = _size(large), _size(little)
            if sizes[0] is None or sizes[1] is None:
                continue
            wanted = scale * sizes[1][0], scale * sizes[1][1]
            if sizes[0] not in (wanted, wanted[::-1]):  # upright, or turned by what EXIF says
                needed = f"{scale} times the size of its low resolution is needed, {wanted[0]}x{wanted[1]}"
                raise Refused("hr", large, needed, f"{large} has {sizes[0][0]}x{sizes[0][1]} pixels")
            (self.pairs if min(sizes[0]) >= crop else too_small).append((large, little))
        if too_small and small == "refuse":
            shown = f"{len(too_small)} of {len(pairs)} pictures are smaller than the crop {crop}: {_listed(too_small)}"
            raise Refused("hr", hr, "larger pictures, or small = 'skip', are needed", shown)
        self.skipped = len(too_small)
        if not self.pairs:
            raise Refused("hr", hr, f"none of {len(pairs)} pairs can be read and is as large as the crop {crop}")
        self._broken: set[Path] = set()

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def files(self) -> list[Path]:
        """What it reads."""
        return [path for pair in self.pairs for path in pair]

    def picture(self, index: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Crops of the pair with this number, or of another one where it cannot be read.

        Raises:
            Refused: no pair can be read.
        """
        found = self._read(*self.pairs[index])
        if found is None:
            for other in generator.permutation(len(self.pairs)):
                found = self._read(*self.pairs[other])
                if found is not None:
                    break
            else:
                shown = f"none of {len(self.pairs)} pairs can be read, {self.pairs[index][0]} among them"
                raise Refused("hr", self.pairs[index][0], "pictures that can be read are needed", shown)
        (hr, lr), scale, side = found, self.scale, self.crop // self.scale
        y, x = (int(generator.integers(n - side + 1)) for n in lr.shape[1:])
        turns, mirror = int(generator.integers(4)), bool(generator.integers(2))
        made = []
        for picture, s in ((hr, scale), (lr, 1)):
            square = picture[:, s * y : s * (y + side), s * x : s * (x + side)]
            square = torch.rot90(square, turns, (1, 2))
            made.append((square.flip(2) if mirror else square).contiguous())
        return made[0], made[1]

    def _read(self, large: Path, little: Path) -> tuple[Tensor, Tensor] | None:
        if large in self._broken:
            return None
        try:
            return read_pair(large, little, self.scale)
        except MemoryError:
            raise
        except Exception as error:  # whatever is wrong with a file costs that pair alone
            _warn(large, error)
            self._broken.add(large)
            return None


def read_pair(large: Path, little: Path, scale: int) -> tuple[Tensor, Tensor]:
    """hr and lr, whole, (3, height, width).

    Raises:
        OSError, ValueError: one of them cannot be read, or has another size.
    """
    hr, lr = (images.read(path).colour[0].expand(3, -1, -1) for path in (large, little))
    if list(hr.shape[1:]) != [scale * side for side in lr.shape[1:]]:
        sizes = " and ".join(f"{p.shape[2]}x{p.shape[1]}" for p in (hr, lr))
        raise Refused("hr", large, f"{scale} times the size of its low resolution is needed", f"{large}, {little}: {sizes}")
    return hr, lr


def matched(hr: Path, lr: Path, scale: int) -> list[tuple[Path, Path]]:
    """The pairs of two folders, in the order of hr: of equal names, or of names that are equal without their marks.

    Marks are _HR, _GT, _LR, _LQ, a number after them, and x4; a mark of another scale than this one belongs to no pair.

    Raises:
        Refused: a folder has no pictures, or a picture has no partner, or several.
    """
    names = []
    for key, root in (("hr", hr), ("lr", lr)):
        paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in images.SUFFIXES and p.is_file())
        if not paths:
            raise Refused(key, root, "it holds no pictures" if root.is_dir() else "there is no such folder")
        names.append({path: path.relative_to(root).with_suffix("").as_posix() for path in paths})
    large, little = names
    if hr.resolve() == lr.resolve():
        lows = re.compile(r"[_-](LR|LQ)|[_-]?x\d+$", re.IGNORECASE)
        large = {path: name for path, name in large.items() if not lows.search(name.rpartition("/")[2])}
        little = {path: name for path, name in little.items() if path not in large}
    elif sorted(large.values()) == sorted(little.values()) and len(set(large.values())) == len(large):
        of = {name: path for path, name in little.items()}
        return [(path, of[name]) for path, name in large.items()]
    partners: dict[str, list[Path]] = {}
    for path, name in little.items():
        bare, number = _bare(name)
        if number in ("", str(scale)):
            partners.setdefault(bare, []).append(path)
    pairs = [(path, found) for path, name in large.items() for found in partners.get(_bare(name)[0], [])]
    counts = Counter([path for pair in pairs for path in pair])
    for key, root, own in (("hr", hr, list(large)), ("lr", lr, [path for some in partners.values() for path in some])):
        alone, several = [path for path in own if not counts[path]], [path for path in own if counts[path] > 1]
        if alone or several:
            said = "have no partner" if alone else "have several partners"
            shown = (
                f"{len(alone or several)} of {len(own)} pictures of {root} {said}: {_listed([(p,) for p in alone or several])}"
            )
            needed = f"a file of the same name is needed, but for marks such as _HR, _LR{scale}, x{scale}"
            raise Refused(key, root, needed, shown)
    return pairs


_MARKS = re.compile(r"([_-](HR|GT|LR|LQ)|([_-]?x(?P<x>\d+))|(?<=[RQrq])(?P<n>\d+))+$", re.IGNORECASE)


def _bare(name: str) -> tuple[str, str]:
    """A name without its marks, and the scale that they say, or nothing."""
    found = _MARKS.search(name)
    return (name, "") if found is None else (name[: found.start()], found["x"] or found["n"] or "")


def _listed(paths: Sequence[tuple[Path, ...]]) -> str:
    """The names of some files."""
    return ", ".join(some[0].name for some in paths[:5]) + (", ..." if len(paths) > 5 else "")


class Bundled:
    """scikit-image's pictures and, where it is installed, scikit-learn's `flower`, cropped, mirrored and turned at random.

    They are the pictures of `TRAINED` that are at least as large as the crop.

    Args:
        crop: side of the squares.
        repeat: crops of each picture in an epoch.
        shrink: see `cropped`.
        names: some of the pictures; default: all.

    Raises:
        Refused: a name is none of them, or no picture is left.
    """

    def __init__(self, crop: int, repeat: int = 1, shrink: float = 1.0, names: Sequence[str] = ()) -> None:
        self.crop, self.repeat, self.shrink = _positive("crop", crop), _positive("repeat", repeat), _shrink(shrink)
        every = [Path(file).stem for files in TRAINED.values() for file in files]
        for name in names:
            if name not in every:
                raise Refused("names", name, f"one of {', '.join(every)}")
        pictures = {
            name: colour
            for name, colour in _bundled(TRAINED).items()
            if min(colour.shape[-2:]) >= crop and (not names or name in names)
        }
        if not pictures:
            raise Refused("crop", crop, "no bundled picture is as large (scikit-image, of the extra `images`, brings them)")
        self.names, self._pictures = list(pictures), list(pictures.values())

    def __len__(self) -> int:
        return self.repeat * len(self.names)

    def picture(self, index: int, generator: np.random.Generator) -> Tensor:
        """A crop of one of the pictures."""
        return cropped(self._pictures[index % len(self.names)], self.crop, generator, self.shrink)

    def whole(self, name: str) -> Tensor:
        """The picture with one of the `names`, (3, height, width), uncropped."""
        return self._pictures[self.names.index(name)].float() / 255


@dataclass(frozen=True)
class Procedural:
    """Pictures of `procedural.picture`: no data, and no picture twice.

    Args:
        crop: side of the pictures.
        length: pictures of an epoch.
    """

    crop: int
    length: int = 1000

    def __post_init__(self) -> None:
        _positive("crop", self.crop)
        _positive("length", self.length)

    def __len__(self) -> int:
        return self.length

    def picture(self, index: int, generator: np.random.Generator) -> Tensor:
        """A picture, drawn with this generator alone."""
        return procedural.picture(self.crop, generator)


class Mixed:
    """Pictures of several sources. Each comes from a source that is drawn by the weights, whatever the index.

    Args:
        parts: (source, weight) each.
        length: pictures of an epoch; default: those of all sources.

    Raises:
        Refused: there is no source, a weight is not positive, or the crops differ.
    """

    def __init__(self, parts: Sequence[tuple[Source, float]], length: int | None = None) -> None:
        weights = np.array([weight for _, weight in parts], float)
        if not len(parts) or not np.isfinite(weights).all() or weights.min() <= 0:
            raise Refused("weights", weights.tolist(), "at least one source, and positive weights, are needed")
        crops = {source.crop for source, _ in parts}
        if len(crops) > 1:
            raise Refused("crop", sorted(crops), "one crop for all sources is needed")
        self.crop = crops.pop()
        self.sources, self.shares = [source for source, _ in parts], weights / weights.sum()
        self.length = sum(map(len, self.sources)) if length is None else _positive("length", length)

    def __len__(self) -> int:
        return self.length

    def picture(self, index: int, generator: np.random.Generator) -> Made:
        """A picture of one of the sources."""
        source = self.sources[generator.choice(len(self.sources), p=self.shares)]
        return source.picture(int(generator.integers(len(source))), generator)


def held_out() -> dict[str, Tensor]:
    """The pictures of `HELD_OUT`, whole, (3, height, width) by name; `china` only where scikit-learn is installed."""
    return {name: colour.float() / 255 for name, colour in _bundled(HELD_OUT).items()}


def cropped(colour: Tensor, crop: int, generator: np.random.Generator, shrink: float = 1.0) -> Tensor:
    """A square of (3, height, width), anywhere, in one of its eight positions; float32 in [0, 1], of uint8 too.

    Args:
        colour: a picture.
        crop: side of the square.
        generator: draws everything that is random.
        shrink: above 1, the square is larger by a factor from 1 to shrink, drawn evenly in its logarithm (and at most what
            fits), and antialiased bicubic interpolation brings it to its size.
    """
    side = min(*colour.shape[-2:], round(crop * shrink ** generator.random())) if shrink > 1 else crop
    y, x = (int(generator.integers(n - side + 1)) for n in colour.shape[-2:])
    turns, mirror = int(generator.integers(4)), bool(generator.integers(2))
    square = torch.rot90(colour[:, y : y + side, x : x + side], turns, (1, 2))
    square = square.flip(2) if mirror else square
    square = square.float() / 255 if square.dtype == torch.uint8 else square
    if side > crop:
        square = bicubic(square[None], (crop, crop))[0].clamp(0, 1)
    return square.contiguous()


def _bundled(names: dict[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """Bundled pictures by name, uint8, (3, height, width)."""
    found = {}
    for package, files in names.items():
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or [])[:1] if spec else []:
            for path in (Path(root, _FOLDERS[package], file) for file in files):
                if path.exists():  # releases differ in what they bring
                    found[path.stem] = (images.read(path).colour[0].expand(3, -1, -1) * 255).round().byte()
    return found


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height of a picture, from the header alone; None, with a warning, where there is none."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            return image.size
    except Exception as error:
        _warn(path, error)
        return None


def _warn(path: Path, error: Exception) -> None:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    warnings.warn(f"{path}: cannot be read and is left out ({reason})", stacklevel=4)


def _shrink(value: float) -> float:
    if not 1 <= value < math.inf:
        raise Refused("shrink", value, "a number of at least 1 is needed")
    return value


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise Refused(name, value, "at least 1 is needed")
    return value
