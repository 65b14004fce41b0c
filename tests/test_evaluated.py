"""The images to evaluate on, in every form of data. None of the forms needs training images."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parquet_tables import CIFAR, make_structs, write_parquet
from sample import load_sample, replace_splits
from shiftvit import ShiftViTError
from shiftvit.data import named
from shiftvit.data.evaluated import find_evaluated
from shiftvit.data.find.find import find_data
from shiftvit.data.find.kept import save_digests
from trees import PICTURE, make_arrays, plant, save_archive

PNG = PICTURE.read_bytes()


def write_table(path: Path, *lines: str) -> Path:
    plant(path.parent, "1.png", "2.png")
    path.write_text("\n".join(lines), "utf-8")
    return path


def count_images(path: Path) -> dict[str, dict[str, int]]:
    """Returns split -> class -> number of images."""
    found = find_data(path, training=False)
    return {
        split: {name: int((part.labels == label).sum()) for label, name in enumerate(found.class_names)}
        for split, part in found.splits.items()
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("test/a/1.png", "test/b/1.png"), {"test": {"a": 1, "b": 1}}),
        (("val/a/1.png", "test/b/1.png"), {"validation": {"a": 1, "b": 0}, "test": {"a": 0, "b": 1}}),
        (("train/a/1.png", "test/b/1.png"), {"train": {"a": 1, "b": 0}, "test": {"a": 0, "b": 1}}),
        (("a/1.png", "a/2.png"), {"train": {"a": 2}}),
    ],
)
def test_folders(tmp_path: Path, names: tuple[str, ...], expected: Any) -> None:
    assert count_images(plant(tmp_path, *names)) == expected


def test_tables(tmp_path: Path) -> None:
    rows = ("path,label,split", "1.png,a,test", "2.png,b,test")
    assert count_images(write_table(tmp_path / "t.csv", *rows)) == {"test": {"a": 1, "b": 1}}
    assert count_images(write_table(tmp_path / "t.csv", "path,label", "1.png,a")) == {"train": {"a": 1}}


def test_parquet(tmp_path: Path) -> None:
    for name in ("test-00000-of-00001.parquet", "rows.parquet"):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        write_parquet(tmp_path / "data" / name, CIFAR, img=make_structs([PNG] * 3), label=[3, 3, 5])
        found = find_data(tmp_path / "data", training=False)
        ((split, part),) = found.splits.items()
        assert split == ("test" if name.startswith("test") else "train")
        assert [found.class_names[label] for label in part.labels] == ["cat", "cat", "dog"]


def test_archives(tmp_path: Path) -> None:
    x, y = make_arrays()
    assert count_images(save_archive(tmp_path / "a.npz", x_test=x, y_test=y)) == {"test": {"0": 3, "1": 3}}
    # Without class names, the numbers are the names, and they may have gaps.
    assert count_images(save_archive(tmp_path / "b.npz", images=x, labels=y * 900)) == {"train": {"0": 3, "900": 3}}
    found = find_data(
        save_archive(tmp_path / "c.npz", images=x, labels=y * 0, class_names=np.array(["b", "a"])), training=False
    )
    assert found.class_names == ("b", "a")
    with pytest.raises(ShiftViTError, match="has no images; name its arrays images and labels"):
        find_data(save_archive(tmp_path / "d.npz", x=x), training=False)


def test_training_fails_without_training_images(tmp_path: Path) -> None:
    for path in (plant(tmp_path, "test/a/1.png", "test/b/1.png"), save_archive(tmp_path / "a.npz", x_test=X, y_test=Y)):
        with pytest.raises(ShiftViTError, match=r"no train/|no images for training"):
            find_data(path)


X, Y = make_arrays()


def choose(path: Path, split: str | None = None) -> tuple[str, list[str]]:
    """Returns the split that is evaluated and the names of its files."""
    found = find_evaluated(str(path), split)
    assert not found.own_test
    return found.split, sorted(Path(image).name for image in found.images.paths or [])


def test_split_is_chosen_by_default_or_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = plant(tmp_path / "whole", "train/a/1.png", "train/b/2.png", "val/a/3.png", "test/b/4.png")
    assert choose(whole) == ("test", ["4.png"])
    output = capsys.readouterr().err
    assert "evaluating its 1 test image; --split all takes the 3 of train and validation as well" in output
    assert choose(whole, "val") == ("validation", ["3.png"])
    assert choose(whole, "train") == ("train", ["1.png", "2.png"])
    assert choose(whole, "all") == ("all", ["1.png", "2.png", "3.png", "4.png"])
    assert choose(plant(tmp_path / "two", "train/a/1.png", "val/b/2.png")) == ("validation", ["2.png"])
    flat = plant(tmp_path / "flat", "a/1.png", "b/2.png")
    assert choose(flat) == choose(flat, "all") == ("all", ["1.png", "2.png"])
    with pytest.raises(ShiftViTError, match="has no test images: its images are not split; use --split all"):
        find_evaluated(str(flat), "test")
    with pytest.raises(ShiftViTError, match="has no validation images, only train and test; use --split all"):
        find_evaluated(str(plant(tmp_path / "three", "train/a/1.png", "test/b/2.png")), "validation")
    with pytest.raises(ShiftViTError, match="there is no split 'tset'; use train, validation, test or all"):
        find_evaluated(str(flat), "tset")


def test_all_splits_of_an_archive(tmp_path: Path) -> None:
    x, y = make_arrays(10)
    found = find_evaluated(
        str(save_archive(tmp_path / "a.npz", x_train=x[:6], y_train=y[:6], x_test=x[6:], y_test=y[6:])), "all"
    )
    np.testing.assert_array_equal(found.images.images, x)
    np.testing.assert_array_equal(found.images.labels, y)
    assert found.images.path(7) == "x_test[1]"


def test_named_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = load_sample()
    monkeypatch.setattr(named, "_LOADERS", {"cifar10": lambda: sample})
    assert len(find_evaluated("cifar10").images) == len(sample.test)
    everything = find_evaluated("cifar10", "all").images
    assert len(everything) == len(sample.train) + len(sample.test)
    assert everything.paths is None


def test_images_of_a_run_that_are_not_those_of_its_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_sample()
    monkeypatch.setattr(named, "load", lambda _: data)
    (tmp_path / "recipe.toml").write_text('name = "quick"\n[data]\nname = "cifar10"\n')
    save_digests(data, tmp_path / "images.json")
    assert find_evaluated(None, run=tmp_path).own_test
    save_digests(replace(data, class_names=[*data.class_names]), tmp_path / "images.json")  # type: ignore[arg-type]
    assert find_evaluated(None, run=tmp_path).own_test
    flipped = replace(data.test, images=data.test.images[:, :, ::-1])
    relabelled = replace(data.test, labels=9 - data.test.labels)
    for other in (flipped, relabelled):
        save_digests(replace_splits(data, test=other), tmp_path / "images.json")
        with pytest.raises(ShiftViTError, match=r"on different images than 'cifar10' now holds, .* them with --da"):
            find_evaluated(None, run=tmp_path)
    (tmp_path / "images.json").write_text("[]")
    with pytest.raises(ShiftViTError, match=r"images.json' cannot be read .*; restore it"):
        find_evaluated(None, run=tmp_path)
