"""Pictures in files: read with orientation, depth, alpha and colour profile kept; written whole or not at all.

Pillow reads what people have; OpenCV takes over for 16-bit colour, which Pillow would cut to 8 bits. Both come with the extra
`images`.
"""

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from backbones import whole
from dosde.check import Refused, RefusedType, require

from . import note
from .resize import bicubic

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, np.dtype[Any]]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_WIDE = (".png", ".tif", ".tiff")
_ALPHA = (".png", ".tif", ".tiff", ".webp", ".gif")

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
    """A picture as a file holds it.

    Args:
        colour: (1, 1 or 3, height, width) in [0, 1].
        alpha: (1, 1, height, width) in [0, 1], or None.
        bits: 8 or 16, of each channel.
        profile: the ICC profile, or None.
    """

    colour: Tensor
    alpha: Tensor | None
    bits: int
    profile: bytes | None


def listed(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted, known by their suffixes; hidden files and folders inside it are left out.

    Raises:
        OSError: where the folder cannot be read.
    """
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "." and not p.is_dir())


def read(path: Path) -> Picture:
    """The first picture in a file, upright.

    Raises:
        OSError, ValueError: where it cannot be read.
    """
    import PIL.Image

    with PIL.Image.open(path) as image:
        # Before anything loads the pixels and forgets the tiles.
        wide = any(";16" in str(tile[3]) for tile in image.tile) and image.mode in ("RGB", "RGBA", "LA")
        return _picture(image, _read_wide(path) if wide else None)


def of_pil(image: "Image") -> Picture:
    """The picture in a PIL image of any mode, upright.

    Raises:
        ValueError: for 32 bits a pixel, or no pixel.
    """
    if 0 in image.size:
        raise Refused("image", image, "at least one pixel is needed", f"{image.size[0]}x{image.size[1]}")
    return _picture(image, None)


def of_array(array: Array | Tensor) -> list[Picture]:
    """The pictures in an array or a tensor.

    Args:
        array: a numpy array (height, width[, channels]) or (batch, height, width, channels), or a tensor ([batch,] channels,
            height, width), with 1 to 4 channels: uint8, uint16, or floating in [0, 1].

    Raises:
        Refused: for another shape, type (a RefusedType), or other values.
    """
    ours = isinstance(array, Tensor)
    shown = f"{'tensor' if ours else 'array'} of shape {tuple(array.shape)}, {str(array.dtype).removeprefix('torch.')}"
    types = "uint8, uint16, or floating in [0, 1], is needed"
    if isinstance(array, Tensor):
        values = array.detach().cpu()
    elif array.dtype.kind in "biuf" and array.dtype.itemsize <= 8:
        values = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))  # files have either order
    else:
        raise RefusedType("image", array, types, shown)
    if values.ndim == 2 and not ours:
        values = values[..., None]
    if values.ndim == 3:
        values = values[None]
    order = "([batch,] channels, height, width)" if ours else "([batch,] height, width, channels)"
    require(values.ndim == 4 and values.numel() > 0, "image", array, f"{order} is needed", shown)
    planes = values if ours else values.permute(0, 3, 1, 2)
    require(planes.shape[1] in (1, 2, 3, 4), "image", array, "1 to 4 channels are needed", shown)
    most = {torch.uint8: 255, torch.uint16: 65535}.get(values.dtype, 1)
    if most == 1 and not values.is_floating_point():
        raise RefusedType("image", array, types, shown)
    planes = planes.to(torch.float32) / most
    least, largest = planes.min(), planes.max()
    ok = bool(planes.isfinite().all() and least >= -0.01 and largest <= 1.01)
    require(ok, "image", array, "values in [0, 1] are needed", f"{shown}, from {least:g} to {largest:g}")
    planes = planes.clamp(0, 1).contiguous()
    count = planes.shape[1]
    return [
        Picture(p[:, :-1], p[:, -1:], 8, None) if count in (2, 4) else Picture(p, None, 8, None)
        for p in planes.chunk(len(planes))
    ]


def to_pil(colour: Tensor, like: Picture) -> "Image":
    """A PIL image of 8 bits, rounded down, that is grey, or has alpha and a profile, where `like` is or has.

    Args:
        colour: (1, 3, height, width) in [0, 1].
        like: the picture that colour was made from.
    """
    import PIL.Image

    planes = luma(colour) if like.colour.shape[1] == 1 else colour
    if like.alpha is not None:
        planes = torch.cat([planes, bicubic(like.alpha, planes.shape[-2:]).clamp(0, 1)], 1)
    array = (planes[0].permute(1, 2, 0) * 255).numpy().astype(np.uint8)
    image = PIL.Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    if like.profile:
        image.info["icc_profile"] = like.profile
    return image


def luma(colour: Tensor) -> Tensor:
    """Grey (batch, 1, height, width) of colour (batch, 3, height, width), by the weights of BT.601."""
    return torch.einsum("bchw,c->bhw", colour, colour.new_tensor([0.299, 0.587, 0.114]))[:, None]


def mirrored(picture: Tensor, multiple: int) -> Tensor:
    """The picture continued to the right and below by mirroring, as often as it takes, to sides that are multiples."""
    for axis in (-2, -1):
        side = picture.shape[axis]
        if side % multiple:
            index = torch.arange(-(-side // multiple) * multiple, device=picture.device) % (2 * side)
            picture = picture.index_select(axis, torch.where(index < side, index, 2 * side - 1 - index))
    return picture


def _picture(image: "Image", wide: Array | None) -> Picture:
    """The picture in an image; wide: its pixels, where they have 16 bits a channel and PIL would cut them."""
    orientation = image.getexif().get(0x0112, 1)
    profile = image.info.get("icc_profile")
    if wide is not None:
        array, most = wide, 65535
    elif image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        array, most = np.asarray(image).astype(np.uint16), 65535
    elif image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}, 32 bits a pixel, of unknown range; convert it to 8 or 16 bits")
    else:
        array, most = np.asarray(_plain(image)), 255
        if image.mode == "CMYK":
            profile = None  # of the inks, not of the colours that they became
    array = _UPRIGHT.get(orientation, _UPRIGHT[1])(array)
    values = torch.from_numpy(array.astype(np.float32) / most)
    planes = values[None, None] if values.ndim == 2 else values.permute(2, 0, 1)[None]
    count = planes.shape[1]
    colour, alpha = (planes[:, :-1], planes[:, -1:]) if count in (2, 4) else (planes, None)
    return Picture(colour.contiguous(), alpha, 8 if most == 255 else 16, profile)


def write(path: Path, picture: Picture, text: str | None = None) -> None:
    """Writes a picture whole or not at all; folders above it are made.

    Args:
        path: its suffix is the format. 16 bits become 8 where that is neither PNG nor TIFF.
        picture: what to write.
        text: what the picture was made of, for `note.read`, where the format has a place for it.

    Raises:
        ValueError: where the picture has alpha, and the format has none.
        OSError: where the file cannot be written.
    """
    check(path, picture)
    planes = picture.colour if picture.alpha is None else torch.cat([picture.colour, picture.alpha], 1)
    wide = picture.bits == 16 and path.suffix.lower() in _WIDE
    array = (planes[0].permute(1, 2, 0).clamp(0, 1) * (65535 if wide else 255)).round().numpy()
    array = array.astype(np.uint16 if wide else np.uint8)
    if wide and array.shape[2] > 1:
        data = _encoded_wide(path.suffix, array, picture.profile)
    else:
        import PIL.Image

        buffer = io.BytesIO()
        image = PIL.Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        image.save(buffer, PIL.Image.registered_extensions()[path.suffix.lower()], icc_profile=picture.profile)
        data = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole.file(path) as part:
        part.write_bytes(data if text is None else note.added(data, text))


def check(path: Path, picture: Picture) -> None:
    """Finds out whether the format of a file can hold a picture.

    Raises:
        ValueError: where it has no alpha, and the picture has.
    """
    if picture.alpha is not None and path.suffix.lower() not in _ALPHA:
        raise ValueError(f"it has an alpha channel, which {path.suffix} cannot hold; write it as .png")


def _plain(image: "Image") -> "Image":
    """The image as 8-bit grey or colour, with alpha where there is any."""
    clear = "transparency" in image.info or image.mode in ("PA", "RGBa", "La", "LA", "RGBA")
    if image.mode == "La":  # converts to this alone
        image = image.convert("LA")
    if image.mode in ("L", "1", "LA"):
        return image.convert("RGBA").convert("LA") if clear else image.convert("L")
    return image.convert("RGBA" if clear else "RGB")


def _read_wide(path: Path) -> Array:
    import cv2

    array = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError("16-bit picture that cannot be decoded")
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}[array.shape[2]]
    return array[..., order]  # type: ignore[no-any-return]


def _encoded_wide(suffix: str, array: Array, profile: bytes | None) -> bytes:
    import cv2

    order = {2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[array.shape[2]]
    done, data = cv2.imencode(suffix.lower(), array[..., order])
    if not done:
        raise ValueError(f"16-bit colour cannot be written as {suffix}")
    encoded: bytes = data.tobytes()
    if profile and suffix.lower() == ".png":  # OpenCV writes none: its chunk goes behind the header's 33 bytes
        chunk = b"iCCPprofile\0\0" + zlib.compress(profile)
        length, check = len(chunk) - 4, zlib.crc32(chunk)
        encoded = encoded[:33] + length.to_bytes(4, "big") + chunk + check.to_bytes(4, "big") + encoded[33:]
    return encoded
