"""Trees as people have them: what is found in each, and the line for each fault."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shiftvit.data.find.find import find_data
from trees import SAMPLES, contents, fault, plant


def test_one_folder_a_class(tmp_path):
    root = plant(
        tmp_path, "c10/x.png", "c2/b.JPG", "c2/a.png", "c2/deep/er/c.png", "c2/notes.txt", "c2/more.txt", "loose.png"
    )
    plant(root, ".DS_Store", ".git/x.png", "__MACOSX/c2/x.png", "c2/Makefile", "none/x.json")
    found = find_data(str(root))
    assert found.layout == "one folder a class"
    assert found.class_names == ("c2", "c10")
    assert contents(found) == {
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


def test_the_packaged_samples():
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
def test_folders_of_splits(tmp_path, name):
    plant(tmp_path, "Train/cat/1.png", "Train/dog/1.png", f"{name}/cat/2.png", "TEST/dog/3.png", "TEST/cat/3.png")
    plant(tmp_path, "extra/cat/1.png", "train.txt", "Train/loose.png")
    (tmp_path / "TEST" / "horse").mkdir()
    found = find_data(tmp_path)
    assert found.layout == f"Train/, {name}/ and TEST/ with one folder a class"
    assert contents(found) == {
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
def test_splits_and_classes_are_told_apart(tmp_path, names, classes, splits):
    found = find_data(plant(tmp_path, *names))
    assert found.class_names == classes
    assert list(found.splits) == splits


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no images; put the images of each class into a folder of its name"),
        (["a.txt", "cat/a.txt"], "holds no images"),
        (["1.png", "2.png", "none/x.txt"], "holds 2 images without class folders; put the images of each class"),
        (["train/1.png", "test/1.png"], "train' holds images without class folders; put the images"),
        (["cat/1.png", "cat/2.png"], "has one class, 'cat'; a classifier needs 2 or more"),
        (["data/cat/1.png", "data/dog/1.png"], "holds one class folder; did you mean '"),
        (["train/cat/1.png", "test/cat/1.png"], "has one class, 'cat'"),
        (["val/cat/1.png", "test/dog/1.png"], "has test/ but no train/ with images"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/b/1.png"], "val/ and valid/, which all mean valid"),
        (["train/a/1.png", "train/b/1.png", "test/zebra/7.png"], "the class 'zebra' of test ("),
    ],
)
def test_a_line_for_each_fault_of_a_tree(tmp_path, names, message):
    assert message in fault(plant(tmp_path, *names))


def test_paths_that_are_nothing(tmp_path):
    assert "nowhere' does not exist; check the path" in fault(tmp_path / "nowhere")
    assert "cannot be read" in fault(str(plant(tmp_path, "a.txt") / "a.txt" / "b"))
    assert "cannot be read" in fault("a\0b")
    assert "a.txt' is not a folder, .csv, .tsv, .npz or .parquet" in fault(tmp_path / "a.txt")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    locked = plant(tmp_path, "a/1.png", "b/1.png") / "b"
    locked.chmod(0)
    try:
        assert "b' cannot be read: Permission denied" in fault(tmp_path)
    finally:
        locked.chmod(0o755)


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    plant(tmp_path, "a/1.png", "b/1.png")
    scan = os.scandir

    def guarded(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert "the folder '" in fault(tmp_path)
    assert fault(tmp_path).endswith("b' cannot be read: Permission denied; check its permissions")


def test_links(tmp_path):
    store = plant(tmp_path / "store", "cats/1.png", "dogs/1.png")
    root = plant(tmp_path / "data", "bird/1.png")
    (root / "cat").symlink_to(store / "cats")  # a class
    (root / "bird" / "circle").symlink_to(root)
    (root / "bird" / "gone.png").symlink_to("nowhere")
    (root / "bird" / "file.png").symlink_to(store / "dogs" / "1.png")
    found = find_data(root)
    assert contents(found)["train"] == [("bird/1.png", "bird"), ("bird/file.png", "bird"), ("cat/1.png", "cat")]
    assert found.notes == ("broken links and special files: 1", "links to folders within a class: 1")


def test_nothing_is_decoded(tmp_path, monkeypatch):
    plant(tmp_path, "a/1.png", "b/1.png")
    monkeypatch.setattr(Image, "open", None)
    (tmp_path / "a" / "2.png").write_bytes(b"no picture")
    assert len(find_data(tmp_path).splits["train"]) == 3


def test_a_class_folder_whose_name_is_no_text(tmp_path):
    plant(tmp_path, "dog/a.png", "cat/a.png")
    (tmp_path / "cat").rename(tmp_path / os.fsdecode(b"cat\xff"))
    assert "is not valid UTF-8; rename it" in fault(tmp_path)
