"""The data set of a run, or the images to evaluate on: one way for a data set by name and for a user's own images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from shiftvit.config import DataConfig
from shiftvit.data import named
from shiftvit.data.find.copies import find_copies
from shiftvit.data.find.dataset import Dataset, Split, spread_of
from shiftvit.data.find.kept import SPLITS_TABLE, name_some, restore_splits
from shiftvit.data.find.splits import split_data
from shiftvit.data.read import read_dataset
from shiftvit.errors import ShiftViTError, count_of, join_words, notice
from shiftvit.preprocess import Preprocess
from shiftvit.recipes.recipe import Recipe

# Reads the images of a data set, as `read_dataset` does.
Read = Callable[[Dataset, Preprocess], Dataset]


def load_data(
    recipe: Recipe, data: Dataset | None = None, run: Path | None = None, read: Read | None = None
) -> Dataset:
    """Finds, splits and reads the images of a run. Of a user's own it also says what was found.

    Args:
        recipe: its `data` names the images and says how to make the splits that are missing. Its `preprocess.resize`
            must be set unless the images are arrays.
        data: images in place of those that the recipe names.
        run: a run folder. If it has a table of splits already, these are taken as they are.
        read: what reads the files; None: `read_dataset`.

    Returns:
        the splits "train" and "test", and "validation" unless there is none, each with `images`: uint8 (N, h, w, 3).

    Raises:
        ShiftViTError: nothing that can be understood at that path, no size, a class that cannot be split or whose
            training images cannot be decoded, or no test images.
    """
    read = read or partial(read_dataset, boxes=recipe.augment.resized_crop > 0)
    data = named.look_up(recipe.data.name) if data is None else data
    own = data.path is not None
    if own:
        names = ", ".join(data.class_names[:8]) + (" ..." if len(data.class_names) > 8 else "")
        notice(f"{data.name}: {data.layout}; {len(data.class_names)} classes: {names}")
        for note in data.notes:
            notice(f"note: {note}")
    table = run / SPLITS_TABLE if own and run is not None else None
    if table is not None and table.is_file():
        count = recipe.model.num_classes if "num_classes" in recipe.model.model_fields_set else None
        chosen = restore_splits(data, table, count)
        new = [name for name in data.class_names if name not in chosen.class_names]
        if new:
            notice(f"note: the run does not know {name_some(new)}, whose images are left out")
        result = _read_kept(recipe, chosen, read)
    else:
        result = _split_and_read(recipe, data, read)
    if own:
        say_counts(result)
    if "test" not in result.splits:
        notice("no test images: those of validation are reported")
        result = replace(result, splits={**result.splits, "test": result.splits["validation"]}, test_is_validation=True)
    if not len(result.test):
        raise ShiftViTError(f"the data set {data.name} has 0 test images, which a run ends with; give at least 1")
    return result


def split_as(config: DataConfig, data: Dataset) -> Dataset:
    """Returns the data set with the splits that it lacks, as the settings say. Copies of a user's images stay together.

    Raises:
        ShiftViTError: splits that cannot be.
    """
    shares = {"validation": config.validation, "test": config.test}
    copies = None
    if data.path is not None and any(share and name not in data.splits for name, share in shares.items()):
        copies = find_copies(data.train)
        repeated = len(copies) - len(np.unique(copies))
        if repeated:
            notice(f"note: copies of other images: {repeated:,}; each stays in the split of the other")
    return split_data(
        data,
        **shares,
        seed=config.split_seed,
        stratify=config.stratify,
        limit=config.limit,
        copies=copies,
        validation_from=config.validation_from,
    )


def _read_kept(recipe: Recipe, chosen: Dataset, read: Read) -> Dataset:
    """Reads the images of a run that goes on, in the splits that it began with.

    Raises:
        ShiftViTError: a training image cannot be read any more: the others would come in another order than before.
    """
    result = read(chosen, recipe.preprocess)
    gone = _broken(Dataset({"train": chosen.train}, (), ""), result)
    if gone:
        raise ShiftViTError(
            f"{count_of(len(gone), 'training image')} of the run cannot be decoded any more, the first {min(gone)!r}, "
            "so that it would go on in another order; put the files back as they were, or begin a new run"
        )
    _say_lost(chosen, result)
    return result


def _split_and_read(recipe: Recipe, data: Dataset, read: Read) -> Dataset:
    """Makes the splits that are missing and reads all images.

    How a picture is read depends on its split, so that the splits come first and what cannot be decoded drops out of
    them. If that takes the last image of a class out of a split that was made, only usable files are split anew.

    Raises:
        ShiftViTError: splits that cannot be; no training image of a class can be decoded; no images to report.
    """
    config = recipe.data
    chosen = split_as(config, data)
    made = [name for name in chosen.splits if name not in data.splits]
    if not chosen.splits.keys() & {"validation", "test"}:
        raise ShiftViTError(f"data.test={config.test:g} leaves {data.name!r} no images to report; set data.test=0.1")
    if data.path is not None and made:
        how = "by class" if config.stratify else "at random"
        notice(f"split off train: {join_words(made)}, {how}, with seed {config.split_seed}")
    result = read(chosen, recipe.preprocess)
    lost = _say_lost(chosen, result)
    if not lost:
        return result
    broken = _broken(chosen, result)
    usable = [place for place, path in enumerate(data.train.paths or []) if path not in broken]
    train = data.train.take(usable)
    gone = [repr(data.class_names[label]) for label in sorted(_classes(data.train) - _classes(train))]
    if gone:
        which, its = ("class", "its") if len(gone) == 1 else ("classes", "their")
        raise ShiftViTError(
            f"no training image of the {which} {join_words(gone)} can be decoded; replace {its} files, or remove the "
            f"{which}"
        )
    if lost.isdisjoint(["train", *made]):
        return result
    del result  # before its pictures are decoded again
    try:
        return _split_and_read(recipe, data.with_splits(train=train), read)
    except ShiftViTError as error:
        raise ShiftViTError(f"{error} ({count_of(len(broken), 'image')} that cannot be decoded left out)") from error


def _broken(chosen: Dataset, result: Dataset) -> set[str]:
    """Returns the paths that were chosen and could not be read."""
    wanted, read = ({path for split in part.splits.values() for path in split.paths or []} for part in (chosen, result))
    return wanted - read


def _say_lost(chosen: Dataset, result: Dataset) -> set[str]:
    """Returns the splits of which a class has no image that can be decoded, and says which classes these are."""
    lost = set()
    for name, split in chosen.splits.items():
        names = [repr(chosen.class_names[label]) for label in sorted(_classes(split) - _classes(result.splits[name]))]
        if names:
            lost.add(name)
            notice(f"note: no {name} image of {join_words(names)} can be decoded")
    return lost


def say_counts(data: Dataset) -> None:
    """Says how many images each split has, and of each class."""
    for name, split in data.splits.items():
        counts = np.bincount(split.labels, minlength=len(data.class_names))
        notice(f"{name}: {count_of(len(split), 'image')}, {spread_of(counts)} a class")


def _classes(split: Split) -> set[int]:
    return {*np.unique(split.labels).tolist()}
