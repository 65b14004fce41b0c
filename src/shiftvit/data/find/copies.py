"""Which images are copies of others, byte by byte, so that a split that is made does not part them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftvit.console import Bar
from shiftvit.data.decode.images import decode, read_bytes
from shiftvit.data.decode.rows import row_of, unpack
from shiftvit.data.find.dataset import Split
from shiftvit.environment import cores
from shiftvit.errors import ShiftViTError

# Bytes at the end of a file by which most files of one size are told apart.
_TAIL = 2**16
_AT_A_TIME = 512  # files that wait for a thread


def find_copies(split: Split) -> NDArray[np.int64]:
    """Returns a number for each of N images, int64 (N,), the same for those that are the same.

    Arrays are compared by their pixels, rows of Parquet files by their bytes. Files are compared by their size, and
    only where that is the same by their bytes. What cannot be decoded is the copy of nothing.
    """
    paths = split.paths or []
    if split.images is not None:
        marks: list[Hashable] = [hashlib.blake2b(np.ascontiguousarray(image).data).digest() for image in split.images]
    else:
        unpack(paths)
        marks = [_size(path) for path in paths]
        marks = _compare(paths, marks, partial(_digest, tail=True))
        marks = _compare(paths, marks, partial(_digest, tail=False))
    numbers: dict[Hashable, int] = {}
    alone = (object() for _ in marks)
    keys = [next(alone) if mark is None else mark for mark in marks]
    copies = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
    return copies if split.images is not None else _part_broken(paths, copies)


def _part_broken(paths: list[str], copies: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the numbers, with one of its own for each file that is the copy of no picture."""
    copies = copies.copy()
    order = np.argsort(copies, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(copies[order])) + 1):
        if len(places) > 1:
            try:
                decode(paths[places[0]])
            except ShiftViTError:
                copies[places[1:]] = len(copies) + places[1:]
    return copies


def _size(path: str) -> Hashable:
    """Returns what tells a file from most others, alike for all rows of Parquet files; None: it is no file."""
    try:
        if row_of(path):
            return "row"
        status = os.stat(path)  # noqa: PTH116 - a Path would take longer
        return status.st_size if stat.S_ISREG(status.st_mode) else None
    except (OSError, ValueError):
        return None


def _compare(paths: list[str], marks: list[Hashable], look: Callable[[str], Hashable]) -> list[Hashable]:
    """Returns the marks, with what `look` finds added to those that several images have."""
    counts = Counter(marks)
    alike = [place for place, mark in enumerate(marks) if mark is not None and counts[mark] > 1]
    marks = [*marks]
    with Bar("comparing files", len(alike)) as bar, ThreadPoolExecutor(min(8, cores())) as pool:
        for first in range(0, len(alike), _AT_A_TIME):
            places = alike[first : first + _AT_A_TIME]
            for place, found in zip(places, pool.map(look, map(paths.__getitem__, places)), strict=True):
                marks[place] = marks[place], found
                bar.advance()
    return marks


def _digest(path: str, *, tail: bool) -> Hashable:
    """Returns a hash of an image's bytes, or with `tail` of the last of them."""
    try:
        if row_of(path):
            return hashlib.blake2b(read_bytes(path)).digest() if tail else b""  # once is enough
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if tail:
                file.seek(max(0, size - _TAIL))
            return hashlib.file_digest(file, "blake2b").digest() if tail or size > _TAIL else b""
    except (OSError, ShiftViTError):  # it is not what it was a moment ago
        return path
