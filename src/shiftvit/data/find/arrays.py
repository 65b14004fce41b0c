"""Images from a NumPy archive (.npz), in splits by the names of its arrays."""

from __future__ import annotations

import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.data.find.dataset import SPLITS, Dataset, Split
from shiftvit.data.find.words import name_splits, normalise_name
from shiftvit.errors import ShiftViTError, describe_error, pluralize
from shiftvit.zips import read_array

# Words in the name of an array that say what it holds. The rest may name a split: `x_train`, `val_images`, `Yvalid`.
_IMAGES = "x|images?|imgs?|data|pixels|inputs?"
_LABELS = "y|labels?|targets?|classes"
_NAME = re.compile(rf"(?:({_IMAGES})|({_LABELS}))(.*)|(.*?)(?:({_IMAGES})|({_LABELS}))")
_CLASS_NAMES = "class_names"


def read_archive(path: Path, *, training: bool = True) -> Dataset:
    """Reads a .npz: uint8 images (N, H, W, 3), (N, H, W, 1) or (N, H, W), whole-number labels, maybe class names.

    Args:
        path: the archive.
        training: as for `find_data`.

    Raises:
        ShiftViTError: it has no such arrays, arrays of objects or of other shapes or types, or labels out of range.
    """
    pairs, arrays, unused = _read_arrays(path)
    splits = {
        split: _make_split(path, images, labels, arrays[images], arrays[labels])
        for split, (images, labels) in pairs.items()
    }
    if not splits.get("train") and (training or not splits):
        lacks, example = ("images for training", "x_train and y_train") if training else ("images", "images and labels")
        has = [*unused, *(name for pair in pairs.values() for name in pair)]
        found = f"; it has {', '.join(has)[:200]}" if has else ""
        raise ShiftViTError(f"{str(path)!r} has no {lacks}; name its arrays {example}{found}")
    names = arrays.get(_CLASS_NAMES)
    if names is not None:
        class_names = tuple(normalise_name(str(name)) for name in names.flat)
        if names.ndim != 1 or names.dtype.kind != "U" or len({*class_names}) < len(class_names):
            raise ShiftViTError(
                f"class_names of {str(path)!r} is not a list of different names; give a string for each class"
            )
    elif training:
        # Without names, the numbers are the names. A number above the number of images can only be a mistake.
        count = min(int(splits["train"].labels.max()) + 1, len(splits["train"]))
        class_names = tuple(map(str, range(count)))
    else:
        numbers = np.unique(np.concatenate([part.labels for part in splits.values()]))
        class_names = tuple(map(str, numbers.tolist()))
        splits = {
            split: replace(part, labels=np.searchsorted(numbers, part.labels).astype(np.int64))
            for split, part in splits.items()
        }
    for split, part in splits.items():
        if int(part.labels.max(initial=0)) >= len(class_names):
            if names is not None:
                rule = f"class_names has {pluralize(len(names), 'name')}; number them 0..{len(names) - 1}"
            elif split == "train":
                rule = f"there are {pluralize(len(part), 'image')}; number the classes 0, 1, 2 ..., or add class_names"
            else:
                rule = f"those of train only to {len(class_names) - 1}; add training images of these classes"
            raise ShiftViTError(f"the {split} labels of {str(path)!r} go up to {part.labels.max()}, and {rule}")
    notes = [f"arrays that are not used: {', '.join(unused)}"] if unused else []
    return Dataset(splits, class_names, str(path), path, "NumPy archive", tuple(notes))


def _pair_arrays(names: list[str]) -> dict[str, tuple[str, str]]:
    """Returns the names of the images' and the labels' array of each split; names without a split mean train."""
    parts = {}
    for name in names:
        match = _NAME.fullmatch(re.sub(r"[\W\d_]+", "", name.casefold()))
        if match is not None:
            parts[name] = bool(match[1] or match[5]), match[3] or match[4] or ""
    meanings = {**name_splits({word for _, word in parts.values()}), "": "train"}
    found: dict[tuple[str, bool], list[str]] = {}
    for name, (is_images, word) in parts.items():
        if word in meanings and (word or len(name) > 1):  # a bare x or y may be anything
            found.setdefault((meanings[word], is_images), []).append(name)
    return {
        split: (found[split, True][0], found[split, False][0])
        for split in SPLITS
        if (split, True) in found and (split, False) in found
    }


def _read_arrays(path: Path) -> tuple[dict[str, tuple[str, str]], dict[str, NDArray[Any]], list[str]]:
    """Returns the names of the arrays of each split, these arrays, and the names of the arrays that are not used."""
    name = ""
    try:
        with path.open("rb") as stream:
            if stream.read(6) == b"\x93NUMPY":
                raise ShiftViTError(f"{str(path)!r} holds a single array; save images and labels with numpy.savez")
            archive = zipfile.ZipFile(stream)
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            pairs = _pair_arrays([name for name in entries if name != _CLASS_NAMES])
            wanted = {_CLASS_NAMES, *(name for pair in pairs.values() for name in pair)}
            arrays = {}
            for name, entry in entries.items():
                if name in wanted:
                    arrays[name] = read_array(archive, entry)
            return pairs, arrays, [name for name in entries if name not in wanted]
    except (ShiftViTError, MemoryError):
        raise
    except Exception as error:  # damaged archives raise exceptions of nearly any type
        what = f"the array {name!r} of {str(path)!r}" if name else repr(str(path))
        raise ShiftViTError(
            f"{what} cannot be read ({describe_error(error)}); save plain arrays with numpy.savez"
        ) from error


def _make_split(path: Path, images: str, labels: str, pixels: NDArray[Any], numbers: NDArray[Any]) -> Split:
    if numbers.ndim == 2 and numbers.shape[1] == 1:  # the shape that Keras and MedMNIST use
        numbers = numbers[:, 0]
    is_images = f"{images} of {str(path)!r} is {pixels.dtype} {pixels.shape}"
    if pixels.dtype != np.uint8 or pixels.ndim not in {3, 4} or (pixels.ndim == 4 and pixels.shape[3] not in {1, 3}):
        raise ShiftViTError(f"{is_images}; it must be uint8 (N, H, W, 3) or (N, H, W)")
    if numbers.dtype.kind not in "iu" or numbers.shape != pixels.shape[:1]:
        raise ShiftViTError(
            f"{labels} of {str(path)!r} is {numbers.dtype} {numbers.shape}; it must be whole numbers ({len(pixels)},), "
            f"one for each of {images}"
        )
    if 0 in pixels.shape:
        raise ShiftViTError(f"{is_images}; it must not be empty")
    if numbers.min() < 0 or int(numbers.max()) >= 2**31:
        out = numbers.min() if numbers.min() < 0 else numbers.max()
        raise ShiftViTError(f"{labels} of {str(path)!r} has the label {out}; number the classes 0, 1, 2 ...")
    if pixels.ndim == 3 or pixels.shape[3] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:3], 1), 3, axis=3)
    return Split(numbers.astype(np.int64), [f"{images}[{number}]" for number in range(len(pixels))], pixels)
