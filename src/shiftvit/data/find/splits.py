"""Where a split is made: of a user's images, by class; of a data set's labels; and the table that keeps one."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit import files
from shiftvit.data.find.dataset import ORDER, FoundData
from shiftvit.errors import ShiftViTError


def split_data(found: FoundData, *, validation: float, test: float, seed: int) -> FoundData:
    """Takes the splits that are missing from the training images: by class, at random, the same for the same seed.

    Each class has about the same share of every split, and at least one image in it. The order in which the files were
    found does not matter.

    Args:
        found: what `find_data` returned; splits that it has stay as they are.
        validation, test: how many of the training images go there: a count (1 or more), a fraction or 0.
        seed: 0..2**32-1.

    Raises:
        ShiftViTError: a class or a split that would have too few images, or no such share or seed.
    """
    shares = {"test": test, "validation": validation}
    shares = {name: share for name, share in shares.items() if share != 0 and name not in found.splits}
    train = found.splits["train"]
    if train.images is None:
        train = train.take(sorted(range(len(train)), key=lambda place: (train.paths[place], train.labels[place])))
    classes, counts = np.unique(train.labels, return_counts=True)
    if counts.min() <= len(shares):
        name = found.class_names[classes[counts.argmin()]]
        raise ShiftViTError(
            f"the class {name!r} has {counts.min()} images, too few for {len(shares) + 1} splits; "
            f"add images until it has {len(shares) + 1}, or remove it"
        )
    rest = np.arange(len(train))
    parts = {}
    for left, (name, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
        count = _count(name, share, len(train), len(rest), len(classes))
        _, held = split(train.labels[rest], count, seed=seed)
        kept, held = _with_every_class(train.labels[rest], held, left)
        parts[name] = train.take(rest[held])
        rest = rest[kept]
    splits = {**found.splits, **parts, "train": train.take(rest)}
    return replace(found, splits={name: splits[name] for name in ORDER if name in splits})


def _count(name: str, share: float, total: int, rest: int, classes: int) -> int:
    if not (math.isfinite(share) and share > 0) or (share >= 1 and share != int(share)):
        raise ShiftViTError(f"{name}={share} is no share of the images; use a whole count, a fraction below 1 or 0")
    count = int(share) if share >= 1 else round(share * total)
    if count < classes or rest - count < classes:
        raise ShiftViTError(
            f"{name}={share} of {total:,} images is {count:,}, and both it and the rest ({rest - count:,}) need 1 of "
            f"each of the {classes} classes; change {name}, or add images"
        )
    return count


def _with_every_class(
    labels: NDArray[np.int64], held: NDArray[np.int64], need: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the kept and the held-out places, moved so that of each class 1 is held out and `need` are kept."""
    out = np.zeros(len(labels), bool)
    out[held] = True
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        if not out[own].any():
            out[own[0]] = True
        short = need - int((~out[own]).sum())
        if short > 0:
            out[own[out[own]][:short]] = False
    return np.flatnonzero(~out), np.flatnonzero(out)


def save_splits(found: FoundData, path: Path) -> None:
    """Writes which image is in which split as a CSV of split, path and label; paths are relative to the data's folder.

    Raises:
        ShiftViTError: a file's name is no text, or the table cannot be written.
    """
    root = found.path if found.path.is_dir() else found.path.parent
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "path", "label"])
    for title, part in found.splits.items():
        for name, label in zip(part.paths, part.labels.tolist(), strict=True):
            place = Path(name)
            if part.images is None and place.is_relative_to(root):
                name = place.relative_to(root).as_posix()
            writer.writerow([title, name, found.class_names[label]])
    try:
        data = text.getvalue().encode("utf-8")
    except UnicodeEncodeError as error:
        broken = error.object[error.start : error.start + 40]
        raise ShiftViTError(f"a file's name has bytes that are no text, at {broken!r}; rename the file") from error
    files.write_file(Path(path), lambda temporary: temporary.write_bytes(data))


def split(
    labels: NDArray[np.integer[Any]], validation: float, *, stratify: bool = True, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits training images in two, at random but the same for the same seed.

    Args:
        labels: whole numbers (N,).
        validation: how many go to validation: a count (1 or more), a fraction (below 1, rounded to whole
            images) or 0.
        stratify: keep the proportions of the classes.
        seed: 0..2**32-1.

    Returns:
        The indices for training and for validation, each int64 and rising.

    Raises:
        ShiftViTError: labels of another shape, or a split that these labels do not allow.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ShiftViTError(f"labels have the shape {labels.shape}; give one number for each image, (N,)")
    count = _validation_count(validation, len(labels))
    if not 0 <= seed < 2**32:
        raise ShiftViTError(f"seed={seed} is outside 0..{2**32 - 1}; use a seed in that range")
    everything = np.arange(len(labels))
    if count == 0:
        return everything, everything[:0]
    if stratify:
        _check_strata(labels, count)

    from sklearn.model_selection import train_test_split

    train, held_out = train_test_split(
        everything, test_size=count, random_state=seed, stratify=labels if stratify else None
    )
    return np.sort(train), np.sort(held_out)


def _validation_count(validation: float, total: int) -> int:
    if not (math.isfinite(validation) and validation >= 0):
        raise ShiftViTError(f"validation={validation} is no share of the images; use a count, a fraction or 0")
    if validation >= 1 and validation != int(validation):
        raise ShiftViTError(f"validation={validation} is neither a whole count nor below 1; use either")
    count = int(validation) if validation >= 1 else round(validation * total)
    if validation and not 0 < count < total:
        raise ShiftViTError(
            f"validation={validation} of {total} images is {count}; both parts need at least 1 image, "
            "change validation or use 0"
        )
    return count


def _check_strata(labels: NDArray[np.integer[Any]], count: int) -> None:
    """Raises ShiftViTError unless each class can be in both parts."""
    classes, sizes = np.unique(labels, return_counts=True)
    if sizes.min() < 2:
        raise ShiftViTError(
            f"class {classes[sizes.argmin()]} has 1 image, which cannot be in both parts of a stratified "
            "split; add images or set stratify to false"
        )
    smaller = min(count, len(labels) - count)
    if smaller < len(classes):
        raise ShiftViTError(
            f"a stratified split into {len(labels) - count} and {count} images leaves a part with fewer "
            f"images than the {len(classes)} classes; change validation or set stratify to false"
        )
