"""Loading a user's own images: each file is read once, and a split holds only what can be decoded."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sample import SMALL, split_data, write_tree
from shiftvit import Recipe, ShiftViTError, evaluate, train
from shiftvit.cli.main import app
from shiftvit.data.check.checks import check_data
from shiftvit.data.decode import images
from shiftvit.data.find import find
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.data.find.find import find_data
from shiftvit.data.find.kept import read_splits, save_splits
from shiftvit.data.load import load_data
from shiftvit.data.read import read_dataset
from shiftvit.preprocess import Preprocess
from shiftvit.training import runfolder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "pets", per_class=10)


@pytest.fixture
def read_counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts of the reads of each file name."""
    counts: Counter[str] = Counter()
    original = images._read

    def count_read(path: Path, max_bytes: int) -> bytes:
        counts[path.name] += 1
        return original(path, max_bytes)

    monkeypatch.setattr(images, "_read", count_read)
    return counts


@pytest.fixture
def searched_folders(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were searched, in order."""
    seen: list[Path] = []
    original = find._walk

    def record_folder(root: Path) -> Any:
        seen.append(root)
        return original(root)

    monkeypatch.setattr(find, "_walk", record_folder)
    return seen


def make_recipe(tree: Path, **changes: Any) -> Recipe:
    return Recipe.load("photos", **{**SMALL, "data.name": str(tree), **changes})


def test_check_reads_each_file_once(tree: Path, read_counts: Counter[str]) -> None:
    (tree / "cat" / "broken.png").write_bytes(b"no picture")
    report = check_data(find_data(tree))
    assert report.forms == {"PNG": 15, "JPEG": 15}
    assert len(report.corrupt) == 1
    # Three classes have files of the same ten names.
    assert read_counts == {"broken.png": 1, **{f"{number:03}.{('png', 'jpg')[number % 2]}": 3 for number in range(10)}}


@pytest.mark.parametrize("boxes", [False, True])
def test_load_reads_each_file_once(tree: Path, read_counts: Counter[str], boxes: bool) -> None:
    changes = {"augment.resized_crop": 0.2, "augment.pad": 0} if boxes else {}
    data = load_data(make_recipe(tree, **changes))
    assert sum(map(len, data.splits.values())) == 30
    assert set(read_counts.values()) == {3}


@pytest.mark.slow
@pytest.mark.usefixtures("plain_figures")
def test_each_command_searches_the_folder_once(tree: Path, tmp_path: Path, searched_folders: list[Path]) -> None:
    run = train(make_recipe(tree), out=tmp_path / "run")
    assert searched_folders == [tree]
    evaluate(run.path)
    assert searched_folders == [tree]  # the run knows its images
    (run.path / "metrics.json").unlink()
    train(resume=run.path)
    assert searched_folders == [tree] * 2


@pytest.mark.slow
@pytest.mark.usefixtures("plain_figures")
def test_command_chooses_its_run_once(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    original = runfolder.choose_run

    def record_call(*arguments: Any) -> Any:
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(runfolder, "choose_run", record_call)
    settings = [f"--set={key}={str(value).replace('(', '[').replace(')', ']')}" for key, value in SMALL.items()]
    arguments = ["train", "--recipe", "photos", "--data", str(tree), "--out", str(tmp_path / "run"), *settings]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert len(calls) == 1


def test_load_keeps_the_first_split_if_all_images_are_good(tree: Path, tmp_path: Path) -> None:
    data = load_data(make_recipe(tree))
    save_splits(data, tmp_path / "loaded.csv")
    settings = make_recipe(tree).data
    split = split_data(find_data(tree), validation=settings.validation, test=settings.test, seed=settings.split_seed)
    save_splits(split, tmp_path / "split.csv")
    assert (tmp_path / "loaded.csv").read_bytes() == (tmp_path / "split.csv").read_bytes()


def test_table_of_splits_keeps_line_breaks_in_names(tmp_path: Path) -> None:
    """A list with the line ends of Windows makes folders whose names end in a carriage return."""
    names = ["cat\r/1.png", "dog/2\r\n.png", 'dog/"3",\n.png']
    split = Split(np.array([0, 1, 1]), [str(tmp_path / name) for name in names])
    save_splits(Dataset({"train": split}, ("cat", "dog"), "pets", tmp_path), tmp_path / "splits.csv")
    assert [row[1] for row in read_splits(tmp_path / "splits.csv")] == names
    assert (tmp_path / "splits.csv").read_bytes().startswith(b'split,path,label\ntrain,"cat\r/1.png",cat\n')


def test_load_replaces_the_only_image_of_a_class_in_a_split(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All validation images of the cats are broken, and another cat takes their place."""
    data = load_data(make_recipe(tree))
    assert data.validation is not None
    cats = [Path(data.validation.paths[index]) for index in np.flatnonzero(data.validation.labels == 0)]
    for path in cats:
        path.write_bytes(b"no picture")
    capsys.readouterr()
    again = load_data(make_recipe(tree))
    for split in again.splits.values():
        assert set(split.labels.tolist()) == {0, 1, 2}
        assert not {*split.paths} & {*map(str, cats)}
        assert len(split) == len(split.images)
    assert sum(map(len, again.splits.values())) == 30 - len(cats)
    notices = capsys.readouterr().err
    assert "note: no validation image of 'cat' can be decoded" in notices
    assert notices.count(f"skipped: {str(cats[0])!r}") == 1


def test_class_without_decodable_images_fails(tree: Path) -> None:
    for path in (tree / "dog").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ShiftViTError, match="no training image of the class 'dog' can be decoded; replace its files"):
        load_data(make_recipe(tree))


def test_given_test_split_may_lack_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path / "train", per_class=6)
    write_tree(tmp_path / "test", per_class=2)
    for path in (tmp_path / "test" / "ship").iterdir():
        path.write_bytes(b"no picture")
    data = load_data(make_recipe(tmp_path, **{"data.validation": 3}))
    assert set(data.test.labels.tolist()) == {0, 1}
    assert "note: no test image of 'ship' can be decoded" in capsys.readouterr().err


def test_class_with_too_few_decodable_images_fails(tree: Path, tmp_path: Path) -> None:
    for path in sorted((tree / "dog").iterdir())[:8]:
        path.write_bytes(path.name.encode())
    message = r"the class 'dog' has 2 images, too few for 3 splits; .* \(8 images that cannot be decoded left out\)"
    with pytest.raises(ShiftViTError, match=message):
        load_data(make_recipe(tree))
    report = CliRunner().invoke(app, ["data", "check", str(tree)])
    assert report.exit_code == 3
    assert "splits: too few images that can be decoded for 3 splits: 'dog' (2)" in report.output
    # With given splits, a limit must not select only the broken files.
    (tmp_path / "own").mkdir()
    tree.rename(tmp_path / "own" / "train")
    write_tree(tmp_path / "own" / "test", per_class=2)
    for limit in range(3, 12):
        data = load_data(make_recipe(tmp_path / "own", **{"data.validation": 0, "data.limit": limit}))
        assert set(data.train.labels.tolist()) == {0, 1, 2}


def test_resuming_fails_if_a_training_image_is_broken(tree: Path, tmp_path: Path) -> None:
    data = load_data(make_recipe(tree))
    (tmp_path / "run").mkdir()
    save_splits(data, tmp_path / "run" / "splits.csv")
    kept = load_data(make_recipe(tree), run=tmp_path / "run")
    assert kept.train.paths == data.train.paths
    assert data.train.paths
    Path(data.train.paths[3]).write_bytes(b"no picture")
    message = f"1 training image of the run can no longer be decoded, the first {data.train.paths[3]!r}, so the run"
    with pytest.raises(ShiftViTError, match=re.escape(message)):
        load_data(make_recipe(tree), run=tmp_path / "run")


def test_copies_stay_in_one_split_and_leaks_are_reported(tree: Path) -> None:
    """Each picture has an exact copy; one has a copy in another class, and later all have one in another format."""
    originals = sorted(tree.rglob("*.*"))
    for path in originals:
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    shutil.copy(tree / "cat" / "001.jpg", tree / "dog" / "cat.jpg")
    data = load_data(make_recipe(tree))
    home = {path: name for name, split in data.splits.items() for path in split.paths or []}
    for path in originals:
        assert home[str(path)] == home[str(path.with_name(f"copy of {path.name}"))]
    assert {home[str(tree / place)] for place in ("dog/cat.jpg", "cat/001.jpg", "cat/copy of 001.jpg")} == {"train"}
    assert all(set(split.labels.tolist()) == {0, 1, 2} for split in data.splits.values())
    answer = CliRunner().invoke(app, ["data", "check", str(tree), "--json"])
    report = json.loads(answer.stdout)
    assert answer.exit_code == 3  # because of the picture that is in two classes
    assert (report["made"], report["leaks"], len(report["conflicts"])) == (["validation", "test"], [], 1)
    (tree / "dog" / "cat.jpg").unlink()
    assert CliRunner().invoke(app, ["data", "check", str(tree)]).exit_code == 0
    for path in originals:  # the same pixels in other bytes
        Image.open(path).save(path.with_name(f"copy of {path.name}.bmp"))
    answer = CliRunner().invoke(app, ["data", "check", str(tree)])
    assert answer.exit_code == 3
    assert "test images are in train too, exactly or nearly" in answer.output


def test_check_uses_the_splits_of_the_recipe(tree: Path) -> None:
    arguments = ["data", "check", str(tree), "--json", "--set", "data.validation=0", "--set", "data.split_seed=5"]
    report = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert report["made"] == ["test"]
    data = load_data(make_recipe(tree, **{"data.validation": 0, "data.split_seed": 5}))
    assert {name: part["images"] for name, part in report["splits"].items()} == {
        name: len(split) for name, split in data.splits.items()
    }
    for label in ("cat", "ship"):
        for path in sorted((tree / label).iterdir())[2:]:
            path.unlink()
    answer = CliRunner().invoke(app, ["data", "check", str(tree)])
    assert answer.exit_code == 3
    assert "splits: of the classes, 'cat' has 2 images and 'ship' has 2 images, too few for 3 splits" in answer.output


def test_stratification_can_be_turned_off(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_data(make_recipe(tree, **{"data.stratify": False, "data.limit": 12}))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "validation": 3, "test": 3}
    assert "validation and test images from the training images, at random, with seed 0" in capsys.readouterr().err


def test_validation_images_replace_missing_test_images(tree: Path) -> None:
    settings = {"data.test": 0, "train.select": "last"}
    data = load_data(make_recipe(tree, **settings))
    assert data.test_is_validation
    assert data.test is data.validation
    assert not load_data(make_recipe(tree)).test_is_validation
    with pytest.raises(ShiftViTError, match=r"data\.test=0 leaves '.*' no images to report; set data\.test=0\.1"):
        load_data(make_recipe(tree, **settings, **{"data.validation": 0}))


@pytest.mark.parametrize(
    ("resize", "crop", "shape"), [(20, (24, 20), (24, 20)), (18, (16, 32), (18, 32)), (20, 16, (20, 20))]
)
def test_training_pictures_are_large_enough_for_any_crop(
    tree: Path, resize: int, crop: Any, shape: tuple[int, int]
) -> None:
    data, rule = find_data(tree), Preprocess(resize=resize, crop=crop)
    found = read_dataset(data, rule).train
    assert found.images.shape == (30, *shape, 3)
    # Without a random crop, training sees what inference sees.
    inferred = read_dataset(data, rule, training=False).train
    assert np.array_equal(found.preprocess.pixels(found.images[:]), inferred.images[:])
