"""Checks of real pictures with planted faults: they find each fault and nothing else."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from shiftvit import ShiftViTError
from shiftvit.config import DataConfig
from shiftvit.data.check.checks import check_data
from shiftvit.data.find.find import find_data
from shiftvit.data.find.splits import split_as
from trees import SAMPLES, save_archive

ORIGINALS = sorted(SAMPLES.rglob("*.png"))


def is_valid_figure(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    return pixels.std() > 5 and min(pixels.shape[:2]) > 150


def copy_picture(root, where, number):
    """Copies one of the twelve real pictures into the tree, and returns the new path."""
    path = root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ORIGINALS[number], path)
    return path


@pytest.fixture
def clean_data(tmp_path):
    """A tree without faults: eight training and four test pictures in two classes."""
    for number in range(12):
        copy_picture(tmp_path, f"{'train' if number < 8 else 'test'}/{'ab'[number % 2]}/{number:02}.png", number)
    return tmp_path


def run_checks(root, **options):
    return check_data(find_data(root), **options)


def describe_images(found, members):
    """Returns "split/class/file" for each image."""
    splits, classes = found.data.splits, found.data.class_names
    return [
        f"{name}/{classes[splits[name].labels[index]]}/{splits[name].paths[index].rsplit('/', 1)[-1]}"
        for name, index in members
    ]


def test_clean_data_has_no_faults(clean_data):
    found = run_checks(clean_data)
    assert (found.harmful, found.corrupt, found.groups, found.complete) == ([], (), (), True)
    assert {split: counts.tolist() for split, counts in found.counts.items()} == {"train": [4, 4], "test": [2, 2]}
    assert found.imbalance == {"train": 1.0, "test": 1.0}
    assert found.sizes.tolist() == [[32, 32]] * 12
    assert (found.forms, found.modes) == ({"PNG": 12}, {"RGB": 12})


def test_corrupt_files_are_reported_and_not_counted(clean_data):
    whole = (clean_data / "train/a/00.png").read_bytes()
    (clean_data / "train/a/half.png").write_bytes(whole[: len(whole) // 2])
    (clean_data / "train/b/empty.jpg").write_bytes(b"")
    (clean_data / "test/b/text.png").write_bytes(b"no picture")
    found = run_checks(clean_data)
    members, faults = zip(*found.corrupt, strict=True)
    assert describe_images(found, members) == ["train/a/half.png", "train/b/empty.jpg", "test/b/text.png"]
    assert [word in fault for word, fault in zip(("PNG", "is empty", "an image"), faults, strict=True)] == [True] * 3
    assert found.counts["train"].tolist() == [4, 4]
    assert len(found.harmful) == 1
    assert found.harmful[0].startswith("corrupt: 3 of 15 images, such as '")
    assert "half.png" in found.harmful[0]


def test_exact_duplicates_across_splits_are_leakage(clean_data):
    copy_picture(clean_data, "test/a/again.png", 0)
    # The same pixels in another format, which a hash of the file would miss.
    Image.open(ORIGINALS[1]).save(clean_data / "test/b/other.bmp")
    found = run_checks(clean_data)
    assert [describe_images(found, group.members) for group in found.leaks] == [
        ["train/a/00.png", "test/a/again.png"],
        ["train/b/01.png", "test/b/other.bmp"],
    ]
    assert {group.kind for group in found.groups} == {"exact"}
    assert (found.duplicates, found.conflicts) == ([], [])
    (line,) = found.harmful
    assert line.startswith("leakage: 2 of 6 test images are in train too, exactly or nearly, ")
    assert line.endswith(f"such as '{clean_data}/test/a/again.png' and '{clean_data}/train/a/00.png'")


def test_near_duplicates_are_found(clean_data):
    with Image.open(ORIGINALS[2]) as picture:
        picture.save(clean_data / "train/a/jpeg.jpg", quality=85)
        ImageEnhance.Brightness(picture).enhance(1.05).save(clean_data / "test/a/bright.png")
    with Image.open(ORIGINALS[9]) as picture:
        picture.resize((64, 64), Image.Resampling.BICUBIC).save(clean_data / "test/b/large.webp", quality=90)
    found = run_checks(clean_data)
    assert {group.kind for group in found.groups} == {"near"}
    assert [describe_images(found, group.members) for group in found.leaks] == [
        ["train/a/02.png", "train/a/jpeg.jpg", "test/a/bright.png"]
    ]
    assert [describe_images(found, group.members) for group in found.duplicates] == [
        ["test/b/09.png", "test/b/large.webp"]
    ]
    assert len(found.harmful) == 1
    assert found.harmful[0].startswith("leakage: 1 of 6 test images is in train too")


def test_same_picture_under_two_labels_is_a_conflict(clean_data):
    copy_picture(clean_data, "train/b/wrong.png", 0)
    with Image.open(ORIGINALS[3]) as picture:
        picture.save(clean_data / "train/a/wrong.jpg", quality=90)
    found = run_checks(clean_data)
    assert [(group.kind, describe_images(found, group.members)) for group in found.conflicts] == [
        ("exact", ["train/a/00.png", "train/b/wrong.png"]),
        ("near", ["train/a/wrong.jpg", "train/b/03.png"]),
    ]
    assert len(found.harmful) == 2
    assert found.harmful[0].startswith("labels: 1 picture occurs with different labels, such as '")
    assert "00.png' ('a') and '" in found.harmful[0]
    assert found.harmful[0].endswith("wrong.png' ('b')")
    assert found.harmful[1].startswith("labels: 1 picture occurs in nearly the same form with different labels")


def draw_noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 9, 3), np.uint8)


@pytest.mark.parametrize(("many", "few", "harmful"), [(150, 2, False), (100, 1, False), (101, 1, True), (150, 1, True)])
def test_imbalance_above_100_to_1_is_harmful(tmp_path, many, few, harmful):
    labels = np.array([0] * many + [1] * few)
    found = run_checks(save_archive(tmp_path / "d.npz", images=draw_noise(len(labels)), labels=labels))
    assert found.imbalance == {"train": many / few}
    assert found.harmful == (
        [f"imbalance: '0' has {many} training images and '1' 1, more than 100 to 1"] if harmful else []
    )


def test_class_without_training_images_is_harmful(tmp_path, clean_data):
    labels = np.array([0, 2] * 5)
    content = {"images": draw_noise(10), "labels": labels, "class_names": np.array(["x", "y", "z"])}
    assert run_checks(save_archive(tmp_path / "d.npz", **content)).harmful == ["classes: no training images of 'y'"]
    for path in (clean_data / "train/b").iterdir():  # the files exist but are not images
        path.write_bytes(b"")
    assert "classes: no training images of 'b'" in run_checks(clean_data).harmful


def test_sizes_modes_and_formats_are_counted(tmp_path):
    formats = {
        "a/1.png": ("RGBA", (10, 20)),
        "a/2.png": ("P", (10, 20)),
        "a/3.jpg": ("L", (30, 20)),
        "b/4.jpg": ("CMYK", (40, 20)),
        "b/5.webp": ("RGB", (20, 20)),
        "b/6.gif": ("P", (20, 20)),
        "b/7.tif": ("I;16", (20, 20)),
        "b/8.png": ("1", (20, 20)),
    }
    rng = np.random.default_rng(0)
    for name, (mode, size) in formats.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
        image = Image.fromarray(pixels).convert(mode if mode != "I;16" else "I")
        (image.convert("I;16") if mode == "I;16" else image).save(path)
    exif = Image.Exif()
    exif[274] = 6  # rotated: 50 x 20 as stored is 20 x 50 upright
    Image.fromarray(rng.integers(0, 256, (20, 50, 3), np.uint8)).save(tmp_path / "b/9.jpg", exif=exif)
    found = run_checks(tmp_path)
    assert not found.corrupt
    assert found.forms == {"PNG": 3, "JPEG": 3, "WebP": 1, "GIF": 1, "TIFF": 1}
    assert found.modes == {"RGB": 2, "P": 2, "RGBA": 1, "L": 1, "CMYK": 1, "I;16": 1, "1": 1}
    plain = found.as_dict()
    assert plain["sizes"] == {
        "distinct": 5,
        "height": {"min": 20, "median": 20, "max": 50},
        "width": {"min": 10, "median": 20, "max": 40},
    }
    assert plain["aspect_ratio"] == {"min": 0.4, "median": 1, "max": 2}


def test_json_and_table(clean_data):
    copy_picture(clean_data, "test/a/again.png", 0)
    copy_picture(clean_data, "train/b/wrong.png", 4)
    (clean_data / "train/a/empty.png").write_bytes(b"")
    found = run_checks(clean_data)
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["splits"]["train"] == {"images": 9, "classes": {"a": 4, "b": 5}, "imbalance": 1.25}
    assert [len(plain[key]) for key in ("corrupt", "duplicates", "leaks", "conflicts", "harmful")] == [1, 1, 1, 1, 3]
    assert plain["corrupt"][0]["path"].endswith("train/a/empty.png")
    assert plain["leaks"][0]["kind"] == "exact"
    assert [image["split"] for image in plain["leaks"][0]["images"]] == ["train", "test"]
    rows = {row["what"]: row["value"] for row in found.make_rows()}
    assert rows["layout"] == "train/ and test/ with one folder per class"
    assert rows["train"] == "9 images, 4 to 5 per class, imbalance 1.25 to 1"
    assert rows["copies across splits"] == "1 exact, 0 near"
    assert rows["height x width"] == "32 x 32 to 32 x 32, median 32 x 32, 1 different"
    assert (rows["corrupt"], rows["formats"], rows["left out"]) == ("1", "PNG 14", "nothing")


def test_only_corrupt_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
    found = run_checks(tmp_path)
    assert len(found.harmful) == 2
    assert json.dumps(found.as_dict(), allow_nan=False)
    assert found.make_rows()
    found.draw(tmp_path / "x.png")


def test_result_does_not_depend_on_the_number_of_threads(clean_data, monkeypatch):
    copy_picture(clean_data, "test/a/again.png", 0)
    (clean_data / "train/a/empty.png").write_bytes(b"")
    expected = run_checks(clean_data).as_dict()
    for count in (1, 1, 5):
        monkeypatch.setattr("shiftvit.threads.count_cores", lambda count=count: count)
        assert run_checks(clean_data).as_dict() == expected


def test_arrays_are_checked_like_files(tmp_path):
    images = draw_noise(6)
    images[5] = images[1]
    found = run_checks(
        save_archive(tmp_path / "d.npz", x_train=images[:4], y_train=[0, 1, 0, 1], x_test=images[4:], y_test=[0, 1])
    )
    assert [group.members for group in found.leaks] == [(("train", 1), ("test", 1))]
    assert (found.forms, found.modes) == ({"array": 6}, {"RGB": 6})
    found.draw(tmp_path / "x.png")
    assert is_valid_figure(tmp_path / "x.png")


def test_no_progress_is_printed_without_a_terminal(clean_data, capfd):
    run_checks(clean_data)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 80])
def test_figure_is_drawn_without_warnings(tmp_path, classes):
    for number in range(classes):
        copy_picture(tmp_path, f"train/class {number}/1.png", number % 12)
    copy_picture(tmp_path, "test/class 0/2.png", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_checks(tmp_path).draw(tmp_path / "x.png")
    assert is_valid_figure(tmp_path / "x.png")
    with pytest.raises(ShiftViTError, match="cannot write"):
        run_checks(tmp_path).draw(tmp_path / "missing" / "x.png")


@pytest.mark.slow
def test_special_characters_in_names(tmp_path):
    names = ["$a^$", "\u732b", "{two: lines}", "[bold]"]
    for number, name in enumerate(names):
        copy_picture(tmp_path, f"train/{name}/1\n.png", number)
    copy_picture(tmp_path, "train/{two: lines}/2\n.png", 0)
    found = run_checks(tmp_path)
    assert len(found.conflicts) == 1
    assert [line.count("\n") for line in found.harmful] == [0]
    found.draw(tmp_path / "x.png")
    assert is_valid_figure(tmp_path / "x.png")


@pytest.mark.parametrize("stratify", [True, False])
def test_random_splits_need_no_image_of_each_class(tmp_path, stratify):
    for number in range(12):
        copy_picture(tmp_path, f"{'a' if number else 'b'}/{number:02}.png", number)
    data = split_as(DataConfig(validation=2, test=2, stratify=False), find_data(tmp_path))
    found = check_data(data, made=("validation", "test"), stratify=stratify)
    faults = [line for line in found.harmful if "too few images that can be decoded for 3 splits: 'b' (1)" in line]
    assert bool(faults) == stratify
