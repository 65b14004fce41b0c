"""Changes of a picture's colours: brightness, contrast, saturation, sharpness, and the tables of levels.

Each takes a Pillow RGB image and returns a new one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Returns the image blended with black: 0 is black, 1 changes nothing."""
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Returns the image blended with its mean grey: 0 is that grey, 1 changes nothing."""
    return ImageEnhance.Contrast(image).enhance(factor)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """Returns the image blended with its grey self: 0 is grey, 1 changes nothing."""
    return ImageEnhance.Color(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Returns the image blended with a smoothed one: 0 is smooth, 1 changes nothing, 2 is sharp."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keeps the upper `bits` of each level, 0..8; with none the image is black, which Pillow's own refuses."""
    mask = 256 - (1 << (8 - bits))
    return image.point(3 * [level & mask for level in range(256)])


def solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """Adds `amount` to every level below 128; the others stay."""
    levels = [min(255, level + amount) if level < 128 else level for level in range(256)]
    return image.point(3 * levels)


_JITTERED: tuple[Callable[[Image.Image, float], Image.Image], ...] = (brightness, contrast, saturation)


def color_jitter(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Changes brightness, contrast and saturation, in an order drawn at random.

    Source: the colour changes of Krizhevsky-style training as torchvision's `ColorJitter` has them, without hue.

    Args:
        image: RGB.
        strength: each factor is uniform in 1 - strength .. 1 + strength.
        generator: where chance comes from.
    """
    factors = generator.uniform(1 - strength, 1 + strength, len(_JITTERED))
    for which in generator.permutation(len(_JITTERED)):
        image = _JITTERED[which](image, float(factors[which]))
    return image
