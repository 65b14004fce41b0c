"""Hands arrays to another process in files, without a copy in its memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def save_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes each array to `folder`, which is created, as `NAME.npy`."""
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def open_arrays(folder: str | Path) -> dict[str, NDArray[Any]]:
    """Returns the arrays in a folder; they are read from the disk when they are used, and a change stays in memory."""
    # Not read-only, because torch warns of such arrays.
    return {path.stem: np.load(path, mmap_mode="c") for path in sorted(Path(folder).glob("*.npy"))}
