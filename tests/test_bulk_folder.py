"""The folder of a bulk run: one run at a time, files whole or absent, and their rows."""

from __future__ import annotations

import contextlib
import errno
import json
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from bulk_runs import (
    PIXELS,
    claim_folder,
    make_nodes,
)
from shiftvit import Embedder, Predictor, ShiftViTError
from shiftvit.files import make_temporary_folder
from shiftvit.inference import bulk
from shiftvit.inference.bulk import run_bulk
from shiftvit.inference.embed import Embedding
from shiftvit.inference.folder import OutputFolder
from shiftvit.inference.predict import Failure, to_row
from shiftvit.inference.storage import is_uri
from shiftvit.inference.worker import (
    Task,
    count_digits,
    count_errors,
    encode,
    name_part,
)


@pytest.mark.parametrize("make", [str, Path.as_uri])
def test_output_files_are_written_atomically(tmp_path, make):
    folder = OutputFolder(make(tmp_path / "new" / "out"))
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
        OutputFolder(make(tmp_path / "file")).check()
    with pytest.raises(ShiftViTError, match=r"cannot write|cannot be reached"):
        OutputFolder(make(tmp_path / "gone")).write("part-000000.jsonl", b"rows")
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
    folder, swept = OutputFolder((tmp_path / "out").as_uri()), []
    folder.make()

    def sweep(unfinished):
        if not swept:
            swept.append(unfinished)
            OutputFolder(str(folder)).sweep()
            assert not Path(unfinished).exists()

    folder._filesystem = Intercepted(folder._filesystem, sweep)
    folder.write("part-000000.jsonl", b"rows")
    assert swept
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir()] == [("part-000000.jsonl", b"rows")]


def test_failed_upload_leaves_nothing(tmp_path):
    folder = OutputFolder((tmp_path / "out").as_uri())
    folder.make()

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder._filesystem = Intercepted(folder._filesystem, fail)
    with pytest.raises(ShiftViTError, match="cannot be reached: No space left on device"):
        folder.write("part-000000.jsonl", b"rows")
    assert list((tmp_path / "out").iterdir()) == []


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


def test_one_process_at_a_time_holds_a_folder(tmp_path):
    folder, order = OutputFolder(str(tmp_path)), []

    def wait():
        with OutputFolder(str(tmp_path)).hold():
            order.append("second")

    thread = threading.Thread(target=wait)
    with folder.hold():
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


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
