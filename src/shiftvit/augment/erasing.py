"""Random erasing: replaces a box of a normalised image by noise."""

from __future__ import annotations

import math

import numpy as np

from shiftvit.preprocess import Floats

# The least and the greatest share of the area, and height over width, of a box.
AREA = 0.02, 1 / 3
ASPECT = 0.3, 1 / 0.3
_TRIES = 10


def draw_erased(
    generator: np.random.Generator, height: int, width: int, probability: float
) -> tuple[slice, slice] | None:
    """Draws the rows and columns to erase, or None.

    The share of the area is uniform in 0.02..1/3, the aspect log-uniform in 0.3..1/0.3. A box that does not fit is
    drawn again, at most ten times; after that nothing is erased. Source: Zhong et al., "Random Erasing Data
    Augmentation" (2020), algorithm 1, with the bounds of timm 1.0.31.

    Args:
        generator: the source of randomness.
        height, width: of the image, in pixels.
        probability: the probability of a box, 0..1.
    """
    applied = generator.random()
    chance = generator.random((4, _TRIES))
    if applied >= probability:
        return None
    areas = height * width * (AREA[0] + (AREA[1] - AREA[0]) * chance[0])
    aspects = np.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * chance[1])
    sides = np.rint((np.sqrt(areas * aspects), np.sqrt(areas / aspects)))
    for rows, columns, first_row, first_column in zip(*sides, *chance[2:], strict=True):
        if 0 < rows < height and 0 < columns < width:
            top, left = int(first_row * (height - rows + 1)), int(first_column * (width - columns + 1))
            return slice(top, top + int(rows)), slice(left, left + int(columns))
    return None


def erase(image: Floats, generator: np.random.Generator, probability: float) -> None:
    """Erases a box of a normalised image, float32 (H, W, 3), in place: each value becomes standard normal noise."""
    box = draw_erased(generator, image.shape[0], image.shape[1], probability)
    if box is not None:
        image[box] = generator.standard_normal(image[box].shape, np.float32)
