"""Colour changes that Pillow lacks. Each takes a Pillow RGB image and returns a new one."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keeps the upper `bits` of each level, 0..8. Pillow's own refuses 0 bits, which give a black image."""
    mask = 256 - (1 << (8 - bits))
    return image.point(3 * [level & mask for level in range(256)])


def solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """Adds `amount` to every level below 128; the others stay."""
    levels = [min(255, level + amount) if level < 128 else level for level in range(256)]
    return image.point(3 * levels)


_JITTERED = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def jitter_colors(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Changes brightness, contrast and saturation, in an order drawn at random.

    Source: the colour changes of Krizhevsky-style training as torchvision's `ColorJitter` has them, without hue.

    Args:
        image: RGB.
        strength: each factor is uniform in 1 - strength .. 1 + strength.
        generator: the source of randomness.
    """
    factors = generator.uniform(1 - strength, 1 + strength, len(_JITTERED))
    for which in generator.permutation(len(_JITTERED)):
        image = _JITTERED[which](image).enhance(float(factors[which]))
    return image
