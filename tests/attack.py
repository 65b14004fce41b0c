"""What an attacker could send: an object whose pickle runs code, and zip archives that lie about their size."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Zeros that `write_liar` packs.
LIE = 2**24


class Attack:
    """Writes "executed" to the file `target` when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.write_text, (self.target, "executed")


def write_liar(path: Path, method: int, name: str, beginning: bytes = b"") -> None:
    """Writes a zip archive with one entry that is stated to have 100 bytes."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, beginning + bytes(LIE))
    lie = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = lie.index(signature) + offset
        assert struct.unpack_from("<I", lie, at) == (len(beginning) + LIE,)
        struct.pack_into("<I", lie, at, 100)
    path.write_bytes(lie)


@contextmanager
def bounded_memory(most: int = LIE // 2) -> Iterator[None]:
    """Fails if Python's own memory, which holds what `zipfile` unpacks, grows by more than `most` bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
