"""Checks a data set: every image is decoded once, in threads, and nothing of it is kept but a fingerprint."""

from __future__ import annotations

import io
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from shiftvit.console import Bar
from shiftvit.data.check.duplicates import Fingerprint, Place, find_groups, fingerprint
from shiftvit.data.check.report import Report, pixels_of
from shiftvit.data.decode.formats import kind_of, reduce
from shiftvit.data.decode.images import read_bytes
from shiftvit.data.decode.rows import unpack
from shiftvit.data.find.dataset import FoundData
from shiftvit.errors import ShiftViTError

__all__ = ["Report", "check_data"]

_AT_A_TIME = 512  # files that wait for a thread, so that an interrupt need not wait for all


class _Look(NamedTuple):
    """What is kept of an image that was decoded."""

    mark: Fingerprint
    size: tuple[int, int]  # (height, width)
    form: str
    mode: str


def check_data(found: FoundData, *, workers: int | None = None) -> Report:
    """Decodes every image, and looks for what would harm training.

    No more images are in memory than there are workers, and about 1 kB of each one that is done. On a terminal a bar
    shows the progress, on standard error.

    Args:
        found: what `find_data` or `split_data` returned.
        workers: threads that decode; None: one a processor, up to 8.

    Raises:
        ShiftViTError: fewer than 1 worker, or Parquet files that cannot be unpacked.
    """
    if workers is not None and workers < 1:
        raise ShiftViTError(f"workers={workers} is no number of threads; use 1 or more")
    places = [
        Place(split, number, path, found.class_names[label])
        for split, part in found.splits.items()
        for number, (path, label) in enumerate(zip(part.paths, part.labels.tolist(), strict=True))
    ]
    unpack(place.path for place in places if found.splits[place.split].images is None)
    corrupt, good, looks = [], [], []
    with (
        Bar("checking images", len(places)) as bar,
        ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool,
    ):
        for batch in (places[first : first + _AT_A_TIME] for first in range(0, len(places), _AT_A_TIME)):
            for place, look in zip(batch, pool.map(lambda place: _look(found, place), batch), strict=True):
                if isinstance(look, str):
                    corrupt.append((place, look))
                else:
                    good.append(place)
                    looks.append(look)
                bar.advance()
    duplicates, complete = find_groups(good, [look.mark for look in looks])
    index = {name: number for number, name in enumerate(found.class_names)}
    return Report(
        found,
        tuple(corrupt),
        duplicates,
        {
            split: np.bincount(
                np.array([index[place.label] for place in good if place.split == split], np.int64), minlength=len(index)
            )
            for split in found.splits
        },
        np.array([look.size for look in looks], np.int64).reshape(-1, 2),
        dict(Counter(look.form for look in looks).most_common()),
        dict(Counter(look.mode for look in looks).most_common()),
        complete,
    )


def _look(found: FoundData, place: Place) -> _Look | str:
    """Decodes an image and returns what is kept of it, or the fault."""
    part = found.splits[place.split]
    try:
        pixels = pixels_of(part, place.number)
    except ShiftViTError as error:
        return str(error)
    form, mode = ("array", "RGB") if part.images is not None else _stored(place.path)
    return _Look(fingerprint(pixels), (pixels.shape[0], pixels.shape[1]), form, mode)


def _stored(path: str) -> tuple[str, str]:
    """Returns the format and the colour mode of a file that can be decoded, from its header."""
    form = "unknown"
    try:
        data = read_bytes(path)
        form = kind_of(data) or form
        with Image.open(io.BytesIO(reduce(form, data)[0]), formats=[form.upper()]) as image:
            return form, image.mode
    except Exception:  # it was decoded, so whatever this reader dislikes is no fault of the data
        return form, "unknown"
