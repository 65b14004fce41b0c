"""Loads the data set of a run, whether it has a name or is a user's own images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from shiftvit.data import named
from shiftvit.data.decode.rows import unpack
from shiftvit.data.find.copies import mark_copies
from shiftvit.data.find.dataset import Dataset
from shiftvit.data.find.kept import SPLITS_TABLE, restore_splits
from shiftvit.data.find.splits import split_as
from shiftvit.data.read import read_dataset
from shiftvit.errors import ShiftViTError, join_words, list_some, notice, pluralize
from shiftvit.preprocess import Preprocess
from shiftvit.recipes.recipe import Recipe

# Reads the images of a data set, as `read_dataset` does.
Read = Callable[[Dataset, Preprocess], Dataset]


def load_data(
    recipe: Recipe, data: Dataset | None = None, run: Path | None = None, read: Read | None = None
) -> Dataset:
    """Finds, splits and reads the images of a run. For a user's own images it prints what it found.

    It makes the missing splits before it reads files, because reading depends on the split, and leaves out files that
    cannot be decoded. If a split that it made loses the last image of a class, it splits the usable files again.

    Args:
        recipe: its `data` names the images and the way to make missing splits. Its `preprocess.resize` must be set
            unless the images are arrays.
        data: images to use instead of those that the recipe names.
        run: a run folder. If it already has a table of splits, these are used.
        read: a function that reads the files; None: `read_dataset`.

    Returns:
        the splits "train" and "test", and "validation" unless there is none, each with `images`: uint8 (N, h, w, 3).

    Raises:
        ShiftViTError: the data have no known form, no size is set, a class has too few images for the splits, no
            training image of a class can be decoded, or there are no test images.
    """
    for name, value, kind in (("recipe", recipe, Recipe), ("data", data, Dataset | None)):
        if not isinstance(value, kind):
            raise ShiftViTError(
                f"{name} has the type {type(value).__name__}; give a {'Recipe' if name == 'recipe' else 'Dataset'}, "
                "and name your own images in the recipe: Recipe.load('photos', **{'data.name': 'PATH'})"
            )
    read = read or partial(read_dataset, boxes=recipe.augment.resized_crop > 0)
    data = named.look_up(recipe.data.name) if data is None else data
    own = data.path is not None
    if own:
        notice(f"{data.name}: {data.layout}; {len(data.class_names)} classes: {list_some(data.class_names, 8)}")
        for note in data.notes:
            notice(f"note: {note}")
    table = run / SPLITS_TABLE if own and run is not None else None
    kept = None
    if table is not None and table.is_file():
        count = recipe.model.num_classes if "num_classes" in recipe.model.model_fields_set else None
        kept = restore_splits(data, table, count)
        if "train" not in kept.splits or len(kept.splits) < 2:
            has = f"only {join_words([*kept.splits])} images" if kept.splits else "no images"
            raise ShiftViTError(
                f"{str(table)!r} has {has}, but a run needs training images and validation or test images; restore it"
            )
    unpack((kept or data).list_paths())
    if kept is None:
        result = _split_and_read(recipe, data, read)
    else:
        result = read(kept, recipe.preprocess)
        broken = {*(kept.train.paths or [])}.difference(result.train.paths or [])
        if broken:  # without them, the order of the others would change
            raise ShiftViTError(
                f"{pluralize(len(broken), 'training image')} of the run can no longer be decoded, the first "
                f"{min(broken)!r}, so the run would continue in another order; restore the files, or "
                "start a new run"
            )
        kept.report_lost(result)
    if own:
        result.report_counts()
    if "test" not in result.splits:
        notice("no test images: the figures are those of the validation images")
        result = replace(result, splits={**result.splits, "test": result.splits["validation"]}, test_is_validation=True)
    if not len(result.test):
        raise ShiftViTError(
            f"the data set {data.name} has no test images, but a run is evaluated on them at the end; give at least 1"
        )
    return result


def _split_and_read(recipe: Recipe, data: Dataset, read: Read) -> Dataset:
    """Makes the splits that are missing and reads all images, as `load_data` describes."""
    config = recipe.data
    data = mark_copies(config, data)
    usable = data
    broken: set[str] = set()
    while True:
        try:
            chosen = split_as(config, usable)
        except ShiftViTError as error:
            if not broken:
                raise
            left_out = f"{pluralize(len(broken), 'image')} that cannot be decoded left out"
            raise ShiftViTError(f"{error} ({left_out})") from error
        if not chosen.splits.keys() & {"validation", "test"}:
            raise ShiftViTError(
                f"data.test={config.test:g} leaves {data.name!r} no images to report; set data.test=0.1"
            )
        made = [name for name in chosen.splits if name not in data.splits]
        if data.path is not None and made:
            how = "by class" if config.stratify else "at random"
            notice(f"took {join_words(made)} images from the training images, {how}, with seed {config.split_seed}")
        result = read(chosen, recipe.preprocess)
        if chosen.report_lost(result).isdisjoint(["train", *made]):
            return result
        broken |= {*chosen.list_paths()}.difference(result.list_paths())
        del result  # frees the pictures before they are decoded again
        usable = data.leave_out(broken)
        gone = data.name_lost(usable).get("train", [])
        if gone:
            which, its = ("class", "its") if len(gone) == 1 else ("classes", "their")
            raise ShiftViTError(
                f"no training image of the {which} {join_words(gone)} can be decoded; replace {its} files, or remove "
                f"the {which}"
            )
