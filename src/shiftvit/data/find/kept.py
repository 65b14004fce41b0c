"""Writes and reads which images a run has in which split, which resuming and evaluating it need."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shiftvit import files
from shiftvit.data.decode.rows import is_image
from shiftvit.data.find.dataset import SPLITS, Dataset, Row, Split
from shiftvit.data.find.words import normalise_name
from shiftvit.errors import ShiftViTError, describe_error, list_some, notice, pluralize

# In a run folder: the table of splits, and for arrays the file with their digests.
SPLITS_TABLE = "splits.csv"
DIGESTS = "images.json"
# A digest covers all labels and this many images.
_SAMPLE = 64
_COLUMNS = ["split", "path", "label"]


def save_splits(data: Dataset, path: Path) -> None:
    """Writes a CSV with the split, path and label of each image. Paths are relative to the data's folder.

    Raises:
        ShiftViTError: a file's name is not valid UTF-8, or the table cannot be written.
    """
    text = io.StringIO()
    writer = files.make_csv_writer(text)
    writer.writerow(_COLUMNS)
    for name, split in data.splits.items():
        if name == "test" and data.test_is_validation:
            continue
        for image, label in zip(split.paths or [], split.labels.tolist(), strict=True):
            writer.writerow([name, make_relative(data.root, image), data.class_names[label]])
    try:
        content = text.getvalue().encode("utf-8")
    except UnicodeEncodeError as error:
        broken = error.object[error.start : error.start + 40]
        raise ShiftViTError(f"a file name is not valid UTF-8 at {broken!r}; rename the file") from error
    files.write_file(Path(path), lambda temporary: temporary.write_bytes(content))


def read_splits(table: Path) -> list[Row]:
    """Returns the rows that `save_splits` wrote, their paths relative to the data's folder.

    Raises:
        ShiftViTError: the file is not such a table.
    """
    try:
        with table.open(encoding="utf-8", newline="") as stream:
            head, *lines = csv.reader(stream, strict=True)
    except (OSError, csv.Error, ValueError) as error:
        raise ShiftViTError(
            f"{str(table)!r} is not a readable table ({error}); restore it, because no other file has the run's splits"
        ) from error
    if head != _COLUMNS or any(len(cells) != 3 or cells[0] not in SPLITS for cells in lines):
        raise ShiftViTError(f"{str(table)!r} is not the table of a run: its columns or splits differ; restore it")
    rows = [(split, image, normalise_name(label)) for split, image, label in lines]
    once: dict[str, Row] = {}
    for row in rows:
        if once.setdefault(row[1], row) != row:
            raise ShiftViTError(f"{str(table)!r} lists {row[1]!r} twice, with different splits or classes; restore it")
    return rows


def restore_splits(data: Dataset, table: Path, classes: int | None = None) -> Dataset:
    """Returns the data set in the splits that `save_splits` wrote.

    Images that are not in the table are left out, because they were added later.

    Args:
        data: the result of `find_data`. The order of its classes numbers the labels.
        table: the CSV.
        classes: the number of the model's classes; None: as many as the data have.

    Raises:
        ShiftViTError: it is not such a table, or images or classes in it are missing.
    """
    rows = read_splits(table)
    named = {label for _, _, label in rows}
    lost = sorted(named - {*data.class_names})
    # A class that is not in the table was added later or had no usable image; the model's number of classes tells.
    is_whole = classes in (None, len(data.class_names))
    names = tuple(name for name in data.class_names if is_whole or name in named)
    chosen, gone = take_rows(data, rows, (*names, *lost))
    if gone:
        raise ShiftViTError(
            f"{data.name!r} lacks {len(gone):,} of the run's {pluralize(len(rows), 'image')}: "
            f"{list_some(repr(image) for _, image, _ in gone)}; put them back, give their new location with "
            "--data, or start a new run"
        )
    if lost:
        raise ShiftViTError(
            f"the run has the {'class' if len(lost) == 1 else 'classes'} {list_some(map(repr, lost))}, which "
            f"{data.name!r} does not have; give the images their labels back, or start a new run"
        )
    if classes not in (None, len(names)):
        raise ShiftViTError(
            f"the run has {classes} classes, but {data.name!r} has {len(data.class_names)}: "
            f"{list_some(data.class_names, 8)}; remove what was added after the run began"
        )
    new = [name for name in data.class_names if name not in names]
    if new:
        notice(f"note: the run does not have {list_some(map(repr, new))}, so images of these classes are left out")
    return chosen


def take_rows(data: Dataset, rows: Sequence[Row], names: tuple[str, ...] | None = None) -> tuple[Dataset, list[Row]]:
    """Returns the data set in the splits of these rows of a run's table, and the rows whose images are missing.

    Args:
        data: the images, in any splits.
        rows: rows of the table; their classes are among `names`.
        names: the classes, in the order of the labels; None: those of the images that were found, sorted by name.

    Raises:
        ShiftViTError: an image of an archive has another class than in its row.
    """
    arrays = {  # the images of an archive by their names
        path: (split, number)
        for split in data.splits.values()
        if split.images is not None
        for number, path in enumerate(split.paths or [])
    }
    for image, label in ((image, label) for _, image, label in rows if image in arrays and label in data.class_names):
        part, number = arrays[image]
        if label != (own := data.class_names[part.labels[number]]):
            raise ShiftViTError(
                f"{data.name!r} does not have the images of the run: {image} is of the class {own!r}, and in the "
                f"run it was of {label!r}; restore the archive, or start a new run"
            )
    there, gone = list[Row](), list[Row]()
    for row in rows:
        found = row[1] in arrays if arrays else is_image(str(data.root / row[1]))
        (there if found else gone).append(row)
    names = tuple(sorted({label for _, _, label in there})) if names is None else names
    index = {name: number for number, name in enumerate(names)}
    splits = {}
    for split in SPLITS:
        images = [(image, index[label]) for its, image, label in there if its == split]
        if images:
            paths = [image if arrays else str(data.root / image) for image, _ in images]
            pixels = (
                np.stack([part.images[place] for part, place in map(arrays.__getitem__, paths)]) if arrays else None
            )
            splits[split] = Split(np.array([label for _, label in images], np.int64), paths, pixels)
    return replace(data, splits=splits, class_names=names), gone


def make_relative(root: Path, image: str) -> str:
    """Returns an image's path for the table: relative to the data's folder if it is in it."""
    place = Path(image)
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else image


def save_digests(data: Dataset, path: Path) -> None:
    """Writes the class names and the digest of each split of a data set whose images are arrays."""
    files.write_json(path, {"classes": data.class_names, "splits": _compute_digests(data)})


def check_digests(data: Dataset, path: Path, splits: Collection[str] = SPLITS) -> None:
    """Raises ShiftViTError if the classes or these splits differ from those that `save_digests` wrote.

    It also does so if the file is damaged. Without the file it does nothing, because older runs have none.
    """
    if not path.is_file():
        return
    try:
        kept = json.loads(path.read_text("utf-8"))
        classes, digests = (*kept["classes"],), {name: kept["splits"].get(name) for name in splits}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShiftViTError(f"{str(path)!r} cannot be read ({describe_error(error)}); restore it") from error
    found = _compute_digests(data)
    if (classes, digests) != ((*data.class_names,), {name: found.get(name) for name in splits}):
        raise ShiftViTError(
            f"the run {str(path.parent)!r} was trained on different images than {data.name!r} now holds, with the "
            f"classes {list_some(classes, 8)}"
        )


def _compute_digests(data: Dataset) -> dict[str, str]:
    digests = {}
    for name, split in data.splits.items():
        sample = np.linspace(0, len(split) - 1, min(len(split), _SAMPLE)).astype(int)
        digest = hashlib.sha256(f"{split.images.shape}".encode())
        digest.update(np.ascontiguousarray(split.labels, np.int64).tobytes())
        if isinstance(split.images, np.ndarray):  # decoded files may differ with the version of the decoder
            digest.update(split.images[sample].tobytes())
        digests[name] = digest.hexdigest()
    return digests
