"""RandAugment: changes each picture by a few of fifteen operations, all with one magnitude.

Source: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space" (2020), section
3, in the form of timm's "rand-m9-mstd0.5-inc1", with which ShiftViT and Swin were trained: a change is applied with
probability 1/2, its magnitude varies, and all changes grow with it. The ranges are those of timm 1.0.31.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from shiftvit.augment import photometric

# The greatest magnitude, and the probability of each change.
GREATEST = 10.0
PROBABILITY = 0.5

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Operation:
    """A change.

    Attributes:
        name: its name in the paper.
        signed: whether the strength is -1..1, with a random sign; otherwise it is 0..1.
        argument: maps the strength, the magnitude over `GREATEST`, to the function's argument.
        function: takes the image, the argument, the resampling and the fill colour.
    """

    name: str
    signed: bool
    argument: Callable[[float], float]
    function: Callable[[Image.Image, float, Image.Resampling, Colour], Image.Image]


def _adapt_plain(function: Callable[[Image.Image], Image.Image]) -> Callable[..., Image.Image]:
    return lambda image, _argument, _resampling, _fill: function(image)


def _adapt_levels(function: Callable[[Image.Image, int], Image.Image]) -> Callable[..., Image.Image]:
    return lambda image, argument, _resampling, _fill: function(image, int(argument))


def _adapt_enhancer(enhancer: Callable[[Image.Image], Any]) -> Callable[..., Image.Image]:
    return lambda image, factor, _resampling, _fill: enhancer(image).enhance(factor)


def _adapt_affine(matrix: Callable[[float, int, int], tuple[float, ...]]) -> Callable[..., Image.Image]:
    def move(image: Image.Image, argument: float, resampling: Image.Resampling, fill: Colour) -> Image.Image:
        data = matrix(argument, *image.size)
        return image.transform(image.size, Image.Transform.AFFINE, data, resampling, fillcolor=fill)

    return move


def _rotate(image: Image.Image, degrees: float, resampling: Image.Resampling, fill: Colour) -> Image.Image:
    return image.rotate(degrees, resampling, fillcolor=fill)


def _find_factor(strength: float) -> float:
    return max(0.1, 1 + 0.9 * strength)


OPERATIONS = (
    Operation("AutoContrast", False, lambda _: 0.0, _adapt_plain(ImageOps.autocontrast)),
    Operation("Equalize", False, lambda _: 0.0, _adapt_plain(ImageOps.equalize)),
    Operation("Invert", False, lambda _: 0.0, _adapt_plain(ImageOps.invert)),
    Operation("Rotate", True, lambda s: 30 * s, _rotate),  # degrees, counter-clockwise
    Operation("Posterize", False, lambda s: 4 - int(4 * s), _adapt_levels(photometric.posterize)),  # bits that are kept
    Operation(
        "Solarize", False, lambda s: 256 - int(256 * s), _adapt_levels(ImageOps.solarize)
    ),  # inverted from here on
    Operation("SolarizeAdd", False, lambda s: int(110 * s), _adapt_levels(photometric.solarize_add)),
    Operation("Color", True, _find_factor, _adapt_enhancer(ImageEnhance.Color)),
    Operation("Contrast", True, _find_factor, _adapt_enhancer(ImageEnhance.Contrast)),
    Operation("Brightness", True, _find_factor, _adapt_enhancer(ImageEnhance.Brightness)),
    Operation("Sharpness", True, _find_factor, _adapt_enhancer(ImageEnhance.Sharpness)),
    Operation("ShearX", True, lambda s: 0.3 * s, _adapt_affine(lambda a, _w, _h: (1, a, 0, 0, 1, 0))),
    Operation("ShearY", True, lambda s: 0.3 * s, _adapt_affine(lambda a, _w, _h: (1, 0, 0, a, 1, 0))),
    # As shares of the width and the height.
    Operation("TranslateX", True, lambda s: 0.45 * s, _adapt_affine(lambda a, w, _h: (1, 0, a * w, 0, 1, 0))),
    Operation("TranslateY", True, lambda s: 0.45 * s, _adapt_affine(lambda a, _w, h: (1, 0, 0, 0, 1, a * h))),
)


@dataclass(frozen=True)
class RandAugment:
    """Changes one picture.

    Attributes:
        magnitude: mean magnitude of the changes, 0..10.
        std: its standard deviation; a drawn magnitude is clipped to 0..10.
        layers: number of changes drawn, with repetition; each is applied with probability 1/2.
        fill: RGB colour of the area around a moved picture.
        resampling: the interpolation of rotations, shears and shifts.
    """

    magnitude: float
    std: float
    layers: int
    fill: Colour
    resampling: Image.Resampling

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """Returns the changed picture, RGB of the same size."""
        for operation, strength in self.draw(generator):
            image = operation.function(image, operation.argument(strength), self.resampling, self.fill)
        return image

    def draw(self, generator: np.random.Generator) -> list[tuple[Operation, float]]:
        """Draws the operations to apply, each with its strength."""
        which = generator.integers(len(OPERATIONS), size=self.layers)
        applied, sign = generator.random((2, self.layers))
        magnitude = np.clip(generator.normal(self.magnitude, self.std, self.layers), 0.0, GREATEST)
        strength = magnitude / GREATEST
        drawn = []
        for layer in np.flatnonzero(applied < PROBABILITY):
            operation = OPERATIONS[which[layer]]
            signed = -strength[layer] if operation.signed and sign[layer] < 0.5 else strength[layer]
            drawn.append((operation, float(signed)))
        return drawn
