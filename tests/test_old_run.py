"""Runs of version 0.1.0 are evaluated, loaded and resumed with the same results as in that version."""

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
    keras.config.backend() != "torch", reason="a run is resumed with its own backend, which is torch here"
)
# Another processor rounds differently, which moves the logits by about 1e-7. Other dropout masks move them by 0.02, a
# skipped step by 0.1, and a lost optimizer state by 0.3.
TOLERANCE = 5e-3


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """The unpacked archive. Its recipes name the folder of the pictures on this machine."""
    with zipfile.ZipFile(ARCHIVE) as opened:
        opened.extractall(tmp_path)
    for recipe in tmp_path.glob("runs/*/recipe.toml"):
        before = recipe.read_text("utf-8")
        text = before.replace('name = "shapes"', f"name = {json.dumps(str(tmp_path / 'shapes'))}")
        assert text != before
        recipe.write_text(text, "utf-8")
    return tmp_path


def load_expected(unpacked: Path) -> dict[str, Any]:
    with np.load(unpacked / "expected.npz") as arrays:
        return {**json.loads((unpacked / "expected.json").read_text("utf-8")), "logits": arrays["logits"]}


def test_evaluation_of_a_finished_run_is_unchanged(unpacked: Path) -> None:
    found = evaluate(unpacked / "runs" / "finished")
    wanted = load_expected(unpacked)["evaluation"]
    assert (found["split"], found["n"], found["confusion"]) == ("test", 8, wanted["confusion"])
    for key in ("loss", "top1", "top5", "macro"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-4), key


def test_logits_of_a_finished_run_are_unchanged(unpacked: Path) -> None:
    run, wanted = unpacked / "runs" / "finished", load_expected(unpacked)["logits"]
    np.testing.assert_allclose(compute_logits(run, unpacked / "shapes"), wanted, atol=1e-4)
    bundle = Bundle.load(run)
    stored, built = keras.models.load_model(run / "model.keras"), bundle.build()
    images = np.random.default_rng(0).normal(size=(4, 24, 24, 3)).astype(np.float32)
    np.testing.assert_allclose(stored.predict_on_batch(images), built.predict_on_batch(images), atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("plain_figures")
def test_resumed_run_ends_with_the_same_model(unpacked: Path) -> None:
    run, finished, wanted = unpacked / "runs" / "stopped", unpacked / "runs" / "finished", load_expected(unpacked)
    rows_before = read_log(run)
    table = (run / "splits.csv").read_bytes()
    with watch() as seen:
        train(resume=run)
    assert seen == wanted["seen"]["after"]
    assert (run / "splits.csv").read_bytes() == table == (finished / "splits.csv").read_bytes()
    rows = read_log(run)
    assert rows[:1] == rows_before
    for row, before in zip(rows, read_log(finished), strict=True):
        assert row["epoch"] == before["epoch"]
        assert row["learning_rate"] == before["learning_rate"]
        assert row["loss"] == pytest.approx(before["loss"], abs=TOLERANCE)
    assert not (run / "changes.jsonl").exists()
    np.testing.assert_allclose(compute_logits(run, unpacked / "shapes"), wanted["logits"], atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.usefixtures("plain_figures")
def test_new_run_of_the_same_recipe_sees_the_same_pictures(unpacked: Path, tmp_path: Path) -> None:
    """The recipe, trained from the beginning, has the same splits and the same pictures in every step."""
    new_run, wanted = tmp_path / "again", load_expected(unpacked)
    with watch() as seen:
        train(unpacked / "runs" / "finished" / "recipe.toml", out=new_run)
    assert seen == {**wanted["seen"]["before"], **wanted["seen"]["after"]}
    assert (new_run / "splits.csv").read_bytes() == (unpacked / "runs" / "finished" / "splits.csv").read_bytes()
