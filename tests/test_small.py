"""Messages and figures of the smallest runs: one epoch, one image, two classes, and paths with spaces."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sample import write_tree
from shiftvit import ShiftViTError, train
from shiftvit.cli.main import app
from shiftvit.data.check.checks import check_data
from shiftvit.data.find.find import find_data
from shiftvit.evaluation.report import write_report
from shiftvit.figures.evaluation import draw_reliability
from shiftvit.figures.run import draw_confusion_matrix, draw_learning_curves

SETTINGS = {
    "train.epochs": 1,
    "train.batch_size": 1,
    "train.precision": "float32",
    "model.depths": (1, 1),
    "model.embed_dim": 24,
    "preprocess.resize": 16,
    "preprocess.crop": 16,
    "data.test": 2,
    "data.validation": 2,
}
# "1" before a plural, such as "1 images".
SINGULAR_MISTAKE = re.compile(r"(?<![\d.,/-])1 (?:[a-z]+ )?(?!is\b|was\b|has\b|as\b)[a-z]+[^s\W]s\b")


def make_options() -> list[str]:
    return [f"--set={key}={str(value).replace('(', '[').replace(')', ']')}" for key, value in SETTINGS.items()]


@pytest.mark.slow
def test_messages_use_the_singular(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = write_tree(tmp_path / "my pets", 3)
    for path in (tree / "ship").iterdir():
        path.unlink()
    run = tmp_path / "my run"
    answers = [
        CliRunner().invoke(app, arguments)
        for arguments in (
            ["train", "--recipe", "photos", "--data", str(tree), "--out", str(run), *make_options()],
            ["evaluate", str(run)],
            ["evaluate", str(run), "--split", "train"],
            ["info", str(run)],
            ["data", "check", str(tree)],
        )
    ]
    assert [answer.exit_code for answer in answers] == [0] * len(answers), [answer.output for answer in answers]
    texts = [answer.output for answer in answers]
    texts += [
        (run / "bundle" / "README.md").read_text("utf-8"),
        re.sub("<[^>]*>", " ", write_report(run).read_text("utf-8").split("</style>")[1]),
        *capfd.readouterr(),
    ]
    assert "trained 1 epoch in" in texts[0]
    assert "1 epoch of 2 images" in texts[-3]
    for text in texts:
        assert not SINGULAR_MISTAKE.findall(text), text
        assert not re.search(r"top-?5", text, re.IGNORECASE), text
    assert SINGULAR_MISTAKE.findall("has 1 images and 1 test images") == ["1 images", "1 test images"]


@pytest.mark.slow
def test_axes_of_counts_have_integer_ticks(tmp_path: Path, figures: list) -> None:
    row = {"loss": 1.0, "top1": 0.5, "val_loss": 1.0, "val_top1": 0.5, "learning_rate": 0.1}
    for epochs in (1, 2, 3, 200):
        history = [{**row, "epoch": epoch + 1} for epoch in range(epochs)]
        draw_learning_curves(history, np.linspace(1, 0, 4 * epochs), tmp_path / "x.png", title="x", steps=4)
    check_data(find_data(write_tree(tmp_path / "pets", 1))).draw(tmp_path / "x.png")
    count_axes = [axes.xaxis for figure in figures[:-1] for axes in figure.axes]
    counts, sizes = figures[-1].axes[:2]
    count_axes += [counts.xaxis, sizes.xaxis, sizes.yaxis]
    for count in (1, 3, 40, 2000):
        bins = [{"lower": 0.5, "upper": 1.0, "count": count, "confidence": 0.75, "accuracy": 0.5}]
        draw_reliability({"ece": 0.25, "mce": 0.25, "bins": bins}, tmp_path / "x.png")
        count_axes.append(figures[-1].axes[-1].yaxis)
    for axis in count_axes:
        low, high = sorted(axis.get_view_interval())
        shown = [label.get_text() for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)]
        marks = [place for place in axis.get_ticklocs() if low <= place <= high]
        assert marks, axis
        assert all(float(place).is_integer() for place in marks), marks
        assert all(re.fullmatch(r"-?[\d,]+|", text.replace("\N{MINUS SIGN}", "-")) for text in shown), shown
        assert not any(label.get_text() for label in axis.get_minorticklabels())


def test_confusion_matrix_with_an_empty_class_and_a_tex_like_name(tmp_path: Path, figures: list) -> None:
    draw_confusion_matrix(np.array([[3, 1], [0, 0]]), (r"$\frac$", "a_b"), tmp_path / "x.png")
    (axes,) = [axes for axes in figures[0].axes if axes.get_title()]
    assert [(text.get_position()[1], text.get_text()) for text in axes.texts] == [
        (1, "no images"),
        (0, "75"),
        (0, "25"),
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("plain_figures")
def test_commands_in_hints_can_be_pasted(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    settings = {**SETTINGS, "data.test": 3, "data.validation": 3, "data.name": str(write_tree(tmp_path / "my pets", 3))}
    train("photos", out=run, **settings)
    with pytest.raises(ShiftViTError) as caught:
        train(resume=run)
    assert shlex.split(str(caught.value).split("from its weights: ")[1])[-1] == f"start.source={run}"
    with pytest.raises(ShiftViTError) as caught:
        train("photos", out=run, **settings)
    assert shlex.split(str(caught.value).split("continue that run with ")[1]) == ["--resume", str(run)]
    (run / "metrics.json").unlink()
    (tmp_path / "my pets").rename(tmp_path / "moved")
    with pytest.raises(ShiftViTError) as caught:
        train(resume=run)
    assert shlex.split(str(caught.value).split("new location: ")[1])[-3:] == [str(run), "--data", "PATH"]
