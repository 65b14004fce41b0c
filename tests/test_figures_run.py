"""Figures are written, of the expected kind, for the sizes that occur; the content was looked at by people."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from shiftvit import ShiftViTError
from shiftvit.figures.run import confusion_matrix, learning_curves


def is_drawn(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    return pixels.std() > 5 and min(pixels.shape[:2]) > 150


@pytest.mark.parametrize("epochs", [1, 30])
@pytest.mark.parametrize("validated", [True, False])
def test_learning_curves(epochs, validated, tmp_path):
    history = [{"epoch": e, "loss": 2 / e, "top1": 1 - 1 / e, "learning_rate": 0.1} for e in range(1, epochs + 1)]
    if validated:
        history = [{**row, "val_loss": row["loss"], "val_top1": row["top1"]} for row in history]
    learning_curves(history, np.linspace(1, 0, 10 * epochs), tmp_path / "x.png", title="A recipe", steps=10)
    assert is_drawn(tmp_path / "x.png")


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_confusion_matrix(classes, tmp_path):
    matrix = np.random.default_rng(0).integers(0, 9, (classes, classes))
    matrix[0] = 0  # a class without images
    confusion_matrix(matrix, tuple(f"class {i}" for i in range(classes)), tmp_path / "x.png")
    assert is_drawn(tmp_path / "x.png")


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(ShiftViTError, match="cannot write"):
        confusion_matrix(np.eye(2, dtype=int), ("a", "b"), tmp_path / "missing" / "x.png")
