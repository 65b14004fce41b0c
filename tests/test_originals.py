"""Training pictures that are read from their files: their sizes, and the boxes that are cut from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample import load_sample, write_tree
from shiftvit.augment.augment import Augment
from shiftvit.augment.boxes import Box, cut, draw_box
from shiftvit.augment.changes import Cuttable
from shiftvit.config import DataConfig
from shiftvit.data.batches.host import EpochBatches
from shiftvit.data.batches.pictures import Originals, Pictures, read_pictures
from shiftvit.data.decode.images import decode
from shiftvit.data.load import load_data
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess
from shiftvit.recipes.recipe import Recipe

PREPROCESS = Preprocess(resize=24, crop=20, crop_position="center", interpolation="bicubic")


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [str(path) for path in sorted(write_tree(tmp_path / "pets").rglob("*.*"))]


def test_read_pictures_reports_bad_files_and_measures_the_others(paths: list[str]) -> None:
    Path(paths[7]).write_bytes(b"no picture")
    turned = Image.new("RGB", (40, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(paths[8], format="JPEG", exif=exif)
    calls: list[int] = []
    pictures, kept, faults = read_pictures(paths, PREPROCESS, whole=True, on_picture=lambda: calls.append(1))
    assert (len(pictures), pictures.shape, sum(calls)) == (59, (59, 20, 20, 3), 60)
    assert set(range(60)) - set(kept.tolist()) == {7}
    assert len(faults) == 1
    assert paths[7] in faults[0]
    for place, index in enumerate(kept):
        assert pictures.find_size(place) == decode(paths[index]).shape[:2]
    assert pictures.find_size(7) == (40, 10)
    # Indexing returns what evaluation sees.
    np.testing.assert_array_equal(pictures[:5], Pictures(pictures.paths, PREPROCESS)[:5])
    assert isinstance(pictures, Cuttable)


def test_boxes_are_cut_from_the_full_picture(paths: list[str]) -> None:
    pictures, _, _ = read_pictures(paths, PREPROCESS, whole=True)
    for index in range(0, 60, 7):
        box = draw_box(np.random.default_rng(index), *pictures.find_size(index), 0.08)
        np.testing.assert_array_equal(pictures.cut(index, box), cut(decode(paths[index]), box, (20, 20), "bicubic"))


def test_large_jpeg_is_decoded_smaller_before_it_is_cut(tmp_path: Path, monkeypatch) -> None:
    smooth = Image.fromarray(load_sample().train.images[0]).resize((901, 1403), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.jpg", quality=95)
    pictures, _, _ = read_pictures([str(tmp_path / "a.jpg")], PREPROCESS, whole=True)
    assert pictures.find_size(0) == (1403, 901)
    shapes = []

    def record_shape(*arguments, **options):
        pixels = decode(*arguments, **options)
        shapes.append(pixels.shape)
        return pixels

    monkeypatch.setattr("shiftvit.data.batches.pictures.decode", record_shape)
    for seed in range(20):
        box = draw_box(np.random.default_rng(seed), 1403, 901, 0.3)
        expected = cut(decode(tmp_path / "a.jpg"), box, (20, 20), "bicubic").astype(int)
        difference = abs(pictures.cut(0, box) - expected)
        assert difference.mean() < 1
    assert max(shapes)[0] <= 702


def test_changed_file_is_cut_at_its_new_size_or_fails(paths: list[str]) -> None:
    pictures, _, _ = read_pictures(paths[:2], PREPROCESS, whole=True)
    box = Box(0, 0, *pictures.find_size(0), pictures.find_size(0))
    with Image.open(paths[0]) as image:
        larger = image.resize((150, 130))
    larger.save(paths[0])
    whole = Box(0, 0, 130, 150, (130, 150))
    np.testing.assert_array_equal(pictures.cut(0, box), cut(decode(paths[0]), whole, (20, 20), "bicubic"))
    Path(paths[1]).unlink()
    with pytest.raises(ShiftViTError, match="cannot be read"):
        pictures.cut(1, box)


def test_training_batches_are_cut_from_the_files(paths: list[str]) -> None:
    root = str(Path(paths[0]).parents[1])
    config = DataConfig(name=root, validation=0.1, test=0.1)
    boxes = Augment(resized_crop=0.2)
    with_boxes, without_boxes = (
        load_data(Recipe(name="r", data=config, preprocess=PREPROCESS, augment=augment))
        for augment in (boxes, Augment())
    )
    images, labels, rule = with_boxes.train.images, with_boxes.train.labels, with_boxes.train.preprocess
    assert isinstance(images, Originals)
    assert isinstance(without_boxes.train.images, np.ndarray)
    np.testing.assert_array_equal(labels, without_boxes.train.labels)
    for name in ("validation", "test"):
        np.testing.assert_array_equal(with_boxes.splits[name].images, without_boxes.splits[name].images)
    augment = Augment(resized_crop=0.2, rand_augment=5.0, erasing=0.3)
    settings = {"preprocess": rule, "augment": augment, "batch_size": 12, "seed": 4, "epoch": 1}
    first, again = (EpochBatches(images, labels, **settings) for _ in range(2))
    assert first[0][0].shape == (12, 20, 20, 3)
    np.testing.assert_array_equal(first[2][0], again[2][0])
    plain = EpochBatches(images, labels, **{**settings, "augment": Augment(resized_crop=0.2, flip=False)})
    index = int(plain._plan.order[0])
    box = draw_box(np.random.default_rng([4, 1, 3, index]), *images.find_size(index), 0.2)
    expected = cut(decode(images.paths[index]), box, (20, 20), "bicubic")
    np.testing.assert_array_equal(plain[0][0][0], rule.normalised(expected[None])[0])
