"""The data set of a run, or the images to evaluate on: one way for a data set by name and for a user's own images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from shiftvit.config import DataConfig
from shiftvit.data import named
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.data.find.kept import SPLITS_TABLE, name_some, restore_splits
from shiftvit.data.find.splits import split_data
from shiftvit.data.read import read_dataset
from shiftvit.errors import ShiftViTError, count_of, join_words, notice
from shiftvit.preprocess import Preprocess
from shiftvit.recipes.recipe import Recipe

# Decodes the images of a data set; see `read_dataset`.
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
        read: reads the files in place of `read_dataset`.

    Returns:
        the splits "train" and "test", and "validation" unless there is none, each with `images`: uint8 (N, h, w, 3).

    Raises:
        ShiftViTError: nothing that can be understood at that path, no size, a class that cannot be split or whose
            training images cannot be decoded, or no test images.
    """
    config = recipe.data
    read = read or partial(read_dataset, boxes=recipe.augment.resized_crop > 0)
    data = named.look_up(config.name) if data is None else data
    own = data.path is not None
    if own:
        names = ", ".join(data.class_names[:8]) + (" ..." if len(data.class_names) > 8 else "")
        notice(f"{data.name}: {data.layout}; {len(data.class_names)} classes: {names}")
        for note in data.notes:
            notice(f"note: {note}")
    table = run / SPLITS_TABLE if own and run is not None else None
    count = recipe.model.num_classes if "num_classes" in recipe.model.model_fields_set else None
    # How a picture is read depends on its split, so that the splits come first and what cannot be decoded drops out of
    # them. If that takes the last image of a class out of a split, the files that can be decoded are split anew.
    while True:
        if table is not None and table.is_file():
            chosen, made = restore_splits(data, table, count), []
            new = [name for name in data.class_names if name not in chosen.class_names]
            if new:
                notice(f"note: the run does not know {name_some(new)}, whose images are left out")
                data = replace(data, class_names=chosen.class_names)
        else:
            chosen = split_as(config, data)
            made = [name for name in chosen.splits if name not in data.splits]
        if not chosen.splits.keys() & {"validation", "test"}:
            raise ShiftViTError(
                f"data.test={config.test:g} leaves {data.name!r} no images to report; set data.test=0.1"
            )
        if own and made:
            notice(f"split off train: {join_words(made)}, by class, with seed {config.split_seed}")
        result = read(chosen, recipe.preprocess)
        lost = {name: _classes(split) - _classes(result.splits[name]) for name, split in chosen.splits.items()}
        if not any(lost.values()):
            break
        for name in (name for name in lost if lost[name]):
            classes = join_words([repr(data.class_names[label]) for label in sorted(lost[name])])
            notice(f"note: no {name} image of {classes} can be decoded")
        data = _leave_out_broken(data, chosen, result)
        if not made or not any(lost[name] for name in ("train", *made)):
            break
        del result  # before its pictures are decoded again
    if own:
        say_counts(result)
    if "test" not in result.splits:
        notice("no test images: those of validation are reported")
        result = replace(result, splits={**result.splits, "test": result.splits["validation"]}, test_is_validation=True)
    if not len(result.test):
        raise ShiftViTError(f"the data set {data.name} has 0 test images, which a run ends with; give at least 1")
    return result


def split_as(config: DataConfig, data: Dataset) -> Dataset:
    """Returns the data set with the splits that it lacks, as the settings say."""
    return split_data(
        data,
        validation=config.validation,
        test=config.test,
        seed=config.split_seed,
        stratify=data.path is not None or config.stratify,
        limit=config.limit,
    )


def say_counts(data: Dataset) -> None:
    """Says how many images each split has, and of each class."""
    for name, split in data.splits.items():
        counts = np.bincount(split.labels, minlength=len(data.class_names))
        notice(f"{name}: {count_of(len(split), 'image')}, {counts.min():,} to {counts.max():,} a class")


def _classes(split: Split) -> set[int]:
    return {*np.unique(split.labels).tolist()}


def _leave_out_broken(data: Dataset, chosen: Dataset, result: Dataset) -> Dataset:
    """Returns the data set without the training files that were chosen and could not be read.

    Raises:
        ShiftViTError: a class then has no training images at all.
    """
    paths = data.train.paths or []
    broken = {path for split in chosen.splits.values() for path in split.paths or []}
    broken -= {path for split in result.splits.values() for path in split.paths or []}
    usable = [place for place, path in enumerate(paths) if path not in broken]
    data = replace(data, splits={**data.splits, "train": data.train.take(usable)})
    lost = _classes(chosen.train) - _classes(data.train)
    if lost:
        raise ShiftViTError(
            f"no training image of the class {data.class_names[min(lost)]!r} can be decoded; replace its files, or "
            "remove the class"
        )
    return data
