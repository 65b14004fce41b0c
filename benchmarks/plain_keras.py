"""The same model in plain Keras layers, which `benchmarks/steps.py` compares with.

It takes the arguments of a `shiftvit.ModelConfig` with `norm="layer"` and has the same parameters in the same order.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from shiftvit.config import ModelConfig


class PlainShift(layers.Layer):
    """Five slices and a concatenation."""

    def __init__(self, group: int, mask: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.group, self.mask = group, mask

    def call(self, x: Any) -> Any:
        g = self.group
        left, right, up, down = (x[..., i * g : (i + 1) * g] for i in range(4))
        row, column = ((0, 0), (0, 1), (0, 0), (0, 0)), ((0, 0), (0, 0), (0, 1), (0, 0))
        before_row, before_column = ((0, 0), (1, 0), (0, 0), (0, 0)), ((0, 0), (0, 0), (1, 0), (0, 0))
        if self.mask:
            moved = [
                ops.pad(left[:, :, :-1], column),
                ops.pad(right[:, :, 1:], before_column),
                ops.pad(up[:, :-1], row),
                ops.pad(down[:, 1:], before_row),
            ]
        else:
            moved = [
                ops.pad(left[:, :, 1:], column),
                ops.pad(right[:, :, :-1], before_column),
                ops.pad(up[:, 1:], row),
                ops.pad(down[:, :-1], before_row),
            ]
        return ops.concatenate([*moved, x[..., 4 * g :]], axis=-1)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


class PlainDropPath(layers.Layer):
    """Stochastic depth as a dropout with one value for each image."""

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = layers.Dropout(rate, noise_shape=(None, 1, 1, 1))

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.inner(x, training=training)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


def build_plain_model(config: ModelConfig, dtype: str) -> Any:
    """Returns a functional Keras model from float images to logits."""
    if config.norm != "layer":
        raise SystemExit("the plain model has layer norms only")
    keras.config.set_dtype_policy(dtype)
    rates = np.linspace(0.0, config.drop_path, sum(config.depths)).tolist()
    inputs = keras.Input(config.image_shape)
    x = layers.Conv2D(config.embed_dim, config.patch_size, config.patch_size, padding="same")(inputs)
    if config.patch_norm:
        x = layers.LayerNormalization(epsilon=config.epsilon)(x)
    channels, index = config.embed_dim, 0
    for stage, depth in enumerate(config.depths):
        if stage:
            channels *= 2
            x = layers.LayerNormalization(epsilon=config.epsilon)(x)
            x = layers.Conv2D(channels, 2, 2, padding=config.merge_padding, use_bias=False)(x)
        for _ in range(depth):
            group = config.shift_channels if config.shift_channels is not None else channels // config.num_div
            x = PlainShift(group, config.shift_mode == "mask")(x)
            y = layers.LayerNormalization(epsilon=config.epsilon)(x)
            y = layers.Dense(int(channels * config.mlp_ratio), activation=config.activation)(y)
            y = layers.Dropout(config.dropout)(y) if config.dropout else y
            y = layers.Dense(channels)(y)
            y = layers.Dropout(config.dropout)(y) if config.dropout else y
            y = PlainDropPath(rates[index])(y) if rates[index] else y
            x = layers.Add()([x, y])
            index += 1
    if config.final_norm:
        x = layers.LayerNormalization(epsilon=config.epsilon)(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(config.num_classes, dtype="float32")(x))
    keras.config.set_dtype_policy("float32")
    return model
