"""Checks a data set: decodes every image once, in threads, and keeps only a fingerprint of it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from shiftvit.console import Bar
from shiftvit.data.check.duplicates import Fingerprint, Member, find_groups, fingerprint
from shiftvit.data.check.report import Report
from shiftvit.data.decode.formats import find_kind, reduce
from shiftvit.data.decode.images import decode, read_bytes
from shiftvit.data.decode.readers import open_reader
from shiftvit.data.decode.rows import unpack
from shiftvit.data.find.dataset import Dataset
from shiftvit.environment import count_cores
from shiftvit.errors import ShiftViTError

__all__ = ["Report", "check_data"]

_AT_A_TIME = 512  # files that wait for a thread, so that an interrupt need not wait for all


class _Look(NamedTuple):
    """What is kept of an image that was decoded."""

    mark: Fingerprint
    size: tuple[int, int]  # (height, width)
    form: str
    mode: str


def check_data(data: Dataset, *, made: Sequence[str] = (), faults: Sequence[str] = ()) -> Report:
    """Decodes every image, and looks for what would harm training.

    No more images are in memory than there are workers, and about 1 kB of each one that is done. On a terminal a bar
    shows the progress, on standard error.

    Args:
        data: what `find_data` or `split_data` returned.
        made: the splits that `split_data` made of the training images.
        faults: what else is wrong with the data, a line each.

    Raises:
        ShiftViTError: Parquet files that cannot be unpacked.
    """
    members = [(name, index) for name, split in data.splits.items() for index in range(len(split))]
    unpack(path for split in data.splits.values() if split.images is None for path in split.paths or [])
    corrupt, good, looks = [], [], []
    for member, look in zip(members, _look_at_all(data, members), strict=True):
        if isinstance(look, str):
            corrupt.append((member, look))
        else:
            good.append(member)
            looks.append(look)
    labels = [int(data.splits[name].labels[index]) for name, index in good]
    duplicates, complete = find_groups(good, labels, [look.mark for look in looks])
    counts = {name: np.zeros(len(data.class_names), np.int64) for name in data.splits}
    for (name, _), label in zip(good, labels, strict=True):
        counts[name][label] += 1
    return Report(
        data,
        tuple(corrupt),
        duplicates,
        counts,
        np.array([look.size for look in looks], np.int64).reshape(-1, 2),
        dict(Counter(look.form for look in looks).most_common()),
        dict(Counter(look.mode for look in looks).most_common()),
        complete,
        tuple(made),
        tuple(faults),
    )


def _look_at_all(data: Dataset, members: list[Member]) -> Iterator[_Look | str]:
    """Yields what is kept of each image, or its fault, in their order; shows the progress."""
    with Bar("checking images", len(members)) as bar, ThreadPoolExecutor(min(8, count_cores())) as pool:
        for first in range(0, len(members), _AT_A_TIME):
            for look in pool.map(lambda member: _look(data, member), members[first : first + _AT_A_TIME]):
                bar.advance()
                yield look


def _look(data: Dataset, member: Member) -> _Look | str:
    """Decodes an image and returns what is kept of it, or the fault."""
    name, index = member
    split = data.splits[name]
    if split.images is not None:
        pixels, form, mode = split.images[index], "array", "RGB"
    else:
        path = str(split.path(index))
        try:
            content = read_bytes(path)
            pixels = decode(content, name=path)
        except ShiftViTError as error:
            return str(error)
        form, mode = _read_header(content)
    return _Look(fingerprint(pixels), (pixels.shape[0], pixels.shape[1]), form, mode)


def _read_header(content: bytes) -> tuple[str, str]:
    """Returns the format and the colour mode of a file that can be decoded."""
    form = find_kind(content) or "unknown"
    try:
        with contextlib.closing(open_reader(form, reduce(form, content)[0])) as image:
            return form, str(image.mode)
    except MemoryError:
        raise
    except Exception:  # it was decoded, so that what this reader dislikes is not a fault of the data
        return form, "unknown"
