"""Common corruptions of images, to measure robustness: noise, blur, weather and digital faults in five severities."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from shiftvit.errors import ShiftViTError, suggest

MIN_SIDE = 8  # pixels
SMALL_SIDE = 96  # pixels; images with a shorter side below it take the constants of CIFAR-10-C
_STREAM = 3  # keeps these draws apart from others of the same seed
_CHUNK = 2**17  # pixels that are corrupted at a time, so that memory does not grow with N

_Array = NDArray[np.floating[Any]]
_Chance = list[np.random.Generator]  # one for each image


def corrupt(images: NDArray[np.uint8], name: str, severity: int) -> NDArray[np.uint8]:
    """Corrupts images as Hendrycks and Dietterich (ICLR 2019, section 3) do, to compare models with each other.

    This does not reproduce the published data sets: random draws, resampling, borders and rounding differ, and frost is
    drawn, not photographed. The figures can be compared with each other, but not with published tables for CIFAR-10-C
    or ImageNet-C.

    Images with a shorter side below 96 pixels take the constants of CIFAR-10-C, others those of ImageNet-C, which were
    chosen for 32 and 224 pixels. Lengths are in pixels at any size, except those of `elastic_transform` and `frost`,
    which are shares of the shorter side. A higher severity is usually harder, with exceptions in the published
    constants: `glass_blur` blurs more but shuffles less, and `elastic_transform` bends ever smaller parts by less.

    Args:
        images: uint8 (N, H, W, 3), RGB, H and W at least 8 pixels.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.

    Returns:
        uint8 (N, H, W, 3), a new array. The random draws depend only on the name and the index of an image, so the same
        images give the same result with the same versions of NumPy, SciPy and Pillow.

    Raises:
        ShiftViTError: the images are too small or not uint8, or there is no such corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise ShiftViTError(f"there is no corruption {name!r}; {suggest(name, CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise ShiftViTError(f"severity={severity!r} must be a whole number from 1 to 5")
    if images.dtype != np.uint8:
        raise ShiftViTError(f"the images have the type {images.dtype}; give uint8, from 0 to 255")
    count, height, width = images.shape[:3]
    if min(height, width) < MIN_SIDE:
        raise ShiftViTError(
            f"images of {height} x {width} pixels are too small to corrupt; use {MIN_SIDE} x {MIN_SIDE} or more"
        )
    _, function, small, large = _TABLE[name]
    constants = (small if min(height, width) < SMALL_SIDE else large)[severity - 1]
    result = np.empty(images.shape, np.uint8)
    step = max(1, _CHUNK // (height * width))
    for first in range(0, count, step):
        chunk = images[first : first + step]
        # All severities share their random draws, so that they differ in severity alone.
        seeds = ([0, _STREAM, zlib.crc32(name.encode()), first + index] for index in range(len(chunk)))
        chance = [np.random.default_rng(seed) for seed in seeds]
        x = function(chunk / np.float32(255), chance, *(constants if isinstance(constants, tuple) else (constants,)))
        result[first : first + step] = _to_bytes(x)
    return result


def _to_bytes(x: _Array) -> NDArray[np.uint8]:
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def _draw(chance: _Chance, one: Callable[[np.random.Generator], Any]) -> _Array:
    """Returns what `one` draws for each image, stacked: (n, ...)."""
    return np.stack([one(generator) for generator in chance])


# Each function takes float32 images (n, H, W, 3) from 0 to 1, a generator for each image, and the constants of the
# corruption. It returns floats, which may be outside of that range. None uses BLAS, which would round differently in
# batches of another size.


def _gaussian_noise(x: _Array, chance: _Chance, deviation: float) -> _Array:
    return x + np.float32(deviation) * _draw(chance, lambda one: one.standard_normal(x.shape[1:], np.float32))


def _speckle_noise(x: _Array, chance: _Chance, deviation: float) -> _Array:
    return x + x * _gaussian_noise(np.zeros_like(x), chance, deviation)


def _shot_noise(x: _Array, chance: _Chance, photons: float) -> _Array:
    """Replaces each value by a Poisson variable: white is that many photons."""
    return np.stack([one.poisson(image * photons) for one, image in zip(chance, x, strict=True)]) / photons


def _impulse_noise(x: _Array, chance: _Chance, share: float) -> _Array:
    """Replaces that share of the values, in each channel alone, by 0 or 1 with equal probability."""
    draw = _draw(chance, lambda one: one.random(x.shape[1:], np.float32))
    return np.where(draw < share / 2, 0, np.where(draw < share, 1, x))


def _gaussian_blur(x: _Array, _: _Chance, sigma: float) -> _Array:
    blurred: _Array = ndimage.gaussian_filter(x, sigma, axes=(1, 2), mode="reflect")  # this mode keeps the mean
    return blurred


def _defocus_blur(x: _Array, _: _Chance, radius: float, softness: float) -> _Array:
    """Convolves with a disk that is softened by a Gaussian of 3 or 5 taps."""
    reach = int(radius) + 2
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float64)
    kernel = ndimage.gaussian_filter(disk / disk.sum(), softness, radius=1 if radius <= 8 else 2, mode="constant")
    blurred: _Array = ndimage.correlate(x, kernel[None, :, :, None], mode="reflect")
    return blurred


def _motion_blur(x: _Array, chance: _Chance, radius: int, sigma: float, degrees: tuple[int, int] = (-45, 45)) -> _Array:
    """Smears each image to one side along a random angle, as ImageMagick does: a half Gaussian of 2 radius + 1 taps."""
    height, width = x.shape[1:3]
    reach = 2 * radius
    taps = np.arange(reach + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    result = np.zeros_like(x)
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "edge")
    for image, one, blurred in zip(padded, chance, result, strict=True):
        angle = np.radians(one.uniform(*degrees))
        down, right = (np.rint(taps * part).astype(int) + reach for part in (np.sin(angle), np.cos(angle)))
        for weight, row, column in zip(weights, down, right, strict=True):
            blurred += weight * image[row : row + height, column : column + width]
    return result


def _zoom(x: _Array, factor: float) -> _Array:
    """Enlarges images about their centre, bilinearly, and cuts off what leaves the frame."""
    # ndimage.affine_transform would take ten times as long.
    for axis in (1, 2):
        centre = (x.shape[axis] - 1) / 2
        place = centre + (np.arange(x.shape[axis]) - centre) / factor
        low = place.astype(int)
        share = np.expand_dims((place - low).astype(np.float32), (1, 2) if axis == 1 else 1)
        x = x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, x.shape[axis] - 1), axis) * share
    return x


def _zoom_blur(x: _Array, _: _Chance, step: float, steps: int) -> _Array:
    """Averages the image, counted twice, and its enlargements, each by `step` more."""
    return sum((_zoom(x, 1 + step * number) for number in range(1, steps + 1)), 2 * x) / np.float32(steps + 2)


def _glass_blur(x: _Array, chance: _Chance, sigma: float, reach: int, rounds: int) -> _Array:
    """Gives each pixel the colour of one near it, between two slight blurs."""
    # The published program intends to swap two pixels, but its assignment of NumPy views copies one.
    count, height, width = x.shape[:3]
    moves = _draw(chance, lambda one: one.integers(-reach, reach, (rounds, 2, height, width)))
    x = _gaussian_blur(x, chance, sigma)
    for down, right in moves.transpose(1, 2, 0, 3, 4):  # (rounds, 2, n, H, W)
        rows = np.clip(np.arange(height)[:, None] + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        x = x[np.arange(count)[:, None, None], rows, columns]
    return _gaussian_blur(x, chance, sigma)


def _draw_clouds(x: _Array, chance: _Chance, decay: float) -> _Array:
    """Returns noise (n, H, W, 1) from 0 to 1 whose amplitude falls by `decay` squared from an octave to the next.

    The published midpoint displacement (plasma fractal) falls in the same way. Shaping a spectrum shows no grid.
    """
    size = x.shape[1:3]
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])) * max(size)
    shape = np.maximum(frequency, 1) ** -(1 + 2 * np.log2(decay)) * (frequency > 0)
    field = _draw(chance, lambda one: np.fft.irfft2(np.fft.rfft2(one.standard_normal(size)) * shape, size))
    field = (field - field.min(axis=(1, 2), keepdims=True))[..., None]
    clouds: _Array = field / field.max(axis=(1, 2), keepdims=True)
    return clouds


def _fog(x: _Array, chance: _Chance, thickness: float, decay: float) -> _Array:
    most: _Array = x.max(axis=(1, 2, 3), keepdims=True)
    return (x + thickness * _draw_clouds(x, chance, decay)) * most / (most + thickness)


def _frost(x: _Array, chance: _Chance, kept: float, added: float) -> _Array:
    """Lays drawn ice over the image: needles in four directions, each thick in some places and thin in others."""
    side = min(x.shape[1:3])
    ice = np.zeros_like(x[..., :1])
    for _ in range(4):
        grains = _zoom(np.maximum(_gaussian_noise(ice * 0, chance, 1), 0), max(1, side / 96))
        needles = _motion_blur(grains, chance, max(2, side // 16), side / 16, (0, 180))
        needles = needles / needles.max(axis=(1, 2, 3), keepdims=True)
        ice = np.maximum(ice, needles**2 * _draw_clouds(x, chance, 1.4).astype(np.float32) * 2)
    frosted: _Array = kept * x + added * np.clip(0.15 + ice, 0, 1) * np.array([0.9, 0.96, 1.0])
    return frosted


def _snow(x: _Array, chance: _Chance, mean: float, deviation: float, zoom: float, *rest: float) -> _Array:
    """Adds bright, smeared flakes over a paler image."""
    least, radius, sigma, kept = rest
    flakes: _Array = np.float32(mean) + _gaussian_noise(np.zeros_like(x[..., :1]), chance, deviation)
    flakes = np.clip(_zoom(flakes, zoom), 0, 1)
    flakes = _motion_blur(np.where(flakes < least, 0, flakes), chance, int(radius), sigma, (-135, -45))
    grey = x[..., :1] * 0.299 + x[..., 1:2] * 0.587 + x[..., 2:] * 0.114
    pale: _Array = np.maximum(x, grey * 1.5 + 0.5)
    return kept * x + (1 - kept) * pale + flakes + flakes[:, ::-1, ::-1]


def _brightness(x: _Array, _: _Chance, more: float) -> _Array:
    """Adds to the value of HSV, which is the largest channel. This scales all channels by one factor."""
    value: _Array = x.max(axis=3, keepdims=True)
    brighter: _Array = np.where(value > 0, x / np.where(value > 0, value, 1), 1) * np.minimum(value + more, 1)
    return brighter


def _contrast(x: _Array, _: _Chance, kept: float) -> _Array:
    # The mean of whole numbers is exact.
    mean: _Array = np.rint(x * 255).mean(axis=(1, 2), keepdims=True, dtype=np.float64) / 255
    return mean + kept * (x - mean)


def _elastic_transform(x: _Array, chance: _Chance, amount: float, sigma: float, affine: float) -> _Array:
    """Moves pixels by a random affine map, given by three points, and a smooth random field."""
    height, width = x.shape[1:3]
    side = min(height, width)
    third = side // 3
    down, right = np.arange(height)[:, None], np.arange(width)
    one, three = ((line - extent // 2 + third) / (2 * third) for line, extent in ((down, height), (right, width)))
    weights = np.stack(np.broadcast_arrays(one, three - one, 1 - three))  # (3, H, W), of the points
    result = np.empty_like(x)
    for image, generator, moved in zip(x, chance, result, strict=True):
        points = generator.uniform(-affine * side, affine * side, (2, 3, 1, 1))
        field = generator.uniform(-1, 1, (2, height, width))
        field = amount * side * ndimage.gaussian_filter(field, sigma * side, axes=(1, 2), mode="reflect", truncate=3)
        places = field + (points * weights).sum(axis=1) + np.stack(np.broadcast_arrays(down, right))
        for channel in range(3):
            moved[..., channel] = ndimage.map_coordinates(image[..., channel], places, order=1, mode="reflect")
    return result


def _pixelate(x: _Array, _: _Chance, share: float) -> _Array:
    size = x.shape[2], x.shape[1]
    less = int(size[0] * share), int(size[1] * share)
    box = Image.Resampling.BOX
    images = [Image.fromarray(one).resize(less, box).resize(size, box) for one in _to_bytes(x)]
    return np.stack([np.asarray(image) for image in images]) / 255


def _jpeg_compression(x: _Array, _: _Chance, quality: int) -> _Array:
    images = []
    for one in _to_bytes(x):
        Image.fromarray(one).save(stream := io.BytesIO(), "JPEG", quality=quality)
        images.append(np.asarray(Image.open(stream)))
    return np.stack(images) / 255


# The family, the function, and its constants in CIFAR-10-C and in ImageNet-C, a tuple for each severity. Source:
# make_cifar_c.py and make_imagenet_c.py of github.com/hendrycks/robustness, which belong to the paper.
# fmt: off
_TABLE: dict[str, tuple[str, Callable[..., _Array], tuple[Any, ...], tuple[Any, ...]]] = {
    "gaussian_noise": ("noise", _gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": ("noise", _shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": ("noise", _impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": ("blur", _defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
                     ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "motion_blur": ("blur", _motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
                    ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": ("blur", _zoom_blur, ((0.01, 6), (0.01, 11), (0.01, 15), (0.01, 20), (0.01, 25)),
                  ((0.01, 11), (0.01, 15), (0.02, 10), (0.02, 12), (0.03, 10))),
    "glass_blur": ("blur", _glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
                   ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "fog": ("weather", _fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
            ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "frost": ("weather", _frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
              ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "snow": ("weather", _snow,
             ((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
              (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
             ((0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
              (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55))),
    "brightness": ("weather", _brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": ("digital", _contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": ("digital", _elastic_transform,  # shares of the shorter side; of 244 for 224 in ImageNet-C
                          ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
                          ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))),
    "pixelate": ("digital", _pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": ("digital", _jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    "speckle_noise": ("noise", _speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian_blur": ("blur", _gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)),
}
# fmt: on

CORRUPTIONS: dict[str, str] = {name: family for name, (family, *_) in _TABLE.items()}
# The others are the paper's benchmark. These are two of the four extra ones, on which methods may be tuned.
EXTRAS = frozenset({"speckle_noise", "gaussian_blur"})
