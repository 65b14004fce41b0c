"""What images a user has, whatever they were found in: the files of each split, their labels and classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shiftvit.errors import ShiftViTError

# What people call the splits, and their names here.
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
ORDER = ("train", "validation", "test")
_NUMBERED = re.compile(r"[-+]?[0-9]{1,300}")


@dataclass(frozen=True, eq=False)
class Files:
    """The images of one split and what they show.

    `paths` are N files that can be opened from the current folder, or rows of Parquet files, such as
    `data/train.parquet#3`; of an archive they are the places of the images in it, such as `x_train[3]`, and `images`
    holds them: uint8 (N, H, W, 3), RGB. `labels` are int64 (N,), each an index into the class names.
    """

    paths: list[str]
    labels: NDArray[np.int64]
    images: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Files:
        """Returns some of the images, in the order of `indices`."""
        places = np.asarray(indices, np.int64)
        images = None if self.images is None else self.images[places]
        return Files([self.paths[place] for place in places], self.labels[places], images)


@dataclass(frozen=True, eq=False)
class FoundData:
    """A user's data set.

    `layout` says in words how the images lie; `splits` has "train", and "validation" and "test" where these are apart;
    `ignored` says what was left out or is lacking, a phrase each.
    """

    path: Path
    layout: str
    class_names: tuple[str, ...]
    splits: dict[str, Files]
    ignored: tuple[str, ...] = ()


class Row(NamedTuple):
    """An image as a table has it."""

    split: str
    path: str
    label: str


def natural(text: str) -> tuple[Any, ...]:
    """Returns the key that sorts `img2` before `img10`, and whole numbers by their value and before other text."""
    if _NUMBERED.fullmatch(text):
        return 0, int(text), text
    parts = re.split(r"([0-9]+)", text.casefold())  # text and digits in turn
    digits = (part.lstrip("0") for part in parts[1::2])
    return 1, tuple(zip(parts[::2], [*((len(part), part) for part in digits), (0, "")], strict=True)), text


def listed(words: Sequence[str]) -> str:
    """Returns `a`, `a and b` or `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def gathered(
    path: Path, layout: str, rows: Iterable[Row], ignored: Sequence[str] = (), names: Sequence[str] | None = None
) -> FoundData:
    """Numbers the classes and puts the rows into their splits.

    The classes are `names`, or else those of training, in the natural order of their names.

    Raises:
        ShiftViTError: nothing to train on, fewer than two classes, a class that training does not have.
    """
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row.split, []).append(row)
    if names is None:
        names = sorted({row.label for row in parts.get("train", [])}, key=natural)
    if not parts.get("train"):
        raise ShiftViTError(f"{str(path)!r} has no images for training; add some whose split is train")
    for name in names:
        if name.encode("utf-8", "replace").decode() != name:  # a folder's name is bytes, of any kind
            raise ShiftViTError(f"the class name {name!r} of {str(path)!r} has bytes that are no text; rename it")
    index = {name: number for number, name in enumerate(names)}
    unknown = next((row for part in parts.values() for row in part if row.label not in index), None)
    if unknown:
        raise ShiftViTError(
            f"the class {unknown.label!r} of {unknown.split} ({unknown.path!r}) has no images in train; "
            "add some, or rename or remove it"
        )
    splits = {
        split: Files([row.path for row in parts[split]], np.array([index[row.label] for row in parts[split]], np.int64))
        for split in ORDER
        if split in parts
    }
    return checked(FoundData(path, layout, tuple(names), splits, tuple(ignored)))


def checked(found: FoundData) -> FoundData:
    """Raises ShiftViTError for fewer than two classes, and notes which of them a split lacks."""
    names = found.class_names
    if len(names) < 2:
        has = f"one class, {names[0]!r}" if names else "no class"
        raise ShiftViTError(f"{str(found.path)!r} has {has}; a classifier needs 2 or more, add images of another")
    lacking = []
    for split, part in found.splits.items():
        absent = [
            name for name, count in zip(names, np.bincount(part.labels, minlength=len(names)), strict=True) if not count
        ]
        if absent:
            shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5:,} more" if len(absent) > 5 else "")
            lacking.append(f"{split} has no images of {shown}")
    return replace(found, ignored=(*found.ignored, *lacking))
