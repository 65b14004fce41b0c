"""Corruptions: their distributions and closed forms, independence from the batch, and errors in one line."""

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
from shiftvit.evaluation.corruptions import CORRUPTIONS, corrupt

ALL = sorted(CORRUPTIONS)
SEVERITIES = range(1, 6)
# Those whose published constants trade one effect for another, so that pixels need not move farther.
TRADES = {"elastic_transform", "frost", "glass_blur"}


@pytest.fixture(scope="module")
def real():
    """The packaged sample images, and test images of the committed sample: uint8 (N, 32, 32, 3)."""
    files = sorted((Path(shiftvit.__file__).parent / "pretrained" / "samples").glob("*/*.png"))
    packaged = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files])
    assert packaged.shape == (12, 32, 32, 3)
    return np.concatenate([packaged, load_sample().test.images[:116]])


def noise_images(*shape, low=0, high=256, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape, np.uint8)


def grey(level, *size):
    return np.full((*size, 3), level, np.uint8)


def distance(images, name, severity):
    return np.abs(corrupt(images, name, severity).astype(int) - images).mean()


def test_the_table():
    required = {
        *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "motion_blur", "zoom_blur", "glass_blur"),
        *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    }
    assert required <= set(CORRUPTIONS)
    assert set(CORRUPTIONS.values()) == {"noise", "blur", "weather", "digital"}
    for name, (_, function, *scales) in corruptions._TABLE.items():
        for scale in scales:
            assert len(scale) == 5, name
            for constants in scale:  # each is a call that the function takes
                arguments = constants if isinstance(constants, tuple) else (constants,)
                inspect.signature(function).bind(None, None, *arguments)


@pytest.mark.parametrize("name", ALL)
def test_any_size_keeps_shape_dtype_and_input(name):
    for size in ((8, 8), (13, 9), (8, 97), (96, 101)):
        for severity in (1, 3, 5):
            images = noise_images(2, *size, 3)
            before = images.copy()
            result = corrupt(images, name, severity)
            assert (result.shape, result.dtype) == (images.shape, np.uint8)
            assert not np.shares_memory(result, images)
            np.testing.assert_array_equal(images, before)
            assert (result != images).any()


@pytest.mark.parametrize("name", ALL)
def test_no_image_is_too_plain(name):
    plain = np.concatenate([grey(level, 1, 16, 16) for level in (0, 128, 255)])
    assert corrupt(plain, name, 5).shape == plain.shape
    assert corrupt(plain[:0], name, 5).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("name", ALL)
def test_batches_longer_than_what_is_corrupted_at_a_time(name, real, monkeypatch):
    whole = corrupt(real[:20], name, 4)
    monkeypatch.setattr(corruptions, "_CHUNK", 3 * 32 * 32)
    np.testing.assert_array_equal(corrupt(real[:20], name, 4), whole)
    turned = np.asfortranarray(real[:20])
    np.testing.assert_array_equal(corrupt(turned, name, 4), whole)


RANDOM = [name for name in ALL if name.endswith("noise")] + [
    *("motion_blur", "glass_blur", "fog", "frost", "snow", "elastic_transform")
]


@pytest.mark.parametrize("name", ALL)
def test_chance_is_drawn_for_each_image_and_repeats(name, real):
    twice = np.repeat(real[:1], 2, axis=0)
    result = corrupt(twice, name, 3)
    assert (result[0] != result[1]).any() == (name in RANDOM)
    np.testing.assert_array_equal(corrupt(twice, name, 3), result)


# Whether it is harder


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [32, 112])
def test_severity_moves_real_images_farther(name, size, real):
    if size == 32:
        images = real
    else:
        enlarged = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in real[:12]]
        images = np.stack([np.asarray(image) for image in enlarged])
    distances = [distance(images, name, severity) for severity in SEVERITIES]
    assert min(distances) > 0.5
    if name == "fog" and size == 112:
        assert distances[-1] > 1.1 * distances[0]  # in between its fog grows rougher, not thicker
    elif name not in TRADES:
        # Not strictly: of two motion blurs the constants differ in taps that weigh nothing.
        assert all(more > 0.995 * less for less, more in itertools.pairwise(distances)), distances
        assert distances[-1] > 1.2 * distances[0]


# Noise, on grey that it does not drive out of range


@pytest.mark.parametrize(("size", "deviation"), [(32, 0.04), (112, 0.08)])
def test_gaussian_noise_has_its_deviation(size, deviation):
    noise = corrupt(grey(128, 40, size, size), "gaussian_noise", 1).astype(float) - 128
    variance = (deviation * 255) ** 2 + 1 / 12  # the rounding's
    assert abs(noise.mean()) < 5 * np.sqrt(variance / noise.size)
    assert abs(noise.var() / variance - 1) < 5 * np.sqrt(2 / noise.size)
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 5 / np.sqrt(noise.size)


@pytest.mark.parametrize(("severity", "photons"), [(2, 250), (5, 50)])
def test_shot_noise_counts_photons(severity, photons):
    variances = []
    counts = np.arange(400)
    for level in (40, 80, 120):
        result = corrupt(grey(level, 100, 32, 32), "shot_noise", severity).astype(float)
        chance = stats.poisson.pmf(counts, level / 255 * photons)
        outcomes = np.rint(np.minimum(255 * counts / photons, 255))
        mean = (chance * outcomes).sum()
        variance = (chance * (outcomes - mean) ** 2).sum()
        assert abs(result.mean() - mean) < 5 * np.sqrt(variance / result.size)
        assert result.var() == pytest.approx(variance, rel=0.02)
        variances.append(result.var())
    np.testing.assert_allclose(
        variances, variances[1] * np.array([0.5, 1, 1.5]), rtol=0.1
    )  # as the signal, but for rounding


def test_speckle_noise_deviates_with_the_light():
    for level in (60, 120):
        noise = corrupt(grey(level, 40, 32, 32), "speckle_noise", 2).astype(float) - level
        assert abs(noise.mean()) < 5 * noise.std() / np.sqrt(noise.size)
        assert noise.std() == pytest.approx(np.hypot(0.1 * level, np.sqrt(1 / 12)), rel=0.02)


@pytest.mark.parametrize(("severity", "share"), [(1, 0.01), (5, 0.07)])
def test_impulse_noise_replaces_its_share(severity, share):
    result = corrupt(grey(100, 100, 32, 32), "impulse_noise", severity)
    assert set(np.unique(result)) == {0, 100, 255}
    for value in (0, 255):
        bound = 5 * np.sqrt(share / 2 / result.size)
        assert abs((result == value).mean() - share / 2) < bound


# Blur


@pytest.mark.parametrize("name", [name for name in ALL if CORRUPTIONS[name] == "blur"])
@pytest.mark.parametrize("size", [8, 32, 100])
def test_blur_keeps_a_plain_image(name, size):
    plain = np.broadcast_to(np.array([7, 130, 251], np.uint8), (2, size, size, 3))
    for severity in SEVERITIES:
        np.testing.assert_array_equal(corrupt(plain, name, severity), plain)


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur"])
def test_blur_keeps_the_mean_and_takes_contrast(name, real):
    for severity in SEVERITIES:
        blurred = corrupt(real, name, severity).astype(float)
        # Rounding errs by 1/12 in variance, over 1,024 values.
        np.testing.assert_allclose(blurred.mean(axis=(1, 2)), real.mean(axis=(1, 2)), atol=0.1)
        assert (blurred.var(axis=(1, 2, 3)) < real.var(axis=(1, 2, 3))).all()


def point(size, middle):
    image = np.zeros((1, size, size, 3), np.uint8)
    image[0, middle, middle] = 255
    return image


def test_defocus_of_a_point_is_the_lens():
    # Severity 4 of small images: the centre and its four neighbours, all but unsoftened.
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) * 51
    spot = corrupt(point(33, 16), "defocus_blur", 4)[0, ..., 0]
    np.testing.assert_array_equal(spot[15:18, 15:18], cross)
    assert spot.sum() == 255
    # Severity 5 of large ones against a convolution: a disk of radius 10, softened by 5 x 5 taps.
    line = np.arange(-10, 11)
    disk = np.add.outer(line**2, line**2) <= 100
    taps = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 0.5**2))
    kernel = signal.convolve2d(disk / disk.sum(), np.outer(taps, taps) / taps.sum() ** 2)
    images = noise_images(1, 120, 120, 3)
    expected = signal.fftconvolve(images[0], kernel[..., None], mode="valid", axes=(0, 1))
    got = corrupt(images, "defocus_blur", 5)[0, 12:-12, 12:-12]
    assert np.abs(got - expected).max() <= 0.51


def test_gaussian_blur_of_a_point():
    spot = corrupt(point(33, 16), "gaussian_blur", 5)[0, ..., 0]
    assert spot[16, 16] == round(255 / (2 * np.pi))  # sigma = 1: the density at its centre
    np.testing.assert_array_equal(spot, spot.T)
    np.testing.assert_array_equal(spot, spot[::-1])


def test_motion_smears_a_point_along_a_line():
    images = np.repeat(point(65, 32), 50, axis=0)
    slopes = []
    for image in corrupt(images, "motion_blur", 3)[..., 0].astype(float):  # sigma = 2
        assert image[32, 32] == round(255 / np.exp(-(np.arange(13) ** 2) / 8).sum())
        rows, columns = (32 - line for line in np.nonzero(image))
        assert (columns >= 0).all()  # one-sided
        assert 5 <= np.hypot(rows, columns).max() <= 9
        angles = np.radians(np.arange(-46, 46.1, 0.5))[:, None]
        across = np.abs(rows * np.cos(angles) - columns * np.sin(angles)).max(axis=1)
        assert across.min() < 0.72  # half a pixel's diagonal
        slopes.append(np.degrees(angles[across.argmin(), 0]))
    assert min(slopes) < -30
    assert max(slopes) > 30


def test_zoom_blur_of_a_ramp_is_a_flatter_ramp():
    ramp = 128 + 7 * np.arange(-16, 17)
    image = np.broadcast_to(ramp.astype(np.uint8)[:, None, None], (1, 33, 33, 3))
    factors = 1 + 0.01 * np.arange(26)  # severity 5: from 1 to 1.25, and the image itself once more
    flatter = (1 + (1 / factors).sum()) / 27
    expected = np.broadcast_to((128 + (ramp - 128) * flatter)[:, None, None], (1, 33, 33, 3))
    assert np.abs(corrupt(image, "zoom_blur", 5) - expected).max() < 0.501
    sideways = corrupt(image.transpose(0, 2, 1, 3), "zoom_blur", 5)
    assert np.abs(sideways.transpose(0, 2, 1, 3) - expected).max() < 0.501


def test_glass_takes_its_pixels_from_near():
    rows, columns = np.mgrid[:32, :32]
    image = np.stack([rows * 8, columns * 8, rows * 0], axis=2).astype(np.uint8)[None]
    for severity, rounds in ((1, 1), (4, 2)):
        result = corrupt(np.repeat(image, 4, axis=0), "glass_blur", severity).astype(float) / 8
        inner = result[:, 4:-4, 4:-4]
        tolerance = 0.1 if severity == 1 else 0.5  # which severity 1 does not blur
        for axis, place in enumerate((rows, columns)):
            moved = inner[..., axis] - place[4:-4, 4:-4]
            assert moved.min() >= -rounds - tolerance
            assert moved.max() <= tolerance
            assert -0.6 * rounds < moved.mean() < -0.4 * rounds


# Weather


def test_brightness_raises_every_channel_alike():
    images = noise_images(1, 32, 32, 3, low=20, high=120)
    value = images.max(axis=3, keepdims=True)
    np.testing.assert_allclose(corrupt(images, "brightness", 5), images * (value + 76.5) / value, atol=0.51)
    assert (corrupt(grey(0, 1, 8, 8), "brightness", 2) == round(0.1 * 255)).all()
    assert (corrupt(grey(250, 1, 8, 8), "brightness", 2) == 255).all()


def test_fog_hides_contrast_below_the_brightest_value(real):
    for severity in SEVERITIES:
        fogged = corrupt(real, "fog", severity)
        assert (fogged.max(axis=(1, 2, 3)) <= real.max(axis=(1, 2, 3))).all()
    # (x + t clouds) m / (m + t): on a plain image clouds from 0 to 1 remain.
    plain = corrupt(grey(255, 4, 32, 32), "fog", 4)[..., 0]
    np.testing.assert_array_equal(plain.min(axis=(1, 2)), 128)
    np.testing.assert_array_equal(plain.max(axis=(1, 2)), 255)


# Digital


@pytest.mark.parametrize(("severity", "kept"), [(1, 0.75), (5, 0.15)])
def test_contrast_pulls_to_each_channel_s_mean(severity, kept):
    images = noise_images(3, 16, 16, 3)
    mean = images.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(corrupt(images, "contrast", severity), mean + kept * (images - mean), atol=0.51)


def test_pixelate_leaves_blocks_of_one_colour():
    images = noise_images(2, 96, 96, 3)
    for share, severity in ((0.5, 2), (0.25, 5)):
        side = round(1 / share)
        blocks = images.reshape(2, 96 // side, side, 96 // side, side, 3).mean(axis=(2, 4))
        expected = blocks.repeat(side, axis=1).repeat(side, axis=2)
        result = corrupt(images, "pixelate", severity)
        assert np.abs(result - expected).max() <= 1.01
        corner = result[:, ::side, ::side].repeat(side, axis=1).repeat(side, axis=2)
        np.testing.assert_array_equal(result, corner)
    # 32 pixels become 20 and 32 again, so at most 20 rows differ from the one above.
    rows = corrupt(noise_images(1, 32, 32, 3), "pixelate", 5)[0]
    assert (np.diff(rows.astype(int), axis=0) != 0).any(axis=(1, 2)).sum() == 19


@pytest.mark.parametrize(("size", "severity", "quality"), [(32, 1, 80), (32, 5, 40), (100, 1, 25), (100, 5, 7)])
def test_jpeg_is_pillow_s(size, severity, quality, real):
    image = np.asarray(Image.fromarray(real[0]).resize((size, size)))
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    np.testing.assert_array_equal(corrupt(image[None], "jpeg_compression", severity)[0], np.asarray(Image.open(stream)))


def test_elastic_moves_all_channels_alike(real):
    result = corrupt(np.repeat(real[:8, ..., :1], 3, axis=3), "elastic_transform", 5)
    np.testing.assert_array_equal(result[..., 0], result[..., 2])


# Faults


def test_images_can_be_too_small():
    with pytest.raises(ShiftViTError, match="images of 7 x 32 pixels are too small to corrupt; use 8 x 8 or more"):
        corrupt(grey(1, 1, 7, 32), "fog", 1)
