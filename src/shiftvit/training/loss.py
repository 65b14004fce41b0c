"""The loss, its class weights, and the accuracy that is shown while training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="shiftvit")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy of logits with labels, smoothed: a share of the target is spread over all classes.

    `y_true`: whole numbers `(B,)` or `(B, 1)`, which Keras' own smoothing does not take, or shares of the classes
    `(B, classes)`; `y_pred`: `(B, classes)`, logits. With `class_weights`, one for each class, each image's loss is
    multiplied by its class' weight, or by its classes' mean weight under its shares.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        name: str = "crossentropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else [float(weight) for weight in class_weights]

    def call(self, y_true: Any, y_pred: Any) -> Any:
        log_probabilities = ops.log_softmax(ops.cast(y_pred, "float32"), axis=-1)  # (B, classes)
        if _are_shares(y_true):
            hit = ops.sum(ops.cast(y_true, "float32") * log_probabilities, axis=-1)
        else:
            target = ops.cast(ops.reshape(y_true, (-1, 1)), "int32")
            hit = ops.squeeze(ops.take_along_axis(log_probabilities, target, axis=-1), -1)
        spread = ops.mean(log_probabilities, axis=-1)
        loss = -(1.0 - self.label_smoothing) * hit - self.label_smoothing * spread
        return loss if self.class_weights is None else loss * self._weigh(y_true)

    def _weigh(self, y_true: Any) -> Any:
        """Returns the weight of each image, float32 `(B,)`."""
        weights = ops.convert_to_tensor(self.class_weights, "float32")
        if _are_shares(y_true):
            return ops.sum(ops.cast(y_true, "float32") * weights, axis=-1)
        return ops.take(weights, ops.cast(ops.reshape(y_true, (-1,)), "int32"))

    def get_config(self) -> dict[str, Any]:
        own = {"label_smoothing": self.label_smoothing, "class_weights": self.class_weights}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="shiftvit")
class Top1(keras.metrics.MeanMetricWrapper):
    """The share of images whose largest logit is the label's, or that of the label with the largest share."""

    def __init__(self, name: str = "top1", dtype: Any = None) -> None:
        super().__init__(find_hits, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype}


def find_hits(y_true: Any, y_pred: Any) -> Any:
    """Returns 1.0 for each image whose largest logit is its label's or that of its largest share, float32 `(B,)`."""
    true = ops.argmax(y_true, axis=-1) if _are_shares(y_true) else ops.reshape(y_true, (-1,))
    return ops.cast(ops.cast(ops.argmax(y_pred, axis=-1), "int32") == ops.cast(true, "int32"), "float32")


def _are_shares(y_true: Any) -> bool:
    return len(y_true.shape) == 2 and y_true.shape[-1] != 1


def balance_classes(labels: Any, classes: int) -> list[float]:
    """Returns a weight for each class, so that all classes count alike and the mean over the images is 1.

    It is `N / (k * n)` for a class with n of the N images where k classes have any, as scikit-learn's "balanced"; a
    class without images gets 0.
    """
    counts = np.bincount(np.asarray(labels), minlength=classes)
    present = int(np.count_nonzero(counts))
    return [float(counts.sum() / (present * count)) if count else 0.0 for count in counts]
