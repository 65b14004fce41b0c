"""Going on with a run under other settings: only those that are named, and only where that is sound."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

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
