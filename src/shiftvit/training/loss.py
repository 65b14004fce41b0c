"""The loss with its class weights, and the training accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="shiftvit")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy of logits, with label smoothing: a share of each label is spread over all classes.

    `y_true`: whole numbers `(B,)` or `(B, 1)`, which Keras' own smoothing does not take, or shares of the classes
    `(B, classes)`. `y_pred`: logits `(B, classes)`. `class_weights` multiply the loss of each image by the weight of
    its class, or by the mean weight of its classes according to their shares.
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
    """The share of images whose largest logit is that of the label, or of the class with the largest share."""

    def __init__(self, name: str = "top1", dtype: Any = None) -> None:
        super().__init__(find_hits, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype}


def find_hits(y_true: Any, y_pred: Any) -> Any:
    """Returns 1.0 for each image that `Top1` counts and 0.0 for the others, float32 `(B,)`."""
    true = ops.argmax(y_true, axis=-1) if _are_shares(y_true) else ops.reshape(y_true, (-1,))
    return ops.cast(ops.cast(ops.argmax(y_pred, axis=-1), "int32") == ops.cast(true, "int32"), "float32")


def _are_shares(y_true: Any) -> bool:
    return len(y_true.shape) == 2 and y_true.shape[-1] != 1


def balance_classes(labels: Any, classes: int) -> list[float]:
    """Returns a weight for each class, so that all classes count equally and the mean over the images is 1.

    As scikit-learn's "balanced", it is `N / (k * n)` for a class with n of the N images, if k classes have images. A
    class without images gets 0.
    """
    counts = np.bincount(np.asarray(labels), minlength=classes)
    present = int(np.count_nonzero(counts))
    return [float(counts.sum() / (present * count)) if count else 0.0 for count in counts]
