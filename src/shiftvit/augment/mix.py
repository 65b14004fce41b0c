"""MixUp and CutMix: an image blended with, or patched by, another one of its batch, and the labels with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shiftvit.augment.augment import Augment
from shiftvit.preprocess import Floats

# Keeps these draws apart from others of the same seed and epoch.
_STREAM = 2


@dataclass(frozen=True, eq=False)
class Mix:
    """Mixes each image with the one before it in the batch (the first with the last).

    MixUp (Zhang et al., 2018, section 2) keeps a share `lam` of the image and adds `1 - lam` of the other; CutMix (Yun
    et al., 2019, equations 1 and 2) replaces a box of `1 - lam` of the area. `lam` is from Beta(alpha, alpha), and
    chance is drawn for a whole epoch at once, by image, from the seed and the epoch alone.

    Attributes:
        share: float64 (N,): what MixUp keeps of each of an epoch's images; 1 where it is not applied.
        box: float64 (N, 3): of CutMix' box the centre's row and column and the side, as shares of the image's height
            and width; a side of 0 where it is not applied.
    """

    share: NDArray[np.float64]
    box: NDArray[np.float64]

    @classmethod
    def draw(cls, config: Augment, seed: int, epoch: int, count: int) -> Self | None:
        """Draws for an epoch of `count` images; None where the settings mix nothing."""
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

        As in the paper the side is cut to whole pixels and the centre may lie anywhere, so boxes can stick out.
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
        """Applies the draws of `indices`, the batch's images in the epoch.

        Args:
            images: float32 (B, H, W, 3).
            labels: whole numbers below `classes`, (B,).
            indices: (B,), each image's place in the draws.
            classes: how many there are.

        Returns:
            The mixed images, float32 (B, H, W, 3), and each one's shares of the classes, float32 (B, classes), that
            sum to 1. With CutMix these are the areas, counted after the box was clipped to the image.
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
    """MixUp: writes `keep` of an image and the rest of another, and returns the share that is kept."""
    np.multiply(image, keep, out=result)
    result += other * (1 - keep)
    # Rounded as on the device, which averages over the pixels.
    return np.float32(np.full(image.shape[:2], keep).mean())


def _paste(image: Floats, other: Floats, bounds: list[int], result: Floats) -> np.float32:
    """CutMix: writes an image with a box (top, bottom, left, right) of another, and returns the share that is kept."""
    top, bottom, left, right = bounds
    result[...] = image
    box = result[top:bottom, left:right]
    box[...] = other[top:bottom, left:right]
    pixels = image.shape[0] * image.shape[1]
    return np.float32(pixels - box.size // 3) / np.float32(pixels)
