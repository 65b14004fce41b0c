"""Computes the gradients of a batch in parts, one after the other, to save memory.

The parts belong to one step, so order, mixing, schedule, moving average, checkpoints and position do not depend on
their number. Nor do the weights, except for rounding, without dropout and drop path and with a norm that treats each
image separately. A batch norm uses the statistics of each part.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from shiftvit.model.network import ShiftViT

# Mean loss (); logits (B, classes); gradients, one for each trainable variable.
Step = tuple[Any, Any, list[Any]]


class PartwiseShiftViT(ShiftViT):
    """A `ShiftViT` whose training step in Keras' `fit` computes each batch in `parts` of about the same size."""

    parts = 1

    def train_step(self, *arguments: Any) -> Any:
        steps: dict[str, Callable[..., Any]] = {
            "torch": self._step_on_torch,
            "jax": self._step_on_jax,
            "tensorflow": self._step_on_tensorflow,
        }
        return steps[keras.config.backend()](*arguments)

    def _step_on_torch(self, data: Any) -> dict[str, Any]:
        import torch

        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        loss, logits, gradients = compute_torch_gradients(self, images, labels, self.parts)
        with torch.no_grad():
            self.optimizer.apply(gradients, self.trainable_variables)
            return self._measure(images, labels, loss, logits)

    def _step_on_tensorflow(self, data: Any) -> dict[str, Any]:
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        loss, logits, gradients = compute_tensorflow_gradients(self, images, labels, self.parts)
        self.optimizer.apply(gradients, self.trainable_variables)
        return self._measure(images, labels, loss, logits)

    def _step_on_jax(self, state: Any, data: Any) -> tuple[dict[str, Any], Any]:
        trainable, fixed, optimizer, metrics = state
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        (loss, logits, gradients), fixed = compute_jax_gradients(self, trainable, fixed, images, labels, self.parts)
        trainable, optimizer = apply_jax_gradients(self, trainable, fixed, optimizer, gradients)
        with keras.StatelessScope(state_mapping=list(zip(self.metrics_variables, metrics, strict=True))) as scope:
            logs = self._measure(images, labels, loss, logits)
            metrics = [scope.get_current_value(variable) for variable in self.metrics_variables]
        return logs, (trainable, fixed, optimizer, metrics)

    def _measure(self, images: Any, labels: Any, loss: Any, logits: Any) -> dict[str, Any]:
        # As Keras' own steps do: the running loss weighs a batch by its images.
        self._loss_tracker.update_state(loss, sample_weight=ops.shape(images)[0])
        return self.compute_metrics(images, labels, logits)  # type: ignore[no-any-return]


def compute_torch_gradients(model: Any, images: Any, labels: Any, parts: int) -> Step:
    """Returns the mean loss of a batch, its logits and its gradients, on torch.

    Args:
        model: compiled with a loss that gives one value an image.
        images: `(B, H, W, 3)`.
        labels: `(B,)`, or shares `(B, classes)`.
        parts: 1 or more; a batch with fewer images has a part for each image.
    """
    import torch

    variables = [variable.value for variable in model.trainable_variables]
    losses: list[Any] = []
    outputs: list[Any] = []
    gradients: list[Any] = []
    for first, end in _split_evenly(len(images), parts):
        logits = model(images[first:end], training=True)
        loss = model.loss.call(labels[first:end], logits).sum() / len(images)
        found = torch.autograd.grad(loss, variables)
        losses.append(loss.detach())
        outputs.append(logits.detach())
        if gradients:
            torch._foreach_add_(gradients, found)
        else:
            gradients = list(found)
    return torch.stack(losses).sum(), torch.cat(outputs), gradients


def compute_jax_gradients(
    model: Any, trainable: Any, fixed: Any, images: Any, labels: Any, parts: int
) -> tuple[Step, list[Any]]:
    """Returns what `compute_torch_gradients` does, on jax, and the new values of the variables that are not trained.

    Args:
        trainable, fixed: the values of the model's trainable and other variables; all else as there.
    """
    import jax

    count = len(images)

    def compute_loss(trainable: Any, fixed: Any, images: Any, labels: Any) -> Any:
        logits, changed = model.stateless_call(trainable, fixed, images, training=True)
        return ops.sum(model.loss.call(labels, logits)) / count, (logits, list(changed))

    compute = jax.value_and_grad(compute_loss, has_aux=True)

    def add(state: Any, batch: Any) -> Any:
        loss, fixed, gradients = state
        (more, (logits, fixed)), found = compute(trainable, fixed, *batch)
        return (loss + more, fixed, jax.tree.map(jax.numpy.add, gradients, found)), logits

    trainable, fixed = list(trainable), list(fixed)
    if parts == 1:
        (loss, (logits, fixed)), gradients = compute(trainable, fixed, images, labels)
        return (loss, logits, gradients), fixed
    state = (jax.numpy.zeros(()), fixed, jax.tree.map(jax.numpy.zeros_like, trainable))
    # Each device divides its own share of the batch. Otherwise the whole batch would be copied to all of them.
    shares = _count_shares(count)
    own = count // shares
    if own % parts == 0:
        # A scan, because the compiler might compute unrolled parts side by side, in the memory of all.
        split = [_swap(array, shares, parts) for array in (images, labels)]
        (loss, fixed, gradients), logits = jax.lax.scan(add, state, split)
        return (loss, _swap(logits.reshape(count, -1), parts, shares).reshape(count, -1), gradients), fixed
    split = [array.reshape(shares, own, *array.shape[1:]) for array in (images, labels)]
    outputs = []
    for first, end in _split_evenly(own, parts):
        part = [array[:, first:end].reshape(shares * (end - first), *array.shape[2:]) for array in split]
        state, logits = add(state, part)
        outputs.append(logits.reshape(shares, end - first, -1))
    loss, fixed, gradients = state
    return (loss, jax.numpy.concatenate(outputs, axis=1).reshape(count, -1), gradients), fixed


def apply_jax_gradients(
    model: Any, trainable: Any, fixed: Any, optimizer: Any, gradients: list[Any]
) -> tuple[list[Any], list[Any]]:
    """Makes a step of the optimizer on jax; returns the new values of its trainable variables and of its own.

    Keras' `stateless_apply` does not pass `fixed`, whose statistics of a batch norm the optimizer averages.

    Args:
        trainable, fixed, optimizer: the values of the model's trainable and other variables after the forward pass,
            and of the optimizer's.
        gradients: one for each trainable variable.
    """
    own, rule = model.trainable_variables, model.optimizer
    groups = ((own, trainable), (model.non_trainable_variables, fixed), (rule.variables, optimizer))
    pairs = [pair for variables, values in groups for pair in zip(variables, values, strict=True)]
    with keras.StatelessScope(state_mapping=pairs) as scope:
        rule.apply(gradients, own)
    return [scope.get_current_value(one) for one in own], [scope.get_current_value(one) for one in rule.variables]


def _count_shares(count: int) -> int:
    """Returns over how many devices a batch of `count` images is spread."""
    spread = keras.distribution.distribution()
    devices = 1 if spread is None else spread.device_mesh.devices.size
    return devices if count % devices == 0 else 1


def _swap(array: Any, outer: int, inner: int) -> Any:
    """Returns the rows (outer * inner * n, ...), which lie in this order, as (inner, outer * n, ...)."""
    parts = array.reshape(outer, inner, -1, *array.shape[1:]).swapaxes(0, 1)
    return parts.reshape(inner, -1, *array.shape[1:])


def compute_tensorflow_gradients(model: Any, images: Any, labels: Any, parts: int) -> Step:
    """Returns what `compute_torch_gradients` does, on tensorflow."""
    import tensorflow as tf

    count = tf.shape(images)[0]  # within `fit` known only when it runs, as the last batch may be smaller
    total: Any = 0.0
    outputs: list[Any] = []
    gradients: list[Any] = []
    variables = [variable.value for variable in model.trainable_variables]

    def compute(batch: Any, target: Any) -> tuple[Any, Any, list[Any]]:
        with tf.GradientTape() as tape:
            logits = model(batch, training=True)
            loss = tf.reduce_sum(model.loss.call(target, logits)) / tf.cast(count, tf.float32)
        return loss, logits, tape.gradient(loss, variables)

    def skip() -> tuple[Any, Any, list[Any]]:
        logits = tf.zeros((0, model.settings.num_classes), model.compute_dtype)
        return tf.zeros(()), logits, [tf.zeros_like(variable) for variable in variables]

    for part in range(parts):
        first, end = part * count // parts, (part + 1) * count // parts
        with tf.control_dependencies(gradients):  # one after the other, or they take the memory of all
            batch, target = tf.identity(images[first:end]), tf.identity(labels[first:end])
        # A batch of fewer images than parts leaves some empty, whose batch norm would not be a number.
        loss, logits, found = tf.cond(end > first, functools.partial(compute, batch, target), skip)
        total += loss
        outputs.append(logits)
        gradients = [before + more for before, more in zip(gradients, found, strict=True)] if gradients else found
    # `cond` forgets the shape.
    logits = tf.ensure_shape(tf.concat(outputs, 0), (images.shape[0], model.settings.num_classes))
    return total, logits, gradients


def _split_evenly(count: int, parts: int) -> list[tuple[int, int]]:
    """Returns the first image and the end of each part. No part is empty."""
    parts = min(parts, count)
    return [(part * count // parts, (part + 1) * count // parts) for part in range(parts)]
