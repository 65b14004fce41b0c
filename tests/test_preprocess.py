"""Preprocessing against the output of the Keras example, against resampling by its definition, and against slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plain_runtimes import read_program
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess, shrink

GOLDEN = Path(__file__).parent / "golden"
INTERPOLATIONS = ["nearest", "bilinear", "bicubic"]


def draw_pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def evaluate_kernel(distance: np.ndarray, interpolation: str) -> np.ndarray:
    """Returns the weights: the triangle, or the cubic of Keys (1981) with a = -1/2."""
    if interpolation == "bilinear":
        return np.maximum(1 - distance, 0)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


def make_matrix(old: int, new: int, interpolation: str) -> np.ndarray:
    """Returns the (new, old) matrix that resamples a line. Pixels lie at their centres; shrinking widens the kernel."""
    scale = old / new
    centres, places = (np.arange(new) + 0.5) * scale, np.arange(old) + 0.5
    if interpolation == "nearest":
        return (np.floor(centres)[:, None] == np.arange(old)).astype(float)
    weights = evaluate_kernel(np.abs(places - centres[:, None]) / max(scale, 1), interpolation)
    return weights / weights.sum(axis=1, keepdims=True)


def resize_by_definition(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    rows, columns = (
        make_matrix(image.shape[0], height, interpolation),
        make_matrix(image.shape[1], width, interpolation),
    )
    return np.einsum("ai,ijc,bj->abc", rows, image.astype(float), columns)


def test_default_divides_by_255() -> None:
    images = draw_pictures(5, 32, 32, 3)
    result = Preprocess()(images)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, images.astype(np.float32) / np.float32(255))


def test_reproduces_the_keras_example() -> None:
    with np.load(GOLDEN / "keras_example.npz") as example:
        images, expected = example["x"], example["preprocessed"]
    result = Preprocess(resize=52, crop=48, crop_position="top_left", round_pixels=False)(images)
    assert np.abs(result - expected).max() < 1e-5


# With these odd sizes no new centre falls on the border of two old pixels, which would be a tie for "nearest".
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("size", "target"),
    [((33, 33), (52, 52)), ((37, 53), (19, 23)), ((17, 41), (40, 13)), ((1, 9), (5, 2)), ((63, 47), (7, 47))],
)
def test_resizing_matches_its_definition(interpolation: str, size: tuple[int, int], target: tuple[int, int]) -> None:
    images = draw_pictures(2, *size, 3)
    result = Preprocess(resize=target, interpolation=interpolation).resized(images)
    assert result.shape == (2, *target, 3)
    assert result.dtype == np.float32
    expected = np.stack([resize_by_definition(image, *target, interpolation) for image in images])
    assert np.abs(result - expected).max() < 1e-3


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=4, max_size=4),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    seed=st.integers(0, 1000),
)
def test_resizing_between_any_sizes_matches_its_definition(sizes: list[int], interpolation: str, seed: int) -> None:
    height, width, new_height, new_width = sizes
    image = draw_pictures(height, width, 3, seed=seed)
    result = Preprocess(resize=(new_height, new_width), interpolation=interpolation).resized(image[None])[0]
    assert np.abs(result - resize_by_definition(image, new_height, new_width, interpolation)).max() < 1e-3


@settings(max_examples=60)
@given(
    sides=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=2),
    channels=st.sampled_from([1, 3]),
)
def test_shrinking_matches_resizing(sides: list[tuple[int, int]], channels: int) -> None:
    (new_height, height), (new_width, width) = map(sorted, sides)
    images = draw_pictures(2, height, width, channels).astype(np.float32)
    result = shrink(images, new_height, new_width)
    assert result.dtype == np.float32
    expected = np.stack([resize_by_definition(image, new_height, new_width, "bilinear") for image in images])
    np.testing.assert_allclose(result, expected, atol=1e-3)


@given(old=st.integers(1, 50), new=st.integers(1, 50))
def test_nearest_takes_the_pixel_under_the_centre(old: int, new: int) -> None:
    image = np.zeros((1, old, 1, 3), np.uint8)
    image[0, :, 0, :] = np.arange(old)[:, None]
    result = Preprocess(resize=(new, 1), interpolation="nearest").resized(image)[0, :, 0, 0]
    for index, pixel in enumerate(result):
        assert pixel * new <= (index + 0.5) * old < (pixel + 1) * new


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@given(height=st.integers(1, 30), width=st.integers(1, 30), value=st.integers(0, 255))
def test_plain_image_stays_plain(interpolation: str, height: int, width: int, value: int) -> None:
    image = np.full((1, 13, 8, 3), value, np.uint8)
    result = Preprocess(resize=(height, width), interpolation=interpolation).resized(image)
    np.testing.assert_allclose(result, value, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        (None, (30, 40), (30, 40)),
        (52, (32, 32), (52, 52)),
        (256, (375, 500), (256, 341)),
        (256, (500, 375), (341, 256)),
        ((20, 10), (375, 500), (20, 10)),
    ],
)
def test_single_number_is_the_shorter_side(
    resize: int | tuple[int, int] | None, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    preprocess = Preprocess(resize=resize)
    assert preprocess.resized_shape(*size) == preprocess.output_shape(*size) == expected
    assert preprocess(draw_pictures(1, *size, 3)).shape == (1, *expected, 3)


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    crop_height=st.integers(1, 12),
    crop_width=st.integers(1, 12),
    position=st.sampled_from(["top_left", "center"]),
)
def test_crop_is_a_slice(height: int, width: int, crop_height: int, crop_width: int, position: str) -> None:
    images = draw_pictures(2, height, width, 3)
    preprocess = Preprocess(crop=(crop_height, crop_width), crop_position=position, std=1.0)
    if crop_height > height or crop_width > width:
        with pytest.raises(ShiftViTError, match="larger than the image"):
            preprocess(images)
        return
    result = preprocess(images)
    assert result.shape[1:3] == preprocess.output_shape(height, width) == (crop_height, crop_width)
    top = left = 0
    if position == "center":
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
    np.testing.assert_array_equal(result, images[:, top : top + crop_height, left : left + crop_width])


def test_mean_and_std_are_per_channel() -> None:
    images = draw_pictures(3, 8, 10, 3)
    mean, std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
    expected = (images.astype(np.float64) - mean) / std
    np.testing.assert_allclose(Preprocess(mean=mean, std=std)(images), expected, atol=1e-5)
    np.testing.assert_allclose(Preprocess(mean=7.5, std=std)(images), (images - 7.5) / std, atol=1e-5)


@pytest.mark.parametrize("preprocess", [Preprocess(), Preprocess(resize=40, crop=33), Preprocess(crop=5)])
def test_result_does_not_depend_on_the_batch(preprocess: Preprocess) -> None:
    images = draw_pictures(70, 32, 32, 3)
    kept = images.copy()
    whole = preprocess(images)
    np.testing.assert_array_equal(whole[[5]], preprocess(images[[5]]))
    np.testing.assert_array_equal(images, kept)
    assert whole.flags.c_contiguous


def test_steps_compose_to_the_whole() -> None:
    images = draw_pictures(4, 20, 30, 3)
    preprocess = Preprocess(resize=24, crop=(20, 31), mean=(1.0, 2.0, 3.0), std=50.0)
    resized = preprocess.cropped(preprocess.resized(images))
    np.testing.assert_array_equal(preprocess(images), preprocess.normalised(preprocess.pixels(images)))
    np.testing.assert_array_equal(preprocess.pixels(images), np.rint(resized))
    np.testing.assert_array_equal(preprocess.rest(preprocess.pixels(images)), preprocess(images))
    unrounded = preprocess.model_copy(update={"round_pixels": False})
    np.testing.assert_array_equal(unrounded(images), preprocess.normalised(resized))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_images_of_the_right_size_are_not_resized(interpolation: str) -> None:
    images = draw_pictures(4, 20, 30, 3)
    preprocess = Preprocess(resize=20, crop=(20, 24), interpolation=interpolation)
    found = preprocess.pixels(images)
    assert np.shares_memory(found, images)
    np.testing.assert_array_equal(found, images[:, :, :24])
    np.testing.assert_array_equal(preprocess(images), preprocess.normalised(images[:, :, :24]))


def test_pixels_are_integers_and_stay_in_range() -> None:
    edges = np.zeros((1, 8, 8, 3), np.uint8)
    edges[:, :, 4:] = 255
    found = Preprocess(resize=23, interpolation="bicubic").pixels(edges)
    assert found.dtype == np.uint8
    assert found[0, 0, 0, 0] == 0
    assert found[0, 0, -1, 0] == 255  # the overshoot at the edge is clipped and does not wrap
    assert (np.diff(found[0, 0, :, 0].astype(int)) >= -6).all()


@pytest.mark.parametrize("shape", [(32, 32), (100, 40), (17, 300), (1, 1)])
def test_fitted_accepts_any_size_and_keeps_images_that_fit(shape: tuple[int, int]) -> None:
    fitted = Preprocess(mean=3.0).fitted(32, 32)
    assert fitted.mean == 3.0
    assert fitted.pixels(draw_pictures(1, *shape, 3)).shape == (1, 32, 32, 3)
    own = draw_pictures(1, 32, 32, 3)
    np.testing.assert_array_equal(fitted.pixels(own), own)
    assert fitted.fitted(32, 32) == fitted


@pytest.mark.parametrize("own", [(24, 24), (24, 20), (20, 24), (90, 20)])
@pytest.mark.parametrize("resize", [None, 16, 40])
def test_model_trained_on_one_size_accepts_any_size(own: tuple[int, int], resize: int | None) -> None:
    """Models of an archive of arrays are trained without a crop."""
    trained = Preprocess(resize=resize, mean=3.0)
    size = trained.output_shape(*own)
    fitted = trained.fitted(*size)
    assert fitted.fitted(*size) == fitted
    for shape in (own, (32, 32), (100, 40), (17, 300), (1, 1)):
        images = draw_pictures(1, *shape, 3)
        assert fitted.pixels(images).shape == (1, *size, 3)
    images = draw_pictures(2, *own, 3)
    np.testing.assert_array_equal(fitted(images), trained(images))


def test_resize_covers_a_rectangular_crop_and_keeps_proportions() -> None:
    rule = Preprocess(resize=20, crop=(24, 20), crop_position="center")
    assert rule.resized_shape(48, 40) == (24, 20)
    assert rule.resized_shape(100, 100) == (24, 24)
    assert rule.resized_shape(50, 100) == (24, 48)
    assert rule.resized_shape(100, 50) == (40, 20)
    with pytest.raises(ShiftViTError, match="crop less, or resize to at least the crop"):
        Preprocess(resize=16, crop=(24, 20)).output_shape(48, 40)


def test_fitted_keeps_a_fitting_rule_and_rejects_others() -> None:
    example = Preprocess(resize=52, crop=48)
    assert example.fitted(48, 48) is example
    for other in (Preprocess(resize=52), Preprocess(crop=40), Preprocess(resize=(48, 40))):
        with pytest.raises(ShiftViTError, match="change resize and crop to match"):
            other.fitted(48, 48)


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (Preprocess(), None),
        (Preprocess(resize=32), None),
        (Preprocess(resize=(20, 24)), (20, 24)),
        (Preprocess(crop=24), (24, 24)),
        (Preprocess(resize=40, crop=(32, 24)), (32, 24)),
    ],
)
def test_some_rules_give_all_images_one_shape(rule: Preprocess, shape: tuple[int, int] | None) -> None:
    found = {rule(np.zeros((1, *size, 3), np.uint8)).shape[1:3] for size in ((64, 64), (64, 96), (99, 64))}
    assert (found == {shape}) is (shape is not None)
    assert rule.fixed_shape == shape


def test_extremely_elongated_images_fail() -> None:
    with pytest.raises(ShiftViTError, match="too elongated"):
        Preprocess(resize=224).resized_shape(1, 10_000_000)


def test_normalising_does_not_change_its_input() -> None:
    images = draw_pictures(2, 4, 4, 3).astype(np.float32)
    kept = images.copy()
    Preprocess(mean=3.0).normalised(images)
    np.testing.assert_array_equal(images, kept)


def test_empty_batch_gives_an_empty_batch() -> None:
    empty = np.zeros((0, 32, 32, 3), np.uint8)
    assert Preprocess()(empty).shape == (0, 32, 32, 3)
    assert Preprocess(resize=52, crop=48)(empty).shape == (0, 48, 48, 3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([[1]], "list"),
        (np.zeros((1, 8, 8, 3)), "float64"),
        (np.zeros((8, 8, 3), np.uint8), r"\(8, 8, 3\)"),
        (np.zeros((1, 8, 8, 1), np.uint8), r"\(1, 8, 8, 1\)"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"\(1, 3, 8, 8\)"),
        (np.zeros((1, 0, 8, 3), np.uint8), "0 x 8"),
        (np.zeros((1, 4, 8, 3), np.uint8), "crop=5"),
    ],
)
def test_invalid_images_fail(images: np.ndarray, message: str) -> None:
    with pytest.raises(ShiftViTError, match=message) as caught:
        Preprocess(crop=5)(images)
    assert "\n" not in str(caught.value)


SIDE = st.integers(1, 30)
SIZE = st.one_of(st.none(), SIDE, st.tuples(SIDE, SIDE))
PREPARE: dict[str, Any] = {}
exec(read_program("def prepare("), PREPARE)


@settings(max_examples=300)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    resize=SIZE,
    crop=SIZE,
    crop_position=st.sampled_from(["top_left", "center"]),
    interpolation=st.sampled_from(INTERPOLATIONS),
    seed=st.integers(0, 1000),
)
def test_program_of_the_document_gives_the_same_pixels(size: tuple[int, int], seed: int, **options: Any) -> None:
    preprocess = Preprocess(mean=3.0, srgb=True, round_pixels=False, **options)
    image = draw_pictures(*size, 3, seed=seed)
    try:
        expected = preprocess.pixels(image[None])[0]
    except ShiftViTError:  # the image is smaller than the crop
        assume(False)
    found = PREPARE["prepare"](image, **json.loads(preprocess.model_dump_json()))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(375, 500), (600, 401), (31, 900)])
@pytest.mark.parametrize("crop", [224, (224, 160), (96, 224)])
def test_program_of_the_document_prepares_photographs(size: tuple[int, int], crop: int | tuple[int, int]) -> None:
    preprocess = Preprocess(resize=230, crop=crop, crop_position="center", interpolation="bicubic")
    image = draw_pictures(*size, 3)
    found = PREPARE["prepare"](image, **json.loads(preprocess.model_dump_json()))
    np.testing.assert_array_equal(found, preprocess.pixels(image[None])[0])
