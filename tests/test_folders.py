"""Realistic folder trees: the images that shiftvit finds in each, and its message for each fault."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shiftvit.data.find.find import find_data
from trees import SAMPLES, list_contents, plant, read_fault


def test_one_folder_per_class(tmp_path):
    root = plant(
        tmp_path, "c10/x.png", "c2/b.JPG", "c2/a.png", "c2/deep/er/c.png", "c2/notes.txt", "c2/more.txt", "loose.png"
    )
    plant(root, ".DS_Store", ".git/x.png", "__MACOSX/c2/x.png", "c2/Makefile", "none/x.json")
    found = find_data(str(root))
    assert found.layout == "one folder per class"
    assert found.class_names == ("c2", "c10")
    assert list_contents(found) == {
        "train": [("c10/x.png", "c10"), ("c2/a.png", "c2"), ("c2/b.JPG", "c2"), ("c2/deep/er/c.png", "c2")]
    }
    assert found.splits["train"].labels.dtype == np.int64
    assert found.notes == (
        "files of type .json: 1",
        "files of type .txt: 2",
        "files without an extension: 1",
        "hidden files and folders: 3",
        "images outside the class folders: 1",
        "folders without images: none",
    )


def test_packaged_samples_are_found():
    found = find_data(SAMPLES)
    assert found.class_names == tuple(sorted(path.name for path in SAMPLES.iterdir()))
    assert sorted(found.splits["train"].paths) == sorted(str(path) for path in SAMPLES.rglob("*.png"))
    part = found.splits["train"]
    assert [Path(path).parent.name for path in part.paths] == [found.class_names[label] for label in part.labels]


def test_paths_can_be_opened_from_the_current_folder(tmp_path, monkeypatch):
    plant(tmp_path / "data", "a/1.png", "b/1.png")
    for folder, name in ((tmp_path, "data"), (tmp_path, "./data/"), (tmp_path / "data", "."), (tmp_path / "data", "")):
        monkeypatch.chdir(folder)
        assert all(Path(path).is_file() for path in find_data(name).splits["train"].paths)


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_split_folders(tmp_path, name):
    plant(tmp_path, "Train/cat/1.png", "Train/dog/1.png", f"{name}/cat/2.png", "TEST/dog/3.png", "TEST/cat/3.png")
    plant(tmp_path, "extra/cat/1.png", "train.txt", "Train/loose.png")
    (tmp_path / "TEST" / "horse").mkdir()
    found = find_data(tmp_path)
    assert found.layout == f"Train/, {name}/ and TEST/ with one folder per class"
    assert list_contents(found) == {
        "train": [("Train/cat/1.png", "cat"), ("Train/dog/1.png", "dog")],
        "validation": [(f"{name}/cat/2.png", "cat")],
        "test": [("TEST/cat/3.png", "cat"), ("TEST/dog/3.png", "dog")],
    }
    assert list(found.splits) == ["train", "validation", "test"]
    assert found.notes == (
        "files of type .txt: 1",
        "images in extra/, which is not a split: 1",
        "images outside the class folders: 1",
        "folders without images: TEST/horse",
        "validation has no images of dog",
    )


@pytest.mark.parametrize(
    ("names", "classes", "splits"),
    [
        (["train/cat/1.png", "train/dog/1.png"], ("cat", "dog"), ["train"]),
        (["train/cat/1.png", "train/dog/1.png", "test/dog/1.png"], ("cat", "dog"), ["train", "test"]),
        # Vehicles, not splits.
        (["train/1.png", "bus/1.png", "car/1.png"], ("bus", "car", "train"), ["train"]),
        (["train/side/1.png", "train/front/1.png", "bus/1.png"], ("bus", "train"), ["train"]),
        (["train/1.png", "test/1.png", "bus/1.png"], ("bus", "test", "train"), ["train"]),
    ],
)
def test_splits_and_classes_are_distinguished(tmp_path, names, classes, splits):
    found = find_data(plant(tmp_path, *names))
    assert found.class_names == classes
    assert list(found.splits) == splits


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no images; put the images of each class into a folder with its name"),
        (["a.txt", "cat/a.txt"], "holds no images"),
        (["1.png", "2.png", "none/x.txt"], "holds 2 images without class folders; put the images of each class"),
        (["train/1.png", "test/1.png"], "train' holds images without class folders; put the images"),
        (["cat/1.png", "cat/2.png"], "has one class, 'cat'; a classifier needs 2 or more"),
        (["data/cat/1.png", "data/dog/1.png"], "holds only one class folder; did you mean '"),
        (["train/cat/1.png", "test/cat/1.png"], "has one class, 'cat'"),
        (["val/cat/1.png", "test/dog/1.png"], "has test/ but no train/ with images"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/b/1.png"], "val/ and valid/, which all mean valid"),
        (["train/a/1.png", "train/b/1.png", "test/zebra/7.png"], "the class 'zebra' of test ("),
    ],
)
def test_faulty_trees_are_refused(tmp_path, names, message):
    assert message in read_fault(plant(tmp_path, *names))


def test_missing_and_unsupported_paths_are_refused(tmp_path):
    assert "nowhere' does not exist; check the path" in read_fault(tmp_path / "nowhere")
    assert "cannot be read" in read_fault(str(plant(tmp_path, "a.txt") / "a.txt" / "b"))
    assert "cannot be read" in read_fault("a\0b")
    assert "a.txt' is not a folder, .csv, .tsv, .npz or .parquet" in read_fault(tmp_path / "a.txt")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_folder_without_read_permission_is_named(tmp_path):
    locked = plant(tmp_path, "a/1.png", "b/1.png") / "b"
    locked.chmod(0)
    try:
        assert "b' cannot be read: Permission denied" in read_fault(tmp_path)
    finally:
        locked.chmod(0o755)


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    plant(tmp_path, "a/1.png", "b/1.png")
    scan = os.scandir

    def scan_or_refuse(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_or_refuse)
    assert "the folder '" in read_fault(tmp_path)
    assert read_fault(tmp_path).endswith("b' cannot be read: Permission denied; check its permissions")


def test_links_to_files_and_folders(tmp_path):
    store = plant(tmp_path / "store", "cats/1.png", "dogs/1.png")
    root = plant(tmp_path / "data", "bird/1.png")
    (root / "cat").symlink_to(store / "cats")  # a class
    (root / "bird" / "circle").symlink_to(root)
    (root / "bird" / "gone.png").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    (root / "bird" / "file.png").symlink_to(store / "dogs" / "1.png")
    found = find_data(root)
    assert list_contents(found)["train"] == [("bird/1.png", "bird"), ("bird/file.png", "bird"), ("cat/1.png", "cat")]
    assert found.notes == ("broken links and special files: 2", "links to folders within a class: 1")


def test_nothing_is_decoded(tmp_path, monkeypatch):
    plant(tmp_path, "a/1.png", "b/1.png")
    monkeypatch.setattr(Image, "open", None)
    (tmp_path / "a" / "2.png").write_bytes(b"no picture")
    assert len(find_data(tmp_path).splits["train"]) == 3


@pytest.mark.parametrize("old", ["cat", "cat/a.png"])
def test_names_that_are_not_utf8_are_refused(tmp_path, old):
    plant(tmp_path, "dog/a.png", "cat/a.png")
    new = tmp_path / old
    new = new.rename(os.fsdecode(os.fsencode(new.with_suffix("")) + b"\xff.png"))
    message = read_fault(tmp_path)
    assert f"{os.fsencode(new.name)!r}"[2:-1] in message
    assert "is not valid UTF-8; rename it" in message


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\x1b[31m", "a\u2028b", "a\x85b"])
def test_class_names_with_line_breaks_or_control_characters_are_refused(tmp_path, name):
    plant(tmp_path, "dog/a.png", f"{name}/a.png")
    assert f"the class name {name!r} of '" in read_fault(tmp_path)


def test_unusual_class_names_are_kept(tmp_path):
    names = ["a b", "\U0001f469\u200d\U0001f680", "\u0634\u200c\u062f", "a\xa0b", "100%", "a,b;c"]
    assert {*find_data(plant(tmp_path, *(f"{name}/1.png" for name in names))).class_names} == {*names}


def test_unicode_normal_forms_are_one_class(tmp_path):
    plant(tmp_path, "caf\u00e9/1.png", "cafe\u0301/2.png", "bar/3.png")
    found = find_data(tmp_path)
    assert found.class_names == ("bar", "caf\u00e9")
    assert found.train.labels.tolist() == [0, 1, 1]
    plant(tmp_path / "s", "train/caf\u00e9/1.png", "train/bar/1.png", "test/cafe\u0301/2.png")
    assert find_data(tmp_path / "s").splits["test"].labels.tolist() == [1]


def test_splits_within_class_folders(tmp_path):
    plant(tmp_path, "cat/Train/1.png", "cat/test/2.png", "dog/Train/1.png", "dog/test/2.png", "cat/loose.png")
    found = find_data(tmp_path)
    assert found.layout == "one folder per class, each with Train/ and test/"
    assert list_contents(found) == {
        "train": [("cat/Train/1.png", "cat"), ("dog/Train/1.png", "dog")],
        "test": [("cat/test/2.png", "cat"), ("dog/test/2.png", "dog")],
    }
    assert "images outside the class folders: 1" in found.notes


def test_extra_folder_around_the_classes_of_a_split(tmp_path):
    plant(tmp_path, *(f"training_set/training_set/{label}/1.png" for label in ("cats", "dogs")))
    plant(tmp_path, "test_set/images/cats/2.png", "test_set/images/dogs/2.png")
    (tmp_path / "test_set" / "images" / "cows").mkdir()
    found = find_data(tmp_path)
    assert list_contents(found) == {
        "train": [("training_set/training_set/cats/1.png", "cats"), ("training_set/training_set/dogs/1.png", "dogs")],
        "test": [("test_set/images/cats/2.png", "cats"), ("test_set/images/dogs/2.png", "dogs")],
    }
    assert found.notes == ("folders without images: test_set/images/cows",)
    plant(tmp_path / "b", "train/cat/x/1.png", "train/dog/x/1.png", "test/cat/x/1.png", "test/cat/y/1.png")
    assert len(find_data(tmp_path / "b").splits["test"]) == 2


@pytest.mark.parametrize(
    "tops", [("fold1", "fold2"), ("part A", "train"), ("2019", "2020"), ("train", "more", "extra")]
)
def test_top_folders_with_equal_subfolders_are_refused(tmp_path, tops):
    message = read_fault(plant(tmp_path, *(f"{top}/{label}/1.png" for top in tops for label in ("cat", "dog"))))
    assert (
        "with the same folders in them (cat and dog); if these are the classes, rename the folders above them"
        in message
    )
    assert "give a .csv of path and label" in message


def test_classes_may_have_different_subfolders(tmp_path):
    plant(tmp_path, "cat/tabby/1.png", "cat/siamese/1.png", "dog/pug/1.png", "dog/husky/1.png", "cow/images/1.png")
    plant(tmp_path, "ox/images/1.png")
    assert find_data(tmp_path).class_names == ("cat", "cow", "dog", "ox")


def test_outputs_of_shiftvit_and_system_folders_are_ignored(tmp_path):
    plant(tmp_path, "cat/1.png", "dog/1.png", "@eaDir/1.png", "cat/@eaDir/1.png/thumb.jpg", "$RECYCLE.BIN/1.png")
    plant(tmp_path, "runs/one/recipe.toml", "runs/one/environment.json", "runs/one/figures/curves.png")
    plant(tmp_path, "cat/packed/bundle.json", "cat/packed/model.safetensors", "cat/packed/a.png")
    plant(tmp_path, "exports/e/report.json", "exports/e/model.onnx", "exports/e/a.png", "exports/e/deep/b.png")
    plant(tmp_path, "found/evaluation.json", "found/confusion_matrix.png")
    found = find_data(tmp_path)
    assert list_contents(found) == {"train": [("cat/1.png", "cat"), ("dog/1.png", "dog")]}
    assert found.notes == (
        "folders that are a bundle of shiftvit: 1",
        "folders that are a run of shiftvit: 1",
        "folders that are an evaluation of shiftvit: 1",
        "folders that are an export of shiftvit: 1",
        "hidden files and folders: 3",
    )
    assert "is a run of shiftvit, not data; give the folder of the images" in read_fault(tmp_path / "runs" / "one")
    assert "images" in read_fault(tmp_path / "runs")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/1.psd", "dog/1.DNG"], "holds no images that can be used (left out: files of type .dng: 1, files of"),
        (
            ["cat/1.psd", "dog/1.psd"],
            "shiftvit reads JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, JPEG 2000 and PPM files with",
        ),
        (["cat/1", "dog/1"], "(left out: files without an extension: 2); shiftvit reads JPEG, PNG"),
        (["1.png", "2.png", "labels.csv"], "holds 2 images without class folders; give '{}/labels.csv' instead of"),
        (["train/1.png", "train/2.png", "metadata.csv"], "give '{}/metadata.csv' instead of the folder if it lists"),
        (["deep/d.npz"], "(left out: files of type .npz: 1); give '{}/deep/d.npz' instead of the folder"),
        (["images/train/a/1.png", "images/train/b/1.png", "labels/a.txt"], "did you mean '{}/images/train'?"),
        (
            ["cat/1.png", "dog/1.psd"],
            "one class, 'cat' (also found: files of type .psd: 1; folders with",
        ),
        (
            ["train/a/1.png", "train/b/1.svg", "test/b/1.png"],
            "no images in train (also found: files of type .s",
        ),
        (["data.zip"], "holds no images that can be used (left out: files of type .zip: 1)"),
        (["arc/set/train/a/1.png", "arc/set/test/a/1.png"], "holds only one class folder; did you mean '{}/arc/set'?"),
        (["arc/set/a/1.png", "arc/set/b/x/1.png", "loose.png"], "did you mean '{}/arc/set'?"),
    ],
)
def test_messages_show_what_the_folder_holds(tmp_path, names, message):
    assert message.format(tmp_path) in read_fault(plant(tmp_path, *names))
