"""Converts arrays between NumPy and the backend, and computes gradients on the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

BACKEND = keras.config.backend()


def draw_normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_numpy(tensor: Any) -> np.ndarray:
    """Returns a tensor as an array; narrower floats become float32."""
    array = keras.ops.convert_to_numpy(tensor)
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def set_random_weights(layer: Any, seed: int = 0) -> None:
    """Sets every weight to random values, also zeros and ones. Matrix products keep the scale of their input."""
    random = np.random.default_rng(seed)
    weights = []
    for weight in layer.get_weights():
        if weight.ndim > 1:
            weights.append(random.normal(size=weight.shape) / np.sqrt(np.prod(weight.shape[:-1])))
        else:
            weights.append(random.uniform(0.5, 1.5, weight.shape))  # above 0, because some are variances
    layer.set_weights(weights)


def compute_input_gradient(function: Callable[[Any], Any], x: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    """Returns the gradient of `sum(function(x) * cotangent)` with respect to x."""
    return _compute_gradient(lambda t: _sum_product(function(t), cotangent), x)


def compute_weight_gradients(model: Any, x: np.ndarray, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the gradient of `sum(model(x) * cotangent)` in training mode, by the path of the trainable variable."""
    variables = model.trainable_variables
    if BACKEND == "jax":
        import jax

        def loss(values: Any) -> Any:
            others = [variable.value for variable in model.non_trainable_variables]
            out, _ = model.stateless_call(values, others, x, training=True)
            return _sum_product(out, cotangent)

        found = jax.grad(loss)([variable.value for variable in variables])
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            total = _sum_product(model(x, training=True), cotangent)
        found = tape.gradient(total, [variable.value for variable in variables])
    else:
        model.zero_grad()
        _sum_product(model(x, training=True), cotangent).backward()
        found = [variable.value.grad for variable in variables]
    assert None not in [None if gradient is None else 0 for gradient in found], "a parameter has no gradient"
    return {variable.path: to_numpy(gradient) for variable, gradient in zip(variables, found, strict=True)}


def _sum_product(out: Any, cotangent: np.ndarray) -> Any:
    return keras.ops.sum(out * keras.ops.convert_to_tensor(cotangent))


def _compute_gradient(function: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    if BACKEND == "jax":
        import jax

        return to_numpy(jax.grad(function)(x))
    tensor = keras.ops.convert_to_tensor(x)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensor)
            out = function(tensor)
        return to_numpy(tape.gradient(out, tensor))
    tensor.requires_grad_(True)
    function(tensor).backward()
    return to_numpy(tensor.grad)
