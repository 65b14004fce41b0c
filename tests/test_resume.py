"""Resuming a run with changed settings: only the given ones change, and only if the state allows it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import pytest

from logs import read_log
from sample import load_sample, replace_splits
from shiftvit import Recipe, ShiftViTError, environment, files, train
from shiftvit.data.find.dataset import Dataset
from shiftvit.data.find.find import find_data
from shiftvit.errors import Interrupted
from shiftvit.evaluation.report import write_report
from shiftvit.training import fit
from shiftvit.training.callbacks import Watch
from shiftvit.training.runfolder import choose_run, open_run
from trees import make_arrays, save_archive

pytestmark = pytest.mark.usefixtures("plain_figures")

SMALL = {
    "model.depths": [1, 1],
    "model.embed_dim": 12,
    "data.validation": 50,
    "train.batch_size": 50,
    "train.epochs": 2,
    "train.precision": "float32",
}


@pytest.fixture(scope="module")
def interrupted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted in its second epoch."""
    original, run = Watch.on_train_batch_begin, tmp_path_factory.mktemp("interrupted") / "run"

    def interrupt_second_epoch(self, batch, logs=None):
        if self.progress.epoch == 1 and batch == 2:
            self.signal = signal.SIGINT
        original(self, batch, logs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "on_train_batch_begin", interrupt_second_epoch)
        with pytest.raises(Interrupted):
            train("quick", out=run, data=load_sample(), **SMALL)
    return run


@pytest.fixture
def stopped_run(interrupted_run: Path, tmp_path: Path) -> Path:
    """A copy of the interrupted run."""
    return Path(shutil.copytree(interrupted_run, tmp_path / "run"))


@pytest.mark.slow
def test_given_settings_change_and_are_recorded(stopped_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = train(resume=stopped_run, data=load_sample(), **{"train.epochs": 4, "train.optimizer.learning_rate": 0.001})
    assert [row["epoch"] for row in read_log(stopped_run)] == [1, 2, 3, 4]
    assert run.recipe.train.optimizer.learning_rate == 0.001
    assert Recipe.load(stopped_run / "recipe.toml") == run.recipe
    (row,) = map(json.loads, (stopped_run / "changes.jsonl").read_text().splitlines())
    assert row["changed"] == {"train.epochs": [2, 4], "train.optimizer.learning_rate": [0.012, 0.001]}
    assert "train.epochs changes from 2 to 4" in capfd.readouterr().err
    page = write_report(stopped_run).read_text("utf-8")
    assert "Settings changed on resuming" in page
    assert "<th>train.optimizer.learning_rate</th>" in page


@pytest.mark.parametrize(
    "change",
    [
        lambda data: replace_splits(data, train=data.train.take(range(len(data.train))[::-1])),
        lambda data: replace_splits(data, test=replace(data.test, images=255 - data.test.images)),
        lambda data: replace(data, class_names=data.class_names[::-1]),
    ],
)
def test_run_continues_only_on_its_own_images(stopped_run: Path, change: Callable[[Dataset], Dataset]) -> None:
    before = {path: path.read_bytes() for path in stopped_run.rglob("*.*") if path.is_file()}
    message = r"was trained on different images than 'cifar10' now holds, with the classes .*; give them: shift"
    with pytest.raises(ShiftViTError, match=message):
        train(resume=stopped_run, data=change(load_sample()))
    assert {path: path.read_bytes() for path in before} == before


def test_equal_settings_change_nothing(stopped_run: Path) -> None:
    before = (stopped_run / "recipe.toml").read_bytes()
    train(resume=stopped_run, data=load_sample(), **{"train.epochs": 2})
    assert (stopped_run / "recipe.toml").read_bytes() == before
    assert not (stopped_run / "changes.jsonl").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.embed_dim", 24, "model.embed_dim is 12 in the run"),
        ("train.batch_size", 25, "train.batch_size is 50 in the run '.*' and cannot change to 25 mid-run"),
        ("data.split_seed", 1, "data.split_seed is 0"),
        ("preprocess.mean", 0.0, "preprocess.mean is"),
        ("train.optimizer.name", "adamw", "train.optimizer.name is muon"),
        ("model.dropout", 0.1, "model.dropout is 0.0 in the run '.*' and cannot change to 0.1 mid-run"),
        ("model.drop_path", 0.1, "model.drop_path is 0.0 in the run"),
        ("train.epochs", 1, "train.epochs=1 is less than the 2 epochs that the run"),
        ("train.epoch", 3, "epochs"),
        ("train.ema", 0.5, "train.ema is .* and cannot change to 0.5 mid-run"),
        ("train.seed", 9, "train.seed is 0 in the run '.*' and cannot change to 9 mid-run"),
        ("train.drop_remainder", False, "train.drop_remainder is True in the run"),
        ("train.schedule.whole_steps", False, "train.schedule.whole_steps is True in the run"),
        ("augment.repeats", 2, "augment.repeats is 1 in the run"),
    ],
)
def test_settings_that_the_state_depends_on_cannot_change(
    stopped_run: Path, key: str, value: object, message: str
) -> None:
    before = {path: path.read_bytes() for path in stopped_run.rglob("*") if path.is_file()}
    with pytest.raises(ShiftViTError, match=message) as caught:
        train(resume=stopped_run, data=load_sample(), **{key: value})
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in stopped_run.rglob("*") if path.is_file()} == before


def test_rates_of_dropout_can_change_but_not_from_or_to_0(tmp_path: Path) -> None:
    recipe = Recipe.load("quick", **{"model.dropout": 0.1, "model.drop_path": 0.2})
    with open_run(tmp_path / "run", recipe, load_sample()):
        pass
    resumed, _ = choose_run(None, None, tmp_path / "run", {"model.dropout": 0.3, "model.drop_path": 0.4})
    assert (resumed.model.dropout, resumed.model.drop_path) == (0.3, 0.4)
    with pytest.raises(ShiftViTError, match=r"model.drop_path is 0.2 in the run '.*' and cannot change to 0.0"):
        choose_run(None, None, tmp_path / "run", {"model.drop_path": 0})


@pytest.fixture(scope="module")
def finished_run(interrupted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(interrupted_run, tmp_path_factory.mktemp("finished") / "run"))
    return train(resume=run, data=load_sample()).path


@pytest.fixture
def trained_run(finished_run: Path, tmp_path: Path) -> Path:
    """A run that has trained all its epochs, but has not written its results."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (run / "metrics.json").unlink()
    return run


@pytest.mark.slow
def test_missing_best_checkpoint_fails_unless_the_last_is_selected(trained_run: Path) -> None:
    best = trained_run / "checkpoints" / "best.safetensors"
    best.unlink()
    with pytest.raises(ShiftViTError, match=r"best.safetensors.*--set train.select=last"):
        train(resume=trained_run, data=load_sample())
    assert not (trained_run / "metrics.json").exists()
    run = train(resume=trained_run, data=load_sample(), **{"train.select": "last"})
    assert run.recipe.train.select == "last"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_a_run_at_once_when_nothing_is_left_to_train(
    number: int, trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "finish_run", lambda *_: signal.getsignal(number)(number, None))
    with pytest.raises(Interrupted, match="--resume") as caught:
        train(resume=trained_run, data=load_sample())
    assert caught.value.status == 128 + number


def test_row_that_a_full_disk_kept_out_of_the_log_is_added(trained_run: Path) -> None:
    log = trained_run / "log.jsonl"
    rows = log.read_text("utf-8").splitlines(keepends=True)
    log.write_text(rows[0], "utf-8")
    train(resume=trained_run, data=load_sample())
    assert log.read_text("utf-8") == "".join(rows)


def test_command_that_is_not_utf_8_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/shiftvit", "train", "--out", os.fsdecode(b"run\xff")])
    files.write_json(tmp_path / "environment.json", environment.describe_environment())
    written = json.loads((tmp_path / "environment.json").read_text("utf-8"))
    assert written["command"] == ["shiftvit", "train", "--out", "run\\xff"]


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_missing_environment_is_written_again(trained_run: Path, content: str | None) -> None:
    path = trained_run / "environment.json"
    before = json.loads(path.read_text("utf-8"))
    path.unlink() if content is None else path.write_text(content)
    train(resume=trained_run, data=load_sample())
    assert json.loads(path.read_text("utf-8")).keys() == before.keys()


def test_checkpoint_of_another_width_fails_in_a_short_line(stopped_run: Path) -> None:
    recipe = stopped_run / "recipe.toml"
    recipe.write_text(recipe.read_text("utf-8").replace("embed_dim = 12", "embed_dim = 24"), "utf-8")
    with pytest.raises(ShiftViTError, match=r"a different model or optimizer: its 'model/.*' has the shape") as caught:
        train(resume=stopped_run, data=load_sample())
    assert len(str(caught.value)) < 500


@pytest.mark.slow
def test_run_without_a_checkpoint_starts_over(stopped_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(stopped_run / "checkpoints")
    train(resume=stopped_run, data=load_sample(), **{"train.epochs": 1})
    assert "has no checkpoint last.safetensors, so the run begins anew" in capfd.readouterr().err
    assert len(read_log(stopped_run)) == 1


@pytest.mark.slow
def test_unreadable_changes_are_kept(stopped_run: Path) -> None:
    (stopped_run / "changes.jsonl").write_bytes(b"\xff\n")
    train(resume=stopped_run, data=load_sample(), **{"train.epochs": 3})
    assert (stopped_run / "changes.jsonl").read_bytes().startswith(b'\xff\n{"date"')


def test_damaged_log_is_named(trained_run: Path) -> None:
    run = train(resume=trained_run, data=load_sample())
    (trained_run / "log.jsonl").write_text("{\n")
    with pytest.raises(ShiftViTError, match=r"log.jsonl' cannot be read"):
        _ = run.history


@pytest.mark.skipif(keras.config.backend() != "torch", reason="only torch has generators with a state")
def test_device_without_a_stored_generator_is_seeded(stopped_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from shiftvit.training import checkpoint

    stored = checkpoint._read_generators()
    monkeypatch.setattr(checkpoint, "_read_generators", lambda: {**stored, "generator/elsewhere": stored})
    draws = []
    for _ in range(2):
        checkpoint.set_generators(3, checkpoint.Progress(1, 2), stopped_run / "checkpoints" / "last.safetensors")
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1]


@pytest.mark.skipif(keras.config.backend() != "torch", reason="only torch has generators with a state")
def test_processes_have_their_own_random_numbers(stopped_run: Path) -> None:
    import torch

    from shiftvit.training import checkpoint

    draws = set()
    for rank in range(3):
        for step in (0, 2):
            place = checkpoint.Progress(1, step)
            checkpoint.set_generators(3, place, stopped_run / "checkpoints" / "last.safetensors", rank)
            draws.add(torch.rand(1).item())
    assert len(draws) == 6


@pytest.mark.parametrize(("enough", "fitted"), [(50, True), (51, False)])
def test_temperature_is_fitted_only_on_enough_validation_images(
    enough: int, fitted: bool, trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shiftvit.training.results._ENOUGH", enough)
    run = train(resume=trained_run, data=load_sample())
    assert run.metrics["val"]["n"] == 50
    assert (run.bundle.temperature != 1) == fitted


class Killed(BaseException):
    """Stands for the end of the process: nothing runs after it."""


def kill_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """Ends the next work on files before its step with this number."""
    steps, killed = itertools.count(), []

    def count(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def step(*args: Any, **options: Any) -> Any:
            if killed and name == "rmtree":
                return None
            if next(steps) == number:
                killed.append(number)
                raise Killed
            return original(*args, **options)

        patch.setattr(owner, name, step)

    for name in ("mkdir", "open", "replace", "write_text", "write_bytes"):
        count(Path, name)
    count(tempfile, "mkdtemp")
    count(shutil, "rmtree")
    count(files, "sync_folder")


@pytest.mark.parametrize("own", [True, False])
def test_run_that_is_killed_while_it_begins_can_be_started_or_resumed(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "describe_environment", dict)
    images, labels = make_arrays()
    name = str(save_archive(tmp_path / "d.npz", x_train=images, y_train=labels, x_val=images, y_val=labels))
    dataset, recipe = load_sample(), Recipe.load("quick")
    if own:
        dataset, recipe = find_data(Path(name)), Recipe.load("quick", **{"data.name": name})
    outcomes = []
    for number in itertools.count():
        run = tmp_path / f"run{number}"
        with monkeypatch.context() as patch:
            kill_at(patch, number)
            try:
                with open_run(run, recipe, dataset):
                    outcomes.append("begun")
            except Killed:
                outcomes.append("resumed" if (run / "recipe.toml").is_file() else "started")
        if outcomes[-1] == "started":
            assert choose_run(recipe, run, None, {}) == (recipe, run)
        else:
            with pytest.raises(ShiftViTError, match="not an empty folder; choose another with --out, or continue"):
                choose_run(recipe, run, None, {})
            assert choose_run(None, None, run, {}) == (recipe, run)
        with open_run(run, recipe, dataset):
            made = {path.name for path in run.iterdir() if not path.name.startswith(".")}
        assert made - {"splits.csv"} == {"checkpoints", "figures", "environment.json", "recipe.toml", "images.json"}
        assert ("splits.csv" in made) == own
        if outcomes[-1] == "begun":
            break
    assert min(outcomes.count("started"), outcomes.count("resumed")) > 5
    (run / "notes.txt").write_text("mine")
    (run / "recipe.toml").unlink()
    with pytest.raises(ShiftViTError, match="not an empty folder"):
        choose_run(recipe, run, None, {})
