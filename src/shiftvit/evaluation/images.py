"""Reads a data set for a model: prepares the images as for a prediction, and numbers the labels as the model does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.bundle import Bundle
from shiftvit.data.find.dataset import Dataset
from shiftvit.data.find.words import normalise_name
from shiftvit.data.read import read_dataset
from shiftvit.errors import ShiftViTError, list_some, notice, pluralize


def read_images(loaded: Bundle, data: Dataset) -> Dataset:
    """Reads the images of a data set for a model.

    Args:
        loaded: the model.
        data: the data set. Its classes may be in another order, and some of the model's may be missing.

    Returns:
        the same splits with `images`, the remaining `preprocess` and the model's labels.

    Raises:
        ShiftViTError: images have classes that the model does not have, or no image of a split can be decoded.
    """
    places, preprocess = _find_indices(loaded, data), loaded.preprocess
    if data.path is not None:
        for note in data.notes:
            notice(f"note: {note}")
        height, width = loaded.config.image_shape[:2]
        if height is not None and width is not None:
            preprocess = preprocess.fitted(height, width)
    data = read_dataset(data, preprocess, training=False)
    if data.path is not None:
        data.report_counts()
    splits = {name: replace(split, labels=places[split.labels]) for name, split in data.splits.items()}
    return replace(data, splits=splits, class_names=loaded.labels)


def _find_indices(loaded: Bundle, data: Dataset) -> NDArray[np.int64]:
    """Returns the model's index of each class of the data, or -1 for a class without images that it does not have.

    It finds a class by its name, or by its synset, as in the names of ImageNet's folders.
    """
    labels, names = tuple(map(normalise_name, loaded.labels)), data.class_names
    known = {synset: index for index, synset in enumerate(loaded.synsets)} | {
        label: index for index, label in enumerate(labels)
    }
    counts = np.bincount(np.concatenate([split.labels for split in data.splits.values()]), minlength=len(names))
    foreign = [name for name, count in zip(names, counts, strict=True) if count and name not in known]
    if foreign:
        number = sum(int(count) for name, count in zip(names, counts, strict=True) if name in foreign)
        raise ShiftViTError(
            f"the model has {len(labels):,} classes ({list_some(labels, 5)}) and {data.name} has "
            f"{pluralize(number, 'image')} of {pluralize(len(foreign), 'other')} ({list_some(map(repr, foreign))}); "
            "give them the model's names, or leave them out"
        )
    return np.array([known.get(name, -1) for name in names], np.int64)
