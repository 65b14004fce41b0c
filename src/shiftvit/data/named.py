"""Data sets by name or by path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shiftvit.data.cifar10.cache import CLASS_NAMES, load_cifar10
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.errors import ShiftViTError, list_some, notice, suggest


def look_up(name: str, *, training: bool = True) -> Dataset:
    """Returns the data set of that name, or a user's own images at that path, without reading their files.

    Args:
        name: a name or a path.
        training: as for `find_data`.

    Raises:
        ShiftViTError: there is no such name or path, or the data at that path have no known form.
    """
    if not is_path(name):
        if _exists(name):
            notice(f"using the data set {name}; for the folder or file of that name write --data ./{name}")
        return load(name)
    from shiftvit.data.find.find import find_data  # only here, because it imports Pillow

    return find_data(name, training=training)


def load(name: str) -> Dataset:
    """Loads a data set by name, and downloads it first if it is not in the cache.

    Raises:
        ShiftViTError: there is no such data set, or it cannot be downloaded.
    """
    check_name(name)
    return _LOADERS[name]()


def is_path(name: str) -> bool:
    """Returns whether a name is a path that exists, and not the name of a data set."""
    return not is_name(name) and _exists(name)


def locate(path: str | Path) -> str:
    """Returns the absolute path of a user's images, which works from any folder.

    A link to a file stays: what it leads to may have no suffix, and the images that a table names are beside the link.
    """
    path = Path(path)
    return str(path.resolve() if path.is_dir() else path.parent.resolve() / path.name)


def is_name(name: str) -> bool:
    """Returns whether there is a data set of that name."""
    return name in _LOADERS


def _exists(name: str) -> bool:
    return os.path.exists(name)  # noqa: PTH110  (a name may be too long, which a Path does not take)


def check_name(name: str) -> None:
    """Raises ShiftViTError unless there is a data set of that name, or something at that path."""
    if not is_name(name) and not is_path(name):
        raise ShiftViTError(
            f"there is no data set {name!r}; {suggest(name, _LOADERS)} There is no file or folder of that name "
            "either; give your images with --data PATH"
        )


def find_by_classes(class_names: tuple[str, ...]) -> str:
    """Returns the name of the data set that has the classes of a model.

    Raises:
        ShiftViTError: there is none.
    """
    for name, known in _CLASSES.items():
        if known == class_names:
            return name
    raise ShiftViTError(
        f"no known data set has the model's classes ({list_some(class_names)}); name images or a data set with --data"
    )


def _load_cifar10() -> Dataset:
    x_train, y_train, x_test, y_test = load_cifar10()
    splits = {
        "train": Split(y_train.astype(np.int64), images=x_train),
        "test": Split(y_test.astype(np.int64), images=x_test),
    }
    return Dataset(splits, CLASS_NAMES, "cifar10")


_LOADERS: dict[str, Callable[[], Dataset]] = {"cifar10": _load_cifar10}
_CLASSES = {"cifar10": CLASS_NAMES}
