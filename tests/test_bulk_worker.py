"""The actors of the bulk engine, called directly: faults of storage are not faults of images."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bulk_runs import (
    claim_folder,
    make_nodes,
    read_rows,
)
from parquet_tables import BLOBS, pa
from shiftvit import Predictor, ShiftViTError
from shiftvit.inference import worker
from shiftvit.inference.blocks import Inputs
from shiftvit.inference.folder import OutputFolder
from shiftvit.inference.storage import Storage
from shiftvit.inference.worker import (
    Task,
    Worker,
    count_actors,
    pack,
)


def test_actor_of_another_run_writes_nothing(tmp_path):
    """By URI two runs may take a folder at the same time; the one whose manifest was replaced ends."""
    assert claim_folder(tmp_path / "out") is None
    task = Task("predict", str(tmp_path / "out"), kind="jsonl", run=worker.digest_run({"model": "m", "images": 5}))
    (fault,) = Worker(task, None)({"block": [0], "entries": [pack([])]})["fault"]
    assert "was taken by another run" in fault
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


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
    OutputFolder(str(tmp_path / "out")).sweep()  # as the next start does
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
