"""MixUp and CutMix: blend an image with another one of its batch, or patch it, and mix their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shiftvit.augment.augment import Augment
from shiftvit.preprocess import Floats

# Separates these draws from others of the same seed and epoch.
_STREAM = 2


@dataclass(frozen=True, eq=False)
class Mix:
    """Mixes each image with the one before it in the batch (the first with the last).

    MixUp (Zhang et al., 2018, section 2) keeps a share `lam` of the image and adds `1 - lam` of the other; CutMix (Yun
    et al., 2019, equations 1 and 2) replaces a box of `1 - lam` of the area. `lam` is from Beta(alpha, alpha). All
    draws of an epoch are made at once, and depend only on the seed and the epoch.

    Attributes:
        share: the share that MixUp keeps of each image of an epoch, float64 (N,); 1: no MixUp.
        box: row and column of the centre of CutMix' box, and its side, as shares of the image's height and width,
            float64 (N, 3); side 0: no CutMix.
    """

    share: NDArray[np.float64]
    box: NDArray[np.float64]

    @classmethod
    def draw(cls, config: Augment, seed: int, epoch: int, count: int) -> Self | None:
        """Draws for an epoch of `count` images. Returns None if the settings mix nothing."""
        if not (config.mixup or config.cutmix) or not config.mix_probability:
            return None
        generator = np.random.default_rng([seed, epoch, _STREAM])
        chance = generator.random((4, count))
        mixed = chance[0] < config.mix_probability
        cut = mixed & (chance[1] < (config.mix_switch if config.mixup and config.cutmix else bool(config.cutmix)))
        blend = generator.beta(config.mixup or 1.0, config.mixup or 1.0, count)
        keep = generator.beta(config.cutmix or 1.0, config.cutmix or 1.0, count)
        side = np.where(cut, np.sqrt(1.0 - keep), 0.0)
        return cls(np.where(mixed & ~cut, blend, 1.0), np.stack([chance[2], chance[3], side], axis=1))

    def compute_bounds(self, height: int, width: int, indices: Any = slice(None)) -> NDArray[np.int64]:
        """Returns the boxes of `indices` in pixels, int64 (B, 4): first row, end row, first column, end column.

        As in the paper, the side is rounded down and the centre may lie anywhere, so boxes may extend beyond the image.
        """
        row, column, side = self.box[indices].T
        lines = []
        for centre, extent in ((row, height), (column, width)):
            pixels = (side * extent).astype(np.int64)
            first = (centre * extent).astype(np.int64) - pixels // 2
            lines += [first, first + pixels]
        return np.stack(lines, axis=1)

    def __call__(
        self, images: Floats, labels: NDArray[Any], indices: NDArray[np.int64], classes: int
    ) -> tuple[Floats, Floats]:
        """Mixes the images of a batch.

        Args:
            images: float32 (B, H, W, 3).
            labels: whole numbers below `classes`, (B,).
            indices: the place of each image in the draws, (B,).
            classes: number of classes.

        Returns:
            The mixed images, float32 (B, H, W, 3), and the shares of the classes in each, float32 (B, classes), which
            sum to 1. With CutMix they are the areas after the box was clipped to the image.
        """
        height, width = images.shape[1:3]
        # Only the first rows and columns are clipped: a slice clips its end itself.
        bounds = np.maximum(self.compute_bounds(height, width, indices), 0).tolist()
        mixed, share = np.empty_like(images), np.empty((len(images), 1), np.float32)
        # An image at a time, which stays in the processor's cache; a batch of large images does not.
        for place, keep in enumerate(self.share[indices].astype(np.float32)):
            image, other = images[place], images[place - 1]
            if keep < 1:
                share[place] = _blend(image, other, keep, mixed[place])
            else:
                share[place] = _paste(image, other, bounds[place], mixed[place])
        one_hot = np.eye(classes, dtype=np.float32)[labels]  # (B,) -> (B, classes)
        return mixed, one_hot * share + np.roll(one_hot, 1, axis=0) * (1 - share)


def _blend(image: Floats, other: Floats, keep: np.float32, result: Floats) -> np.float32:
    """MixUp: writes the blend of two images to `result`, and returns the share of the first."""
    np.multiply(image, keep, out=result)
    result += other * (1 - keep)
    # Rounded as on the device, which computes the mean over the pixels.
    return np.float32(np.full(image.shape[:2], keep).mean())


def _paste(image: Floats, other: Floats, bounds: list[int], result: Floats) -> np.float32:
    """CutMix: writes an image with a box (top, bottom, left, right) of another, and returns the share of the first."""
    top, bottom, left, right = bounds
    result[...] = image
    box = result[top:bottom, left:right]
    box[...] = other[top:bottom, left:right]
    pixels = image.shape[0] * image.shape[1]
    return np.float32(pixels - box.size // 3) / np.float32(pixels)
