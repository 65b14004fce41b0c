"""Checks and reduces PPM (with PGM and PBM) and JPEG 2000, as `formats` does with the more common formats."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from shiftvit.data.decode.faults import Fault

_SPACE = rb"(?:[ \t\r\n\v\f]|#[^\r\n]*[\r\n])+"
_NUMBER = rb"([0-9]{1,10})"
_BITMAP = re.compile(rb"(P[14])" + (_SPACE + _NUMBER) * 2 + rb"[ \t\r\n\v\f]")
_OTHERS = re.compile(rb"(P[2356])" + (_SPACE + _NUMBER) * 3 + rb"[ \t\r\n\v\f]")
_LONGEST_HEAD = 2**16  # bytes, of comments for the most part
_PLAIN = 8  # the most bytes that a value takes as text, with the space after it
_SIZE, _CODING, _TILE = b"\xff\x51", b"\xff\x52", b"\xff\x90"  # markers of a JPEG 2000
_MOST_LAYERS = 100
_MOST_TILES = 2**12
_LEAST_PRECINCT = 4  # as a power of two
_BOXES = {b"jP  ", b"ftyp", b"jp2h", b"jp2c"}


def reduce_ppm(data: bytes) -> tuple[bytes, int]:
    """Returns a PPM with a plain header and no more text than its pixels can need; see `formats.reduce`."""
    found = (_BITMAP if data[1:2] in b"14" else _OTHERS).match(data[:_LONGEST_HEAD])
    if found is None:
        raise ValueError("its header has no size")
    numbers = [int(number) for number in found.groups()[1:]]
    rest = memoryview(data)[found.end() :]
    if data[1:2] in b"123":
        rest = rest[: numbers[0] * numbers[1] * 3 * _PLAIN + _LONGEST_HEAD]
    return b"".join(
        [found[1], b" %d %d" % tuple(numbers[:2]), *(b" %d" % most for most in numbers[2:]), b"\n", rest]
    ), 1


def reduce_jpeg2000(data: bytes) -> tuple[bytes, int]:
    """Returns a JPEG 2000 without metadata, whose decoding takes bounded time; see `formats.reduce`.

    Raises:
        Fault: it has more tiles, layers or precincts than any camera or scanner writes.
    """
    if data[:4] == b"\xff\x4f\xff\x51":
        _check_codestream(memoryview(data))
        return data, 1
    kept = []
    for name, box in _list_boxes(data):
        if name in _BOXES:
            kept.append(box)
        if name == b"jp2c":
            _check_codestream(box[16 if bytes(box[:4]) == b"\0\0\0\1" else 8 :])
            return b"".join(kept), 1
    raise EOFError


def _list_boxes(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the name of each box and the whole box, a thousand at most."""
    at, view = 0, memoryview(data)
    for _ in range(1000):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        length = length or len(data) - at
        if length < 8 or at + 8 > len(data):
            raise EOFError
        yield data[at + 4 : at + 8], view[at : at + length]
        at += length


def _check_codestream(stream: memoryview) -> None:
    at = 2
    for _ in range(1000):
        marker, length = bytes(stream[at : at + 2]), int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker == _TILE or length < 2:
            break
        if marker == _SIZE:
            width, height, _, _, *tile = struct.unpack_from(">8I", stream, at + 6)
            channels = int.from_bytes(stream[at + 38 : at + 40], "big")
            across, down = -(-(width - tile[2]) // tile[0]), -(-(height - tile[3]) // tile[1])
            if across * down > _MOST_TILES or channels > 4:
                raise Fault(
                    f"has {across * down:,} tiles and {channels:,} channels, which no camera writes; save it again"
                )
        elif marker == _CODING:
            layers = int.from_bytes(stream[at + 6 : at + 8], "big")
            precincts = stream[at + 14 : at + 2 + length] if stream[at + 4] & 1 else b""
            small = any(min(size & 15, size >> 4) < _LEAST_PRECINCT for size in precincts)
            if layers > _MOST_LAYERS or small:
                raise Fault("has more layers or precincts than any camera writes; save it again")
        at += 2 + length
