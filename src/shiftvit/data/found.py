"""What images a user has: lists of files and arrays with labels, from a table or an archive."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shiftvit.data.decode.rows import is_image
from shiftvit.errors import ShiftViTError

# What people call the splits, and their names here.
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
ORDER = ("train", "validation", "test")
_COLUMNS = {
    "path": ("path", "file", "filename", "image"),
    "label": ("label", "class", "category", "target"),
    "split": ("split",),
}
# The arrays of an archive: this package's and Keras' names, those of MedMNIST, and images that are not split.
_ARRAYS = (
    ("train", "x_train", "y_train"),
    ("validation", "x_val", "y_val"),
    ("test", "x_test", "y_test"),
    ("train", "train_images", "train_labels"),
    ("validation", "val_images", "val_labels"),
    ("test", "test_images", "test_labels"),
    ("train", "images", "labels"),
)
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
    return _checked(FoundData(path, layout, tuple(names), splits, tuple(ignored)))


def _checked(found: FoundData) -> FoundData:
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


def read_table(path: Path, root: Path) -> tuple[list[Row], list[str]]:
    """Reads a .csv or .tsv: a header that names the columns, or none and two columns, path and label.

    Args:
        path: the table, UTF-8; a .csv may be cut by commas, semicolons or tabs.
        root: what its paths are relative to.

    Returns:
        The rows, "train" where the table has no split, and which columns it has: path, label, split.

    Raises:
        ShiftViTError: it is no such table, or names files that do not exist; those of a .npz are not looked for.
    """
    lines = _lines(path)
    if not lines:
        raise ShiftViTError(f"{str(path)!r} is empty; give a line of path and label for each image")
    head = [cell.strip().casefold() for cell in lines[0][1]]
    where = {
        column: head.index(next(name for name in names if name in head))
        for column, names in _COLUMNS.items()
        if not {*names}.isdisjoint(head)
    }
    headed = {"path", "label"} <= where.keys()
    if headed:
        lines = lines[1:]
    elif not where and len(head) == 2:
        where = {"path": 0, "label": 1}
    else:
        known = " and ".join("|".join(_COLUMNS[column]) for column in ("path", "label"))
        raise ShiftViTError(f"{str(path)!r} has the columns {', '.join(head)[:200]}; name two of them {known}")
    rows = [_row(path, root, number, cells, where) for number, cells in lines]
    missing = [row.path for row in rows if root.suffix.lower() != ".npz" and not is_image(row.path)]
    if not headed and missing == [rows[0].path] and len(rows) > 1:
        raise ShiftViTError(
            f"{str(path)!r} begins with {missing[0]!r}, which is no file, and all others are; if it is a header, name "
            "its columns path and label"
        )
    if missing:
        raise ShiftViTError(
            f"{str(path)!r} names {len(missing):,} of {len(rows):,} files that do not exist, the first "
            f"{missing[0]!r}; give paths relative to {str(root)!r}"
        )
    return rows, list(where)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Returns the cells of each line that is not blank, with the line's number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            sign = "\t" if path.suffix.lower() == ".tsv" else next((sign for sign in ",;\t" if sign in first), ",")
            reader = csv.reader(stream, delimiter=sign, strict=True)
            return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except UnicodeDecodeError as error:
        raise ShiftViTError(f"{str(path)!r} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise ShiftViTError(f"{str(path)!r} is no readable table ({error}); save it anew as CSV") from error


def _row(path: Path, root: Path, number: int, cells: list[str], where: dict[str, int]) -> Row:
    raw = {column: cells[at] if at < len(cells) else "" for column, at in where.items()}
    values = {column: value.strip() for column, value in raw.items()}
    values.setdefault("split", "train")
    bare = next((column for column, value in values.items() if not value), None)
    if bare:
        raise ShiftViTError(f"line {number} of {str(path)!r} has no {bare}; give one, or remove the line")
    split = SPLITS.get(values["split"].casefold())
    if split is None:
        raise ShiftViTError(
            f"line {number} of {str(path)!r} has the split {values['split']!r}; use train, validation or test"
        )
    if root.suffix.lower() == ".npz":
        return Row(split, values["path"], values["label"])
    exact = root / raw["path"]  # a name may end in a space, though mostly that is the table's
    return Row(split, str(exact if exact.is_file() else root / values["path"]), values["label"])


def read_archive(path: Path) -> FoundData:
    """Reads a .npz: uint8 images (N, H, W, 3), (N, H, W, 1) or (N, H, W), whole-number labels, maybe class names.

    Raises:
        ShiftViTError: it has no such arrays, or arrays of objects, of other shapes or types, labels out of range.
    """
    arrays, unused = _arrays(path)
    splits: dict[str, Files] = {}
    for split, images, labels in _ARRAYS:
        if images in arrays and labels in arrays and split not in splits:
            pixels, numbers = arrays.pop(images), arrays.pop(labels)
            splits[split] = _pair(path, images, labels, pixels, numbers)
    if not splits.get("train"):
        raise ShiftViTError(f"{str(path)!r} has no images for training; name its arrays x_train and y_train")
    names = arrays.pop("class_names", None)
    # Without names the numbers are the names; one past the number of images can only be a mistake.
    most = int(splits["train"].labels.max()) + 1
    class_names = tuple(map(str, range(min(most, len(splits["train"]))) if names is None else names.tolist()))
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U" or len(set(class_names)) < len(names)):
        raise ShiftViTError(f"class_names of {str(path)!r} is no list of different names; give a string for each class")
    for split, part in splits.items():
        if int(part.labels.max(initial=0)) >= len(class_names):
            raise ShiftViTError(
                f"the {split} labels of {str(path)!r} go up to {part.labels.max()}, out of range for "
                f"{len(class_names)} classes; number them 0..{len(class_names) - 1}"
            )
    ignored = [f"arrays that are not used: {', '.join([*unused, *arrays])}"] if unused or arrays else []
    return _checked(FoundData(path, "NumPy archive", class_names, splits, tuple(ignored)))


def _arrays(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Returns the arrays of an archive that have a meaning, and the names of the others."""
    wanted = {"class_names", *(name for _, *names in _ARRAYS for name in names)}
    name = ""
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ShiftViTError(f"{str(path)!r} holds a single array; save images and labels with numpy.savez")
            arrays = {}
            for name in archive.files:
                if name in wanted:
                    arrays[name] = archive[name]
            return arrays, [name for name in archive.files if name not in wanted]
    except ShiftViTError:
        raise
    except Exception as error:  # damaged archives raise nearly anything
        what = f"the array {name!r} of {str(path)!r}" if name else repr(str(path))
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ShiftViTError(f"{what} cannot be read ({reason}); save plain arrays with numpy.savez") from error


def _pair(path: Path, images: str, labels: str, pixels: NDArray[Any], numbers: NDArray[Any]) -> Files:
    if numbers.ndim == 2 and numbers.shape[1] == 1:  # as Keras and MedMNIST have them
        numbers = numbers[:, 0]
    fault = f"of {str(path)!r} is {{}} {{}}; it must be {{}}"
    if pixels.dtype != np.uint8 or pixels.ndim not in {3, 4} or (pixels.ndim == 4 and pixels.shape[3] not in {1, 3}):
        rule = "uint8 (N, H, W, 3) or (N, H, W)"
        raise ShiftViTError(f"{images} {fault.format(pixels.dtype, pixels.shape, rule)}")
    if numbers.dtype.kind not in "iu" or numbers.shape != pixels.shape[:1]:
        rule = f"whole numbers ({len(pixels)},), one for each of {images}"
        raise ShiftViTError(f"{labels} {fault.format(numbers.dtype, numbers.shape, rule)}")
    if 0 in pixels.shape:
        raise ShiftViTError(f"{images} {fault.format(pixels.dtype, pixels.shape, 'more than nothing')}")
    if numbers.min() < 0 or int(numbers.max()) >= 2**31:
        out = numbers.min() if numbers.min() < 0 else numbers.max()
        raise ShiftViTError(f"{labels} of {str(path)!r} has the label {out}; number the classes 0, 1, 2 ...")
    if pixels.ndim == 3 or pixels.shape[3] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:3], 1), 3, axis=3)
    return Files([f"{images}[{number}]" for number in range(len(pixels))], numbers.astype(np.int64), pixels)
