"""Readers of both CIFAR-10 archives: the arrays they return and the files they reject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cifar10_world import World, write_records, write_tar_gz
from shiftvit.data.cifar10.archives import BATCHES, read_authors, read_npm
from shiftvit.errors import ShiftViTError


@pytest.mark.parametrize(("kind", "read"), [("authors", read_authors), ("package", read_npm)])
def test_readers_return_the_written_arrays(tmp_path: Path, kind: str, read: Any) -> None:
    world = World(tmp_path)
    found = read(getattr(world, kind))
    assert {*found} == {*world.arrays}
    for name, array in world.arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.uint8
        assert found[name].flags.c_contiguous


@pytest.mark.parametrize("change", [-1, 1, -3072])
def test_partial_records_fail(tmp_path: Path, change: int) -> None:
    content = write_records(np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.uint8))
    members = {f"cifar-10-batches-bin/{name}.bin": content for name in BATCHES}
    members["cifar-10-batches-bin/data_batch_3.bin"] = content[:change] if change < 0 else content + bytes(change)
    with pytest.raises(
        ShiftViTError, match=rf"data_batch_3.bin' has {2 * 3073 + change} bytes; it must have a multiple of 3073;"
    ):
        read_authors(write_tar_gz(tmp_path / "a.tar.gz", members))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_archives_raise_only_shiftvit_errors(world: World, tmp_path: Path, data: st.DataObject) -> None:
    source = getattr(world, data.draw(st.sampled_from(["authors", "package"])))
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / source.name
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        arrays = (read_authors if "binary" in path.name else read_npm)(path)
    except ShiftViTError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:  # undetected damage changes the hashes, which the cache checks
        assert {*arrays} == {"x_train", "y_train", "x_test", "y_test"}


@pytest.mark.parametrize("read", [read_authors, read_npm])
def test_errors_name_the_archive(tmp_path: Path, read: Any) -> None:
    with pytest.raises(ShiftViTError, match=r"has no '[\w/-]*data_batch_1"):
        read(write_tar_gz(tmp_path / "other.tar.gz", {"../../x": b"1"}))
    assert [path.name for path in tmp_path.iterdir()] == ["other.tar.gz"]
    (tmp_path / "broken.tar.gz").write_bytes((tmp_path / "other.tar.gz").read_bytes()[:-20])
    (tmp_path / "text.tar.gz").write_bytes(b"not an archive at all, but long enough to look at" * 30)
    for name in ("broken", "text"):
        with pytest.raises(ShiftViTError, match=f"{name}.tar.gz"):
            read(tmp_path / f"{name}.tar.gz")


def test_unreadable_png_fails(tmp_path: Path) -> None:
    names = [*(f"data_batch_{i}.png" for i in range(1, 6)), "test_batch.png"]
    members = {f"package/{name}": b"\x89PNG no more" for name in names}
    lists = {f"package/{name}_lables.json": b"[0, 1]" for name in ("train", "test")}
    with pytest.raises(ShiftViTError, match=r"'data_batch_1.png' is not a readable PNG"):
        read_npm(write_tar_gz(tmp_path / "a.tgz", members | lists))
