"""TIFF of any depth: tifffile decodes the samples, and the tags say here what they mean.

    grey = value / (2^bits - 1),   1 - grey where white is zero;     palette: the colour map;     R = (1 - C)(1 - K) of CMYK
    colour = colour / alpha where the colours are multiplied by alpha

One way for all depths from 1 to 16 bits, in strips or tiles, with planes together or apart, of either byte order, classic or
Big. The codecs of pictures, JPEG and CCITT, and YCbCr have 8 bits at most: they are Pillow's, as all that is no TIFF.
"""

import logging
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_STREAMS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 34925: "LZMA", 50000: "Zstandard"}
_CODECS = (2, 3, 4, 6, 7)  # CCITT and JPEG
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4}  # channels by photometric interpretation
_NAMES = {4: "a mask", 6: "YCbCr", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32803: "a colour filter array", 32844: "LogL"}
_ASSOCIATED, _UNASSOCIATED = 1, 2
_MOST = 16  # samples a pixel

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it says of broken files is said by the error


@dataclass(frozen=True)
class Decoded:
    """The first picture in a file.

    Args:
        planes: (height, width, channels) in [0, 1], float32: grey or colour, and alpha if there is one.
        bits: 8 or 16.
        orientation: as EXIF counts it.
        profile: the ICC profile, or None.
        frames: how many pictures the file has.
    """

    planes: Array
    bits: int
    orientation: int
    profile: bytes | None
    frames: int


def decoded(stream: BinaryIO, size: int, largest: int | None) -> Decoded | None:
    """The first picture in a file; None for one that Pillow is to decode.

    Args:
        stream: the file.
        size: its bytes.
        largest: pixels that a picture may have.

    Raises:
        ValueError, OSError: for a file that is broken, and a layout that is not understood.
    """
    import tifffile

    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        frames = len(file.pages)
        if not frames:
            raise ValueError("a broken TIFF: there is no picture in it")
        page = file.pages.first
        tags = page.tags
        if 256 not in tags or 257 not in tags:
            raise ValueError("a broken TIFF: it does not say its size")
        if page.compression in _CODECS or page.photometric == 6:
            if page.bitspersample not in (1, 8):
                raise ValueError(f"JPEG or YCbCr of {page.bitspersample} bits in a TIFF; convert it to RGB")
            return None
        samples, bits = _checked(page, size, largest)
        values = page.asarray(squeeze=False, maxworkers=1)[:, 0]
        values = np.concatenate(list(values), -1)  # planes apart
        values = values.view(np.uint8) if values.dtype == bool else values
        wanted = (page.imagelength, page.imagewidth, samples)
        if values.shape != wanted or values.dtype.kind != "u":
            raise ValueError(f"a broken TIFF: {values.shape} {values.dtype} instead of {wanted}")
        return Decoded(
            _meaning(page, values, bits),
            8 if bits <= 8 or page.photometric == 3 else 16,
            _number(tags.valueof(274, 1), 1),
            tags.valueof(34675) if isinstance(tags.valueof(34675), bytes) and page.photometric != 5 else None,
            frames,
        )


def _checked(page: Any, size: int, largest: int | None) -> tuple[int, int]:
    """Samples a pixel, and bits a sample, of a page that is understood, whose data are all in a file of `size` bytes."""
    width, height, samples, bits = page.imagewidth, page.imagelength, page.samplesperpixel, page.bitspersample
    colours = _COLOURS.get(page.photometric)
    kinds = {1: "unsigned", 2: "signed", 3: "floating", 4: "untyped", 5: "complex", 6: "complex"}
    kind = page.sampleformat
    if colours is None:
        name = _NAMES.get(page.photometric, f"photometric interpretation {int(page.photometric)}")
        raise ValueError(f"{name} in a TIFF, which is not understood; convert it to grey or RGB")
    if page.photometric == 5 and page.tags.valueof(332, 1) != 1:
        raise ValueError("inks other than CMYK in a TIFF, which are not understood; convert it to RGB")
    if kind != 1:
        shown = kinds.get(kind, "unknown") if isinstance(kind, int) else "mixed"
        raise ValueError(f"{shown} samples of {bits} bits in a TIFF, of unknown range; convert it to 8 or 16 bits")
    if not isinstance(bits, int) or not 1 <= bits <= 16 or (page.photometric == 3 and bits > 8):
        raise ValueError(f"samples of {bits} bits in a TIFF; 1 to 16, all alike (a palette: to 8), are needed")
    if page.compression not in _STREAMS:
        raise ValueError(f"compression {int(page.compression)} in a TIFF, which is not understood; save it with LZW or deflate")
    if not isinstance(samples, int) or not colours <= samples <= _MOST or page.imagedepth != 1:
        raise ValueError(f"{samples} samples a pixel in a TIFF of depth {page.imagedepth}; {colours} to {_MOST} are needed")
    if page.predictor not in (1, 2) or (page.predictor == 2 and bits not in (8, 16)):
        raise ValueError(f"predictor {int(page.predictor)} for {bits} bits in a TIFF, which is not understood")
    if page.planarconfig not in (1, 2) or page.fillorder not in (1, 2):
        raise ValueError("a broken TIFF: unknown planes or order of bits")
    sides = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    if min(width, height, *sides) < 1:
        raise ValueError(f"a broken TIFF: {width}x{height} pixels in parts of {sides[1]}x{sides[0]}")
    for across, down in ((width, height), sides[::-1]):
        if largest is not None and across * down > largest:
            raise ValueError(f"{across}x{down} pixels in {size} bytes; {largest} pixels at most are read")
    parts = -(-height // sides[0]) * -(-width // sides[1]) * (samples if page.planarconfig == 2 else 1)
    offsets, counts = page.dataoffsets, page.databytecounts
    short = len(offsets) != parts or len(counts) != parts
    if short or any(start < 1 or count < 1 or start + count > size for start, count in zip(offsets, counts, strict=True)):
        raise ValueError("a broken TIFF: it ends before its pixels do")
    return samples, bits


def _meaning(page: Any, values: Array, bits: int) -> Array:
    """Grey or colour, and alpha, in [0, 1], of samples."""
    count = _COLOURS[page.photometric]
    most = 2**bits - 1
    colour = values[..., :count].astype(np.float32) / np.float32(most)
    if page.photometric == 3:
        colour = _palette(page)[values[..., 0]]
    extras = page.tags.valueof(338, ())
    extras = tuple(extras) if isinstance(extras, tuple | list) else (extras,)
    if not extras and values.shape[-1] == count + 1:
        extras = (_UNASSOCIATED,)  # older writers do not say what the fourth sample is
    kinds = [_UNASSOCIATED if kind == 999 else kind for kind in extras[: values.shape[-1] - count]]  # CorelDRAW's
    at = next((i for i, kind in enumerate(kinds) if kind in (_ASSOCIATED, _UNASSOCIATED)), None)
    alpha = None if at is None else values[..., count + at, None].astype(np.float32) / np.float32(most)
    if alpha is not None and at is not None and kinds[at] == _ASSOCIATED:
        colour = np.divide(colour, alpha, out=np.zeros_like(colour), where=alpha > 0).clip(0, 1)
    if page.photometric == 0:
        colour = 1 - colour
    elif page.photometric == 5:
        colour = (1 - colour[..., :3]) * (1 - colour[..., 3:])
    return colour if alpha is None else np.concatenate([colour, alpha], -1)


def _palette(page: Any) -> Array:
    """The colours (entries, 3) of a colour map in 16 bits, or in 8, as some write it."""
    table = np.asarray(page.tags.valueof(320), dtype=np.int64).reshape(3, -1).T
    if len(table) != 2**page.bitspersample or table.min() < 0 or table.max() > 65535:
        raise ValueError("a broken TIFF: a colour map of another size")
    eight = table if table.max() < 256 else table >> 8
    return eight.astype(np.float32) / np.float32(255)


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise
