"""Augmentation: the possible changes of an image, their frequencies, and reproducibility."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftvit.augment.augment import Augment, Draws
from shiftvit.errors import ShiftViTError


def draw_images(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def augment_one_by_one(images: np.ndarray, draws: Draws, pad: int, mode: str) -> np.ndarray:
    """Augments one image at a time, by the definition."""
    height, width = draws.crop
    results = []
    for image, top, left, flip in zip(images, draws.top, draws.left, draws.flip, strict=True):
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=mode)
        crop = padded[top : top + height, left : left + width]
        assert crop.shape[:2] == (height, width)
        results.append(crop[:, ::-1] if flip else crop)
    return np.stack(results)


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    crop=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    pad=st.integers(0, 4),
    pad_mode=st.sampled_from(["zeros", "reflect"]),
    random_crop=st.booleans(),
    flip=st.booleans(),
    dtype=st.sampled_from([np.uint8, np.float32]),
)
def test_each_result_is_a_crop_of_the_padded_image(
    size: tuple[int, int],
    crop: tuple[int, int],
    pad: int,
    pad_mode: str,
    random_crop: bool,
    flip: bool,
    dtype: type,
) -> None:
    images = draw_images(20, *size, 3, dtype=dtype)
    original = images.copy()
    augment = Augment(pad=pad, pad_mode=pad_mode, random_crop=random_crop, flip=flip)
    draws = augment.draw(3, 5, 20, *size, crop)
    result = augment(images, draws)
    assert result.dtype == dtype
    mode = {"zeros": "constant", "reflect": "reflect"}[pad_mode]
    np.testing.assert_array_equal(result, augment_one_by_one(images, draws, pad, mode))
    np.testing.assert_array_equal(images, original)
    assert draws.flip.any() == flip


def test_crops_and_flips_are_uniform_and_independent() -> None:
    draws = Augment(pad=4).draw(0, 0, 40_000, 32, 32)
    for offsets in (draws.top, draws.left):
        counts = np.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert abs(counts / 40_000 - 1 / 9).max() < 0.01
    assert abs(draws.flip.mean() - 0.5) < 0.01
    pairs = np.corrcoef([draws.top[:-1], draws.top[1:], draws.left[1:], draws.flip[1:]])
    assert abs(pairs - np.eye(4)).max() < 0.02


def test_draws_depend_only_on_seed_and_epoch() -> None:
    augment = Augment(pad=4)
    first, again = augment.draw(1, 2, 500, 32, 32), augment.draw(1, 2, 500, 32, 32)
    for name in ("top", "left", "flip"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        for other in (augment.draw(2, 2, 500, 32, 32), augment.draw(1, 3, 500, 32, 32)):
            assert (getattr(first, name) != getattr(other, name)).mean() > 0.3


def test_disabling_one_change_keeps_the_draws_of_the_others() -> None:
    both = Augment(pad=4).draw(0, 0, 100, 32, 32)
    np.testing.assert_array_equal(both.top, Augment(pad=4, flip=False).draw(0, 0, 100, 32, 32).top)
    np.testing.assert_array_equal(both.flip, Augment(random_crop=False).draw(0, 0, 100, 32, 32).flip)


@given(st.permutations(range(12)))
def test_result_does_not_depend_on_the_batch(order: list[int]) -> None:
    images = draw_images(12, 8, 8, 3)
    augment = Augment(pad=2)
    draws = augment.draw(0, 0, 12, 8, 8)
    whole = augment(images, draws)
    indices = np.array(order[:5])
    np.testing.assert_array_equal(augment(images[indices], draws[indices]), whole[indices])
    assert len(draws[indices].top) == 5


def test_flipping_twice_changes_nothing() -> None:
    images = draw_images(6, 8, 8, 3)
    zeros = np.zeros(6, np.int64)
    draws = Draws(zeros, zeros, np.array([True, False] * 3), (8, 8))
    once = Augment()(images, draws)
    assert (once[::2] != images[::2]).any()
    np.testing.assert_array_equal(once[1::2], images[1::2])
    np.testing.assert_array_equal(Augment()(once, draws), images)


def test_fixed_crop_is_at_the_origin_or_the_centre() -> None:
    images = draw_images(4, 9, 12, 3)
    augment = Augment(pad=2, random_crop=False, flip=False)
    centre = augment(images, augment.draw(0, 0, 4, 9, 12, (6, 7)))
    np.testing.assert_array_equal(centre, images[:, 1:7, 2:9])
    corner = augment(images, augment.draw(0, 0, 4, 9, 12, (6, 7), origin=(0, 0)))
    np.testing.assert_array_equal(corner, images[:, :6, :7])


def test_empty_batch() -> None:
    augment = Augment(pad=4)
    assert augment(draw_images(0, 8, 8, 3), augment.draw(0, 0, 0, 8, 8, (6, 6))).shape == (0, 6, 6, 3)


def test_impossible_crop_and_padding_are_refused() -> None:
    with pytest.raises(ShiftViTError, match=r"crop of 41 x 32 .* pad=4"):
        Augment(pad=4).draw(0, 0, 1, 32, 32, (41, 32))
    with pytest.raises(ShiftViTError, match=r"pad=8 .* at most 7"):
        Augment(pad=8, pad_mode="reflect").draw(0, 0, 1, 8, 9)


def test_padding_with_a_resized_crop_is_refused() -> None:
    with pytest.raises(ShiftViTError, match=r"pad=4 has no effect with resized_crop=0\.2"):
        Augment(pad=4, resized_crop=0.2).draw(0, 0, 1, 32, 32)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"pad": 4, "mixup": 0.8, "cutmix": 1.0, "rand_augment_std": 1.0, "rand_augment_layers": 3}, ()),
        ({"resized_crop": 0.5, "erasing": 0.1}, ("resized_crop", "erasing")),
        ({"rand_augment": 9.0, "color_jitter": 0.4}, ("rand_augment", "color_jitter")),
        ({"repeats": 3}, ("repeats",)),
    ],
)
def test_augmentations_that_need_the_host_are_listed(settings: dict[str, float], names: tuple[str, ...]) -> None:
    assert Augment(**settings).on_host_only == names
