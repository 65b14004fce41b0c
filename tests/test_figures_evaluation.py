"""The figures of an evaluation show the data that they were given."""

from __future__ import annotations

import base64
import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from shiftvit import ShiftViTError
from shiftvit.evaluation.metrics import measure_calibration
from shiftvit.figures.evaluation import Explanation, draw_explanations, draw_mistakes, draw_reliability
from shiftvit.figures.style import ENDINGS


@pytest.mark.slow
def test_reliability_figure(tmp_path, figures):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(2000, 10)).astype(np.float32), random.integers(10, size=2000)
    before, after = (measure_calibration(softmax(values, axis=1), labels) for values in (logits * 3, logits))
    draw_reliability(before, tmp_path / "one.png")
    draw_reliability(before, tmp_path / "two.png", after)
    assert [[axes.get_title() for axes in figure.axes if axes.get_title()] for figure in figures] == [
        ["Confidence and accuracy"],
        ["As trained", "After temperature scaling"],
    ]
    for panels, found in ((figures[0].axes, before), (figures[1].axes[1::2], after)):
        filled = [row for row in found["bins"] if row["count"]]
        # The bars of the accuracy, then those of the gap, which reach from the lower to the higher of the two.
        bars, gaps = panels[0].containers
        np.testing.assert_allclose([bar.get_x() for bar in bars], [row["lower"] for row in filled])
        np.testing.assert_allclose([bar.get_height() for bar in bars], [row["accuracy"] for row in filled])
        bottoms = [min(row["accuracy"], row["confidence"]) for row in filled]
        np.testing.assert_allclose([bar.get_y() for bar in gaps], bottoms)
        distances = [abs(row["accuracy"] - row["confidence"]) for row in filled]
        np.testing.assert_allclose([bar.get_height() for bar in gaps], distances, atol=1e-12)
        (note,) = panels[0].texts
        assert note.get_text() == f"ECE {100 * found['ece']:.2f}%"
        (counts,) = panels[1].containers
        assert [bar.get_height() for bar in counts] == [row["count"] for row in filled]
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.width == 2 * one.width
    with pytest.raises(ShiftViTError, match="cannot write"):
        draw_reliability(before, tmp_path / "missing" / "x.png")


@pytest.mark.parametrize("count", [0, 3, 40])
def test_mistakes_figure(count, tmp_path):
    images = np.full((count, 8, 8, 3), (1, 2, 250), np.uint8)
    path = tmp_path / "x.png"
    draw_mistakes(images, np.zeros(count, int), np.ones(count, int), np.full(count, 0.9), ("cat", "dog"), path)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == (1, 2, 250)).all(axis=-1).sum() == min(count, 25) * 192 * 192


@pytest.mark.parametrize(("size", "area"), [((8, 8), 192 * 192), ((10, 20), 96 * 192), ((400, 100), 192 * 48)])
@pytest.mark.parametrize("count", [3, 7])
def test_explanations_figure(count, size, area, tmp_path):
    image = np.full((*size, 3), (1, 2, 250), np.uint8)
    heats = {"Grad-CAM": np.ones((2, 2), np.float32), "occlusion": -np.ones(size, np.float32)}
    rows = [Explanation(image, "cat", 0.9, heats, {"occlusion": "drop up to 3%"})] * count
    draw_explanations(rows, tmp_path / "x.png", "A title")
    with Image.open(tmp_path / "x.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == (1, 2, 250)).all(axis=-1).sum() == count * area
    with pytest.raises(ShiftViTError, match="cannot write"):
        draw_explanations(rows, tmp_path / "missing" / "x.png", "A title")


def test_long_class_names_stay_below_their_image(tmp_path):
    image = np.full((8, 8, 3), (1, 2, 250), np.uint8)
    heats = {"Grad-CAM": np.ones((2, 2), np.float32)}
    drawn = []
    for label in ("", "a very long name of a class " * 4):
        draw_explanations([Explanation(image, label, 0.9, heats, {})], tmp_path / "x.png", "A title")
        with Image.open(tmp_path / "x.png") as picture:
            drawn.append(np.asarray(picture.convert("RGB")))
    changed = np.flatnonzero((drawn[0] != drawn[1]).any(axis=(0, 2)))
    blue = np.flatnonzero((drawn[0] == (1, 2, 250)).all(axis=2).any(axis=0))
    assert blue.min() <= changed.min() < changed.max() <= blue.max()


@pytest.mark.parametrize("ending", ENDINGS)
def test_explanations_have_the_format_of_their_suffix(ending, tmp_path):
    path = tmp_path / f"x{ending}"
    draw_explanations([Explanation(np.zeros((8, 8, 3), np.uint8), "cat", 0.9, {}, {})], path, "A title")
    content = path.read_bytes()
    if ending == ".pdf":
        assert content.startswith(b"%PDF")
        return
    if ending == ".svg":
        (image,) = ElementTree.fromstring(content)
        assert image.tag == "{http://www.w3.org/2000/svg}image"
        content = base64.b64decode(
            image.attrib["{http://www.w3.org/1999/xlink}href"].removeprefix("data:image/png;base64,")
        )
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(ending, "PNG")
        assert picture.height > 192
