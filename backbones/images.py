"""Pictures in files: read with orientation, depth, alpha and colour profile kept; written whole or not at all.

Pillow reads what people have; OpenCV takes over for 16-bit colour, which Pillow would cut to 8 bits. Both come with the extra
`images`.
"""

import os
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, np.dtype[Any]]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

# What each EXIF orientation asks of an array (rows, columns, ...) to stand upright.
_UPRIGHT: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@dataclass(frozen=True)
class Picture:
    """Colour (1, 1 or 3, height, width) and alpha (1, 1, height, width) or None in [0, 1]; bits a channel; ICC profile."""

    colour: Tensor
    alpha: Tensor | None
    bits: int
    profile: bytes | None


def read(path: Path) -> Picture:
    """The first picture in a file, upright. Errors: OSError or ValueError where it cannot be read."""
    import PIL.Image

    with PIL.Image.open(path) as image:
        # Before getexif(), which may load the pixels and forget the tiles.
        wide = any(";16" in str(tile[3]) for tile in image.tile) and image.mode in ("RGB", "RGBA", "LA")
        orientation = int(image.getexif().get(0x0112, 1))
        profile = image.info.get("icc_profile")
        if wide:
            array, most = _read_wide(path), 65535
        elif image.mode.startswith("I;16"):
            array, most = np.asarray(image, dtype=np.uint16), 65535
        elif image.mode in ("I", "F"):
            array = np.asarray(image)
            most = 255 if array.max(initial=0) <= 255 else 65535
            array = array.clip(0, most)
            profile = None
        else:
            array, most = np.asarray(image.convert(_plain_mode(image))), 255
            if image.mode == "CMYK":
                profile = None  # of the inks, not of the colours that they became
    array = _UPRIGHT.get(orientation, _UPRIGHT[1])(array)
    values = torch.from_numpy(array.astype(np.float32) / most)
    planes = values[None, None] if values.ndim == 2 else values.permute(2, 0, 1)[None]
    count = planes.shape[1]
    colour, alpha = (planes[:, :-1], planes[:, -1:]) if count in (2, 4) else (planes, None)
    return Picture(colour.contiguous(), alpha, 8 if most == 255 else 16, profile)


def write(path: Path, picture: Picture) -> None:
    """As PNG, or in the format of the suffix: to a temporary file beside it, then moved into place."""
    planes = picture.colour if picture.alpha is None else torch.cat([picture.colour, picture.alpha], 1)
    most = 2**picture.bits - 1
    array = (planes[0].permute(1, 2, 0).clamp(0, 1) * most).round().numpy()
    array = array.astype(np.uint8 if picture.bits == 8 else np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        if picture.bits == 16 and array.shape[2] > 1:
            _write_wide(name, array, picture.profile)
        else:
            import PIL.Image

            image = PIL.Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
            image.save(name, icc_profile=picture.profile)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _plain_mode(image: "Image") -> str:
    """The mode of 8-bit grey or colour, with alpha where there is any, that holds all of a picture."""
    mode, info = image.mode, image.info
    if mode in ("L", "LA", "RGB", "RGBA"):
        return mode
    if mode == "1":
        return "L"
    return "RGBA" if "transparency" in info or mode in ("PA", "RGBa", "La") else "RGB"


def _read_wide(path: Path) -> Array:
    import cv2

    array = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError("16-bit picture that cannot be decoded")
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}[array.shape[2]]
    return array[..., order]  # type: ignore[no-any-return]


def _write_wide(name: str, array: Array, profile: bytes | None) -> None:
    import cv2

    order = {2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[array.shape[2]]
    done, data = cv2.imencode(Path(name).suffix, array[..., order])
    if not done:
        raise ValueError(f"16-bit colour cannot be written as {Path(name).suffix}; use .png or .tif")
    encoded: bytes = data.tobytes()
    if profile and name.lower().endswith(".png"):  # OpenCV writes none: its chunk goes behind the header's 33 bytes
        chunk = b"iCCPprofile\0\0" + zlib.compress(profile)
        length, check = len(chunk) - 4, zlib.crc32(chunk)
        encoded = encoded[:33] + length.to_bytes(4, "big") + chunk + check.to_bytes(4, "big") + encoded[33:]
    Path(name).write_bytes(encoded)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
