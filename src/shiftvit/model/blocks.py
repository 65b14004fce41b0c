"""The layers of a ShiftViT: DropPath, MLP, ShiftBlock, PatchEmbed, PatchMerging. Every tensor is NHWC."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from shiftvit.errors import ShiftViTError, pluralize
from shiftvit.model.primitives import TORCH, Dropout, Linear, make_norm
from shiftvit.model.shift import ShapeKeeper, Shift

if TORCH:
    import torch

# As in the paper's model, except that Keras truncates at two deviations, and the authors' timm at -2 and 2.
INITIALIZER = {"class_name": "TruncatedNormal", "config": {"stddev": 0.02}}


@keras.saving.register_keras_serializable(package="shiftvit")
class DropPath(ShapeKeeper):
    """Stochastic depth (Huang et al., 2016).

    In training, it zeroes the branch of each image with probability `rate`, and divides it by `1 - rate` otherwise. At
    inference it does nothing. Input and output: `(B, ...)`.
    """

    def __init__(self, rate: float = 0.0, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0.0 <= rate < 1.0:
            raise ShiftViTError(f"rate={rate} must be at least 0 and below 1; 0 drops nothing")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed) if rate else None

    def call(self, x: Any, training: bool = False) -> Any:
        if not training or self.seed_generator is None:
            return x
        shape = (ops.shape(x)[0], *[1] * (len(x.shape) - 1))
        if TORCH and self.seed is None:
            # torch's own generator, as in Keras' dropout: a Keras seed would be read back from the device at each step
            drawn = torch.rand(shape, device=x.device)
        else:
            drawn = keras.random.uniform(shape, seed=self.seed_generator, dtype="float32")
        kept = ops.cast(drawn >= self.rate, "float32") / (1.0 - self.rate)
        return x * ops.cast(kept, x.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable(package="shiftvit")
class MLP(ShapeKeeper):
    """Two linear layers with an activation between them, and dropout after each.

    Input and output: `(B, H, W, C)`; `int(C * mlp_ratio)` hidden channels.
    """

    def __init__(self, mlp_ratio: float = 2.0, activation: str = "gelu", dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mlp_ratio = mlp_ratio
        self.activation = keras.activations.get(activation)
        self.dropout = dropout

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[-1]
        assert channels is not None
        hidden = int(channels * self.mlp_ratio)
        if hidden < 1:
            raise ShiftViTError(
                f"mlp_ratio={self.mlp_ratio} of {channels} channels is less than one hidden channel; raise it"
            )
        shared = {"dtype": self.dtype_policy, "kernel_initializer": INITIALIZER}
        self.fc1 = Linear(hidden, activation=self.activation, name="fc1", **shared)
        self.fc2 = Linear(channels, name="fc2", **shared)
        self.fc1.build(input_shape)
        self.fc2.build((*input_shape[:-1], hidden))
        rate, policy = self.dropout, self.dtype_policy
        self.drop1 = Dropout(rate, dtype=policy, name="drop1") if rate else None
        self.drop2 = Dropout(rate, dtype=policy, name="drop2") if rate else None

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.fc1(x)  # (B, H, W, C) -> (B, H, W, hidden)
        if self.drop1 is not None:
            x = self.drop1(x, training=training)
        x = self.fc2(x)  # (B, H, W, hidden) -> (B, H, W, C)
        return x if self.drop2 is None else self.drop2(x, training=training)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "mlp_ratio": self.mlp_ratio,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
        }


@keras.saving.register_keras_serializable(package="shiftvit")
class ShiftBlock(ShapeKeeper):
    """`x = shift(x)`, then `x = x + drop_path(mlp(norm(x)))` (the paper's figure 2b).

    Input and output: `(B, H, W, C)`.
    """

    def __init__(
        self,
        *,
        mlp_ratio: float = 2.0,
        num_div: int = 12,
        shift_pixels: int = 1,
        shift_channels: int | None = None,
        shift_mode: str = "shift",
        norm: str = "group",
        activation: str = "gelu",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        epsilon: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.settings = {
            "mlp_ratio": mlp_ratio,
            "num_div": num_div,
            "shift_pixels": shift_pixels,
            "shift_channels": shift_channels,
            "shift_mode": shift_mode,
            "norm": norm,
            "activation": activation,
            "dropout": dropout,
            "drop_path": drop_path,
            "epsilon": epsilon,
        }
        policy = self.dtype_policy
        self.shift = Shift(num_div, shift_pixels, shift_channels, shift_mode, dtype=policy, name="shift")
        self.norm = make_norm(norm, epsilon, dtype=policy, name="norm")
        self.mlp = MLP(mlp_ratio, activation, dropout, dtype=policy, name="mlp")
        self.drop_path = DropPath(drop_path, dtype=policy, name="drop_path")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        for layer in (self.shift, self.norm, self.mlp, self.drop_path):
            layer.build(input_shape)

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.shift(x)
        branch = self.mlp(self.norm(x, **_pass_training(self.norm, training)), training=training)
        return x + self.drop_path(branch, training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings}


@keras.saving.register_keras_serializable(package="shiftvit")
class PatchEmbed(keras.layers.Layer):
    """Cuts the image into patches and projects each: a convolution whose stride is its kernel, then a norm.

    Input: `(B, H, W, C)`. Output: `(B, H // patch_size, W // patch_size, embed_dim)`; the remainder at the bottom and
    the right is ignored. `norm=None`: no norm.
    """

    def __init__(
        self, embed_dim: int, patch_size: int = 4, norm: str | None = "group", epsilon: float = 1e-5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.norm_kind = norm
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[-1]
        assert channels is not None
        policy = self.dtype_policy
        self.projection = Linear(self.embed_dim, kernel_initializer=INITIALIZER, dtype=policy, name="projection")
        self.projection.build((None, None, None, self.patch_size**2 * channels))
        self.channels = channels
        self.norm = None
        if self.norm_kind is not None:
            self.norm = make_norm(self.norm_kind, self.epsilon, dtype=policy, name="norm")
            self.norm.build((None, None, None, self.embed_dim))

    def call(self, x: Any, training: bool = False) -> Any:
        x = _check_channels(x, self.channels)
        x = self.projection(fold(x, self.patch_size, self.channels))
        return x if self.norm is None else self.norm(x, **_pass_training(self.norm, training))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*compute_folded_shape(input_shape, self.patch_size)[:-1], self.embed_dim)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "embed_dim": self.embed_dim,
            "patch_size": self.patch_size,
            "norm": self.norm_kind,
            "epsilon": self.epsilon,
        }


@keras.saving.register_keras_serializable(package="shiftvit")
class PatchMerging(keras.layers.Layer):
    """Halves the map and doubles the channels: a norm, then a 2x2 convolution of stride 2 without bias.

    Input: `(B, H, W, C)`. Output: `(B, H // 2, W // 2, 2 * C)`. With `padding="same"`, an odd map gets a line of zeros
    at the bottom or the right, and the halves are rounded up.
    """

    def __init__(self, norm: str = "group", padding: str = "valid", epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if padding not in ("valid", "same"):
            raise ShiftViTError(f'padding={padding!r} must be "valid" or "same"; the paper\'s model has "valid"')
        self.norm_kind = norm
        self.padding = padding
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[-1]
        assert channels is not None
        policy = self.dtype_policy
        self.norm = make_norm(self.norm_kind, self.epsilon, dtype=policy, name="norm")
        self.norm.build(input_shape)
        self.reduction = Linear(
            2 * channels, use_bias=False, kernel_initializer=INITIALIZER, dtype=policy, name="reduction"
        )
        self.reduction.build((None, None, None, 4 * channels))

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.norm(x, **_pass_training(self.norm, training))
        if self.padding == "same":
            height, width = ops.shape(x)[1:3]
            x = ops.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        return self.reduction(fold(x, 2))

    def compute_output_shape(self, input_shape: Any) -> Any:
        batch, height, width, channels = input_shape
        if self.padding == "same":
            height, width = (None if side is None else side + side % 2 for side in (height, width))
        return (*compute_folded_shape((batch, height, width, channels), 2)[:-1], 2 * channels)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "norm": self.norm_kind,
            "padding": self.padding,
            "epsilon": self.epsilon,
        }


def _check_channels(x: Any, channels: int) -> Any:
    """Returns the images. Keras lets any number of channels pass where it or the model's is 1.

    Raises:
        ShiftViTError: the images have another number of channels than the model.
    """
    found = x.shape[-1]
    if found is None:  # in a graph of tensorflow for images of several shapes
        import tensorflow as tf

        return tf.ensure_shape(x, (None, None, None, channels))
    if found != channels:
        raise ShiftViTError(f"the images have {pluralize(found, 'channel')}, but this model takes {channels}")
    return x


def fold(x: Any, side: int, channels: int | None = None) -> Any:
    """Moves each `side` x `side` square of pixels into the channels, row by row, as im2col does for a convolution.

    `(B, H, W, C) -> (B, H // side, W // side, side * side * C)`. `channels` is C where the tensor does not know it: in
    tensorflow's graph of a model of any size, whose layers need it.
    """
    _, height, width, found = ops.shape(x)
    channels = found if channels is None else channels
    rows, columns = height // side, width // side
    if 0 in [size for size in (rows, columns) if isinstance(size, int)]:
        raise ShiftViTError(
            f"a map of {height} x {width} cannot be divided into squares of {side} x {side}; the images are too small "
            "for this model: give larger ones, or use fewer stages"
        )
    x = x[:, : rows * side, : columns * side]
    x = ops.reshape(x, (-1, rows, side, columns, side, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))  # (B, rows, columns, side, side, C)
    return ops.reshape(x, (-1, rows, columns, side * side * channels))


def compute_folded_shape(shape: Any, side: int) -> Any:
    """Returns the shape of `fold(x, side)` for an input's shape; unknown sides stay None."""
    batch, height, width, channels = shape
    rows, columns = (None if extent is None else extent // side for extent in (height, width))
    return batch, rows, columns, side * side * channels


def _pass_training(norm: Any, training: bool) -> dict[str, bool]:
    # Only the batch norm takes the argument.
    return {"training": training} if isinstance(norm, keras.layers.BatchNormalization) else {}
