"""Finds the images to evaluate a model on, and counts those that it was trained on."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shiftvit.config import DataConfig
from shiftvit.data import named
from shiftvit.data.decode.rows import find_row
from shiftvit.data.find.dataset import SPLITS, Dataset, Row, Split
from shiftvit.data.find.kept import DIGESTS, SPLITS_TABLE, check_digests, make_relative, read_splits, take_rows
from shiftvit.data.find.splits import split_as
from shiftvit.data.find.words import name_splits
from shiftvit.errors import ShiftViTError, join_words, list_some, notice, pluralize
from shiftvit.recipes.recipe import Recipe

# Instead of the name of a split: all images as one split.
ALL = "all"
# Instead of the name of a split: all splits, unchanged.
_EACH = "each"
# The share of the images common to a data set and a run's table that must have the same labels in both.
_ALIKE = 0.9


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Images to evaluate on, whose files were not read yet.

    Attributes:
        data: a data set with one split: "train", "validation", "test" or "all".
        own_test: whether the images are the run's own test images.
        trained_on: how many of them the model is known to have been trained on.
    """

    data: Dataset
    own_test: bool = False
    trained_on: int = 0

    @property
    def split(self) -> str:
        return next(iter(self.data.splits))

    @property
    def images(self) -> Split:
        return self.data.splits[self.split]


def find_evaluated(name: str | None, split: str | None = None, run: Path | None = None) -> Evaluated:
    """Finds the images to evaluate on. Prints notices about missing images and those that the model was trained on.

    Args:
        name: the name of a data set, or the path of a user's own images. For the data that the run was trained on, even
            if they were moved, the run's splits are used. None: the data of the run.
        split: "train", "validation", "test" or "all". None: the test images, or the validation images if there are
            none, or else all.
        run: the run folder of the model, if it has one.

    Raises:
        ShiftViTError: there are no such data or no such split, or all its images are missing.
    """
    wanted = None
    if split is not None:
        wanted = ALL if split == ALL else name_splits({split}).get(split) if isinstance(split, str) else None
        if wanted is None:
            raise ShiftViTError(f"there is no split {split!r}; use train, validation, test or all")
    found = _find_others(str(name), wanted) if run is None else _find_for_run(name, wanted, run)
    if found.trained_on:
        count = pluralize(len(found.images), "image")
        notice(f"note: the model was trained on {found.trained_on:,} of these {count}")
    return found


def find_splits(name: str | None, run: Path | None = None) -> tuple[Dataset, bool]:
    """Returns the same data as `find_evaluated`, with all their splits, and whether the splits are the run's own."""
    found = _find_others(str(name), _EACH) if run is None else _find_for_run(name, _EACH, run)
    return found.data, found.own_test


def _find_for_run(name: str | None, wanted: str | None, run: Path) -> Evaluated:
    config = Recipe.load(run / "recipe.toml").data
    own, table = config.name, run / SPLITS_TABLE
    if named.is_name(own) and name in (None, own):
        return _find_in_named(config, wanted, run)
    place = own if name is None else name
    paths = not (named.is_name(own) or named.is_name(place))
    is_own = place == own or (paths and Path(place).resolve() == Path(own).resolve())
    if is_own and not Path(own).exists():
        raise ShiftViTError(
            f"the images of the run were in {own!r}, which no longer exists; give their new location with --data"
        )
    if not table.is_file():
        if is_own:
            raise ShiftViTError(
                f"{str(run)!r} has no {SPLITS_TABLE}, which says which images of {own!r} it was trained on; restore "
                "it, or evaluate on other images"
            )
        return _find_others(place, wanted)
    rows = read_splits(table)
    if is_own and Path(place).suffix.lower() != ".npz":
        data = Dataset({}, (), own, Path(own))  # the table names the images
    else:
        data = named.look_up(place, training=False)
    if not is_own and not _is_moved(data, rows, Path(own)):
        chosen = _choose(data, wanted)
        return Evaluated(chosen, trained_on=_count_learned(chosen, rows, Path(own)))
    found = _find_own(data, wanted, rows)
    if name is not None and wanted is None:
        notice(f"{name} holds the run's own images; evaluating its {found.split} images (choose others with --split)")
    return found


def _find_in_named(config: DataConfig, wanted: str | None, run: Path) -> Evaluated:
    """Chooses from the data set by name that a run was trained on, split as for training."""
    data = named.load(config.name)
    if "test" in data.splits:
        try:
            check_digests(data, run / DIGESTS, ["test"])
        except ShiftViTError as error:
            raise ShiftViTError(f"{error}; save images as .npz or in folders, and give them with --data") from error
    if wanted not in (None, "test") or "test" not in data.splits:
        data = split_as(config, data)
    default = _choose_default(data.splits)
    part = wanted or default
    trained_on = len(data.train) if part in ("train", ALL) else 0
    return Evaluated(_choose(data, part), part in (default, _EACH), trained_on)


def _find_others(name: str, wanted: str | None) -> Evaluated:
    return Evaluated(_choose(named.look_up(name, training=False), wanted))


def _find_own(data: Dataset, wanted: str | None, rows: Sequence[Row]) -> Evaluated:
    """Chooses from the table of a run's splits. The data give only the place of the images, or the arrays."""
    there = [split for split in SPLITS if any(row[0] == split for row in rows)]
    part = wanted or _choose_default(there)
    if part not in (*there, ALL, _EACH):
        raise ShiftViTError(
            f"the run has no {part} images, only {join_words(there)}; use --split all, or leave out --split"
        )
    rows = [row for row in rows if row[0] == part or part in (ALL, _EACH)]
    chosen, gone = take_rows(data, rows)
    if gone:
        kind = "image" if part in (ALL, _EACH) else f"{part} image"
        fault = f"{data.name!r} lacks {len(gone):,} of the run's {pluralize(len(rows), kind)}: "
        fault += list_some(repr(image) for _, image, _ in gone)
        if len(gone) == len(rows):
            raise ShiftViTError(f"{fault}; put them back, or give their new location with --data")
        notice(f"note: {fault}; the others are evaluated")
    trained_on = len(chosen.splits.get("train", ()))
    return Evaluated(_choose(chosen, part), part in (_choose_default(there), _EACH), trained_on)


def _is_moved(data: Dataset, rows: Sequence[Row], own: Path) -> bool:
    """Returns whether a data set is the one that a run was trained on, moved to another place.

    It must have at least half of the run's images, with their labels.
    """
    if data.path is None:
        return False
    labels = {
        make_relative(data.root, path): data.class_names[label]
        for split in data.splits.values()
        for path, label in zip(split.paths or [], split.labels.tolist(), strict=True)
    }
    common = [(image, label) for _, image, label in rows if image in labels]
    alike = sum(labels[image] == label for image, label in common)
    if 2 * alike < len(rows) or alike < _ALIKE * len(common):
        return False
    if any(split.images is not None for split in data.splits.values()):  # an archive: images have the same names in all
        return alike == len(rows) and not own.exists()
    there = sum(_find_file(_find_root(own), image).is_file() for _, image, _ in rows)
    return 2 * there < len(rows)


def _count_learned(data: Dataset, rows: Sequence[Row], own: Path) -> int:
    """Returns how many images are files that a run was trained on, or copies of these."""
    root, learned = _find_root(own), {image for split, image, _ in rows if split == "train"}
    places = {os.path.abspath(root / image) for image in learned}  # noqa: PTH100 - `resolve` asks the disk for each
    archive = data.path if data.path is not None and data.path.suffix.lower() == ".npz" else None

    def is_learned(path: str) -> bool:
        if os.path.abspath(path) in places:  # noqa: PTH100
            return True
        image = make_relative(data.root, path)
        if image not in learned:
            return False
        files = (archive, own) if archive is not None else (_find_file(data.root, image), _find_file(root, image))
        return all(file.is_file() for file in files) and filecmp.cmp(*files, shallow=False)  # which caches its answers

    return sum(map(is_learned, data.list_paths()))


def _find_file(root: Path, image: str) -> Path:
    """Returns the file of an image in a run's table: the image itself, or the Parquet file that it is a row of."""
    place = str(root / image)
    row = find_row(place)
    return Path(place if row is None else row[0])


def _find_root(own: Path) -> Path:
    """Returns the folder to which the paths in a run's table are relative, even if the data no longer exist."""
    return own if own.is_dir() or not own.suffix else own.parent


def _choose_default(splits: Collection[str]) -> str:
    return next((split for split in ("test", "validation") if split in splits), ALL)


def _choose(data: Dataset, wanted: str | None) -> Dataset:
    """Returns the data set with only the wanted split, or with all of its images as one."""
    part = wanted or _choose_default(data.splits)
    others = [split for split in data.splits if split != part]
    if part == _EACH:
        return data
    if part == ALL:
        return replace(data, splits={ALL: join_splits([*data.splits.values()])})
    if part not in data.splits:
        has = ": its images are not split" if others == ["train"] else f", only {join_words(others)}"
        raise ShiftViTError(f"{data.name!r} has no {part} images{has}; use --split all, or leave out --split")
    if wanted is None and others:
        rest = sum(len(data.splits[split]) for split in others)
        notice(
            f"{data.name}: evaluating its {pluralize(len(data.splits[part]), f'{part} image')}; --split all takes the "
            f"{rest:,} of {join_words(others)} as well"
        )
    return replace(data, splits={part: data.splits[part]})


def join_splits(splits: Sequence[Split]) -> Split:
    """Returns the images of several splits as one split. All must be arrays, or all files."""
    paths = [path for split in splits for path in split.paths or []]
    arrays = [split.images for split in splits if split.images is not None]
    labels = np.concatenate([split.labels for split in splits])
    return Split(labels, paths if len(paths) == len(labels) else None, np.concatenate(arrays) if arrays else None)
