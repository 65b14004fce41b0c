"""What can be classified: paths, bytes, open files, arrays and PIL images, each taken when its turn comes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shiftvit.data.decode.images import MAX_BYTES, decode
from shiftvit.errors import ShiftViTError

# One image. Arrays are uint8, (H, W, 3) in RGB, (H, W, 4) with alpha, or (H, W).
Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | NDArray[np.uint8] | Image.Image
# The same, when nobody else can change it any more: a path, a file's bytes, or pixels uint8 (H, W, 3).
Taken = str | bytes | NDArray[np.uint8]

_ONE = "a path, the bytes of an image file, an open binary file, a PIL image or a uint8 array (H, W, 3) in RGB"
_TEXT = "text, not an image; open an image file with mode 'rb', and give a list of paths as a list"


def split(given: Any) -> tuple[Iterator[Any], bool]:
    """Returns the images in what a user gave, and whether they may be taken before they are needed.

    They may if they are all there already. An iterator may be a camera, or wait for the answer to its last image.

    Args:
        given: a `Source`, an array (N, H, W, 3), or an iterable of both.

    Raises:
        ShiftViTError: it is nothing of these.
    """
    if isinstance(given, np.ndarray):
        names = given.ndim == 1 and given.dtype.kind in "USO"
        return (_images(given) if names else _images([given])), True
    if isinstance(given, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or _is_file(given):
        return iter([given]), True
    # Iterating over a tensor gives its rows, and over a mapping its keys.
    iterable = not isinstance(given, Mapping) and getattr(given, "ndim", 1) == 1 and not inspect.isclass(given)
    try:
        parts = iter(given if iterable else None)  # type: ignore[arg-type]
    except TypeError:
        raise ShiftViTError(
            f"an object of the type {type(given).__name__} is no image; give {_ONE}, an array (N, H, W, 3), or an "
            "iterable of these"
        ) from None
    return _images(parts), isinstance(given, Sequence)


def _images(parts: Iterable[Any]) -> Iterator[Any]:
    for part in parts:
        if isinstance(part, np.ndarray) and part.ndim == 4:
            yield from part
        else:
            yield part


def take(source: Any, name: str, max_pixels: int) -> Taken:
    """Returns what a source holds now. Its owner may then reuse a buffer, or go on to an animation's next frame.

    Args:
        source: a `Source`; a file is read from its start if it can go there.
        name: what messages call it.
        max_pixels: as in `decode`.

    Raises:
        ShiftViTError: it is no `Source`, or it cannot be read.
    """
    if isinstance(source, str | bytes):
        return source
    if isinstance(source, os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, bytearray) or (isinstance(source, memoryview) and source.ndim == 1):
        return bytes(source)
    if isinstance(source, Image.Image):
        return decode(source, name=name, max_pixels=max_pixels)
    if isinstance(source, np.ndarray | memoryview):
        return _pixels(np.asarray(source), name, max_pixels)
    if _is_file(source):
        return _content(source, name)
    raise ShiftViTError(f"{name} has the type {type(source).__name__}; give {_ONE}")


def _is_file(source: Any) -> bool:
    return callable(getattr(source, "read", None)) and not inspect.isclass(source)


def _pixels(array: NDArray[Any], name: str, max_pixels: int) -> NDArray[np.uint8]:
    channels = array.shape[2] if array.ndim == 3 else None
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (None, 3, 4) or not array.size:
        mend = "; give the bytes of an image file as `array.tobytes()`" if array.ndim == 1 else ""
        raise ShiftViTError(
            f"{name} is an array of {array.dtype} {array.shape}; give uint8 (H, W, 3) in RGB, (H, W, 4) or (H, W) with "
            f"values from 0 to 255{mend}"
        )
    return decode(Image.fromarray(array), name=name, max_pixels=max_pixels)


def _content(file: Any, name: str) -> bytes:
    """Returns what is in an open file, and one byte more than is allowed if there is more."""
    try:
        # As Pillow does, so that a file that was just written, or was read before, is read whole.
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)
        parts, left = [], MAX_BYTES + 1
        while left and (part := file.read(left)):  # a pipe gives less than it is asked for
            if not isinstance(part, bytes):
                kind = type(file).__name__
                what = (
                    f"is {_TEXT}" if isinstance(part, str) else f"has the type {kind} and gives no bytes; give {_ONE}"
                )
                raise ShiftViTError(f"{name} {what}")
            parts.append(part)
            left -= len(part)
    except UnicodeDecodeError as error:
        raise ShiftViTError(f"{name} is {_TEXT}") from error
    except ShiftViTError:
        raise
    except (OSError, ValueError) as error:  # ValueError: it is closed
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ShiftViTError(f"{name} cannot be read: {reason}; give an open binary file") from error
    return b"".join(parts)
