"""Figures are written, of the expected kind and size; the content was looked at by people."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from shiftvit import ShiftViTError
from shiftvit.evaluation.metrics import calibration, softmax
from shiftvit.figures.evaluation import Explanation, explain_figure, mistakes_figure, reliability_figure


def is_drawn(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    return pixels.std() > 5 and min(pixels.shape[:2]) > 150


def test_reliability_figure(tmp_path):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(2000, 10)).astype(np.float32), random.integers(10, size=2000)
    before, after = (calibration(softmax(values), labels) for values in (logits * 3, logits))
    reliability_figure(before, tmp_path / "one.png")
    reliability_figure(before, tmp_path / "two.png", after)
    assert is_drawn(tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.width == 2 * one.width
    with pytest.raises(ShiftViTError, match="cannot write"):
        reliability_figure(before, tmp_path / "missing" / "x.png")


@pytest.mark.parametrize("count", [0, 3, 40])
def test_mistakes_figure(count, tmp_path):
    images = np.full((count, 8, 8, 3), (1, 2, 250), np.uint8)
    path = tmp_path / "x.png"
    mistakes_figure(images, np.zeros(count, int), np.ones(count, int), np.full(count, 0.9), ("cat", "dog"), path)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == (1, 2, 250)).all(axis=-1).sum() == min(count, 25) * 192 * 192


@pytest.mark.parametrize(("size", "area"), [((8, 8), 192 * 192), ((10, 20), 96 * 192), ((400, 100), 192 * 48)])
@pytest.mark.parametrize("count", [3, 7])
def test_explain_figure(count, size, area, tmp_path):
    image = np.full((*size, 3), (1, 2, 250), np.uint8)
    heats = {"Grad-CAM": np.ones((2, 2), np.float32), "occlusion": -np.ones(size, np.float32)}
    rows = [Explanation(image, "cat  90 %", heats, {"occlusion": "drop up to 3 %"})] * count
    explain_figure(rows, tmp_path / "x.png", "A title")
    with Image.open(tmp_path / "x.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == (1, 2, 250)).all(axis=-1).sum() == count * area
    with pytest.raises(ShiftViTError, match="cannot write"):
        explain_figure(rows, tmp_path / "missing" / "x.png", "A title")
