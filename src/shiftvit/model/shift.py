"""The shift: moves four groups of channels by some pixels, each in its own direction; the others stay.

It is the paper's replacement for attention (Wang et al., "When Shift Operation Meets Vision Transformer", AAAI 2022,
section 3.2), without parameters and arithmetic. Values that move out of the map are lost; zeros move in.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import keras
import numpy as np
from keras import ops

from shiftvit.errors import ShiftViTError, check_at_least

# Where each group takes its values from, in (rows, columns): the channels move left, right, up and down.
SOURCES = ((0, 1), (0, -1), (1, 0), (-1, 0))
# The farthest shift, in pixels, that is computed by convolution; the kernel's side is twice that plus 1.
WIDEST_KERNEL = 3


def compute_group_width(channels: int, num_div: int, shift_channels: int | None) -> int:
    """Returns how many channels move in each direction: `shift_channels`, or `channels // num_div` if None.

    Raises:
        ShiftViTError: four such groups do not fit into the channels, or `num_div` leaves none to move.
    """
    if shift_channels is None:
        if num_div > channels:
            raise ShiftViTError(
                f"num_div={num_div} leaves no channel to move out of {channels}; "
                f"use num_div <= {channels}, or shift_channels=0 for no shift at all"
            )
        return channels // num_div
    if not 0 <= 4 * shift_channels <= channels:
        raise ShiftViTError(
            f"shift_channels={shift_channels} needs {4 * shift_channels} channels for its four directions and there "
            f"are {channels}; use 0 to {channels // 4}"
        )
    return shift_channels


class ShapeKeeper(keras.layers.Layer):
    """A layer whose output has the shape of its input."""

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@keras.saving.register_keras_serializable(package="shiftvit")
class Shift(ShapeKeeper):
    """Moves the first four groups of channels left, right, up and down by `shift_pixels`; the others stay.

    Input and output: `(B, H, W, C)`, any float type, H and W may be unknown. The gradient is the opposite shift. On
    torch and a CPU, the neighbours of a value that is not finite become NaN, because the shift is a convolution there.

    Args:
        num_div: number of groups of channels, each of `C // num_div`; the first four move.
        shift_pixels: the distance in pixels of the map; a map that is not larger moves out entirely.
        shift_channels: the width of a group, instead of `C // num_div`.
        mode: "shift", or "mask": nothing moves, but the lines that a shift would vacate are zeroed. The published Keras
            example computes that, because it pads each cropped window back to where it was.

    Raises:
        ShiftViTError: settings that are impossible for any C, or, when built, for this one.
    """

    def __init__(
        self,
        num_div: int = 12,
        shift_pixels: int = 1,
        shift_channels: int | None = None,
        mode: str = "shift",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_at_least("shift_pixels", shift_pixels, 1, optional=False)  # no shift: shift_channels=0
        check_at_least("num_div", num_div, 4, optional=False)  # a division for each direction
        check_at_least("shift_channels", shift_channels, 0)
        if mode not in ("shift", "mask"):
            raise ShiftViTError(f'mode={mode!r} must be "shift" or "mask"; the paper\'s operation is "shift"')
        self.num_div = num_div
        self.shift_pixels = shift_pixels
        self.shift_channels = shift_channels
        self.mode = mode

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) != 4 or input_shape[-1] is None:
            raise ShiftViTError(f"the input's shape {tuple(input_shape)} must be (B, H, W, C) with C known; reshape it")
        self.group = compute_group_width(input_shape[-1], self.num_div, self.shift_channels)

    def call(self, x: Any) -> Any:
        if self.group == 0:
            return x
        if self.mode == "mask":
            # In an export of any size, jax does not know the sides.
            sliced = all(isinstance(side, int) for side in x.shape[1:3]) and _runs_jax_on_a_processor()
            return (_mask_by_slices if sliced else _mask)(x, self.group, self.shift_pixels)
        if keras.config.backend() == "torch" and x.device.type != "cuda" and self.shift_pixels <= WIDEST_KERNEL:
            return _shift_by_convolution(x, self.group, self.shift_pixels)
        return _shift_by_slices(x, self.group, self.shift_pixels)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_div": self.num_div,
            "shift_pixels": self.shift_pixels,
            "shift_channels": self.shift_channels,
            "mode": self.mode,
        }


def _shift_by_slices(x: Any, group: int, pixels: int) -> Any:
    """The plain form: pads the moving channels once, cuts four windows out, and appends the channels that stay."""
    p = pixels
    padded = ops.pad(x[..., : 4 * group], ((0, 0), (p, p), (p, p), (0, 0)))
    moved = []
    for index, (row, column) in enumerate(SOURCES):
        top, left = p + row * p, p + column * p
        channels = slice(index * group, (index + 1) * group)
        # Counted from the end: with a height that only the tensor knows, tensorflow's graph would lose the channels.
        rows, columns = slice(top, top - 2 * p or None), slice(left, left - 2 * p or None)
        moved.append(padded[:, rows, columns, channels])
    return ops.concatenate([*moved, x[..., 4 * group :]], axis=-1)


def _shift_by_convolution(x: Any, group: int, pixels: int) -> Any:
    return convolve_shift(x.permute(0, 3, 1, 2), group, pixels).permute(0, 2, 3, 1)


def convolve_shift(x: Any, group: int, pixels: int) -> Any:
    """Shifts a torch tensor (B, C, H, W) by a depthwise convolution whose kernels hold a single 1.

    On a processor it is 2 to 4 times faster than slices, forward and backward (`benchmarks/shift.py`): oneDNN reads and
    writes each value once, where slices and a concatenation make five passes and five zero-filled gradients. Only a
    value that is not finite differs: it spreads over the kernel.
    """
    import torch

    channels = x.shape[1]
    kernel = torch.as_tensor(_make_one_hot_kernel(channels, group, pixels), dtype=x.dtype, device=x.device)
    return torch.nn.functional.conv2d(x, kernel, padding=pixels, groups=channels)


@lru_cache(maxsize=64)
def _make_one_hot_kernel(channels: int, group: int, pixels: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    side = 2 * pixels + 1
    kernel = np.zeros((channels, 1, side, side), np.float32)
    for index, (row, column) in enumerate(SOURCES):
        kernel[index * group : (index + 1) * group, 0, pixels + row * pixels, pixels + column * pixels] = 1.0
    kernel[4 * group :, 0, pixels, pixels] = 1.0
    return kernel


def _mask(x: Any, group: int, pixels: int) -> Any:
    """Zeroes, in each moving group, the lines that a shift would vacate."""
    height, width, channels = ops.shape(x)[1:]
    rows, columns = ops.arange(height)[:, None], ops.arange(width)[None, :]
    kept = [columns < width - pixels, columns >= pixels, rows < height - pixels, rows >= pixels]
    kept = [ops.broadcast_to(one, (height, width)) for one in kept]
    moving = ops.repeat(ops.stack(kept, axis=-1), group, axis=-1)  # (H, W, 4) -> (H, W, 4 * group)
    staying = ops.ones((height, width, channels - 4 * group), dtype="bool")
    return x * ops.cast(ops.concatenate([moving, staying], axis=-1), x.dtype)


def _runs_jax_on_a_processor() -> bool:
    if keras.config.backend() != "jax":
        return False
    import jax

    return str(jax.default_backend()) == "cpu"


def _mask_by_slices(x: Any, group: int, pixels: int) -> Any:
    """The same as `_mask` for known sides: cuts a window out of each moving group, and pads it to where it was.

    On jax and a processor this is faster than the product with a mask (`benchmarks/steps.py keras_example`).
    """
    height, width = x.shape[1:3]
    kept = []
    for index, source in enumerate(SOURCES):
        # How many lines are zeroed before and after the window, along the rows and along the columns.
        (top, bottom), (left, right) = edges = [
            (min(max(0, -step) * pixels, side), min(max(0, step) * pixels, side))
            for step, side in zip(source, (height, width), strict=True)
        ]
        window = x[:, top : height - bottom, left : width - right, index * group : (index + 1) * group]
        kept.append(ops.pad(window, ((0, 0), *edges, (0, 0))))
    return ops.concatenate([*kept, x[..., 4 * group :]], axis=-1)
