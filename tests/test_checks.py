"""Checks of real pictures with planted faults: each fault is found, and nothing else."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from shiftvit import ShiftViTError
from shiftvit.data.check.checks import check_data
from shiftvit.data.find.find import find_data
from trees import SAMPLES, save_archive

ORIGINALS = sorted(SAMPLES.rglob("*.png"))


def is_drawn(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    return pixels.std() > 5 and min(pixels.shape[:2]) > 150


def put(root, where, number):
    """Copies one of the twelve real pictures."""
    path = root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ORIGINALS[number], path)
    return path


@pytest.fixture
def clean(tmp_path):
    """Eight pictures to train on, four to test on, two classes; nothing is wrong with them."""
    for number in range(12):
        put(tmp_path, f"{'train' if number < 8 else 'test'}/{'ab'[number % 2]}/{number:02}.png", number)
    return tmp_path


def report(root, **options):
    return check_data(find_data(root), **options)


def names(found, members):
    """Returns split/class/file of images."""
    splits, classes = found.data.splits, found.data.class_names
    return [
        f"{name}/{classes[splits[name].labels[index]]}/{splits[name].paths[index].rsplit('/', 1)[-1]}"
        for name, index in members
    ]


def test_nothing_is_wrong_with_clean_data(clean):
    found = report(clean)
    assert (found.harmful, found.corrupt, found.groups, found.complete) == ([], (), (), True)
    assert {split: counts.tolist() for split, counts in found.counts.items()} == {"train": [4, 4], "test": [2, 2]}
    assert found.imbalance == {"train": 1.0, "test": 1.0}
    assert found.sizes.tolist() == [[32, 32]] * 12
    assert (found.forms, found.modes) == ({"PNG": 12}, {"RGB": 12})


def test_corrupt_files_are_named_with_the_fault_and_not_counted(clean):
    whole = (clean / "train/a/00.png").read_bytes()
    (clean / "train/a/half.png").write_bytes(whole[: len(whole) // 2])
    (clean / "train/b/empty.jpg").write_bytes(b"")
    (clean / "test/b/text.png").write_bytes(b"no picture")
    found = report(clean)
    members, faults = zip(*found.corrupt, strict=True)
    assert names(found, members) == ["train/a/half.png", "train/b/empty.jpg", "test/b/text.png"]
    assert [word in fault for word, fault in zip(("PNG", "is empty", "an image"), faults, strict=True)] == [True] * 3
    assert found.counts["train"].tolist() == [4, 4]
    assert len(found.harmful) == 1
    assert found.harmful[0].startswith("corrupt: 3 of 15 images, such as '")
    assert "half.png" in found.harmful[0]


def test_an_exact_duplicate_across_splits_is_leakage(clean):
    put(clean, "test/a/again.png", 0)
    # The same pixels in other bytes: the file's hash would not tell.
    Image.open(ORIGINALS[1]).save(clean / "test/b/other.bmp")
    found = report(clean)
    assert [names(found, group.members) for group in found.leaks] == [
        ["train/a/00.png", "test/a/again.png"],
        ["train/b/01.png", "test/b/other.bmp"],
    ]
    assert {group.kind for group in found.groups} == {"exact"}
    assert (found.duplicates, found.conflicts) == ([], [])
    (line,) = found.harmful
    assert line.startswith("leakage: 2 of 6 test images are in train too, the same or nearly, ")
    assert line.endswith(f"such as '{clean}/test/a/again.png' and '{clean}/train/a/00.png'")


def test_near_duplicates(clean):
    with Image.open(ORIGINALS[2]) as picture:
        picture.save(clean / "train/a/jpeg.jpg", quality=85)
        ImageEnhance.Brightness(picture).enhance(1.05).save(clean / "test/a/bright.png")
    with Image.open(ORIGINALS[9]) as picture:
        picture.resize((64, 64), Image.Resampling.BICUBIC).save(clean / "test/b/large.webp", quality=90)
    found = report(clean)
    assert {group.kind for group in found.groups} == {"near"}
    assert [names(found, group.members) for group in found.leaks] == [
        ["train/a/02.png", "train/a/jpeg.jpg", "test/a/bright.png"]
    ]
    assert [names(found, group.members) for group in found.duplicates] == [["test/b/09.png", "test/b/large.webp"]]
    assert len(found.harmful) == 1
    assert found.harmful[0].startswith("leakage: 1 of 6 test images is in train too")


def test_the_same_picture_under_two_labels(clean):
    put(clean, "train/b/wrong.png", 0)
    with Image.open(ORIGINALS[3]) as picture:
        picture.save(clean / "train/a/wrong.jpg", quality=90)
    found = report(clean)
    assert [(group.kind, names(found, group.members)) for group in found.conflicts] == [
        ("exact", ["train/a/00.png", "train/b/wrong.png"]),
        ("near", ["train/a/wrong.jpg", "train/b/03.png"]),
    ]
    assert len(found.harmful) == 2
    assert found.harmful[0].startswith("labels: 1 x the same picture under several labels, such as '")
    assert "00.png' ('a') and '" in found.harmful[0]
    assert found.harmful[0].endswith("wrong.png' ('b')")
    assert found.harmful[1].startswith("labels: 1 x nearly the same picture under several labels")


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 9, 3), np.uint8)


@pytest.mark.parametrize(("few", "harmful"), [(2, False), (1, True)])
def test_imbalance_above_100_to_1(tmp_path, few, harmful):
    labels = np.array([0] * 150 + [1] * few)
    found = report(save_archive(tmp_path / "d.npz", images=noise(len(labels)), labels=labels))
    assert found.imbalance == {"train": 150 / few}
    assert found.harmful == (
        ["imbalance: '0' has 150 training images and '1' 1, more than 100 to 1"] if harmful else []
    )


def test_a_class_without_training_images(tmp_path, clean):
    labels = np.array([0, 2] * 5)
    content = {"images": noise(10), "labels": labels, "class_names": np.array(["x", "y", "z"])}
    assert report(save_archive(tmp_path / "d.npz", **content)).harmful == ["classes: no training images of 'y'"]
    for path in (clean / "train/b").iterdir():  # files there are, images not
        path.write_bytes(b"")
    assert "classes: no training images of 'b'" in report(clean).harmful


def test_sizes_modes_and_formats(tmp_path):
    forms = {
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
    for name, (mode, size) in forms.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
        image = Image.fromarray(pixels).convert(mode if mode != "I;16" else "I")
        (image.convert("I;16") if mode == "I;16" else image).save(path)
    exif = Image.Exif()
    exif[274] = 6  # lying on its side: 50 x 20 as stored is 20 x 50 upright
    Image.fromarray(rng.integers(0, 256, (20, 50, 3), np.uint8)).save(tmp_path / "b/9.jpg", exif=exif)
    found = report(tmp_path)
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


def test_json_and_table(clean):
    put(clean, "test/a/again.png", 0)
    put(clean, "train/b/wrong.png", 4)
    (clean / "train/a/empty.png").write_bytes(b"")
    found = report(clean)
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["splits"]["train"] == {"images": 9, "classes": {"a": 4, "b": 5}, "imbalance": 1.25}
    assert [len(plain[key]) for key in ("corrupt", "duplicates", "leaks", "conflicts", "harmful")] == [1, 1, 1, 1, 3]
    assert plain["corrupt"][0]["path"].endswith("train/a/empty.png")
    assert plain["leaks"][0]["kind"] == "exact"
    assert [image["split"] for image in plain["leaks"][0]["images"]] == ["train", "test"]
    rows = {row["what"]: row["value"] for row in found.make_rows()}
    assert rows["layout"] == "train/ and test/ with one folder a class"
    assert rows["train"] == "9 images, 4 to 5 a class, imbalance 1.25 to 1"
    assert rows["shared by splits"] == "1 exact, 0 near"
    assert rows["height x width"] == "32 x 32 to 32 x 32, median 32 x 32, 1 different"
    assert (rows["corrupt"], rows["formats"], rows["left out"]) == ("1", "PNG 14", "nothing")


def test_nothing_but_corrupt_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
    found = report(tmp_path)
    assert len(found.harmful) == 2
    assert json.dumps(found.as_dict(), allow_nan=False)
    assert found.make_rows()
    found.draw(tmp_path / "x.png")


def test_the_number_of_threads_changes_nothing(clean, monkeypatch):
    put(clean, "test/a/again.png", 0)
    (clean / "train/a/empty.png").write_bytes(b"")
    expected = report(clean).as_dict()
    for count in (1, 1, 5):
        monkeypatch.setattr("shiftvit.threads.count_cores", lambda count=count: count)
        assert report(clean).as_dict() == expected


def test_arrays_are_checked_like_files(tmp_path):
    images = noise(6)
    images[5] = images[1]
    found = report(
        save_archive(tmp_path / "d.npz", x_train=images[:4], y_train=[0, 1, 0, 1], x_test=images[4:], y_test=[0, 1])
    )
    assert [group.members for group in found.leaks] == [(("train", 1), ("test", 1))]
    assert (found.forms, found.modes) == ({"array": 6}, {"RGB": 6})
    found.draw(tmp_path / "x.png")
    assert is_drawn(tmp_path / "x.png")


def test_nothing_is_printed_where_there_is_no_terminal(clean, capfd):
    report(clean)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("classes", [2, 80])
def test_the_figure(tmp_path, classes):
    for number in range(classes):
        put(tmp_path, f"train/class {number}/1.png", number % 12)
    put(tmp_path, "test/class 0/2.png", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report(tmp_path).draw(tmp_path / "x.png")
    assert is_drawn(tmp_path / "x.png")
    with pytest.raises(ShiftViTError, match="cannot write"):
        report(tmp_path).draw(tmp_path / "missing" / "x.png")


def test_odd_names_are_drawn_and_stay_on_one_line(tmp_path):
    names = ["$a^$", "\u732b", "{two: lines}", "[bold]"]
    for number, name in enumerate(names):
        put(tmp_path, f"train/{name}/1\n.png", number)
    put(tmp_path, "train/{two: lines}/2\n.png", 0)
    found = report(tmp_path)
    assert len(found.conflicts) == 1
    assert [line.count("\n") for line in found.harmful] == [0]
    found.draw(tmp_path / "x.png")
    assert is_drawn(tmp_path / "x.png")
