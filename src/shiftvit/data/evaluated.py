"""The images that a model is evaluated on: which of a data set, and how many of them its training has seen."""

from __future__ import annotations

import filecmp
import os
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shiftvit.data import named
from shiftvit.data.decode.rows import find_row
from shiftvit.data.find.dataset import SPLITS, Dataset, Row, Split
from shiftvit.data.find.kept import SPLITS_TABLE, make_relative, read_splits, take_rows
from shiftvit.data.find.splits import split_as
from shiftvit.data.find.words import name_splits
from shiftvit.errors import ShiftViTError, join_words, list_some, notice, pluralize
from shiftvit.recipes.recipe import Recipe

# In place of a split: all images, whatever splits they are in.
ALL = "all"
# All splits, each for itself.
_EACH = "each"
# Of the images that a data set has in common with a run's table, the share that must have their labels from there.
_ALIKE = 0.9


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Images to evaluate on, whose files nobody has read yet.

    Attributes:
        data: has one split: "train", "validation", "test" or "all".
        own_test: they are those that the run's test figures are of.
        trained_on: how many of them the model was trained on, as far as that is known.
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
    """Finds the images to evaluate on. Says which of them are gone and how many the model was trained on.

    Args:
        name: of a data set, or the path of a user's own images. If it is the data that the run was trained on, in its
            old place or in a new one, the run's splits are taken. None: the data of the run.
        split: "train", "validation", "test" or "all". None: the test images; where there are none, those for
            validation; where there are neither, all.
        run: the run folder of the model, if it has one.

    Raises:
        ShiftViTError: nothing that can be understood, no such split, or none of its images is left.
    """
    wanted = None if split is None else ALL if split == ALL else name_splits({split}).get(split)
    if split is not None and wanted is None:
        raise ShiftViTError(f"there is no split {split!r}; use train, validation, test or all")
    found = _find_others(str(name), wanted) if run is None else _find_for_run(name, wanted, run)
    count = len(found.images)
    if found.trained_on:
        notice(f"note: the model was trained on {found.trained_on:,} of these {pluralize(count, 'image')}")
    return found


def find_splits(name: str | None, run: Path | None = None) -> Evaluated:
    """Finds the same images as `find_evaluated`, all of them, in their splits. `own_test`: they are the run's own."""
    return _find_others(str(name), _EACH) if run is None else _find_for_run(name, _EACH, run)


def _find_for_run(name: str | None, wanted: str | None, run: Path) -> Evaluated:
    config = Recipe.load(run / "recipe.toml").data
    own, table = config.name, run / SPLITS_TABLE
    named_so = named.is_name(own)
    if not named_so and name in (None, own) and not Path(own).exists():
        raise ShiftViTError(
            f"the images of the run were in {own!r}, which no longer exists; give their new location: "
            f"shiftvit evaluate {shlex.quote(str(run))} --data PATH"
        )
    given, name = name, own if name is None else name
    same = name == own or (not named_so and Path(name).resolve() == Path(own).resolve())
    if named_so and same:
        drawn = named.load(own)
        drawn = drawn if wanted in (None, "test") and "test" in drawn.splits else split_as(config, drawn)
        part = wanted or _choose_default([*drawn.splits])
        seen = len(drawn.train) if part in ("train", ALL) else 0
        return Evaluated(_choose(drawn, part), part in (_choose_default([*drawn.splits]), _EACH), seen)
    rows = read_splits(table) if table.is_file() else None
    if rows is None and same:
        raise ShiftViTError(
            f"{str(run)!r} has no {SPLITS_TABLE}, which says which images of {own!r} it was trained on; restore it, or "
            "evaluate on other images"
        )
    if rows is None:
        return _find_others(name, wanted)
    if same and Path(name).suffix.lower() != ".npz":
        data = Dataset({}, (), own, Path(own))  # the table says what there is
    else:
        data = named.look_up(name, training=False)
    if same or _is_moved(data, rows, Path(own)):
        found = _find_own(data, wanted, rows)
        if given is not None and wanted is None:
            notice(f"{given} has the images of the run: its {found.split} images are evaluated; --split takes others")
        return found
    chosen = _choose(data, wanted)
    return Evaluated(chosen, trained_on=_count_learned(chosen, rows, Path(own)))


def _find_others(name: str, wanted: str | None) -> Evaluated:
    return Evaluated(_choose(named.look_up(name, training=False), wanted))


def _find_own(data: Dataset, wanted: str | None, rows: Sequence[Row]) -> Evaluated:
    """Chooses from the table of a run's splits. Of the data only its place is used, and an archive's arrays."""
    there = [split for split in SPLITS if any(row[0] == split for row in rows)]
    part = wanted or _choose_default(there)
    if part not in (*there, ALL, _EACH):
        raise ShiftViTError(
            f"the run has no {part} images, it has {join_words(there)}; use --split all, or leave it out"
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
    """Returns whether a data set is what a run was trained on, which is not in its old place any more.

    At least half of the run's images are in it, with their labels.
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
    if any(split.images is not None for split in data.splits.values()):  # an archive, whose arrays all are called alike
        return len(labels) == len(rows) and not own.exists()
    there = sum(_find_file(_find_root(own), image).is_file() for _, image, _ in rows)
    return 2 * there < len(rows)


def _count_learned(data: Dataset, rows: Sequence[Row], own: Path) -> int:
    """Returns how many images are files, or copies of files, that a run was trained on."""
    root, learned = _find_root(own), {image for split, image, _ in rows if split == "train"}
    places = {os.path.abspath(root / image) for image in learned}  # noqa: PTH100 - `resolve` asks the disk for each
    same: dict[tuple[Path, Path], bool] = {}

    def is_learned(path: str) -> bool:
        if os.path.abspath(path) in places:  # noqa: PTH100
            return True
        image = make_relative(data.root, path)
        if image not in learned:
            return False
        archive = data.path is not None and data.path.suffix.lower() == ".npz"
        files = (data.path, own) if archive and data.path else (_find_file(data.root, image), _find_file(root, image))
        if files not in same:
            same[files] = all(file.is_file() for file in files) and filecmp.cmp(*files, shallow=False)
        return same[files]

    return sum(map(is_learned, data.list_paths()))


def _find_file(root: Path, image: str) -> Path:
    """Returns the file that an image of a run's table is, or is a row of."""
    place = str(root / image)
    row = find_row(place)
    return Path(place if row is None else row[0])


def _find_root(own: Path) -> Path:
    """Returns the folder that the paths in a run's table are relative to, whether or not the data still exist."""
    return own if own.is_dir() or not own.suffix else own.parent


def _choose_default(splits: Collection[str]) -> str:
    return next((split for split in ("test", "validation") if split in splits), ALL)


def _choose(data: Dataset, wanted: str | None) -> Dataset:
    """Returns the data set with only the wanted split, or with all of its images as one.

    Raises:
        ShiftViTError: there is no such split.
    """
    part = wanted or _choose_default(data.splits)
    others = [split for split in data.splits if split != part]
    if part == _EACH:
        return data
    if part == ALL:
        return replace(data, splits={ALL: join_splits([*data.splits.values()])})
    if part not in data.splits:
        has = "its images are not split" if others == ["train"] else f"it has {join_words(others)}"
        raise ShiftViTError(f"{data.name!r} has no {part} images, {has}; use --split all, or leave it out")
    if wanted is None and others:
        rest = sum(len(data.splits[split]) for split in others)
        notice(
            f"{data.name}: evaluating its {pluralize(len(data.splits[part]), f'{part} image')}; --split all takes the "
            f"{rest:,} of {join_words(others)} as well"
        )
    return replace(data, splits={part: data.splits[part]})


def join_splits(splits: Sequence[Split]) -> Split:
    """Returns the images of several splits as one; they are all arrays, or all in files."""
    paths = [path for split in splits for path in split.paths or []]
    arrays = [split.images for split in splits if split.images is not None]
    labels = np.concatenate([split.labels for split in splits])
    return Split(labels, paths if len(paths) == len(labels) else None, np.concatenate(arrays) if arrays else None)
