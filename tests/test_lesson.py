"""Every cell of the lesson runs, in its short mode, on the committed sample of CIFAR-10."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import jupytext
import pytest

from sample import load_sample
from shiftvit.data import named

LESSON = Path(__file__).parents[1] / "docs" / "lesson"
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
    (tmp_path / "benchmarks").symlink_to(LESSON.parents[1] / "benchmarks")
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
                if folder := os.environ.get("SHIFTVIT_LESSON_FIGURES"):  # to look at them
                    (Path(folder) / f"{chapter.stem}-{figures}.png").write_bytes(png)
                assert "alt" in cell.metadata["mystnb"]["image"], "a figure needs an alternative text"
        except BaseException as error:
            pytest.fail(f"{chapter.name}, cell {number}: {type(error).__name__}: {error}\n\n{cell.source}")
