"""How a user's images lie on the disk, told without decoding them, and how they are split."""

from __future__ import annotations

import csv
import io
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftvit import files
from shiftvit.data import sources
from shiftvit.data.decode.images import IMAGE_SUFFIXES
from shiftvit.data.found import ORDER, SPLITS, Files, FoundData, Row, gathered, listed, read_archive, read_table
from shiftvit.data.shards import find_parquet, has_images
from shiftvit.errors import ShiftViTError

__all__ = ["Files", "FoundData", "find_data", "load_splits", "save_splits", "split_data"]

_ARRANGE = "put the images of each class into a folder of its name"
_Parts = tuple[str, ...]  # of a path below the folder that is looked at


def find_data(path: str | Path) -> FoundData:
    """Tells how a user's images lie, and lists them; nothing is decoded.

    Args:
        path: a folder with one folder a class, or with train/, val/ and test/ that hold such; a .csv or .tsv with the
            columns path and label, and split if there are any (paths are relative to the table's folder); a .npz with
            `x_train`, `y_train` and so on, or with `images`, `labels` and maybe `class_names`; or Parquet as it is on
            the Hugging Face Hub: a folder with train-00000-of-00001.parquet and so on, or a single file.

    Raises:
        ShiftViTError: nothing of that form, fewer than two classes, classes that training does not know, files that a
            table names and that are missing, arrays of other shapes or types.
    """
    path = Path(path)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise ShiftViTError(f"{str(path)!r} {reason}; check the path") from error
    kind = path.suffix.lower()
    if path.is_dir():
        return _from_folder(path)
    if kind in {".csv", ".tsv"}:
        rows, columns = read_table(path, path.parent)
        return gathered(path, f"{kind[1:].upper()} of {listed(columns)}", rows)
    if kind == ".npz":
        return read_archive(path)
    if kind == ".parquet":
        return find_parquet(path, [(path.name,)])
    raise ShiftViTError(f"{str(path)!r} is no folder, .csv, .tsv, .npz or .parquet; give one of these, or unpack it")


def _from_folder(path: Path) -> FoundData:
    left_out: Counter[str] = Counter()
    found, tables, folders = _walk(path, left_out)
    if tables and (not found or has_images(path.joinpath(*tables[0]))):
        left_out += {"images beside the Parquet files": len(found)} if found else {}
        return find_parquet(path, tables, [f"{what}: {count:,}" for what, count in sorted(left_out.items())])
    left_out += {"files of type .parquet": len(tables)} if tables else {}
    tops = sorted({parts[0] for parts in found if len(parts) > 1})
    if not found:
        raise ShiftViTError(f"{str(path)!r} holds no images; {_ARRANGE}, within this folder")
    if not tops:
        raise ShiftViTError(f"{str(path)!r} holds {len(found):,} images without class folders; {_ARRANGE}")
    known = _split_folders(path, tops, found)
    depth = 2 if known else 1  # of what names a class
    rows = []
    for parts in found:
        if known and len(parts) > 1 and parts[0] not in known:
            left_out[f"images in {parts[0]}/, which is no split"] += 1
        elif len(parts) <= depth:
            left_out["images outside the class folders"] += 1
        else:
            split = known[parts[0]] if known else "train"
            rows.append(Row(split, str(path.joinpath(*parts)), parts[depth - 1].strip()))
    named = sorted(known, key=lambda name: ORDER.index(known[name]))
    if not any(row.split == "train" for row in rows):
        raise ShiftViTError(f"{str(path / named[0])!r} holds images without class folders; {_ARRANGE}")
    if len(tops) == 1 and not known and len({parts[1] for parts in found if len(parts) > 2}) > 1:
        raise ShiftViTError(f"{str(path)!r} holds one class folder; did you mean {str(path / tops[0])!r}?")
    full = {parts[:depth] for parts in found}
    empty = ["/".join(parts) for parts in folders if len(parts) == depth and parts not in full]
    ignored = [f"{what}: {count:,}" for what, count in sorted(left_out.items())]
    ignored += [f"folders without images: {', '.join(empty)}"] if empty else []
    layout = f"{listed([f'{name}/' for name in named])} with one folder a class" if known else "one folder a class"
    return gathered(path, layout, rows, ignored)


def _walk(root: Path, left_out: Counter[str]) -> tuple[list[_Parts], list[_Parts], list[_Parts]]:
    """Returns the images, the Parquet files and the folders below `root`, sorted by name; counts what else is there.

    Links to folders count as folders where a class or a split may lie, and are left out below, so that no circle of
    links is walked for ever.
    """
    found: list[_Parts] = []
    tables: list[_Parts] = []
    folders: list[_Parts] = []
    stack: list[_Parts] = [()]
    while stack:
        place = stack.pop()
        follow = not place or (len(place) == 1 and place[0].casefold() in SPLITS)
        inner = []
        for entry in _entries(root.joinpath(*place)):
            suffix = Path(entry.name).suffix.lower()
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                left_out["hidden files and folders"] += 1
            elif entry.is_dir(follow_symlinks=follow):
                inner.append((*place, entry.name))
            elif entry.is_dir():
                left_out["links to folders within a class"] += 1
            elif not entry.is_file():
                left_out["broken links and special files"] += 1
            elif suffix in IMAGE_SUFFIXES:
                found.append((*place, entry.name))
            elif suffix == ".parquet":
                tables.append((*place, entry.name))
            else:
                left_out[f"files of type {suffix}" if suffix else "files without an extension"] += 1
        folders += inner
        stack += reversed(inner)
    return found, tables, folders


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as scan:
            return sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        reason = error.strerror or error
        raise ShiftViTError(f"the folder {str(folder)!r} cannot be read: {reason}; check its permissions") from error


def _split_folders(path: Path, tops: list[str], found: list[_Parts]) -> dict[str, str]:
    """Returns which folders are splits, name -> split; none where they are classes, one of them `train` maybe."""
    known = {name: SPLITS[name.casefold()] for name in tops if name.casefold() in SPLITS}
    if len(known) < len(tops):
        inner = {parts[1] for parts in found if len(parts) > 2 and known.get(parts[0]) == "train"}
        if len(known) < 2 or not inner:
            return {}
    if "train" not in known.values():
        raise ShiftViTError(
            f"{str(path)!r} has {tops[0]}/ but no train/ with images; add it, or rename a folder to train"
        )
    split, count = Counter(known.values()).most_common(1)[0]
    if count > 1:
        names = listed([f"{name}/" for name in known if known[name] == split])
        raise ShiftViTError(f"{str(path)!r} has {names}, which all mean {split}; keep one of them")
    return known


def split_data(found: FoundData, *, validation: float, test: float, seed: int) -> FoundData:
    """Takes the splits that are missing from the training images: by class, at random, the same for the same seed.

    Each class has about the same share of every split, and at least one image in it. The order in which the files were
    found does not matter.

    Args:
        found: what `find_data` returned; splits that it has stay as they are.
        validation, test: how many of the training images go there: a count (1 or more), a fraction or 0.
        seed: 0..2**32-1.

    Raises:
        ShiftViTError: a class or a split that would have too few images, or no such share or seed.
    """
    shares = {"test": test, "validation": validation}
    shares = {name: share for name, share in shares.items() if share != 0 and name not in found.splits}
    train = found.splits["train"]
    if train.images is None:
        train = train.take(sorted(range(len(train)), key=lambda place: (train.paths[place], train.labels[place])))
    classes, counts = np.unique(train.labels, return_counts=True)
    if counts.min() <= len(shares):
        name = found.class_names[classes[counts.argmin()]]
        raise ShiftViTError(
            f"the class {name!r} has {counts.min()} images, too few for {len(shares) + 1} splits; "
            f"add images until it has {len(shares) + 1}, or remove it"
        )
    rest = np.arange(len(train))
    parts = {}
    for left, (name, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
        count = _count(name, share, len(train), len(rest), len(classes))
        _, held = sources.split(train.labels[rest], count, seed=seed)
        kept, held = _with_every_class(train.labels[rest], held, left)
        parts[name] = train.take(rest[held])
        rest = rest[kept]
    splits = {**found.splits, **parts, "train": train.take(rest)}
    return replace(found, splits={name: splits[name] for name in ORDER if name in splits})


def _count(name: str, share: float, total: int, rest: int, classes: int) -> int:
    if not (math.isfinite(share) and share > 0) or (share >= 1 and share != int(share)):
        raise ShiftViTError(f"{name}={share} is no share of the images; use a whole count, a fraction below 1 or 0")
    count = int(share) if share >= 1 else round(share * total)
    if count < classes or rest - count < classes:
        raise ShiftViTError(
            f"{name}={share} of {total:,} images is {count:,}, and both it and the rest ({rest - count:,}) need 1 of "
            f"each of the {classes} classes; change {name}, or add images"
        )
    return count


def _with_every_class(
    labels: NDArray[np.int64], held: NDArray[np.int64], need: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the kept and the held-out places, moved so that of each class 1 is held out and `need` are kept."""
    out = np.zeros(len(labels), bool)
    out[held] = True
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        if not out[own].any():
            out[own[0]] = True
        short = need - int((~out[own]).sum())
        if short > 0:
            out[own[out[own]][:short]] = False
    return np.flatnonzero(~out), np.flatnonzero(out)


def save_splits(found: FoundData, path: Path) -> None:
    """Writes which image is in which split as a CSV of split, path and label; paths are relative to the data's folder.

    Raises:
        ShiftViTError: a file's name is no text, or the table cannot be written.
    """
    root = found.path if found.path.is_dir() else found.path.parent
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "path", "label"])
    for split, part in found.splits.items():
        for name, label in zip(part.paths, part.labels.tolist(), strict=True):
            place = Path(name)
            if part.images is None and place.is_relative_to(root):
                name = place.relative_to(root).as_posix()
            writer.writerow([split, name, found.class_names[label]])
    try:
        data = text.getvalue().encode("utf-8")
    except UnicodeEncodeError as error:
        broken = error.object[error.start : error.start + 40]
        raise ShiftViTError(f"a file's name has bytes that are no text, at {broken!r}; rename the file") from error
    files.write_file(Path(path), lambda temporary: temporary.write_bytes(data))


def load_splits(path: Path, root: str | Path) -> dict[str, Files]:
    """Reads what `save_splits` wrote.

    Args:
        path: the table.
        root: the data that it was written for, as given to `find_data`; its classes number the labels.

    Raises:
        ShiftViTError: it is no such table, or names images or classes that are not there; or the faults of `find_data`.
    """
    path, found = Path(path), find_data(root)
    arrays = found.splits["train"].images is not None
    rows, _ = read_table(path, found.path if found.path.is_dir() or arrays else found.path.parent)
    index = {name: number for number, name in enumerate(found.class_names)}
    where = {
        name: (part.images, number)
        for part in found.splits.values()
        for number, name in enumerate(part.paths)
        if part.images is not None
    }
    for row in rows:
        if row.label not in index or (arrays and row.path not in where):
            what = f"class {row.label!r}" if row.label not in index else f"image {row.path!r}"
            raise ShiftViTError(f"{str(path)!r} names the {what}, which {str(root)!r} does not have; split it anew")
    splits = {}
    for split in (name for name in ORDER if any(row.split == name for row in rows)):
        part = [row for row in rows if row.split == split]
        images = np.stack([pixels[number] for pixels, number in (where[row.path] for row in part)]) if arrays else None
        splits[split] = Files(
            [row.path for row in part], np.array([index[row.label] for row in part], np.int64), images
        )
    return splits
