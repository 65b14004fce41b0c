"""The readers of the two archives: what they read, and that nothing in a file is ever run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar10_world import python_2_batch, tar_gz
from shiftvit.data.cifar10.archives import read_authors, read_batch, read_npm
from shiftvit.errors import ShiftViTError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3072), dtype=np.uint8)
LABELS = [3, 0, 9, 9, 1]
IMAGES = PIXELS.reshape(5, 3, 32, 32).transpose(0, 2, 3, 1)


def test_python_2_form_is_a_true_pickle() -> None:
    """Otherwise the test below would prove nothing; `pickle` is safe here, on bytes made in this file."""
    form = python_2_batch(PIXELS, LABELS).replace(b"numpy.core.", b"numpy._core.")
    batch = pickle.loads(form, encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], PIXELS)
    assert batch[b"labels"] == LABELS
    assert batch[b"filenames"] == [b"batch", b"batch"]


def test_reads_what_python_2_wrote() -> None:
    images, labels = read_batch(python_2_batch(PIXELS, LABELS))
    np.testing.assert_array_equal(images, IMAGES)
    assert images.flags.c_contiguous
    assert labels.tolist() == LABELS
    assert images.dtype == labels.dtype == np.uint8


@pytest.mark.parametrize("protocol", [1, 2, 3, 4])
@pytest.mark.parametrize("key", [str, str.encode])
@pytest.mark.parametrize("pixels", [PIXELS, PIXELS.tobytes()])
def test_reads_what_python_3_writes(protocol: int, key: Any, pixels: Any) -> None:
    batch = {
        key("batch_label"): b"x",
        key("labels"): LABELS,
        key("data"): pixels,
        key("filenames"): ["a", "b"],
    }
    data = pickle.dumps(batch, protocol=protocol)
    if protocol in (2, 3):
        images, labels = read_batch(data)
        np.testing.assert_array_equal(images, IMAGES)
        assert labels.tolist() == LABELS
    else:  # not the forms that CIFAR-10 has been published in: refused, or read right
        try:
            images, _ = read_batch(data)
        except ShiftViTError:
            return
        np.testing.assert_array_equal(images, IMAGES)


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_in_a_batch_is_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    data = pickle.dumps({"labels": LABELS, "data": Bomb(mark)}, protocol=protocol)
    with pytest.raises(ShiftViTError, match="not in the form of CIFAR-10"):
        read_batch(data)
    assert not mark.exists()
    pickle.loads(data)  # the bomb is a real one
    assert mark.exists()


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # in a damaged class name
@settings(max_examples=150)
@given(data=st.data())
def test_damaged_batches_are_faults_and_nothing_else(data: st.DataObject) -> None:
    whole = bytearray(python_2_batch(PIXELS[:1], LABELS[:1]))
    header = [*range(200), *range(len(whole) - 60, len(whole))]
    for position in data.draw(st.lists(st.sampled_from(header), min_size=1, max_size=3)):
        whole[position] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(len(whole) - 50, len(whole)))])
    try:
        images, labels = read_batch(damaged)
    except ShiftViTError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert images.shape[1:] == (32, 32, 3)
        assert images.dtype == labels.dtype == np.uint8


@pytest.mark.parametrize("read", [read_authors, read_npm])
def test_faulty_archives_are_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(ShiftViTError, match=r"has no '[\w/-]*data_batch_1"):
        read(tar_gz(tmp_path / "other.tar.gz", {"../../x": b"1"}))
    assert [path.name for path in tmp_path.iterdir()] == ["other.tar.gz"]
    (tmp_path / "broken.tar.gz").write_bytes((tmp_path / "other.tar.gz").read_bytes()[:-20])
    (tmp_path / "text.tar.gz").write_bytes(b"not an archive at all, but long enough to look at" * 30)
    for name in ("broken", "text"):
        with pytest.raises(ShiftViTError, match=f"{name}.tar.gz"):
            read(tmp_path / f"{name}.tar.gz")


def test_faulty_pictures_and_labels_are_named(tmp_path: Path) -> None:
    names = [*(f"data_batch_{i}.png" for i in range(1, 6)), "test_batch.png"]
    members = {f"package/{name}": b"\x89PNG no more" for name in names}
    lists = {f"package/{name}_lables.json": b"[0, 1]" for name in ("train", "test")}
    with pytest.raises(ShiftViTError, match=r"'data_batch_1.png' is no readable PNG"):
        read_npm(tar_gz(tmp_path / "a.tgz", members | lists))
