"""The shift against a plain NumPy implementation: forward, backward, any size, any type."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftvit.errors import ShiftViTError
from shiftvit.model import shift as shift_module
from shiftvit.model.shift import Shift, compute_group_width
from tensors import BACKEND, compute_input_gradient, draw_normal, to_numpy

LEFT, RIGHT, UP, DOWN = range(4)


def move(x: np.ndarray, s: int, direction: int) -> np.ndarray:
    """Returns `x` (B, H, W, C) moved by s pixels, with zeros in the vacated places."""
    out = np.zeros_like(x)
    if direction == LEFT:
        out[:, :, :-s] = x[:, :, s:]
    elif direction == RIGHT:
        out[:, :, s:] = x[:, :, :-s]
    elif direction == UP:
        out[:, :-s] = x[:, s:]
    else:
        out[:, s:] = x[:, :-s]
    return out


def shift_in_numpy(
    x: np.ndarray, group: int, s: int, directions: tuple[int, ...] = (LEFT, RIGHT, UP, DOWN)
) -> np.ndarray:
    out = x.copy()
    for index, direction in enumerate(directions):
        channels = slice(index * group, (index + 1) * group)
        out[..., channels] = move(x[..., channels], s, direction)
    return out


def mask_in_numpy(x: np.ndarray, group: int, s: int) -> np.ndarray:
    """Returns `x` with zeros in the places that a shift vacates."""
    return np.where(shift_in_numpy(np.ones_like(x), group, s) == 1, x, 0)


# With sides of 1, sides below the shift, and odd sides.
SIZES = [(1, 1), (1, 6), (5, 1), (2, 3), (5, 5), (7, 4), (8, 11)]


@pytest.mark.parametrize("mode", ["shift", "mask"])
@pytest.mark.parametrize("pixels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", SIZES)
def test_matches_numpy(size: tuple[int, int], pixels: int, mode: str) -> None:
    define = shift_in_numpy if mode == "shift" else mask_in_numpy
    for channels, num_div in [(12, 12), (13, 12), (23, 5), (9, 4)]:
        x = draw_normal(2, *size, channels)
        out = to_numpy(Shift(num_div, pixels, mode=mode)(x))
        np.testing.assert_array_equal(out, define(x, channels // num_div, pixels))
        if mode == "mask":  # the form for jax
            sliced = to_numpy(shift_module._mask_by_slices(keras.ops.convert_to_tensor(x), channels // num_div, pixels))
            np.testing.assert_array_equal(sliced, out)


@settings(max_examples=80)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(4, 30),
    pixels=st.integers(1, 5),
    mode=st.sampled_from(["shift", "mask"]),
    data=st.data(),
)
def test_any_setting_matches_numpy(
    size: tuple[int, int, int], channels: int, pixels: int, mode: str, data: st.DataObject
) -> None:
    num_div = data.draw(st.integers(4, channels))
    width = data.draw(st.none() | st.integers(0, channels // 4))
    x = draw_normal(*size, channels)
    out = to_numpy(Shift(num_div, pixels, width, mode)(x))
    group = channels // num_div if width is None else width
    np.testing.assert_array_equal(out, (shift_in_numpy if mode == "shift" else mask_in_numpy)(x, group, pixels))


@pytest.mark.parametrize("mode", ["shift", "mask"])
@pytest.mark.parametrize("pixels", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_float_types_are_kept(dtype: str, pixels: int, mode: str) -> None:
    x = keras.ops.cast(draw_normal(2, 5, 6, 13), dtype)
    out = Shift(6, pixels, mode=mode, dtype=dtype)(x)
    assert keras.backend.standardize_dtype(out.dtype) == dtype
    define = shift_in_numpy if mode == "shift" else mask_in_numpy
    np.testing.assert_array_equal(to_numpy(out), define(to_numpy(x), 2, pixels))


@pytest.mark.parametrize("mode", ["shift", "mask"])
def test_height_and_width_may_be_unknown(mode: str) -> None:
    images = keras.Input((None, None, 8))
    model = keras.Model(images, Shift(4, 2, mode=mode)(images))
    assert model.output_shape == (None, None, None, 8)
    for size in [(3, 7), (6, 1)]:
        x = draw_normal(2, *size, 8)
        expected = (shift_in_numpy if mode == "shift" else mask_in_numpy)(x, 2, 2)
        np.testing.assert_array_equal(model.predict(x, verbose=0), expected)


@pytest.mark.parametrize("pixels", [1, 2, 5])
@pytest.mark.parametrize("size", [(1, 4), (5, 5), (7, 4)])
def test_gradient_is_the_opposite_shift(size: tuple[int, int], pixels: int) -> None:
    x, cotangent = draw_normal(2, *size, 13), draw_normal(2, *size, 13, seed=1)
    found = compute_input_gradient(Shift(6, pixels), x, cotangent)
    np.testing.assert_array_equal(found, shift_in_numpy(cotangent, 2, pixels, (RIGHT, LEFT, DOWN, UP)))


def test_gradient_of_the_mask_is_the_mask() -> None:
    x, cotangent = draw_normal(2, 5, 4, 13), draw_normal(2, 5, 4, 13, seed=1)
    found = compute_input_gradient(Shift(6, 2, mode="mask"), x, cotangent)
    np.testing.assert_array_equal(found, mask_in_numpy(cotangent, 2, 2))


@pytest.mark.skipif(BACKEND != "torch", reason="the convolution is torch's form")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pixels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", SIZES)
def test_both_forms_agree_bit_for_bit(size: tuple[int, int], pixels: int, dtype: str) -> None:
    x = keras.ops.cast(draw_normal(2, *size, 26), dtype)
    forms = [shift_module._shift_by_slices, shift_module._shift_by_convolution]
    slices, convolution = (to_numpy(form(x, 6, pixels)) for form in forms)
    np.testing.assert_array_equal(slices.view(np.int32), convolution.view(np.int32))


def test_no_channels_to_shift_is_the_identity() -> None:
    x = draw_normal(1, 3, 3, 5)
    np.testing.assert_array_equal(to_numpy(Shift(shift_channels=0)(x)), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shift_pixels": 0}, "shift_pixels=0"),
        ({"shift_pixels": -2}, "shift_pixels=-2"),
        ({"num_div": 3}, "num_div=3"),
        ({"shift_channels": -1}, "shift_channels=-1"),
        ({"shift_pixels": 1.5}, "shift_pixels=1.5 must be a whole number"),
        ({"num_div": None}, "num_div=None must be a whole number"),
        ({"shift_channels": "1"}, "shift_channels='1' must be a whole number"),
        ({"mode": "roll"}, "mode='roll'"),
    ],
)
def test_impossible_settings_are_refused_at_construction(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ShiftViTError, match=message):
        Shift(**arguments)


@pytest.mark.parametrize(
    ("arguments", "channels", "message"),
    [
        ({"num_div": 12}, 11, "num_div=12.* 11;"),
        ({"shift_channels": 3}, 11, "shift_channels=3 needs 12 .* 11;"),
    ],
)
def test_too_few_channels_are_refused_when_built(arguments: dict[str, int], channels: int, message: str) -> None:
    with pytest.raises(ShiftViTError, match=message):
        Shift(**arguments).build((None, 4, 4, channels))


@pytest.mark.parametrize("shape", [(None, 4, 12), (None, 4, 4, None)])
def test_input_of_another_rank_or_unknown_channels_is_refused(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(ShiftViTError, match=r"must be \(B, H, W, C\)"):
        Shift().build(shape)


@pytest.mark.parametrize(
    ("channels", "num_div", "shift_channels", "expected"),
    [(96, 12, None, 8), (128, 16, None, 8), (50, 12, None, 4), (96, 12, 24, 24), (96, 200, 0, 0)],
)
def test_group_width(channels: int, num_div: int, shift_channels: int | None, expected: int) -> None:
    assert compute_group_width(channels, num_div, shift_channels) == expected


def test_layer_is_restored_from_config() -> None:
    layer = Shift(6, 2, 3, "mask", name="moves", dtype="bfloat16")
    restored = Shift.from_config(json.loads(json.dumps(layer.get_config())))
    assert restored.get_config() == layer.get_config()
    assert (restored.num_div, restored.shift_pixels, restored.shift_channels, restored.mode) == (6, 2, 3, "mask")
