"""Changes of colour against their closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from sample import load_sample
from shiftvit.augment import photometric
from shiftvit.augment.photometric import color_jitter

PIXELS = load_sample().train.images[11]
IMAGE = Image.fromarray(PIXELS)
# Rec. 601, rounded to sixteen bits as Pillow has it.
LUMA = np.array([0.299, 0.587, 0.114])


def applied(name: str, value: float) -> np.ndarray:
    return np.asarray(getattr(photometric, name)(IMAGE, value)).astype(float)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
def test_a_factor_of_one_changes_nothing(name: str) -> None:
    np.testing.assert_array_equal(applied(name, 1.0), PIXELS)


@pytest.mark.parametrize("factor", [0.0, 0.35, 0.8, 1.6])
def test_they_blend_with_black_the_mean_and_the_grey(factor: float) -> None:
    grey = PIXELS @ LUMA
    others = {"brightness": 0.0, "contrast": np.round(np.round(grey).mean()), "saturation": grey[..., None]}
    for name, other in others.items():
        expected = np.clip(other + factor * (PIXELS - other), 0, 255)
        # Pillow cuts a blend to whole levels, after the grey was rounded.
        assert abs(applied(name, factor) - expected).max() <= 1 + abs(1 - factor), name


def test_sharpness_zero_is_a_smoothing_of_the_inside() -> None:
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    windows = np.lib.stride_tricks.sliding_window_view(PIXELS, (3, 3), axis=(0, 1))  # (30, 30, 3, 3, 3)
    smooth = (windows * kernel).sum(axis=(3, 4))
    assert abs(applied("sharpness", 0.0)[1:-1, 1:-1] - smooth).max() <= 1


def test_tables_of_levels() -> None:
    levels = PIXELS.astype(int)
    for amount in (0, 33, 110, 200):
        expected = np.where(levels < 128, np.minimum(levels + amount, 255), levels)
        np.testing.assert_array_equal(applied("solarize_add", amount), expected)
    for bits in range(9):
        step = 2 ** (8 - bits)
        np.testing.assert_array_equal(applied("posterize", bits), levels // step * step)


def test_jitter_draws_its_factors_uniformly() -> None:
    """Of a flat grey picture contrast and saturation change nothing: what is left is the brightness' factor."""
    flat = Image.new("RGB", (4, 4), (100, 100, 100))
    values = [np.asarray(color_jitter(flat, 0.4, np.random.default_rng(seed)))[0, 0, 0] for seed in range(4000)]
    np.testing.assert_allclose(np.quantile(values, [0.02, 0.25, 0.5, 0.75, 0.98]), [61.6, 80, 100, 120, 138.4], atol=2)


def test_jitter_is_its_three_changes_in_some_order() -> None:
    steps = (photometric.brightness, photometric.contrast, photometric.saturation)
    seen = set()
    for seed in range(60):
        factors = np.random.default_rng(seed).uniform(0.5, 1.5, 3)
        result = np.asarray(color_jitter(IMAGE, 0.5, np.random.default_rng(seed)))
        for order in itertools.permutations(range(3)):
            image = IMAGE
            for which in order:
                image = steps[which](image, float(factors[which]))
            if np.array_equal(np.asarray(image), result):
                seen.add(order)
                break
        else:
            pytest.fail(f"seed {seed} is no order of the three changes")
    assert len(seen) == 6
