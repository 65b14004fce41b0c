"""The moving average of the weights and of batch norm's statistics, which becomes the trained model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops


def find_statistics(model: Any) -> list[Any]:
    """Returns the moving means and variances of the batch norms that training updates, so not of frozen ones."""
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    updated = {id(value) for norm in norms if norm.trainable for value in (norm.moving_mean, norm.moving_variance)}
    return [variable for variable in model.non_trainable_variables if id(variable) in updated]


@contextlib.contextmanager
def use_averaged_weights(model: Any) -> Iterator[None]:
    """Puts the optimizer's moving averages into the model, and afterwards the trained values back.

    It changes nothing if the optimizer keeps no moving average.
    """
    optimizer = model.optimizer
    if not optimizer.use_ema:
        yield
        return
    variables = [*model.trainable_variables, *optimizer.list_statistics()]
    trained = [ops.copy(variable.value) for variable in variables]
    for variable, average in zip(variables, optimizer._model_variables_moving_average, strict=True):
        # This is a copy, as jax's `predict` gives away the buffers of the weights, and the averages must outlive it.
        variable.assign(ops.copy(average.value))
    try:
        yield
    finally:
        for variable, value in zip(variables, trained, strict=True):
            variable.assign(value)
