"""Recognises image formats by content and reduces a file to the parts that its pixels depend on.

A decoder that sees only these parts cannot be misled by the rest. Text that inflates to gigabytes, a broken EXIF block
or further pictures cost no memory, cause no warning, and do not make the picture unreadable.

Pillow's own limits cannot replace this. `MAX_IMAGE_PIXELS` and the filters of `warnings` belong to the whole process,
and metadata is parsed before any limit applies: a broken EXIF block loses a TIFF or an AVIF, and the run lengths of a
small BMP keep Python busy for as long as the file lasts.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from shiftvit.data.decode.faults import Fault
from shiftvit.data.decode.netpbm import reduce_jpeg2000, reduce_ppm

_MOST_PARTS = 100_000  # chunks, segments or strips; 64 million pixels in very small strips need a third of that
_MOST_SCANS = 100  # of a JPEG, each a pass over the whole picture; libtiff has the same limit
_LONGEST_BMP_HEAD = 2**19  # bytes; headers and the largest palette take 256 KiB

_ORIENTATION, _SAMPLES_PER_PIXEL, _LONG = 274, 277, 4  # two tags and a type of TIFF
# The tags that pixels depend on: those with one value, and those with several.
_TIFF_SCALARS = {256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323, 332, 512, 513, 514, 515}
_TIFF_LISTS = {258, 273, 279, 320, 324, 325, 338, 339, 347, 519, 520, 521, 529, 530, 532}
_TIFF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # other types have 1

_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # neither a stuffed 0xFF nor a restart
_PPM = re.compile(rb"P[1-6][ \t\r\n\v\f#]")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands of its container
# An item entry of type Exif, of either version; the rest of it is flags and numbers.
_AVIF_EXIF = re.compile(rb"(infe\x02.{3}.{4}|infe\x03.{3}.{6})Exif", re.DOTALL)


def find_kind(data: bytes) -> str | None:
    """Returns the format that `data` begins with, one that `reduce` knows, or None."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:6] in {b"GIF87a", b"GIF89a"}:
        return "GIF"
    if data[:2] == b"BM" and data[15:18] == bytes(3):  # zeros in the size of a header; text has none
        return "BMP"
    if data[:4] in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}:
        return "TIFF"
    if data[:12] == b"\0\0\0\x0cjP  \r\n\x87\n" or data[:4] == b"\xff\x4f\xff\x51":
        return "JPEG 2000"
    if _PPM.match(data):
        return "PPM"
    brands = data[8 : int.from_bytes(data[:4], "big")][:256] if data[4:8] == b"ftyp" else b""
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    return "HEIC" if any(brand in brands for brand in _HEIC) else None


def reduce(kind: str, data: bytes) -> tuple[bytes, int]:
    """Returns a file of the same format and pixels without anything else, and the EXIF orientation, 1..8.

    WebP, AVIF and HEIC keep their metadata, because their decoders return it unread; their orientation is given as 1.

    Raises:
        Fault: the file would take minutes to read.
        Exception: of nearly any type, if the file is damaged. Some damage is left for the decoder to find.
    """
    return _REDUCE[kind](data)


def read_orientation(exif: bytes) -> int:
    """Returns the orientation in an EXIF block, 1..8. If it has none, or is broken, that is 1: upright."""
    try:
        for _ in range(2):  # some programs write the prefix twice
            exif = exif.removeprefix(b"Exif\0\0")
        value = _read_directory(exif).read_value(_ORIENTATION)
    except Exception:  # of nearly any type
        return 1
    return value if 1 <= value <= 8 else 1


def read_webp_size(data: bytes) -> tuple[int, int]:
    """Returns the (width, height) that a WebP declares; in a damaged file they may be anything."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _count_parts() -> Iterator[int]:
    """Counts the parts that a loop visits, and stops it when there are too many."""
    yield from range(_MOST_PARTS)
    raise Fault(f"has more than {_MOST_PARTS:,} parts, which no camera writes; save it again")


def _reduce_jpeg(data: bytes) -> tuple[bytes, int]:
    view, orientation, scans, at = memoryview(data), 0, 0, 2
    kept: list[bytes | memoryview] = [data[:2]]
    for _ in _count_parts():
        found = _JPEG_MARKER.search(data, at)
        start = found.start() if found else len(data)
        marker = data[start + 1] if found else 0xD9
        end = start + 2 + (0 if marker == 0xD9 else int.from_bytes(data[start + 2 : start + 4], "big"))
        if scans:  # pixels lie between the segments, but only from the first scan on
            kept.append(view[at:start])
        if marker == 0xE1 and data[start + 4 : start + 10] == b"Exif\0\0":
            orientation = orientation or read_orientation(data[start + 4 : end])
        scans += marker == 0xDA
        if scans > _MOST_SCANS:
            raise Fault(f"is a JPEG of more than {_MOST_SCANS} scans, which no camera writes; save it again")
        # The segments of JFIF and Adobe tell YCbCr from RGB, and YCCK from CMYK. The other APPn are metadata.
        if not 0xE1 <= marker <= 0xED and marker not in {0xEF, 0xFE}:
            kept.append(view[start:end])
        if marker == 0xD9:
            break
        at = end
    return b"".join(kept), orientation or 1


def _reduce_png(data: bytes) -> tuple[bytes, int]:
    view, orientation, at = memoryview(data), 0, 8
    kept: list[bytes | memoryview] = [data[:8]]
    depth, colour = data[24], data[25]
    for _ in _count_parts():
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind == b"tRNS" and colour != 3:
            kept.append(_scale_trns(data[at + 8 : end - 4], depth))
        elif kind in {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}:
            kept.append(view[at:end])
        elif kind == b"eXIf":
            orientation = orientation or read_orientation(data[at + 8 : end - 4])
        at = end
        if kind == b"IEND" or at >= len(data):
            break
    return b"".join(kept), orientation or 1


def _scale_trns(body: bytes, depth: int) -> bytes:
    """Returns the chunk with the transparent grey or colour, on the scale of Pillow's pixels.

    Pillow scales grey of fewer than 8 bits, and colour of more than 8 bits, to 8 bits. It does not scale this value.
    """
    values = struct.unpack(f">{len(body) // 2}H", body)
    if depth < 8:
        values = tuple(value * (255 // (2**depth - 1)) % 2**16 for value in values)
    elif depth == 16 and len(values) == 3:
        values = tuple(value >> 8 for value in values)
    chunk = b"tRNS" + struct.pack(f">{len(values)}H", *values)
    return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))


def _reduce_gif(data: bytes) -> tuple[bytes, int]:
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    palette, control, parts = data[13:at], b"", _count_parts()
    for _ in parts:
        if data[at] != 0x21:  # not an extension
            break
        if data[at + 1] == 0xF9:
            # Only the transparent index is kept: with a disposal method, Pillow would make a second canvas.
            control = bytes([0x21, 0xF9, 4, data[at + 3] & 1, 0, 0, data[at + 6], 0])
        at += 2
        for _ in parts:
            size = data[at]
            at += 1 + size
            if size == 0:
                break
    if data[at] != 0x2C:
        raise ValueError("it holds no picture")
    # The canvas must hold the frame. It grows here, so that its size is checked before anything is decoded.
    left, top, width, height = struct.unpack_from("<4H", data, at + 1)
    canvas = struct.unpack_from("<2H", data, 6)
    grown = struct.pack("<2H", max(canvas[0], left + width), max(canvas[1], top + height))
    return b"".join([data[:6], grown, data[10:13], palette, control, memoryview(data)[at:]]), 1


def _reduce_bmp(data: bytes) -> tuple[bytes, int]:
    if data[14] >= 40 and data[30] in {1, 2}:
        # Pillow reads run-length codes one by one, in Python. Valid ones take less than four bytes a pixel.
        width, height = struct.unpack_from("<2i", data, 18)
        data = data[: _LONGEST_BMP_HEAD + 4 * abs(width * height)]
    return data, 1


class _Directory(NamedTuple):
    """The first directory of a TIFF."""

    order: str  # of bytes, as in `struct`
    big: bool  # whether it is a BigTIFF
    start: int
    entries: dict[int, bytes]  # tag -> 12 bytes, or 20 in a BigTIFF

    def read_value(self, tag: int) -> int:
        """Returns the first value of an entry, a SHORT or a LONG."""
        entry = self.entries[tag]
        kind, value = struct.unpack_from(self.order + ("H8xI" if self.big else "H4xI"), entry, 2)
        if kind == _LONG:
            return int(value)
        return int(struct.unpack_from(self.order + "H", entry, 12 if self.big else 8)[0])


def _read_directory(data: bytes) -> _Directory:
    """Reads the first directory of a TIFF; EXIF has the same form."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    big = 43 in data[2:4]
    step = 20 if big else 12
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    first = at + (8 if big else 2)
    entries: dict[int, bytes] = {}
    for part in _count_parts():
        entry = data[first + part * step : first + (part + 1) * step]
        if part == count or len(entry) < step:
            break
        entries.setdefault(struct.unpack_from(order + "H", entry)[0], entry)
    return _Directory(order, big, at, entries)


def read_tiff_bytes(data: bytes, tag: int) -> bytes:
    """Returns the bytes that an entry of a TIFF's first directory points to; empty if it has no such entry."""
    order, big, _, entries = _read_directory(data)
    if tag not in entries:
        return b""
    _, count, offset = struct.unpack_from(order + ("HQQ" if big else "HII"), entries[tag], 2)
    return data[offset : offset + count]


def _reduce_tiff(data: bytes) -> tuple[bytes, int]:
    """Rewrites the directory in place, so that everything it points to stays where it is."""
    first = _read_directory(data)
    order, big, at, entries = first
    if big and order == ">":
        raise Fault("is a big-endian BigTIFF, which Pillow cannot read; save it as another TIFF")
    word = order + ("Q" if big else "I")
    kept, total = [], 0
    for tag in sorted((_TIFF_SCALARS | _TIFF_LISTS) & entries.keys()):
        kind, count = struct.unpack_from(order + ("HQ" if big else "HI"), entries[tag], 2)
        if tag in _TIFF_SCALARS and count != 1:
            raise ValueError(f"tag {tag} has {count} values")
        if tag == _SAMPLES_PER_PIXEL and first.read_value(tag) > 6:
            raise ValueError("more than 6 samples a pixel")  # Pillow would write to the log as well
        size = count * _TIFF_BYTES.get(kind, 1)
        if size > struct.calcsize(word):
            (offset,) = struct.unpack_from(word, entries[tag], 12 if big else 8)
            total += size
            if max(offset + size, total) > len(data):
                raise EOFError
        if count > _MOST_PARTS:
            raise Fault(f"has more than {_MOST_PARTS:,} parts, which no camera writes; save it again")
        kept.append(entries[tag])
    directory = struct.pack(order + ("Q" if big else "H"), len(kept)) + b"".join(kept) + struct.pack(word, 0)
    end = at + len(directory)
    if end > len(data):
        raise EOFError
    return b"".join([memoryview(data)[:at], directory, memoryview(data)[end:]]), read_orientation(data)


def _reduce_avif(data: bytes) -> tuple[bytes, int]:
    # Pillow refuses a file with a broken EXIF block, which is not needed: AVIF and HEIC state the rotation elsewhere.
    return _AVIF_EXIF.sub(rb"\1skip", data), 1


def _reduce_webp(data: bytes) -> tuple[bytes, int]:
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise EOFError  # libwebp would give no reason
    return data, 1


_REDUCE = {
    "JPEG": _reduce_jpeg,
    "PNG": _reduce_png,
    "WebP": _reduce_webp,
    "GIF": _reduce_gif,
    "BMP": _reduce_bmp,
    "TIFF": _reduce_tiff,
    "AVIF": _reduce_avif,
    "HEIC": _reduce_avif,
    "JPEG 2000": reduce_jpeg2000,
    "PPM": reduce_ppm,
}
