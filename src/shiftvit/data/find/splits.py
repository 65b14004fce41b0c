"""Takes the splits that a data set lacks from its training images."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shiftvit.config import DataConfig
from shiftvit.data.find.dataset import SPLITS, Dataset
from shiftvit.errors import ShiftViTError, list_some, pluralize


def split_as(config: DataConfig, data: Dataset) -> Dataset:
    """Takes the splits that a data set lacks from its training images: at random, the same for the same seed.

    Splits that it has stay as they are. Files are sorted first, so that the order in which they were found does not
    matter. Marked copies stay together. Copies with different labels stay in the training split.

    Args:
        config: the shares of the splits, the limit, and how both are drawn. A share below 1 is rounded to whole images,
            with `stratify` to at least one of each class. Copies count once.
        data: has training images.

    Raises:
        ShiftViTError: the labels have another shape; a share, the limit or the seed is out of range; a class has too
            few images; or validation images should come from the end of files, which have no order.
    """
    seed = config.split_seed
    wanted = {"test": config.test, "validation": config.validation}
    shares = {name: share for name, share in wanted.items() if share != 0 and name not in data.splits}
    at_end = config.validation_from == "end" and "validation" in shares
    train = data.train
    order = np.arange(len(train))
    if train.paths is not None and train.images is None:
        if at_end:
            raise ShiftViTError(
                "data.validation_from='end' is for arrays, and files have no order; set data.validation_from=random"
            )
        paths = train.paths
        order = np.array(sorted(range(len(train)), key=lambda place: (paths[place], train.labels[place])), np.int64)
    if train.labels.ndim != 1:
        raise ShiftViTError(f"labels have the shape {train.labels.shape}; give one number for each image, (N,)")
    labels, names = train.labels[order], data.class_names if config.stratify else None
    # The splits are drawn among different images, and take the copies of these with them.
    pictures = _number_pictures(labels, np.arange(len(labels)) if train.copies is None else train.copies[order])
    _, first = np.unique(pictures[pictures >= 0], return_index=True)
    firsts = np.flatnonzero(pictures >= 0)[first]
    chosen = {}
    if at_end:
        count = _count_images("validation", shares.pop("validation"), len(firsts), len(firsts), None)
        firsts, chosen["validation"] = firsts[:-count], firsts[-count:]
    if names is not None and shares:
        _check_sizes(labels, labels[firsts], names, shares)
    for name, drawn in _draw_splits(labels[firsts], shares, seed, names).items():
        chosen[name] = firsts[drawn]
    places = {name: np.flatnonzero(np.isin(pictures, pictures[drawn])) for name, drawn in chosen.items()}
    rest = np.ones(len(labels), bool)
    for drawn in places.values():
        rest[drawn] = False
    places["train"] = np.flatnonzero(rest)
    if config.limit is not None and config.limit < len(places["train"]):
        places["train"] = places["train"][_draw_some(labels[places["train"]], config.limit, seed, names)]
    splits = {**data.splits, **{name: train.take(order[at]) for name, at in places.items()}}
    return replace(data, splits={name: splits[name] for name in SPLITS if name in splits})


def _number_pictures(labels: NDArray[np.int64], copies: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers the images in their order, copies alike; -1: copies that have several labels."""
    _, first, pictures = np.unique(copies, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))[pictures]
    several = np.zeros(len(first), bool)
    several[pictures[labels != labels[first][pictures]]] = True
    numbers: NDArray[np.int64] = np.where(several[pictures], -1, rank)
    return numbers


def _check_sizes(
    labels: NDArray[np.int64], different: NDArray[np.int64], class_names: tuple[str, ...], shares: Collection[str]
) -> None:
    """Raises ShiftViTError if a class has too few different images for the splits; the error names all such classes."""
    need = len(shares) + 1
    sizes = np.bincount(different, minlength=len(class_names))
    small = [label for label in np.unique(labels).tolist() if sizes[label] < need]
    if not small:
        return
    totals = np.bincount(labels, minlength=len(class_names))
    counts = [_describe_class(class_names[label], int(totals[label]), int(sizes[label])) for label in small]
    can_drop = need == 3 and sizes[small].min() == 2
    fewer = "; or set data.validation=0, which needs only 2 of each class" if can_drop else ""
    which, it, them = ("the class", "it", "it") if len(small) == 1 else ("of the classes,", "each", "them")
    told = f"{which} {list_some(counts, 10)}, too few for {need} splits"
    raise ShiftViTError(f"{told}; add images until {it} has {need} different ones, or remove {them}{fewer}")


def _describe_class(name: str, total: int, different: int) -> str:
    more = total - different
    copies = f" ({more:,} of which {'is a copy' if more == 1 else 'are copies'} of another)" if more else ""
    return f"{name!r} has {pluralize(total, 'image')}{copies}"


def _draw_some(
    labels: NDArray[np.int64], count: int, seed: int, class_names: tuple[str, ...] | None
) -> NDArray[np.int64]:
    """Draws `count` of N images; returns their places, sorted. With `class_names` each class keeps its proportion."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if class_names is not None:
        classes, inverse, sizes = np.unique(labels[order], return_inverse=True, return_counts=True)
        if count < len(classes):
            raise ShiftViTError(
                f"data.limit={count} is less than the {len(classes)} classes, of which each needs an image; use at "
                f"least {len(classes)}, or data.stratify=false"
            )
        # The images of a class are spread evenly over 0..1, but its first comes first, so that no class is left out.
        by_class = np.argsort(inverse, kind="stable")
        rank = np.empty(len(labels))
        rank[by_class] = np.concatenate([np.arange(size) for size in sizes])
        order = order[np.argsort(np.where(rank == 0, -1, (rank + 0.5) / sizes[inverse]), kind="stable")]
    places: NDArray[np.int64] = np.sort(order[:count])
    return places


def _draw_splits(
    labels: NDArray[np.int64], shares: dict[str, float], seed: int, class_names: tuple[str, ...] | None
) -> dict[str, NDArray[np.int64]]:
    """Draws the splits; returns the sorted places of the images of each.

    With `class_names` every class is in every split; without them, chance alone decides.
    """
    if shares and not 0 <= seed < 2**32:
        raise ShiftViTError(f"seed={seed} is outside 0..{2**32 - 1}; use a seed in that range")
    classes = None if class_names is None else len(np.unique(labels))
    places = {}
    rest = np.arange(len(labels))
    for after, (name, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
        count = _count_images(name, share, len(labels), len(rest), classes)
        held_out = _draw(labels[rest], count, seed, class_names is not None, after)
        places[name] = rest[held_out]
        rest = rest[~held_out]
    return places


def _count_images(name: str, share: float, total: int, rest: int, classes: int | None) -> int:
    """Returns how many images a share of `total` images is. There must be enough among the `rest` that are left."""
    if not (math.isfinite(share) and share > 0) or (share >= 1 and share != int(share)):
        raise ShiftViTError(f"{name}={share} is not a share of the images; use a whole count, a fraction below 1 or 0")
    least = max(1, classes or 0)
    count = int(share) if share >= 1 else round(share * total) if classes is None else max(least, round(share * total))
    if min(count, rest - count) < least:
        need = "1 image" if classes is None else f"1 of each of the {classes} classes"
        fits = f"use {least:,} to {rest - least:,}" if rest >= 2 * least else f"change {name}"
        if count > rest:
            there = "there are" if rest == total else f"the {rest:,} that are left"
            raise ShiftViTError(f"{name}={share:g} of {total:,} images is more than {there}; {fits}, or add images")
        raise ShiftViTError(
            f"{name}={share} of {total:,} images is {count:,}, and both it and the rest ({rest - count:,}) "
            f"need {need}; {fits}, or add images"
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
