"""Runs a model over a data set, and writes its logits to a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit import files
from shiftvit.data.find.dataset import Split
from shiftvit.environment import find_device_name
from shiftvit.preprocess import Preprocess

# The suffix of the file that `write_logits` writes.
ENDINGS = (".npz",)
BATCH_SIZE = 500
# Pixels per batch, as in 500 images of 32 x 32 or 10 of 224 x 224. A processor gains nothing from more.
_PIXELS = 2**19
# The factor for an accelerator, which needs larger batches.
_ACCELERATED = 16


def predict_logits(
    model: Any,
    images: NDArray[np.uint8],
    preprocess: Preprocess,
    *,
    batch_size: int | None = None,
    rows: slice = slice(None),
    on_batch: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Runs a classifier over images.

    Args:
        model: a `ShiftViT`.
        images: uint8 `(N, H, W, 3)`.
        preprocess: the preprocessing that the model was trained with.
        batch_size: images per batch; None: a number that suits the device and their size.
        rows: the images to use, as a slice without a step; default: all.
        on_batch: called after each batch with its number of images.

    Returns:
        logits `(N, num_classes)` of those rows, float32.

    Raises:
        ShiftViTError: the images have another shape or type.
    """
    begin, end, _ = rows.indices(len(images))
    logits = np.empty((max(0, end - begin), model.output_shape[-1]), np.float32)
    if not len(logits):
        preprocess.check(images)
        return logits
    batch_size = min(batch_size or choose_batch_size(*preprocess.output_shape(*images.shape[1:3])), len(logits))
    for first in range(0, len(logits), batch_size):
        batch = preprocess(images[begin + first : min(begin + first + batch_size, end)])
        count = len(batch)
        # Otherwise jax and tensorflow would compile again for a smaller last batch.
        padded = np.pad(batch, [(0, batch_size - count), (0, 0), (0, 0), (0, 0)])
        logits[first : first + count] = np.asarray(model.predict_on_batch(padded), np.float32)[:count]
        if on_batch is not None:
            on_batch(count)
    return logits


def choose_batch_size(height: int, width: int) -> int:
    """Returns the batch size for images of this size."""
    pixels = _PIXELS * (1 if find_device_name() == "cpu" else _ACCELERATED)
    return max(1, min(BATCH_SIZE, pixels // (height * width)))


def write_logits(path: Path, logits: NDArray[np.float32], split: Split, classes: Sequence[str]) -> None:
    """Writes the logits of a split's images to an .npz without pickle, atomically, in the order of the split.

    It holds `logits` float32 (N, C), `labels` int64 (N,), `classes`, C strings, and `paths`, N strings; if the images
    have no paths, `index`, int64 (N,), from 0.

    Raises:
        ShiftViTError: the disk is full or the folder is not writable.
    """
    arrays: dict[str, NDArray[Any]] = {
        "logits": logits.astype(np.float32, copy=False),
        "labels": split.labels.astype(np.int64, copy=False),
        "classes": np.array(classes, np.str_),
    }
    if split.paths is None:
        arrays["index"] = np.arange(len(split))
    else:
        arrays["paths"] = np.array(split.paths, np.str_)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # NumPy would add a suffix to the path x.NPZ
            np.savez(file, **arrays)  # type: ignore[arg-type]

    files.write_file(path, write)
