"""Matrix products, norms and dropout, each in the form that is fast on the running backend.

Keras' own `Dense` and norms are slow on torch: `Dense` multiplies and adds in two passes, and the norms compute in
several float32 operations what torch has as one kernel.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from shiftvit.model.shift import ShapeKeeper

TORCH = keras.config.backend() == "torch"
if TORCH:
    import torch

    from shiftvit.model import products

_SIXTEEN = 2**16


@keras.saving.register_keras_serializable(package="shiftvit")
class Linear(keras.layers.Dense):
    """`keras.layers.Dense` on the last axis. On torch, one kernel multiplies and adds the bias; see also `products`.

    Input: `(..., C)`. Output: `(..., units)`.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not TORCH or self.quantization_mode is not None:
            return super().call(inputs, training=training)
        kernel = ops.convert_to_tensor(self.kernel)
        bias = None if self.bias is None else ops.convert_to_tensor(self.bias)
        if training and products.can_convolve(inputs):
            out = products.linear(inputs, kernel, bias)
        else:
            rows = inputs.reshape(-1, inputs.shape[-1])  # (..., C) -> (N, C)
            out = rows @ kernel if bias is None else torch.addmm(bias, rows, kernel)
            out = out.reshape(*inputs.shape[:-1], self.units)  # (N, units) -> (..., units)
        return out if self.activation is None else self.activation(out)


@keras.saving.register_keras_serializable(package="shiftvit")
class Dropout(keras.layers.Dropout):
    """`keras.layers.Dropout`, with fewer random numbers on torch and a processor: 16 bits for each value.

    A draw of 64 bits serves four values. The rate is rounded to 1/65536, and the scale accordingly, so that the
    expectation stays exact. NumPy's SFC64 would draw the bits in a third of the time, but a run that an earlier version
    stopped would then go on to other weights.
    """

    def call(self, inputs: Any, training: bool = False) -> Any:
        cheap = TORCH and training and self.seed is None and self.noise_shape is None and inputs.device.type == "cpu"
        if not cheap or not self.rate:
            return super().call(inputs, training=training)
        limit = min(round(self.rate * _SIXTEEN), _SIXTEEN - 1)
        words = torch.empty((inputs.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: inputs.numel()].view(inputs.shape)  # -32768 to 32767, each as likely
        kept = bits.ge_(limit - _SIXTEEN // 2)  # 0 or 1
        scale = torch.tensor(_SIXTEEN / (_SIXTEEN - limit), dtype=inputs.dtype)
        if inputs.dtype.itemsize == 2:
            # Integers times the scale's bits: in place, where a conversion to bfloat16 takes as long as the rest.
            return inputs * kept.mul_(int(scale.view(torch.int16))).view(inputs.dtype)
        return inputs * kept.to(inputs.dtype).mul_(scale)


@keras.saving.register_keras_serializable(package="shiftvit")
class LayerNorm(keras.layers.LayerNormalization):
    """Layer normalisation over the channels. Input and output: `(..., C)`."""

    def call(self, inputs: Any) -> Any:
        if not TORCH:
            return super().call(inputs)
        x = ops.cast(inputs, self.compute_dtype)  # Keras does not cast the input of this layer
        weights: tuple[Any, ...] = (self.gamma, self.beta)
        if x.device.type != "cpu":  # the kernel wants weights of the input's type, and Keras keeps them in float32
            weights = tuple(None if weight is None else ops.cast(weight, x.dtype) for weight in weights)
        return torch.nn.functional.layer_norm(x, x.shape[-1:], *weights, self.epsilon)


@keras.saving.register_keras_serializable(package="shiftvit")
class GroupNorm(ShapeKeeper):
    """Group normalisation with a single group: over H, W and C together, as the paper's model has it.

    Input and output: `(B, H, W, C)`; a scale and an offset for each channel.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = (input_shape[-1],)
        self.gamma = self.add_weight(shape=channels, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=channels, initializer="zeros", name="beta")

    def call(self, inputs: Any) -> Any:
        if TORCH:
            shape = inputs.shape[1:]
            if inputs.dtype == torch.float32 and inputs.device.type == "cpu":
                # One kernel, with the weights repeated over the map. In bfloat16 their gradients would lose digits.
                # torch's group norm is as fast, but loses the variance of maps whose mean is much larger.
                weights = (ops.convert_to_tensor(weight).expand(shape) for weight in (self.gamma, self.beta))
                return torch.nn.functional.layer_norm(inputs, shape, *weights, self.epsilon)
            return torch.addcmul(self.beta, torch.nn.functional.layer_norm(inputs, shape, eps=self.epsilon), self.gamma)
        x = ops.cast(inputs, "float32")  # the sums over a whole map need more than bfloat16's 8 bits
        mean, variance = ops.moments(x, axes=(1, 2, 3), keepdims=True)
        normed = ops.cast((x - mean) * ops.rsqrt(variance + self.epsilon), inputs.dtype)
        return normed * ops.cast(self.gamma, inputs.dtype) + ops.cast(self.beta, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


def make_norm(kind: str, epsilon: float, *, dtype: Any, name: str) -> Any:
    """Returns the norm layer for `kind`: "group", "layer" or "batch" (momentum .9, as PyTorch's default .1)."""
    if kind == "group":
        return GroupNorm(epsilon, dtype=dtype, name=name)
    if kind == "layer":
        return LayerNorm(epsilon=epsilon, dtype=dtype, name=name)
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=epsilon, dtype=dtype, name=name)
