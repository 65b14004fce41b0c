"""Reads entries of untrusted zip archives.

`zipfile` unpacks up to 2 GiB at once, and all of a bzip2 or LZMA entry, before it cuts the result to the size that the
archive states. Here only deflate is unpacked, in small steps, so memory is bounded by the stated size.
"""

from __future__ import annotations

import zipfile
from typing import IO, Any

from numpy.typing import NDArray

# Bytes that are unpacked at once.
_STEP = 2**20
# The largest ratio of unpacked to packed size, beyond a minimum size. Weights hardly compress; zip bombs do.
_MAX_RATIO = 20
_FLOOR = 2**24


def is_bomb(size: int, packed: int) -> bool:
    """Returns whether `packed` bytes unpack to more than those of a model could."""
    return size > max(_FLOOR, _MAX_RATIO * packed)


def check_method(entry: zipfile.ZipInfo) -> None:
    """Raises zipfile.BadZipFile if an entry is packed by another method than deflate."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile("it is packed by another method than deflate; pack it again, stored or deflated")


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Returns the content of an entry. Errors are those of `zipfile`."""
    check_method(entry)
    with archive.open(entry) as file:
        return b"".join(iter(_Steps(file).read, b""))


def read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    """Returns the array that an entry of an `.npz` holds. Errors are those of `zipfile` and NumPy."""
    import numpy as np  # only here, because it would slow down `--help`

    check_method(entry)
    with archive.open(entry) as file:
        array: NDArray[Any] = np.lib.format.read_array(_Steps(file), allow_pickle=False)
        return array


class _Steps:
    """An open entry. A read returns less than is asked for if that is more than a step, as a file may."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = _STEP) -> bytes:
        return self._file.read(min(size, _STEP))
