"""Splits of a user's images: stratified partitions that depend only on the seed, and the table that stores them."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sample import replace_splits, split_data
from shiftvit import Recipe, ShiftViTError, load_data
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.data.find.find import find_data
from shiftvit.data.find.kept import restore_splits, save_splits
from trees import PICTURE, make_arrays, plant, save_archive


def make_dataset(counts, order=None):
    """Returns a data set with these numbers of files of each class. The files do not exist."""
    rows = [(f"{label}/{number:04}.png", label) for label, count in enumerate(counts) for number in range(count)]
    rows = [rows[place] for place in order] if order is not None else rows
    labels = np.array([label for _, label in rows], np.int64)
    names = tuple(f"class {number}" for number in range(len(counts)))
    return Dataset({"train": Split(labels, [path for path, _ in rows])}, names, "data", Path("data"))


def mark_copies(data, copies):
    return replace_splits(data, train=replace(data.train, copies=copies))


def convert_to_sets(found):
    return {split: {*zip(part.paths, part.labels.tolist(), strict=True)} for split, part in found.splits.items()}


@settings(max_examples=60)
@given(
    st.lists(st.integers(3, 30), min_size=2, max_size=5),
    st.sampled_from([0.0, 0.1, 0.25, 12.0]),
    st.sampled_from([0.1, 0.3, 9.0]),
    st.integers(0, 2**32 - 1),
)
def test_splits_are_a_stratified_partition(counts, validation, test, seed):
    found = make_dataset(counts)
    total = sum(counts)
    sizes = [share if share >= 1 else max(round(share * total), len(counts)) for share in (validation, test) if share]
    # The test images are drawn first. So that later splits have 1 of each class, some of them may be left.
    if min(*sizes, total - sizes[-1]) < len(counts) or total < sum(sizes):
        with pytest.raises(ShiftViTError, match=r"need 1 of each of the|is more than"):
            split_data(found, validation=validation, test=test, seed=seed)
        return
    try:
        split = split_data(found, validation=validation, test=test, seed=seed)
    except ShiftViTError:  # the first split has 1 of each class, so it may leave too few images
        assert total - sum(sizes) < 2 * len(counts)
        return
    parts = convert_to_sets(split)
    assert list(parts) == ["train", *(["validation"] if validation else []), "test"]
    assert set.union(*parts.values()) == convert_to_sets(found)["train"]
    assert sum(map(len, parts.values())) == total
    for name, share in (("validation", validation), ("test", test)):
        if share:
            part = split.splits[name]
            exact = share if share >= 1 else max(round(share * total), len(counts))
            of_each = np.bincount(part.labels, minlength=len(counts))
            assert abs(len(part) - exact) <= len(counts)  # as each class has one
            assert of_each.min() >= 1
    assert {*split.splits["train"].labels} == {*range(len(counts))}
    # Neither another call nor another order of the files changes anything; another seed does.
    order = np.random.default_rng(seed).permutation(total)
    again = split_data(make_dataset(counts, order), validation=validation, test=test, seed=seed)
    for name in parts:
        assert again.splits[name].paths == split.splits[name].paths


def test_large_splits_keep_the_class_proportions():
    split = split_data(make_dataset([1000, 200]), validation=0.1, test=0.2, seed=3)
    assert [np.bincount(part.labels).tolist() for part in split.splits.values()] == [[700, 140], [100, 20], [200, 40]]
    other = split_data(make_dataset([1000, 200]), validation=0.1, test=0.2, seed=4)
    assert convert_to_sets(split) != convert_to_sets(other)


def test_rare_class_is_in_every_split():
    split = split_data(make_dataset([500, 500, 3]), validation=0.05, test=0.05, seed=0)
    assert [np.bincount(part.labels)[2] for part in split.splits.values()] == [1, 1, 1]


def test_existing_splits_are_kept():
    found = make_dataset([20, 20])
    test = Split(np.array([0, 1]), ["t/1.png", "t/2.png"])
    found = replace_splits(found, test=test)
    split = split_data(found, validation=0.2, test=0.5, seed=0)
    assert split.splits["test"] is test
    assert {name: len(part) for name, part in split.splits.items()} == {"train": 32, "validation": 8, "test": 2}
    assert convert_to_sets(split_data(found, validation=0, test=0, seed=0)) == convert_to_sets(found)


def test_splits_of_arrays_keep_image_and_label_together(tmp_path):
    x, y = make_arrays(40)
    x[:, 0, 0, 0] = np.arange(40)
    split = split_data(
        find_data(save_archive(tmp_path / "d.npz", images=x, labels=y)), validation=0.25, test=0.25, seed=1
    )
    for part in split.splits.values():
        numbers = part.images[:, 0, 0, 0]
        np.testing.assert_array_equal(part.labels, y[numbers])
        assert part.paths == [f"images[{number}]" for number in numbers]


@pytest.mark.parametrize(
    ("counts", "shares", "message"),
    [
        ([9, 2], (0.3, 0.3), "'class 1' has 2 images, too few for 3 splits; add images until it has 3 different ones"),
        (
            [9, 1],
            (0.3, 0),
            "the class 'class 1' has 1 image, too few for 2 splits; add images until it has 2 different ones, "
            "or remove it",
        ),
        (
            [9, 9],
            (1, 0),
            "validation=1 of 18 images is 1, and both it and the rest (17) need 1 of each of the 2 classes",
        ),
        ([9, 9], (1, 0), "need 1 of each of the 2 classes; use 2 to 16, or add images"),
        ([9, 2, 3, 1], (0.3, 0.3), "of the classes, 'class 1' has 2 images and 'class 3' has 1 image, too few for 3"),
        ([9, 2, 2], (0.3, 0.3), "or remove them; or set data.validation=0, which needs only 2 of each class"),
        ([1] * 30, (0.3, 0.3), "'class 9' has 1 image and 20 more, too few for 3 splits; add images until"),
        ([9, 9], (5000, 0), "validation=5000 of 18 images is more than there are; use 2 to 16, or add images"),
        ([9, 9], (10, 12), "validation=10 of 18 images is more than the 6 that are left; use 2 to 4, or add images"),
        ([9, 9], (17, 0), "validation=17 of 18 images is 17, and both it and the rest (1) need"),
        ([9, 9], (0, 2.5), "test=2.5 is not a share of the images"),
        ([9, 9], (-1, 0), "validation=-1 is not a share"),
        ([9, 9], (float("nan"), 0), "validation=nan is not a share"),
    ],
)
def test_impossible_splits_are_refused(counts, shares, message):
    with pytest.raises(ShiftViTError) as raised:
        split_data(make_dataset(counts), validation=shares[0], test=shares[1], seed=0)
    assert message in str(raised.value)


def test_small_data_is_split_with_one_image_of_each_class():
    """A tenth of 96 images does not cover 12 classes, so a split has one image of each class."""
    split = split_data(make_dataset([8] * 12), validation=0.1, test=0.1, seed=0)
    assert {name: np.bincount(part.labels).tolist() for name, part in split.splits.items()} == {
        "train": [6] * 12,
        "validation": [1] * 12,
        "test": [1] * 12,
    }
    split = split_data(make_dataset([3] * 12), validation=0.1, test=0.1, seed=0)
    assert [np.bincount(part.labels).tolist() for part in split.splits.values()] == [[1] * 12] * 3


@settings(max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.integers(1, 60), st.integers(0, 99))
def test_limit_keeps_the_class_proportions(counts, limit, seed):
    found, total = make_dataset(counts), sum(counts)
    if limit < min(len(counts), total):
        with pytest.raises(ShiftViTError, match=f"data.limit={limit} is less than the {len(counts)} classes"):
            split_data(found, validation=0, test=0, seed=seed, limit=limit)
        return
    part = split_data(found, validation=0, test=0, seed=seed, limit=limit).train
    kept = np.bincount(part.labels, minlength=len(counts))
    assert kept.sum() == min(limit, total)
    assert (np.abs(kept - np.maximum(1, np.array(counts) * min(1, limit / total))) <= len(counts)).all()
    assert kept.min() >= 1
    assert [*part.paths] == sorted(part.paths)
    assert split_data(found, validation=0, test=0, seed=seed, limit=limit).train.paths == part.paths


def test_limit_draws_other_images_with_another_seed():
    first, again, other = (
        split_data(make_dataset([40, 40]), validation=0, test=0, seed=seed, limit=20).train.paths for seed in (1, 1, 2)
    )
    assert first == again != other


def test_stratify_and_limit_act_alike_on_files_and_arrays():
    files = make_dataset([40, 10])
    numbers = Split(files.train.labels, images=np.arange(50))
    arrays = Dataset({"train": numbers}, files.class_names, "arrays")
    for stratify in (True, False):
        options = {"validation": 0.2, "test": 0.2, "seed": 3, "stratify": stratify, "limit": 10}
        ours, named = split_data(files, **options), split_data(arrays, **options)
        for name, part in ours.splits.items():
            assert [files.train.paths[place] for place in named.splits[name].images] == part.paths
        assert (np.bincount(ours.train.labels).tolist() == [8, 2]) or not stratify


def test_copies_stay_in_one_split():
    found = make_dataset([30, 30])
    copies = np.arange(60) // 3  # each picture three times
    split = split_data(mark_copies(found, copies), validation=0.2, test=4, seed=0)
    number = dict(zip(found.train.paths, copies.tolist(), strict=True))
    parts = {name: {number[path] for path in part.paths} for name, part in split.splits.items()}
    assert {name: len(part) for name, part in split.splits.items()} == {"train": 36, "validation": 12, "test": 12}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 20
    assert all(set(part.labels.tolist()) == {0, 1} for part in split.splits.values())
    none = split_data(mark_copies(found, np.arange(60)[::-1]), validation=0.2, test=4, seed=0)
    assert convert_to_sets(none) == convert_to_sets(split_data(found, validation=0.2, test=4, seed=0))


def test_copies_with_several_labels_stay_in_training():
    found = make_dataset([10, 10])
    copies = np.arange(20)
    copies[[0, 10]] = 99
    for seed in range(20):
        train = split_data(mark_copies(found, copies), validation=0.3, test=0.3, seed=seed).train
        assert {"0/0000.png", "1/0000.png"} <= {*train.paths}


def test_copies_of_a_picture_count_once():
    copies = np.array([0, 1, 2, 3, 4, 4, 4, 5])
    with pytest.raises(ShiftViTError, match=r"'class 1' has 4 images \(2 of which are copies of another\), too few"):
        split_data(mark_copies(make_dataset([4, 4]), copies), validation=0.2, test=0.2, seed=0)


def compute_table_digest(data, path):
    save_splits(data, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("validation", "test", "seed", "digest"),
    [
        (0.1, 0.1, 0, "16b757a8ca4d1314"),
        (0.2, 0.3, 1, "03875babc164b81b"),
        (8, 9, 7, "e919ec469c1d1e39"),
        (0, 0.25, 2, "6903d122a880848c"),
        (0.3, 0, 2**32 - 1, "6066d79302ebcb41"),
        (0, 0, 0, "a5a2e12c03272fb0"),
    ],
)
def test_tree_is_split_as_in_release_0_1_0(tmp_path, validation, test, seed, digest):
    """A recipe that is trained again then uses the same splits. The digests were made with that release."""
    counts = {"cat": 31, "dog": 12, "ox 2": 5, "ox 10": 3}
    names = (f"{label}/{number}.png" for label, count in counts.items() for number in range(count))
    found = find_data(plant(tmp_path / "data", *names))
    split = split_data(found, validation=validation, test=test, seed=seed)
    assert compute_table_digest(split, tmp_path / "s.csv") == digest


def test_trees_with_splits_and_archives_are_split_as_in_release_0_1_0(tmp_path):
    names = (f"train/{label}/{number}.png" for label in "ab" for number in range(20))
    root = plant(tmp_path / "data", *names, "val/a/1.png", "val/b/1.png")
    split = split_data(find_data(root), validation=0.5, test=0.2, seed=3)
    assert compute_table_digest(split, tmp_path / "s.csv") == "f5ec28fe15e01847"
    x, y = make_arrays(40, 3)
    archive = find_data(save_archive(tmp_path / "d.npz", images=x, labels=y))
    split = split_data(archive, validation=0.25, test=10, seed=4)
    assert compute_table_digest(split, tmp_path / "s.csv") == "42bee8b6ae383330"


@pytest.mark.parametrize("kind", ["tree", "table", "archive"])
def test_saved_splits_are_restored_unchanged(tmp_path, kind):
    names = [
        f"{label}/{number} ,'\"ü\n.png" for label in ("cat, the", "dog", "class 10", "class 9") for number in range(9)
    ]
    root = tmp_path / "data"
    if kind == "archive":
        x, y = make_arrays(36, 4)
        root.mkdir()
        path = save_archive(root / "d.npz", x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    elif kind == "tree":
        path = plant(root, *names)
    else:
        plant(root, *(name.replace("\n", "") for name in names))
        lines = [
            '"' + name.replace("\n", "").replace('"', '""') + f'",{number % 3}' for number, name in enumerate(names)
        ]
        path = root / "t.csv"
        path.write_text("path,label\n" + "\n".join(lines), "utf-8")
    found = split_data(find_data(path), validation=0.2, test=0.2, seed=5)
    save_splits(found, tmp_path / "splits.csv")
    loaded = restore_splits(find_data(path), tmp_path / "splits.csv").splits
    assert list(loaded) == list(found.splits) == ["train", "validation", "test"]
    for name, part in found.splits.items():
        assert loaded[name].paths == part.paths
        np.testing.assert_array_equal(loaded[name].labels, part.labels)
        assert (loaded[name].images is None) == (part.images is None)
        if part.images is not None:
            np.testing.assert_array_equal(loaded[name].images, part.images)
    before = (tmp_path / "splits.csv").read_bytes()
    save_splits(found, tmp_path / "splits.csv")
    assert (tmp_path / "splits.csv").read_bytes() == before
    assert before.startswith(b"split,path,label\ntrain,")
    if kind != "archive":  # the data may move
        shutil.move(root, tmp_path / "moved")
        moved = restore_splits(find_data(tmp_path / "moved" / path.relative_to(root)), tmp_path / "splits.csv")
        assert all(Path(name).is_file() for part in moved.splits.values() for name in part.paths)


def test_saved_splits_number_classes_like_the_data(tmp_path):
    """They do even if the run could not use any image of a class."""
    found = find_data(plant(tmp_path / "data", *(f"{label}/{number}.png" for label in "abc" for number in range(3))))
    part = found.splits["train"]
    save_splits(replace_splits(found, train=part.take(np.flatnonzero(part.labels != 0))), tmp_path / "s.csv")
    assert restore_splits(found, tmp_path / "s.csv").train.labels.tolist() == [1, 1, 1, 2, 2, 2]


def test_unsuitable_saved_splits_are_refused(tmp_path):
    root = plant(tmp_path / "data", *(f"{label}/{number}.png" for label in "ab" for number in range(3)))
    save_splits(find_data(root), tmp_path / "s.csv")
    (root / "b" / "2.png").unlink()
    with pytest.raises(ShiftViTError, match=r"lacks 1 of the run's 6 images: 'b/2.png'; put them back"):
        restore_splits(find_data(root), tmp_path / "s.csv")
    shutil.copy(PICTURE, root / "b" / "2.png")
    (tmp_path / "s.csv").write_text("split,path,label\ntrain,a/1.png,horse")
    with pytest.raises(ShiftViTError, match=r"the run has the class 'horse', which .* does not have"):
        restore_splits(find_data(root), tmp_path / "s.csv")
    with pytest.raises(ShiftViTError, match="is not a readable table"):
        restore_splits(find_data(root), tmp_path / "nowhere.csv")
    archive = save_archive(tmp_path / "d.npz", **dict(zip(("images", "labels"), make_arrays(), strict=True)))
    (tmp_path / "s.csv").write_text("split,path,label\ntrain,images[6],0")
    with pytest.raises(ShiftViTError, match=r"lacks 1 of the run's 1 image: 'images\[6\]'"):
        restore_splits(find_data(archive), tmp_path / "s.csv")
    with pytest.raises(ShiftViTError, match="cannot write"):
        save_splits(find_data(root), tmp_path / "missing" / "s.csv")
    (tmp_path / "s.csv").write_text("split,path,label\ntrain,a/1.png,a\ntest,a/1.png,a\n")
    with pytest.raises(ShiftViTError, match=r"lists 'a/1.png' twice, with different splits or classes; restore it"):
        restore_splits(find_data(root), tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("rows", "splits"),
    [("", "no"), ("train,a/1.png,a\ntrain,b/1.png,b\n", "only train"), ("test,a/1.png,a\n", "only test")],
)
def test_run_whose_table_lost_rows_is_refused(tmp_path, rows, splits):
    root = plant(tmp_path / "data", *(f"{label}/{number}.png" for label in "ab" for number in range(3)))
    run = tmp_path / "run"
    run.mkdir()
    (run / "splits.csv").write_text(f"split,path,label\n{rows}")
    recipe = Recipe.load("photos", **{"data.name": str(root)})
    with pytest.raises(ShiftViTError, match=f"has {splits} images, but .*; restore it"):
        load_data(recipe, run=run)


def test_validation_from_the_end_equals_that_of_keras(tmp_path):
    """As `keras.Model.fit(validation_split=...)` documents it: the last samples, before any shuffling."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (50, 4, 4, 3), np.uint8), rng.integers(0, 3, 50)
    data = find_data(save_archive(tmp_path / "d.npz", images=x, labels=y))
    split = split_data(data, validation=10, test=0, seed=3, validation_from="end")
    np.testing.assert_array_equal(split.splits["validation"].images, x[40:])
    np.testing.assert_array_equal(split.train.images, x[:40])
    np.testing.assert_array_equal(split.train.labels, y[:40])
    both = split_data(data, validation=0.2, test=9, seed=3, validation_from="end")
    np.testing.assert_array_equal(both.splits["validation"].images, x[40:])
    assert len(both.test) == 9
    assert len(both.train) == 31


def test_validation_from_the_end_needs_arrays():
    with pytest.raises(ShiftViTError, match=r"validation_from='end' is for arrays.*=random"):
        split_data(make_dataset([9, 9]), validation=4, test=0, seed=0, validation_from="end")
