"""`Augment`, the settings of augmentation, and the random crop and mirroring of training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import Field

from shiftvit.config import Positive, Settings
from shiftvit.errors import ShiftViTError

# Keeps these draws apart from others of the same seed and epoch.
_STREAM = 1


@dataclass(frozen=True, eq=False)
class Draws:
    """The random choices for N images.

    Attributes:
        top, left: where each crop starts in the padded image, in pixels, int64 (N,).
        flip: whether each image is mirrored, bool (N,).
        crop: (height, width) of the crops in pixels.
    """

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    flip: NDArray[np.bool_]
    crop: tuple[int, int]

    def __getitem__(self, index: slice | NDArray[np.integer[Any]]) -> Draws:
        """Returns the draws of some of the images."""
        return Draws(self.top[index], self.left[index], self.flip[index], self.crop)


class Augment(Settings):
    """Pads, crops at a random place and mirrors, per image; `changes.PictureChanges` and `mix.Mix` do the rest.

    `draw` draws for a whole epoch at once. So the change of an image depends only on the seed, the epoch and its index,
    and not on its batch or on the thread that prepares the batch.

        draws = augment.draw(seed, epoch, len(images), 32, 32, (32, 32))
        batch = augment(images[indices], draws[indices])
    """

    pad: int = Field(0, ge=0, description="pixels added on each side before the random crop")
    pad_mode: Literal["zeros", "reflect"] = Field("zeros", description="value of the added pixels")
    random_crop: bool = Field(True, description="crop at a random position in training")
    resized_crop: float = Field(
        0.0, ge=0, le=1, description="random resized crop: smallest share of the image's area that it keeps; 0: off"
    )
    flip: bool = Field(True, description="mirror left to right with probability 1/2")
    rand_augment: float = Field(0.0, ge=0, le=10, description="RandAugment's magnitude; 0: off")
    rand_augment_std: float = Field(0.5, ge=0, description="standard deviation of the magnitude, drawn per change")
    rand_augment_layers: Positive = Field(2, description="changes per image")
    color_jitter: float = Field(
        0.0, ge=0, lt=1, description="brightness, contrast and saturation change by up to this share; 0: off"
    )
    erasing: float = Field(
        0.0, ge=0, le=1, description="random erasing: share of the images in which noise covers a box"
    )
    repeats: Positive = Field(1, description="copies of each image in a batch; an epoch sees 1 / repeats of the images")
    mixup: float = Field(0.0, ge=0, description="MixUp's alpha; 0: off")
    cutmix: float = Field(0.0, ge=0, description="CutMix' alpha; 0: off")
    mix_probability: float = Field(1.0, ge=0, le=1, description="share of the images that are mixed")
    mix_switch: float = Field(0.5, ge=0, le=1, description="share of CutMix among the mixed images, if both are on")

    @property
    def on_host_only(self) -> tuple[str, ...]:
        """The names of the settings in use that `train.loop="device"` lacks, because they need the host's processor."""
        used = ("resized_crop", "rand_augment", "color_jitter", "erasing")
        return tuple(name for name in used if getattr(self, name)) + (("repeats",) if self.repeats > 1 else ())

    def describe(self, *, crops: bool) -> str:
        """Returns the changes that are on in words, such as "random crop, horizontal flip", or "none".

        Args:
            crops: whether the preprocessing crops; otherwise a random crop without padding changes nothing.
        """
        kind = "mirrored" if self.pad_mode == "reflect" else "black"
        padding = f" with {self.pad} px of {kind} padding" if self.pad else ""
        mixes = self.mixup or self.cutmix
        parts = {
            f"random crop{padding}": self.random_crop and not self.resized_crop and (self.pad or crops),
            f"random resized crop (at least {self.resized_crop:.0%} of the area)": self.resized_crop,
            "horizontal flip": self.flip,
            f"RandAugment (magnitude {self.rand_augment:g} ± {self.rand_augment_std:g}, "
            f"{self.rand_augment_layers} changes per image)": self.rand_augment,
            f"colour jitter {self.color_jitter:g}": self.color_jitter,
            f"random erasing of {self.erasing:.0%} of the images": self.erasing,
            f"MixUp {self.mixup:g}": self.mixup,
            f"CutMix {self.cutmix:g}": self.cutmix,
            f"CutMix in {self.mix_switch:.0%} of the mixes": self.mixup and self.cutmix,
            f"{self.mix_probability:.0%} of the images mixed": mixes and self.mix_probability < 1,
            f"{self.repeats} copies of an image in a batch": self.repeats > 1,
        }
        return ", ".join(words for words, used in parts.items() if used) or "none"

    def draw(
        self,
        seed: int,
        epoch: int,
        count: int,
        height: int,
        width: int,
        crop: tuple[int, int] | None = None,
        origin: tuple[int, int] | None = None,
    ) -> Draws:
        """Draws one epoch's changes.

        Args:
            seed, epoch: 0 or more; the same pair gives the same draws.
            count: number of images.
            height, width: their size in pixels, before padding.
            crop: (height, width) of the crop in pixels; None: the size of the images.
            origin: (top, left) of a crop that is not random, in the unpadded image; None: the centre.

        Raises:
            ShiftViTError: the crop is larger than the padded image, the padding reflects more than the image holds, or
                there is padding beside a random resized crop, which cuts from the image itself.
        """
        if self.resized_crop and self.pad:
            raise ShiftViTError(
                f"pad={self.pad} has no effect with resized_crop={self.resized_crop}, which cuts from the image "
                "itself; set pad=0, or resized_crop=0"
            )
        crop = crop or (height, width)
        if self.pad_mode == "reflect" and self.pad >= min(height, width):
            raise ShiftViTError(
                f"pad={self.pad} is too wide to reflect images of {height} x {width} pixels; "
                f"use at most {min(height, width) - 1}, or pad_mode='zeros'"
            )
        margins = height + 2 * self.pad - crop[0], width + 2 * self.pad - crop[1]
        if min(margins) < 0:
            raise ShiftViTError(
                f"a crop of {crop[0]} x {crop[1]} pixels is larger than the image of {height} x {width} "
                f"with pad={self.pad}; crop less, or pad more"
            )
        # Always three rows of fractions, so that switching one change off does not alter the others.
        chance = np.random.default_rng([seed, epoch, _STREAM]).random((3, count))
        if self.random_crop:
            top, left = ((row * (m + 1)).astype(np.int64) for row, m in zip(chance, margins, strict=False))
        else:
            start = (origin[0] + self.pad, origin[1] + self.pad) if origin else [m // 2 for m in margins]
            top, left = (np.full(count, first, np.int64) for first in start)
        flip = chance[2] < 0.5 if self.flip else np.zeros(count, bool)
        return Draws(top, left, flip, crop)

    def __call__(self, images: NDArray[Any], draws: Draws) -> NDArray[Any]:
        """Crops and mirrors images.

        Args:
            images: (N, H, W, 3) of any dtype, of the size given to `draw`; not changed.
            draws: the draws of these N images, in their order.

        Returns:
            (N, *draws.crop, 3), of the same dtype.
        """
        height, width = draws.crop
        if images.shape[1:3] == draws.crop and not self.pad:  # the only window is the whole image
            whole = images.copy()
            whole[draws.flip] = images[draws.flip, :, ::-1]
            return whole
        if self.pad:
            mode: Any = "constant" if self.pad_mode == "zeros" else "reflect"
            images = np.pad(images, ((0, 0), (self.pad, self.pad), (self.pad, self.pad), (0, 0)), mode)
        count, padded_height, padded_width, channels = images.shape
        # A window is (h, w * 3), so that each of its rows is copied as one run of memory.
        rows = np.ascontiguousarray(images).reshape(count, padded_height, padded_width * channels)
        windows = sliding_window_view(rows, (height, width * channels), axis=(1, 2))
        picked = windows[np.arange(count), draws.top, draws.left * channels]  # (N, h, w * 3)
        result: NDArray[Any] = picked.reshape(count, height, width, channels)
        result[draws.flip] = result[draws.flip, :, ::-1]
        return result
