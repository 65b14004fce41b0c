"""Runs whose images moved, changed or disappeared: evaluation, resuming, and the folders of the results."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sample import SMALL, load_sample, write_tree
from shiftvit import Bundle, Recipe, ShiftViTError, evaluate, train
from shiftvit.data import named
from shiftvit.data.evaluated import find_evaluated
from shiftvit.data.find.kept import save_splits
from shiftvit.data.load import load_data
from shiftvit.evaluation.places import choose_place, find_run, list_evaluations
from shiftvit.training import runfolder
from shiftvit.training.runfolder import open_run
from shiftvit.training.setup import resolve
from trees import make_arrays

pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pets`, 10 images per class, and with `run`, which was trained on them."""
    place = tmp_path_factory.mktemp("trained")
    train("photos", out=place / "run", **SMALL, **{"data.name": str(write_tree(place / "pets", 10))})
    return place


@pytest.fixture
def place(trained_folder: Path, tmp_path: Path) -> Path:
    """A copy of that folder for one test."""
    shutil.copytree(trained_folder, tmp_path / "place")
    recipe = tmp_path / "place" / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text("utf-8").replace(str(trained_folder), str(tmp_path / "place")), "utf-8")
    return tmp_path / "place"


def read_split(place: Path, split: str) -> list[tuple[str, str]]:
    rows = csv.DictReader((place / "run" / "splits.csv").read_text("utf-8").splitlines())
    return [(row["path"], row["label"]) for row in rows if row["split"] == split]


def make_unfinished(run: Path) -> Path:
    (run / "metrics.json").unlink()
    return run


def list_names(found: Any, root: Path) -> set[str]:
    return {Path(path).relative_to(root).as_posix() for path in found.images.paths}


@pytest.mark.parametrize("form", ["folders", "table", "archive"])
def test_single_split_is_preprocessed_as_for_prediction(place: Path, form: str) -> None:
    """In these forms of data the only split is called train, but it must not be preprocessed as for training."""
    other = write_tree(place / "other", 6)
    if form == "table":
        lines = [f"{path.relative_to(place)},{path.parent.name}" for path in sorted(other.rglob("*.*"))]
        other = place / "other.csv"
        other.write_text("\n".join(["path,label", *lines]), "utf-8")
    elif form == "archive":
        sample = load_sample()
        labels = sample.train.labels
        chosen = np.flatnonzero((labels == 3) | (labels == 5))[:18]
        other = place / "other.npz"
        classes = np.array(sample.class_names)
        np.savez(other, images=sample.train.images[chosen], labels=labels[chosen], class_names=classes)
    found = evaluate(place / "run", str(other))
    assert (found["split"], found["n"], found["own_test"]) == ("all", 18, False)
    if form == "folders":  # compares with the same files as a test split
        other.rename(place / "test")
        (place / "as_test").mkdir()
        (place / "test").rename(place / "as_test" / "test")
        again = evaluate(place / "run", str(place / "as_test"))
        assert again["split"] == "test"
        assert {key: again[key] for key in ("n", "loss", "confusion")} == {
            key: found[key] for key in ("n", "loss", "confusion")
        }


def test_own_data_of_a_run_means_its_test_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, pets = place / "run", place / "pets"
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    held_back = {path for path, _ in read_split(place, "test")}
    for data in (None, str(pets)):
        found = find_evaluated(data, None, run)
        assert list_names(found, pets) == held_back
        assert (found.split, found.own_test, found.trained_on) == ("test", True, 0)
    assert "holds the run's own images; evaluating its test images" in capsys.readouterr().err
    assert evaluate(run, str(pets))["loss"] == pytest.approx(metrics["loss"], rel=1e-4)
    assert evaluate(run / "bundle")["loss"] == pytest.approx(metrics["loss"], rel=1e-4)
    # The training images only on request, and with a notice.
    capsys.readouterr()
    whole = find_evaluated(None, "all", run)
    assert (len(whole.images), whole.trained_on, whole.own_test) == (30, len(read_split(place, "train")), False)
    assert "the model was trained on 24 of these 30 images" in capsys.readouterr().err
    assert find_evaluated(None, "validation", run).split == "validation"
    # A table of some of them is other data, with a count of the training images in it.
    chosen = [read_split(place, "train")[0], *read_split(place, "test")]
    lines = [f"pets/{path},{label}" for path, label in chosen]
    (place / "some.csv").write_text("\n".join(["path,label", *lines]), "utf-8")
    some = find_evaluated(str(place / "some.csv"), None, run)
    assert (some.split, some.own_test, len(some.images), some.trained_on) == ("all", False, 4, 1)


def test_moved_data_are_recognised_by_their_files(place: Path) -> None:
    run = place / "run"
    (place / "pets").rename(place / "animals")
    with pytest.raises(ShiftViTError, match=r"were in '.*pets', which no longer exists; .* new location with --data"):
        evaluate(run)
    found = find_evaluated(str(place / "animals"), None, run)
    assert found.own_test
    assert list_names(found, place / "animals") == {path for path, _ in read_split(place, "test")}
    for path in sorted((place / "animals").rglob("*.*"))[:20]:
        path.unlink()
    few = find_evaluated(str(place / "animals"), None, run)  # less than half is left: other data
    assert (few.split, len(few.images)) == ("all", 10)


def test_same_names_in_another_folder_are_other_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = shutil.copytree(place / "pets", place / "other")
    found = find_evaluated(str(other), None, place / "run")
    assert (found.split, len(found.images), found.own_test) == ("all", 30, False)
    assert found.trained_on == 24  # copies, byte by byte
    assert "the model was trained on 24 of these 30 images" in capsys.readouterr().err
    with Image.open(other / read_split(place, "train")[0][0]) as image:
        image.resize((90, 90)).save(other / read_split(place, "train")[0][0])
    assert find_evaluated(str(other), None, place / "run").trained_on == 23


def test_missing_test_images_are_named_and_left_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first, label), *rest = read_split(place, "test")
    (place / "pets" / first).unlink()
    found = evaluate(place / "run")
    assert (found["n"], found["without_images"]) == (2, [label])
    assert f"lacks 1 of the run's 3 test images: '{first}'; the others are evaluated" in capsys.readouterr().err
    for path, _ in rest:
        (place / "pets" / path).unlink()
    with pytest.raises(ShiftViTError, match=r"lacks 3 of the run's 3 test images: '.*', '.*' and '.*'; put them back"):
        evaluate(place / "run")


def test_new_renamed_and_foreign_classes(place: Path) -> None:
    run, pets = place / "run", place / "pets"
    before = evaluate(run)
    shutil.copytree(pets / "cat", pets / "ant")
    assert evaluate(run)["confusion"] == before["confusion"]
    (pets / "dog").rename(pets / "wolf")
    found = evaluate(run)
    assert (found["n"], found["without_images"]) == (2, ["dog"])
    other = write_tree(place / "other", 2)
    (other / "dog").rename(other / "wolf")
    with pytest.raises(
        ShiftViTError, match=r"3 classes \(cat, dog and ship\) and .* has 2 images of 1 other \('wolf'\)"
    ):
        evaluate(run, str(other))


def test_data_with_some_of_the_classes(place: Path) -> None:
    other = write_tree(place / "other", 4)
    shutil.rmtree(other / "dog")
    found = evaluate(place / "run", str(other))
    assert found["without_images"] == ["dog"]
    assert np.shape(found["confusion"]) == (3, 3)
    with_images = [row["f1"] for row in found["classes"] if row["support"]]
    assert found["macro"]["f1"] == pytest.approx(np.mean(with_images))
    shutil.rmtree(other / "ship")
    assert evaluate(place / "run", str(other))["n"] == 4


@pytest.mark.slow
def test_each_data_set_has_its_own_folder(place: Path) -> None:
    run = place / "run"
    own = evaluate(run, keep=True)
    assert own["folder"] == str(run / "evaluation")
    kept = (run / "evaluation" / "evaluation.json").read_bytes()
    (place / "elsewhere").mkdir()
    sets = [write_tree(place / "other", 2), write_tree(place / "elsewhere" / "other", 3)]
    folders = [evaluate(run, str(path), keep=True)["folder"] for path in (*sets, *sets)]
    assert folders == [str(run / "evaluation" / name) for name in ("other", "other-2")] * 2
    assert evaluate(run, split="train", keep=True)["folder"] == str(run / "evaluation" / "pets-train")
    assert (run / "evaluation" / "evaluation.json").read_bytes() == kept
    assert [found["n"] for _, found in list_evaluations(run)] == [3, 6, 9, 24]
    # A name without a usable character, the name of a file of the evaluation, and a named data set.
    assert choose_place(run, "/a/\N{SNOWMAN}", "all", own_test=False).name == "images"
    assert choose_place(run, "/a/mistakes.png", "all", own_test=False).name == "mistakes.png-2"
    assert choose_place(run, "cifar10", "test", own_test=False).name == "cifar10-test"


def test_name_of_a_model_does_not_mean_an_unfinished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the model would be evaluated on the images of that run, and the result would be kept in its folder."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "cifar10"
    run.mkdir()
    (run / "recipe.toml").write_text("")
    assert find_run("cifar10") is None
    assert find_run(run) == run
    Bundle.load("cifar10").save(run / "bundle")
    assert find_run("cifar10") == Path("cifar10")


@pytest.mark.slow
def test_training_resumes_with_moved_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_unfinished(place / "run")
    before = (run / "splits.csv").read_bytes()
    (place / "pets").rename(place / "my animals")
    with pytest.raises(
        ShiftViTError, match=r"were in '.*pets', which no longer exists; .* train --resume .*run --data PATH"
    ):
        train(resume=run)
    with pytest.raises(ShiftViTError, match=r"there is no data set 'nowhere'"):
        train(resume=run, **{"data.name": "nowhere"})
    with pytest.raises(ShiftViTError, match=r"lacks 24 of the run's 30 images: '.*', '.*', '.*' and 21 more; put them"):
        train(resume=run, **{"data.name": str(write_tree(place / "other", 2))})
    done = train(resume=run, **{"data.name": str(place / "my animals")})
    assert done.recipe.data.name == str(place / "my animals")
    assert (run / "splits.csv").read_bytes() == before
    assert "data.name changes from" in capsys.readouterr().err
    assert evaluate(run)["own_test"]


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_link_to_a_file_stays_the_data_of_the_run(suffix: str, tmp_path: Path) -> None:
    """As in the cache of the Hugging Face Hub, where the files with names are links to files without a suffix."""
    blob, link = tmp_path / "blob", write_tree(tmp_path / "pets", 6) / f"own{suffix}"
    if suffix == ".npz":
        pixels, labels = make_arrays(12)
        with blob.open("wb") as file:
            np.savez(file, images=pixels, labels=labels)
    else:
        names = [path.relative_to(link.parent) for path in sorted(link.parent.rglob("*.*"))]
        blob.write_text("\n".join(["path,label", *(f"{name},{name.parent}" for name in names)]), "utf-8")
    link.symlink_to(Path("..", "blob"))
    recipe = Recipe.load("photos", **SMALL, **{"data.name": str(link)})
    kept = resolve(recipe, load_data(recipe)).data.name
    assert kept == str(link)
    assert load_data(recipe.model_copy(update={"data": recipe.data.model_copy(update={"name": kept})})).list_paths()


@pytest.mark.slow
def test_training_does_not_resume_with_missing_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, pets = make_unfinished(place / "run"), place / "pets"
    shutil.copytree(pets / "cat", pets / "ant")
    gone = read_split(place, "train")[0][0]
    content = (pets / gone).read_bytes()
    (pets / gone).unlink()
    with pytest.raises(ShiftViTError, match=rf"lacks 1 of the run's 30 images: '{gone}'; put them back"):
        train(resume=run)
    (pets / gone).write_bytes(content)
    done = train(resume=run)  # leaves out the class that was added later
    assert "the run does not have 'ant', so images of these classes are left out" in capsys.readouterr().err
    assert done.bundle.labels == ("cat", "dog", "ship")
    assert done.metrics["test"]["n"] == 3


def make_archive_run(folder: Path, **settings: Any) -> tuple[Path, Path]:
    """Writes an archive of arrays, and the table of a run on it."""
    images, labels = make_arrays(60)
    archive, run = folder / "first" / "a.npz", folder / "run"
    for place in (archive.parent, run):
        place.mkdir()
    np.savez(archive, x_train=images, y_train=labels)
    recipe = Recipe.load("photos", **{**SMALL, "data.name": str(archive), "preprocess.resize": 16, **settings})
    runfolder._write_recipe(run, recipe)
    save_splits(load_data(recipe), run / "splits.csv")
    return archive, run


@pytest.mark.parametrize("settings", [{}, {"data.limit": 40}])
def test_moved_archive_is_recognised(settings: dict[str, Any], tmp_path: Path) -> None:
    archive, run = make_archive_run(tmp_path, **settings)
    before = find_evaluated(None, run=run)
    moved = archive.rename(tmp_path / "b.npz")
    found = find_evaluated(str(moved), run=run)
    assert (found.own_test, found.split, len(found.images)) == (True, "test", len(before.images))
    np.testing.assert_array_equal(found.images.images, before.images.images)


def test_archive_in_another_order_is_refused(tmp_path: Path) -> None:
    archive, run = make_archive_run(tmp_path)
    images, labels = make_arrays(60)
    np.savez(archive, x_train=images[::-1], y_train=labels[::-1])
    with pytest.raises(ShiftViTError, match=r"a.npz' does not have the images of the run: x_train\[\d+\] is of"):
        find_evaluated(None, run=run)
    with pytest.raises(ShiftViTError, match="does not have the images of the run"):
        load_data(Recipe.load(run / "recipe.toml"), run=run)


def test_resumed_run_refuses_an_archive_with_other_pixels(tmp_path: Path) -> None:
    archive, run = make_archive_run(tmp_path)
    recipe = Recipe.load("photos", **{**SMALL, "data.name": str(archive), "preprocess.resize": 16})
    with open_run(run, recipe, load_data(recipe, run=run)):
        pass
    images, labels = make_arrays(60)
    np.savez(archive, x_train=255 - images, y_train=labels)
    with (
        pytest.raises(ShiftViTError, match=r"on different images than '.*a.npz' now holds.*; restore the archive"),
        open_run(run, recipe, load_data(recipe, run=run)),
    ):
        pass


def test_name_of_a_data_set_is_not_the_folder_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "cifar10", 10)
    (tmp_path / "run").mkdir()
    recipe = Recipe.load("photos", **{**SMALL, "data.name": str(tmp_path / "cifar10")})
    runfolder._write_recipe(tmp_path / "run", recipe)
    save_splits(load_data(recipe), tmp_path / "run" / "splits.csv")
    monkeypatch.setattr(named, "load", lambda _: load_sample())
    assert not find_evaluated("cifar10", run=tmp_path / "run").own_test
    assert find_evaluated("./cifar10", run=tmp_path / "run").own_test
