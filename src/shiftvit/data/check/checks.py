"""Checks a data set: decodes every image once and keeps a fingerprint of it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
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
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess
from shiftvit.threads import map_in_threads


class _Look(NamedTuple):
    """The findings about an image that can be decoded."""

    mark: Fingerprint
    size: tuple[int, int]  # (height, width)
    form: str
    mode: str


def check_data(
    data: Dataset,
    *,
    rule: Preprocess | None = None,
    made: Sequence[str] = (),
    stratify: bool = True,
    faults: Sequence[str] = (),
) -> Report:
    """Decodes every image, and looks for problems that would harm training.

    Memory holds an image for each thread, and about 1 kB for each image that was decoded. A terminal shows the
    progress.

    Args:
        data: the result of `find_data` or `split_as`.
        rule: resizes and crops the pictures; one that is too elongated or too small for it counts as corrupt.
        made: the splits that `split_as` took from the training images.
        stratify: whether it took some of each class.
        faults: other problems of the data, a line each.

    Raises:
        ShiftViTError: Parquet files that cannot be unpacked.
    """
    members = [(name, index) for name, split in data.splits.items() for index in range(len(split))]
    unpack(data.list_paths())
    corrupt, good, looks = [], [], []
    with Bar("checking images", len(members)) as bar:
        for member, look in zip(members, map_in_threads(partial(_look, data, rule), members), strict=True):
            if isinstance(look, str):
                corrupt.append((member, look))
            else:
                good.append(member)
                looks.append(look)
            bar.advance()
    labels = [int(data.splits[name].labels[index]) for name, index in good]
    groups, complete = find_groups(good, labels, [look.mark for look in looks])
    counts = {name: np.zeros(len(data.class_names), np.int64) for name in data.splits}
    for (name, _), label in zip(good, labels, strict=True):
        counts[name][label] += 1
    return Report(
        data,
        corrupt=tuple(corrupt),
        groups=groups,
        counts=counts,
        sizes=np.array([look.size for look in looks], np.int64).reshape(-1, 2),
        forms=dict(Counter(look.form for look in looks).most_common()),
        modes=dict(Counter(look.mode for look in looks).most_common()),
        complete=complete,
        made=tuple(made),
        stratify=stratify,
        faults=tuple(faults),
    )


def _look(data: Dataset, rule: Preprocess | None, member: Member) -> _Look | str:
    """Decodes an image and returns the findings, or the fault."""
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
        try:
            if rule is not None:
                rule.output_shape(*pixels.shape[:2])
        except ShiftViTError as error:
            return f"{path!r}: {error}"
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
    except Exception:  # not a fault of the data, because the image was decoded
        return form, "unknown"
