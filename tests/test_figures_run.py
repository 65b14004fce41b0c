"""The figures of a run show the data that they were given: lines, cells and texts as matplotlib has them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import coo_array

from shiftvit import ShiftViTError
from shiftvit.figures.run import draw_confusion_matrix, draw_corruptions, draw_learning_curves
from shiftvit.figures.style import BLUE, GREEN, ORANGE


def read_lines(axes):
    """Returns the x and y values of the lines, by label."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def assert_picture(path, figure):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == tuple((figure.get_size_inches() * 130).astype(int))


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 30])
@pytest.mark.parametrize("validated", [True, False])
def test_learning_curves(epochs, validated, tmp_path, figures):
    history = [{"epoch": e, "loss": 2 / e, "top1": 1 - 1 / e, "learning_rate": 0.1} for e in range(1, epochs + 1)]
    if validated:
        history = [{**row, "val_loss": 3 / row["epoch"], "val_top1": 0.5} for row in history]
    rates = np.linspace(1, 0, 20 * epochs)  # a run that stops halfway through its schedule
    draw_learning_curves(history, rates, tmp_path / "x.png", title="A recipe", steps=10)
    (figure,) = figures
    assert_picture(tmp_path / "x.png", figure)
    assert figure.get_suptitle() == "A recipe"
    loss, top1, rate = figure.axes
    at = list(range(1, epochs + 1))
    expected = {"training": (at, [2 / e for e in at])}
    percentages = {"training": (at, [100 * (1 - 1 / e) for e in at])}
    if validated:
        expected["validation"] = at, [3 / e for e in at]
        percentages["validation"] = at, [50.0] * epochs
    assert read_lines(loss) == expected
    assert read_lines(top1) == percentages
    assert [line.get_color() for line in loss.lines] == [BLUE, ORANGE][: 1 + validated]
    curve, end = rate.lines
    assert curve.get_color() == GREEN
    np.testing.assert_allclose(curve.get_xdata(), np.arange(20 * epochs) / 10)
    np.testing.assert_allclose(curve.get_ydata(), rates)
    assert list(end.get_xdata()) == [epochs, epochs]
    assert [axes.get_title() for axes in figure.axes] == [
        "Loss (nats)",
        "Top-1 (%)",
        "Learning rate (dotted: the run's end)",
    ]


@pytest.mark.slow
def test_large_confusion_matrix_merges_neighbouring_classes(tmp_path, figures):
    classes = 2500
    rows = np.arange(classes)
    columns = np.where(rows < 2000, rows, 0)  # the last 500 classes are taken for the first one
    matrix = coo_array((np.ones(classes, np.int64), (rows, columns)), shape=(classes, classes))
    draw_confusion_matrix(matrix, tuple(map(str, range(classes))), tmp_path / "x.png")
    axes = figures[0].axes[0]
    cells = axes.images[0].get_array()
    assert cells.shape == (834, 834)  # three classes in each
    np.testing.assert_allclose(cells.sum(axis=1), 100)
    assert (cells[0, 0], cells[500, 500], cells[700, 0], cells[700, 700]) == (100, 100, 100, 0)
    assert axes.get_title() == "Confusion on 2,500 images (top-1 80.00%)"
    assert axes.get_xlim() == (-0.5, 2499.5)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_confusion_matrix(classes, tmp_path, figures):
    matrix = np.random.default_rng(0).integers(0, 9, (classes, classes))
    matrix[0] = 0  # a class without images
    matrix[1] = 0
    matrix[1, 0], matrix[1, 1] = 1, 3
    names = tuple(f"class {i}" for i in range(classes))
    draw_confusion_matrix(matrix, names, tmp_path / "x.png")
    (figure,) = figures
    assert_picture(tmp_path / "x.png", figure)
    axes = figure.axes[0]
    cells = axes.images[0].get_array()
    np.testing.assert_allclose(cells[0], 0)
    np.testing.assert_allclose(cells[1:].sum(axis=1), 100)
    assert list(cells[1, :2]) == [25, 75]
    top1 = 100 * np.trace(matrix) / matrix.sum()
    assert axes.get_title() == f"Confusion on {matrix.sum():,} images (top-1 {top1:.2f}%)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted class", "True class")
    texts = {tuple(text.get_position()): text for text in axes.texts}
    if classes == 100:
        assert not texts
        return
    assert [label.get_text() for label in axes.get_xticklabels()] == list(names)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(names)
    # The column comes first. Texts are white on dark cells and black on light ones; empty cells have none.
    assert (texts[0, 1].get_text(), texts[0, 1].get_color()) == ("25", "black")
    assert (texts[1, 1].get_text(), texts[1, 1].get_color()) == ("75", "white")
    assert texts.pop(((classes - 1) / 2, 0)).get_text() == "no images"
    assert len(texts) == np.count_nonzero(matrix)


def test_corruptions_figure(tmp_path, figures):
    rows = [{"corruption": "none", "severity": 0, "top1": 0.875}]
    rows += [
        {"corruption": name, "severity": level, "top1": (place + level) / 10}
        for place, name in enumerate(("gaussian_noise", "fog"))
        for level in range(1, 6)
    ]
    draw_corruptions(rows, 0.4321, {"fog"}, tmp_path / "x.png")
    (figure,) = figures
    assert_picture(tmp_path / "x.png", figure)
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.images[0].get_array(), [np.arange(1, 6) / 10, np.arange(2, 7) / 10])
    assert axes.get_title() == "Top-1 under corruption: mean 43.2% (without: 87.5%)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gaussian noise", "fog *"]
    assert {tuple(text.get_position()): text.get_text() for text in axes.texts}[4, 0] == "50%"


def test_missing_folder_is_reported(tmp_path):
    with pytest.raises(ShiftViTError, match="cannot write"):
        draw_confusion_matrix(np.eye(2, dtype=int), ("a", "b"), tmp_path / "missing" / "x.png")
