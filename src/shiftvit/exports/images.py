"""Chooses the images on which an export is compared with its model, and those that calibrate it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.metadata import Metadata
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.data import named
from shiftvit.data.decode.images import decode
from shiftvit.data.decode.readers import IMAGE_SUFFIXES
from shiftvit.data.evaluated import find_splits, join_splits
from shiftvit.data.find.dataset import Split
from shiftvit.data.find.listing import list_folder, list_images
from shiftvit.data.find.words import is_litter
from shiftvit.evaluation.images import read_images
from shiftvit.evaluation.places import find_run
from shiftvit.exports.any_size import make_images
from shiftvit.exports.gate import MIN_IMAGES
from shiftvit.preprocess import Preprocess

# Training images that calibrate the range of activations.
_CALIBRATION = 512


@dataclass(frozen=True, eq=False)
class Images:
    """The images on which an export is compared.

    Attributes:
        arrays: uint8 "images" and "calibration" at the model's input size, and "labels" if they are known.
        origin: the data set and the split of the images, for the report.
        enough: the number of labelled images needed to measure a narrow precision.
    """

    arrays: dict[str, NDArray[Any]]
    origin: dict[str, Any]
    enough: int = MIN_IMAGES


def choose_images(model: str | Path, bundle: Bundle, metadata: Metadata, data: str | None, count: int) -> Images:
    """Reads the images to compare on, and for int8 other images to calibrate with.

    Args:
        model: the exported model; for a run, its own test and validation images are used.
        bundle, metadata: the model, and the metadata of the export.
        data: the name of a data set, or the path of a user's own images; None: as for `shiftvit.export`.
        count: the largest number of images to compare on.

    Raises:
        ShiftViTError: there are no such images, or they have classes that the model does not have.
    """
    if data is None and metadata.precision == "f32":
        files = sorted((PRETRAINED / "samples").rglob("*.png"))[:count]
        return _read_unlabelled(files, metadata.preprocess, "sample images")
    if data is not None and metadata.precision == "f32" and named.is_path(data) and _is_unlabelled(Path(data)):
        pictures = list_images([data])
        chosen = np.sort(np.random.default_rng(0).permutation(len(pictures))[:count])
        return _read_unlabelled([pictures[index] for index in chosen], metadata.preprocess, data)
    run = find_run(model)
    if data is None and run is None:
        data = named.find_by_classes(bundle.labels)
    found, own = find_splits(data, run)
    held_out, rest, origin = _divide(found.splits, count, calibrate=metadata.precision == "int8")
    splits = {"comparison": _draw(held_out, count), "calibration": _draw(rest, _CALIBRATION)}
    splits = {name: split for name, split in splits.items() if len(split)}
    read = read_images(bundle, replace(found, splits=splits)).splits
    pixels = {name: split.preprocess.pixels(split.images[:]) for name, split in read.items()}
    compared = pixels["comparison"]
    lost = len(splits["comparison"]) - len(compared)  # images that cannot be decoded do not count as missing
    return Images(
        {
            "images": compared,
            "labels": read["comparison"].labels,
            "calibration": pixels.get("calibration", compared[:0]),
        },
        {"data": found.name, "split": origin},
        min(MIN_IMAGES, len(held_out) - lost) if own else MIN_IMAGES,
    )


def _is_unlabelled(place: Path) -> bool:
    """Returns whether a path is a folder with images and without folders, which could be classes."""
    entries = [entry for entry in list_folder(place) if not is_litter(entry.name)] if place.is_dir() else []
    pictures = any(Path(entry.name).suffix.lower() in IMAGE_SUFFIXES for entry in entries)
    return pictures and not any(entry.is_dir() for entry in entries)


def _read_unlabelled(files: Iterable[str | Path], rule: Preprocess, name: str) -> Images:
    images = np.concatenate([rule.pixels(decode(path, **rule.decoding)[None]) for path in files])
    return Images({"images": images, "calibration": images[:0]}, {"data": name})


def vary_sizes(chosen: Images, rule: Preprocess) -> Images:
    """Returns images of many sizes, raw and preprocessed, for a graph that takes any size."""
    sized = make_images(chosen.arrays["images"])
    arrays = {f"sized{index:02}": image for index, image in enumerate(sized)}
    images = np.concatenate([rule.pixels(image[None]) for image in sized])
    return replace(chosen, arrays={**arrays, "images": images, "calibration": images[:0]})


def _divide(splits: Mapping[str, Split], count: int, *, calibrate: bool) -> tuple[Split, Split, str]:
    """Returns the images to compare on, those to calibrate with, and the names of the splits to compare on.

    The comparison uses the test images, and also the validation images if there are fewer than `count` test images. The
    other images calibrate. If there are no others, a quarter of the images, but at most 512, calibrates.
    """
    names = [name for name in ("test", "validation") if name in splits] or [*splits]
    if len(names) == 2 and len(splits["test"]) >= count:
        names = names[:1]
    compared = join_splits([splits[name] for name in names])
    others = [split for name, split in splits.items() if name not in names]
    if others or not calibrate:
        rest = join_splits(others) if others and calibrate else compared.take([])
        return compared, rest, " and ".join(names)
    order = np.random.default_rng(0).permutation(len(compared))
    least = min(_CALIBRATION, len(order) // 4)
    return compared.take(np.sort(order[least:])), compared.take(order[:least]), " and ".join(names)


def _draw(split: Split, count: int) -> Split:
    """Returns `count` images drawn at random, or all if there are no more."""
    return split if len(split) <= count else split.take(np.random.default_rng(0).permutation(len(split))[:count])
