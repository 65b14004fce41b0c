"""Reads, decodes and preprocesses a user's images, and gathers them into batches."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shiftvit.data.decode.images import MAX_BYTES, MAX_PIXELS, decode
from shiftvit.errors import ShiftViTError, check_at_least
from shiftvit.evaluation.metrics import check_finite
from shiftvit.preprocess import Preprocess
from shiftvit.threads import count_threads

BATCH_SIZE = 64
# The most images that a thread prepares at a time; enough to make the handover cheap.
_CHUNK = 16


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


# An image that is ready for the model, uint8 (h, w, 3), with its name; or why it could not be prepared.
Prepared = Failure | tuple[str, NDArray[np.uint8]]

_ONE = "a path, the bytes of an image file, an open binary file, a PIL image or a uint8 array (H, W, 3) in RGB"
_TEXT = "text, not an image; open an image file with mode 'rb', and give a list of paths as a list"


def stream_pixels(
    sources: Any,
    rule: Preprocess,
    batch_size: int = BATCH_SIZE,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    ahead: int | None = None,
) -> Generator[list[Prepared]]:
    """Yields batches of images for a model, in order and in bounded memory; see `Predictor.stream`.

    Images are read, decoded and preprocessed in other threads while the caller works on a batch.

    Raises:
        ShiftViTError: `sources` holds no images, or a setting is out of range.
    """
    check_at_least("batch_size", batch_size, 1, optional=False)
    check_at_least("max_pixels", max_pixels, 1, optional=False)
    check_at_least("threads", threads, 1)
    check_at_least("ahead", ahead, 0)
    images, are_at_hand = split_images(sources)
    threads = threads or count_threads()
    if ahead is None:
        ahead = 2 * max(batch_size, threads) if are_at_hand else 0
    return _gather_batches(images, rule, batch_size, threads, max_pixels, ahead)


def _gather_batches(
    images: Iterator[Any], rule: Preprocess, batch_size: int, threads: int, max_pixels: int, ahead: int
) -> Generator[list[Prepared]]:
    numbered = enumerate(images, start=1)
    chunk_size = min(_CHUNK, -(-batch_size // threads))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    running: deque[Future[list[Prepared]]] = deque()
    ready: list[Prepared] = []
    free = batch_size + ahead  # number of images that may be fetched now
    usable = 0
    try:
        while True:
            while free:
                part = itertools.islice(numbered, min(chunk_size, free))
                chunk = [_copy(number, source, max_pixels, rule.srgb) for number, source in part]
                if not chunk:
                    break
                free -= len(chunk)
                running.append(pool.submit(_prepare, chunk, rule, max_pixels))
            if not running:  # there are no more images
                break
            for item in running.popleft().result():
                ready.append(item)
                usable += not isinstance(item, Failure)
                if usable == batch_size:
                    yield ready
                    free += len(ready)
                    ready, usable = [], 0
            if ready and not running:  # no more images may be fetched, or there are none
                yield ready
                free += len(ready)
                ready, usable = [], 0
    finally:
        pool.shutdown(cancel_futures=True)


def _copy(number: int, source: Any, max_pixels: int, srgb: bool) -> tuple[str, Copied | Failure]:
    """Returns an image's name, and a copy of it or why it cannot be read."""
    if isinstance(source, Named):
        return source.name, source.content
    named = isinstance(source, str | os.PathLike)
    name = os.fsdecode(source) if named else f"image {number}"
    try:
        return name, copy_source(source, name, max_pixels, srgb)
    except ShiftViTError as error:
        return name, _make_failure(name, error)


def _prepare(chunk: list[tuple[str, Copied | Failure]], rule: Preprocess, max_pixels: int) -> list[Prepared]:
    """Decodes and preprocesses images."""
    results: list[Prepared] = []
    for name, image in chunk:
        if isinstance(image, Failure):
            results.append(image)
            continue
        try:
            if callable(image):
                image = image()
            if not isinstance(image, np.ndarray):
                image = decode(image, max_pixels=max_pixels, name=name, **rule.decoding)
            results.append((name, rule.pixels(image[None])[0]))
        except ShiftViTError as error:
            results.append(_make_failure(name, error))
    return results


def _make_failure(name: str, error: ShiftViTError) -> Failure:
    text = str(error)
    return Failure(name, text if name in text else f"{name}: {text}")


def run_batches(
    batches: Generator[list[Prepared]], run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], model: str
) -> Iterator[Failure | tuple[str, NDArray[np.float32]]]:
    """Runs a model on batches. Yields (name, row of the output) for each image, and failures as they are.

    Raises:
        ShiftViTError: a row has NaN or infinity; the message names the image and `model`.
    """
    with contextlib.closing(batches):
        for batch in batches:
            yield from _run_batch(batch, run, model)


def _run_batch(
    items: list[Prepared], run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], model: str
) -> Iterator[Failure | tuple[str, NDArray[np.float32]]]:
    pixels = (item[1] for item in items if not isinstance(item, Failure))
    # The images of a batch may differ in size only for a graph that takes any size.
    batches = (np.stack([*batch]) for _, batch in itertools.groupby(pixels, key=np.shape))
    rows = (row for batch in batches for row in run(batch))
    for item in items:
        if isinstance(item, Failure):
            yield item
        else:
            row = next(rows)
            check_finite(row[None], f"the model {model!r}", [item[0]])
            yield item[0], row


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
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ShiftViTError(f"{name} cannot be read: {reason}; give an open binary file") from error
    return b"".join(parts)
