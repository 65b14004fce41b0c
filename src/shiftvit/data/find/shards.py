"""Finds the splits and the labels of images in Parquet files, which are laid out as on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shiftvit.data.decode.parquet import describe_columns, find_columns, open_parquet, read_labels
from shiftvit.data.find.dataset import SPLITS, Listing, Row
from shiftvit.data.find.folders import Parts
from shiftvit.data.find.words import is_split, name_splits
from shiftvit.errors import ShiftViTError, join_words, list_some, pluralize

_SHARD = re.compile(r"(.+)-[0-9]{5}-of-[0-9]{5}(-[0-9a-f]+)?", re.IGNORECASE)  # its first group is the whole split


def read_shards(path: Path, tables: Sequence[Parts], *, training: bool = True) -> Listing:
    """Finds the split of each Parquet file, and reads its labels, but no images.

    It leaves out rows without a label.

    Args:
        path: a folder, or a single file, whose rows are for training.
        tables: the Parquet files below the folder, or the file's name.
        training: as for `find_data`.

    Returns:
        the images, notes about what is left out, and as names the classes of the training files' `ClassLabel` in its
        order, or None if the labels themselves are the classes.

    Raises:
        ShiftViTError: there are several data sets, no training files, or no column of images or of labels; a file is
            damaged; a label has no name; or pyarrow is not installed.
    """
    root = path if path.is_dir() else path.parent
    splits, notes = _assign_splits(path, tables, training) if path.is_dir() else ({"train": [tables[0]]}, [])
    # The first file, which is of train if there are files of train, names the columns and the classes.
    name = str(root.joinpath(*next(iter(splits.values()))[0]))
    with open_parquet(name) as file:
        first = find_columns(name, file)
        if training and first.label is None:
            raise ShiftViTError(
                f"{name!r} has no column of labels for training, only {describe_columns(file)}; rename the column of "
                "labels to 'label'; it must hold whole numbers or names"
            )
    notes += first.remarks
    rows: list[Row] = []
    for split, files in splits.items():
        labelled: list[Row] = []
        total = 0
        for name in (str(root.joinpath(*parts)) for parts in files):
            with open_parquet(name) as file:
                columns = find_columns(name, file)
                if columns.names is None:
                    columns = replace(columns, names=first.names)
                labels, names = read_labels(name, file, columns)
            total += len(labels)
            labelled += [
                (split, f"{name}#{row}", names[label]) for row, label in enumerate(labels.tolist()) if label >= 0
            ]
        if total and not labelled:
            if split == "train" and training:
                raise ShiftViTError(
                    f"{str(path)!r} has only null or -1 in {first.label!r} of its training images; "
                    "give files with labels"
                )
            notes.append(f"{split}, whose {pluralize(total, 'image')} have no labels")
        elif len(labelled) < total:
            notes.append(f"images of {split} without a label: {total - len(labelled):,}")
        rows += labelled
    counts = join_words([f"{len(files):,} of {split}" for split, files in splits.items()])
    layout = f"Parquet files ({counts}) with images in {first.image!r} and labels in {first.label!r}"
    return Listing(layout, rows, notes, first.names)


def _assign_splits(path: Path, tables: Sequence[Parts], training: bool) -> tuple[dict[str, list[Parts]], list[str]]:
    """Returns the files of each split, and a note about files that belong to no split."""
    places = [_locate(parts) for parts in tables]
    if len({home for home, _ in places}) > 1:
        homes = list_some(sorted({repr(str(path.joinpath(*home))) for home, _ in places}), 5)
        raise ShiftViTError(f"{str(path)!r} holds several data sets of Parquet files; give one of {homes}")
    meanings = name_splits({words for _, words in places})
    if not meanings:
        return {"train": list(tables)}, []
    files: dict[str, list[Parts]] = {}
    for parts, (_, words) in zip(tables, places, strict=True):
        files.setdefault(meanings.get(words, ""), []).append(parts)
    others = ["/".join(parts) for parts in files.pop("", [])]
    splits = {split: files[split] for split in SPLITS if split in files}
    if "train" not in splits and (training or not splits):
        raise ShiftViTError(
            f"{str(path)!r} has Parquet files of {join_words([*splits])} and none of train; add them, "
            "or give a single file"
        )
    return splits, [f"Parquet files of no known split: {join_words(others)}"] if others else []


def _locate(parts: Parts) -> tuple[Parts, str]:
    """Returns the folder of the data set that a file belongs to, and the words that name its split.

    The split is named by the folder, by a shard's name before its number, or by words in the name of another file. See
    https://huggingface.co/docs/hub/datasets-file-names-and-splits.
    """
    folders, stem = parts[:-1], parts[-1][: -len(".parquet")]
    if folders and is_split(folders[-1]):
        return folders[:-1], folders[-1]
    shard = _SHARD.fullmatch(stem)
    words = [shard[1]] if shard else [word for word in re.split(r"[^A-Za-z]+", stem) if is_split(word)]
    return folders, " ".join({word.casefold(): word for word in words}.values())
