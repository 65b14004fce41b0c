"""Dropout with fast random numbers: its rate, scale, independence, seed and gradient."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from shiftvit.model.primitives import Dropout
from tensors import to_numpy


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_rate_and_scale(rate: float, dtype: str) -> None:
    x = np.ones((101, 7, 11, 13), np.float32)  # a size that four does not divide
    out = to_numpy(keras.ops.cast(Dropout(rate, dtype=dtype)(x, training=True), "float32"))
    dropped = np.mean(out == 0)
    assert abs(dropped - rate) < 5 * math.sqrt(rate * (1 - rate) / x.size)
    kept = np.unique(out[out != 0])
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-4 if dtype == "float32" else 8e-3)


def test_neighbours_are_independent() -> None:
    """Four values share one 64-bit draw, so values up to four places apart could be correlated."""
    kept = to_numpy(Dropout(0.3)(np.ones((1, 400_000), np.float32), training=True))[0] != 0
    for distance in (1, 2, 3, 4, 5, 8):
        both = np.mean(kept[distance:] & kept[:-distance])
        assert abs(both - 0.49) < 0.005, distance


def test_calls_differ_and_repeat_with_the_seed() -> None:
    x = np.ones((64, 64), np.float32)
    keras.utils.set_random_seed(0)
    first = Dropout(0.5)
    draws = [to_numpy(first(x, training=True)) for _ in range(2)]
    keras.utils.set_random_seed(0)
    second = Dropout(0.5)
    assert not np.array_equal(draws[0], draws[1])
    for draw in draws:
        np.testing.assert_array_equal(to_numpy(second(x, training=True)), draw)


@pytest.mark.parametrize(("rate", "training"), [(0.9, False), (0.0, True)])
def test_identity_in_inference_or_at_rate_zero(rate: float, training: bool) -> None:
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_array_equal(to_numpy(Dropout(rate)(x, training=training)), x)


def test_rate_close_to_one_stays_finite() -> None:
    out = to_numpy(Dropout(0.999999)(np.ones((1000, 100), np.float32), training=True))
    assert np.isfinite(out).all()
    assert np.mean(out == 0) > 0.999


@pytest.mark.skipif(keras.config.backend() != "torch", reason="other backends use Keras' own dropout")
def test_gradient_is_zero_where_the_value_is_dropped() -> None:
    import torch

    x = torch.randn(50, 40, requires_grad=True)
    out = Dropout(0.4)(x, training=True)
    out.sum().backward()
    np.testing.assert_allclose(to_numpy(x.grad), np.where(to_numpy(out) != 0, 1 / 0.6, 0), rtol=1e-4)
