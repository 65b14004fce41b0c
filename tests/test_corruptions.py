"""Corruptions against their distributions and closed forms; no image depends on its batch."""

from __future__ import annotations

import inspect
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import signal, stats

import shiftvit
from sample import load_sample
from shiftvit.errors import ShiftViTError
from shiftvit.evaluation import corruptions
from shiftvit.evaluation.corruptions import CORRUPTIONS, EXTRAS, corrupt

NAMES = sorted(CORRUPTIONS)
SEVERITIES = range(1, 6)
# Their published constants trade one effect for another, so the distance need not grow with the severity.
NOT_MONOTONIC = {"elastic_transform", "frost", "glass_blur"}


@pytest.fixture(scope="module")
def real_images():
    """The packaged sample images, and test images of the committed sample: uint8 (N, 32, 32, 3)."""
    files = sorted((Path(shiftvit.__file__).parent / "pretrained" / "samples").glob("*/*.png"))
    packaged = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files])
    assert packaged.shape == (12, 32, 32, 3)
    return np.concatenate([packaged, load_sample().test.images[:116]])


def make_random_images(*shape, low=0, high=256, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape, np.uint8)


def make_grey(level, *size):
    return np.full((*size, 3), level, np.uint8)


def measure_distance(images, name, severity):
    return np.abs(corrupt(images, name, severity).astype(int) - images).mean()


def test_table_is_complete_and_its_constants_fit_the_functions():
    required = {
        *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "motion_blur", "zoom_blur", "glass_blur"),
        *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    }
    assert {*CORRUPTIONS} == required | EXTRAS
    assert len(required) == 15
    assert {*[*CORRUPTIONS][15:]} == EXTRAS  # figures and tables show them last
    assert set(CORRUPTIONS.values()) == {"noise", "blur", "weather", "digital"}
    for name, (_, function, *scales) in corruptions._TABLE.items():
        for scale in scales:
            assert len(scale) == 5, name
            for constants in scale:  # the function must accept them as arguments
                arguments = constants if isinstance(constants, tuple) else (constants,)
                inspect.signature(function).bind(None, None, *arguments)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_any_size_keep_shape_and_dtype(name):
    for size in ((8, 8), (13, 9), (8, 97), (96, 101)):
        for severity in (1, 3, 5):
            images = make_random_images(2, *size, 3)
            before = images.copy()
            result = corrupt(images, name, severity)
            assert (result.shape, result.dtype) == (images.shape, np.uint8)
            assert not np.shares_memory(result, images)
            np.testing.assert_array_equal(images, before)
            assert (result != images).any()


@pytest.mark.parametrize("name", NAMES)
def test_plain_images_and_empty_batches_are_accepted(name):
    plain = np.concatenate([make_grey(level, 1, 16, 16) for level in (0, 128, 255)])
    assert corrupt(plain, name, 5).shape == plain.shape
    assert corrupt(plain[:0], name, 5).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_memory_order_do_not_change_the_result(name, real_images, monkeypatch):
    whole = corrupt(real_images[:20], name, 4)
    monkeypatch.setattr(corruptions, "_CHUNK", 3 * 32 * 32)
    np.testing.assert_array_equal(corrupt(real_images[:20], name, 4), whole)
    turned = np.asfortranarray(real_images[:20])
    np.testing.assert_array_equal(corrupt(turned, name, 4), whole)


RANDOM_NAMES = [name for name in NAMES if name.endswith("noise")] + [
    *("motion_blur", "glass_blur", "fog", "frost", "snow", "elastic_transform")
]


@pytest.mark.parametrize("name", NAMES)
def test_random_numbers_differ_between_images_and_are_reproducible(name, real_images):
    twice = np.repeat(real_images[:1], 2, axis=0)
    result = corrupt(twice, name, 3)
    assert (result[0] != result[1]).any() == (name in RANDOM_NAMES)
    np.testing.assert_array_equal(corrupt(twice, name, 3), result)


def test_random_numbers_differ_between_corruptions():
    images = make_grey(128, 1, 32, 32)
    first, second = (corrupt(images, name, 5).ravel() - 128.0 for name in ("gaussian_noise", "speckle_noise"))
    assert np.corrcoef(first, second)[0, 1] < 0.5


# Severity


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [32, 112])
def test_distance_grows_with_severity(name, size, real_images):
    if size == 32:
        images = real_images
    else:
        enlarged = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in real_images[:12]]
        images = np.stack([np.asarray(image) for image in enlarged])
    distances = [measure_distance(images, name, severity) for severity in SEVERITIES]
    assert min(distances) > 0.5
    if name == "fog" and size == 112:
        assert distances[-1] > 1.1 * distances[0]  # the levels between make the fog rougher, not denser
    elif name not in NOT_MONOTONIC:
        # Not strictly: two severities of motion blur differ only in taps whose weight is negligible.
        assert all(more > 0.995 * less for less, more in itertools.pairwise(distances)), distances
        assert distances[-1] > 1.2 * distances[0]


# Noise, on grey levels that it does not drive out of range


@pytest.mark.parametrize(("size", "deviation"), [(32, 0.04), (112, 0.08)])
def test_gaussian_noise_has_the_published_deviation(size, deviation):
    noise = corrupt(make_grey(128, 40, size, size), "gaussian_noise", 1).astype(float) - 128
    variance = (deviation * 255) ** 2 + 1 / 12  # rounding adds 1/12
    assert abs(noise.mean()) < 5 * np.sqrt(variance / noise.size)
    assert abs(noise.var() / variance - 1) < 5 * np.sqrt(2 / noise.size)
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 5 / np.sqrt(noise.size)


@pytest.mark.parametrize(("severity", "photons"), [(2, 250), (5, 50)])
def test_shot_noise_is_poisson_distributed(severity, photons):
    variances = []
    counts = np.arange(400)
    for level in (40, 80, 120):
        result = corrupt(make_grey(level, 100, 32, 32), "shot_noise", severity).astype(float)
        chance = stats.poisson.pmf(counts, level / 255 * photons)
        outcomes = np.rint(np.minimum(255 * counts / photons, 255))
        mean = (chance * outcomes).sum()
        variance = (chance * (outcomes - mean) ** 2).sum()
        assert abs(result.mean() - mean) < 5 * np.sqrt(variance / result.size)
        assert result.var() == pytest.approx(variance, rel=0.02)
        variances.append(result.var())
    np.testing.assert_allclose(
        variances, variances[1] * np.array([0.5, 1, 1.5]), rtol=0.1
    )  # proportional to the signal, apart from rounding


def test_speckle_noise_is_proportional_to_the_level():
    for level in (60, 120):
        noise = corrupt(make_grey(level, 40, 32, 32), "speckle_noise", 2).astype(float) - level
        assert abs(noise.mean()) < 5 * noise.std() / np.sqrt(noise.size)
        assert noise.std() == pytest.approx(np.hypot(0.1 * level, np.sqrt(1 / 12)), rel=0.02)


@pytest.mark.parametrize(("severity", "fraction"), [(1, 0.01), (5, 0.07)])
def test_impulse_noise_replaces_the_published_fraction(severity, fraction):
    result = corrupt(make_grey(100, 100, 32, 32), "impulse_noise", severity)
    assert set(np.unique(result)) == {0, 100, 255}
    for value in (0, 255):
        bound = 5 * np.sqrt(fraction / 2 / result.size)
        assert abs((result == value).mean() - fraction / 2) < bound


# Blur


@pytest.mark.parametrize("name", [name for name in NAMES if CORRUPTIONS[name] == "blur"])
@pytest.mark.parametrize("size", [8, 32, 100])
def test_blur_keeps_a_plain_image(name, size):
    plain = np.broadcast_to(np.array([7, 130, 251], np.uint8), (2, size, size, 3))
    for severity in SEVERITIES:
        np.testing.assert_array_equal(corrupt(plain, name, severity), plain)


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur"])
def test_blur_keeps_the_mean_and_reduces_contrast(name, real_images):
    for severity in SEVERITIES:
        blurred = corrupt(real_images, name, severity).astype(float)
        # Rounding has a variance of 1/12, and each mean is over 1,024 values.
        np.testing.assert_allclose(blurred.mean(axis=(1, 2)), real_images.mean(axis=(1, 2)), atol=0.1)
        assert (blurred.var(axis=(1, 2, 3)) < real_images.var(axis=(1, 2, 3))).all()


def make_point(size, middle):
    image = np.zeros((1, size, size, 3), np.uint8)
    image[0, middle, middle] = 255
    return image


def test_defocus_blur_is_a_convolution_with_a_disk():
    # Severity 4 for small images: the centre and its four neighbours, almost without smoothing.
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) * 51
    spot = corrupt(make_point(33, 16), "defocus_blur", 4)[0, ..., 0]
    np.testing.assert_array_equal(spot[15:18, 15:18], cross)
    assert spot.sum() == 255
    # Severity 5 for large images: a disk of radius 10, smoothed by 5 x 5 taps.
    line = np.arange(-10, 11)
    disk = np.add.outer(line**2, line**2) <= 100
    taps = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 0.5**2))
    kernel = signal.convolve2d(disk / disk.sum(), np.outer(taps, taps) / taps.sum() ** 2)
    images = make_random_images(1, 120, 120, 3)
    expected = signal.fftconvolve(images[0], kernel[..., None], mode="valid", axes=(0, 1))
    got = corrupt(images, "defocus_blur", 5)[0, 12:-12, 12:-12]
    assert np.abs(got - expected).max() <= 0.51


def test_gaussian_blur_of_a_point():
    spot = corrupt(make_point(33, 16), "gaussian_blur", 5)[0, ..., 0]
    assert spot[16, 16] == round(255 / (2 * np.pi))  # sigma = 1: the density at its centre
    np.testing.assert_array_equal(spot, spot.T)
    np.testing.assert_array_equal(spot, spot[::-1])


def test_motion_blur_spreads_a_point_along_a_line():
    images = np.repeat(make_point(65, 32), 50, axis=0)
    slopes = []
    for image in corrupt(images, "motion_blur", 3)[..., 0].astype(float):  # sigma = 2
        assert image[32, 32] == round(255 / np.exp(-(np.arange(13) ** 2) / 8).sum())
        rows, columns = (32 - line for line in np.nonzero(image))
        assert (columns >= 0).all()  # one-sided
        assert 5 <= np.hypot(rows, columns).max() <= 9
        angles = np.radians(np.arange(-46, 46.1, 0.5))[:, None]
        across = np.abs(rows * np.cos(angles) - columns * np.sin(angles)).max(axis=1)
        assert across.min() < 0.72  # half the diagonal of a pixel
        slopes.append(np.degrees(angles[across.argmin(), 0]))
    assert min(slopes) < -30
    assert max(slopes) > 30


def test_zoom_blur_flattens_a_ramp():
    ramp = 128 + 7 * np.arange(-16, 17)
    image = np.broadcast_to(ramp.astype(np.uint8)[:, None, None], (1, 33, 33, 3))
    factors = 1 + 0.01 * np.arange(26)  # severity 5: zoom factors from 1 to 1.25, averaged with the image itself
    flatter = (1 + (1 / factors).sum()) / 27
    expected = np.broadcast_to((128 + (ramp - 128) * flatter)[:, None, None], (1, 33, 33, 3))
    assert np.abs(corrupt(image, "zoom_blur", 5) - expected).max() < 0.501
    sideways = corrupt(image.transpose(0, 2, 1, 3), "zoom_blur", 5)
    assert np.abs(sideways.transpose(0, 2, 1, 3) - expected).max() < 0.501


def test_glass_blur_takes_pixels_from_nearby():
    rows, columns = np.mgrid[:32, :32]
    image = np.stack([rows * 8, columns * 8, rows * 0], axis=2).astype(np.uint8)[None]
    for severity, rounds in ((1, 1), (4, 2)):
        result = corrupt(np.repeat(image, 4, axis=0), "glass_blur", severity).astype(float) / 8
        inner = result[:, 4:-4, 4:-4]
        tolerance = 0.1 if severity == 1 else 0.5  # severity 1 does not blur
        for axis, place in enumerate((rows, columns)):
            moved = inner[..., axis] - place[4:-4, 4:-4]
            assert moved.min() >= -rounds - tolerance
            assert moved.max() <= tolerance
            assert -0.6 * rounds < moved.mean() < -0.4 * rounds


# Weather


def test_brightness_scales_all_channels_alike():
    images = make_random_images(1, 32, 32, 3, low=20, high=120)
    value = images.max(axis=3, keepdims=True)
    np.testing.assert_allclose(corrupt(images, "brightness", 5), images * (value + 76.5) / value, atol=0.51)
    assert (corrupt(make_grey(0, 1, 8, 8), "brightness", 2) == round(0.1 * 255)).all()
    assert (corrupt(make_grey(250, 1, 8, 8), "brightness", 2) == 255).all()


def test_fog_never_exceeds_the_brightest_value(real_images):
    for severity in SEVERITIES:
        fogged = corrupt(real_images, "fog", severity)
        assert (fogged.max(axis=(1, 2, 3)) <= real_images.max(axis=(1, 2, 3))).all()
    # The result is (x + t clouds) m / (m + t), so a plain image shows the clouds, which range from 0 to 1.
    plain = corrupt(make_grey(255, 4, 32, 32), "fog", 4)[..., 0]
    np.testing.assert_array_equal(plain.min(axis=(1, 2)), 128)
    np.testing.assert_array_equal(plain.max(axis=(1, 2)), 255)


# Digital


@pytest.mark.parametrize(("severity", "kept"), [(1, 0.75), (5, 0.15)])
def test_contrast_shrinks_towards_the_mean_of_each_channel(severity, kept):
    images = make_random_images(3, 16, 16, 3)
    mean = images.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(corrupt(images, "contrast", severity), mean + kept * (images - mean), atol=0.51)


def test_pixelate_makes_blocks_of_one_colour():
    images = make_random_images(2, 96, 96, 3)
    for fraction, severity in ((0.5, 2), (0.25, 5)):
        side = round(1 / fraction)
        blocks = images.reshape(2, 96 // side, side, 96 // side, side, 3).mean(axis=(2, 4))
        expected = blocks.repeat(side, axis=1).repeat(side, axis=2)
        result = corrupt(images, "pixelate", severity)
        assert np.abs(result - expected).max() <= 1.01
        corner = result[:, ::side, ::side].repeat(side, axis=1).repeat(side, axis=2)
        np.testing.assert_array_equal(result, corner)
    # 32 rows shrink to 20 and grow to 32 again, so 19 rows differ from the one above.
    rows = corrupt(make_random_images(1, 32, 32, 3), "pixelate", 5)[0]
    assert (np.diff(rows.astype(int), axis=0) != 0).any(axis=(1, 2)).sum() == 19


@pytest.mark.parametrize(("size", "severity", "quality"), [(32, 1, 80), (32, 5, 40), (100, 1, 25), (100, 5, 7)])
def test_jpeg_compression_matches_pillow(size, severity, quality, real_images):
    image = np.asarray(Image.fromarray(real_images[0]).resize((size, size)))
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    np.testing.assert_array_equal(corrupt(image[None], "jpeg_compression", severity)[0], np.asarray(Image.open(stream)))


def test_elastic_moves_all_channels_alike(real_images):
    result = corrupt(np.repeat(real_images[:8, ..., :1], 3, axis=3), "elastic_transform", 5)
    np.testing.assert_array_equal(result[..., 0], result[..., 2])


# Errors


def test_images_that_are_too_small_fail():
    with pytest.raises(ShiftViTError, match="images of 7 x 32 pixels are too small to corrupt; use 8 x 8 or more"):
        corrupt(make_grey(1, 1, 7, 32), "fog", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fogg", 1), "there is no corruption 'fogg'; did you mean 'fog'"),
        (("fog", 0), "severity=0 must be a whole number from 1 to 5"),
        (("fog", 6), "severity=6"),
        (("fog", 1.5), "severity=1.5"),
    ],
)
def test_unknown_corruptions_and_severities_fail(arguments, message):
    with pytest.raises(ShiftViTError, match=message):
        corrupt(make_grey(1, 1, 32, 32), *arguments)


def test_images_that_are_not_bytes_fail():
    with pytest.raises(ShiftViTError, match="the images have the type float32; give uint8, from 0 to 255"):
        corrupt(np.zeros((1, 32, 32, 3), np.float32), "fog", 1)
