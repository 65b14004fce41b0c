"""The kinds of images that a user may give, and their copies."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shiftvit.data.decode.images import MAX_BYTES, decode
from shiftvit.errors import ShiftViTError, describe_error


@dataclass(frozen=True)
class Named:
    """An image with its own name: a path, or a function that returns a file's bytes and runs in a decoding thread.

    The function raises ShiftViTError if the image cannot be read; its other exceptions end the stream.
    """

    name: str
    content: str | Callable[[], bytes]


# One image. Arrays are uint8, (H, W, 3) in RGB, (H, W, 4) with alpha, or (H, W).
Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | NDArray[np.uint8] | Image.Image | Named
# A copy of a source that its owner cannot change: a path, a file's bytes or a function that reads them, or pixels,
# uint8 (H, W, 3).
Copied = str | bytes | NDArray[np.uint8] | Callable[[], bytes]


@dataclass(frozen=True)
class Failure:
    """An image that cannot be read, with a one-line reason that names it."""

    path: str
    error: str


_ONE = "a path, the bytes of an image file, an open binary file, a PIL image or a uint8 array (H, W, 3) in RGB"
_TEXT = "text, not an image; open an image file with mode 'rb', and give a list of paths as a list"


def split_images(given: Any) -> tuple[Iterator[Any], bool]:
    """Returns an iterator over a user's images, and whether they may be fetched before they are needed.

    They may if they all exist already. An iterator may be a camera, or wait for the result of its last image.

    Args:
        given: a `Source`, an array (N, H, W, 3), or an iterable of both.

    Raises:
        ShiftViTError: it is none of these.
    """
    if isinstance(given, np.ndarray):
        names = given.ndim == 1 and given.dtype.kind in "USO"
        return (_iterate(given) if names else _iterate([given])), True
    if isinstance(given, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | Named) or _is_file(given):
        return iter([given]), True
    # A tensor would give its rows, and a mapping its keys.
    iterable = not isinstance(given, Mapping) and getattr(given, "ndim", 1) == 1 and not inspect.isclass(given)
    try:
        parts = iter(given if iterable else None)  # type: ignore[arg-type]
    except TypeError:
        raise ShiftViTError(
            f"an object of the type {type(given).__name__} is not an image; give {_ONE}, an array (N, H, W, 3), or an "
            "iterable of these"
        ) from None
    return _iterate(parts), isinstance(given, Sequence)


def _iterate(parts: Iterable[Any]) -> Iterator[Any]:
    for part in parts:
        if isinstance(part, np.ndarray) and part.ndim == 4:
            yield from part
        else:
            yield part


def copy_source(source: Any, name: str, max_pixels: int, srgb: bool = False) -> Copied:
    """Returns a copy of a source, whose owner may then reuse its buffer, or seek to another frame of an animation.

    Args:
        source: a `Source`; a file is read from its start if it is seekable.
        name: its name in messages.
        max_pixels, srgb: as in `decode`.

    Raises:
        ShiftViTError: it is not a `Source`, or it cannot be read.
    """
    if isinstance(source, str | bytes):
        return source
    if isinstance(source, os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, bytearray) or (isinstance(source, memoryview) and source.ndim == 1):
        return bytes(source)
    if isinstance(source, Image.Image):
        return decode(source, name=name, max_pixels=max_pixels, srgb=srgb)
    if isinstance(source, np.ndarray | memoryview):
        return _copy_array(np.asarray(source), name, max_pixels)
    if _is_file(source):
        return _read_file(source, name)
    raise ShiftViTError(f"{name} has the type {type(source).__name__}; give {_ONE}")


def _is_file(source: Any) -> bool:
    return callable(getattr(source, "read", None)) and not inspect.isclass(source)


def _copy_array(array: NDArray[Any], name: str, max_pixels: int) -> NDArray[np.uint8]:
    channels = array.shape[2] if array.ndim == 3 else None
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (None, 3, 4) or not array.size:
        mend = "; give the bytes of an image file as `array.tobytes()`" if array.ndim == 1 else ""
        raise ShiftViTError(
            f"{name} is an array of {array.dtype} {array.shape}; give uint8 (H, W, 3) in RGB, (H, W, 4) or (H, W) with "
            f"values from 0 to 255{mend}"
        )
    return decode(Image.fromarray(array), name=name, max_pixels=max_pixels)


def _read_file(file: Any, name: str) -> bytes:
    """Returns the content of an open file, cut off one byte above the allowed size."""
    try:
        # As Pillow does, so that a file that was just written or read is read from its start.
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)
        parts, left = [], MAX_BYTES + 1
        while left and (part := file.read(left)):  # a pipe may return less than requested
            if not isinstance(part, bytes):
                kind = type(file).__name__
                what = (
                    f"is {_TEXT}" if isinstance(part, str) else f"has the type {kind} and returns no bytes; give {_ONE}"
                )
                raise ShiftViTError(f"{name} {what}")
            parts.append(part)
            left -= len(part)
    except UnicodeDecodeError as error:
        raise ShiftViTError(f"{name} is {_TEXT}") from error
    except ShiftViTError:
        raise
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        reason = describe_error(error).rstrip(".")
        raise ShiftViTError(f"{name} cannot be read: {reason}; give an open binary file") from error
    return b"".join(parts)
