"""Readers of both CIFAR-10 archives: the arrays that they return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar10_world import World
from shiftvit.data.cifar10.archives import read_authors, read_npm


@pytest.mark.parametrize(("kind", "read"), [("authors", read_authors), ("package", read_npm)])
def test_readers_return_the_written_arrays(tmp_path: Path, kind: str, read: Any) -> None:
    world = World(tmp_path)
    found = read(getattr(world, kind))
    assert {*found} == {*world.arrays}
    for name, array in world.arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.uint8
        assert found[name].flags.c_contiguous
