"""Embedded colour profiles: ignored by default, otherwise converted to sRGB, in every code path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import image_matrix as matrix
from shiftvit import Bundle, Predictor, Preprocess, ShiftViT
from shiftvit.bundle.bundle import MANIFEST
from shiftvit.bundle.metadata import make_metadata
from shiftvit.data.batches.pictures import Pictures, read_pictures
from shiftvit.data.decode.images import decode
from shiftvit.data.decode.profiles import read_profile

FORMS = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "HEIF": {"quality": 100, "chroma": 444},
    "MPO": {"quality": 100, "subsampling": 0},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("space", [matrix.DISPLAY_P3, matrix.ADOBE_RGB])
def test_profiles_are_converted_to_srgb(form: str, space: tuple[tuple[float, ...], ...]) -> None:
    content = matrix.encode(matrix.load_picture(), form, icc_profile=matrix.make_icc(space), **FORMS[form])
    stored = decode(content)
    np.testing.assert_array_equal(decode(matrix.encode(matrix.load_picture(), form, **FORMS[form])), stored)
    found = decode(content, srgb=True)
    expected = matrix.convert_to_srgb(stored, space)
    assert np.abs(found - expected).max() < 2
    assert np.abs(found.astype(int) - stored).max() > 10


@pytest.mark.parametrize("big", [False, True])
def test_tiff_and_bigtiff(big: bool) -> None:
    content = matrix.encode(matrix.load_picture(), "TIFF", icc_profile=matrix.make_icc(matrix.ADOBE_RGB), big_tiff=big)
    assert (
        np.abs(decode(content, srgb=True) - matrix.convert_to_srgb(matrix.load_picture(), matrix.ADOBE_RGB)).max() < 2
    )


def test_jpeg_profile_in_several_segments() -> None:
    profile = matrix.make_icc(matrix.DISPLAY_P3) + bytes(100_000)
    content = matrix.encode(matrix.load_picture(), "JPEG", icc_profile=profile, quality=100, subsampling=0)
    assert read_profile("JPEG", content, None) == profile


@pytest.mark.parametrize(
    "profile",
    [
        b"",
        b"no profile",
        matrix.make_icc(matrix.DISPLAY_P3)[:200],
        matrix.make_icc(matrix.DISPLAY_P3, b"GRAY"),
        matrix.make_icc(matrix.DISPLAY_P3, b"CMYK"),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        b"\xff" * 5000,
    ],
)
def test_unusable_and_srgb_profiles_change_nothing(profile: bytes) -> None:
    for form in ("JPEG", "PNG", "TIFF", "WEBP"):
        content = matrix.encode(matrix.load_picture(), form, icc_profile=profile, **FORMS[form])
        np.testing.assert_array_equal(decode(content, srgb=True), decode(content))


def test_reading_profiles_of_damaged_files_raises_nothing() -> None:
    rng = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "TIFF"):
        whole = matrix.encode(
            matrix.load_picture(), form, icc_profile=matrix.make_icc(matrix.DISPLAY_P3), **FORMS[form]
        )
        for _ in range(100):
            content = bytearray(whole)
            content[rng.integers(len(whole))] = rng.integers(256)
            read_profile(form, bytes(content), None)


def test_pil_image() -> None:
    image = Image.fromarray(matrix.load_picture())
    image.info["icc_profile"] = matrix.make_icc(matrix.DISPLAY_P3)
    expected = matrix.convert_to_srgb(matrix.load_picture(), matrix.DISPLAY_P3)
    assert np.abs(decode(image, srgb=True) - expected).max() < 2
    np.testing.assert_array_equal(np.asarray(image), matrix.load_picture())


def test_all_code_paths_see_the_same_colours(tmp_path: Path) -> None:
    model = ShiftViT((32, 32, 3), num_classes=2, patch_size=4, embed_dim=24, depths=(1,))
    path = tmp_path / "p3.png"
    path.write_bytes(matrix.encode(matrix.load_picture(), "PNG", icc_profile=matrix.make_icc(matrix.DISPLAY_P3)))
    rule = Preprocess(srgb=True, resize=32, crop=32)
    Bundle.from_model(model, ("a", "b"), rule).save(tmp_path / "model")
    bundle = Bundle.load(tmp_path / "model")
    assert bundle.preprocess == make_metadata(bundle).preprocess == rule
    expected = decode(path, srgb=True)
    assert not np.array_equal(expected, decode(path))
    np.testing.assert_array_equal(Pictures([str(path)], rule)[[0]][0], expected)
    np.testing.assert_array_equal(read_pictures([str(path)], rule)[0][0], expected)
    predictor = Predictor.from_pretrained(tmp_path / "model", runtime="keras")
    by_path, by_pixels = predictor([str(path), expected])
    np.testing.assert_allclose(by_path.probabilities, by_pixels.probabilities, atol=1e-6)


def test_srgb_is_written_only_if_it_is_set(tmp_path: Path) -> None:
    """Older versions do not know the setting, and must still read files that do not use it."""
    model = ShiftViT((32, 32, 3), num_classes=2, patch_size=4, embed_dim=24, depths=(1,))
    for srgb in (False, True):
        place = tmp_path / str(srgb)
        bundle = Bundle.from_model(model, ("a", "b"), Preprocess(srgb=srgb))
        bundle.save(place)
        assert ("srgb" in (place / MANIFEST).read_text("utf-8")) is srgb
        assert ("srgb" in make_metadata(bundle).dump()) is srgb
