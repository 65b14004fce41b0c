"""Inputs of the bulk engine, and what its tests share."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from parquet_tables import BLOBS, IMAGE, pa, write_parquet
from sample import load_sample
from shiftvit import Predictor
from shiftvit.inference import bulk
from shiftvit.inference.folder import OutputFolder
from shiftvit.inference.predict import to_row

PIXELS = load_sample().test.images


def write_photos(root):
    """Writes 200 pictures into two folders; one is damaged, one empty and one oddly named."""
    for number in range(200):
        path = root / ("a" if number < 120 else "b c") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[number % len(PIXELS)]).save(path)
    (root / "a" / "050.png").write_bytes(b"no picture")
    (root / "a" / "051.png").write_bytes(b"")
    (root / "a" / "052.png").rename(root / "a" / "katze ü #1.png")
    return root


def write_shard(path):
    """Writes a Parquet file of 62 rows in four row groups; one row has no picture and one a damaged one."""
    blobs = [*BLOBS, None, b"no picture"]
    cells = pa.array([{"bytes": blob, "path": None} for blob in blobs], IMAGE)
    return write_parquet(path, rows=20, image=cells)


@functools.cache
def predict_in_one_process(paths):
    """Returns the rows of `shiftvit predict` for files, from one process."""
    return [to_row(result) for result in Predictor.from_pretrained("cifar10").stream(list(paths), top_k=5)]


def read_rows(out):
    """Returns the rows of a finished run, in the order of its files."""
    found = []
    for path in sorted(Path(out).glob("part-*")):
        if path.suffix == ".jsonl":
            found += map(json.loads, path.read_text("utf-8").splitlines())
        else:
            found += pq.read_table(path).to_pylist()
    return found


def assert_rows_equal(rows, expected, prefix=""):
    """Compares rows. The last digit of a confidence may differ, as it depends on the size of the batch."""
    assert [row["path"] for row in rows] == [prefix + row["path"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row.get("error") == (other["error"].replace(other["path"], row["path"]) if "error" in other else None)
        if "label" in other:
            assert row["label"] == other["label"]
            assert row["confidence"] == pytest.approx(other["confidence"], abs=2e-6)
            top = [tuple(pair.values()) if isinstance(pair, dict) else tuple(pair) for pair in row["top"]]
            assert [label for label, _ in top] == [label for label, _ in other["top"][: len(top)]]


def claim_folder(out, **changed):
    described = {
        "command": "predict",
        "model": "m",
        "model_sha256": "a",
        "images": 4,
        "images_sha256": "b",
        "block": 16,
    }
    folder = OutputFolder(str(out))
    found = bulk._find_run(folder, {**described, **changed}, "block" in changed)
    if found is None:
        folder.make()
        folder.write("run.json", json.dumps(described).encode())
    return found


def make_nodes(*cores):
    """Returns what `ray.nodes` returns of nodes with these cores; the last one has died."""
    resources = [{"memory": 1e9} | ({"CPU": float(count)} if count else {}) for count in cores]
    return [{"Alive": at < len(cores) - 1, "Resources": found} for at, found in enumerate(resources)]
