"""How a user's images lie on the disk, told without decoding them: folders of classes and of splits."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from shiftvit.data.decode.images import IMAGE_SUFFIXES
from shiftvit.data.find.dataset import ORDER, SPLITS, FoundData, Row, gathered, listed
from shiftvit.data.find.shards import find_parquet, has_images
from shiftvit.data.find.tables import read_archive, read_table
from shiftvit.errors import ShiftViTError

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
