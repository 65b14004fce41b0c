"""The input of the bulk engine: what is listed, and how it is divided into blocks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from bulk_runs import (
    assert_rows_equal,
    predict_in_one_process,
)
from parquet_tables import BLOBS, IMAGE, pa
from shiftvit import Predictor, ShiftViTError
from shiftvit.cli.main import app
from shiftvit.data.find.listing import list_images
from shiftvit.inference import bulk
from shiftvit.inference.blocks import Inputs, read_entries
from shiftvit.inference.folder import OutputFolder
from shiftvit.inference.predict import Failure, to_row
from shiftvit.inference.storage import open_storage


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
def test_results_are_not_read_as_images(make, shard, tmp_path):
    (tmp_path / "in" / "labels").mkdir(parents=True)
    shutil.copy(shard, tmp_path / "in" / "a.parquet")
    shutil.copy(shard, tmp_path / "in" / "labels" / "part-000000.parquet")
    results = OutputFolder(make(tmp_path / "in" / "labels")).identify()
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


def test_image_by_uri_is_read_no_further_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("shiftvit.inference.storage.MAX_BYTES", 99)
    (tmp_path / "a.png").write_bytes(bytes(200))
    storage, path = open_storage((tmp_path / "a.png").as_uri())
    assert len(storage.get_content(path)()) == 100  # one byte more than the limit shows that it is too large


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


def test_local_files_in_blocks_give_the_rows_of_predict(photos):
    inputs = Inputs([str(photos)], recursive=True)
    results = Predictor.from_pretrained("cifar10").stream(read_entries(inputs.entries, inputs.storages))
    expected = predict_in_one_process(tuple(list_images([str(photos)], recursive=True)))
    assert_rows_equal([to_row(result) for result in results], expected)
