"""How near upscaled pictures are to the truth, measured as the field reports it; and results that may be compared, or not.

    Y = 16 + 65.481 R + 128.553 G + 24.966 B,      R, G, B in {0, 1/255, ..., 1}
    PSNR = 10 log10(255^2 / mean (Y - Y')^2)
    SSIM = mean [(2 m m' + c1) (2 s'' + c2)] / [(m^2 + m'^2 + c1) (s + s' + c2)],    c1 = (0.01 255)^2,  c2 = (0.03 255)^2

with Y the brightness of BT.601, from 16 to 235, not rounded, and a border cut off; m, m', s, s', s'' are the means, variances
and covariance under a Gaussian window of std 1.5 and 11 x 11 pixels, where it lies within the picture (Wang et al. 2004).
Other metrics are of R, G, B of the whole picture (`pictures.metrics`).

A number without its protocol means little: `document` says what was measured and how, and `compare` refuses two that differ.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dosde.check import Refused

from . import whole
from .pictures import degradation
from .pictures import io as images
from .pictures.io import Array
from .pictures.metrics import Metric, rounded, sides
from .pictures.metrics import metrics as metrics
from .pictures.metrics import psnr as psnr
from .pictures.metrics import ssim as ssim

PROTOCOL = ("scale", "border", "crop", "channel", "lr", "lr_sha256", "pictures", "metrics", "seed", "nfe")
"""What two results must have in common to be compared."""

_CHANNEL = "Y of BT.601, 16 to 235, of R, G, B rounded to 8 bits"
_INFINITE = "inf"  # which JSON has no number for


# -- Pictures ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """The files of each picture, by its name; a picture can be measured where there is one file each.

    Args:
        scale: of low to high resolution.
        crop: see `found`.
        hr: files of high resolution.
        lr: files of low resolution, or None where there is no folder of them.
        results: files of results, or None where there is no folder of them.
        unpaired: files of low resolution and of results that belong to no picture.
    """

    scale: int
    crop: int | None
    hr: Mapping[str, Sequence[Path]]
    lr: Mapping[str, Sequence[Path]] | None
    results: Mapping[str, Sequence[Path]] | None
    unpaired: Sequence[Path] = ()

    def unpaired_lines(self) -> list[str]:
        """What has no partner, a line for each folder."""
        lines = []
        for folder in dict.fromkeys(path.parent for path in self.unpaired):
            names = [path.name for path in self.unpaired if path.parent == folder]
            files = "1 file is" if len(names) == 1 else f"{len(names)} files are"
            shown = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            lines.append(f"note    {folder}: {files} no partner of a picture of high resolution ({shown})")
        return lines


def found(
    folder: Path | None,
    scale: int,
    crop: int | None = None,
    results: Path | None = None,
    *,
    hr: Path | None = None,
    lr: Path | None = None,
) -> Pairs:
    """The pictures of a data set, and those that were made of them: see docs/evaluate.md, "Pictures".

    To the picture NAME of high resolution belong NAME, NAMExSCALE and NAME_xSCALE of low resolution, whatever the suffix, and
    to NAME_HR also NAME_LR and NAME_LRSCALE. A result may have these names too, or the name of low resolution followed by
    _xSCALE.

    Args:
        folder: it holds hr/ and perhaps lr/, under the names that data sets have, or pictures; or hr is given.
        scale: a side of high resolution over a side of low resolution.
        crop: the side of a square in the middle of each picture, in pixels of high resolution; None for whole pictures.
        results: a folder of results.
        hr: a folder of high resolution.
        lr: a folder of low resolution.

    Raises:
        Refused: for a folder that is missing, empty or ambiguous, and a crop that the scale does not divide.
        OSError: for a folder that cannot be read.
    """
    if crop is not None and (crop < 1 or crop % scale):
        raise Refused("crop", crop, f"a multiple of the scale, {scale}, is needed")
    layout = _Layout(scale)
    if folder is not None:
        high, low, unpaired = layout.of_folder(folder)
    elif hr is not None:
        high, low, unpaired = layout.pictures("hr", hr), None if lr is None else layout.pictures("lr", lr), []
    else:
        raise Refused("pairs", None, "a folder, or hr=, is needed", "None")
    files = _by_stem(high)
    lows = None if low is None else _matched(files, low, layout.of_high, layout.of_low)
    made = None
    if results is not None:
        made = _matched(files, layout.pictures("results", results), layout.of_high, layout.of_result)
    unpaired = [*unpaired, *(path for both in (lows, made) if both is not None for path in both[1])]
    return Pairs(scale, crop, files, None if lows is None else lows[0], None if made is None else made[0], unpaired)


def _by_stem(paths: Sequence[Path]) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in paths:
        files.setdefault(path.stem, []).append(path)
    return files


def _matched(
    high: Mapping[str, object], others: Sequence[Path], of_high: Callable[[str], set[str]], of_other: Callable[[str], set[str]]
) -> tuple[dict[str, list[Path]], list[Path]]:
    """The files that belong to each picture of high resolution, and those that belong to none.

    A name is cut only where the cut name, or the whole one, is not that of another picture.
    """
    keys = {name: {name, *(of_high(name) - set(high))} for name in high}
    found: dict[str, list[Path]] = {name: [] for name in high}
    alone = []
    for path in others:
        own = {path.stem} if path.stem in high else {path.stem, *of_other(path.stem)}
        names = [name for name in high if keys[name] & own]
        for name in names:
            found[name].append(path)
        if not names:
            alone.append(path)
    return found, alone


_ROLE = re.compile(
    r"(?P<base>.+?)(?:[_-]SRF[_-](?P<srf>\d+))?[_-](?P<role>HR|HQ|GT|LR|LQ)(?:[_-]?x?(?P<scale>\d+))?", re.IGNORECASE
)
_HIGH, _LOW = ("hr", "hq", "gt"), ("lr", "lq")
_HIGH_FOLDER = re.compile(r"(hr|hq|gt|gtmod\d+|high|target|groundtruth)")
_LOW_FOLDER = re.compile(r"(lr|lq|low|input)(bic(ubic)?)?(x\d+)?")


@dataclass(frozen=True)
class _Layout:
    """How data sets name folders and files at a scale: DIV2K, Set5 to Urban100, RealSR, DRealSR, BasicSR."""

    scale: int

    def of_folder(self, folder: Path) -> tuple[list[Path], list[Path] | None, list[Path]]:
        """Files of high and of low resolution (None: there are none), and others."""
        if not folder.is_dir():
            raise Refused("pairs", folder, "no such folder")
        inside = sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_dir())
        mixed = images.listed(folder)[0]
        high, low = (
            [path for path in inside if path.name.lower() == exact] or ([] if mixed else self._folders(inside, name))
            for exact, name in (("hr", _HIGH_FOLDER), ("lr", _LOW_FOLDER))
        )
        for which, found in (("hr", high), ("lr", low)):
            if len(found) > 1:
                shown = f"{folder} has {', '.join(f'{path.name}/' for path in found)}"
                raise Refused("pairs", folder, f"one of them is needed: --hr and --lr say which (--{which})", shown)
        if low and not high:
            raise Refused("pairs", folder, f"it has {low[0].name}/, and hr/ beside it is needed")
        if high:
            return self.pictures("pairs", high[0]), self.pictures("pairs", low[0]) if low else None, []
        below = self._of_scale(folder)
        if not mixed and below is not None:
            return self.of_folder(below)
        return self._split(self.pictures("pairs", folder))

    def pictures(self, argument: str, folder: Path) -> list[Path]:
        """The pictures in a folder, or in the folder of the scale in it: X4."""
        if not folder.is_dir():
            raise Refused(argument, folder, "no such folder")
        found = images.listed(folder)[0]
        below = self._of_scale(folder)
        if not found and below is not None:
            found = images.listed(below)[0]
        if not found:
            raise Refused(argument, folder, f"a folder with pictures ({' '.join(images.SUFFIXES)}) is needed")
        return found

    def of_high(self, stem: str) -> set[str]:
        """What is left of the name of a picture of high resolution: a of a_HR, and of a_x4, as DRealSR has it."""
        return self._bases(stem, _HIGH) | ({stem.removesuffix(f"_x{self.scale}")} - {stem})

    def of_low(self, stem: str) -> set[str]:
        """What is left of the name of a picture of low resolution: a of ax4, a_x4, a_LR, a_LR4, and DRealSR's a_x1."""
        cut = {
            stem.removesuffix(end) for end in (f"_x{self.scale}", f"x{self.scale}", f"_X{self.scale}", f"X{self.scale}", "_x1")
        }
        return (cut - {stem}) | self._bases(stem, _LOW)

    def of_result(self, stem: str) -> set[str]:
        """What is left of the name of a result, also of one that `dosde upscale` made of low resolution."""
        once = self.of_low(stem) | self.of_high(stem)
        return once.union(*(self.of_low(one) for one in once))

    def _bases(self, stem: str, roles: Sequence[str]) -> set[str]:
        found = self._role(stem)
        return {found[1], *({f"{found[1]}_SRF_{self.scale}"} if found[2] else ())} if found and found[0] in roles else set()

    def _role(self, stem: str) -> tuple[str, str, bool] | None:
        """(role, base, SRF) of a name such as img_001_SRF_4_HR; None where it has none at this scale."""
        match = _ROLE.fullmatch(stem)
        if match is None or any(match[part] and int(match[part]) != self.scale for part in ("srf", "scale")):
            return None
        return match["role"].lower(), match["base"], match["srf"] is not None

    def _split(self, paths: list[Path]) -> tuple[list[Path], list[Path] | None, list[Path]]:
        """The pictures of one folder by the ends of their names."""
        roles = {path: role[0] if (role := self._role(path.stem)) else None for path in paths}
        if any(role in _HIGH for role in roles.values()):
            high = [path for path in paths if roles[path] in _HIGH]
            low = [path for path in paths if roles[path] in _LOW]
            return high, low or None, [path for path in paths if path not in high and path not in low]
        stems = {path.stem for path in paths}
        low = [path for path in paths if self.of_low(path.stem) & stems]
        return [path for path in paths if path not in low], low or None, []

    def _folders(self, folders: Sequence[Path], name: re.Pattern[str]) -> list[Path]:
        """The folders whose name has such a word, and no other scale."""
        found = []
        for path in folders:
            words = re.split("[^a-z0-9]+", path.name.lower())
            scales = {int(digits) for digits in re.findall(r"x(\d+)", path.name.lower())}
            if any(name.fullmatch(word) for word in words) and (not scales or self.scale in scales):
                found.append(path)
        return found

    def _of_scale(self, folder: Path) -> Path | None:
        """The folder of the scale in a folder."""
        names = {f"x{self.scale}", f"{self.scale}x", f"{self.scale}", f"image_srf_{self.scale}"}
        return next((path for path in sorted(folder.iterdir()) if path.name.lower() in names and path.is_dir()), None)


def check_border(pairs: Pairs, border: int) -> None:
    """Checks a border.

    Raises:
        Refused: for a border below 0, and one that leaves nothing of the largest picture.
    """
    if pairs.crop is None:
        sides = [
            side // pairs.scale * pairs.scale for files in pairs.hr.values() for path in files for side in _least_side(path)
        ]
    else:
        sides = [pairs.crop]
    most = (max(sides, default=0) - 1) // 2
    if border < 0 or 0 <= most < border:
        raise Refused("border", border, f"a number from 0{f' to {most}' if most >= 0 else ''} is needed, to leave something")


def _least_side(path: Path) -> list[int]:
    """The lesser side, read from the header alone; none where it cannot be read, which is that picture's failure later."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            return [min(image.size)]
    except Exception:
        return []


@dataclass(frozen=True)
class Row:
    """What was measured of a picture.

    Args:
        values: by metric.
        hr: a digest of the pixels of high resolution.
        lr: a digest of the pixels of low resolution, or None where they were made here.
        files: see `files_digest`.
    """

    values: Mapping[str, float]
    hr: bytes
    lr: bytes | None
    files: str = ""


def measured(pairs: Pairs, name: str, by: Mapping[str, Metric], upscaled: Callable[[Tensor], Tensor] | None = None) -> Row:
    """Measures a picture by all metrics: the one in `results`, or what `upscaled` makes of the one of low resolution.

    Args:
        pairs: the files.
        name: of the picture.
        by: the metrics, by name.
        upscaled: (1, 1 or 3, height, width) -> (1, 1 or 3, scale height, scale width), in [0, 1].

    Raises:
        ValueError, OSError: where a file is missing, ambiguous, broken or of another size.
    """
    scale, crop = pairs.scale, pairs.crop
    whole = images.read(_only(pairs.hr[name], "of high resolution")).visible
    height, width = (side // scale * scale for side in whole.shape[-2:])
    least = crop or scale
    if min(height, width) < least:
        raise ValueError(f"it has {sides(whole)} pixels; {least}x{least} or more are needed")
    y, x = ((side - crop) // 2 // scale * scale if crop else 0 for side in (height, width))
    bottom, right = (y + crop, x + crop) if crop else (height, width)
    box = ..., slice(y, bottom), slice(x, right)
    pixels = rounded(whole[box])
    truth = torch.from_numpy(pixels)[None].float() / 255

    low = None
    if pairs.lr is not None:
        low = images.read(_only(pairs.lr[name], "of low resolution")).visible
        if (low.shape[-2] * scale, low.shape[-1] * scale) != (height, width):
            needed = f"{width // scale}x{height // scale}"
            raise ValueError(f"of low resolution it has {sides(low)} pixels; {needed}, of {sides(whole)}, are needed")
        low = low[..., y // scale : bottom // scale, x // scale : right // scale].contiguous()
    if pairs.results is not None:
        picture = images.read(_only(pairs.results[name], "among the results")).visible
        if picture.shape[-2:] in (whole.shape[-2:], (height, width)):
            picture = picture[box]
        elif picture.shape[-2:] != truth.shape[-2:]:
            raise ValueError(f"the result has {sides(picture)} pixels; {width}x{height} are needed")
    elif upscaled is not None:
        made = low
        if made is None:
            made = degradation.degrade(truth[0], scale, 0, degradation.BICUBIC)[None, : whole.shape[1]]
        picture = upscaled(made)
    else:
        raise Refused("upscaled", None, "what makes the pictures is needed, or results", "None")
    picture = torch.from_numpy(rounded(picture))[None].float() / 255
    values = {}
    for key, metric in by.items():
        values[key] = metric.value(picture, truth)
        if math.isnan(values[key]):
            raise ValueError(f"{key} is not a number")
    given = None if low is None else (low * 65535).round().to(torch.int32).numpy()
    digests = _digest(name, pixels), None if given is None else _digest(name, given)
    return Row(values, *digests, files_digest(pairs, name))


def files_digest(pairs: Pairs, name: str) -> str:
    """The SHA-256 of the files of a picture: while it stays, so does what was measured.

    Raises:
        OSError: where one cannot be read.
    """
    whole = hashlib.sha256()
    for files in (pairs.hr[name], (pairs.lr or {}).get(name, ()), (pairs.results or {}).get(name, ())):
        for path in files:
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def _only(files: Sequence[Path], where: str) -> Path:
    if len(files) != 1:
        held = f"{len(files)} pictures ({', '.join(path.name for path in files)})" if files else "no picture"
        raise ValueError(f"{held} {where}; one is needed")
    return files[0]


def _digest(name: str, pixels: Array) -> bytes:
    return hashlib.sha256(os.fsencode(f"{name} {pixels.shape}") + np.ascontiguousarray(pixels).tobytes()).digest()


# -- Results ----------------------------------------------------------------------------------------------------------------


def document(
    pairs: Pairs,
    by: Mapping[str, Metric],
    rows: Mapping[str, Row],
    failed: Mapping[str, str],
    *,
    border: int,
    seed: int | None,
    nfe: int | None,
    method: Mapping[str, object],
    complete: bool = True,
) -> dict[str, Any]:
    """The results as JSON holds them: protocol, method, means over the pictures that were measured, each picture, failures.

    An infinite value is the string "inf", and so is the mean of values of which one is infinite.

    Args:
        pairs: the files.
        by: the metrics, by name.
        rows: what was measured, by picture.
        failed: why others failed, by picture.
        border: pixels cut off for PSNR and SSIM.
        seed: of the noise, or None.
        nfe: model calls a picture, or None.
        method: what made the pictures.
        complete: whether all pictures have had their turn; if not, `resumed` goes on from the document.
    """
    digests = [row.lr for _, row in sorted(rows.items()) if row.lr is not None]
    protocol = {
        "scale": pairs.scale,
        "border": border,
        "crop": pairs.crop,
        "channel": _CHANNEL,
        "lr": "antialiased bicubic, 8 bits" if pairs.lr is None else "given",
        "lr_sha256": None if pairs.lr is None else hashlib.sha256(b"".join(digests)).hexdigest(),
        "pictures": {
            "count": len(rows),
            "sha256": hashlib.sha256(b"".join(row.hr for _, row in sorted(rows.items()))).hexdigest(),
        },
        "metrics": {name: metric.text for name, metric in by.items()},
        "seed": seed,
        "nfe": nfe,
    }
    return {
        "protocol": protocol,
        "method": dict(method),
        "lower_better": [name for name, metric in by.items() if metric.lower_better],
        "mean": _plain(means(rows)),
        "pictures": {name: _plain(row.values) for name, row in sorted(rows.items())},
        "failed": dict(failed),
        "unpaired": [str(path) for path in pairs.unpaired],
        "complete": complete,
    } | ({} if complete else {"rows": {name: _kept(row) for name, row in sorted(rows.items())}})


def _kept(row: Row) -> dict[str, str | None]:
    """The digests of a row, for `resumed`."""
    return {"hr": row.hr.hex(), "lr": None if row.lr is None else row.lr.hex(), "files": row.files}


def resumed(path: Path, now: Mapping[str, Any]) -> dict[str, Row]:
    """What an evaluation that was stopped has measured; nothing where there is none.

    Args:
        path: of the results.
        now: a `document` of this evaluation.

    Raises:
        Refused: for what was measured in another way.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["complete"] is not False:
            return {}
        rows = {
            name: Row(
                {key: float(value) for key, value in held["pictures"][name].items()},
                bytes.fromhex(row["hr"]),
                None if row["lr"] is None else bytes.fromhex(row["lr"]),
                row["files"],
            )
            for name, row in held["rows"].items()
        }
        then = {**held["protocol"], **held["method"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    wanted = json.loads(json.dumps({**now["protocol"], **now["method"]}))
    for key in wanted:
        if key not in ("pictures", "lr_sha256") and then.get(key) != wanted[key]:
            shown = f"{path} holds a stopped evaluation with {key} {json.dumps(then.get(key))}, not {json.dumps(wanted[key])}"
            raise Refused("out", path, "another name is needed, or delete it", shown)
    return rows


def means(rows: Mapping[str, Row]) -> dict[str, float]:
    """The means by metric; none where there is no row."""
    names = next(iter(rows.values())).values if rows else ()
    return {name: fmean(row.values[name] for row in rows.values()) for name in names}


def _plain(values: Mapping[str, float]) -> dict[str, float | str]:
    return {name: _INFINITE if value == math.inf else value for name, value in values.items()}


def check_out(path: Path) -> None:
    """Finds out whether `write` could write here.

    Raises:
        Refused: where it could not.
    """
    if path.is_dir():
        raise Refused("out", path, "it is a folder, and a file is needed")
    if path.suffix.lower() in images.SUFFIXES:  # one of those that are measured, or somebody's
        raise Refused("out", path, f"it is called as a picture, and a name such as {path.stem}.json is needed")
    special = any(str(path.parent.resolve()).startswith(place) for place in ("/dev/", "/proc/")) or str(path.parent) == "/dev"
    if special or (path.exists() and not path.is_file()):  # /dev/stdout, or a named pipe, which the results would replace
        raise Refused("out", path, "a file in an ordinary folder is needed")
    try:
        whole.check(path)
    except OSError as error:
        raise Refused("out", path, f"{error.strerror}: a file in a folder that can be written to is needed") from None


def check_ours(path: Path) -> None:
    """Refused where a file is there that holds no results, of a whole evaluation or of one that was stopped."""
    if not path.exists() or not path.stat().st_size:
        return
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        held = None
    if not (isinstance(held, dict) and {"protocol", "pictures"} <= set(held)):
        raise Refused("out", path, "it holds no results of dosde evaluate; another name is needed, or delete it")


def write(path: Path, made: Mapping[str, Any]) -> None:
    """Writes a `document` as JSON, whole or not at all.

    Raises:
        OSError: where it cannot be written.
    """
    with whole.file(path) as part:
        part.write_text(json.dumps(made, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def compare(paths: Sequence[Path], across: Sequence[str] = ()) -> str:
    """A table of the means in files that `write` wrote, the best of each column with a star.

    Args:
        paths: the files.
        across: keys of the protocol that may differ; plain ones get a column.

    Raises:
        Refused: for an unknown key, a file that `write` did not write, and the first key of the protocol that differs.
    """
    for key in across:
        if key not in PROTOCOL:
            raise Refused("across", key, f"of {', '.join(PROTOCOL)}")
    made = {str(path): _read(path) for path in paths}
    protocols = {path: one["protocol"] for path, one in made.items()}
    (first, wanted), *others = protocols.items()
    for key in (key for key in PROTOCOL if key not in across):
        for path, other in others:
            if wanted[key] != other[key]:
                one, two = (json.dumps(_differing(a[key], b[key])) for a, b in ((wanted, other), (other, wanted)))
                said = f"{one} in {first} and {two} in {path}"
                raise Refused(
                    "compare", key, f"the same is needed, or --across {key}", f"the protocols differ in {key}: {said}"
                )
    shown = [key for key in PROTOCOL if key in across and not isinstance(wanted[key], dict)]
    mean = {path: {name: float(value) for name, value in one["mean"].items()} for path, one in made.items()}
    names = list(dict.fromkeys(name for values in mean.values() for name in values))
    lower = {name for one in made.values() for name in one["lower_better"]}
    best = {name: (min if name in lower else max)(values[name] for values in mean.values() if name in values) for name in names}
    rows = [
        [path, *("-" if protocols[path][key] is None else str(protocols[path][key]) for key in shown)]
        + [f"{values[name]:.4f}{'*' if values[name] == best[name] else ' '}" if name in values else "- " for name in names]
        for path, values in mean.items()
    ]
    header = ["file", *shown, *(f"{name} " for name in names)]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    note = f"* best{''.join(f'; of {name} the least' for name in names if name in lower)}"
    return "\n".join([*(line(cells, widths) for cells in (header, *rows)), note])


def line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A line of a table: the first cell to the left, the others to the right."""
    first, *rest = (f"{cell:{'>' if i else '<'}{width}}" for i, (cell, width) in enumerate(zip(cells, widths, strict=True)))
    return "  ".join([first, *rest]).rstrip()


def _differing(value: object, other: object) -> object:
    """The entries of one table that the other does not have."""
    if isinstance(value, dict) and isinstance(other, dict):
        return {key: entry for key, entry in value.items() if key not in other or other[key] != entry}
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        held: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise Refused("compare", path, f"{why}; a file that `dosde evaluate -o` wrote is needed") from None
    match held:
        case {"complete": False}:
            raise Refused("compare", path, "it is incomplete; the command that wrote it goes on from there")
        case {"protocol": dict() as protocol, "mean": dict() as mean, "lower_better": list()}:
            known = all(key in protocol for key in PROTOCOL)
            if known and all(value == _INFINITE or isinstance(value, int | float) for value in mean.values()):
                return dict(held)
    raise Refused("compare", path, "it holds something else; a file that `dosde evaluate -o` wrote is needed")
