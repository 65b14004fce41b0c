"""Reads folders of classes, maybe within folders of splits: finds the class and split of each image."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from shiftvit.data.decode.readers import FORMATS
from shiftvit.data.find.dataset import SPLITS, Listing
from shiftvit.data.find.words import is_neutral, is_split, name_splits, normalise_name
from shiftvit.errors import ShiftViTError, join_words, list_some, pluralize

_ARRANGE = "put the images of each class into a folder with its name"

# A path relative to the folder of the data, as its parts.
Parts = tuple[str, ...]


def read_class_folders(
    path: Path,
    images: Sequence[Parts],
    folders: Sequence[Parts],
    left_out: Counter[str],
    tables: Sequence[Parts] = (),
    *,
    training: bool = True,
) -> Listing:
    """Finds the split and the class of each image by the folders that it is in.

    Args:
        path: the folder.
        images, folders: the images and folders in it.
        left_out: counts of unused files by their kind. Images outside class folders are added.
        tables: .csv, .tsv and .npz files in it, which messages suggest instead of the folders.
        training: as for `find_data`.

    Returns:
        the images, with a note about folders without images if there are any.

    Raises:
        ShiftViTError: there are no images or class folders, or the splits are ambiguous.
    """
    if not images:
        found = [f"{what}: {count:,}" for what, count in sorted(left_out.items())]
        rest = f" that can be used (left out: {', '.join(found)})" if found else ""
        raise ShiftViTError(f"{str(path)!r} holds no images{rest}; {_suggest_mend(path, tables, left_out)}")
    tops = sorted({parts[0] for parts in images if len(parts) > 1})
    if not tops:
        raise ShiftViTError(
            f"{str(path)!r} holds {pluralize(len(images), 'image')} without class folders; "
            f"{_suggest_mend(path, tables)}"
        )
    split_level, named = _find_splits(path, tops, images, training)
    on_top = split_level == 0
    wrapped = _find_wrapped(images, named) if on_top else set()
    rows = []
    for parts in images:
        class_level = int(on_top) + (parts[0] in wrapped)
        if on_top and len(parts) > 1 and parts[0] not in named:
            left_out[f"images in {parts[0]}/, which is not a split"] += 1
        elif len(parts) <= max(class_level, split_level or 0) + 1:
            left_out["images outside the class folders"] += 1
        else:
            split = "train" if split_level is None else named[parts[split_level]]
            rows.append((split, str(path.joinpath(*parts)), normalise_name(parts[class_level])))
    ordered = sorted(named, key=lambda name: (SPLITS.index(named[name]), name))
    if not any(split == "train" or not training for split, _, _ in rows):
        where = path / ordered[0] if on_top else path
        raise ShiftViTError(f"{str(where)!r} holds images without class folders; {_suggest_mend(path, tables)}")
    inner = _find_inner_folder(images)
    if split_level is None and inner:
        raise ShiftViTError(f"{str(path)!r} holds only one class folder; did you mean {str(path.joinpath(*inner))!r}?")
    used = {parts[:length] for parts in images for length in (1, 2, 3)}
    depths = {top: 1 + int(on_top) + (top in wrapped) for top in {parts[0] for parts in folders}}
    empty = ["/".join(parts) for parts in folders if len(parts) == depths[parts[0]] and parts not in used]
    notes = [f"folders without images: {', '.join(empty)}"] if empty else []
    layout, splits = "one folder per class", join_words([f"{name}/" for name in ordered])
    if split_level is not None:
        layout = f"{splits} with {layout}" if on_top else f"{layout}, each with {splits}"
    return Listing(layout, rows, notes)


def _find_splits(
    path: Path, tops: list[str], images: Sequence[Parts], training: bool
) -> tuple[int | None, dict[str, str]]:
    """Returns the level of the folders that are splits, and folder -> split.

    The level is 0 for the top folders, 1 for folders within the classes, and None if all top folders are classes,
    whatever their names.
    """
    named = _name_tops(path, tops, images, training)
    if named:
        return 0, named
    within: dict[str, set[str]] = {top: set() for top in tops}
    for parts in images:
        if len(parts) > 2:
            within[parts[0]].add(parts[1])
    names = set().union(*within.values())
    if names and len(tops) > 1 and all(within.values()) and all(is_split(name) for name in names):
        named = name_splits(names)
        _check_meanings(path, named)
        if "train" in named.values() or not training:
            return 1, named
    count = Counter(name for inner in within.values() for name in inner)
    # A fast filter: mostly empty, even for thousands of classes.
    alike = [top for top in tops if sum(count[name] > 1 for name in within[top]) > 1]
    for one, other in itertools.combinations(alike, 2):
        shared = sorted(within[one] & within[other])
        if len(shared) > 1:
            known = ", which are not names of splits," if not name_splits(tops) else ""
            raise ShiftViTError(
                f"{str(path)!r} has {one}/ and {other}/{known} with the same folders in them "
                f"({list_some(shared, 5)}); if these are the classes, rename the "
                f"folders above them to train, validation or test; if {one} and {other} are classes, move their images "
                "up, or give a .csv of path and label"
            )
    return None, {}


def _find_wrapped(images: Sequence[Parts], named: dict[str, str]) -> set[str]:
    """Returns the folders of splits with one more folder around the classes, as in `train/images/cat/1.png`."""
    within: dict[str, set[str]] = {}
    for parts in images:
        if parts[0] in named and len(parts) > 1:
            within.setdefault(parts[0], set()).add(parts[1] if len(parts) > 3 else "")
    return {top for top, names in within.items() if len(names) == 1 and is_neutral(*names) and names != {""}}


def _name_tops(path: Path, tops: list[str], images: Sequence[Parts], training: bool) -> dict[str, str]:
    """Returns the top folders that are splits, folder -> split. Empty: all are classes, whatever their names."""
    splits = name_splits(tops)
    if len(splits) < len(tops):
        # A class may be called train or test. Beside other folders, these are splits only if there are two of them, and
        # train has class folders.
        within_train = any(len(parts) > 2 and splits.get(parts[0]) == "train" for parts in images)
        if len(splits) < 2 or not within_train:
            return {}
    if training and "train" not in splits.values():
        raise ShiftViTError(
            f"{str(path)!r} has {tops[0]}/ but no train/ with images; add it, or rename a folder to train"
        )
    _check_meanings(path, splits)
    return splits


def _check_meanings(path: Path, splits: dict[str, str]) -> None:
    split, count = Counter(splits.values()).most_common(1)[0]
    if count > 1:
        names = join_words(sorted(f"{name}/" for name in splits if splits[name] == split))
        raise ShiftViTError(f"{str(path)!r} has {names}, which all mean {split}; keep one of them")


def _find_inner_folder(images: Sequence[Parts]) -> Parts:
    """Returns the folder below a single top folder that has several folders with images, or nothing."""
    places = {parts[:-1] for parts in images if len(parts) > 1}
    shared = Path(os.path.commonpath([Path(*place) for place in places])).parts
    return shared if len({place[: len(shared) + 1] for place in places} - {shared}) > 1 else ()


def _suggest_mend(path: Path, tables: Sequence[Parts], left_out: Iterable[str] = ()) -> str:
    """Returns what to do: give the table in the folder, convert the files, or arrange the images."""
    if tables:
        nearest = str(path.joinpath(*min(tables, key=len)))
        return f"give {nearest!r} instead of the folder if it lists them, or {_ARRANGE}"
    if any(what.startswith("files") for what in left_out):
        return (
            f"shiftvit reads {join_words(FORMATS)} files with their usual suffixes; convert or rename the files, and "
            f"{_ARRANGE}"
        )
    return f"{_ARRANGE}, within this folder"
