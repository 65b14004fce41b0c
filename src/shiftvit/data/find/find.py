"""Finds the images at a path: determines the kind of data and lists them. Nothing is decoded."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from shiftvit.data.decode.parquet import has_images
from shiftvit.data.decode.readers import IMAGE_SUFFIXES
from shiftvit.data.find.arrays import read_archive
from shiftvit.data.find.dataset import Dataset, Listing, check_classes, check_names, number_classes
from shiftvit.data.find.folders import Parts, read_class_folders
from shiftvit.data.find.listing import is_companion, list_folder
from shiftvit.data.find.shards import read_shards
from shiftvit.data.find.tables import read_table
from shiftvit.data.find.words import is_litter, is_split
from shiftvit.errors import ShiftViTError

_TABLES = {".csv", ".tsv", ".npz"}
# Folders that shiftvit writes, which are not data: each has all files of the first set and one of the second.
_OUTPUTS = {
    "a run": ({"recipe.toml"}, {"environment.json"}),
    "a bundle": ({"bundle.json"}, {"model.safetensors"}),
    "an evaluation": ({"evaluation.json"}, {"confusion_matrix.png"}),
    "an export": ({"report.json"}, {"model.onnx", "model.xml", "saved_model", "model.tflite", "model.pt2"}),
}


def find_data(path: str | Path, *, training: bool = True) -> Dataset:
    """Finds a user's own images and lists them. Nothing is decoded.

    Args:
        path: a folder with a folder for each class, maybe within train/, val/ and test/, or with those within the
            classes; a .csv or .tsv with the columns path and label, and maybe split (paths are relative to the
            table's folder); a .npz with `x_train`, `y_train` and so on, or with `images`, `labels` and maybe
            `class_names`; or Parquet as on the Hugging Face Hub: a folder with train-00000-of-00001.parquet and so on,
            or a single file. `words.py` has the names that splits may have.
        training: whether a model is trained on them. False: it is only evaluated, so training images are optional and
            one class is enough.

    Returns:
        the splits that were found. All have paths; only those of a .npz have images.

    Raises:
        ShiftViTError: the data have none of these forms, fewer than two classes, a class without training images, a
            table that names missing files, or arrays of other shapes or types.
    """
    path = Path(path)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise ShiftViTError(f"{str(path)!r} {reason}; check the path") from error
    kind = path.suffix.lower()
    if path.is_dir() or kind == ".parquet":
        data = number_classes(path, _read_tree(path, training), training=training)
    elif kind == ".npz":
        data = read_archive(path, training=training)
    elif kind in _TABLES:
        data = number_classes(path, read_table(path), training=training)
    else:
        raise ShiftViTError(
            f"{str(path)!r} is not a folder, .csv, .tsv, .npz or .parquet; give one of these, or unpack it"
        )
    check_names(data)
    return check_classes(data) if training else data


def _read_tree(path: Path, training: bool) -> Listing:
    """Lists the images of a folder, or of a single Parquet file."""
    tree = _walk(path) if path.is_dir() else _Tree(shards=[(path.name,)])
    images, shards, left_out = tree.images, tree.shards, tree.left_out
    # Parquet files beside images may be other tables; the first one decides.
    if shards and (not images or has_images(str(path.joinpath(*shards[0])))):
        listing = read_shards(path, shards, training=training)
        left_out |= {"images beside the Parquet files": len(images)} if images else {}
    else:
        left_out |= {"files of type .parquet": len(shards)} if shards else {}
        listing = read_class_folders(path, images, tree.folders, left_out, tree.tables, training=training)
    counts = [f"{what}: {count:,}" for what, count in sorted(left_out.items())]
    return replace(listing, notes=[*counts, *listing.notes])


@dataclass
class _Tree:
    """The content of a folder: images, Parquet files, other tables and folders, by name, and counts of the rest."""

    images: list[Parts] = field(default_factory=list)
    shards: list[Parts] = field(default_factory=list)
    tables: list[Parts] = field(default_factory=list)
    folders: list[Parts] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def _is_folder(entry: os.DirEntry[str], follow: bool = True) -> bool:
    with contextlib.suppress(OSError):  # a link that leads to itself
        return entry.is_dir(follow_symlinks=follow)
    return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):
        return entry.is_file()
    return False


def _walk(root: Path) -> _Tree:
    """Returns the content of `root`.

    Links to folders are followed at the levels of splits and classes. Further down they are left out, so that circular
    links are not followed forever.
    """
    tree, outputs = _Tree(), []
    left_out = tree.left_out
    stack: list[Parts] = [()]
    while stack:
        parts = stack.pop()
        follow = not parts or (len(parts) == 1 and is_split(parts[0]))
        entries = list_folder(root.joinpath(*parts))
        names = {entry.name for entry in entries}
        kinds = [kind for kind, (every, any_of) in _OUTPUTS.items() if every <= names and any_of & names]
        if kinds:
            if not parts:
                raise ShiftViTError(f"{str(root)!r} is {kinds[0]} of shiftvit, not data; give the folder of the images")
            left_out[f"folders that are {kinds[0]} of shiftvit"] += 1
            outputs.append(parts)
            continue
        inner = []
        for entry in entries:
            suffix = Path(entry.name).suffix.lower()
            if is_litter(entry.name):
                left_out["hidden files and folders"] += 1
            elif _is_folder(entry, follow):
                inner.append((*parts, entry.name))
            elif _is_folder(entry):
                left_out["links to folders within a class"] += 1
            elif not _is_file(entry):
                left_out["broken links and special files"] += 1
            elif suffix in IMAGE_SUFFIXES:
                tree.images.append((*parts, entry.name))
            elif suffix == ".parquet":
                tree.shards.append((*parts, entry.name))
            elif not is_companion(entry.name, names):
                left_out[f"files of type {suffix}" if suffix else "files without an extension"] += 1
                if suffix in _TABLES:
                    tree.tables.append((*parts, entry.name))
        tree.folders += inner
        stack += reversed(inner)
    tree.folders = [parts for parts in tree.folders if not any(parts == output[: len(parts)] for output in outputs)]
    return tree
