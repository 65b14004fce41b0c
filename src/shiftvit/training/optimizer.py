"""Optimizers and the loss from settings, and which weights decay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from shiftvit.config import TrainConfig
from shiftvit.training.schedule import SCHEDULES


@keras.saving.register_keras_serializable(package="shiftvit")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy of logits with labels, smoothed: a share of the target is spread over all classes.

    `y_true`: whole numbers `(B,)` or `(B, 1)`, which Keras' own smoothing does not take, or shares of the classes
    `(B, classes)`; `y_pred`: `(B, classes)`, logits.
    """

    def __init__(self, label_smoothing: float = 0.0, name: str = "crossentropy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        log_probabilities = ops.log_softmax(ops.cast(y_pred, "float32"), axis=-1)  # (B, classes)
        if _are_shares(y_true):
            hit = ops.sum(ops.cast(y_true, "float32") * log_probabilities, axis=-1)
        else:
            target = ops.cast(ops.reshape(y_true, (-1, 1)), "int32")
            hit = ops.squeeze(ops.take_along_axis(log_probabilities, target, axis=-1), -1)
        spread = ops.mean(log_probabilities, axis=-1)
        return -(1.0 - self.label_smoothing) * hit - self.label_smoothing * spread

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable(package="shiftvit")
class Top1(keras.metrics.MeanMetricWrapper):
    """The share of images whose largest logit is the label's, or that of the label with the largest share."""

    def __init__(self, name: str = "top1", dtype: Any = None) -> None:
        super().__init__(_hits, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype}


def _hits(y_true: Any, y_pred: Any) -> Any:
    if _are_shares(y_true):
        return keras.metrics.categorical_accuracy(y_true, y_pred)
    return keras.metrics.sparse_categorical_accuracy(y_true, y_pred)


def _are_shares(y_true: Any) -> bool:
    return len(y_true.shape) == 2 and y_true.shape[-1] != 1


class _KeepsWeights:
    """Leaves the trained weights in the model when `fit` ends.

    Keras overwrites them with their moving average after each call of `fit`; here a run is one call an epoch, and the
    average is put in only for evaluation (`averaged_weights`).
    """

    def finalize_variable_values(self, var_list: Any) -> None:
        pass


class AdamW(_KeepsWeights, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW`."""


class Muon(_KeepsWeights, keras.optimizers.Muon):
    """`keras.optimizers.Muon`, orthogonalising in `orthogonal_dtype`.

    The iteration only has to bring the singular values near 1, for which bfloat16 is enough (as in Jordan's original).
    """

    def __init__(self, *, orthogonal_dtype: str = "float32", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.orthogonal_dtype = orthogonal_dtype

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        narrow = super().zeropower_via_newtonschulz5(ops.cast(x, self.orthogonal_dtype), steps)
        return ops.cast(narrow, x.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "orthogonal_dtype": self.orthogonal_dtype}


def build_optimizer(config: TrainConfig, total_steps: int, *, bfloat16: bool = False) -> Any:
    """Returns the Keras optimizer of a recipe, with its schedule over `total_steps`.

    Muon updates the matrices of blocks and merging, with its inner products in bfloat16 if asked; the patch embedding,
    the head and all vectors use AdamW at their own rate.
    """
    rule, plan = config.optimizer, config.schedule
    rate = SCHEDULES[plan.shape](
        lr_start=plan.start * rule.learning_rate,
        lr_max=rule.learning_rate,
        warmup_steps=int(total_steps * plan.warmup),
        total_steps=total_steps,
    )
    shared: dict[str, Any] = {
        "learning_rate": rate,
        "epsilon": rule.epsilon,
        "weight_decay": rule.weight_decay,
        "global_clipnorm": rule.clipnorm,
        "use_ema": config.ema is not None,
        "ema_momentum": config.ema if config.ema is not None else 0.99,
    }
    if rule.name == "adamw":
        optimizer = AdamW(beta_1=rule.beta_1, beta_2=rule.beta_2, **shared)
    else:
        optimizer = Muon(
            adam_beta_1=rule.beta_1,
            adam_beta_2=rule.beta_2,
            adam_lr_ratio=rule.adam_learning_rate / rule.learning_rate,
            adam_weight_decay=rule.adam_weight_decay,
            momentum=rule.momentum,
            ns_steps=rule.newton_schulz_steps,
            exclude_layers=["^patch_embed/", "^head/"],
            orthogonal_dtype="bfloat16" if bfloat16 else "float32",
            **shared,
        )
    if not rule.decay_vectors:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def learning_rates(model: Any, total_steps: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Returns the scheduled rate at each step from 0 to `total_steps`, float32 `(total_steps + 1,)`."""
    rates = model.optimizer._learning_rate(ops.arange(total_steps + 1, dtype="float32"))
    return np.asarray(ops.convert_to_numpy(rates))


@contextlib.contextmanager
def averaged_weights(model: Any) -> Iterator[None]:
    """Puts the optimizer's moving averages into the model, and the trained weights back afterwards.

    Without a moving average nothing changes.
    """
    optimizer = model.optimizer
    if not optimizer.use_ema:
        yield
        return
    variables = model.trainable_variables
    trained = [ops.copy(variable.value) for variable in variables]
    for variable, average in zip(variables, optimizer._model_variables_moving_average, strict=True):
        # A copy, as jax's `predict` gives away the buffers of the weights, and the averages must outlive it.
        variable.assign(ops.copy(average.value))
    try:
        yield
    finally:
        for variable, value in zip(variables, trained, strict=True):
            variable.assign(value)
