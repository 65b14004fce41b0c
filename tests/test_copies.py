"""Copies among images: files and rows are compared by bytes, arrays by pixels, and only pictures are compared."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from parquet_tables import BLOBS, make_structs, write_parquet
from shiftvit.data.find.copies import _TAIL, find_copies
from shiftvit.data.find.dataset import Split
from trees import SAMPLES


def group_copies(paths: list[str]) -> list[int]:
    return find_copies(Split(np.zeros(len(paths), np.int64), paths)).tolist()


def test_files_are_compared_by_their_bytes(tmp_path: Path) -> None:
    first, second = sorted(SAMPLES.rglob("*.png"))[:2]
    paths = [str(tmp_path / name) for name in ("a.png", "b.png", "c.jpg", "d.png")]
    for path, source in zip(paths, (first, second, first, second), strict=True):
        shutil.copy(source, path)
    assert group_copies(paths) == [0, 1, 0, 1]
    assert group_copies([*paths, *paths[:1]]) == [0, 1, 0, 1, 0]


def test_large_files_with_equal_ends_differ(tmp_path: Path) -> None:
    picture = sorted(SAMPLES.rglob("*.png"))[0].read_bytes()
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, letter in zip(paths, "xyx", strict=True):
        path.write_bytes(picture + letter.encode() + b"." * _TAIL)
    assert group_copies([*map(str, paths)]) == [0, 1, 0]


def test_files_that_are_not_pictures_have_no_copies(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"<html>not found</html>")
    os.mkfifo(tmp_path / "pipe.png")
    places = ("a.png", "b.png", "nowhere.png", "pipe.png", "pipe.png", "")
    found = group_copies([str(tmp_path / name) for name in places])
    assert len({*found}) == 6


def test_copies_among_rows_and_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIFTVIT_CACHE", str(tmp_path / "cache"))
    path = write_parquet(tmp_path / "a.parquet", img=make_structs([BLOBS[1], BLOBS[0], BLOBS[1]]), label=[0, 1, 0])
    assert group_copies([f"{path}#{row}" for row in range(3)]) == [0, 1, 0]
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    assert find_copies(Split(np.zeros(4, np.int64), images=images[[2, 1, 0, 2]])).tolist() == [0, 1, 2, 0]
    assert find_copies(Split(np.zeros(0, np.int64), [])).tolist() == []
