"""Resuming a run under other settings: only the settings that are named, and only if that is sound."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import keras
import pytest

from logs import read_log
from sample import load_sample
from shiftvit import Recipe, ShiftViTError, train
from shiftvit.errors import Interrupted
from shiftvit.evaluation.report import write_report
from shiftvit.training.callbacks import Watch

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
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted in its second epoch."""
    original, run = Watch.on_train_batch_begin, tmp_path_factory.mktemp("interrupted") / "run"

    def interrupting(self, batch, logs=None):
        if self.progress.epoch == 1 and batch == 2:
            self.signal = signal.SIGINT
        original(self, batch, logs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "on_train_batch_begin", interrupting)
        with pytest.raises(Interrupted):
            train("quick", out=run, data=load_sample(), **SMALL)
    return run


@pytest.fixture
def stopped(interrupted: Path, tmp_path: Path) -> Path:
    """Its copy."""
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def test_what_is_named_changes_and_is_written_down(stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = train(resume=stopped, data=load_sample(), **{"train.epochs": 4, "train.optimizer.learning_rate": 0.001})
    assert [row["epoch"] for row in read_log(stopped)] == [1, 2, 3, 4]
    assert run.recipe.train.optimizer.learning_rate == 0.001
    assert Recipe.load(stopped / "recipe.toml") == run.recipe
    (row,) = map(json.loads, (stopped / "changes.jsonl").read_text().splitlines())
    assert row["changed"] == {"train.epochs": [2, 4], "train.optimizer.learning_rate": [0.012, 0.001]}
    assert "train.epochs changes from 2 to 4" in capfd.readouterr().err
    page = write_report(stopped).read_text("utf-8")
    assert "Settings changed on resuming" in page
    assert "<th>train.optimizer.learning_rate</th>" in page


def test_nothing_changes_by_itself(stopped: Path) -> None:
    before = (stopped / "recipe.toml").read_bytes()
    train(resume=stopped, data=load_sample(), **{"train.epochs": 2})
    assert (stopped / "recipe.toml").read_bytes() == before
    assert not (stopped / "changes.jsonl").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.embed_dim", 24, "model.embed_dim is 12 in the run"),
        ("train.batch_size", 25, "train.batch_size is 50 in the run '.*' and cannot change to 25 mid-run"),
        ("data.split_seed", 1, "data.split_seed is 0"),
        ("preprocess.mean", 0.0, "preprocess.mean is"),
        ("train.optimizer.name", "adamw", "train.optimizer.name is muon"),
        ("train.epochs", 1, "train.epochs=1 is less than the 2 epochs that the run"),
        ("train.epoch", 3, "epochs"),
    ],
)
def test_what_the_state_depends_on_stays(stopped: Path, key: str, value: object, message: str) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(ShiftViTError, match=message) as caught:
        train(resume=stopped, data=load_sample(), **{key: value})
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


@pytest.fixture
def trained(stopped: Path) -> Path:
    """A run that has trained all its epochs, but whose results are not written yet."""
    train(resume=stopped, data=load_sample())
    (stopped / "metrics.json").unlink()
    return stopped


def test_a_lost_best_checkpoint_is_reported_and_the_last_one_can_be_kept(trained: Path) -> None:
    best = trained / "checkpoints" / "best.safetensors"
    best.unlink()
    with pytest.raises(ShiftViTError, match=r"best.safetensors.*--set train.select=last"):
        train(resume=trained, data=load_sample())
    assert not (trained / "metrics.json").exists()
    run = train(resume=trained, data=load_sample(), **{"train.select": "last"})
    assert run.recipe.train.select == "last"


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_lost_environment_is_described_anew(trained: Path, content: str | None) -> None:
    path = trained / "environment.json"
    before = json.loads(path.read_text("utf-8"))
    path.unlink() if content is None else path.write_text(content)
    train(resume=trained, data=load_sample())
    assert json.loads(path.read_text("utf-8")).keys() == before.keys()


def test_a_checkpoint_of_another_width_is_named_in_a_short_line(stopped: Path) -> None:
    recipe = stopped / "recipe.toml"
    recipe.write_text(recipe.read_text("utf-8").replace("embed_dim = 12", "embed_dim = 24"), "utf-8")
    with pytest.raises(ShiftViTError, match=r"of another model or optimizer: its 'model/.*' has the shape") as caught:
        train(resume=stopped, data=load_sample())
    assert len(str(caught.value)) < 500


def test_a_run_without_its_checkpoint_begins_anew(stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(stopped / "checkpoints")
    train(resume=stopped, data=load_sample(), **{"train.epochs": 1})
    assert "has no checkpoint last.safetensors, so the run begins anew" in capfd.readouterr().err
    assert len(read_log(stopped)) == 1


def test_changes_that_cannot_be_read_are_kept(stopped: Path) -> None:
    (stopped / "changes.jsonl").write_bytes(b"\xff\n")
    train(resume=stopped, data=load_sample(), **{"train.epochs": 3})
    assert (stopped / "changes.jsonl").read_bytes().startswith(b'\xff\n{"date"')


def test_a_damaged_log_is_named(stopped: Path) -> None:
    run = train(resume=stopped, data=load_sample())
    (stopped / "log.jsonl").write_text("{\n")
    with pytest.raises(ShiftViTError, match=r"log.jsonl' cannot be read"):
        _ = run.history


@pytest.mark.skipif(keras.config.backend() != "torch", reason="only torch has generators of its own")
def test_a_device_without_a_stored_generator_is_seeded(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from shiftvit.training import checkpoint

    stored = checkpoint._read_generators()
    monkeypatch.setattr(checkpoint, "_read_generators", lambda: {**stored, "generator/elsewhere": stored})
    draws = []
    for _ in range(2):
        checkpoint.set_generators(3, checkpoint.Progress(1, 2), stopped / "checkpoints" / "last.safetensors")
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1]
