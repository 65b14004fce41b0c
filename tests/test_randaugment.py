"""RandAugment: each operation against recorded results of timm and closed forms, and the distribution of draws.

tests/golden/rand_augment.npz holds the picture, and for each case (operation, magnitude, sign, resampling) what timm
1.0.31 made of it with Pillow 13.0.0, and the argument that it gave the operation.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample import load_sample
from shiftvit.augment.randaugment import OPERATIONS, RandAugment

BY_NAME = {operation.name: operation for operation in OPERATIONS}
PIXELS = load_sample().train.images[5]
FILL = (9, 8, 7)
BICUBIC = Image.Resampling.BICUBIC


def apply_operation(name: str, strength: float, pixels: np.ndarray = PIXELS) -> np.ndarray:
    operation = BY_NAME[name]
    return np.asarray(operation.function(Image.fromarray(pixels), operation.argument(strength), BICUBIC, FILL))


def test_operations_match_timm() -> None:
    with np.load(Path(__file__).parent / "golden" / "rand_augment.npz") as golden:
        assert {case.split()[0] for case in golden["cases"].tolist()} == set(BY_NAME)
        for case, result, argument in zip(
            golden["cases"].tolist(), golden["results"], golden["arguments"], strict=True
        ):
            name, magnitude, sign, resampling = case.split()
            operation, strength = BY_NAME[name], int(sign) * float(magnitude) / 10
            assert operation.argument(strength) == pytest.approx(argument, abs=1e-12), case
            found = operation.function(
                Image.fromarray(golden["picture"]),
                operation.argument(strength),
                Image.Resampling[resampling.upper()],
                tuple(golden["fill"].tolist()),
            )
            # Other releases of Pillow may round differently; with the recorded one no pixel differs.
            assert abs(np.asarray(found).astype(int) - result).max() <= 1, case


def test_there_are_fifteen_operations() -> None:
    assert len(OPERATIONS) == len(BY_NAME) == 15


@pytest.mark.parametrize(
    "name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "Color", "Contrast", "Brightness", "Sharpness"]
)
def test_zero_magnitude_changes_nothing(name: str) -> None:
    np.testing.assert_array_equal(apply_operation(name, 0.0), PIXELS)


def test_operations_on_levels_match_closed_forms() -> None:
    levels = PIXELS.astype(int)
    np.testing.assert_array_equal(apply_operation("Invert", 0.5), 255 - levels)
    for strength in (0.0, 0.3, 0.9, 1.0):
        threshold = 256 - int(256 * strength)
        expected = np.where(levels < threshold, levels, 255 - levels)
        np.testing.assert_array_equal(apply_operation("Solarize", strength), expected)
        kept = 2 ** (4 + int(4 * strength))
        np.testing.assert_array_equal(apply_operation("Posterize", strength), levels // kept * kept)
    stretched = apply_operation("AutoContrast", 0.5)
    assert (stretched.min(axis=(0, 1)) == 0).all()
    assert (stretched.max(axis=(0, 1)) >= 254).all()  # Pillow truncates the stretched levels to integers


def test_equalised_levels_are_evenly_spread() -> None:
    ramp = np.repeat(np.sqrt(np.linspace(0, 255**2, 64 * 64)).astype(np.uint8).reshape(64, 64)[..., None], 3, axis=2)
    found = np.sort(apply_operation("Equalize", 0.5, ramp)[..., 0].ravel())
    assert abs(found - np.linspace(0, 255, found.size)).max() < 6


def test_shifts_turns_and_shears() -> None:
    square = PIXELS[:20, :20]
    moved = apply_operation("TranslateX", 1.0, square)  # 0.45 * 20 = 9 pixels, to the left
    np.testing.assert_array_equal(moved[:, :11], square[:, 9:])
    assert (moved[:, 11:] == FILL).all()
    moved = apply_operation("TranslateY", -1.0, square)
    np.testing.assert_array_equal(moved[9:], square[:11])
    assert (moved[:9] == FILL).all()
    turned = BY_NAME["Rotate"].function(Image.fromarray(square), 90.0, BICUBIC, FILL)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(square))
    # A shear moves row i to the left by 0.3 * i pixels.
    tall = np.zeros((30, 30, 3), np.uint8)
    tall[:, 15] = 255
    columns = apply_operation("ShearX", 1.0, tall)[:, :, 0].argmax(axis=1)
    assert abs(columns - (15 - 0.3 * np.arange(30))).max() <= 1


def test_draws_follow_their_distributions() -> None:
    drawn = [RandAugment(7.0, 0.5, 4, FILL, BICUBIC).draw(np.random.default_rng(seed)) for seed in range(5000)]
    layers = np.bincount([len(item) for item in drawn], minlength=5) / 5000
    np.testing.assert_allclose(layers, np.array([1, 4, 6, 4, 1]) / 16, atol=0.025)
    flat = [item for items in drawn for item in items]
    names = Counter(operation.name for operation, _ in flat)
    assert set(names) == set(BY_NAME)
    np.testing.assert_allclose(np.array(list(names.values())) / len(flat), 1 / 15, atol=0.012)
    signed = np.array([strength for operation, strength in flat if operation.signed])
    plain = np.array([strength for operation, strength in flat if not operation.signed])
    assert (signed < 0).mean() == pytest.approx(0.5, abs=0.02)
    for strengths in (abs(signed), plain):
        assert (strengths.mean(), strengths.std()) == (pytest.approx(0.7, abs=0.005), pytest.approx(0.05, abs=0.005))


def test_magnitudes_are_clipped() -> None:
    for seed in range(300):
        for magnitude in (0.1, 9.9):
            for operation, strength in RandAugment(magnitude, 3.0, 3, FILL, BICUBIC).draw(np.random.default_rng(seed)):
                assert -1 <= strength <= 1
                assert strength >= 0 or operation.signed


def test_result_depends_only_on_the_generator() -> None:
    augment = RandAugment(9.0, 0.5, 2, FILL, BICUBIC)
    image = Image.fromarray(PIXELS)
    results = [np.asarray(augment(image, np.random.default_rng(seed))) for seed in range(40)]
    for seed, result in enumerate(results):
        assert result.shape == PIXELS.shape
        np.testing.assert_array_equal(np.asarray(augment(image, np.random.default_rng(seed))), result)
    np.testing.assert_array_equal(np.asarray(image), PIXELS)
    untouched = np.mean([np.array_equal(result, PIXELS) for result in results])
    assert 0.05 < untouched < 0.5  # on average a quarter of the pictures stay unchanged
