"""Every cell of the lesson runs, in its short mode, on the committed sample of CIFAR-10."""

from __future__ import annotations

import ast
import json
import os
import sys
import tempfile
from pathlib import Path

import jupytext
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from sample import load_sample
from shiftvit import Recipe, Run, Shift
from shiftvit.data import named
from shiftvit.model import blocks
from shiftvit.model.shift import SOURCES
from shiftvit.training.runfolder import write_log
from tensors import draw_normal, to_numpy

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import shift_modes

ROOT = Path(__file__).parents[1]
LESSON = ROOT / "docs" / "lesson"
CHAPTERS = sorted(LESSON.glob("[0-9]*.md"))


def run_cell(source, names, origin):
    """Runs a cell as a notebook does and returns the value of its last expression, if it ends with one."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, origin, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), origin, "eval"), names)


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_every_cell_runs(chapter, monkeypatch, tmp_path):
    monkeypatch.setenv("SHIFTVIT_LESSON", "short")
    monkeypatch.setitem(named._LOADERS, "cifar10", load_sample)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    savefig = Figure.savefig

    def draw_shown(self, target, **named):
        """Draws a figure that a cell shows. Those in the run folders of its trainings get one pixel."""
        if isinstance(target, Path):
            Image.new("RGB", (1, 1)).save(target, "PNG")
        else:
            savefig(self, target, **named)

    monkeypatch.setattr(Figure, "savefig", draw_shown)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    names = {"__name__": "__main__"}
    figures = 0
    cells = [cell for cell in jupytext.read(chapter).cells if cell.cell_type == "code"]
    assert cells
    for number, cell in enumerate(cells, 1):
        try:
            value = run_cell(cell.source, names, f"{chapter.name}, cell {number}")
            if hasattr(value, "_repr_png_"):
                png = value._repr_png_()
                figures += 1
                if folder := os.environ.get("SHIFTVIT_LESSON_FIGURES"):  # for people to look at
                    (Path(folder) / f"{chapter.stem}-{figures}.png").write_bytes(png)
                assert "alt" in cell.metadata["mystnb"]["image"], "a figure needs an alternative text"
        except BaseException as error:
            pytest.fail(f"{chapter.name}, cell {number}: {type(error).__name__}: {error}\n\n{cell.source}")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_what_the_site_hides_is_hidden_in_jupyter(chapter):
    """The site hides cells by their tags, JupyterLab by its own metadata."""
    for cell in jupytext.read(chapter).cells:
        tags, hidden = set(cell.metadata.get("tags", [])), cell.metadata.get("jupyter", {})
        assert hidden.get("source_hidden", False) == bool(tags & {"hide-cell", "hide-input"}), cell.source
        assert hidden.get("outputs_hidden", False) == ("hide-cell" in tags), cell.source


def test_chapter_4_names_the_missing_results_outside_a_copy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (cell,) = [
        cell for cell in jupytext.read(LESSON / "04-does-it-matter.md").cells if "FileNotFoundError" in cell.source
    ]
    with pytest.raises(FileNotFoundError, match=r"^no benchmarks/results/.* copy of the repository$"):
        run_cell(cell.source, {"Path": Path, "json": json}, "cell")


def test_run_history_is_its_log(tmp_path):
    rows = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5}]
    run = Run(tmp_path, Recipe(), {})
    assert run.history == []  # without a log
    write_log(tmp_path, rows)
    assert run.history == rows


def test_experiment_statistics_match_their_runs():
    """The means, the intervals and the paired differences of chapter 4, from the accuracies alone."""
    record = json.loads(sorted((ROOT / "benchmarks" / "results").glob("shift_modes-*.json"))[-1].read_text("utf-8"))
    top1 = {mode: [run["test"]["top1"] for run in runs] for mode, runs in record["runs"].items()}
    assert set(top1) == {"shift", "mask", "none", "random"}
    for mode, values in top1.items():
        assert len(values) == record["n"] >= 3
        assert_interval(record["modes"][mode], values)
        if mode != "shift":
            assert_interval(record["minus_shift"][mode], np.subtract(values, top1["shift"]))


def assert_interval(found, values):
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    np.testing.assert_allclose((found["mean"], 2 * found["half_width"]), (np.mean(values), high - low))


def test_random_shift_with_the_shifts_directions_matches_it():
    """With the shift's own directions, the experiment's layer gives the same values as the shift."""
    x = draw_normal(2, 6, 5, 24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "Shift", Shift)  # so that the layer set below is undone at the end
        patch.setattr(shift_modes, "draw_directions", lambda _: list(SOURCES))
        shift_modes.move_at_random(0)
        np.testing.assert_array_equal(to_numpy(blocks.Shift()(x)), to_numpy(Shift()(x)))
    assert shift_modes.draw_directions(3) == shift_modes.draw_directions(3) != shift_modes.draw_directions(4)
    assert all(len(set(shift_modes.draw_directions(seed))) == 4 for seed in range(20))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_no_line_starts_with_a_percent_sign(chapter):
    """MyST takes such a line for a comment, so a sentence wrapped before a percent sign would lose its end."""
    assert not [line for line in chapter.read_text("utf-8").splitlines() if line.startswith("%")]
