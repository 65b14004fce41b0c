"""From images to predictions, and from predictions to metrics: the one place where accuracy is computed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle import Bundle
from shiftvit.data import sources
from shiftvit.data.preprocess import Preprocess
from shiftvit.errors import ShiftViTError

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


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the probabilities for logits `(N, C)`, float32 `(N, C)`."""
    exact = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[np.float32] = exact / exact.sum(axis=1, keepdims=True)
    return result


def measure(logits: NDArray[np.float32], labels: NDArray[Any]) -> dict[str, Any]:
    """Returns `{"loss", "top1", "top5", "n"}`: mean cross-entropy in nats and shares of hits, from 0 to 1.

    Args:
        logits: `(N, C)`, N at least 1.
        labels: whole numbers below C, `(N,)`.

    A label counts as among the top k if fewer than k classes have a larger logit (of equal ones, the first counts as
    the larger). With fewer than five classes top-5 is 1.

    Raises:
        ShiftViTError: no images, or labels that do not fit the logits.
    """
    if not len(logits):
        raise ShiftViTError("there are 0 images to evaluate on; give at least 1")
    if labels.shape != logits.shape[:1] or labels.min() < 0 or labels.max() >= logits.shape[1]:
        extent = f"{labels.min()} to {labels.max()}" if labels.size else "none"
        raise ShiftViTError(
            f"labels of shape {labels.shape}, {extent}, do not fit logits of shape "
            f"{logits.shape}; is this the data that the model was trained for?"
        )
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    log_likelihood = exact[rows, labels] - np.log(np.exp(exact).sum(axis=1))
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    hits = order == labels[:, None].astype(order.dtype)
    return {
        "loss": float(-log_likelihood.mean()),
        "top1": float(hits[:, 0].mean()),
        "top5": float(hits.any(axis=1).mean()),
        "n": len(labels),
    }


def confusion(logits: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.int64]:
    """Returns the confusion matrix `(C, C)`: rows are true classes, columns predicted ones."""
    from sklearn.metrics import confusion_matrix

    classes = np.arange(logits.shape[1])
    return np.asarray(confusion_matrix(labels, logits.argmax(axis=1), labels=classes), np.int64)


def evaluate(bundle: Bundle | str | Path, data: str = "cifar10") -> dict[str, Any]:
    """Evaluates a trained model on a data set's test images.

    Args:
        bundle: a `Bundle`, or the path of one or of a run folder.
        data: the data set's name.

    Returns:
        `{"data", "split", "loss", "top1", "top5", "n", "seconds", "images_per_second"}`.

    Raises:
        ShiftViTError: no such bundle or data set, or classes that do not fit the model's.
    """
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    images = sources.load(data)
    if tuple(images.class_names) != loaded.labels:
        raise ShiftViTError(
            f"the model knows {len(loaded.labels)} classes ({', '.join(loaded.labels[:3])} ...) and {data} has "
            f"{len(images.class_names)} others ({', '.join(images.class_names[:3])} ...); evaluate on its own data"
        )
    model = loaded.build()
    started = time.perf_counter()
    logits = predict_logits(model, images.test_images, loaded.preprocess)
    seconds = time.perf_counter() - started
    return {
        "data": data,
        "split": "test",
        **measure(logits, images.test_labels),
        "seconds": round(seconds, 3),
        "images_per_second": round(len(logits) / seconds, 1),
    }
