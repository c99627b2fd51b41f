"""A line of text in a file of a picture: what it was made of. PNG, JPEG and WebP have a place for it, and readers pass it over.

PNG   a chunk tEXt behind the header       JPEG   a segment COM behind the APPn        WebP   a chunk at the end
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

_PNG = b"\x89PNG\r\n\x1a\n"
_KEY, _WEBP = b"dosde\0", b"DOSD"
_HEAD, _MOST = 1 << 20, 60_000  # bytes: where the text is looked for; of the text, as a segment of JPEG has 65,533


def added(data: bytes, text: str) -> bytes:
    """The file with the text in it; the file itself where its format has no place for it, or the text is not short."""
    note = _KEY + text.encode("ascii", "backslashreplace")
    if len(note) > _MOST:
        return data
    if data.startswith(_PNG):
        chunk = b"tEXt" + note
        framed = (len(note)).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        return data[:33] + framed + data[33:]
    if data.startswith(b"\xff\xd8"):
        place = next((place for place, marker, _ in _segments(data) if not 0xE0 <= marker <= 0xEF), 2)
        return data[:place] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + data[place:]
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        body = data[8:] + _WEBP + len(note).to_bytes(4, "little") + note + b"\0" * (len(note) % 2)
        return b"RIFF" + len(body).to_bytes(4, "little") + body
    return data


def read(path: Path) -> str | None:
    """The text that `added` put there, or None.

    Raises:
        OSError: where the file cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(_HEAD)
        if data.startswith(b"RIFF"):
            file.seek(max(0, file.seek(0, 2) - _MOST - 9))
            tail = file.read()
            place = tail.rfind(_WEBP)
            note = tail[place + 8 :][: int.from_bytes(tail[place + 4 : place + 8], "little")] if place >= 0 else b""
            return _text(note)
    if data.startswith(_PNG):
        at = 8
        while at + 8 <= len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            if data[at + 4 : at + 8] == b"tEXt" and data[at + 8 :].startswith(_KEY):
                return _text(data[at + 8 : at + 8 + size])
            at += 12 + size
    if data.startswith(b"\xff\xd8"):
        return next((_text(part) for _, marker, part in _segments(data) if marker == 0xFE and part.startswith(_KEY)), None)
    return None


def _text(note: bytes) -> str | None:
    return note.removeprefix(_KEY).decode("ascii", "replace") if note.startswith(_KEY) else None


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(place, marker, content) of the segments of a JPEG, up to its pixels."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        yield at, data[at + 1], data[at + 4 : at + 2 + size]
        at += 2 + size
    yield at, 0, b""
