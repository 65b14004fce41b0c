"""The grid of predictions: it draws every tile, and marks right and wrong predictions."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from shiftvit import ShiftViTError
from shiftvit.figures.grid import Tile, draw_predictions, scale_image
from shiftvit.figures.style import GREEN, RED


def make_tile(truth=None, size=(8, 8), label="cat", colour=(1, 2, 250)):
    return Tile(np.full((*size, 3), colour, np.uint8), label, 0.5, truth)


def draw(tiles, path, **options):
    draw_predictions(tiles, path, "A title", **options)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def count_pixels(pixels, colour):
    return int((pixels == ImageColor.getrgb(colour)).all(axis=-1).sum())


@pytest.mark.parametrize("number", [1, 5, 6, 7, 60])
def test_every_tile_is_drawn(number, tmp_path):
    pixels = draw([make_tile() for _ in range(number)], tmp_path / "x.png")
    assert (pixels == (1, 2, 250)).all(axis=-1).sum() == number * 192 * 192


def test_right_and_wrong_are_marked_only_if_the_truth_is_known(tmp_path):
    pixels = draw([make_tile()], tmp_path / "x.png")
    assert count_pixels(pixels, GREEN) == count_pixels(pixels, RED) == 0
    right, wrong = (draw([make_tile(truth)], tmp_path / "x.png") for truth in ("cat", "dog"))
    assert count_pixels(right, GREEN) > 4 * 192
    assert count_pixels(right, RED) == 0
    assert count_pixels(wrong, RED) > 4 * 192
    assert count_pixels(wrong, GREEN) == 0


@pytest.mark.parametrize(("size", "area"), [((10, 20), 96 * 192), ((400, 100), 192 * 48), ((1, 1000), 192)])
def test_images_keep_their_aspect_ratio(size, area, tmp_path):
    pixels = draw([make_tile(size=size)], tmp_path / "x.png")
    assert (pixels == (1, 2, 250)).all(axis=-1).sum() == area


@pytest.mark.parametrize("size", [(8, 8), (10, 20), (400, 100)])
def test_image_of_the_final_size_is_drawn_unchanged(size, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    small = np.asarray(scale_image(image))
    found, expected = (draw([Tile(pixels, "cat", 0.5)], tmp_path / "x.png") for pixels in (small, image))
    np.testing.assert_array_equal(found, expected)


def test_long_labels_stay_within_their_tile(tmp_path):
    pixels = draw([make_tile(label="a label that goes on and on, and on, Ωβλ"), make_tile()], tmp_path / "x.png")
    assert pixels.shape == draw([make_tile(), make_tile()], tmp_path / "x.png").shape
    gap = pixels[-30:, 16 + 192 : 16 + 192 + 16]
    assert (gap == 255).all()


def test_missing_folder_is_reported(tmp_path):
    with pytest.raises(ShiftViTError, match="cannot write"):
        draw_predictions([make_tile()], tmp_path / "missing" / "x.png", "A title")
