"""The model in the form that ONNX Runtime runs fastest: the layout (N, C, H, W), every linear layer a convolution.

ONNX Runtime fuses the bias and the residual sum into its convolutions, and the layout stays the same from the shift to
the end of a block. A scale and offset before a linear layer becomes part of that layer:
`(scale x + offset) W = x (scale W) + offset W`. That applies to the norms' `gamma` and `beta`, and to the mean and
deviation of the pixels. In exact arithmetic the answers are those of the Keras model; the gate compares them.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from shiftvit.model.blocks import PatchEmbed, PatchMerging, ShiftBlock
from shiftvit.model.primitives import GroupNorm, LayerNorm
from shiftvit.model.shift import WIDEST_KERNEL, convolve_shift
from shiftvit.preprocess import Preprocess

Vector = NDArray[np.float64]
# Activations over all channels, which Keras takes from the last axis; all others are elementwise.
_ACROSS_CHANNELS = {"softmax", "log_softmax", "sparsemax"}


class Network(torch.nn.Module):
    """Maps pixels, uint8 (N, H, W, 3), to logits (N, K) and the last feature map, (N, h, w, C).

    Args:
        model: a `ShiftViT` in float32, on torch.
        preprocess: its mean and deviation become part of the first layer.
    """

    def __init__(self, model: Any, preprocess: Preprocess) -> None:
        super().__init__()
        _, *layers = model.backbone.layers
        channels = model.settings.image_shape[-1]
        # A single value applies to all channels.
        mean, std = (
            np.broadcast_to(np.asarray(value, np.float64), channels) for value in (preprocess.mean, preprocess.std)
        )
        self.parts = torch.nn.Sequential(*[_convert(layer, Affine(1 / std, -mean / std)) for layer in layers])
        self.head = Product(model.get_layer("head"))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.parts(images.permute(0, 3, 1, 2).to(self.head.kernel.dtype))
        return self.head(x.mean((2, 3), keepdim=True)).flatten(1), x.permute(0, 2, 3, 1)


def _convert(layer: Any, pixels: Affine) -> torch.nn.Module:
    """Returns a layer of the backbone in this layout; `pixels` normalises the images."""
    if isinstance(layer, PatchEmbed):
        projection = Product(layer.projection, layer.patch_size, pixels)
        return projection if layer.norm is None else torch.nn.Sequential(projection, *_split_norm(layer.norm))
    if isinstance(layer, ShiftBlock):
        return Block(layer)
    if isinstance(layer, PatchMerging):
        norm, affine = _split_norm(layer.norm)
        if layer.padding == "valid":
            return torch.nn.Sequential(norm, Product(layer.reduction, 2, affine))
        # The zeros are added after the norm, so its offset cannot become part of the layer.
        return torch.nn.Sequential(norm, affine, Padding(), Product(layer.reduction, 2))
    return torch.nn.Sequential(*_split_norm(layer))


class Affine(torch.nn.Module):
    """Returns `scale * x + offset`, for each channel of (N, C, H, W), or x if they are None."""

    def __init__(self, scale: Vector | None = None, offset: Vector | None = None) -> None:
        super().__init__()
        self.exact = scale, offset  # in float64
        for name, value in (("scale", scale), ("offset", offset)):
            self.register_buffer(name, None if value is None else _to_tensor(value)[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.scale is None else x * self.scale + self.offset


class Normalise(torch.nn.Module):
    """The part of a norm that depends on the image. A layer norm also applies its weights, at no cost."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.epsilon = norm.epsilon
        self.grouped = isinstance(norm, GroupNorm)
        if not self.grouped:
            self.register_buffer("gamma", _to_tensor(_read(norm.gamma)))
            self.register_buffer("beta", _to_tensor(_read(norm.beta)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.grouped:
            return functional.layer_norm(x, x.shape[1:], eps=self.epsilon)
        x = functional.layer_norm(x.permute(0, 2, 3, 1), self.gamma.shape, self.gamma, self.beta, self.epsilon)
        return x.permute(0, 3, 1, 2)


def _split_norm(norm: Any) -> tuple[torch.nn.Module, Affine]:
    """Splits a norm into the part that depends on the image, and the part that a linear layer after it can absorb."""
    if isinstance(norm, LayerNorm):
        return Normalise(norm), Affine()
    gamma, beta = _read(norm.gamma), _read(norm.beta)
    if isinstance(norm, GroupNorm):
        return Normalise(norm), Affine(gamma, beta)
    scale = gamma / np.sqrt(_read(norm.moving_variance) + norm.epsilon)
    return torch.nn.Identity(), Affine(scale, beta - _read(norm.moving_mean) * scale)


class Product(torch.nn.Module):
    """A linear layer on squares of `side` x `side` pixels, with the scale and offset of its input built in.

    (N, C, H, W) to (N, units, H // side, W // side). The kernel is stored without the scale, so that a kernel in
    float16 stays in 16 bits in the file; runtimes multiply the two once, when they load the graph.
    """

    def __init__(self, linear: Any, side: int = 1, affine: Affine | None = None) -> None:
        super().__init__()
        scale, offset = (None, None) if affine is None else affine.exact
        kernel = _read(linear.kernel).reshape(side, side, -1, linear.units)
        bias = None if linear.bias is None else _read(linear.bias)
        if offset is not None:
            moved = np.einsum("i,hwio->o", offset, kernel)
            bias = moved if bias is None else bias + moved
        self.side = side
        self.register_buffer("kernel", _to_tensor(kernel.transpose(3, 2, 0, 1)))
        self.register_buffer("scale", None if scale is None else _to_tensor(scale)[:, None, None])
        self.register_buffer("bias", None if bias is None else _to_tensor(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.kernel if self.scale is None else self.kernel * self.scale
        return functional.conv2d(x, kernel, self.bias, stride=self.side)


class Padding(torch.nn.Module):
    """Adds a line of zeros at the bottom or the right of maps with an odd side."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        return functional.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x


class Block(torch.nn.Module):
    """A `ShiftBlock`."""

    def __init__(self, block: ShiftBlock) -> None:
        super().__init__()
        self.shift = block.shift
        self.norm, affine = _split_norm(block.norm)
        self.fc1 = Product(block.mlp.fc1, 1, affine)
        self.fc2 = Product(block.mlp.fc2)
        self.activation = block.mlp.activation
        # Not `keras.activations.serialize`, which imports TensorFlow wherever it is installed.
        self.across = getattr(self.activation, "__name__", None) in _ACROSS_CHANNELS

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shift = self.shift
        if shift.mode == "shift" and shift.group > 0 and shift.shift_pixels <= WIDEST_KERNEL:
            x = convolve_shift(x, shift.group, shift.shift_pixels)
        else:
            x = shift(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        hidden = self.fc1(self.norm(x))
        if self.across:
            hidden = self.activation(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            hidden = self.activation(hidden)
        return x + self.fc2(hidden)


def _read(variable: Any) -> Vector:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


def _to_tensor(values: Vector) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.get_default_dtype())
