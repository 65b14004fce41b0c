"""Random erasing: how often, how much, where, and with what."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftvit.augment.erasing import draw_erased, erase


def draw_boxes(count: int, side: int = 300, probability: float = 1.0) -> list[tuple[slice, slice] | None]:
    rng = np.random.default_rng(0)
    return [draw_erased(rng, side, side, probability) for _ in range(count)]


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_fraction_of_erased_images_is_the_probability(probability: float) -> None:
    erased = np.mean([box is not None for box in draw_boxes(8000, probability=probability)])
    assert erased == pytest.approx(probability, abs=0.015 if 0 < probability < 1 else 0.001)


@pytest.mark.slow
def test_area_aspect_and_place_are_uniform() -> None:
    """In a square every box of up to three tenths of the area fits, so none of these is drawn again."""
    boxes = [box for box in draw_boxes(20_000) if box is not None]
    height, width = np.array([[part.stop - part.start for part in box] for box in boxes]).T
    fraction = height * width / 300**2
    small = fraction < 0.29
    levels = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(np.quantile(fraction[small], levels), 0.02 + (0.29 - 0.02) * levels, atol=0.008)
    assert fraction.max() < 1 / 3 + 0.01
    aspect = np.log(height / width)[small] / math.log(1 / 0.3)
    np.testing.assert_allclose(np.quantile(aspect, levels), 2 * levels - 1, atol=0.05)
    for axis, extent in ((0, height), (1, width)):
        place = np.array([box[axis].start for box in boxes]) / (300 - extent)
        np.testing.assert_allclose(np.quantile(place[small], levels), levels, atol=0.03)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
def test_noise_fills_one_box_within_the_image(height: int, width: int, seed: int) -> None:
    image = np.full((height, width, 3), 7.5, np.float32)
    erase(image, np.random.default_rng(seed), 1.0)
    changed = (image != 7.5).any(axis=2)
    rows, columns = np.nonzero(changed)
    if len(rows):
        box = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all()
        assert (image[changed] != 7.5).all()  # in every channel
        assert box.shape < (height, width)
        assert box.size <= height * width / 3 + max(height, width)


def test_noise_is_standard_normal_and_uncorrelated() -> None:
    image = np.full((400, 400, 3), 50, np.float32)
    erase(image, np.random.default_rng(3), 1.0)
    noise = image[(image != 50).any(axis=2)]
    assert len(noise) > 3000
    assert noise.mean() == pytest.approx(0, abs=0.03)
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.05


def test_erasing_repeats_for_a_seed() -> None:
    first, second = (np.zeros((32, 32, 3), np.float32) for _ in range(2))
    for image in (first, second):
        erase(image, np.random.default_rng(8), 1.0)
    np.testing.assert_array_equal(first, second)
    assert first.any()
