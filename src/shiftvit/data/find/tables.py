"""Images from a table (.csv, .tsv) or an archive (.npz)."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.data.decode.rows import is_image
from shiftvit.data.find.dataset import SPLIT_WORDS, Dataset, Row, Split
from shiftvit.errors import ShiftViTError, count_of

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


def read_table(path: Path, root: Path | None) -> tuple[list[Row], list[str]]:
    """Reads a .csv or .tsv: a header that names the columns, or none and two columns, path and label.

    Args:
        path: the table, UTF-8. The separators of a .csv may be commas, semicolons or tabs.
        root: what its paths are relative to. None: they are places in an archive, and no file is looked for.

    Returns:
        the rows, "train" where the table has no split, and which columns it has: path, label, split.

    Raises:
        ShiftViTError: it is not such a table, or names files that do not exist.
    """
    lines = _read_lines(path)
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
    rows = [_read_row(path, root, number, cells, where) for number, cells in lines]
    missing = [] if root is None else [image for _, image, _ in rows if not is_image(image)]
    if not headed and missing == [rows[0][1]] and len(rows) > 1:
        raise ShiftViTError(
            f"{str(path)!r} begins with {missing[0]!r}, which is not a file, while all others are; if it is a "
            "header, name its columns path and label"
        )
    if missing:
        raise ShiftViTError(
            f"{str(path)!r} names {len(missing):,} of {len(rows):,} files that do not exist, the first "
            f"{missing[0]!r}; give paths relative to {str(root)!r}"
        )
    return rows, list(where)


def _read_lines(path: Path) -> list[tuple[int, list[str]]]:
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
        raise ShiftViTError(f"{str(path)!r} is not a readable table ({error}); save it anew as CSV") from error


def _read_row(path: Path, root: Path | None, number: int, cells: list[str], where: dict[str, int]) -> Row:
    raw = {column: cells[at] if at < len(cells) else "" for column, at in where.items()}
    values = {column: value.strip() for column, value in raw.items()}
    values.setdefault("split", "train")
    bare = next((column for column, value in values.items() if not value), None)
    if bare:
        raise ShiftViTError(f"line {number} of {str(path)!r} has no {bare}; give one, or remove the line")
    split = SPLIT_WORDS.get(values["split"].casefold())
    if split is None:
        raise ShiftViTError(
            f"line {number} of {str(path)!r} has the split {values['split']!r}; use train, validation or test"
        )
    if root is None:
        return split, values["path"], values["label"]
    exact = root / raw["path"]  # a file's name may end in a space, but mostly the space is only in the table
    return split, str(exact if exact.is_file() else root / values["path"]), values["label"]


def read_archive(path: Path, *, training: bool = True) -> Dataset:
    """Reads a .npz: uint8 images (N, H, W, 3), (N, H, W, 1) or (N, H, W), whole-number labels, maybe class names.

    Args:
        path: the archive.
        training: as for `find_data`.

    Raises:
        ShiftViTError: it has no such arrays, or arrays of objects, of other shapes or types, labels out of range.
    """
    arrays, unused = _read_arrays(path)
    splits: dict[str, Split] = {}
    for split, images, labels in _ARRAYS:
        if images in arrays and labels in arrays and split not in splits:
            pixels, numbers = arrays.pop(images), arrays.pop(labels)
            splits[split] = _make_split(path, images, labels, pixels, numbers)
    if not splits.get("train") and (training or not splits):
        lacks, example = ("images for training", "x_train and y_train") if training else ("images", "images and labels")
        raise ShiftViTError(f"{str(path)!r} has no {lacks}; name its arrays {example}")
    names = arrays.pop("class_names", None)
    numbers = np.unique(np.concatenate([part.labels for part in splits.values()]))
    if names is not None:
        class_names = tuple(map(str, names.tolist()))
    elif training:
        # Without names the numbers are the names; one past the number of images can only be a mistake.
        most = int(splits["train"].labels.max()) + 1
        class_names = tuple(map(str, range(min(most, len(splits["train"])))))
    else:
        class_names = tuple(map(str, numbers.tolist()))
        splits = {
            split: replace(part, labels=np.searchsorted(numbers, part.labels).astype(np.int64))
            for split, part in splits.items()
        }
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U" or len(set(class_names)) < len(names)):
        raise ShiftViTError(
            f"class_names of {str(path)!r} is not a list of different names; give a string for each class"
        )
    for split, part in splits.items():
        if int(part.labels.max(initial=0)) >= len(class_names):
            if names is not None:
                rule = f"class_names has {count_of(len(names), 'name')}; number them 0..{len(names) - 1}"
            elif split == "train":
                rule = (
                    f"there are only {count_of(len(part), 'image')}; number the classes 0, 1, 2 ..., or add class_names"
                )
            else:
                rule = f"those of train only to {len(class_names) - 1}; add training images of these classes"
            raise ShiftViTError(f"the {split} labels of {str(path)!r} go up to {part.labels.max()}, and {rule}")
    notes = [f"arrays that are not used: {', '.join([*unused, *arrays])}"] if unused or arrays else []
    return Dataset(splits, class_names, str(path), path, "NumPy archive", tuple(notes))


def _read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
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


def _make_split(path: Path, images: str, labels: str, pixels: NDArray[Any], numbers: NDArray[Any]) -> Split:
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
    return Split(numbers.astype(np.int64), [f"{images}[{number}]" for number in range(len(pixels))], pixels)
