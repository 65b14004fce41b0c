"""The images that an export is compared on: those that the run held out, never those that calibrate it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exported import run_step
from sample import load_sample, write_tree
from shiftvit import Bundle, Preprocess, Recipe, ShiftViT, ShiftViTError
from shiftvit.bundle.metadata import make_metadata
from shiftvit.data import named
from shiftvit.data.decode.images import decode
from shiftvit.data.find.find import find_data
from shiftvit.data.find.kept import save_splits
from shiftvit.data.find.splits import split_as
from shiftvit.exports import export
from shiftvit.exports.images import choose_images
from shiftvit.training import runfolder
from tensors import set_random_weights

RULE = Preprocess(resize=20, crop=16, crop_position="center")
LABELS = ("ship", "cat", "dog")  # not in the order of the folders


def make_bundle(labels: tuple[str, ...] = LABELS, rule: Preprocess = RULE) -> Bundle:
    model = ShiftViT((16, 16, 3), num_classes=len(labels), embed_dim=24, depths=(1, 1))
    set_random_weights(model)
    return Bundle.from_model(model, labels, rule)


def make_run(folder: Path, data: Path | str, bundle: Bundle, **settings: Any) -> Path:
    """Writes the files of a run on these images that exports need."""
    recipe = Recipe.load("photos", **{"data.name": str(data), "data.validation": 0.2, "data.test": 0.2, **settings})
    found = named.look_up(str(data))
    folder.mkdir()
    if found.path is not None:
        save_splits(split_as(recipe.data, found), folder / "splits.csv")
    runfolder._write_recipe(folder, recipe)
    bundle.save(folder / "bundle")
    return folder


def choose_for(model: Path, precision: str = "int8", data: str | None = None, count: int = 10_000) -> Any:
    bundle = Bundle.load(model)
    return choose_images(model, bundle, make_metadata(bundle, precision), data, count)  # type: ignore[arg-type]


def list_bytes(array: Any) -> list[bytes]:
    return [image.tobytes() for image in array]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "pets", per_class=10)


@pytest.fixture(scope="module")
def run(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", tree, make_bundle())


@pytest.mark.parametrize("explicit", [False, True])
def test_run_is_compared_on_held_out_and_calibrated_on_training_images(run: Path, tree: Path, explicit: bool) -> None:
    chosen = choose_for(run, data=str(tree) if explicit else None)
    with (run / "splits.csv").open(newline="") as file:
        table = [*csv.DictReader(file)]
    expected = {
        split: {
            RULE.pixels(decode(tree / row["path"])[None])[0].tobytes(): LABELS.index(row["label"])
            for row in table
            if row["split"] == split
        }
        for split in ("train", "validation", "test")
    }
    compared = dict(zip(list_bytes(chosen.arrays["images"]), chosen.arrays["labels"].tolist(), strict=True))
    assert compared == expected["test"] | expected["validation"]
    assert {*list_bytes(chosen.arrays["calibration"])} == expected["train"].keys()
    assert chosen.origin["split"] == "test and validation"
    assert chosen.enough == len(compared) == 12
    assert choose_for(run, "bf16").arrays["calibration"].shape == (0, 16, 16, 3)


def test_takes_at_most_the_requested_number_of_images(run: Path) -> None:
    chosen = choose_for(run, count=5)
    assert chosen.origin["split"] == "test"
    assert len(chosen.arrays["images"]) == 5
    assert len({*chosen.arrays["labels"].tolist()}) > 1  # the files are sorted by class
    assert chosen.enough == 6  # there are more, so five are not enough to pass


@pytest.mark.parametrize("form", ["folder", "archive", "splits"])
def test_images_without_splits_are_divided(form: str, tree: Path, tmp_path: Path) -> None:
    """A bundle does not record its training images, so the gate requires its usual number of images."""
    data = tree
    if form != "folder":
        found = find_data(tree)
        pixels = np.stack([RULE.pixels(decode(path)[None])[0] for path in found.train.paths or []])
        part = "test" if form == "splits" else "train"
        arrays = {f"x_{part}": pixels, f"y_{part}": found.train.labels, "class_names": np.array(found.class_names)}
        data = tmp_path / "a.npz"
        np.savez(data, **arrays)
    chosen = choose_for(make_bundle().save(tmp_path / "model"), data=str(data))
    assert chosen.enough == 2000
    compared, calibrating = (list_bytes(chosen.arrays[name]) for name in ("images", "calibration"))
    assert (len(compared), len(calibrating)) == (23, 7)
    assert not {*compared} & {*calibrating}


def test_named_data_set_uses_its_own_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = load_sample()
    monkeypatch.setitem(named._LOADERS, "cifar10", load_sample)
    model = make_bundle(sample.class_names, Preprocess(resize=16)).save(tmp_path / "model")
    chosen = choose_for(model)
    assert chosen.arrays["labels"].tolist() == sample.test.labels.tolist()
    assert (chosen.origin, chosen.enough) == ({"data": "cifar10", "split": "test"}, 2000)
    assert len(chosen.arrays["calibration"]) == min(512, len(sample.train))


def test_unknown_classes_fail(tree: Path, tmp_path: Path) -> None:
    model = make_bundle(("ship", "cat", "horse")).save(tmp_path / "model")
    with pytest.raises(ShiftViTError, match=r"the model has 3 classes .* has 10 images of 1 other \('dog'\)"):
        choose_for(model, data=str(tree))


@pytest.mark.slow
def test_run_with_few_images_exports_to_int8(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr(export, "_run_step", run_step)  # in processes that other tests have started
    folder = export.export(run, "onnx", "int8", out=tmp_path / "out")
    report = json.loads((folder / export.REPORT).read_text("utf-8"))
    assert (report["images"], report["split"]) == (12, "test and validation")
    assert report["top1_change"] >= -100 / 12 - 1e-3
    assert "with 12 images, the change of top-1 is known to within " in capfd.readouterr().err


def test_number_of_sample_images_may_be_limited(tmp_path: Path) -> None:
    make_bundle().save(tmp_path / "bundle")
    assert len(choose_for(tmp_path / "bundle", "f32").arrays["images"]) == 12
    assert len(choose_for(tmp_path / "bundle", "f32", count=5).arrays["images"]) == 5


def test_float32_is_compared_on_pictures_without_classes(tree: Path, tmp_path: Path) -> None:
    bundle = make_bundle()
    bundle.save(tmp_path / "bundle")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "notes.txt").write_text("mine")
    pictures = sorted(tree.rglob("*.png"))
    for index, path in enumerate(pictures):
        shutil.copy(path, tmp_path / "flat" / f"{index:03}.png")
    found = choose_for(tmp_path / "bundle", "f32", str(tmp_path / "flat"))
    np.testing.assert_array_equal(
        found.arrays["images"], np.concatenate([RULE.pixels(decode(path)[None]) for path in pictures])
    )
    assert "labels" not in found.arrays
    assert found.origin == {"data": str(tmp_path / "flat")}
    assert len(choose_for(tmp_path / "bundle", "f32", str(tmp_path / "flat"), 4).arrays["images"]) == 4
    with pytest.raises(ShiftViTError, match="without class folders"):
        choose_for(tmp_path / "bundle", "bf16", str(tmp_path / "flat"))
    (tmp_path / "flat" / "cat").mkdir()
    with pytest.raises(ShiftViTError, match="without class folders"):  # which images were meant is not clear
        choose_for(tmp_path / "bundle", "f32", str(tmp_path / "flat"))
