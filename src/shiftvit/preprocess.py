"""From uint8 RGB images to the model's input: the only definition of resizing, cropping and normalisation."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from shiftvit.config import Positive, Settings
from shiftvit.errors import ShiftViTError

Images = NDArray[Any]  # (N, H, W, 3), uint8 or float32 on the 0..255 scale
Floats = NDArray[np.float32]
# A bare number, or one for each of the channels R, G, B.
PerChannel = float | tuple[float, float, float]
# A bare number, or (height, width).
Size = Positive | tuple[Positive, Positive]

# A resized image with more pixels is too elongated: the model would see only a tiny part of it.
_MAX_RESIZED = 2**25
# A square image and two elongated ones stand for all shapes.
_SHAPES = ((4096, 4096), (4096, 8192), (8192, 4096))


class Preprocess(Settings):
    """Turns images into the model's input; called on uint8 (N, H, W, 3), it returns float32 (N, h, w, 3).

    Each step is a method; `pixels` does the first three:

    1. `resized`: to `resize`, with half-pixel centres. Shrinking averages over all covered pixels (antialiased),
       enlarging interpolates.
    2. `cropped`: `crop` pixels at `crop_position`, which is the top left corner unless it is set to "center"
       (the smaller half of an odd margin is then at the top or left).
    3. `rounded`: to uint8, the input of exported graphs, unless `round_pixels` is false.
    4. `normalised`: `(x - mean) / std` in each channel; `mean` and `std` are on the 0..255 scale.

    With the default settings that is `x / 255`. The result for an image does not depend on its batch.
    """

    resize: Size | None = Field(None, description="the shorter side, or (height, width), in pixels; None: no resizing")
    crop: Size | None = Field(None, description="size of the crop after resizing, in pixels; None: no crop")
    crop_position: Literal["top_left", "center"] = Field(
        "top_left", description="position of that crop; the Keras example takes the top left corner"
    )
    mean: PerChannel = Field(0.0, description="value to subtract, on the 0..255 scale")
    std: PerChannel = Field(255.0, description="value to divide by, on the 0..255 scale")
    interpolation: Literal["nearest", "bilinear", "bicubic"] = Field("bilinear", description="how to resize")
    round_pixels: bool = Field(True, description="round resized pixels to whole values, as exported graphs take them")
    srgb: bool = Field(
        False,
        description="convert pictures that embed a colour profile, such as Display P3, to sRGB as they are decoded",
    )

    @model_validator(mode="after")
    def _check_std(self) -> Self:
        values = self.std if isinstance(self.std, tuple) else (self.std,)
        if min(values) <= 0:
            raise ValueError(f"std={self.std} must be above 0 in every channel; 255.0 scales pixels to 0..1")
        return self

    def __call__(self, images: Images) -> Floats:
        """Resizes, crops, rounds and normalises.

        Args:
            images: uint8 (N, H, W, 3), RGB; N may be 0.

        Returns:
            float32 (N, h, w, 3), where `(h, w)` is `output_shape(H, W)`.

        Raises:
            ShiftViTError: the images have another dtype or shape, or are smaller than the crop.
        """
        return self.normalised(self.pixels(images) if self.round_pixels else self._unrounded(images))

    def pixels(self, images: Images) -> NDArray[np.uint8]:
        """Resizes, crops and rounds: makes the input of an exported graph, which normalises by itself.

        Args:
            images: uint8 (N, H, W, 3), RGB; N may be 0.

        Returns:
            uint8 (N, h, w, 3), where `(h, w)` is `output_shape(H, W)`. Halves are rounded to the even value.

        Raises:
            ShiftViTError: the images have another dtype or shape, or are smaller than the crop.
        """
        return self.rounded(self._unrounded(images))

    @property
    def decoding(self) -> dict[str, Any]:
        """Keyword arguments of `shiftvit.data.decode.images.decode` for files with this preprocessing.

        A JPEG is decoded at a half, a quarter or an eighth of its size if that is at least twice the size after
        resizing. That is faster for photographs, and differs slightly from decoding it whole.
        """
        least = None
        if self.resize is not None:
            resize, crop = make_pair(self.resize), make_pair(self.crop or 1)
            least = 2 * max(resize[0], crop[0]), 2 * max(resize[1], crop[1])
        return {"at_least": least, "srgb": self.srgb}

    def rounded(self, images: Images) -> NDArray[np.uint8]:
        """Only rounds: resized (N, h, w, 3) -> uint8 of the same shape."""
        if images.dtype == np.uint8:
            return images
        result = np.rint(images)
        return np.clip(result, 0, 255, out=result).astype(np.uint8)  # bicubic overshoots

    def _unrounded(self, images: Any) -> Images:
        if not isinstance(images, np.ndarray):
            kind = type(images).__name__
            raise ShiftViTError(f"images are a {kind}; give a NumPy array, as of np.asarray: uint8 (N, H, W, 3)")
        self.check(images)
        fits = self.resized_shape(*images.shape[1:3]) == images.shape[1:3]
        return self.cropped(images if fits else self.resized(images))

    def fitted(self, height: int, width: int) -> Self:
        """Returns settings that make `height` x `width` pixels of any image, the input of a model.

        Settings without a crop are those of a model that was trained on images of one size. The result then scales an
        image until it covers `height` x `width`, and crops the centre; images of that size do not change. Settings
        with a crop are returned as they are.

        Raises:
            ShiftViTError: the settings make another size.
        """
        if self.crop is None and self.resize in (None, min(height, width)):
            update = {"resize": min(height, width), "crop": (height, width), "crop_position": "center"}
            return self.model_copy(update=update)
        for shape in _SHAPES:
            if (found := self.output_shape(*shape)) != (height, width):
                raise ShiftViTError(
                    f"this preprocessing (resize={self.resize}, crop={self.crop}) turns an image of "
                    f"{shape[0]} x {shape[1]} into {found[0]} x {found[1]} pixels, but the model takes "
                    f"{height} x {width}; change resize and crop to match"
                )
        return self

    @property
    def fixed_shape(self) -> tuple[int, int] | None:
        """The (height, width) in pixels that every image gets; None: it depends on the image."""
        found = {self.output_shape(*shape) for shape in _SHAPES}
        return None if len(found) > 1 else found.pop()

    @property
    def rest(self) -> Self:
        """The settings for images that `pixels` made: only the normalisation is left."""
        return self.model_copy(update={"resize": None, "crop": None, "round_pixels": True})

    def check(self, images: Any) -> None:
        """Raises ShiftViTError unless `images` are uint8 (N, H, W, 3) and large enough for the crop."""
        if not all(hasattr(images, name) for name in ("dtype", "ndim", "shape")):
            kind = type(images).__name__
            raise ShiftViTError(f"images are a {kind}; give a NumPy array, uint8 (N, H, W, 3)")
        if images.dtype != np.uint8:
            raise ShiftViTError(f"images are {images.dtype}; give uint8, 0..255 (N, H, W, 3)")
        if images.ndim != 4 or images.shape[3] != 3:
            raise ShiftViTError(
                f"images have the shape {images.shape}; give (N, H, W, 3): a single image as images[None], grey images "
                "with their channel repeated three times"
            )
        self.output_shape(*images.shape[1:3])

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Returns (height, width) in pixels after the resizing of a `height` x `width` image.

        A bare number is the shorter side; the longer one follows from the aspect ratio, rounded down. If a crop of
        unequal sides needs more, as 24 x 20 of a square image, the image is resized until it covers the crop.
        """
        if min(height, width) < 1:
            raise ShiftViTError(f"images of {height} x {width} pixels are empty; give at least 1 x 1")
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        shorter = min(height, width)
        size = self.resize * height // shorter, self.resize * width // shorter
        least = make_pair(self.crop or 1)
        if self.resize >= min(least):
            if size[0] < least[0]:
                size = least[0], least[0] * width // height
            elif size[1] < least[1]:
                size = least[1] * height // width, least[1]
        if size[0] * size[1] > max(_MAX_RESIZED, 16 * self.resize**2):
            raise ShiftViTError(
                f"an image of {height} x {width} pixels is too elongated: with its shorter side at {self.resize} "
                f"it would have {size[0]} x {size[1]}; crop it first"
            )
        return size

    def output_shape(self, height: int, width: int) -> tuple[int, int]:
        """Returns (h, w), the pixels that the model gets from an image of `height` x `width` pixels.

        Raises:
            ShiftViTError: the image is empty, or smaller than the crop after resizing.
        """
        size = self.resized_shape(height, width)
        if self.crop is None:
            return size
        crop = make_pair(self.crop)
        if crop[0] > size[0] or crop[1] > size[1]:
            origin = f" ({height} x {width} before resize={self.resize})" if self.resize else ""
            raise ShiftViTError(
                f"crop={self.crop} is larger than the image of {size[0]} x {size[1]} pixels{origin}; "
                "crop less, or resize to at least the crop"
            )
        return crop

    def crop_origin(self, height: int, width: int) -> tuple[int, int]:
        """Returns (top, left), the pixel of a resized image of `height` x `width` where the crop starts."""
        if self.crop is None or self.crop_position == "top_left":
            return 0, 0
        crop_height, crop_width = make_pair(self.crop)
        return (height - crop_height) // 2, (width - crop_width) // 2

    def resized(self, images: Images) -> Floats:
        """Only resizes: (N, H, W, 3) -> float32 (N, *resized_shape(H, W), 3), on the same 0..255 scale."""
        size = images.shape[1:3]
        target = self.resized_shape(*size)
        if target == size:
            return images.astype(np.float32)
        if self.interpolation == "nearest":
            rows, columns = (_find_nearest(old, new) for old, new in zip(size, target, strict=True))
            return images[:, rows[:, None], columns].astype(np.float32)
        from PIL import Image

        result = np.empty((len(images), *target, 3), np.float32)
        resample = Image.Resampling[self.interpolation.upper()]
        # One plane of floats at a time, because Pillow rounds twice when it resizes in colour.
        for image, resized in zip(images, result, strict=True):
            for channel, plane in enumerate(Image.fromarray(image).split()):
                resized[:, :, channel] = np.asarray(plane.convert("F").resize(target[::-1], resample))
        return result

    def cropped(self, images: Images) -> Images:
        """Only crops: resized (N, H, W, 3) -> a view of (N, h, w, 3) at `crop_position`."""
        if self.crop is None:
            return images
        height, width = make_pair(self.crop)
        top, left = self.crop_origin(*images.shape[1:3])
        return images[:, top : top + height, left : left + width]

    def normalised(self, images: Images) -> Floats:
        """Only normalises: uint8 or float32 (N, h, w, 3) -> a new float32 array (N, h, w, 3)."""
        result = images.astype(np.float32, order="C")
        # Whole rows of pixels, because inner loops over 3 channels are slow.
        rows = result.reshape(-1, images.shape[2] * 3)
        if np.any(self.mean):
            rows -= _make_row(self.mean, images.shape[2])
        rows /= _make_row(self.std, images.shape[2])
        return result


def shrink(images: Floats, height: int, width: int) -> Floats:
    """Returns finished images (N, H, W, C) at `height` x `width` pixels, averaged over all covered pixels.

    The filter is that of `Preprocess.resized` in bilinear mode.
    """
    count, old_height, old_width, channels = images.shape
    rows, columns = _find_weights(old_height, height), _find_weights(old_width, width)
    # Many small products: for a large one, BLAS would start threads, which disturb those of the training step.
    lower = rows @ images.reshape(count, old_height, old_width * channels)
    result: Floats = columns @ lower.reshape(count, height, old_width, channels)
    return result


def make_pair(size: Size) -> tuple[int, int]:
    """Returns (height, width)."""
    return size if isinstance(size, tuple) else (size, size)


def _make_row(value: float | tuple[float, float, float], width: int) -> Floats:
    """Returns a per-channel value for each element of a row: (width * 3,), or () for a bare number."""
    row = np.asarray(value, dtype=np.float32)
    return np.tile(row, width) if row.ndim else row


@lru_cache(maxsize=64)
def _find_weights(old: int, new: int) -> Floats:
    """Returns how much each of `old` pixels counts for each of `new`: (new, old)."""
    from PIL import Image

    return np.asarray(Image.fromarray(np.eye(old, dtype=np.float32)).resize((old, new), Image.Resampling.BILINEAR))


@lru_cache(maxsize=64)
def _find_nearest(old: int, new: int) -> NDArray[np.int64]:
    """Returns which of `old` pixels each of `new` takes: the one that its centre falls in."""
    return (2 * np.arange(new) + 1) * old // (2 * new)
