"""A user's own images for a run: found, split, decoded, and told about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.config import DataConfig
from shiftvit.console import Bar
from shiftvit.data.batches.pictures import read_originals, read_pictures
from shiftvit.data.decode.rows import unpack
from shiftvit.data.find.dataset import ORDER, Files, FoundData
from shiftvit.data.find.folders import find_data
from shiftvit.data.find.splits import split_data
from shiftvit.data.find.tables import read_table
from shiftvit.errors import ShiftViTError, notice
from shiftvit.preprocess import Preprocess

# Which images are for what, in the run folder.
SPLITS = "splits.csv"

# Faults that are named one by one; the rest is counted.
_NAMED = 5

Part = tuple[Any, NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class OwnData:
    """What a run works on.

    Attributes:
        found: the files of each split, those that cannot be used left out.
        parts: by split, the pictures (an array, `Pictures` or `Originals`, uint8 (N, h, w, 3)) and their labels (N,).
        train_rule, test_rule: what is left to do to the pictures of training, and of validation and test.
    """

    found: FoundData
    parts: dict[str, Part]
    train_rule: Preprocess
    test_rule: Preprocess


def load_own(config: DataConfig, preprocess: Preprocess, kept: Path | None = None, *, boxes: bool = False) -> OwnData:
    """Finds, splits and decodes the images that `config.name`, a path, stands for, and says what was found.

    Training pictures are resized and, if of another shape, cropped to it; where a crop is drawn at random it is drawn
    from that. All others go through the whole of `preprocess`, as at inference. With `boxes` training pictures stay in
    their files, whole, and are decoded again in each epoch.

    Args:
        config: the path, and how to make the splits that are missing.
        preprocess: of the recipe; its `resize` must be set unless the images are arrays.
        kept: the splits of an earlier start of the same run, which are taken as they are.
        boxes: a random resized crop is cut from the training pictures (`augment.resized_crop`).

    Raises:
        ShiftViTError: nothing that can be understood at that path, no size, or a class that cannot be split.
    """
    found = find_data(config.name)
    notice(f"{config.name}: {found.layout}; {len(found.class_names)} classes: {_some(found.class_names)}")
    for line in found.ignored:
        notice(f"note: {line}")
    if kept is not None and kept.is_file():
        found = replace(found, splits=load_splits(kept, found.path))
    else:
        made = [name for name in ("validation", "test") if name not in found.splits]
        found = split_data(found, validation=config.validation, test=config.test, seed=config.split_seed)
        if made := [name for name in made if name in found.splits]:
            notice(f"split off train: {' and '.join(made)}, by class, with seed {config.split_seed}")
    if config.limit is not None and config.limit < len(found.splits["train"]):
        chosen = np.random.default_rng(config.split_seed).permutation(len(found.splits["train"]))[: config.limit]
        found = replace(found, splits={**found.splits, "train": found.splits["train"].take(np.sort(chosen))})
    own = decoded(found, preprocess, boxes=boxes)
    if "test" not in own.parts:
        if "validation" not in own.parts:
            raise ShiftViTError(
                f"data.test={config.test:g} leaves {config.name!r} no images to report; set data.test=0.1"
            )
        notice("no test images: those of validation are reported")
        own.parts["test"] = own.parts["validation"]
    return own


def find_test(path: str, kept: Path | None = None) -> FoundData:
    """Returns only the files to evaluate on: the test split, else the validation split, else all.

    Args:
        path: your own images.
        kept: the splits that a run kept; where nothing lies there, those of the folder are taken.

    Raises:
        ShiftViTError: nothing that can be understood at that path.
    """
    found = find_data(path)
    if kept is not None and kept.is_file():
        found = replace(found, splits=load_splits(kept, found.path))
    name = next(name for name in ("test", "validation", "train") if name in found.splits)
    return replace(found, splits={name: found.splits[name]})


def load_splits(path: Path, root: str | Path) -> dict[str, Files]:
    """Reads what `save_splits` wrote.

    Args:
        path: the table.
        root: the data that it was written for, as given to `find_data`; its classes number the labels.

    Raises:
        ShiftViTError: it is no such table, or names images or classes that are not there; or the faults of `find_data`.
    """
    path, found = Path(path), find_data(root)
    arrays = found.splits["train"].images is not None
    rows, _ = read_table(path, found.path if found.path.is_dir() or arrays else found.path.parent)
    index = {name: number for number, name in enumerate(found.class_names)}
    where = {
        name: (part.images, number)
        for part in found.splits.values()
        for number, name in enumerate(part.paths)
        if part.images is not None
    }
    for row in rows:
        if row.label not in index or (arrays and row.path not in where):
            what = f"class {row.label!r}" if row.label not in index else f"image {row.path!r}"
            raise ShiftViTError(f"{str(path)!r} names the {what}, which {str(root)!r} does not have; split it anew")
    splits = {}
    for split in (name for name in ORDER if any(row.split == name for row in rows)):
        part = [row for row in rows if row.split == split]
        images = np.stack([pixels[number] for pixels, number in (where[row.path] for row in part)]) if arrays else None
        splits[split] = Files(
            [row.path for row in part], np.array([index[row.label] for row in part], np.int64), images
        )
    return splits


def decoded(found: FoundData, preprocess: Preprocess, *, boxes: bool = False) -> OwnData:
    """Decodes all files once, leaves out and names those that cannot be used, and says how many images there are.

    With `boxes` those of the training split are only checked; see `load_own`.
    """
    own = decode_parts(found, preprocess, boxes=boxes)
    for name, (images, labels) in own.parts.items():
        counts = np.bincount(labels, minlength=len(found.class_names))
        notice(f"{name}: {len(images):,} images, {counts.min():,} to {counts.max():,} a class")
    return own


def decode_parts(found: FoundData, preprocess: Preprocess, *, boxes: bool = False) -> OwnData:
    """Does what `decoded` does and says nothing of counts."""
    if any(files.images is not None for files in found.splits.values()):
        parts: dict[str, Part] = {name: (files.images, files.labels) for name, files in found.splits.items()}
        rules = (preprocess, preprocess)
    else:
        found, parts = _pictures(found, preprocess, boxes)
        bare = {"resize": None, "round_pixels": True}
        rules = (preprocess.model_copy(update=bare), preprocess.model_copy(update={**bare, "crop": None}))
    return OwnData(found, parts, *rules)


def _pictures(found: FoundData, preprocess: Preprocess, boxes: bool) -> tuple[FoundData, dict[str, Part]]:
    side = preprocess.resize
    whole = preprocess.model_copy(update={"crop": side if isinstance(side, tuple) or side is None else (side, side)})
    total = sum(len(files.paths) for files in found.splits.values())
    splits, parts, faults = {}, {}, []
    unpack(path for files in found.splits.values() for path in files.paths)
    with Bar("decoding", total) as bar:
        done = 0
        for name, files in found.splits.items():
            shown = partial(_shifted, bar, done)
            images: Any
            if name == "train" and boxes:
                images, kept, bad = read_originals(files.paths, preprocess, told=shown)
            else:
                images, kept, bad = read_pictures(files.paths, whole if name == "train" else preprocess, told=shown)
            splits[name] = files.take(kept)
            parts[name] = (images, splits[name].labels)
            faults += bad
            done += len(files.paths)
    for fault in faults[:_NAMED]:
        notice(f"skipped: {fault}")
    if len(faults) > _NAMED:
        notice(f"skipped {len(faults) - _NAMED:,} more; `shiftvit data check` names them all")
    for name, (images, _) in parts.items():
        if not len(images):
            count = len(found.splits[name].paths)
            raise ShiftViTError(f"none of the {count:,} {name} images can be decoded; {faults[0]}")
    return replace(found, splits=splits), parts


def _shifted(bar: Bar, before: int, count: int) -> None:
    bar.update(before + count)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
