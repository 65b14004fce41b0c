"""Colour augmentations against their formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from sample import load_sample
from shiftvit.augment import photometric
from shiftvit.augment.photometric import jitter_colors

PIXELS = load_sample().train.images[11]
IMAGE = Image.fromarray(PIXELS)


def apply(name: str, value: float) -> np.ndarray:
    return np.asarray(getattr(photometric, name)(IMAGE, value)).astype(float)


def test_solarize_add_and_posterize_match_their_formulas() -> None:
    levels = PIXELS.astype(int)
    for amount in (0, 33, 110, 200):
        expected = np.where(levels < 128, np.minimum(levels + amount, 255), levels)
        np.testing.assert_array_equal(apply("solarize_add", amount), expected)
    for bits in range(9):
        step = 2 ** (8 - bits)
        np.testing.assert_array_equal(apply("posterize", bits), levels // step * step)


def test_jitter_draws_its_factors_uniformly() -> None:
    """Contrast and saturation do not change a flat grey picture, so its level shows the brightness factor."""
    flat = Image.new("RGB", (4, 4), (100, 100, 100))
    values = [np.asarray(jitter_colors(flat, 0.4, np.random.default_rng(seed)))[0, 0, 0] for seed in range(4000)]
    np.testing.assert_allclose(np.quantile(values, [0.02, 0.25, 0.5, 0.75, 0.98]), [61.6, 80, 100, 120, 138.4], atol=2)


def test_jitter_applies_its_three_changes_in_any_order() -> None:
    steps = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    orders = set()
    for seed in range(60):
        factors = np.random.default_rng(seed).uniform(0.5, 1.5, 3)
        result = np.asarray(jitter_colors(IMAGE, 0.5, np.random.default_rng(seed)))
        for order in itertools.permutations(range(3)):
            image = IMAGE
            for which in order:
                image = steps[which](image).enhance(float(factors[which]))
            if np.array_equal(np.asarray(image), result):
                orders.add(order)
                break
        else:
            pytest.fail(f"seed {seed} is no order of the three changes")
    assert len(orders) == 6
