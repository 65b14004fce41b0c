"""MixUp and CutMix: label shares that sum to one and match the pixels; draws fixed by seed, epoch and image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftvit.augment.augment import Augment
from shiftvit.augment.mix import Mix


def mix_constant_images(count=64, height=8, width=8, seed=0, **config):
    """Mixes images whose every pixel is the index of the image; returns the pixels and the label shares."""
    mix = Mix.draw(Augment(**config), seed, 3, count)
    images = np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, height, width, 3), np.float32)
    pixels, shares = mix(images, np.arange(count), np.arange(count), count)
    return pixels, shares


def mix_by_definition(mix, images, labels, indices, classes):
    """Mixes each image with the one before it, by a map of the share that each pixel keeps."""
    height, width = images.shape[1:3]
    rows, columns = np.mgrid[:height, :width]
    top, bottom, left, right = mix.compute_bounds(height, width, indices).T[..., None, None]
    outside = ~((rows >= top) & (rows < bottom) & (columns >= left) & (columns < right))
    own = (mix.share[indices, None, None] * outside).astype(np.float32)[..., None]
    one_hot = np.eye(classes, dtype=np.float32)[labels]
    share = own.mean(axis=(1, 2))
    return (
        images * own + np.roll(images, 1, axis=0) * (1 - own),
        one_hot * share + np.roll(one_hot, 1, axis=0) * (1 - share),
    )


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_result_equals_the_definition_bit_for_bit(count, height, width, seed):
    rng = np.random.default_rng(seed)
    mix = Mix.draw(Augment(mixup=0.8, cutmix=1.0, mix_probability=0.8), seed, 0, 2 * count)
    images, labels = rng.standard_normal((count, height, width, 3), np.float32), rng.integers(0, 7, count)
    indices = rng.permutation(2 * count)[:count]
    for found, expected in zip(
        mix(images, labels, indices, 7), mix_by_definition(mix, images, labels, indices, 7), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.float32


def test_no_draws_if_turned_off():
    assert Mix.draw(Augment(), 0, 0, 10) is None
    assert Mix.draw(Augment(mixup=0.8, mix_probability=0.0), 0, 0, 10) is None


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 0.3, "mix_probability": 0.7}]),
)
def test_label_shares_match_the_pixels(count, height, width, config):
    pixels, shares = mix_constant_images(count, height, width, **config)
    assert pixels.shape == (count, height, width, 3)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    # Each pixel is the index of its image, so the mean of a mixed image is the mean index under its shares.
    np.testing.assert_allclose(pixels.mean(axis=(1, 2, 3)), shares @ np.arange(count), atol=1e-3)


def test_cutmix_replaces_one_rectangle():
    pixels, _ = mix_constant_images(cutmix=1.0)
    for index, image in enumerate(pixels[..., 0]):
        other = (index - 1) % len(pixels)
        assert set(np.unique(image)) <= {index, other}
        rows, columns = np.nonzero(image == other)
        if len(rows):
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_mixup_blends_evenly():
    pixels, shares = mix_constant_images(mixup=0.8)
    assert np.ptp(pixels, axis=(1, 2, 3)).max() < 1e-4
    own = shares[np.arange(64), np.arange(64)]
    assert 0 < own.min() < 0.5 < own.max() <= 1


def test_mix_probability_and_switch():
    mix = Mix.draw(Augment(mixup=1.0, cutmix=1.0, mix_probability=0.6, mix_switch=0.25), 0, 0, 20_000)
    cut, blended = mix.box[:, 2] > 0, mix.share < 1
    assert not (cut & blended).any()
    assert cut.mean() == pytest.approx(0.15, abs=0.01)
    assert blended.mean() == pytest.approx(0.45, abs=0.01)


def test_shares_follow_the_distributions_of_the_papers():
    """Beta(1, 1) is uniform; so is the area of a CutMix box before it is clipped."""
    kept = Mix.draw(Augment(mixup=1.0), 0, 0, 50_000).share
    np.testing.assert_allclose(np.quantile(kept, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)
    area = Mix.draw(Augment(cutmix=1.0), 0, 0, 50_000).box[:, 2] ** 2
    np.testing.assert_allclose(np.quantile(area, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)


def test_draws_depend_only_on_seed_and_epoch():
    config = Augment(mixup=0.8, cutmix=1.0)
    first, again = (Mix.draw(config, 1, 2, 50) for _ in range(2))
    np.testing.assert_array_equal(first.box, again.box)
    np.testing.assert_array_equal(first.share, again.share)
    for other in (Mix.draw(config, 2, 2, 50), Mix.draw(config, 1, 3, 50)):
        assert not np.array_equal(first.box, other.box)
