"""Decodes and preprocesses a user's images in threads, gathers them into batches, and runs a model on these."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.metadata import BATCH_PIXELS, Metadata
from shiftvit.data.decode.images import MAX_PIXELS, decode
from shiftvit.errors import ShiftViTError, check_at_least
from shiftvit.evaluation.metrics import check_finite
from shiftvit.inference.sources import Copied, Failure, Named, copy_source, split_images
from shiftvit.threads import count_threads

BATCH_SIZE = 64
# The most images that a thread prepares at a time; enough to make the handover cheap.
_CHUNK = 16

# An image that is ready for the model, uint8 (h, w, 3), with its name; or why it could not be prepared.
Prepared = Failure | tuple[str, NDArray[np.uint8]]
# Names and copies of images, or why they cannot be read.
_Chunk = list[tuple[str, Copied | Failure]]


def stream_pixels(
    sources: Any,
    metadata: Metadata,
    batch_size: int = BATCH_SIZE,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    ahead: int | None = None,
) -> Generator[list[Prepared]]:
    """Yields batches of images for a model, in order and in bounded memory; see `Predictor.stream`.

    Images are read, decoded and preprocessed in other threads while the caller works on a batch. For a model that takes
    any size, a batch has at most `BATCH_PIXELS` pixels or one image, and no more are decoded ahead, except for an image
    in each thread.

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
    room = BATCH_PIXELS if None in metadata.input_shape else math.inf
    return _gather_batches(images, metadata, batch_size, threads, max_pixels, ahead, room)


def _gather_batches(
    images: Iterator[Any],
    metadata: Metadata,
    batch_size: int,
    threads: int,
    max_pixels: int,
    ahead: int,
    room: float,
) -> Generator[list[Prepared]]:
    numbered = enumerate(images, start=1)
    # If the room may end, each image is prepared for itself, so that it can be put off.
    chunk_size = min(_CHUNK, -(-batch_size // threads)) if room == math.inf else 1
    decoder = _Decoder(metadata, max_pixels, threads, room)
    fresh: deque[Prepared] = deque()
    ready: list[Prepared] = []
    free = batch_size + ahead  # number of images that may be fetched now
    usable = pixels = 0  # of the images that are ready
    try:
        while True:
            while free and not (decoder.is_busy and decoder.is_full):
                part = itertools.islice(numbered, min(chunk_size, free))
                chunk = [_copy(number, source, max_pixels, metadata.preprocess.srgb) for number, source in part]
                if not chunk:
                    break
                free -= len(chunk)
                decoder.add(chunk)
            is_full = usable == batch_size or pixels >= room
            if not (is_full or fresh) and decoder.is_busy:
                fresh.extend(decoder.take())
            is_full = is_full or bool(usable and fresh and pixels + _count_pixels(fresh[0]) > room)
            if ready and (is_full or not fresh):  # without fresh ones, no more may be fetched, or there are none
                yield ready
                free += len(ready)
                ready, usable, pixels = [], 0, 0
            elif fresh:
                item = fresh.popleft()
                ready.append(item)
                usable += not isinstance(item, Failure)
                pixels += _count_pixels(item)
            else:
                break
    finally:
        decoder.close()


class _Decoder:
    """Prepares images in other threads, and hands them out in order.

    An image is put off while others have `room` pixels or more, that are decoded and not handed out. No thread waits
    for room, because it would wait for ever if the program ended meanwhile.
    """

    def __init__(self, metadata: Metadata, max_pixels: int, threads: int, room: float) -> None:
        self._metadata, self._max_pixels, self._threads, self._room = metadata, max_pixels, threads, room
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        # Each chunk, the pixels that it had when it was added, and its images; None: they are put off.
        self._running: deque[tuple[_Chunk, int, Future[list[Prepared] | None]]] = deque()
        self._lock = threading.Lock()
        self._pixels = self._late = 0

    @property
    def is_busy(self) -> bool:
        """Whether there are images to take."""
        return bool(self._running)

    @property
    def is_full(self) -> bool:
        """Whether no more images are decoded now."""
        return self._pixels >= self._room

    def add(self, chunk: _Chunk) -> None:
        """Prepares images after all that were added before."""
        known = sum(image.size // 3 for _, image in chunk if isinstance(image, np.ndarray))
        self._change(known)
        self._running.append((chunk, known, self._pool.submit(self._work, chunk, known)))

    def take(self) -> list[Prepared]:
        """Returns the images of the first chunk."""
        chunk, known, future = self._running.popleft()
        found = future.result()
        if found is None:
            self._change(late=-1)
            found = _prepare(chunk, self._metadata, self._max_pixels)
        else:
            self._change(-(known or sum(map(_count_pixels, found))))
        self._try_again()
        return found

    def close(self) -> None:
        """Waits for the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _work(self, chunk: _Chunk, known: int) -> list[Prepared] | None:
        if self.is_full and not known:
            self._change(late=1)
            return None
        found = _prepare(chunk, self._metadata, self._max_pixels)
        if not known:
            self._change(sum(map(_count_pixels, found)))
        return found

    def _change(self, pixels: int = 0, late: int = 0) -> None:
        with self._lock:
            self._pixels += pixels
            self._late += late

    def _try_again(self) -> None:
        """Submits the first images that were put off, one for each thread."""
        left = min(self._late, self._threads)
        for at, (chunk, known, future) in enumerate(self._running if left and not self.is_full else ()):
            if left and future.done() and future.exception() is None and future.result() is None:
                left -= 1
                self._change(late=-1)
                self._running[at] = chunk, known, self._pool.submit(self._work, chunk, known)


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


def _prepare(chunk: _Chunk, metadata: Metadata, max_pixels: int) -> list[Prepared]:
    """Decodes and preprocesses images."""
    rule = metadata.preprocess
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
            metadata.check_sides(*image.shape[:2])
            results.append((name, rule.pixels(image[None])[0]))
        except ShiftViTError as error:
            results.append(_make_failure(name, error))
    return results


def _make_failure(name: str, error: ShiftViTError) -> Failure:
    text, quoted = str(error), repr(name)
    shown = name if name.isprintable() else quoted  # a line break in it must not break the message
    return Failure(name, text if name in text or quoted in text else f"{shown}: {text}")


def _count_pixels(item: Prepared) -> int:
    return 0 if isinstance(item, Failure) else item[1].size // 3


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
