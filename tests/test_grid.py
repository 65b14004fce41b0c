"""The grid of predictions: the places of the tiles, and the marks of right and wrong. People looked at the pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from shiftvit import ShiftViTError
from shiftvit.figures.grid import Tile, draw_predictions
from shiftvit.figures.style import GREEN, RED


def tile(truth=None, size=(8, 8), label="cat", colour=(1, 2, 250)):
    return Tile(np.full((*size, 3), colour, np.uint8), label, 0.5, truth)


def drawn(tiles, path, **options):
    draw_predictions(tiles, path, "A title", **options)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def count(pixels, colour):
    return int((pixels == ImageColor.getrgb(colour)).all(axis=-1).sum())


@pytest.mark.parametrize("number", [1, 5, 6, 7, 60])
def test_every_tile_is_there(number, tmp_path):
    pixels = drawn([tile() for _ in range(number)], tmp_path / "x.png")
    assert (pixels == (1, 2, 250)).all(axis=-1).sum() == number * 192 * 192


def test_right_and_wrong_are_told_apart_only_where_the_truth_is_known(tmp_path):
    pixels = drawn([tile()], tmp_path / "x.png")
    assert count(pixels, GREEN) == count(pixels, RED) == 0
    right, wrong = (drawn([tile(truth)], tmp_path / "x.png") for truth in ("cat", "dog"))
    assert count(right, GREEN) > 4 * 192
    assert count(right, RED) == 0
    assert count(wrong, RED) > 4 * 192
    assert count(wrong, GREEN) == 0


@pytest.mark.parametrize(("size", "area"), [((10, 20), 96 * 192), ((400, 100), 192 * 48), ((1, 1000), 192)])
def test_images_keep_their_shape(size, area, tmp_path):
    pixels = drawn([tile(size=size)], tmp_path / "x.png")
    assert (pixels == (1, 2, 250)).all(axis=-1).sum() == area


def test_long_labels_stay_within_their_tile(tmp_path):
    wide = drawn([tile(label="a label that goes on and on, and on, Ωβλ"), tile()], tmp_path / "x.png")
    assert wide.shape == drawn([tile(), tile()], tmp_path / "x.png").shape
    gap = wide[-30:, 16 + 192 : 16 + 192 + 16]
    assert (gap == 255).all()


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(ShiftViTError, match="cannot write"):
        draw_predictions([tile()], tmp_path / "missing" / "x.png", "A title")
