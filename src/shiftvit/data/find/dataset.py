"""The types that hold images everywhere: a split, a data set of splits, and a listing of a user's images."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.data.find.words import has_controls, normalise_name
from shiftvit.errors import ShiftViTError, join_words, list_some, notice, pluralize
from shiftvit.preprocess import Preprocess

# The names of the splits, in the order in which they are listed everywhere.
SPLITS = ("train", "validation", "test")
_WHOLE_NUMBER = re.compile(r"[-+]?[0-9]{1,300}")

# An image in a folder or table: its split, its path, the name of its class.
Row = tuple[str, str, str]


@dataclass(frozen=True, eq=False)
class Split:
    """N images, their classes and their remaining preprocessing.

    Attributes:
        labels: int64 (N,), each an index into the data set's class names.
        paths: the location of each image: a file, a row of a Parquet file such as `train.parquet#3`, or an element of
            an archive such as `x_train[3]`. None: arrays without locations.
        images: uint8 (N, H, W, 3), RGB: an array, or `Pictures`, which decode files when indexed. None: the files
            were not read yet.
        preprocess: the remaining preprocessing of `images`. It has no meaning until they are read.
        copies: a number for each image, int64 (N,), equal for equal images. None: the images were not compared.
    """

    labels: NDArray[np.int64]
    paths: list[str] | None = None
    images: Any = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    copies: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Split:
        """Returns the images at `indices`, whole numbers (M,), in that order."""
        indices = np.asarray(indices, np.int64)
        paths = None if self.paths is None else [self.paths[index] for index in indices]
        images = None if self.images is None else self.images[indices]
        copies = None if self.copies is None else self.copies[indices]
        return Split(self.labels[indices], paths, images, self.preprocess, copies)

    def path(self, index: int) -> str | None:
        """Returns the location of an image, or None if it has none."""
        return None if self.paths is None else self.paths[index]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in splits, with the names of their classes.

    Attributes:
        splits: "train", "validation" and "test", or some of them, in this order.
        class_names: the names of the classes, in the order of the labels.
        name: the name of the data set, such as "cifar10", or the path as text.
        path: the path of a user's own images; None: a data set by name, or arrays.
        layout: the layout of a user's own images, in words.
        notes: a phrase for each kind of file or image that was left out or is missing.
        test_is_validation: there are no test images, so `test` is the validation split.
    """

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    name: str
    path: Path | None = None
    layout: str = ""
    notes: tuple[str, ...] = ()
    test_is_validation: bool = False

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def validation(self) -> Split | None:
        return self.splits.get("validation")

    @property
    def test(self) -> Split:
        return self.splits["test"]

    @property
    def root(self) -> Path:
        """The folder to which paths in a table of these images are relative."""
        path = self.path or Path()
        return path if path.is_dir() else path.parent

    def check_sizes(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Raises ShiftViTError unless the images of all splits have one (height, width) after preprocessing."""
        height, width = sizes["train"]
        for name, size in sizes.items():
            if size != (height, width):
                raise ShiftViTError(
                    f"after preprocessing, the {name} images of {self.name} have {size[0]} x {size[1]} pixels and the "
                    f"training images {height} x {width}; set preprocess.resize and preprocess.crop"
                )

    def leave_out(self, paths: Collection[str]) -> Dataset:
        """Returns the data set without the images at these paths."""
        splits = {}
        for name, split in self.splits.items():
            keep = [index for index in range(len(split)) if split.path(index) not in paths]
            splits[name] = split.take(keep) if len(keep) < len(split) else split
        return replace(self, splits=splits)

    def list_paths(self) -> list[str]:
        """Returns the locations of all images."""
        return [path for split in self.splits.values() for path in split.paths or []]

    def name_lost(self, usable: Dataset) -> dict[str, list[str]]:
        """Returns the classes that lack an image in the same split of another data set: split -> quoted names."""
        lost = {}
        for name, split in self.splits.items():
            labels = np.setdiff1d(split.labels, usable.splits[name].labels).tolist()
            if labels:
                lost[name] = [repr(self.class_names[label]) for label in labels]
        return lost

    def report_lost(self, usable: Dataset) -> set[str]:
        """Prints a notice for each split with classes of which no image can be decoded. Returns these splits."""
        lost = self.name_lost(usable)
        for split, names in lost.items():
            notice(f"note: no {split} image of {join_words(names)} can be decoded")
        return {*lost}

    def report_counts(self) -> None:
        """Prints a notice with the number of images in each split and class."""
        for name, split in self.splits.items():
            counts = np.bincount(split.labels, minlength=len(self.class_names))
            notice(f"{name}: {pluralize(len(split), 'image')}, {describe_range(counts)} per class")


@dataclass(frozen=True, eq=False)
class Listing:
    """The images in a folder or table, before their classes are numbered.

    Attributes:
        layout: the layout, in words.
        rows: (split, path, class name) of each image.
        notes: a phrase for each kind of file or image that was left out or is missing.
        names: the classes, in order; None: those of the training images, in the natural order of their names.
    """

    layout: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    names: Sequence[str] | None = None


def number_classes(path: Path, listing: Listing, *, training: bool = True) -> Dataset:
    """Makes a data set from a listing: numbers the classes and sorts the images into splits.

    Args:
        path: the path of the images.
        listing: the images.
        training: as for `find_data`.

    Raises:
        ShiftViTError: there are no images, or none for training; a class has no training images; or a name is not
            valid UTF-8.
    """
    rows = [(split, image, normalise_name(name)) for split, image, name in listing.rows]
    names, notes = listing.names, listing.notes
    by_split: dict[str, list[Row]] = {}
    for row in rows:
        by_split.setdefault(row[0], []).append(row)
    if not by_split.get("train") and training:
        raise ShiftViTError(
            f"{str(path)!r} has no images for training{format_notes(notes)}; add some whose split is train"
        )
    if not by_split:
        raise ShiftViTError(f"{str(path)!r} has no images with labels; give at least 1")
    if names is None:
        names = sorted({name for _, _, name in (by_split["train"] if training else rows)}, key=make_natural_key)
    names = [*map(normalise_name, names)]
    for image in (image for _, image, _ in rows):
        if not is_text(image):
            raise ShiftViTError(f"the name {os.fsencode(image)!r} of an image is not valid UTF-8; rename it")
    index = {name: number for number, name in enumerate(names)}
    splits = {}
    for split in (split for split in SPLITS if split in by_split):
        for _, image, name in by_split[split]:
            if name not in index:
                raise ShiftViTError(
                    f"the class {name!r} of {split} ({image!r}) has no images in train{format_notes(notes)}; "
                    "add some, or rename or remove it"
                )
        labels = np.array([index[name] for _, _, name in by_split[split]], np.int64)
        splits[split] = Split(labels, [image for _, image, _ in by_split[split]])
    return Dataset(splits, tuple(names), str(path), path, listing.layout, tuple(notes))


def check_names(data: Dataset) -> None:
    """Raises ShiftViTError unless the class names differ and are printable on one line."""
    names = data.class_names
    for name in names:
        if not is_text(name):
            raise ShiftViTError(f"the class name {os.fsencode(name)!r} of {data.name!r} is not valid UTF-8; rename it")
        if not name.strip() or has_controls(name):
            what = "has line breaks or control characters" if name.strip() else "is blank"
            raise ShiftViTError(f"the class name {name!r} of {data.name!r} {what}; rename the class")
    if len({*map(normalise_name, names)}) < len(names):
        twice, _ = Counter(map(normalise_name, names)).most_common(1)[0]
        raise ShiftViTError(f"{data.name!r} has two classes {twice!r}; rename one of them")


def check_classes(data: Dataset) -> Dataset:
    """Returns the data set with a note for each split that lacks a class.

    Raises:
        ShiftViTError: fewer than two classes.
    """
    names = data.class_names
    if len(names) < 2:
        has = f"one class, {names[0]!r}" if names else "no class"
        raise ShiftViTError(
            f"{data.name!r} has {has}{format_notes(data.notes)}; a classifier needs 2 or more; add images of "
            "another class"
        )
    notes = []
    for split, part in data.splits.items():
        counts = np.bincount(part.labels, minlength=len(names))
        missing = [name for name, count in zip(names, counts, strict=True) if not count]
        if missing:
            notes.append(f"{split} has no images of {list_some(missing, 5)}")
    return replace(data, notes=(*data.notes, *notes))


def format_notes(notes: Sequence[str]) -> str:
    """Returns the notes in brackets, to put them into a message."""
    return f" (also found: {'; '.join(notes)})" if notes else ""


def is_text(name: str) -> bool:
    """Returns whether a name is valid UTF-8; a file's name may be any bytes."""
    return name.isascii() or name.encode("utf-8", "replace").decode() == name


def describe_range(counts: NDArray[np.integer[Any]]) -> str:
    """Returns the range of some counts as text: `3 to 1,200`, or `3` if all are equal."""
    least, most = f"{counts.min():,}", f"{counts.max():,}"
    return least if least == most else f"{least} to {most}"


def make_natural_key(text: str) -> tuple[Any, ...]:
    """Returns the key that sorts `img2` before `img10`, and whole numbers by their value and before other text."""
    if _WHOLE_NUMBER.fullmatch(text):
        return 0, int(text), text
    parts = re.split(r"([0-9]+)", text.casefold())  # text and digits in turn
    digits = (part.lstrip("0") for part in parts[1::2])
    return 1, tuple(zip(parts[::2], [*((len(part), part) for part in digits), (0, "")], strict=True)), text
