"""The one splitter: splits that a data set lacks are taken from its training images."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shiftvit.data.find.dataset import SPLITS, Dataset
from shiftvit.errors import ShiftViTError, count_of


def split_data(
    data: Dataset, *, validation: float, test: float, seed: int, stratify: bool = True, limit: int | None = None
) -> Dataset:
    """Takes the splits that a data set lacks from its training images: at random, the same for the same seed.

    Splits that it has stay as they are. Files are sorted first, so that the order in which they were found does not
    matter.

    Args:
        data: has training images.
        validation, test: how many of the N training images go there: a count (1 or more), a fraction (below 1, rounded
            to whole images) or 0.
        seed: 0..2**32-1.
        stratify: each class has about the same share of every split, and at least one image in it.
        limit: leave no more than so many training images afterwards; None: all.

    Raises:
        ShiftViTError: labels of another shape, a share or a seed that cannot be, or too few images of a class.
    """
    wanted = {"test": test, "validation": validation}
    shares = {name: share for name, share in wanted.items() if share != 0 and name not in data.splits}
    train = data.train
    order = np.arange(len(train))
    if train.paths is not None and train.images is None:
        paths, labels = train.paths, train.labels
        order = np.array(sorted(range(len(train)), key=lambda place: (paths[place], labels[place])), np.int64)
    places = _draw_splits(train.labels[order], shares, seed, data.class_names if stratify else None)
    if limit is not None and limit < len(places["train"]):
        first = np.arange(limit)
        if data.path is not None:  # a user's own are sorted, so the first would be of one class
            first = np.sort(np.random.default_rng(seed).permutation(len(places["train"]))[:limit])
        places["train"] = places["train"][first]
    splits = {**data.splits, **{name: train.take(order[chosen]) for name, chosen in places.items()}}
    return replace(data, splits={name: splits[name] for name in SPLITS if name in splits})


def _draw_splits(
    labels: NDArray[np.int64], shares: dict[str, float], seed: int, class_names: tuple[str, ...] | None
) -> dict[str, NDArray[np.int64]]:
    """Returns the places (rising) of each split's images and of those that are left for training.

    With `class_names` every class is in every split; with None chance alone decides.
    """
    if labels.ndim != 1:
        raise ShiftViTError(f"labels have the shape {labels.shape}; give one number for each image, (N,)")
    if shares and not 0 <= seed < 2**32:
        raise ShiftViTError(f"seed={seed} is outside 0..{2**32 - 1}; use a seed in that range")
    classes, sizes = np.unique(labels, return_counts=True)
    if class_names is not None and (sizes <= len(shares)).any():
        need, smallest = len(shares) + 1, sizes.argmin()
        raise ShiftViTError(
            f"the class {class_names[classes[smallest]]!r} has {count_of(sizes[smallest], 'image')}, too few for "
            f"{need} splits; add images until it has {need}, or remove it"
        )
    places = {}
    rest = np.arange(len(labels))
    for after, (name, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
        count = _count_images(name, share, len(labels), len(rest), len(classes) if class_names is not None else None)
        held_out = _draw(labels[rest], count, seed, class_names is not None, after)
        places[name] = rest[held_out]
        rest = rest[~held_out]
    return {**places, "train": rest}


def _count_images(name: str, share: float, total: int, rest: int, classes: int | None) -> int:
    """Returns how many of `total` images a share is, of which `rest` are left to take it from."""
    if not (math.isfinite(share) and share > 0) or (share >= 1 and share != int(share)):
        raise ShiftViTError(f"{name}={share} is not a share of the images; use a whole count, a fraction below 1 or 0")
    count = int(share) if share >= 1 else round(share * total)
    if min(count, rest - count) < (1 if classes is None else max(1, classes)):
        need = "1 image" if classes is None else f"1 of each of the {classes} classes"
        raise ShiftViTError(
            f"{name}={share} of {total:,} images is {count:,}, and both it and the rest ({rest - count:,}) "
            f"need {need}; change {name}, or add images"
        )
    return count


def _draw(labels: NDArray[np.int64], count: int, seed: int, stratify: bool, after: int) -> NDArray[np.bool_]:
    """Draws `count` of N images. Returns which are drawn, bool (N,).

    With `stratify` each class keeps its proportion, then a few images move so that 1 of each class is drawn and
    `after` are left: the splits that come after this one need theirs.
    """
    from sklearn.model_selection import train_test_split

    _, chosen = train_test_split(
        np.arange(len(labels)), test_size=count, random_state=seed, stratify=labels if stratify else None
    )
    drawn = np.zeros(len(labels), bool)
    drawn[chosen] = True
    for label in np.unique(labels) if stratify else ():
        own = np.flatnonzero(labels == label)
        if not drawn[own].any():
            drawn[own[0]] = True
        short = after - int((~drawn[own]).sum())
        if short > 0:
            drawn[own[drawn[own]][:short]] = False
    return drawn
