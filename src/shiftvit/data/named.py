"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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


def _cifar10() -> ImageData:
    x_train, y_train, x_test, y_test = load_cifar10()
    return ImageData(x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64), CLASS_NAMES, name="cifar10")


_LOADERS: dict[str, Callable[[], ImageData]] = {"cifar10": _cifar10}
_CLASSES = {"cifar10": CLASS_NAMES}
