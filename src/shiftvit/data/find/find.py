"""What lies at a path that a user names: which kind of data, and its images. Nothing is decoded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from shiftvit.data.decode.readers import IMAGE_SUFFIXES
from shiftvit.data.find.dataset import SPLIT_WORDS, Dataset, Row, check_classes, number_classes
from shiftvit.data.find.folders import Parts, read_class_folders
from shiftvit.data.find.listing import is_companion
from shiftvit.data.find.shards import read_shards
from shiftvit.data.find.tables import read_archive, read_table
from shiftvit.errors import ShiftViTError, join_words


def find_data(path: str | Path, *, training: bool = True) -> Dataset:
    """Finds a user's own images and lists them. Nothing is decoded.

    Args:
        path: a folder with one folder a class, or with train/, val/ and test/ that hold such; a .csv or .tsv with the
            columns path and label, and split if there are any (paths are relative to the table's folder); a .npz with
            `x_train`, `y_train` and so on, or with `images`, `labels` and maybe `class_names`; or Parquet as it is on
            the Hugging Face Hub: a folder with train-00000-of-00001.parquet and so on, or a single file.
        training: a model is to be trained on them. False: it is only evaluated, so that there need be no training
            images, and one class is enough.

    Returns:
        the splits that are there. All have paths; only those of a .npz have images.

    Raises:
        ShiftViTError: nothing of that form, fewer than two classes, a class without training images, files that a
            table names and that are missing, arrays of other shapes or types.
    """
    path = Path(path)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise ShiftViTError(f"{str(path)!r} {reason}; check the path") from error
    kind = path.suffix.lower()
    archive = None
    if path.is_dir() or kind == ".parquet":
        layout, rows, notes, names = _read_tree(path, training)
    elif kind == ".npz":
        archive = read_archive(path, training=training)
    elif kind in {".csv", ".tsv"}:
        rows, columns = read_table(path, path.parent)
        layout, notes, names = f"{kind[1:].upper()} of {join_words(columns)}", [], None
    else:
        raise ShiftViTError(
            f"{str(path)!r} is not a folder, .csv, .tsv, .npz or .parquet; give one of these, or unpack it"
        )
    found = archive or number_classes(path, layout, rows, notes, names, training=training)
    return check_classes(found) if training else found


def _read_tree(path: Path, training: bool) -> tuple[str, list[Row], list[str], Sequence[str] | None]:
    """Returns the layout, the rows, the notes and maybe the classes of a folder, or of a single Parquet file."""
    images, tables, folders, left_out = _walk(path) if path.is_dir() else ([], [(path.name,)], [], Counter[str]())
    shards = read_shards(path, tables, optional=bool(images), training=training) if tables else None
    if shards is not None:
        layout, rows, notes, names = shards
        left_out |= {"images beside the Parquet files": len(images)} if images else {}
    else:
        layout, rows, notes = read_class_folders(path, images, folders, left_out, training=training)
        left_out |= {"files of type .parquet": len(tables)} if tables else {}
        names = None
    return layout, rows, [*(f"{what}: {count:,}" for what, count in sorted(left_out.items())), *notes], names


def _walk(root: Path) -> tuple[list[Parts], list[Parts], list[Parts], Counter[str]]:
    """Returns the images, the Parquet files and the folders below `root`, sorted by name, and counts all else.

    Links to folders count as folders where a class or a split may lie. Further down they are left out, so that no
    circle of links is walked for ever.
    """
    images: list[Parts] = []
    tables: list[Parts] = []
    folders: list[Parts] = []
    left_out: Counter[str] = Counter()
    stack: list[Parts] = [()]
    while stack:
        parts = stack.pop()
        follow = not parts or (len(parts) == 1 and parts[0].casefold() in SPLIT_WORDS)
        inner = []
        for entry in _list_folder(root.joinpath(*parts)):
            suffix = Path(entry.name).suffix.lower()
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                left_out["hidden files and folders"] += 1
            elif entry.is_dir(follow_symlinks=follow):
                inner.append((*parts, entry.name))
            elif entry.is_dir():
                left_out["links to folders within a class"] += 1
            elif not entry.is_file():
                left_out["broken links and special files"] += 1
            elif suffix in IMAGE_SUFFIXES:
                images.append((*parts, entry.name))
            elif suffix == ".parquet":
                tables.append((*parts, entry.name))
            elif not is_companion(entry.path):
                left_out[f"files of type {suffix}" if suffix else "files without an extension"] += 1
        folders += inner
        stack += reversed(inner)
    return images, tables, folders, left_out


def _list_folder(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as scan:
            return sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        reason = error.strerror or error
        raise ShiftViTError(f"the folder {str(folder)!r} cannot be read: {reason}; check its permissions") from error
