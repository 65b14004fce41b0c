"""The random resized crop: the distribution of its boxes, and the pixels that it cuts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sample import load_sample
from shiftvit.augment.boxes import Box, cut, draw_box, find_decoded_size
from shiftvit.preprocess import Preprocess


@settings(max_examples=200)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    least=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_box_lies_inside_the_image_with_an_allowed_area_and_aspect_ratio(
    height: int, width: int, least: float, seed: int
) -> None:
    box = draw_box(np.random.default_rng(seed), height, width, least)
    assert box.of == (height, width)
    assert box.height >= 1
    assert box.width >= 1
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width
    # Sides are rounded to whole pixels, by half a pixel at most. If no box of the least area fits, it is the largest.
    largest = min(height, width * 4 / 3) * min(width, height * 4 / 3)
    assert (box.height + 0.5) * (box.width + 0.5) >= min(least * height * width, largest)
    assert (box.width + 0.5) / max(box.height - 0.5, 0.5) >= 3 / 4 or box.height == 1
    assert (box.width - 0.5) / (box.height + 0.5) <= 4 / 3 or box.width == 1


def test_area_aspect_ratio_and_position_are_uniform() -> None:
    """In a square, every box of up to three quarters of the area fits, so none of those is drawn again."""
    side, rng = 1000, np.random.default_rng(0)
    boxes = [draw_box(rng, side, side, 0.08) for _ in range(20_000)]
    areas = np.array([box.height * box.width / side**2 for box in boxes])
    fit = areas < 0.74
    assert 0.07 < areas.min() < 0.09
    assert areas.max() <= 1
    levels = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(np.quantile(areas[fit], levels), 0.08 + (0.74 - 0.08) * levels, atol=0.012)
    aspects = np.log([box.width / box.height for box in boxes])[fit] / math.log(4 / 3)
    np.testing.assert_allclose(np.quantile(aspects, levels), 2 * levels - 1, atol=0.04)
    for place in (
        [box.top / (side - box.height + 1) for box in boxes],
        [box.left / (side - box.width + 1) for box in boxes],
    ):
        np.testing.assert_allclose(np.quantile(np.array(place)[fit], levels), levels, atol=0.025)
    assert abs(np.corrcoef(areas[fit], aspects)[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("size", "expected"),
    [((10, 1000), (0, 493, 10, 13)), ((1000, 12), (492, 0, 16, 12)), ((1, 1), (0, 0, 1, 1))],
)
def test_falls_back_to_a_central_box_if_none_fits(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    box = draw_box(np.random.default_rng(0), *size, 0.9)
    assert (box.top, box.left, box.height, box.width) == expected


def test_number_of_tries_does_not_change_later_draws() -> None:
    first, second = np.random.default_rng(5), np.random.default_rng(5)
    draw_box(first, 100, 100, 0.1)
    draw_box(second, 5, 4000, 0.9)
    assert first.random() == second.random()


PICTURE = load_sample().train.images[3]


def test_cutting_the_whole_picture_changes_nothing() -> None:
    np.testing.assert_array_equal(cut(PICTURE, Box(0, 0, 32, 32, (32, 32)), (32, 32), "bicubic"), PICTURE)


def test_cutting_without_resizing_is_a_slice() -> None:
    for interpolation in ("nearest", "bilinear", "bicubic"):
        window = cut(PICTURE, Box(3, 5, 20, 9, (32, 32)), (20, 9), interpolation)
        np.testing.assert_array_equal(window, PICTURE[3:23, 5:14])


def test_nearest_enlargement_repeats_pixels() -> None:
    large = cut(PICTURE, Box(4, 8, 10, 12, (32, 32)), (30, 24), "nearest")
    np.testing.assert_array_equal(large, PICTURE[4:14, 8:20].repeat(3, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(13, 9), (16, 16), (48, 57)])
def test_cut_resizes_like_evaluation(interpolation: str, size: tuple[int, int]) -> None:
    expected = Preprocess(resize=size, interpolation=interpolation).pixels(PICTURE[None])[0]
    found = cut(PICTURE, Box(0, 0, 32, 32, (32, 32)), size, interpolation)
    assert abs(found.astype(int) - expected).max() <= 1


def test_picture_decoded_at_half_size_is_cut_at_the_same_part() -> None:
    rows, columns = np.mgrid[:120, :160]
    smooth = np.stack([rows * 2, columns, rows + columns // 2], axis=2).astype(np.uint8)
    half = smooth.reshape(60, 2, 80, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    box = Box(11, 37, 75, 83, (120, 160))
    whole, small = (cut(pixels, box, (20, 24), "bilinear").astype(int) for pixels in (smooth, half))
    assert abs(whole - small).max() <= 2


@settings(max_examples=300)
@example((12, 13), 0, (1, 1))  # 13 pixels decode to 4 at a quarter, the last of them partial
@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.integers(0, 10**6),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
def test_reduced_decoding_keeps_twice_the_size_of_the_result(
    picture: tuple[int, int], seed: int, size: tuple[int, int]
) -> None:
    box = draw_box(np.random.default_rng(seed), *picture, 0.08)
    least = find_decoded_size(box, size)
    room = min(whole // needed for whole, needed in zip(picture, least, strict=True))
    step = max(step for step in (1, 2, 4, 8) if step <= max(room, 1))  # the reductions that a JPEG decoder offers
    height, width = (math.ceil(whole / step) for whole in picture)
    left, top, right, bottom = box.scale_to(height, width)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if step > 1:
        assert right - left >= 2 * size[1] - 1e-6
        assert bottom - top >= 2 * size[0] - 1e-6
        assert (left * step, top * step) == (box.left, box.top)
