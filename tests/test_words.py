"""The names of splits, which folders, tables, archives and Parquet files share."""

from __future__ import annotations

import numpy as np
import pytest

from pace import limit_time
from parquet_tables import write_cifar
from shiftvit.data.find.find import find_data
from shiftvit.data.find.words import is_litter, is_split, name_splits, normalise_name
from trees import make_arrays, plant, save_archive

TRAIN = ["train", "Training", "TRN", "train_set", "train-images", "images_train", "01_train", "trainset", "TrainData"]
VALIDATION = ["val", "Valid", "VALIDATION", "dev", "val2017", "validation set", "02-val", "devset"]
TEST = ["test", "Testing", "tst", "test1", "TestImages", "03 test", "test.data", "test_files"]
AMBIGUOUS = ["eval", "holdout", "hold-out", "Evaluation_set", "held_out"]


def test_usual_split_names_are_recognised():
    for split, names in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        assert name_splits(names) == dict.fromkeys(names, split)
        assert all(map(is_split, names))


def test_eval_means_the_missing_split():
    for name in AMBIGUOUS:
        assert name_splits(["train", name]) == {"train": "train", name: "test"}
        assert name_splits(["train", "dev", name])[name] == "test"
        assert name_splits(["train", "test", name])[name] == "validation"


def test_other_names_are_not_splits():
    others = ["", "cat", "1", "data", "images", "train station", "bus_train", "trainer", "contest", "valley", "devil"]
    assert name_splits(others) == {}


def test_hostile_names_are_checked_quickly():
    with limit_time(20):  # a pattern that backtracks would take far longer
        assert not is_split("images" * 40 + "s" + "imagesdata" * 40 + "!")


def test_system_names_and_unicode_normal_forms():
    assert all(
        map(is_litter, [".git", "@eaDir", "__MACOSX", "$RECYCLE.BIN", "lost+found", "System Volume Information"])
    )
    assert not any(map(is_litter, ["cat", "@home", "#1", "recycled"]))
    assert normalise_name(" cafe\u0301 ") == normalise_name("caf\u00e9") == "caf\u00e9"


PAIRS = [
    *(("train", "validation", name) for name in VALIDATION),
    *(("train", "test", name) for name in TEST + AMBIGUOUS),
    *((name, "test", "test") for name in TRAIN),
]


@pytest.mark.parametrize(("train", "split", "name"), PAIRS)
def test_all_forms_of_data_recognise_split_names(tmp_path, train, split, name):
    names = {train: range(4), name: range(4, 6)}
    folder = plant(tmp_path / "f", *(f"{top}/{'ab'[n % 2]}/{n}.png" for top, numbers in names.items() for n in numbers))
    rows = [f"{top},{n}.png,{'ab'[n % 2]}" for top, numbers in names.items() for n in numbers]
    table = plant(tmp_path / "t", *(f"{n}.png" for n in range(6))) / "t.csv"
    table.write_text("\n".join(["split,path,label", *rows]))
    x, y = make_arrays()
    letters = {top: "".join(filter(str.isalpha, top)) for top in names}
    archive = save_archive(
        tmp_path / "d.npz",
        **{f"x_{letters[top]}": x[numbers] for top, numbers in names.items()},
        **{f"y_{letters[top]}": y[numbers] for top, numbers in names.items()},
    )
    for top in names:
        write_cifar(tmp_path / "p" / f"{top}-00000-of-00001.parquet", slice(0, 20))
        write_cifar(tmp_path / "q" / top / "0.parquet", slice(0, 20))
    for path in (folder, table, archive, tmp_path / "p", tmp_path / "q"):
        found = find_data(path)
        assert [*found.splits] == ["train", split], path
        if path not in (tmp_path / "p", tmp_path / "q"):
            assert [len(part) for part in found.splits.values()] == [4, 2], path


def test_split_columns_are_recognised_by_content(tmp_path):
    plant(tmp_path, *(f"{n}.png" for n in range(4)))
    rows = ["0.png,a,Training", "1.png,b,Training", "2.png,a,PublicTest", "3.png,b,PrivateTest"]
    (tmp_path / "t.csv").write_text("\n".join(["file,label,Usage", *rows]))
    assert {name: len(part) for name, part in find_data(tmp_path / "t.csv").splits.items()} == {"train": 2, "test": 2}
    (tmp_path / "t.csv").write_text("\n".join(["file,label,set", *(row.replace("Test", "Place") for row in rows)]))
    assert {name: len(part) for name, part in find_data(tmp_path / "t.csv").splits.items()} == {"train": 4}


@pytest.mark.parametrize("form", ["{}_x", "X_{}", "{}X", "{}_images", "images-{}", "x{}"])
def test_arrays_are_found_by_usual_names(tmp_path, form):
    x, y = make_arrays()
    labels = form.replace("images", "labels").replace("x", "y").replace("X", "Y")
    content = {}
    for split in ("train", "valid"):
        content |= {form.format(split): x, labels.format(split): y}
    found = find_data(save_archive(tmp_path / "d.npz", **content, extra=y))
    assert [*found.splits] == ["train", "validation"]
    assert found.notes == ("arrays that are not used: extra",)
    np.testing.assert_array_equal(found.train.images, x)
    assert found.train.paths[1] == f"{form.format('train')}[1]"
