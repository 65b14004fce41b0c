"""The random resized crop: a box of random area and aspect, cut from a picture and resized once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# The least and the greatest width over height of a box, and the number of tries before the box is put at the centre.
ASPECT = 3 / 4, 4 / 3
TRIES = 10


@dataclass(frozen=True)
class Box:
    """A part of a picture, in pixels; `of` is the (height, width) of the picture."""

    top: int
    left: int
    height: int
    width: int
    of: tuple[int, int]

    def scale_to(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Returns (left, top, right, bottom), as Pillow takes it, of this part in a picture of another size."""
        rows, columns = _scale(self.of[0], height), _scale(self.of[1], width)
        right, bottom = (self.left + self.width) * columns, (self.top + self.height) * rows
        return self.left * columns, self.top * rows, min(right, width), min(bottom, height)


def _scale(old: int, new: int) -> float:
    """Returns the length of a pixel after a side of `old` pixels was scaled to `new`."""
    # A JPEG is decoded by whole steps, and its last pixel may lie partly outside.
    return next((1 / step for step in (1, 2, 4, 8) if math.ceil(old / step) == new), new / old)


def draw_box(generator: np.random.Generator, height: int, width: int, least: float) -> Box:
    """Draws a box: its share of the area is uniform in [least, 1], its aspect log-uniform in 3/4..4/3.

    A box that is larger than the picture is drawn again, at most ten times. After that it is the largest box at the
    centre whose aspect is within these bounds. Source: Szegedy et al., "Going Deeper with Convolutions" (2015), section
    6; the ten tries and the centre are those of torchvision's `RandomResizedCrop`.

    Args:
        generator: the source of randomness.
        height, width: of the picture, in pixels, 1 or more.
        least: above 0, at most 1.
    """
    # All tries at once, so that later draws do not depend on how many were needed.
    chance = generator.random((4, TRIES))
    shares = least + (1 - least) * chance[0]
    aspects = np.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * chance[1])
    sides = np.sqrt(shares * height * width / aspects), np.sqrt(shares * height * width * aspects)
    for rows, columns, first_row, first_column in zip(*np.rint(sides), *chance[2:], strict=True):
        if 0 < rows <= height and 0 < columns <= width:
            top, left = int(first_row * (height - rows + 1)), int(first_column * (width - columns + 1))
            return Box(top, left, int(rows), int(columns), (height, width))
    rows = max(1, min(height, round(width / ASPECT[0])))
    columns = max(1, min(width, round(height * ASPECT[1])))
    return Box((height - rows) // 2, (width - columns) // 2, rows, columns, (height, width))


def cut(pixels: NDArray[np.uint8], box: Box, size: tuple[int, int], interpolation: str) -> NDArray[np.uint8]:
    """Cuts a box out and resizes it, antialiased where it shrinks.

    Args:
        pixels: uint8 (H, W, 3); smaller than `box.of` if the picture was decoded at a smaller size.
        box: in pixels of the whole picture.
        size: (height, width) of the result, in pixels.
        interpolation: "nearest", "bilinear" or "bicubic".

    Returns:
        uint8 (*size, 3).
    """
    picture = Image.fromarray(pixels)
    region = box.scale_to(*pixels.shape[:2])
    resample = Image.Resampling[interpolation.upper()]
    return np.asarray(picture.resize((size[1], size[0]), resample, region))


def find_decoded_size(box: Box, size: tuple[int, int]) -> tuple[int, int]:
    """Returns the (height, width) to decode a picture at, so that `box` has twice the `size` that it is resized to."""
    return math.ceil(2 * size[0] * box.of[0] / box.height), math.ceil(2 * size[1] * box.of[1] / box.width)
