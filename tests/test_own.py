"""Training, evaluating and resuming on folders of pictures: the images that are found, skipped and kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sample import SMALL, load_sample, write_tree
from shiftvit import Bundle, Predictor, Recipe, ShiftViTError, evaluate, train
from shiftvit.cli.main import app
from shiftvit.data.batches.pictures import Pictures, find_size, read_picture, read_pictures
from shiftvit.data.check.checks import check_data
from shiftvit.data.decode.images import decode
from shiftvit.data.find.find import find_data
from shiftvit.data.read import read_dataset
from shiftvit.evaluation.logits import predict_logits
from shiftvit.preprocess import Preprocess
from shiftvit.training.features import FeatureReader

RULE = Preprocess(resize=24, crop=20, crop_position="center")
pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "pets")


def list_files(tree: Path) -> list[str]:
    return [str(path) for path in sorted(tree.rglob("*.*"))]


def test_training_prepares_pictures_like_prediction(tree: Path) -> None:
    paths = list_files(tree)
    pictures = Pictures(paths, RULE)
    assert pictures.shape == (60, 20, 20, 3)
    for index in (0, 2, 58):  # PNG: decoded whole
        np.testing.assert_array_equal(pictures[[index]][0], RULE.pixels(decode(paths[index])[None])[0])
    everything = pictures[:]
    np.testing.assert_array_equal(pictures[10:30], everything[10:30])
    np.testing.assert_array_equal(pictures[np.array([59, 3, 3])], everything[[59, 3, 3]])
    assert pictures[5:5].shape == (0, 20, 20, 3)


def test_jpeg_decoded_at_a_reduced_size_differs_little(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(smooth).resize((512, 512), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    whole = RULE.pixels(decode(tmp_path / "a.jpg")[None])[0].astype(int)
    assert np.abs(read_picture(str(tmp_path / "a.jpg"), RULE) - whole).mean() < 1


def test_elongated_picture_is_named_wherever_pictures_are_read(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHIFTVIT_CACHE", str(tmp_path / "cache"))
    place = tree / "cat" / "long.png"
    Image.new("L", (70_000, 1)).save(place)
    data = find_data(tree)
    ((_, fault),) = check_data(data, rule=RULE).corrupt
    assert fault.startswith(f"{str(place)!r}: an image of 1 x 70000 pixels is too elongated")
    assert check_data(data).corrupt == ()
    extract = FeatureReader(lambda _: ("key", lambda: lambda pixels: pixels.mean(axis=(1, 2), dtype=np.float32)))
    for read in (read_dataset, extract):
        assert len(read(data, RULE).train) == 60
        assert f"skipped: {fault}" in capfd.readouterr().err
    with pytest.raises(ShiftViTError) as caught:
        Pictures([str(place)], RULE)[:]
    assert str(caught.value) == fault
    answer = CliRunner().invoke(app, ["data", "check", str(tree)])
    assert answer.exit_code == 3
    assert f"corrupt: 1 of 61 images, such as {str(place)!r}: " in answer.output


@pytest.mark.parametrize("budget", [2**20, 0])
def test_unreadable_files_are_reported_and_left_out(tree: Path, budget: int) -> None:
    paths = list_files(tree)
    Path(paths[7]).write_bytes(b"no picture")
    Path(paths[8]).write_bytes(Path(paths[8]).read_bytes()[:60])
    seen: list[int] = []
    pictures, kept, faults = read_pictures(paths, RULE, budget=budget, on_picture=lambda: seen.append(1))
    assert isinstance(pictures, np.ndarray) == (budget > 0)
    assert len(pictures) == 58
    assert set(range(60)) - set(kept.tolist()) == {7, 8}
    assert paths[7] in faults[0]
    assert paths[8] in faults[1]
    assert sum(seen) == 60
    np.testing.assert_array_equal(pictures[7:8][0], read_picture(paths[9], RULE))


@pytest.mark.parametrize("rule", [Preprocess(), Preprocess(resize=24), Preprocess(crop=8)])
def test_preprocessing_must_give_one_size(rule: Preprocess) -> None:
    with pytest.raises(ShiftViTError, match=r"--set preprocess\.resize=(\d+) --set preprocess\.crop=\1$") as caught:
        find_size(rule)
    side = int(str(caught.value).rsplit("=", 1)[1])
    assert find_size(rule.model_copy(update={"resize": side, "crop": side})) == (side, side)


@pytest.mark.slow
def test_folder_is_trained_evaluated_and_predicted(tree: Path, tmp_path: Path, capsys) -> None:
    (tree / "empty").mkdir()
    (tree / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    run = train("photos", out=tmp_path / "run", **SMALL, **{"data.name": str(tree)})
    messages = capsys.readouterr().err
    assert "3 classes" in messages
    assert "broken.png" in messages
    assert "took validation and test images from the training images" in messages
    rows = list(csv.DictReader((run.path / "splits.csv").read_text().splitlines()))
    assert len(rows) == 60
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    assert run.metrics["test"]["n"] == 6
    bundle = Bundle.load(run.path / "bundle")
    assert bundle.labels == ("cat", "dog", "ship")
    again = evaluate(run.path)  # on the test images that the run held back
    assert (again["split"], again["n"]) == ("test", 6)
    assert again["loss"] == pytest.approx(run.metrics["test"]["loss"], rel=1e-4)
    # The predictor gives the same answers from files.
    held_back = [row for row in rows if row["split"] == "test" and row["path"].endswith(".png")]
    root = tree if not Path(held_back[0]["path"]).is_absolute() else Path("/")
    answers = Predictor.from_pretrained(run.path, runtime="keras")([str(root / row["path"]) for row in held_back])
    rule = bundle.preprocess
    pictures = Pictures([str(root / row["path"]) for row in held_back], rule)[:]
    logits = predict_logits(bundle.build(), pictures, rule.model_copy(update={"resize": None, "crop": None}))
    assert held_back
    assert [answer.label for answer in answers] == [bundle.labels[row.argmax()] for row in logits]


@pytest.mark.slow
def test_streaming_gives_the_same_splits_and_weights(tree: Path, tmp_path: Path, monkeypatch) -> None:
    settings = {**SMALL, "data.name": str(tree), "train.seed": 3}
    in_memory = train("photos", out=tmp_path / "held", **settings)
    monkeypatch.setitem(read_pictures.__kwdefaults__, "budget", 0)
    streamed = train("photos", out=tmp_path / "streamed", **settings)
    assert (in_memory.path / "splits.csv").read_bytes() == (streamed.path / "splits.csv").read_bytes()
    for path, value in streamed.bundle.weights.items():
        np.testing.assert_array_equal(value, in_memory.bundle.weights[path], err_msg=path)


@pytest.mark.slow
def test_resumed_run_keeps_its_splits(tree: Path, tmp_path: Path) -> None:
    run = train("photos", out=tmp_path / "run", **SMALL, **{"data.name": str(tree)})
    before = (run.path / "splits.csv").read_bytes()
    (run.path / "metrics.json").unlink()
    image = Image.open(next((tree / "ship").glob("*.png")))
    image.save(tree / "ship" / "new.png")  # added after the start, so it belongs to no split
    train(resume=run.path)
    assert (run.path / "splits.csv").read_bytes() == before
    assert json.loads((run.path / "metrics.json").read_text())["test"]["n"] == 6


@pytest.mark.slow
def test_archive_of_arrays_is_used_at_its_size(tmp_path: Path) -> None:
    data = load_sample()
    chosen = np.concatenate([np.flatnonzero(data.train.labels == label)[:20] for label in range(3)])
    images, labels = data.train.images[chosen], data.train.labels[chosen]
    np.savez(tmp_path / "a.npz", images=images, labels=labels, class_names=np.array(["a", "b", "c"]))
    settings = {key: value for key, value in SMALL.items() if not key.startswith("preprocess")}
    recipe = {"preprocess.resize": "none", "preprocess.crop": "none", "data.name": str(tmp_path / "a.npz")}
    run = train("photos", out=tmp_path / "run", **settings, **recipe)
    assert run.recipe.model.image_shape == (32, 32, 3)
    assert run.bundle.labels == ("a", "b", "c")


def test_wrong_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShiftViTError, match="no data set"):
        train(Recipe.load("photos", **{"data.name": "nowhere"}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluating_on_other_classes_is_refused(tree: Path) -> None:
    (tree / "ship").rename(tree / "boat")
    with pytest.raises(ShiftViTError, match=r"the model has 10 classes .* has 20 images of 1 other \('boat'\)"):
        evaluate("cifar10", str(tree))


@pytest.mark.slow
@pytest.mark.parametrize("resize", [None, 12])
def test_arrays_without_a_crop_train_and_predict(tmp_path, resize):
    data, run = tmp_path / "a.npz", tmp_path / "run"
    images = np.random.default_rng(0).integers(0, 256, (30, 20, 16, 3), np.uint8)
    np.savez(data, x_train=images, y_train=np.arange(30) % 2)
    size = {"preprocess.resize": resize, "preprocess.crop": None, "augment.pad": 0}
    train(Recipe.load("photos", **{**SMALL, **size, "data.name": str(data)}), out=run)
    predictor = Predictor.from_pretrained(run)
    for shape in ((20, 16), (30, 30), (16, 20), (9, 70)):
        assert len(predictor(np.zeros((*shape, 3), np.uint8))) == 1
    assert evaluate(run)["n"] == 3


@pytest.mark.parametrize("recipe", ["photos", "probe"])
@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("side", [12, 24])
def test_arrays_of_another_size_are_refused_before_training(tmp_path, split, side, recipe):
    draw = np.random.default_rng(0).integers
    arrays = {"x_train": draw(0, 256, (20, 16, 16, 3), np.uint8), "y_train": np.arange(20) % 2}
    arrays |= {f"x_{split}": draw(0, 256, (4, side, side, 3), np.uint8), f"y_{split}": np.arange(4) % 2}
    np.savez(tmp_path / "a.npz", **arrays)
    size = {"preprocess.resize": None, "preprocess.crop": None, "augment.pad": 0, "data.name": str(tmp_path / "a.npz")}
    settings = {"photos": SMALL, "probe": {"start.source": "cifar10", "start.resolution": "recipe"}}
    with pytest.raises(ShiftViTError, match=rf"have {side} x {side} pixels and the training images 16 x 16; set prepr"):
        train(Recipe.load(recipe, **{**settings[recipe], **size}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
