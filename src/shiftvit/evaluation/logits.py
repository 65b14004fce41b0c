"""From images to logits: the one place where a model is run over a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.preprocess import Preprocess

BATCH_SIZE = 500


def predict_logits(
    model: Any,
    images: NDArray[np.uint8],
    preprocess: Preprocess,
    *,
    batch_size: int = BATCH_SIZE,
) -> NDArray[np.float32]:
    """Runs a classifier over images.

    Args:
        model: a `ShiftViT`.
        images: uint8 `(N, H, W, 3)`.
        preprocess: what the model was trained with.
        batch_size: images at a time.

    Returns:
        logits `(N, num_classes)`, float32.

    Raises:
        ShiftViTError: images of another shape or type.
    """
    logits = np.empty((len(images), model.output_shape[-1]), np.float32)
    if not len(images):
        preprocess.check(images)
        return logits
    batch_size = min(batch_size, len(images))
    for first in range(0, len(images), batch_size):
        batch = preprocess(images[first : first + batch_size])
        count = len(batch)
        # A last batch of another size would be compiled anew on jax and tensorflow.
        padded = np.pad(batch, [(0, batch_size - count), (0, 0), (0, 0), (0, 0)])
        logits[first : first + count] = np.asarray(model.predict_on_batch(padded), np.float32)[:count]
    return logits
