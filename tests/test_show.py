"""The figure of training pictures: it shows what training sees, and its captions do not overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sample import load_sample, write_tree
from shiftvit import Recipe, ShiftViTError
from shiftvit.augment.augment import Augment
from shiftvit.cli.main import app
from shiftvit.data import named
from shiftvit.data.show import _shorten, draw_training, draw_training_figure

OFF = {"augment.pad": 0, "augment.flip": False}
FULL = {
    "augment.pad": 0,
    "augment.resized_crop": 0.2,
    "augment.rand_augment": 9,
    "augment.color_jitter": 0.3,
    "augment.erasing": 0.5,
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
    "augment.repeats": 2,
}


@pytest.fixture(autouse=True)
def load_sample_as_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(named._LOADERS, "cifar10", load_sample)


def test_without_augmentation_draws_equal_evaluation() -> None:
    shown = draw_training(Recipe.load("quick", **OFF))
    assert shown.drawn.shape == (7, 6, 32, 32, 3)
    assert len(set(shown.labels.tolist())) == 6
    for draw, shares in zip(shown.drawn, shown.shares, strict=True):
        np.testing.assert_array_equal(draw, shown.plain)
        np.testing.assert_array_equal(shares.argmax(axis=1), shown.labels)


def test_draws_are_crops_of_their_picture() -> None:
    shown = draw_training(Recipe.load("quick", **{"augment.flip": False, "augment.pad": 2}))
    for draw in shown.drawn:
        for image, plain in zip(draw, shown.plain, strict=True):
            padded = np.pad(plain, ((2, 2), (2, 2), (0, 0)))
            windows = [padded[top : top + 32, left : left + 32] for top in range(5) for left in range(5)]
            assert any(np.array_equal(image, window) for window in windows)


def test_mixed_pictures_have_label_shares() -> None:
    shown = draw_training(Recipe.load("quick", **FULL), count=4, draws=3)
    assert shown.shares.shape == (3, 4, 10)
    np.testing.assert_allclose(shown.shares.sum(axis=2), 1, atol=1e-6)
    for shares in shown.shares:
        for row, label in zip(shares, shown.labels, strict=True):
            assert set(np.flatnonzero(row)) <= set(shown.labels.tolist())
            assert row[label] > 0 or (row > 0).sum() == 1


def test_pictures_are_read_from_files(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "pets")
    (tree / "cat" / "broken.png").write_bytes(b"no picture")
    small = {"preprocess.resize": 24, "preprocess.crop": 20, "data.name": str(tree)}
    recipe = Recipe.load("photos", **small, **{**FULL, "augment.mixup": 0, "augment.cutmix": 0})
    shown = draw_training(recipe)
    assert shown.plain.shape[1:] == (20, 20, 3)
    assert shown.class_names == ("cat", "dog", "ship")
    still = draw_training(Recipe.load("photos", **small, **OFF, **{"augment.random_crop": False}))
    for draw in still.drawn:
        np.testing.assert_array_equal(draw, still.plain)


def test_pictures_are_read_from_an_archive(tmp_path: Path) -> None:
    data = load_sample()
    np.savez(tmp_path / "a.npz", images=data.train.images[:50], labels=data.train.labels[:50])
    settings = {"preprocess.resize": 20, "preprocess.crop": 16, "data.name": str(tmp_path / "a.npz")}
    shown = draw_training(Recipe.load("photos", **settings))
    assert shown.plain.shape[1:] == (16, 16, 3)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, FULL])
def test_figure_shows_the_draws(tmp_path: Path, changes: dict[str, float], figures: list[Any]) -> None:
    recipe = Recipe.load("quick", **changes)
    assert draw_training_figure(recipe, tmp_path / "a.png") == 6
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert 1200 < image.width < 1700
    shown, (figure,) = draw_training(recipe), figures
    tiles = np.reshape(figure.axes, (6, 8))
    assert [axes.get_title() for axes in tiles[0]] == ["in evaluation", *(f"epoch {number}" for number in range(1, 8))]
    for row, axes in enumerate(tiles):
        assert axes[0].get_xlabel() == shown.class_names[shown.labels[row]]
        for column, pixels in enumerate([shown.plain[row], *shown.drawn[:, row]]):
            np.testing.assert_array_equal(axes[column].images[0].get_array(), pixels)
    captions = [axes.get_xlabel() for axes in tiles[:, 1:].flat]
    assert all("%" in caption for caption in captions) == bool(changes)
    assert any(captions) == bool(changes)


def test_long_captions_are_shortened() -> None:
    assert _shorten("automobile", " 100%") == "automobile 100%"
    for name in ("W" * 30, "a" * 300, "$a$" * 20):
        text = _shorten(name, " 97%")
        assert text.endswith("… 97%")
        assert 8 < len(text) < 40


def test_description_of_the_augmentation() -> None:
    assert Augment(flip=False).describe(crops=False) == "none"
    assert Augment(flip=False).describe(crops=True) == "random crop"
    assert Augment(pad=4, random_crop=False).describe(crops=True) == "horizontal flip"
    assert Augment(pad=4).describe(crops=False) == "random crop with 4 px of black padding, horizontal flip"
    words = Augment(resized_crop=0.1, rand_augment=9, mixup=0.8, cutmix=1, repeats=3).describe(crops=True)
    assert words == (
        "random resized crop (at least 10% of the area), horizontal flip, "
        "RandAugment (magnitude 9 ± 0.5, 2 changes per image), MixUp 0.8, CutMix 1, CutMix in 50% of the mixes, "
        "3 copies of an image in a batch"
    )
    less = Augment(pad=2, pad_mode="reflect", erasing=0.25, cutmix=1, mix_probability=0.5).describe(crops=False)
    assert less == (
        "random crop with 2 px of mirrored padding, horizontal flip, random erasing of 25% of the images, CutMix 1, "
        "50% of the images mixed"
    )


@pytest.mark.slow
def test_command_writes_the_figure(tmp_path: Path) -> None:
    tree, out = write_tree(tmp_path / "pets"), tmp_path / "figure.png"
    arguments = ["data", "show", str(tree), "--set", "preprocess.resize=24", "--set", "preprocess.crop=20"]
    answer = CliRunner().invoke(app, [*arguments, "--set", "augment.resized_crop=0.3", "--out", str(out)])
    assert answer.exit_code == 0, answer.output
    assert str(out) in answer.output
    with Image.open(out) as image:
        assert image.format == "PNG"


def test_invalid_settings_fail(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "pets")
    with pytest.raises(ShiftViTError, match=r"pad=4 has no effect with resized_crop=0\.3"):
        draw_training(Recipe.load("quick", **{"augment.resized_crop": 0.3}))
    with pytest.raises(ShiftViTError, match=r"preprocess\.resize"):
        draw_training(Recipe.load("quick", **{"data.name": str(tree)}))
