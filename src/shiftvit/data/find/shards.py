"""A user's images in Parquet files, as the Hugging Face Hub has them: which file is of which split, and the labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from shiftvit.data.decode.parquet import Columns, find_columns, open_parquet, read_labels
from shiftvit.data.find.dataset import ORDER, SPLITS, FoundData, Row, gathered, listed
from shiftvit.errors import ShiftViTError

# The words in the names of files and folders, https://huggingface.co/docs/hub/datasets-file-names-and-splits.
_WORDS = {
    **SPLITS,
    **{"training": "train", "dev": "validation", "testing": "test", "eval": "test", "evaluation": "test"},
}
_SHARD = re.compile(r"(.+)-[0-9]{5}-of-[0-9]{5}(-[0-9a-f]+)?", re.IGNORECASE)  # its first group is the whole split

_Parts = tuple[str, ...]  # of a path below the folder that is looked at


def has_images(path: Path) -> bool:
    """Tells whether a file is Parquet with a column of images; false where it cannot be read."""
    try:
        with open_parquet(str(path)) as file:
            find_columns(str(path), file)
    except ShiftViTError:
        return False
    return True


def find_parquet(path: Path, tables: Sequence[_Parts], ignored: Iterable[str] = ()) -> FoundData:
    """Tells which Parquet file belongs to which split, and reads their labels; no image is read.

    The classes are those of the training files' `ClassLabel`, in its order; else the labels themselves. Splits without
    any label, and rows without one, are left out.

    Args:
        path: a folder, or a single file, whose rows are for training.
        tables: the Parquet files below the folder, or the file's name.
        ignored: what was left out so far.

    Raises:
        ShiftViTError: several data sets, no training files, no column of images or of labels, a damaged file, labels
            that training does not have, or pyarrow is not installed.
    """
    ignored, root = list(ignored), path if path.is_dir() else path.parent
    if path.is_dir():
        splits, others = _by_split(path, tables)
        ignored += [f"Parquet files of no known split: {listed(others)}"] if others else []
    else:
        splits = {"train": [tables[0]]}
    rows: list[Row] = []
    first: Columns | None = None
    for split, parts in splits.items():
        part: list[Row] = []
        total = 0
        for name in (str(root.joinpath(*inner)) for inner in parts):
            with open_parquet(name) as file:
                columns = find_columns(name, file)
                if first is None:
                    first = columns
                    ignored += columns.remarks
                if columns.names is None:
                    columns = Columns(columns.image, columns.label, first.names)
                labels, names = read_labels(name, file, columns)
            total += len(labels)
            part += [
                Row(split, f"{name}#{row}", names[label]) for row, label in enumerate(labels.tolist()) if label >= 0
            ]
        if total and not part:
            if split == "train":
                raise _no_labels(path, first)
            ignored.append(f"{split}, whose {total:,} images have no labels")
        elif len(part) < total:
            ignored.append(f"images of {split} without a label: {total - len(part):,}")
        rows += part
    assert first is not None
    counts = listed([f"{len(parts):,} of {split}" for split, parts in splits.items()])
    layout = f"Parquet files ({counts}) with images in {first.image!r} and labels in {first.label!r}"
    return gathered(path, layout, rows, ignored, first.names)


def _by_split(path: Path, tables: Sequence[_Parts]) -> tuple[dict[str, list[_Parts]], list[str]]:
    """Returns the files of each split, and those of none."""
    places = [_place(parts) for parts in tables]
    if len({home for home, _ in places}) > 1:
        homes = listed(sorted({repr(str(path.joinpath(*home))) for home, _ in places})[:5])
        raise ShiftViTError(f"{str(path)!r} holds several data sets of Parquet files; give one of {homes}")
    if not any(split for _, split in places):
        return {"train": list(tables)}, []
    splits = {
        split: [parts for parts, (_, its) in zip(tables, places, strict=True) if its == split]
        for split in ORDER
        if any(split == its for _, its in places)
    }
    if "train" not in splits:
        raise ShiftViTError(
            f"{str(path)!r} has Parquet files of {listed([*splits])} and none of train; add them, or give a single file"
        )
    return splits, ["/".join(parts) for parts, (_, split) in zip(tables, places, strict=True) if split is None]


def _place(parts: _Parts) -> tuple[_Parts, str | None]:
    """Returns the folder of the data set that a file belongs to, and its split."""
    folders, stem = parts[:-1], parts[-1][: -len(".parquet")].casefold()
    if folders and folders[-1].casefold() in _WORDS:
        return folders[:-1], _WORDS[folders[-1].casefold()]
    shard = _SHARD.fullmatch(stem)
    if shard:
        return folders, _WORDS.get(shard[1])
    found = {_WORDS[word] for word in re.split(r"[^a-z]+", stem) if word in _WORDS}
    return folders, found.pop() if len(found) == 1 else None


def _no_labels(path: Path, columns: Columns | None) -> ShiftViTError:
    if columns is None or columns.label is None:
        return ShiftViTError(f"{str(path)!r} has no column of labels for training; name the one that has them label")
    return ShiftViTError(
        f"{str(path)!r} has only null or -1 in {columns.label!r} of its training images; give files with labels"
    )
