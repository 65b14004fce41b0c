"""Finds images that are copies of others, byte by byte, so that a split keeps them together."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftvit.config import DataConfig
from shiftvit.console import Bar
from shiftvit.data.decode.formats import find_kind
from shiftvit.data.decode.images import read_bytes
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.errors import ShiftViTError, notice
from shiftvit.threads import map_in_threads

_HEAD = 512  # bytes at the beginning of a file that show its format
_TAIL = 2**16  # bytes at the end of a file, which differ in most files of the same size


def mark_copies(config: DataConfig, data: Dataset) -> Dataset:
    """Returns the data set with copies among its training images marked, if the settings take splits from these images.

    It compares only a user's own images, and prints a notice of the number of copies.
    """
    shares = {"validation": config.validation, "test": config.test}
    if data.path is None or not any(share and name not in data.splits for name, share in shares.items()):
        return data
    copies = find_copies(data.train)
    repeated = len(copies) - len(np.unique(copies))
    if repeated:
        notice(f"note: copies of other images: {repeated:,}; each stays in the split of its original")
    return replace(data, splits={**data.splits, "train": replace(data.train, copies=copies)})


def find_copies(split: Split) -> NDArray[np.int64]:
    """Returns a number for each of N images, int64 (N,), equal for equal images.

    Arrays are compared by their pixels, rows of Parquet files by their bytes, and files by their size and, if that is
    the same, by their bytes. A file that does not begin like a picture is never a copy.
    """
    if split.images is not None:
        marks: list[Hashable] = [hashlib.blake2b(np.ascontiguousarray(image).data).digest() for image in split.images]
    else:
        paths = split.paths or []
        marks = _compare(paths, [_stat_size(path) for path in paths], _digest_end)
        marks = _compare(paths, marks, _digest)
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(object() if mark is None else mark, len(numbers)) for mark in marks], np.int64)


def _stat_size(path: str) -> int | None:
    """Returns a file's size in bytes; -1 for a row of a Parquet file; None if it cannot be a picture."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path would take longer
        return status.st_size if stat.S_ISREG(status.st_mode) else None
    except (OSError, ValueError):
        return -1


def _compare(paths: list[str], marks: Sequence[Hashable], digest: Callable[[str], Hashable]) -> list[Hashable]:
    """Returns the marks, with a digest added to those that several images have."""
    counts = Counter(marks)
    alike = [place for place, mark in enumerate(marks) if mark is not None and counts[mark] > 1]
    compared = [*marks]
    with Bar("comparing files", len(alike)) as bar:
        for place, found in zip(alike, map_in_threads(digest, (paths[place] for place in alike)), strict=True):
            compared[place] = None if found is None else (marks[place], found)
            bar.advance()
    return compared


def _digest_end(path: str) -> Hashable:
    """Returns a hash of the last bytes of an image; None if it is no picture or cannot be read."""
    try:
        with Path(path).open("rb") as file:
            if find_kind(file.read(_HEAD)) is None:
                return None
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return hashlib.file_digest(file, "blake2b").digest()
    except (OSError, ValueError):  # a row of a Parquet file, or a file that was deleted meanwhile
        return _digest(path)


def _digest(path: str) -> Hashable:
    """Returns a hash of an image's bytes; None if it cannot be read."""
    try:
        return hashlib.blake2b(read_bytes(path)).digest()
    except ShiftViTError:
        return None
