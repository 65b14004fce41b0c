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

from sample import SMALL, write_tree
from shiftvit import Recipe, ShiftViTError, evaluate, train
from shiftvit.cli.main import app
from shiftvit.data.check.checks import check_data
from shiftvit.data.decode import images
from shiftvit.data.find import find
from shiftvit.data.find.find import find_data
from shiftvit.data.find.kept import save_splits
from shiftvit.data.find.splits import split_data
from shiftvit.data.load import load_data
from shiftvit.training import runfolder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "pets", per_class=10)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each file is read."""
    counts: Counter[str] = Counter()
    original = images._read

    def counting(path: Path, max_bytes: int) -> bytes:
        counts[path.name] += 1
        return original(path, max_bytes)

    monkeypatch.setattr(images, "_read", counting)
    return counts


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Lists the folders that were searched."""
    seen: list[Path] = []
    original = find._walk

    def counting(root: Path) -> Any:
        seen.append(root)
        return original(root)

    monkeypatch.setattr(find, "_walk", counting)
    return seen


def recipe(tree: Path, **changes: Any) -> Recipe:
    return Recipe.load("photos", **{**SMALL, "data.name": str(tree), **changes})


def test_a_check_reads_each_file_once(tree: Path, reads: Counter[str]) -> None:
    (tree / "cat" / "broken.png").write_bytes(b"no picture")
    report = check_data(find_data(tree))
    assert report.forms == {"PNG": 15, "JPEG": 15}
    assert len(report.corrupt) == 1
    # Three classes have files of the same ten names.
    assert reads == {"broken.png": 1, **{f"{number:03}.{('png', 'jpg')[number % 2]}": 3 for number in range(10)}}


@pytest.mark.parametrize("boxes", [False, True])
def test_a_run_decodes_each_file_once_before_it_begins(tree: Path, reads: Counter[str], boxes: bool) -> None:
    changes = {"augment.resized_crop": 0.2, "augment.pad": 0} if boxes else {}
    data = load_data(recipe(tree, **changes))
    assert sum(map(len, data.splits.values())) == 30
    assert set(reads.values()) == {3}


def test_the_images_are_searched_once_by_each_command(tree: Path, tmp_path: Path, walks: list[Path]) -> None:
    run = train(recipe(tree), out=tmp_path / "run")
    assert walks == [tree]
    evaluate(run.path)
    assert walks == [tree]  # the run knows its images
    (run.path / "metrics.json").unlink()
    train(resume=run.path)
    assert walks == [tree] * 2


def test_the_command_chooses_its_run_once(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []
    original = runfolder.choose_run

    def counting(*arguments: Any) -> Any:
        chosen.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(runfolder, "choose_run", counting)
    settings = [f"--set={key}={str(value).replace('(', '[').replace(')', ']')}" for key, value in SMALL.items()]
    arguments = ["train", "--recipe", "photos", "--data", str(tree), "--out", str(tmp_path / "run"), *settings]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert len(chosen) == 1


def test_without_faults_nothing_is_split_anew(tree: Path, tmp_path: Path) -> None:
    data = load_data(recipe(tree))
    save_splits(data, tmp_path / "loaded.csv")
    settings = recipe(tree).data
    split = split_data(find_data(tree), validation=settings.validation, test=settings.test, seed=settings.split_seed)
    save_splits(split, tmp_path / "split.csv")
    assert (tmp_path / "loaded.csv").read_bytes() == (tmp_path / "split.csv").read_bytes()


def test_a_class_that_a_split_lost_comes_back(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The only validation image of the cats is broken, and another cat can take its place."""
    data = load_data(recipe(tree))
    assert data.validation is not None
    cats = [Path(data.validation.paths[index]) for index in np.flatnonzero(data.validation.labels == 0)]
    for path in cats:
        path.write_bytes(b"no picture")
    capsys.readouterr()
    again = load_data(recipe(tree))
    for split in again.splits.values():
        assert set(split.labels.tolist()) == {0, 1, 2}
        assert not {*split.paths} & {*map(str, cats)}
        assert len(split) == len(split.images)
    assert sum(map(len, again.splits.values())) == 30 - len(cats)
    said = capsys.readouterr().err
    assert "note: no validation image of 'cat' can be decoded" in said
    assert said.count(f"skipped: {str(cats[0])!r}") == 1


def test_a_class_that_cannot_be_decoded_at_all_is_named(tree: Path) -> None:
    for path in (tree / "dog").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ShiftViTError, match="no training image of the class 'dog' can be decoded; replace its files"):
        load_data(recipe(tree))


def test_a_test_split_of_its_own_may_lack_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path / "train", per_class=6)
    write_tree(tmp_path / "test", per_class=2)
    for path in (tmp_path / "test" / "ship").iterdir():
        path.write_bytes(b"no picture")
    data = load_data(recipe(tmp_path, **{"data.validation": 3}))
    assert set(data.test.labels.tolist()) == {0, 1}
    assert "note: no test image of 'ship' can be decoded" in capsys.readouterr().err


def test_a_class_of_which_too_few_can_be_decoded_is_named(tree: Path, tmp_path: Path) -> None:
    for path in sorted((tree / "dog").iterdir())[:8]:
        path.write_bytes(path.name.encode())
    message = r"the class 'dog' has 2 images, too few for 3 splits; .* \(8 images that cannot be decoded left out\)"
    with pytest.raises(ShiftViTError, match=message):
        load_data(recipe(tree))
    report = CliRunner().invoke(app, ["data", "check", str(tree)])
    assert report.exit_code == 3
    assert "splits: too few images that can be decoded for 3 splits: 'dog' (2)" in report.output
    # A limit that only the broken files fell into, and splits that were there.
    (tmp_path / "own").mkdir()
    tree.rename(tmp_path / "own" / "train")
    write_tree(tmp_path / "own" / "test", per_class=2)
    for limit in range(3, 12):
        data = load_data(recipe(tmp_path / "own", **{"data.validation": 0, "data.limit": limit}))
        assert set(data.train.labels.tolist()) == {0, 1, 2}


def test_a_run_does_not_go_on_without_one_of_its_training_images(tree: Path, tmp_path: Path) -> None:
    data = load_data(recipe(tree))
    (tmp_path / "run").mkdir()
    save_splits(data, tmp_path / "run" / "splits.csv")
    kept = load_data(recipe(tree), run=tmp_path / "run")
    assert kept.train.paths == data.train.paths
    assert data.train.paths
    Path(data.train.paths[3]).write_bytes(b"no picture")
    message = f"1 training image of the run can no longer be decoded, the first {data.train.paths[3]!r}, so the run"
    with pytest.raises(ShiftViTError, match=re.escape(message)):
        load_data(recipe(tree), run=tmp_path / "run")


def test_copies_stay_in_one_split_and_what_training_would_leak_is_found(tree: Path) -> None:
    """Ten pictures of each class, each of them three times: as it is, in other bytes, and in another class."""
    originals = sorted(tree.rglob("*.*"))
    for path in originals:
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    shutil.copy(tree / "cat" / "001.jpg", tree / "dog" / "cat.jpg")
    data = load_data(recipe(tree))
    home = {path: name for name, split in data.splits.items() for path in split.paths or []}
    for path in originals:
        assert home[str(path)] == home[str(path.with_name(f"copy of {path.name}"))]
    assert {home[str(tree / place)] for place in ("dog/cat.jpg", "cat/001.jpg", "cat/copy of 001.jpg")} == {"train"}
    assert all(set(split.labels.tolist()) == {0, 1, 2} for split in data.splits.values())
    answer = CliRunner().invoke(app, ["data", "check", str(tree), "--json"])
    report = json.loads(answer.stdout)
    assert answer.exit_code == 3  # for the picture of two classes
    assert (report["made"], report["leaks"], len(report["conflicts"])) == (["validation", "test"], [], 1)
    (tree / "dog" / "cat.jpg").unlink()
    assert CliRunner().invoke(app, ["data", "check", str(tree)]).exit_code == 0
    for path in originals:  # the same pixels in other bytes
        Image.open(path).save(path.with_name(f"copy of {path.name}.bmp"))
    answer = CliRunner().invoke(app, ["data", "check", str(tree)])
    assert answer.exit_code == 3
    assert "test images are in train too, the same or nearly" in answer.output


def test_a_check_makes_the_splits_of_the_recipe(tree: Path) -> None:
    arguments = ["data", "check", str(tree), "--json", "--set", "data.validation=0", "--set", "data.split_seed=5"]
    report = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert report["made"] == ["test"]
    data = load_data(recipe(tree, **{"data.validation": 0, "data.split_seed": 5}))
    assert {name: part["images"] for name, part in report["splits"].items()} == {
        name: len(split) for name, split in data.splits.items()
    }
    for label in ("cat", "ship"):
        for path in sorted((tree / label).iterdir())[2:]:
            path.unlink()
    answer = CliRunner().invoke(app, ["data", "check", str(tree)])
    assert answer.exit_code == 3
    assert "splits: of the classes, 'cat' has 2 images and 'ship' has 2 images, too few for 3 splits" in answer.output


def test_a_data_set_is_not_split_by_class_where_the_settings_say_so(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_data(recipe(tree, **{"data.stratify": False, "data.limit": 12}))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "validation": 3, "test": 3}
    assert "validation and test, at random, with seed 0" in capsys.readouterr().err


def test_validation_images_stand_in_for_test_images(tree: Path) -> None:
    settings = {"data.test": 0, "train.select": "last"}
    data = load_data(recipe(tree, **settings))
    assert data.test_is_validation
    assert data.test is data.validation
    assert not load_data(recipe(tree)).test_is_validation
    with pytest.raises(ShiftViTError, match=r"data\.test=0 leaves '.*' no images to report; set data\.test=0\.1"):
        load_data(recipe(tree, **settings, **{"data.validation": 0}))
