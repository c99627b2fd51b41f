"""The formats of files: the suffixes that are read, those that are written, and what each format can hold.

A file is a picture to `listed` if it has one of `SUFFIXES`; a file with a name of its own is read by its content, in these
formats. Pillow has more formats, of documents, of data and of drawings; none of them is opened.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Written:
    """What a format can hold, where we write it.

    Args:
        name: Pillow's.
        side: the largest width and height.
        alpha: whether it has an alpha channel.
        grey: whether it has grey.
        colour: whether it has colours, more than 256 of them.
        wide: whether it is written with 16 bits.
        quality: whether it has a quality.
    """

    name: str
    side: int
    alpha: bool = False
    grey: bool = True
    colour: bool = True
    wide: bool = False
    quality: bool = False


READ = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TGA": (".tga",),
    "PCX": (".pcx",),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "DDS": (".dds",),
    "ICO": (".ico",),
}
"""Suffixes of each format that is read, under Pillow's name of it."""

SUFFIXES = tuple(suffix for suffixes in READ.values() for suffix in suffixes)

_JPEG = Written("JPEG", 65500, quality=True)  # libjpeg's limit; the format's is 65535
_TIFF = Written("TIFF", 2**31 - 1, alpha=True, wide=True)
WRITTEN = {
    ".png": Written("PNG", 10**6, alpha=True, wide=True),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".jpe": _JPEG,
    ".jfif": _JPEG,
    ".webp": Written("WEBP", 16383, alpha=True, quality=True),
    ".bmp": Written("BMP", 2**31 - 1),
    ".gif": Written("GIF", 65535, colour=False),
    ".ppm": Written("PPM", 2**31 - 1, grey=False),
    ".pgm": Written("PPM", 2**31 - 1, colour=False),
    ".pnm": Written("PPM", 2**31 - 1),
}
"""Suffixes that are written."""

SEQUENCES = ("GIF", "WEBP", "PNG", "MPO", "AVIF", "TIFF")
"""Formats whose further frames are pictures of their own (and no layers, or sizes of the same picture)."""
