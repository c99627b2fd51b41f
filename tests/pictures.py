"""Files of pictures made by hand, bit by bit, so that no library writes what it reads itself: TIFF and PNG of any layout."""

import struct
import zlib

import numpy as np

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 12: 8, 13: 4, 16: 8}
_FORMS = {1: "B", 2: "B", 3: "H", 4: "I", 7: "B", 12: "d", 13: "I", 16: "Q"}


def packed(values, bits, order):
    """Rows (rows, width, samples) as bytes, each row from a byte on; 16 bits in the byte order, others high bit first."""
    if bits in (8, 16, 32):
        return values.astype(f"{order}u{bits // 8}").tobytes()
    rows = values.reshape(len(values), -1)
    each = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def tiff(values, bits, photometric, *, order="<", apart=False, rows=None, deflated=False, big=False, tags=(), pages=1):
    """A TIFF.

    Args:
        values: (height, width, samples), integers; or None for data in `tags` alone.
        bits: a sample.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 Lab.
        order: "<" or ">".
        apart: planes apart.
        rows: of a strip.
        deflated: compressed by deflate.
        big: BigTIFF.
        tags: {tag: (type, values)} or pairs, which replace those made here.
        pages: how often the page is in the file.
    """
    height, width, samples = values.shape
    rows = rows or height
    planes = [values[..., i : i + 1] for i in range(samples)] if apart else [values]
    strips = [packed(plane[y : y + rows], bits, order) for plane in planes for y in range(0, height, rows)]
    strips = [zlib.compress(strip) for strip in strips] if deflated else strips
    start = 16 if big else 8
    offsets = [start + sum(map(len, strips[:i])) for i in range(len(strips))]
    entries = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * samples),
        259: (3, [8 if deflated else 1]),
        262: (3, [photometric]),
        273: (16 if big else 4, offsets),
        277: (3, [samples]),
        278: (4, [rows]),
        279: (16 if big else 4, [len(strip) for strip in strips]),
        284: (3, [2 if apart else 1]),
        **dict(tags),
    }
    body = b"".join(strips)
    count, long, inline = ("Q", "Q", 8) if big else ("H", "I", 4)
    head = b"II" if order == "<" else b"MM"
    where = start + len(body)
    where += where % 2
    first, made = where, b""
    for page in range(pages):
        extra, listing = b"", struct.pack(f"{order}{count}", len(entries))
        size = len(listing) + len(entries) * (4 + 2 * inline) + inline
        for tag, (kind, held) in sorted(entries.items()):
            data = struct.pack(f"{order}{len(held)}{_FORMS[kind]}", *held)
            listing += struct.pack(f"{order}HH{long}", tag, kind, len(held))
            if len(data) <= inline:
                listing += data.ljust(inline, b"\0")
            else:
                listing += struct.pack(f"{order}{long}", where + size + len(extra))
                extra += data + b"\0" * (len(data) % 2)
        where += size + len(extra)
        listing += struct.pack(f"{order}{long}", where if page + 1 < pages else 0)
        made += listing + extra
    lead = head + struct.pack(f"{order}HHHQ", 43, 8, 0, first) if big else head + struct.pack(f"{order}HI", 42, first)
    return (lead + body).ljust(first, b"\0") + made


def png(values, bits, kind, *, clear=None, palette=None, before=()):
    """A PNG.

    Args:
        values: (height, width, samples), integers.
        bits: a sample.
        kind: 0 grey, 2 colour, 3 palette, 4 grey and alpha, 6 colour and alpha.
        clear: the bytes of tRNS.
        palette: the bytes of PLTE.
        before: pairs of a chunk's name and bytes, before the pixels.
    """
    height, width, _ = values.shape
    rows = [b"\0" + packed(row[None], bits, ">") for row in values]
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, *([(b"PLTE", palette)] if palette else []), *([(b"tRNS", clear)] if clear else [])]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [*chunks, (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    )
