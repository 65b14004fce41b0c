"""Lack of memory is reported as such: no good image is left out, and no good file is called damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL.JpegImagePlugin import JpegImageFile

from sample import write_tree
from shiftvit import Bundle, Predictor, Preprocess, ShiftViTError
from shiftvit.bundle.stored.container import open_container, write_container
from shiftvit.cli import main
from shiftvit.data.check.checks import check_data
from shiftvit.data.decode.images import decode
from shiftvit.data.find.find import find_data
from shiftvit.data.read import read_dataset
from shiftvit.inference import runtimes
from shiftvit.model.convert import read_weights

LIMITED_PROGRAM = """
import resource, sys
from PIL import Image
from shiftvit.data.decode.images import decode

for place in sys.argv[1:]:
    Image.new("RGB", (2500, 2000), (9, 200, 3)).save(place, **({"speed": 10} if place.endswith("avif") else {}))
    decode(place, max_pixels=2**30)  # makes the allocations that happen once, such as the decoders' threads
status = open("/proc/self/status").read()
size = 1024 * int(status.split("VmSize:")[1].split()[0])
resource.setrlimit(resource.RLIMIT_AS, (size + 2**21, -1))
blocks = []
try:
    while True:
        blocks.append(bytearray(2**17))  # uses up what the allocator holds in reserve
except MemoryError:
    pass
for place in sys.argv[1:]:
    try:
        decode(place)
        print(place, "was decoded")
    except MemoryError as error:
        print(place, error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory through Linux interfaces")
def test_decoders_report_lack_of_memory(tmp_path: Path) -> None:
    places = [str(tmp_path / f"a.{kind}") for kind in ("jpg", "png", "webp", "gif", "bmp", "tif", "avif")]
    done = subprocess.run([sys.executable, "-c", LIMITED_PROGRAM, *places], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = [f"{place} there is not enough memory to decode {place!r}" for place in places]
    assert done.stdout.splitlines() == expected


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "pets", per_class=4)


@pytest.fixture
def no_memory_for_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the decoding of a JPEG run out of memory."""

    def load(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(JpegImageFile, "load", load)


@pytest.mark.usefixtures("no_memory_for_jpeg")
def test_lack_of_memory_leaves_out_no_image(tree: Path) -> None:
    match = r"there is not enough memory to decode '.*\.jpg'"
    picture = next(tree.rglob("*.jpg"))
    data = find_data(tree)
    with pytest.raises(MemoryError, match=match):
        decode(picture)
    with pytest.raises(MemoryError, match=match):
        read_dataset(data, Preprocess(resize=8, crop=8))
    with pytest.raises(MemoryError, match=match):
        check_data(data)
    predictor = Predictor.from_pretrained("cifar10")
    with pytest.raises(MemoryError, match=match):
        list(predictor.stream([picture]))
    with pytest.raises(MemoryError, match=match):
        predictor(picture)


@pytest.mark.usefixtures("no_memory_for_jpeg")
@pytest.mark.parametrize("arguments", [["predict", "PLACE", "--recursive"], ["data", "check", "PLACE"]])
def test_commands_report_lack_of_memory_in_one_line(
    arguments: list[str],
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main._run([str(tree) if word == "PLACE" else word for word in arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("shiftvit: there is not enough memory to decode '")
    assert last.endswith("'; close other programs, or use a machine with more memory")


def raise_memory_error(*_: Any, **__: Any) -> Any:
    raise MemoryError("no room")


def test_lack_of_memory_is_not_reported_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load("cifar10")
    write_container(tmp_path / "a.zip", bundle.files())
    archive = open_container(tmp_path / "a.zip", "bundle.json")
    assert archive is not None
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2, 4, 4, 3), np.uint8), y_train=[0, 1])
    with monkeypatch.context() as patch:
        patch.setattr("zipfile.ZipExtFile.read", raise_memory_error)
        with pytest.raises(MemoryError):
            archive.read("bundle.json")
        for read in (read_weights, find_data):
            with pytest.raises(MemoryError):
                read(tmp_path / "a.npz")
    row = runtimes.RUNTIMES["onnxruntime"]
    monkeypatch.setitem(runtimes.RUNTIMES, "onnxruntime", row.__class__(row.module, row.reads, raise_memory_error))
    with pytest.raises(MemoryError):
        runtimes.load_graph("cifar10", "onnxruntime")


def test_lack_of_memory_is_not_reported_as_damaged_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"image": [b"1"], "label": ["a"]}), path)

    def fail(*_: Any, **__: Any) -> Any:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", fail)
    with pytest.raises(MemoryError, match="malloc"):
        find_data(path)


def test_damaged_image_is_still_reported_as_damaged(tree: Path) -> None:
    picture = next(tree.rglob("*.jpg"))
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(ShiftViTError, match="is not a readable JPEG"):
        decode(picture)
