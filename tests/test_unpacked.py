"""Reading images of Parquet files in any order: unpacked once, by many threads, completely or not at all."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parquet_tables import BLOBS, CIFAR, LABELS, make_structs, write_cifar, write_parquet
from sample import split_data
from shiftvit import ShiftViTError
from shiftvit.data.check.checks import check_data
from shiftvit.data.decode import rows
from shiftvit.data.decode.images import decode, read_bytes
from shiftvit.data.decode.parquet import find_columns, open_parquet, read_images
from shiftvit.data.find.find import find_data
from shiftvit.data.find.kept import restore_splits, save_splits
from trees import read_fault

KILLED_SCRIPT = """
import os, sys
from shiftvit.data.decode import rows
rows._get_images(rows._identify(sys.argv[1]), lambda _: os.kill(os.getpid(), 9))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SHIFTVIT_CACHE", str(folder))
    return folder / "parquet"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_truncated_file_fails_in_one_line(tmp_path, data):
    whole = write_cifar(tmp_path / "whole.parquet", slice(0, 20)).read_bytes()
    path = tmp_path / "half.parquet"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    line = read_fault(path)
    assert line.startswith(f"{str(path)!r} is not a readable Parquet file (")
    assert line.endswith("; get the file again")
    with pytest.raises(ShiftViTError) as raised:
        decode(f"{path}#0")
    assert str(raised.value) == line


def test_file_with_damaged_pages_fails_in_one_line(tmp_path, cache):
    path = write_cifar(tmp_path / "a.parquet")
    whole = bytearray(path.read_bytes())
    whole[4:2000] = bytes(1996)  # the pages, not the footer
    path.write_bytes(whole)
    found = find_data(path)
    with pytest.raises(ShiftViTError, match=r"a.parquet' is not a readable Parquet file \(.*\); get the file again"):
        check_data(found)
    with pytest.raises(ShiftViTError, match=rf"^'{path}' is not a readable Parquet file \(.*\); get the file again$"):
        decode(found.splits["train"].paths[3])
    assert [file.name for file in cache.iterdir()] == [".lock"]


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.none() | st.binary(max_size=200), min_size=1, max_size=40),
    st.integers(1, 40),
    st.integers(1, 300),
    st.randoms(use_true_random=False),
)
def test_rows_can_be_read_in_any_order(tmp_path, monkeypatch, blobs, rows, at_a_time, random):
    monkeypatch.setattr("shiftvit.data.decode.parquet._BATCH", at_a_time)
    folder = tmp_path / str(random.getrandbits(64))
    path = write_parquet(folder / "a.parquet", rows=rows, image=make_structs(blobs), label=[0] * len(blobs))
    order = list(range(len(blobs)))
    random.shuffle(order)
    for row in order:
        if blobs[row]:
            assert read_bytes(f"{path}#{row}") == blobs[row]
        else:
            with pytest.raises(ShiftViTError, match=rf"a.parquet#{row}' has no image: the row has no bytes; fill them"):
                read_bytes(f"{path}#{row}")
    with pytest.raises(ShiftViTError, match=rf"#{len(blobs)}' is not a row of its file, which has {len(blobs)}; rows"):
        read_bytes(f"{path}#{len(blobs)}")


def test_images_are_read_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("shiftvit.data.decode.parquet._BATCH", 10_000)
    path = write_parquet(tmp_path / "a.parquet", rows=1000, image=make_structs([os.urandom(1000) for _ in range(100)]))
    with open_parquet(str(path)) as file:
        columns = find_columns(str(path), file)
    sizes = [sum(map(len, part.to_pylist())) for part in read_images(str(path), columns)]
    assert sum(sizes) == 100_000
    assert max(sizes) <= 10_000


def test_max_bytes_applies_to_rows(tmp_path):
    path = write_cifar(tmp_path / "a.parquet")
    with pytest.raises(ShiftViTError, match=r"#3' has 900 bytes, more than max_bytes=100; shrink"):
        decode(f"{path}#3", max_bytes=100)


def test_concurrent_reads_unpack_once(tmp_path, capsys):
    path = write_cifar(tmp_path / "a.parquet")
    names = [f"{path}#{row}" for row in range(60)] * 4
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read_bytes, names)) == BLOBS * 4
    assert capsys.readouterr().err.count("unpacking") == 1


def test_file_named_like_a_row_takes_precedence(tmp_path):
    path = write_cifar(tmp_path / "a.parquet")
    (tmp_path / "a.parquet#1").write_bytes(BLOBS[0])
    assert read_bytes(f"{path}#1") == BLOBS[0]
    assert read_bytes(f"{path}#2") == BLOBS[2]
    for name in ("a.parquet#01", "a.parquet#-1", "a.parquet#", "a.parquet#99999999999999999999", "gone.parquet#1"):
        with pytest.raises(ShiftViTError, match="cannot be read: No such file"):
            read_bytes(tmp_path / name)


def test_unpacked_images_are_reused(tmp_path, cache, capsys):
    path = write_cifar(tmp_path / "a.parquet")
    rows.unpack([f"{path}#1", f"{path}#2", str(path), "other.png"])
    assert capsys.readouterr().err == f"shiftvit: unpacking {path} (0.1 MB of images) into {cache}, once\n"
    rows._unpacked.clear()  # as in another process
    rows.unpack([f"{path}#1"])
    assert read_bytes(f"{path}#59") == BLOBS[59]
    assert capsys.readouterr().err == ""


def test_replaced_file_is_unpacked_again_and_old_images_deleted(tmp_path, cache):
    path = write_cifar(tmp_path / "a.parquet")
    other = write_cifar(tmp_path / "b.parquet")
    assert read_bytes(f"{path}#0") == read_bytes(f"{other}#0") == BLOBS[0]
    before = {*cache.glob("*.arrow")}
    write_parquet(path, CIFAR, img=make_structs(BLOBS[::-1]), label=LABELS[::-1])
    assert read_bytes(f"{path}#0") == BLOBS[59]
    assert read_bytes(f"{other}#0") == BLOBS[0]
    assert len(before & {*cache.glob("*.arrow")}) == 1
    assert len({*cache.glob("*.arrow")}) == 2


def test_file_rewritten_with_the_same_size_and_time_is_unpacked_again(tmp_path):
    path, sizes = tmp_path / "a.parquet", []
    for seed in (0, 1):
        blob = np.random.default_rng(seed).bytes(1000)
        write_parquet(path, CIFAR, img=make_structs([blob]), label=[0])
        os.utime(path, ns=(10**18, 10**18))
        sizes.append(path.stat().st_size)
        rows._unpacked.clear()  # as in another process
        assert read_bytes(f"{path}#0") == blob
    assert sizes[0] == sizes[1]


def test_unpacked_file_is_memory_mapped_arrow(tmp_path, cache):
    path = write_cifar(tmp_path / "a.parquet")
    assert read_bytes(f"{path}#0") == BLOBS[0]
    (unpacked,) = cache.glob("*.arrow")
    assert pa.ipc.open_file(unpacked.read_bytes()).read_all().to_pydict() == {"image": BLOBS}
    allocated = pa.total_allocated_bytes()
    images = rows._open_unpacked(rows._identify(str(path)))
    assert pa.total_allocated_bytes() - allocated < 1000
    assert images.nbytes > sum(map(len, BLOBS))


@pytest.mark.parametrize("harm", ["emptied", "gone", "cut", "filled", "offsets", "column", "type", "older"])
def test_damaged_cache_is_rebuilt(tmp_path, cache, harm):
    path = write_cifar(tmp_path / "a.parquet")
    assert read_bytes(f"{path}#0") == BLOBS[0]
    (unpacked,) = cache.glob("*.arrow")
    whole = unpacked.read_bytes()
    if harm == "emptied":  # while this process uses it
        unpacked.unlink()
        assert read_bytes(f"{path}#59") == BLOBS[59]
    rows._unpacked.clear()  # as in another process
    if harm == "gone":
        shutil.rmtree(cache)
    elif harm == "older":  # left by release 0.1.0 for the same Parquet file
        unpacked.rename(unpacked.with_suffix(".images")).write_bytes(b"SVIMAGE1" + bytes(1000))
    elif harm in {"column", "type"}:
        name, kind = ("picture", pa.large_binary()) if harm == "column" else ("image", pa.binary())
        table = pa.table({name: pa.array(BLOBS, kind)})
        with pa.ipc.new_file(unpacked, table.schema) as writer:
            writer.write_table(table)
    elif harm != "emptied":
        place = whole.index(struct.pack("<3q", 0, len(BLOBS[0]), len(BLOBS[0]) + len(BLOBS[1])))
        broken = whole[: place + 8] + struct.pack("<q", 2**40) + whole[place + 16 :]
        unpacked.write_bytes({"cut": whole[:1000], "filled": b"x" * 1000, "offsets": broken}[harm])
    assert [read_bytes(f"{path}#{row}") for row in range(60)] == BLOBS
    assert [file for file in cache.iterdir() if file.name != ".lock"] == [unpacked]
    assert unpacked.read_bytes() == whole


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_process_leaves_no_partial_file(tmp_path, cache):
    path = write_cifar(tmp_path / "a.parquet")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_SCRIPT, str(path)], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -9, killed.stderr
    assert [file.suffix for file in cache.iterdir() if file.name != ".lock"] != []
    assert not [*cache.glob("[!.]*")]
    assert [read_bytes(f"{path}#{row}") for row in range(60)] == BLOBS
    assert len([*cache.iterdir()]) == 2  # the unpacked file and the lock


def test_full_disk_fails_in_one_line(tmp_path, cache, monkeypatch):
    path = write_cifar(tmp_path / "a.parquet")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(
            ShiftViTError, match=r"take up to 0.1 MB and '.*' has room for 0.0 MB; free space, or set SHIFTVIT_"
        ):
            rows.unpack([f"{path}#0"])

    def raise_no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rows, "_write", raise_no_space)
        with pytest.raises(
            ShiftViTError, match=r"cannot be unpacked into '.*': No space left on device; free space, or"
        ):
            rows.unpack([f"{path}#0"])
    with pytest.raises(ShiftViTError, match="No space left on device"):  # not tried again for each image
        read_bytes(f"{path}#1")
    if sys.platform != "win32":
        import resource

        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            with pytest.raises(ShiftViTError, match=r"cannot be unpacked .*: File too large; set SHIFTVIT_CACHE"):
                rows.unpack([f"{path}#0"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [file.name for file in cache.iterdir()] == [".lock"]
    rows.unpack([f"{path}#0"])  # unpack() tries again
    assert read_bytes(f"{path}#1") == BLOBS[1]
    monkeypatch.setenv("SHIFTVIT_CACHE", str(path))
    with pytest.raises(ShiftViTError, match=r"cannot be unpacked .*; set SHIFTVIT_CACHE to a writable folder"):
        rows.unpack([f"{write_cifar(tmp_path / 'b.parquet')}#0"])


def test_saved_splits_survive_a_moved_folder(tmp_path):
    root = tmp_path / "hub"
    for shard in range(2):
        write_cifar(root / "data" / f"train-{shard:05}-of-00002.parquet")
    found = split_data(find_data(root), validation=20, test=20, seed=1)
    save_splits(found, tmp_path / "splits.csv")
    assert "train,data/train-00001-of-00002.parquet#" in (tmp_path / "splits.csv").read_text()
    before = {name: ([read_bytes(path) for path in part.paths], part.labels) for name, part in found.splits.items()}
    root.rename(tmp_path / "moved")
    loaded = restore_splits(find_data(tmp_path / "moved"), tmp_path / "splits.csv").splits
    assert [*loaded] == ["train", "validation", "test"]
    for name, part in loaded.items():
        assert [read_bytes(path) for path in part.paths] == before[name][0]
        np.testing.assert_array_equal(part.labels, before[name][1])
    write_cifar(tmp_path / "moved" / "data" / "train-00001-of-00002.parquet", slice(0, 10))
    with pytest.raises(ShiftViTError, match=r"lacks 50 of the run's 120 images: '.*parquet#10', .* and 47 more"):
        restore_splits(find_data(tmp_path / "moved"), tmp_path / "splits.csv")


def test_table_may_name_rows(tmp_path):
    write_cifar(tmp_path / "a.parquet")
    table = tmp_path / "t.csv"
    table.write_text("path,label\na.parquet#3,x\na.parquet#5,y\n")
    assert [read_bytes(path) for path in find_data(table).splits["train"].paths] == [BLOBS[3], BLOBS[5]]
    table.write_text("path,label\na.parquet#3,x\na.parquet#60,y\n")
    fault = read_fault(table)
    assert fault.startswith("1 of the 2 files that ")
    assert "names do not exist, such as" in fault
