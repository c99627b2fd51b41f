"""Pictures in files: read with orientation, depth, alpha and colour profile kept; written whole or not at all.

TIFF is decoded by tifffile (`tiff`) and PNG by libpng, whatever their depth; all else by Pillow, which cuts colours to 8 bits.
What is read and written is listed in `formats`. The packages come with the extra `images`.
"""

import io
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from backbones import whole
from dosde.check import Refused, RefusedType, require

from . import note, tiff
from .formats import READ, SEQUENCES, WRITTEN
from .formats import SUFFIXES as SUFFIXES
from .resize import bicubic
from .transparency import filled
from .values import TYPES, unit

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, np.dtype[Any]]

QUALITY = 95
"""Of JPEG, from 1 to 100."""
_SMALL, _DENSE = 2**24, 2000  # pixels that any file may declare, and pixels a byte of the file
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}

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
        frames: how many pictures the file has, of which this is the first.
    """

    colour: Tensor
    alpha: Tensor | None
    bits: int
    profile: bytes | None
    frames: int = 1

    @property
    def visible(self) -> Tensor:
        """The colours to resize: those behind transparency are replaced, so that none bleeds. See `transparency`."""
        return filled(self.colour, self.alpha)


# -- Files ------------------------------------------------------------------------------------------------------------------


def listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures in a folder, known by their suffixes, and what else is there; both sorted.

    Hidden files and folders inside it are in neither list. A link that leads nowhere counts as what it is called.

    Raises:
        OSError: where the folder cannot be read.
    """
    pictures: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name[0] != "." and not path.is_dir():
            special = path.exists() and not path.is_file()
            (pictures if path.suffix.lower() in SUFFIXES and not special else others).append(path)
    return pictures, others


def read(path: Path) -> Picture:
    """The first picture in a file, upright, whatever the suffix.

    Raises:
        OSError, ValueError: where it cannot be read, in one line.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:  # opening a pipe would wait for its other end
        raise ValueError(f"it is {_KINDS.get(kind, 'a folder')}, and a file is needed")
    with _one_line(), path.open("rb") as file:
        return _read(file, path.stat().st_size)


@contextmanager
def _one_line() -> Iterator[None]:
    """Whatever goes wrong in a decoder as a ValueError or an OSError, in one line, without a warning."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about metadata and sizes: what matters is an error here
            yield
    except MemoryError:
        raise ValueError("not enough memory for a picture of this size") from None
    except Exception as error:  # decoders raise whatever they stumble over in a broken file
        if isinstance(error, OSError | ValueError) and str(error) and "\n" not in str(error) and len(str(error)) < 300:
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"it cannot be decoded ({type(error).__name__}{': ' if reason else ''}{reason})") from None


def _read(file: BinaryIO, size: int) -> Picture:
    import PIL.Image

    # Twice Pillow's limit is where Pillow refuses; a small file that declares a large picture is broken, or a bomb.
    allowed = None if PIL.Image.MAX_IMAGE_PIXELS is None else 2 * PIL.Image.MAX_IMAGE_PIXELS
    allowed = min(allowed or 2**62, max(_SMALL, _DENSE * size))
    if file.read(4) in tiff.MAGIC and (made := tiff.decoded(file, size, allowed)) is not None:
        return _of_tiff(made)
    file.seek(0)
    try:
        image = PIL.Image.open(file, formats=list(READ))
    except PIL.UnidentifiedImageError:
        raise ValueError(f"a broken picture, or none in a format that is read here ({' '.join(READ)})") from None
    with image:
        width, height = image.size
        if width * height > allowed:
            raise ValueError(f"{width}x{height} pixels in {size} bytes; {allowed} pixels at most are read")
        frames = getattr(image, "n_frames", 1) if image.format in SEQUENCES else 1
        return _of_pil(image, _pixels(image, file), frames)


def _pixels(image: "Image", file: BinaryIO) -> Array | None:
    """(height, width, channels) of a PNG, or of a PPM of more than 8 bits; None where PIL's pixels do."""
    if image.format != "PNG" and not (image.format == "PPM" and image.mode == "RGB"):
        return None
    at = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(at)
    return _decoded_png(data, image.size) if image.format == "PNG" else _decoded_ppm(data, image)


def _decoded_png(data: bytes, size: tuple[int, int]) -> Array:
    """(height, width, channels) in 8 or 16 bits: grey or colour of any depth or palette, transparent colours as alpha."""
    import imagecodecs

    array: Array = imagecodecs.png_decode(data)
    if array.shape[:2] != size[::-1]:
        raise ValueError("a broken PNG: it says two sizes")
    return array if array.ndim == 3 else array[..., None]


def _decoded_ppm(data: bytes, image: "Image") -> Array | None:
    """(height, width, 3) in 16 bits of a PPM of more than 8; None for 8."""
    codec, _, offset, arguments = getattr(image, "tile")[0]  # noqa: B009  # of an image in a file
    most = arguments[1] if isinstance(arguments, tuple) else 255
    if not isinstance(most, int) or most < 256:
        return None
    count = image.size[0] * image.size[1] * 3
    if codec == "ppm_plain":
        text = b"\n".join(line.partition(b"#")[0] for line in data[offset:].splitlines())
        values = np.array(text.split()[:count], dtype=np.int64)
    else:
        values = np.frombuffer(data[offset : offset + 2 * count], ">u2")
    if len(values) != count or values.min() < 0 or values.max() > most:
        raise ValueError("a broken PPM: it ends before its pixels do, or they exceed what it says")
    return (values.reshape(*image.size[::-1], 3) / most * 65535).round().astype(np.uint16)


# -- Images of PIL, arrays, tensors -----------------------------------------------------------------------------------------


def of_pil(image: "Image") -> Picture:
    """The picture in a PIL image of any mode, upright. One that is still in its file, not loaded, is read as `read` does.

    Raises:
        ValueError: for 32 bits a pixel, or no pixel.
    """
    if 0 in image.size:
        raise Refused("image", image, "at least one pixel is needed", f"{image.size[0]}x{image.size[1]}")
    file = getattr(image, "fp", None) if getattr(image, "tile", None) and image.tell() == 0 else None
    if file is None:
        return _of_pil(image, None, 1)
    with _one_line():
        if image.format == "TIFF" and (made := tiff.decoded(file, file.seek(0, io.SEEK_END), None)) is not None:
            return _of_tiff(made)
        return _of_pil(image, _pixels(image, file), 1)


def _of_tiff(made: tiff.Decoded) -> Picture:
    return _picture(made.planes, made.bits, made.orientation, made.profile, made.frames)


def _of_pil(image: "Image", pixels: Array | None, frames: int) -> Picture:
    """The picture in an image; pixels: its pixels, where PIL's would not do."""
    image.load()  # only then has a TIFF been turned, and forgotten its orientation
    profile = image.info.get("icc_profile")
    if pixels is None:
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            pixels = np.asarray(image).astype(np.uint16)[..., None]
            tags = getattr(image, "tag_v2", {})  # of a TIFF: PIL leaves 12 bits, and white that is zero, as they are
            if tags.get(258) == (12,):
                pixels = (pixels / 4095 * 65535).round().astype(np.uint16)
            if tags.get(262) == 0:
                pixels = 65535 - pixels
            clear = image.info.get("transparency")
            if isinstance(clear, int):
                pixels = np.concatenate([pixels, np.where(pixels == clear, 0, 65535).astype(np.uint16)], -1)
        elif image.mode in ("I", "F"):
            raise ValueError(f"mode {image.mode}, 32 bits a pixel, of unknown range; convert it to 8 or 16 bits")
        else:
            pixels = np.asarray(_plain(image))
    if image.mode in ("CMYK", "LAB", "HSV"):
        profile = None  # of the inks or coordinates, not of the colours that they became
    bits = 16 if pixels.dtype == np.uint16 else 8
    planes = pixels if pixels.ndim == 3 else pixels[..., None]
    return _picture(planes, bits, _orientation(image), profile, frames)


def _orientation(image: "Image") -> int:
    """As EXIF has it; 1, upright, where it is broken, which costs no pixel."""
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return found if isinstance(found, int) and found in _UPRIGHT else 1


def _picture(planes: Array, bits: int, orientation: int, profile: object, frames: int) -> Picture:
    """The picture of planes (height, width, 1 to 4 channels): integers, or numbers in [0, 1]."""
    upright = _UPRIGHT.get(orientation, _UPRIGHT[1])(planes)
    values = torch.from_numpy(np.ascontiguousarray(upright.transpose(2, 0, 1), dtype=np.float32))[None]
    if planes.dtype.kind == "u":
        values /= np.iinfo(planes.dtype).max
    count = values.shape[1]
    colour, alpha = (values[:, :-1], values[:, -1:]) if count in (2, 4) else (values, None)
    return Picture(colour, alpha, bits, profile if isinstance(profile, bytes) and profile else None, frames)


def _plain(image: "Image") -> "Image":
    """The image as 8-bit grey or colour, with alpha where there is any."""
    transparency = image.info.get("transparency")
    if isinstance(transparency, tuple) and max(transparency) > 255:  # of 16 bits, which PIL has cut to 8
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparency)
    clear = transparency is not None or image.mode in ("PA", "RGBa", "La", "LA", "RGBA")
    if image.mode == "La":  # converts to this alone
        image = image.convert("LA")
    if image.mode in ("L", "1", "LA"):
        return image.convert("RGBA").convert("LA") if clear else image.convert("L")
    return image.convert("RGBA" if clear else "RGB")


def of_array(array: Array | Tensor) -> list[Picture]:
    """The pictures in an array or a tensor.

    Args:
        array: a numpy array (height, width[, channels]) or (batch, height, width, channels), or a tensor ([batch,] channels,
            height, width), with 1 to 4 channels: uint8, uint16, or floating in [0, 1] (`values`).

    Raises:
        Refused: for another shape, type (a RefusedType), or other values.
    """
    ours = isinstance(array, Tensor)
    shown = f"{'tensor' if ours else 'array'} of shape {tuple(array.shape)}, {str(array.dtype).removeprefix('torch.')}"
    if isinstance(array, Tensor):
        values = array.detach().cpu()
    elif array.dtype.kind in "biuf" and array.dtype.itemsize <= 8:
        values = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))  # files have either order
    else:
        raise RefusedType("image", array, TYPES, shown)
    if values.ndim == 2 and not ours:
        values = values[..., None]
    if values.ndim == 3:
        values = values[None]
    order = "([batch,] channels, height, width)" if ours else "([batch,] height, width, channels)"
    require(values.ndim == 4 and values.numel() > 0, "image", array, f"{order} is needed", shown)
    planes = values if ours else values.permute(0, 3, 1, 2)
    require(planes.shape[1] in (1, 2, 3, 4), "image", array, "1 to 4 channels are needed", shown)
    planes = unit("image", planes, shown).contiguous()
    count = planes.shape[1]
    return [
        Picture(p[:, :-1], p[:, -1:], 8, None) if count in (2, 4) else Picture(p, None, 8, None)
        for p in planes.chunk(len(planes))
    ]


def to_pil(colour: Tensor, like: Picture) -> "Image":
    """A PIL image of 8 bits, rounded, that is grey, or has alpha and a profile, where `like` is or has.

    Args:
        colour: (1, 3, height, width) in [0, 1].
        like: the picture that colour was made from.
    """
    import PIL.Image

    planes = luma(colour) if like.colour.shape[1] == 1 else colour
    if like.alpha is not None:
        planes = torch.cat([planes, bicubic(like.alpha, planes.shape[-2:])], 1)
    array = _integers(planes, 8)
    image = PIL.Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    if like.profile:
        image.info["icc_profile"] = like.profile
    return image


def _integers(planes: Tensor, bits: int) -> Array:
    """(height, width, channels) of (1, channels, height, width) in [0, 1], rounded."""
    array: Array = planes[0].permute(1, 2, 0).float().clamp(0, 1).mul_(2**bits - 1).round_().numpy()
    return np.ascontiguousarray(array, dtype=np.uint16 if bits == 16 else np.uint8)


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


# -- Writing ----------------------------------------------------------------------------------------------------------------


def write(path: Path, picture: Picture, quality: int | None = None, text: str | None = None) -> None:
    """Writes a picture whole or not at all; folders above it are made.

    Args:
        path: its suffix is the format. 16 bits become 8 where that is neither PNG nor TIFF.
        picture: what to write.
        quality: of JPEG (95 by default, with colours in full resolution), and of WebP (without loss by default).
        text: what the picture was made of, for `note.read`, where the format has a place for it.

    Raises:
        ValueError: where the format cannot hold the picture.
        OSError: where the file cannot be written.
    """
    check(path, picture)
    form = WRITTEN[path.suffix.lower()]
    planes = picture.colour if picture.alpha is None else torch.cat([picture.colour, picture.alpha], 1)
    if not form.grey and planes.shape[1] == 1:
        planes = planes.expand(-1, 3, -1, -1)
    bits = picture.bits if form.wide else 8
    array = _integers(planes, bits)
    if form.name == "TIFF":
        data = _encoded_tiff(array, picture.profile)
    elif bits == 16:
        data = _encoded_png(array, picture.profile)
    else:
        import PIL.Image

        options: dict[str, dict[str, Any]] = {
            "JPEG": {"quality": quality or QUALITY, "subsampling": 0},
            "WEBP": {"quality": quality, "method": 4} if quality else {"lossless": True, "exact": True},
        }
        buffer = io.BytesIO()
        image = PIL.Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        image.save(buffer, form.name, icc_profile=picture.profile, **options.get(form.name, {}))
        data = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole.file(path) as part:
        part.write_bytes(data if text is None else note.added(data, text))


def check(path: Path, picture: Picture, size: tuple[int, int] | None = None) -> None:
    """Finds out whether a file can be called so, and its format can hold a picture.

    Args:
        path: the file to write.
        picture: what it is made from, or the picture itself.
        size: (height, width) of the result; None: those of the picture.

    Raises:
        ValueError: where the format cannot hold it: its alpha, its colours, its size.
        OSError: for a name that the system does not take.
    """
    form = WRITTEN.get(path.suffix.lower())
    if form is None:
        raise ValueError(f"{path.suffix or 'no suffix'}; a file that ends in {' '.join(WRITTEN)} is needed")
    if picture.alpha is not None and not form.alpha:
        raise ValueError(f"it has an alpha channel, which {path.suffix} cannot hold; write it as .png")
    if picture.colour.shape[1] == 3 and not form.colour:
        raise ValueError(f"it has colours, which {path.suffix} cannot hold; write it as .png")
    height, width = size or picture.colour.shape[-2:]
    if max(height, width) > form.side:
        raise ValueError(f"{width}x{height} pixels; {path.suffix} holds {form.side} a side; write it as .png")
    whole.check_name(path)


def check_quality(quality: int | None, paths: Sequence[Path]) -> None:
    """Finds out whether files have a quality.

    Args:
        quality: None for no wish.
        paths: the files to write.

    Raises:
        Refused: for a number that is none from 1 to 100, and a file that has no quality.
    """
    if quality is None:
        return
    require(1 <= quality <= 100, "quality", quality, "1 to 100 is needed")
    having = [suffix for suffix, form in WRITTEN.items() if form.quality]
    for path in paths:
        needed = f"it is for files that end in {' '.join(having)} (--out FILE)"
        require(path.suffix.lower() in having, "quality", quality, needed, f"{quality} for {path}")


def _encoded_tiff(array: Array, profile: bytes | None) -> bytes:
    """Without loss, by deflate with a predictor."""
    import tifffile

    count = array.shape[2]
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        array[..., 0] if count == 1 else array,
        photometric="rgb" if count > 2 else "minisblack",
        planarconfig=None if count == 1 else "contig",
        extrasamples=["unassalpha"] if count in (2, 4) else None,
        compression="adobe_deflate",
        predictor=True,
        iccprofile=profile,
        metadata=None,
        software=False,
    )
    return buffer.getvalue()


def _encoded_png(array: Array, profile: bytes | None) -> bytes:
    """In the bits of the array."""
    import imagecodecs

    encoded = bytes(imagecodecs.png_encode(array[..., 0] if array.shape[2] == 1 else array))
    if profile:  # libpng is not asked to write it: its chunk goes behind the header's 33 bytes
        chunk = b"iCCPprofile\0\0" + zlib.compress(profile)
        length, check = len(chunk) - 4, zlib.crc32(chunk)
        encoded = encoded[:33] + length.to_bytes(4, "big") + chunk + check.to_bytes(4, "big") + encoded[33:]
    return encoded
