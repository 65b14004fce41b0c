"""The random changes of single training pictures: random resized crop, colours, erasing."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shiftvit.augment.augment import Augment
from shiftvit.augment.boxes import Box, cut, draw_box
from shiftvit.augment.erasing import erase
from shiftvit.augment.photometric import jitter_colors
from shiftvit.augment.randaugment import RandAugment
from shiftvit.preprocess import Floats, Preprocess

# Each change has its own random stream, so that switching one off does not alter the others. The streams 0 to 2 are for
# the order, the crops and the mixing.
_BOX, _RAND_AUGMENT, _JITTER, _ERASING = 3, 4, 5, 6


@runtime_checkable
class Cuttable(Protocol):
    """Pictures of different sizes that boxes can be cut from, such as `pictures.Originals`."""

    def find_size(self, index: int) -> tuple[int, int]:
        """Returns a picture's (height, width) in pixels."""

    def cut(self, index: int, box: Box) -> NDArray[np.uint8]:
        """Returns a box of a picture, resized to the size of the result."""


class PictureChanges:
    """The changes of single pictures in an epoch.

    The change of a picture depends only on the seed, the epoch and the picture's number among the draws.

    Args:
        settings: which changes are on.
        preprocess: its interpolation resizes, and its mean is the colour around a picture that was moved.
        seed, epoch: 0 or more.
        size: (height, width) of the result, in pixels.
    """

    def __init__(self, settings: Augment, preprocess: Preprocess, seed: int, epoch: int, size: tuple[int, int]) -> None:
        self._settings, self._seed, self._epoch, self._size = settings, seed, epoch, size
        self._interpolation = preprocess.interpolation
        fill = np.clip(np.rint(np.broadcast_to(preprocess.mean, 3)), 0, 255).astype(int).tolist()
        self._rand_augment = RandAugment(
            settings.rand_augment,
            settings.rand_augment_std,
            settings.rand_augment_layers,
            (fill[0], fill[1], fill[2]),
            Image.Resampling[preprocess.interpolation.upper()],
        )
        self.cuts = settings.resized_crop > 0
        self.recolours = settings.rand_augment > 0 or settings.color_jitter > 0
        self.erases = settings.erasing > 0

    def _make_generator(self, stream: int, slot: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, self._epoch, stream, slot])

    def cut(self, images: Any, indices: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Cuts a random box out of each picture.

        Args:
            images: uint8 (N, H, W, 3), or `Cuttable`.
            indices: the pictures to cut, (B,).
            slots: their numbers among the draws, (B,).

        Returns:
            uint8 (B, *size, 3).
        """
        result = np.empty((len(indices), *self._size, 3), np.uint8)
        least, whole = self._settings.resized_crop, not isinstance(images, Cuttable)
        for place, (index, slot) in enumerate(zip(indices.tolist(), slots.tolist(), strict=True)):
            chance = self._make_generator(_BOX, slot)
            if whole:
                pixels = images[index : index + 1][0]
                box = draw_box(chance, pixels.shape[0], pixels.shape[1], least)
                result[place] = cut(pixels, box, self._size, self._interpolation)
            else:
                height, width = images.find_size(index)
                result[place] = images.cut(index, draw_box(chance, height, width, least))
        return result

    def recolour(self, images: NDArray[np.uint8], slots: NDArray[np.int64]) -> None:
        """Applies RandAugment and the colour jitter in place, to uint8 (B, h, w, 3)."""
        settings = self._settings
        for pixels, slot in zip(images, slots.tolist(), strict=True):
            image = Image.fromarray(pixels)
            if settings.rand_augment:
                image = self._rand_augment(image, self._make_generator(_RAND_AUGMENT, slot))
            if settings.color_jitter:
                image = jitter_colors(image, settings.color_jitter, self._make_generator(_JITTER, slot))
            pixels[...] = np.asarray(image)

    def erase(self, images: Floats, slots: NDArray[np.int64]) -> None:
        """Erases in place, in normalised float32 (B, h, w, 3)."""
        for image, slot in zip(images, slots.tolist(), strict=True):
            erase(image, self._make_generator(_ERASING, slot), self._settings.erasing)
