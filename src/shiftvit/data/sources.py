"""Data sets by name, and the validation split."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.data.cifar10.cache import CLASS_NAMES, load_cifar10
from shiftvit.errors import ShiftViTError, nearest


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set in memory.

    Images are uint8 (N, H, W, 3), RGB; labels are int64 (N,), each an index into `class_names`.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    name: str


def load(name: str) -> ImageData:
    """Loads a data set by name, getting it first if it is not in the cache.

    Raises:
        ShiftViTError: there is no such data set, or no way to it.
    """
    check_name(name)
    return _LOADERS[name]()


def is_path(name: str) -> bool:
    """Returns whether the name stands for a user's own images: no data set is called so, and something lies there."""
    return name not in _LOADERS and Path(name).exists()


def check_name(name: str) -> None:
    """Raises ShiftViTError unless there is a data set of that name, or something at that path."""
    if name not in _LOADERS and not is_path(name):
        raise ShiftViTError(
            f"there is no data set {name!r}; {nearest(name, _LOADERS)} Nor does a file or folder of that name exist; "
            "give your images with --data PATH"
        )


def with_classes(class_names: tuple[str, ...]) -> str | None:
    """Returns the name of the data set that has these classes, or None."""
    return next((name for name, known in _CLASSES.items() if known == class_names), None)


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


def _cifar10() -> ImageData:
    x_train, y_train, x_test, y_test = load_cifar10()
    return ImageData(x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64), CLASS_NAMES, name="cifar10")


_LOADERS: dict[str, Callable[[], ImageData]] = {"cifar10": _cifar10}
_CLASSES = {"cifar10": CLASS_NAMES}
