"""Folders of classes, maybe within folders of splits: which image is of which class and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from shiftvit.data.find.dataset import SPLIT_WORDS, SPLITS, Row
from shiftvit.errors import ShiftViTError, join_words

_ARRANGE = "put the images of each class into a folder of its name"

# A path below the folder that is looked at, as its parts.
Parts = tuple[str, ...]


def read_class_folders(
    path: Path, images: Sequence[Parts], folders: Sequence[Parts], left_out: Counter[str], *, training: bool = True
) -> tuple[str, list[Row], list[str]]:
    """Tells the split and the class of each image from the folders that it lies in.

    Args:
        path: the folder.
        images, folders: what lies below it.
        left_out: counts what is not used, by what it is. Images that lie elsewhere are added.
        training: as for `find_data`.

    Returns:
        the layout in words, the rows, and a note about folders without images if there are any.

    Raises:
        ShiftViTError: no images, no class folders, or splits that cannot be understood.
    """
    if not images:
        raise ShiftViTError(f"{str(path)!r} holds no images; {_ARRANGE}, within this folder")
    tops = sorted({parts[0] for parts in images if len(parts) > 1})
    if not tops:
        raise ShiftViTError(f"{str(path)!r} holds {len(images):,} images without class folders; {_ARRANGE}")
    splits = _name_splits(path, tops, images, training)
    depth = 2 if splits else 1  # of the folder that names a class
    rows = []
    for parts in images:
        if splits and len(parts) > 1 and parts[0] not in splits:
            left_out[f"images in {parts[0]}/, which is not a split"] += 1
        elif len(parts) <= depth:
            left_out["images outside the class folders"] += 1
        else:
            split = splits[parts[0]] if splits else "train"
            rows.append((split, str(path.joinpath(*parts)), parts[depth - 1].strip()))
    ordered = sorted(splits, key=lambda name: SPLITS.index(splits[name]))
    if not any(split == "train" or not training for split, _, _ in rows):
        raise ShiftViTError(f"{str(path / ordered[0])!r} holds images without class folders; {_ARRANGE}")
    if not splits and len(tops) == 1 and len({parts[1] for parts in images if len(parts) > 2}) > 1:
        raise ShiftViTError(f"{str(path)!r} holds one class folder; did you mean {str(path / tops[0])!r}?")
    used = {parts[:depth] for parts in images}
    empty = ["/".join(parts) for parts in folders if len(parts) == depth and parts not in used]
    notes = [f"folders without images: {', '.join(empty)}"] if empty else []
    within = f"{join_words([f'{name}/' for name in ordered])} with " if splits else ""
    return f"{within}one folder a class", rows, notes


def _name_splits(path: Path, tops: list[str], images: Sequence[Parts], training: bool) -> dict[str, str]:
    """Returns which of the top folders are splits, folder -> split. Empty: all are classes, whatever their names."""
    splits = {name: SPLIT_WORDS[name.casefold()] for name in tops if name.casefold() in SPLIT_WORDS}
    if len(splits) < len(tops):
        # A class may be called train or test. Where other folders lie beside it, it takes two splits to believe it,
        # and class folders within train.
        within_train = any(len(parts) > 2 and splits.get(parts[0]) == "train" for parts in images)
        if len(splits) < 2 or not within_train:
            return {}
    if training and "train" not in splits.values():
        raise ShiftViTError(
            f"{str(path)!r} has {tops[0]}/ but no train/ with images; add it, or rename a folder to train"
        )
    split, count = Counter(splits.values()).most_common(1)[0]
    if count > 1:
        names = join_words([f"{name}/" for name in splits if splits[name] == split])
        raise ShiftViTError(f"{str(path)!r} has {names}, which all mean {split}; keep one of them")
    return splits
