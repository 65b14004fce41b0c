"""The bulk engine: blocks of the input, an output file for each, and the rows of `predict` from two nodes."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from parquet_tables import BLOBS, IMAGE, pa, write_parquet
from sample import load_sample
from shiftvit import Embedder, Predictor, ShiftViTError
from shiftvit.cli.main import app
from shiftvit.data.find.listing import list_images
from shiftvit.files import make_temporary_folder
from shiftvit.inference import bulk, worker
from shiftvit.inference.blocks import Inputs, read_entries
from shiftvit.inference.bulk import run_bulk
from shiftvit.inference.cluster import import_ray
from shiftvit.inference.embed import Embedding
from shiftvit.inference.folder import Folder
from shiftvit.inference.predict import Failure, to_row
from shiftvit.inference.storage import Storage, is_uri, open_storage
from shiftvit.inference.worker import (
    Task,
    Worker,
    count_actors,
    count_digits,
    count_errors,
    encode,
    name_part,
    pack,
)

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
SCALING = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text("utf-8")
PIXELS = load_sample().test.images


def mark_cluster_test(test):
    """Marks a slow test that uses Ray, whose warnings about its own settings are not errors."""
    return pytest.mark.slow(pytest.mark.filterwarnings("default")(test))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """200 pictures in two folders; one is damaged, one empty and one oddly named."""
    root = tmp_path_factory.mktemp("bulk") / "photos"
    for number in range(200):
        path = root / ("a" if number < 120 else "b c") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[number % len(PIXELS)]).save(path)
    (root / "a" / "050.png").write_bytes(b"no picture")
    (root / "a" / "051.png").write_bytes(b"")
    (root / "a" / "052.png").rename(root / "a" / "katze ü #1.png")
    return root


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    blobs = [*BLOBS, None, b"no picture"]
    cells = pa.array([{"bytes": blob, "path": None} for blob in blobs], IMAGE)
    return write_parquet(tmp_path_factory.mktemp("shards") / "train.parquet", rows=20, image=cells)


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


def list_inputs(inputs):
    return [named.name for named in read_entries(inputs.entries, inputs.storages)]


def test_inputs_are_listed_like_those_of_predict(photos):
    expected = list_images([str(photos)], recursive=True)
    inputs = Inputs([str(photos)], recursive=True)
    assert list_inputs(inputs) == expected
    assert inputs.count == 200
    assert inputs.roots == {str(photos / "a"), str(photos / "b c")}
    by_uri = Inputs([photos.as_uri()], recursive=True)
    assert list_inputs(by_uri) == [f"file://{name}" for name in expected]
    assert by_uri.digest() != inputs.digest() == Inputs([str(photos)], recursive=True).digest()
    assert list_inputs(Inputs([str(photos / "a" / "1*.png"), expected[0]])) == [
        *list_images([str(photos / "a" / "1*.png")]),
        expected[0],
    ]


@pytest.mark.parametrize("make", [str, Path.as_uri])
def test_parquet_file_expands_to_its_images(shard, make):
    inputs = Inputs([make(shard)])
    assert list_inputs(inputs) == [f"{'file://' if '://' in make(shard) else ''}{shard}#{row}" for row in range(62)]
    assert [entry[2:] for entry in inputs.entries] == [(0, 0, 20), (1, 20, 20), (2, 40, 20), (3, 60, 2)]
    assert list_inputs(Inputs([make(shard.parent)])) == list_inputs(inputs)
    results = list(Predictor.from_pretrained("cifar10").stream(read_entries(inputs.entries, inputs.storages)))
    alone = Predictor.from_pretrained("cifar10")(BLOBS)
    assert [result.label for result in results[:60]] == [result.label for result in alone]
    assert "has no image: the row has no bytes" in results[60].error
    assert "image of a supported format" in results[61].error


def test_blocks_depend_only_on_the_input(photos, shard):
    inputs = Inputs([str(photos), str(shard)], recursive=True)
    blocks = list(inputs.split(16))
    assert [entry for block in blocks for entry in block] == inputs.entries
    assert [len(block) for block in blocks] == [16] * 12 + [9, 1, 1, 1]  # a row group is never cut
    assert inputs.choose_block_size() == 16
    inputs.count = 10_000_000
    assert inputs.choose_block_size() == 1024
    inputs.count = 10_000
    assert inputs.choose_block_size() == 192


def test_row_groups_without_rows_give_no_block(tmp_path):
    """The second file has a group without rows, the third one no group at all."""
    table = pa.table({"image": pa.array([{"bytes": blob, "path": None} for blob in BLOBS[:3]], IMAGE)})
    for name, parts in (("a", [table, table[:0]]), ("b", [table[:0], table[:2], table[:0]]), ("c", [])):
        with pq.ParquetWriter(tmp_path / f"{name}.parquet", table.schema) as file:
            for part in parts:
                file.write_table(part)
    inputs = Inputs([str(tmp_path)])
    assert [pq.ParquetFile(tmp_path / f"{name}.parquet").num_row_groups for name in "abc"] == [2, 3, 0]
    assert [[Path(entry[1]).name, *entry[2:]] for entry in inputs.entries] == [
        ["a.parquet", 0, 0, 3],
        ["b.parquet", 1, 0, 2],
    ]
    assert len(list(inputs.split(3))) == 2
    (tmp_path / "a.parquet").unlink()
    pq.write_table(table[:0], tmp_path / "b.parquet")
    with pytest.raises(ShiftViTError, match=r"there are no images in '.*b.parquet' and '.*c.parquet'; name image"):
        Inputs([str(tmp_path / "b.parquet"), str(tmp_path / "c.parquet")])


def test_images_are_identified_by_their_place(photos, shard, tmp_path, monkeypatch):
    """The same names in another folder are other images; another spelling of a path is not."""
    for day in ("monday", "tuesday"):
        shutil.copytree(photos / "a", tmp_path / day / "frames")
        shutil.copy(shard, tmp_path / day / "frames.parquet")
    (tmp_path / "today").symlink_to("monday")
    for name in ("frames", "frames.parquet"):
        digests = {}
        for day in ("monday", "tuesday", "today"):
            monkeypatch.chdir(tmp_path / day)
            assert len({Inputs([spelled]).digest() for spelled in (name, f"./{name}", str(Path.cwd() / name))}) == 1
            digests[day] = Inputs([name]).digest()
        assert digests["monday"] == digests["today"] != digests["tuesday"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nowhere"], "'nowhere' does not exist"),
        (["file:///nowhere/at/all"], "'file:///nowhere/at/all' does not exist; check the URI"),
        (["file:///nowhere/pets#old"], "has a '#', which ends the path of a URI; write it as %23"),
        (["s3://bucket/pets#old"], "has a '#', which ends the path of a URI; write it as %23"),
        (["file:///nowhere/pets?x=1"], "write it as %3F"),
        (["gopher://host/photos"], "'gopher://host/photos' cannot be reached"),
        (["empty"], "holds no image files"),
        (["empty.parquet"], "readable Parquet"),
    ],
)
def test_missing_and_empty_inputs_fail_in_one_line(names, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.parquet").write_bytes(b"")
    with pytest.raises(ShiftViTError, match=message) as fault:
        Inputs(names)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("make", [str, Path.as_uri])
def test_output_files_are_written_atomically(tmp_path, make):
    folder = Folder(make(tmp_path / "new" / "out"))
    assert folder.list_names() == []
    folder.make()
    folder.write("part-000000.jsonl", b"rows")
    assert folder.has("part-000000.jsonl")
    assert not folder.has("part-000001.jsonl")
    assert folder.read("part-000000.jsonl") == b"rows"
    (tmp_path / "new" / "out" / ".part-000001.jsonl.0.tmp").write_bytes(b"half")
    assert folder.list_names() == ["part-000000.jsonl"]
    if is_uri(str(folder)):
        (tmp_path / "new" / "out" / "mine.tmp").write_bytes(b"mine")
        folder.sweep()
        assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == {"mine.tmp", "part-000000.jsonl"}
    else:
        with make_temporary_folder(tmp_path / "new" / "out", "part-000001.jsonl") as live:
            leftover = tmp_path / "new" / "out" / ".part-000000.jsonl.0.tmp"
            leftover.mkdir()
            (leftover / ".lock").write_bytes(b"")
            folder.sweep()
            assert not leftover.exists()
            assert live.exists()

    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ShiftViTError, match="is a file, but the output is a folder"):
        Folder(make(tmp_path / "file")).check()
    with pytest.raises(ShiftViTError, match=r"cannot write|cannot be reached"):
        Folder(make(tmp_path / "gone")).write("part-000000.jsonl", b"rows")
    assert not (tmp_path / "gone").exists()


class Intercepted:
    """A file system that calls a function before each rename."""

    def __init__(self, filesystem, before):
        self._filesystem, self._before = filesystem, before

    def __getattr__(self, name):
        return getattr(self._filesystem, name)

    def move(self, old, new):
        self._before(old)
        self._filesystem.move(old, new)


def test_upload_is_repeated_if_another_start_swept_it(tmp_path):
    folder, swept = Folder((tmp_path / "out").as_uri()), []
    folder.make()

    def sweep(unfinished):
        if not swept:
            swept.append(unfinished)
            Folder(str(folder)).sweep()
            assert not Path(unfinished).exists()

    folder._filesystem = Intercepted(folder._filesystem, sweep)
    folder.write("part-000000.jsonl", b"rows")
    assert swept
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir()] == [("part-000000.jsonl", b"rows")]


def test_failed_upload_leaves_nothing(tmp_path):
    folder = Folder((tmp_path / "out").as_uri())
    folder.make()

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder._filesystem = Intercepted(folder._filesystem, fail)
    with pytest.raises(ShiftViTError, match="cannot be reached: No space left on device"):
        folder.write("part-000000.jsonl", b"rows")
    assert list((tmp_path / "out").iterdir()) == []


def test_image_by_uri_is_read_no_further_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("shiftvit.inference.storage.MAX_BYTES", 99)
    (tmp_path / "a.png").write_bytes(bytes(200))
    storage, path = open_storage((tmp_path / "a.png").as_uri())
    assert len(storage.get_content(path)()) == 100  # one byte more than the limit shows that it is too large


@pytest.mark.parametrize(("blocks", "digits"), [(1, 6), (1_000_000, 6), (1_000_001, 7), (10_000_001, 8)])
def test_names_of_parts_sort_in_the_order_of_the_input(blocks, digits):
    assert count_digits(blocks) == digits
    numbers = [0, 9, 10, 99_999, 100_000, 100_001, 999_999, 1_000_000, 9_999_999, 10_000_000]
    names = [name_part(number, "jsonl", digits) for number in numbers if number < blocks]
    assert names == sorted(names)
    assert name_part(7, "jsonl") == "part-000007.jsonl"


def test_row_formats(tmp_path):
    """JSON lines equal those of `shiftvit predict`; Parquet has the same values."""
    good, bad = Predictor.from_pretrained("cifar10")([PIXELS[0]])[0], Failure("b\udcff.png", "'b\udcff.png' is empty")
    lines = encode([good, bad], "jsonl", None)
    first, second = map(json.loads, lines.splitlines())
    assert first == to_row(good)
    assert second == to_row(bad)
    (tmp_path / "a.parquet").write_bytes(encode([good, bad], "parquet", None))
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [(pair["label"], pair["confidence"]) for pair in rows[0]["top"]] == [tuple(pair) for pair in first["top"]]
    assert {name: rows[0][name] for name in ("path", "label", "confidence")} == {
        name: first[name] for name in ("path", "label", "confidence")
    }
    assert rows[1] == {
        "path": "b\\udcff.png",
        "label": None,
        "confidence": None,
        "top": None,
        "error": "'b\\udcff.png' is empty",
    }
    feature = Embedder.from_pretrained("cifar10")(PIXELS[:1])
    (tmp_path / "b.parquet").write_bytes(encode([bad, Embedding("a.png", feature[0])], "parquet", feature.shape[1]))
    table = pq.read_table(tmp_path / "b.parquet")
    assert table.column("features").to_pylist()[0] is None
    np.testing.assert_array_equal(table.column("features").to_pylist()[1], feature[0])
    for content, kind in ((lines, "jsonl"), ((tmp_path / "a.parquet").read_bytes(), "parquet")):
        assert count_errors(content, kind) == 1


def claim_folder(out, **changed):
    described = {
        "command": "predict",
        "model": "m",
        "model_sha256": "a",
        "images": 4,
        "images_sha256": "b",
        "block": 16,
    }
    folder = Folder(str(out))
    found = bulk._find_run(folder, {**described, **changed}, "block" in changed)
    if found is None:
        folder.make()
        folder.write("run.json", json.dumps(described).encode())
    return found


def test_output_folder_belongs_to_one_run(tmp_path):
    assert claim_folder(tmp_path / "out") is None
    assert claim_folder(tmp_path / "out", model="the same under another name")["block"] == 16
    for changed, message in (
        ({"model_sha256": "c"}, "holds a run of a different model"),
        ({"images": 5}, "holds a run of 4 images, but there are now 5"),
        ({"images_sha256": "c"}, "holds a run of different images"),
        ({"block": 32}, "holds a run with block = 16, not 32"),
        ({"command": "embed"}, "holds a run with command = predict, not embed"),
    ):
        with pytest.raises(ShiftViTError, match=message):
            claim_folder(tmp_path / "out", **changed)
    (tmp_path / "out" / "run.json").write_text("{")
    with pytest.raises(ShiftViTError, match="cannot be read; choose a new folder"):
        claim_folder(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ShiftViTError, match=r"'letter.txt' but no run"):
        claim_folder(tmp_path / "mine")


def test_folder_that_another_run_took_while_ray_started_is_refused(photos, tmp_path, monkeypatch):
    out = tmp_path / "out"

    @contextlib.contextmanager
    def connect(*_):
        assert claim_folder(out) is None  # by the other run
        yield

    nodes = [{"Alive": True, "Resources": {"CPU": 2}}]
    monkeypatch.setattr(bulk, "connect", connect)
    monkeypatch.setattr(bulk, "import_ray", lambda: SimpleNamespace(nodes=lambda: nodes))
    with pytest.raises(ShiftViTError, match="holds a run"):
        run_bulk(Task("predict", str(out)), [str(photos)], recursive=True)
    assert [path.name for path in out.iterdir()] == ["run.json"]
    assert json.loads((out / "run.json").read_text())["model"] == "m"


def test_actor_of_another_run_writes_nothing(tmp_path):
    """By URI two runs may take a folder at the same time; the one whose manifest was replaced ends."""
    assert claim_folder(tmp_path / "out") is None
    task = Task("predict", str(tmp_path / "out"), kind="jsonl", run=worker.digest_run({"model": "m", "images": 5}))
    (fault,) = Worker(task, None)({"block": [0], "entries": [pack([])]})["fault"]
    assert "was taken by another run" in fault
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


def test_one_process_at_a_time_holds_a_folder(tmp_path):
    folder, order = Folder(str(tmp_path)), []

    def wait():
        with Folder(str(tmp_path)).hold():
            order.append("second")

    thread = threading.Thread(target=wait)
    with folder.hold():
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [str, Path.as_uri])
def test_results_are_not_read_as_images(make, shard, tmp_path):
    (tmp_path / "in" / "labels").mkdir(parents=True)
    shutil.copy(shard, tmp_path / "in" / "a.parquet")
    shutil.copy(shard, tmp_path / "in" / "labels" / "part-000000.parquet")
    results = Folder(make(tmp_path / "in" / "labels")).identify()
    found = Inputs([make(tmp_path / "in")], recursive=True, without=results)
    assert found.digest() == Inputs([make(tmp_path / "in" / "a.parquet")]).digest()


def test_paths_on_standard_input_keep_their_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(BLOBS[0])
    calls = []
    monkeypatch.setattr(bulk, "run_bulk", lambda _, names, **__: calls.append(names) or bulk.Summary())
    command = ["predict", "a.png", "-", "d.png", "--engine", "ray", "--out", "out"]
    CliRunner().invoke(app, command, input="b.png\nc.png\n", catch_exceptions=False)
    assert calls == [["a.png", "b.png", "c.png", "d.png"]]


def test_block_that_kills_its_actors_ends_the_run(photos, tmp_path):
    inputs = Inputs([str(photos / "a" / "000.png")])
    assert claim_folder(tmp_path / "out") is None
    actor = Worker(Task("predict", str(tmp_path / "out"), kind="jsonl", storages=tuple(inputs.storages)), None)
    batch = {"block": [7], "entries": [pack(inputs.entries)]}

    class Killed(BaseException):
        """A killed process leaves its files as they are."""

    def die():
        raise Killed

    actor._load = die
    for _ in range(5):
        with pytest.raises(Killed):
            actor(batch)
    (fault,) = actor(batch)["fault"]
    assert "5 actors in turn died while processing the block of 'part-000007.jsonl'" in fault
    Folder(str(tmp_path / "out")).sweep()  # as the next start does
    actor._load = lambda: Predictor.from_pretrained("cifar10")
    assert actor(batch)["fault"] == [""]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["part-000007.jsonl", "run.json"]


def test_unsuitable_nodes_report_a_fault(tmp_path, photos):
    task = Task("predict", str(tmp_path / "out"), kind="jsonl", roots=(str(photos),))
    batch = {"block": [0], "entries": [pack([])]}

    def find_fault(task):
        return Worker(task, None)(batch)["fault"][0]

    assert "has no" in find_fault(task)
    assert str(tmp_path / "out") in find_fault(task)
    assert claim_folder(tmp_path / "out") is None
    assert "'/not/mounted'; name a folder that all nodes share" in find_fault(replace(task, roots=("/not/mounted",)))
    assert "has shiftvit " in find_fault(replace(task, version="0.0.1"))


def test_storage_errors_do_not_become_image_errors(photos, tmp_path, monkeypatch):
    """A failed read is repeated, and ends the run if it keeps failing: rows of good files must not become errors."""
    monkeypatch.setattr(worker, "_PAUSE", 0)
    inputs = Inputs([photos.as_uri() + "/a/000.png"])
    assert claim_folder(tmp_path / "out") is None
    task = Task("predict", str(tmp_path / "out"), kind="jsonl", storages=tuple(inputs.storages))
    actor = Worker(task, None)
    actor._model = Predictor.from_pretrained("cifar10")
    calls = []

    def read(self, path, limit=None):
        calls.append(path)
        if len(calls) < failing:
            raise OSError("AWS Error NETWORK_CONNECTION")
        return original(self, path, limit)

    original = type(inputs.storages[0]).read
    monkeypatch.setattr(type(inputs.storages[0]), "read", read)
    failing = 10
    batch = {"block": [0], "entries": [pack(inputs.entries)]}
    assert actor(batch)["fault"] == ["AWS Error NETWORK_CONNECTION"]
    assert len(calls) == 3
    assert read_rows(tmp_path / "out") == []
    calls, failing = [], 2
    assert actor(batch) == {"block": [0], "failures": [0], "fault": [""]}
    assert len(read_rows(tmp_path / "out")) == 1


class Line:
    """A connection that may be cut: a file that pyarrow reads through Python."""

    def __init__(self, cut, file):
        self._cut, self._file, self.closed = cut, file, False

    def __getattr__(self, name):
        return getattr(self._file, name)

    def read(self, count=-1):
        self._cut()
        return self._file.read(count)

    def close(self):
        self.closed = True
        self._file.close()


@pytest.mark.parametrize("make", [str, Path.as_uri])
def test_parquet_that_cannot_be_reached_does_not_become_image_errors(shard, make, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_PAUSE", 0)
    inputs = Inputs([make(shard)])
    assert claim_folder(tmp_path / "out") is None
    actor = Worker(Task("predict", str(tmp_path / "out"), kind="jsonl", storages=tuple(inputs.storages)), None)
    actor._model = Predictor.from_pretrained("cifar10")
    opened, reads, failing = [], [], range(6, 10**6)

    def open_line(self, path):
        opened.append(path)
        return pa.PythonFile(Line(cut, Path(self.locate(path)).open("rb")), "r")

    def cut():
        reads.append(len(opened))
        if len(reads) in failing:
            raise OSError("AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr(Storage, "open", open_line)
    batch = {"block": [0], "entries": [pack(inputs.entries)]}
    assert actor(batch)["fault"] == ["AWS Error NETWORK_CONNECTION"]
    assert read_rows(tmp_path / "out") == []
    reads, failing = [], range(6, 7)  # one read fails, in the first group
    assert actor(batch) == {"block": [0], "failures": [2], "fault": [""]}
    rows = read_rows(tmp_path / "out")
    assert [row["path"] for row in rows] == [f"{inputs.storages[0].name(str(shard))}#{row}" for row in range(62)]
    expected = Predictor.from_pretrained("cifar10")(BLOBS)
    assert [row.get("label") for row in rows] == [*(result.label for result in expected), None, None]


def test_damaged_and_shorter_parquet_gives_failures(shard, tmp_path):
    path = Path(shutil.copy(shard, tmp_path))
    inputs = Inputs([str(path)])
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(200))
    expected = Predictor.from_pretrained("cifar10")(BLOBS)
    results = list(Predictor.from_pretrained("cifar10").stream(read_entries(inputs.entries, inputs.storages)))
    assert [result.path for result in results] == [f"{path}#{row}" for row in range(62)]
    for row, (result, good) in enumerate(zip(results, expected, strict=False)):
        if 20 <= row < 40:
            assert "is not a readable Parquet file" in result.error
        else:
            assert result.label == good.label
    pq.write_table(pq.read_table(shard)[:25], path, row_group_size=20)
    results = list(Predictor.from_pretrained("cifar10").stream(read_entries(inputs.entries[:3], inputs.storages)))
    assert [result.path for result in results] == [f"{path}#{row}" for row in range(60)]
    assert [row for row, result in enumerate(results) if isinstance(result, Failure)] == [*range(25, 60)]
    assert "has fewer rows than before; start again in a new folder" in results[25].error


@pytest.mark.parametrize("make", [str, Path.as_uri])
@pytest.mark.parametrize("harm", ["gone", "empty", "broken"])
def test_unmounted_folder_does_not_become_image_errors(harm, make, photos, shard, tmp_path, monkeypatch):
    """The error of the folder ends the run; a single missing file is a failure."""
    monkeypatch.setattr(worker, "_PAUSE", 0)
    folder = Path(shutil.copytree(photos / "b c", tmp_path / "disk"))
    shutil.copy(shard, folder)
    names = [make(folder / "120.png"), make(folder / "121.png"), make(folder / shard.name)]
    inputs = Inputs(names)
    assert claim_folder(tmp_path / "out") is None
    actor = Worker(Task("predict", str(tmp_path / "out"), kind="jsonl", storages=tuple(inputs.storages)), None)
    actor._model = Predictor.from_pretrained("cifar10")
    if harm == "broken":

        def fail(path, *_, **__):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

        monkeypatch.setattr(os, "open", fail)
        monkeypatch.setattr(Storage, "open", lambda _, path: fail(path))
    else:
        folder.rename(tmp_path / "elsewhere")
    if harm == "empty":
        folder.mkdir()
    entries = [[entry] for entry in inputs.entries[:3]]
    for number, block in enumerate(entries):
        (fault,) = actor({"block": [number], "entries": [pack(block)]})["fault"]
        assert (
            "Input/output error" if harm == "broken" else f"the folder {str(folder)!r} is missing or empty"
        ) in fault
    assert read_rows(tmp_path / "out") == []
    monkeypatch.undo()
    if harm != "broken":
        shutil.rmtree(folder, ignore_errors=True)
        (tmp_path / "elsewhere").rename(folder)
    (folder / "121.png").unlink()
    assert [actor({"block": [n], "entries": [pack(block)]})["failures"] for n, block in enumerate(entries)] == [
        [0],
        [1],
        [0],
    ]
    assert "No such file or directory; give a readable image file" in read_rows(tmp_path / "out")[1]["error"]


def test_local_files_in_blocks_give_the_rows_of_predict(photos):
    inputs = Inputs([str(photos)], recursive=True)
    results = Predictor.from_pretrained("cifar10").stream(read_entries(inputs.entries, inputs.storages))
    expected = predict_in_one_process(tuple(list_images([str(photos)], recursive=True)))
    assert_rows_equal([to_row(result) for result in results], expected)


def make_nodes(*cores):
    """Returns what `ray.nodes` returns of nodes with these cores; the last one has died."""
    resources = [{"memory": 1e9} | ({"CPU": float(count)} if count else {}) for count in cores]
    return [{"Alive": at < len(cores) - 1, "Resources": found} for at, found in enumerate(resources)]


@pytest.mark.parametrize(
    ("cores", "threads", "actors"),
    [
        ((2, 2, 2, 2, 0), 1, 8),
        ((2, 2, 2, 2, 64), 2, 4),
        ((3, 3, 0), 2, 2),  # six cores, but only two threads fit on each node
        ((0, 8, 0), 3, 2),
        ((0, 64), 4, 1),  # a head without cores, whose cluster may grow
    ],
)
def test_as_many_actors_as_fit_on_the_nodes(cores, threads, actors):
    assert count_actors(make_nodes(*cores), threads) == actors


@pytest.mark.parametrize(("cores", "threads"), [((2, 64), 8), ((2, 2, 2, 2, 0), 4), ((0, 2, 0), 3)])
def test_more_threads_than_any_node_has_fail_in_one_line(cores, threads):
    line = f"threads={threads} needs a node with as many cores, but the largest has 2; use fewer threads"
    with pytest.raises(ShiftViTError) as fault:
        count_actors(make_nodes(*cores), threads)
    assert str(fault.value) == line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "spark"], "there is no engine 'spark'"),
        (["--address", "auto"], "--address needs --engine ray"),
        (["--out", "s3://bucket/labels.csv"], "'s3://bucket/labels.csv' is a URI, which needs --engine ray"),
        (["gs://bucket/photos"], "'gs://bucket/photos' is a URI, which needs --engine ray"),
        (["--engine", "ray"], "name it with --out DIR"),
        (["--engine", "ray", "--out", "o", "--grid", "g.png"], "--grid does not work with --engine ray"),
        (["--engine", "ray", "--out", "o", "--format", "csv"], "predict on Ray cannot write 'csv'"),
        (["--engine", "ray", "--out", "o", "--workers", "0"], "workers=0 must be at least 1"),
        (["--engine", "ray", "--out", "o", "--model", "nowhere"], "'nowhere' does not exist"),
        (["--engine", "ray", "--out", "o.csv"], "is named like a file"),
        (["--engine", "ray", "--out", "o", "--address", "127.0.0.1:1"], "no Ray cluster answers at '127.0.0.1:1'"),
        (["--engine", "ray", "--out", "o", "--address", "nonsense"], "no Ray cluster answers at 'nonsense'"),
    ],
)
def test_usage_errors_are_one_line(options, message, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, ["predict", str(photos / "a" / "000.png"), *options])
    assert isinstance(answer.exception, ShiftViTError)
    assert message in str(answer.exception)
    assert "\n" not in str(answer.exception)


def test_unfinished_files_are_swept_at_the_end(photos, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def run_blocks(*_):
        leftover = out / ".part-000000.jsonl.0.tmp"  # of a worker that was killed after its rename
        leftover.mkdir()
        (leftover / ".lock").write_bytes(b"")
        yield 0, 0

    monkeypatch.setattr(bulk, "import_ray", lambda: SimpleNamespace(nodes=lambda: make_nodes(64)))
    monkeypatch.setattr(bulk, "connect", lambda *_: nullcontext())
    monkeypatch.setattr(bulk, "_run_blocks", run_blocks)
    run_bulk(Task("predict", str(out)), [str(photos / "b c")])
    assert [path.name for path in out.iterdir()] == ["run.json"]


def test_missing_ray_names_the_package_to_install(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ShiftViTError, match=r"the engine 'ray' is not installed; pip install 'ray\[data\]"):
        run_bulk(Task("predict", str(tmp_path / "out")), [str(photos)], recursive=True)
    assert not (tmp_path / "out").exists()


def test_unusable_cluster_fails_in_one_line(photos, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
    for fault, message in (
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Python: 3.13.1"),
            "install the same versions on both",
        ),
        (ConnectionError("Could not find any running Ray instance."), "start a cluster with: ray start --head"),
    ):

        def init(*_, fault=fault, **__):
            raise fault

        monkeypatch.setattr(ray, "init", init)
        with pytest.raises(ShiftViTError, match=message) as caught:
            run_bulk(Task("predict", str(tmp_path / "out")), [str(photos)], recursive=True, address="auto")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_usage_statistics_follow_the_users_settings(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
    name, settings = "RAY_USAGE_STATS_ENABLED", tmp_path / "config.json"
    monkeypatch.setenv("RAY_USAGE_STATS_CONFIG_PATH", str(settings))
    monkeypatch.setenv(name, "1")
    import_ray()
    assert os.environ[name] == "1"
    monkeypatch.delenv(name)
    import_ray()
    assert os.environ[name] == "0"
    monkeypatch.delenv(name)
    settings.write_text('{"usage_stats": true}')
    import_ray()
    assert name not in os.environ


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket of a local S3 service, to which the environment points; None if moto is not installed."""
    try:
        import boto3
        from moto.server import ThreadedMotoServer
    except ImportError:
        yield None
        return
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # instead of a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name, value in (("ACCESS_KEY_ID", "me"), ("SECRET_ACCESS_KEY", "none"), ("REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # do not search the network for credentials
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        yield "bucket"
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket):  # noqa: ARG001  (nodes inherit the environment that points to it)
    """Two nodes of two cores each, on this machine."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # paths of sockets must be short
    node = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("TMPDIR", folder)  # Ray uses it too
        cluster = Cluster()
        try:
            cluster.add_node(**node, include_dashboard=False)
            cluster.add_node(**node)
            cluster.wait_for_nodes(60)
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def start_command(cluster, *arguments, cwd, **options):
    command = [sys.executable, "-m", "shiftvit", *map(str, arguments), "--engine", "ray", "--address", cluster.address]
    return subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, text=True, **options)


def list_actors():
    """Returns the process ids of the actors on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def act_when(condition, act, seconds=60):
    """Starts a thread that calls `act` once `condition` holds; returns a list for its result, and the thread."""
    results = []

    def watch():
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                results.append(act())
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    return results, thread


@mark_cluster_test
def test_two_nodes_give_the_rows_of_predict(cluster, photos, tmp_path, monkeypatch):
    """Runs the command of the README."""
    expected = predict_in_one_process(tuple(list_images([str(photos)], recursive=True)))
    (documented,) = [line for line in README.splitlines() if "--engine ray" in line]
    command = shlex.split(documented.replace("--address auto", f"--address {cluster.address}"), comments=True)
    command[command.index("labels")] = str(tmp_path / "out")
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=photos.parent, stderr=subprocess.PIPE, text=True)
    _, notices = process.communicate(timeout=120)
    assert process.returncode == 0, notices
    short = [{**row, "path": str(Path(row["path"]).relative_to(photos.parent))} for row in expected]
    for row in short:
        row.update(error=row["error"].replace(str(photos), "photos")) if "error" in row else None
    assert_rows_equal(read_rows(tmp_path / "out"), short)
    assert "200 images in" in notices
    assert "2 could not be read" in notices
    assert "(4 actors)" in notices
    monkeypatch.chdir(photos.parent)
    command = ["predict", "photos", "-r", "--engine", "ray", "--address", "127.0.0.1:1", "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, command).exit_code == 0  # nothing is left to do, so Ray is not started
    assert CliRunner().invoke(app, [*command, "--strict"]).exit_code == 3


@mark_cluster_test
def test_more_threads_than_a_node_has_do_not_wait(cluster, photos, tmp_path):
    """The cluster has four cores, but each node two."""
    task = Task("predict", str(tmp_path / "out"), threads=3)
    with pytest.raises(ShiftViTError, match="threads=3 needs a node with as many cores, but the largest has 2"):
        run_bulk(task, [str(photos / "a")], address=cluster.address)
    assert not (tmp_path / "out").exists()


@mark_cluster_test
def test_cluster_reads_parquet_and_uris(cluster, photos, shard, tmp_path):
    task = Task("predict", (tmp_path / "out").as_uri(), kind="parquet", top_k=3)
    done = run_bulk(task, [photos.as_uri() + "/a", str(shard)], address=cluster.address, workers=2)
    assert (done.images, done.failures, done.before, done.actors) == (182, 4, 0, 2)
    rows = read_rows(tmp_path / "out")
    assert_rows_equal(rows[:120], predict_in_one_process(tuple(list_images([str(photos / "a")]))), "file://")
    assert [row["path"] for row in rows[120:]] == [f"{shard}#{number}" for number in range(62)]
    assert all(len(row["top"]) == 3 for row in rows if row["error"] is None)
    again = run_bulk(task, [photos.as_uri() + "/a", str(shard)], address="127.0.0.1:1", recount=True)
    assert (again.images, again.failures, again.before) == (0, 4, 182)


@mark_cluster_test
def test_cluster_reads_and_writes_a_bucket(cluster, bucket, photos, tmp_path):
    """Runs the command of docs/scaling.md."""
    if bucket is None:
        pytest.skip("moto is not installed: pip install 'moto[s3]' flask-cors")
    from pyarrow import fs

    fs.copy_files(str(photos), f"s3://{bucket}/photos")
    (documented,) = [line for line in SCALING.splitlines() if line.strip().startswith("shiftvit predict s3://")]
    command = shlex.split(documented.replace("--address auto", f"--address {cluster.address}"), comments=True)
    process = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 0, process.stderr
    (tmp_path / "out").mkdir()
    fs.copy_files(f"s3://{bucket}/labels", str(tmp_path / "out"))
    names = list_images([str(photos)], recursive=True)
    expected = [
        {**row, "path": row["path"].replace(str(photos), f"{bucket}/photos")}
        for row in predict_in_one_process(tuple(names))
    ]
    for row in expected:
        row.update(error=row["error"].replace(str(photos), f"{bucket}/photos")) if "error" in row else None
    assert_rows_equal(read_rows(tmp_path / "out"), expected, "s3://")
    again = run_bulk(
        Task("predict", f"s3://{bucket}/labels"), [f"s3://{bucket}/photos"], recursive=True, address="127.0.0.1:1"
    )
    assert (again.images, again.before) == (0, 200)


@mark_cluster_test
def test_cluster_computes_features(cluster, photos, tmp_path):
    task = Task("embed", str(tmp_path / "out"))
    done = run_bulk(task, [str(photos)], recursive=True, address=cluster.address, workers=2)
    assert done.features == 256
    names = list_images([str(photos)], recursive=True)
    rows = read_rows(tmp_path / "out")
    assert [row["path"] for row in rows] == names
    results = list(Embedder.from_pretrained("cifar10").stream(names))
    for row, result in zip(rows, results, strict=True):
        assert row["error"] == getattr(result, "error", None)
        if row["error"] is None:
            np.testing.assert_allclose(row["features"], result.features, atol=1e-4)


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory):
    """1,500 pictures, so that a run of small blocks lasts a few seconds."""
    root = tmp_path_factory.mktemp("many")
    for number in range(1500):
        Image.fromarray(PIXELS[number % len(PIXELS)]).save(root / f"{number:04}.png", compress_level=1)
    return root


@mark_cluster_test
def test_killed_actor_loses_and_repeats_no_rows(cluster, many_photos, tmp_path):
    out = tmp_path / "out"

    def kill():
        victim = list_actors()[0]
        os.kill(victim, signal.SIGKILL)
        return len(list(out.glob("part-*")))

    killed, thread = act_when(lambda: len(list(out.glob("part-*"))) >= 3, kill)
    done = run_bulk(Task("predict", str(out)), [str(many_photos)], address=cluster.address, workers=2, block=10)
    thread.join()
    assert 3 <= killed[0] < 150
    assert done.images == 1500
    assert sorted(path.name for path in out.iterdir()) == [name_part(n, "jsonl") for n in range(150)] + ["run.json"]
    assert_rows_equal(read_rows(out), predict_in_one_process(tuple(list_images([str(many_photos)]))))


@mark_cluster_test
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_run_continues(cluster, many_photos, tmp_path, number):
    out = tmp_path / "out"
    process = start_command(cluster, "predict", many_photos, "--workers", "2", "--out", out, cwd=tmp_path)
    end = time.monotonic() + 90
    while not list(out.glob("part-*")) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, notices = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number, notices
        assert "run the same command again to continue" in notices
    while list_actors() and time.monotonic() < end:  # they finish writing and end after their driver
        time.sleep(0.1)
    leftover = out / ".part-000000.jsonl.0.tmp"  # as left by a kill before the rename
    leftover.mkdir()
    (leftover / ".lock").write_bytes(b"")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert 0 < len(before) < 63
    with pytest.raises(ShiftViTError, match="holds a run with top_k = 5, not 2"):
        run_bulk(Task("predict", str(out), top_k=2), [str(many_photos)], address=cluster.address)
    done = run_bulk(Task("predict", str(out)), [str(many_photos)], address=cluster.address, workers=2)
    assert done.before > 0
    assert done.before + done.images == 1500
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}.items()
    assert_rows_equal(read_rows(out), predict_in_one_process(tuple(list_images([str(many_photos)]))))
    assert not list(out.glob(".*"))
    assert not list(Path(os.environ["TMPDIR"]).glob(".shiftvit*"))  # no model left by a killed worker


@mark_cluster_test
def test_node_with_another_version_ends_the_run(cluster, photos, tmp_path):
    """The error is one line, and the run continues once the node has the right version."""
    import ray

    other = tmp_path / "other" / "shiftvit"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("__version__ = '0.0.1'")
    task, names = Task("predict", str(tmp_path / "out")), [str(photos / "b c")]
    import_ray()
    with ray.init(
        cluster.address,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(other.parent)}},
    ):
        with pytest.raises(
            ShiftViTError, match="install the same shiftvit on all nodes, then start the command again"
        ) as fault:
            run_bulk(task, names, workers=1)
        assert "No module named 'shiftvit" in str(fault.value)
        assert "\n" not in str(fault.value)
    assert run_bulk(task, names, address=cluster.address, workers=1).images == 80
