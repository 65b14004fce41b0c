"""Parquet files of the Hugging Face Hub: finding their images, with the same results as from image files."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from parquet_tables import BLOBS, CHOSEN, CIFAR, LABELS, NAMES, SAMPLE, encode, make_structs, write_cifar, write_parquet
from shiftvit.config import DataConfig, TrainConfig
from shiftvit.data.check.checks import check_data
from shiftvit.data.decode.images import decode
from shiftvit.data.evaluated import find_evaluated
from shiftvit.data.find.find import find_data
from shiftvit.data.find.listing import list_images
from shiftvit.data.load import load_data
from shiftvit.preprocess import Preprocess
from shiftvit.recipes.recipe import Recipe
from trees import plant, read_fault


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SHIFTVIT_CACHE", str(folder))
    return folder / "parquet"


def read_contents(found):
    """Returns split -> [(class, pixels)], sorted."""
    return {
        split: sorted(
            (found.class_names[label], decode(path).tobytes())
            for path, label in zip(part.paths, part.labels, strict=True)
        )
        for split, part in found.splits.items()
    }


@pytest.mark.parametrize("home", ["data", "plain_text", "."])
def test_hub_folder_equals_the_same_images_in_folders(tmp_path, home):
    root = plant(tmp_path / "hub", "README.md", ".gitattributes")
    write_cifar(root / home / "train-00000-of-00002.parquet", slice(0, 30))
    write_cifar(root / home / "train-00001-of-00002.parquet", slice(30, 45))
    write_cifar(root / home / "test-00000-of-00001.parquet", slice(45, 60))
    for number, (blob, label) in enumerate(zip(BLOBS, LABELS, strict=True)):
        path = tmp_path / "tree" / ("train" if number < 45 else "test") / NAMES[label] / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix((".png", ".jpg")[number % 2]).write_bytes(blob)
    found, tree = find_data(root), find_data(tmp_path / "tree")
    assert found.layout == "Parquet files (2 of train and 1 of test) with images in 'img' and labels in 'label'"
    assert found.class_names == tree.class_names == NAMES
    assert read_contents(found) == read_contents(tree)
    assert found.splits["train"].labels.tolist() == LABELS[:45]  # in the order of the rows
    assert found.splits["train"].labels.dtype == np.int64
    assert found.splits["train"].paths[31] == str(root / home / "train-00001-of-00002.parquet#1")
    assert {"files of type .md: 1", "hidden files and folders: 1"} <= {*found.notes}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-00000-of-00001-0123456789abcdef.parquet", "valid-00000-of-00001.parquet"], "train validation"),
        (["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"], "train train test"),
        (["Train/a.parquet", "DEV/a.parquet", "eval/a.parquet"], "train validation test"),
        (["my_train_file.parquet", "digits-test.PARQUET"], "train test"),
        (["anything.parquet", "more.parquet"], "train train"),
        (["train1.parquet", "train2.parquet"], "train train"),
    ],
)
def test_splits_are_inferred_from_file_and_folder_names(tmp_path, names, splits):
    for number, name in enumerate(names):
        write_cifar(tmp_path / name, slice(0, 20 + number))
    found = find_data(tmp_path)
    expected = [
        (name, split, 20 + number) for number, (name, split) in enumerate(zip(names, splits.split(), strict=True))
    ]
    for name, split, rows in expected:
        held = [path for path in found.splits[split].paths if path.startswith(f"{tmp_path / name}#")]
        assert held == [f"{tmp_path / name}#{row}" for row in range(rows)]
    assert sum(map(len, found.splits.values())) == sum(rows for *_, rows in expected)


def test_unknown_splits_are_left_out(tmp_path):
    for name in ("train", "extra", "train_extra"):
        write_cifar(tmp_path / "data" / f"{name}-00000-of-00001.parquet", slice(0, 20))
    found = find_data(tmp_path)
    assert len(found.splits["train"]) == 20
    unknown = "data/extra-00000-of-00001.parquet and data/train_extra-00000-of-00001.parquet"
    assert f"Parquet files of no known split: {unknown}" in found.notes


def test_single_file_is_for_training(tmp_path, monkeypatch):
    write_cifar(tmp_path / "test-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    found = find_data("test-00000-of-00001.parquet")
    assert [*found.splits] == ["train"]
    assert found.splits["train"].paths[59] == "test-00000-of-00001.parquet#59"
    np.testing.assert_array_equal(decode(found.splits["train"].paths[58]), SAMPLE.train.images[CHOSEN[58]])
    assert list_images([found.splits["train"].paths[7]]) == [found.splits["train"].paths[7]]


GREY = encode(np.arange(64, dtype=np.uint8).reshape(8, 8))
PALETTE = io.BytesIO()
Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P").save(PALETTE, "PNG")


@pytest.mark.parametrize(
    ("features", "columns", "classes", "labels", "remark"),
    [
        (  # CIFAR-100: two ClassLabels
            {
                "img": {"_type": "Image"},
                "fine_label": {"names": ["whale", "apple"], "_type": "ClassLabel"},
                "coarse_label": {"names": ["b", "a"], "_type": "ClassLabel"},
            },
            {"img": make_structs([GREY, PALETTE.getvalue(), GREY]), "fine_label": [1, 0, 1], "coarse_label": [0, 1, 0]},
            ("whale", "apple"),
            [1, 0, 1],
            "columns of labels that are not used, since 'fine_label' is the first: coarse_label",
        ),
        (  # metadata take precedence over the names of columns
            {"scan": {"_type": "Image"}, "kind": {"names": ["a", "b"], "_type": "ClassLabel"}},
            {
                "image": make_structs([b"no"] * 3),
                "label": [7, 8, 9],
                "scan": make_structs([GREY] * 3),
                "kind": [0, 1, 1],
            },
            ("a", "b"),
            [0, 1, 1],
            None,
        ),
        (None, {"image": make_structs([GREY] * 4), "label": ["dog", "cat ", None, " "]}, ("cat", "dog"), [1, 0], "2"),
        (None, {"image": make_structs([GREY] * 4), "label": [1.0, None, 0.0, float("nan")]}, ("0", "1"), [1, 0], "2"),
        (None, {"image": pa.array([GREY] * 3), "labels": [10, 9, 10]}, ("9", "10"), [1, 0, 1], None),
        (None, {"a": pa.array([GREY] * 2, pa.large_binary()), "class": [True, False]}, ("0", "1"), [1, 0], None),
        (
            None,
            {"IMG": make_structs([GREY] * 3), "Label": pa.array(["x", "y", "x"]).dictionary_encode(), "id": [1, 2, 3]},
            ("x", "y"),
            [0, 1, 0],
            None,
        ),
        ({"image": [], "label": None}, {"image": make_structs([GREY] * 2), "label": [0, 1]}, ("0", "1"), [0, 1], None),
        (
            {"label": {"names": 3}},
            {"image": make_structs([GREY] * 2), "label": [0, -1]},
            None,
            None,
            "has one class, '0'",
        ),
    ],
)
def test_image_and_label_columns(tmp_path, features, columns, classes, labels, remark):
    path = write_parquet(tmp_path / "a.parquet", features, **columns)
    if classes is None:
        assert remark in read_fault(path)
        return
    found = find_data(path)
    assert found.class_names == classes
    assert found.splits["train"].labels.tolist() == labels
    assert remark is None or any(phrase.endswith(remark) for phrase in found.notes)
    for name in found.splits["train"].paths:
        np.testing.assert_array_equal(decode(name), np.repeat(np.arange(64).reshape(8, 8, 1), 3, axis=2))


def test_images_without_labels_are_left_out(tmp_path):
    write_cifar(tmp_path / "train-00000-of-00001.parquet", labels=[-1, None, *LABELS[2:]])
    write_cifar(tmp_path / "test-00000-of-00001.parquet", labels=[-1] * 60)
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", img=make_structs(BLOBS[:2]))
    found = find_data(tmp_path)
    assert [*found.splits] == ["train"]
    assert [path.split("#")[1] for path in found.splits["train"].paths] == [str(row) for row in range(2, 60)]
    assert found.notes == (
        "images of train without a label: 2",
        "validation, whose 2 images have no labels",
        "test, whose 60 images have no labels",
    )
    assert found.splits["train"].labels.tolist() == LABELS[2:]


def test_metadata_also_names_classes_without_images(tmp_path):
    write_cifar(tmp_path / "train.parquet", slice(0, 2))
    write_parquet(
        tmp_path / "test.parquet", img=make_structs(BLOBS[2:4]), label=LABELS[2:4]
    )  # the other file has its class names
    found = find_data(tmp_path)
    assert found.class_names == NAMES
    assert found.splits["test"].labels.tolist() == LABELS[2:4]
    assert found.notes[0].startswith("train has no images of ")


TWO_IMAGES = {"image": make_structs([GREY] * 2), "label": [0, 1]}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"train.parquet": {"text": ["a", "b"], "label": [0, 1]}},
            "has no column with the bytes of images, only text (string), label (int64); store th",
        ),
        (
            {"train.parquet": {"a": pa.array([GREY]), "b": pa.array([GREY])}},
            "bytes in the columns a, b; rename the one with images to 'image'",
        ),
        (
            {"train.parquet": {"image": ["a.png", "b.png"], "label": [0, 1]}},
            "only image (string), label (int64); store them in a column named image (shiftvit reads no paths, base64",
        ),
        (
            {"train.parquet": {"image": make_structs([GREY])}},
            "has no column of labels for training, only image (struct<",
        ),
        (
            {"train.parquet": TWO_IMAGES | {"label": [[0], [1]]}},
            "label (list<element: int64>); rename the column of labels to 'label'; it must hold whole numbers or names",
        ),
        ({"train.parquet": TWO_IMAGES | {"label": [0.0, 0.5]}}, "has the label 0.5; labels are whole numbers or names"),
        (
            {"train.parquet": TWO_IMAGES | {"label": [-1, None]}},
            "has only null or -1 in 'label' of its training images; give",
        ),
        ({"test.parquet": TWO_IMAGES}, "has Parquet files of test and none of train; add them, or give a single file"),
        (
            {"a/train.parquet": TWO_IMAGES, "b/train.parquet": TWO_IMAGES},
            "holds several data sets of Parquet files; give one of '",
        ),
        ({"train.parquet": TWO_IMAGES, "test.parquet": TWO_IMAGES | {"label": [0, 2]}}, "the class '2' of test ("),
        (
            {"train.parquet": {"image": make_structs([]), "label": pa.array([], pa.int64())}},
            "has no images for training",
        ),
    ],
)
def test_invalid_tables_fail_in_one_line(tmp_path, tables, message):
    for name, columns in tables.items():
        write_parquet(tmp_path / name, **columns)
    assert message in read_fault(tmp_path)


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (["a", "b"], [0, 2], "row 1 of '{}' has the label 2, out of range for 2 classes"),
        (["a", "b"], [-2, 1], "row 0 of '{}' has the label -2, out of range for 2 classes"),
        (["a", "a"], [0, 1], "'{}' has two classes with the same name in 'label'"),
    ],
)
def test_invalid_classes_fail_in_one_line(tmp_path, names, labels, message):
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    path = write_parquet(tmp_path / "a.parquet", features, image=make_structs([GREY] * 2), label=labels)
    assert message.format(path) in read_fault(path)


def test_corrupt_image_is_named_by_its_row_and_skipped(tmp_path, capsys):
    blobs = [*BLOBS]
    blobs[7], blobs[9] = BLOBS[7][:40], None
    path = write_parquet(
        tmp_path / "data" / "train-00000-of-00001.parquet", CIFAR, img=make_structs(blobs), label=LABELS
    )
    report = check_data(find_data(tmp_path))
    assert [image["path"] for image in report.as_dict()["corrupt"]] == [f"{path}#7", f"{path}#9"]
    assert report.forms == {"PNG": 30, "JPEG": 28}
    assert report.modes == {"RGB": 58}
    assert report.harmful[0].startswith(f"corrupt: 2 of 60 images, such as '{path}#7' is not a readable JPEG")
    capsys.readouterr()
    config = DataConfig(name=str(tmp_path), validation=10, test=0)
    last = TrainConfig(select="last")
    data = load_data(Recipe(name="r", data=config, preprocess=Preprocess(resize=32, crop=32), train=last))
    notices = capsys.readouterr().err
    assert f"skipped: '{path}#7' is not a readable JPEG" in notices
    assert f"skipped: '{path}#9' has no image" in notices
    assert data.test_is_validation
    assert data.test is data.validation
    assert len(data.train) + len(data.test) == 58
    for index in range(0, len(data.train), 7):
        row = int(data.train.paths[index].split("#")[1])
        np.testing.assert_array_equal(data.train.images[index], decode(BLOBS[row]))
        assert data.train.labels[index] == LABELS[row]


def test_evaluation_takes_the_test_split(tmp_path):
    write_cifar(tmp_path / "train.parquet", slice(0, 30))
    write_cifar(tmp_path / "test.parquet", slice(30, 60))
    found = find_evaluated(str(tmp_path)).data
    assert {name: part.labels.tolist() for name, part in found.splits.items()} == {"test": LABELS[30:]}


def test_duplicates_across_splits_are_found(tmp_path):
    write_cifar(tmp_path / "train.parquet", slice(0, 30))
    write_cifar(tmp_path / "test.parquet", slice(28, 40))
    leaks = [leak["images"] for leak in check_data(find_data(tmp_path)).as_dict()["leaks"] if leak["kind"] == "exact"]
    shared = [{image["path"].rsplit("/", 1)[1] for image in images} for images in leaks]
    assert shared == [{"train.parquet#28", "test.parquet#0"}, {"train.parquet#29", "test.parquet#1"}]


def test_image_folders_take_precedence_over_tables_without_images(tmp_path):
    plant(tmp_path, "a/1.png", "b/1.png")
    write_parquet(tmp_path / "metadata.parquet", file_name=["a/1.png", "b/1.png"], label=[0, 1])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    found = find_data(tmp_path)
    assert (found.layout, found.notes) == ("one folder per class", ("files of type .parquet: 2",))


def test_pictures_beside_tables_are_left_out(tmp_path):
    write_cifar(plant(tmp_path, "assets/figure.png", "a/1.png") / "data" / "train.parquet")
    found = find_data(tmp_path)
    assert len(found.splits["train"]) == 60
    assert "images beside the Parquet files: 2" in found.notes


def test_missing_pyarrow_is_reported(tmp_path, monkeypatch):
    path = write_cifar(tmp_path / "a.parquet")
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    line = f"{str(path)!r} is Parquet, and pyarrow is not installed; pip install 'pyarrow>=18.0'"
    assert read_fault(path) == read_fault(tmp_path) == line
    plant(tmp_path, "a/1.png", "b/1.png")
    assert find_data(tmp_path).layout == "one folder per class"


@pytest.mark.slow
def test_pyarrow_is_imported_only_if_needed(tmp_path):
    plant(tmp_path, "a/1.png", "b/1.png")
    program = (
        "import sys, shiftvit.data.load\n"
        "from shiftvit.data.check.checks import check_data\n"
        "from shiftvit.data.find.find import find_data\n"
        "check_data(find_data(sys.argv[1])); print('pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
