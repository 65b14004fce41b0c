"""Runs of version 0.1.0: they are evaluated, opened and resumed with the same results as then."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from logs import read_log
from make_old_run import ARCHIVE, compute_logits, watch
from shiftvit import Bundle, evaluate, train

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="a run goes on with the backend that it began with"
)
# Processors round otherwise, which moves the logits by about 1e-7; other dropout masks move them by 0.02, a step that
# is left out by 0.1, a lost state of the optimizer by 0.3.
BETWEEN_PROCESSORS = 5e-3


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The unpacked archive, its recipes with the place of the pictures as a run of this machine would have it."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    for recipe in tmp_path.glob("runs/*/recipe.toml"):
        before = recipe.read_text("utf-8")
        text = before.replace('name = "shapes"', f"name = {json.dumps(str(tmp_path / 'shapes'))}")
        assert text != before
        recipe.write_text(text, "utf-8")
    return tmp_path


def expected(old: Path) -> dict[str, Any]:
    with np.load(old / "expected.npz") as arrays:
        return {**json.loads((old / "expected.json").read_text("utf-8")), "logits": arrays["logits"]}


def test_a_finished_run_is_evaluated_to_the_same_figures(old: Path) -> None:
    found = evaluate(old / "runs" / "finished")
    wanted = expected(old)["evaluation"]
    assert (found["split"], found["n"], found["confusion"]) == ("test", 8, wanted["confusion"])
    for key in ("loss", "top1", "top5", "macro"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-4), key


def test_its_stored_models_answer_as_they_did(old: Path) -> None:
    run, wanted = old / "runs" / "finished", expected(old)["logits"]
    np.testing.assert_allclose(compute_logits(run, old / "shapes"), wanted, atol=1e-4)
    bundle = Bundle.load(run)
    stored, built = keras.models.load_model(run / "model.keras"), bundle.build()
    images = np.random.default_rng(0).normal(size=(4, 24, 24, 3)).astype(np.float32)
    np.testing.assert_allclose(stored.predict_on_batch(images), built.predict_on_batch(images), atol=1e-5)


def test_a_stopped_run_goes_on_to_the_same_end(old: Path) -> None:
    run, finished, wanted = old / "runs" / "stopped", old / "runs" / "finished", expected(old)
    began = read_log(run)
    table = (run / "splits.csv").read_bytes()
    with watch() as seen:
        train(resume=run)
    assert seen == wanted["seen"]["after"]
    assert (run / "splits.csv").read_bytes() == table == (finished / "splits.csv").read_bytes()
    rows = read_log(run)
    assert rows[:1] == began
    for row, before in zip(rows, read_log(finished), strict=True):
        assert row["epoch"] == before["epoch"]
        assert row["learning_rate"] == before["learning_rate"]
        assert row["loss"] == pytest.approx(before["loss"], abs=BETWEEN_PROCESSORS)
    assert not (run / "changes.jsonl").exists()
    np.testing.assert_allclose(compute_logits(run, old / "shapes"), wanted["logits"], atol=BETWEEN_PROCESSORS)


def test_a_run_begun_anew_sees_the_same(old: Path, tmp_path: Path) -> None:
    """Its recipe, trained from the beginning, has the same splits and the same pictures in every step."""
    again, wanted = tmp_path / "again", expected(old)
    with watch() as seen:
        train(old / "runs" / "finished" / "recipe.toml", out=again)
    assert seen == {**wanted["seen"]["before"], **wanted["seen"]["after"]}
    assert (again / "splits.csv").read_bytes() == (old / "runs" / "finished" / "splits.csv").read_bytes()
