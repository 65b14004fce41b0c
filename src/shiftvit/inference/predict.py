"""`Predictor`: from images to labels, in any runtime."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shiftvit.data.decode.images import MAX_PIXELS, decode
from shiftvit.environment import cores
from shiftvit.errors import ShiftViTError, check_at_least
from shiftvit.evaluation.metrics import check_finite
from shiftvit.inference.runtimes import Graph, load_graph
from shiftvit.inference.sources import Source, Taken, split, take

BATCH_SIZE = 64
# Images that a thread prepares at a time, at most; enough to make the handover cheap.
_CHUNK = 16


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        path: the file, or "image N" (counted from 1) if the image did not come from a file.
        label: the class with the highest probability.
        confidence: that probability, 0 to 1.
        top: (label, probability) of the most probable classes, highest first.
        probabilities: for all classes, float32 (C,), in the order of `Predictor.labels`.
    """

    path: str
    label: str
    confidence: float
    top: tuple[tuple[str, float], ...]
    probabilities: NDArray[np.float32] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Failure:
    """An image that cannot be read, with a one-line reason that names it."""

    path: str
    error: str


# An image's name, and the pixels that the model sees, uint8 (h, w, 3).
_Prepared = Failure | tuple[str, NDArray[np.uint8]]


class Predictor:
    """Classifies images with a trained model, in any runtime.

        predictor = Predictor.from_pretrained("cifar10")
        for prediction in predictor(["cat.jpg", "dog.png"]):
            print(prediction.path, prediction.label, prediction.confidence)

    Any number of threads may share one. It can be pickled, for example to send it to a worker process: the pickle
    holds the model's path and the options, and the worker loads the model again. A process that was forked must load
    a predictor of its own, because the threads of the runtimes do not survive a fork and waiting for them never ends;
    the same goes for `multiprocessing` with the start method "fork". "spawn" and "forkserver" are safe.

    Attributes:
        labels: the class names, in the order of the probabilities.
        metadata: the model's preprocessing, input size and precision.
        runtime: the name of the runtime.
    """

    def __init__(self, graph: Graph) -> None:
        self.metadata = graph.metadata
        self.labels = graph.metadata.labels
        self.runtime = graph.runtime
        self._graph = graph

    @classmethod
    def from_pretrained(
        cls, model: str | Path = "cifar10", *, runtime: str = "auto", threads: int | None = None
    ) -> Self:
        """Loads a model.

        Args:
            model: the name of a model that comes with the package, a run folder, a bundle, or an export.
            runtime: a key of `shiftvit.inference.runtimes.RUNTIMES`; "auto": the fastest one installed.
            threads: processor threads; None: one per core.

        Raises:
            ShiftViTError: the model or runtime does not exist, or they do not fit together.
        """
        return cls(load_graph(model, runtime, threads))

    def __call__(
        self, images: Source | Iterable[Source], *, top_k: int = 5, batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """Classifies images; fails if one of them cannot be read.

        Args:
            images: one image, an array of several, uint8 (N, H, W, 3), or an iterable of both. An image is a path, the
                bytes of an image file, an open binary file, a PIL image, or a uint8 array (H, W, 3), (H, W, 4) or
                (H, W). Arrays are RGB. OpenCV's are BGR: give `image[..., ::-1]`.
            top_k: how many classes `Prediction.top` has.
            batch_size: images per batch.

        Raises:
            ShiftViTError: `images` is nothing of these, a setting is out of range, an image cannot be read, or the
                model gives NaN. `stream` continues after images that cannot be read.
        """
        results = []
        for result in self.stream(images, top_k=top_k, batch_size=batch_size):
            if isinstance(result, Failure):
                raise ShiftViTError(result.error)
            results.append(result)
        return results

    def stream(
        self,
        sources: Source | Iterable[Source],
        *,
        top_k: int = 5,
        batch_size: int = BATCH_SIZE,
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
        ahead: int | None = None,
    ) -> Iterator[Prediction | Failure]:
        """Yields a result for each image, in order, in bounded memory.

        Files are read and decoded in other threads. An image that cannot be read yields a `Failure`. Each thread needs
        a stream of its own.

        An image is taken when its turn comes: from then on its buffer may be reused. At most `batch_size + ahead`
        images are taken whose results are not yielded yet. So with `batch_size=1` and `ahead=0` an iterator may wait
        for the result of its last image before it yields the next.

        Args:
            sources: as in `__call__`.
            top_k: how many classes `Prediction.top` has.
            batch_size: images per batch.
            threads: decoding threads; None: one per core, at most 8.
            max_pixels: images with more pixels are rejected before decoding.
            ahead: images that are taken and decoded while the model runs; None: of a sequence enough to keep all
                threads busy, of any other iterable 0.

        Raises:
            ShiftViTError: `sources` holds no images, or a setting is out of range; while the results are
                read: the model gives NaN.
        """
        settings = {"top_k": top_k, "batch_size": batch_size, "threads": threads, "max_pixels": max_pixels}
        for name, value in settings.items():
            check_at_least(name, value, 1)
        check_at_least("ahead", ahead, 0)
        images, there = split(sources)
        threads = threads or min(8, cores())
        if ahead is None:
            ahead = 2 * max(batch_size, threads) if there else 0
        return self._streamed(images, top_k, batch_size, threads, max_pixels, ahead)

    def _streamed(
        self, images: Iterator[Any], top_k: int, batch_size: int, threads: int, max_pixels: int, ahead: int
    ) -> Iterator[Prediction | Failure]:
        numbered = enumerate(images, start=1)
        chunk_size = min(_CHUNK, -(-batch_size // threads))
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        running: deque[Future[list[_Prepared]]] = deque()
        ready: list[_Prepared] = []
        free = batch_size + ahead  # images that may be taken now
        usable = 0
        try:
            while True:
                while free:
                    part = itertools.islice(numbered, min(chunk_size, free))
                    chunk = [_taken(number, source, max_pixels) for number, source in part]
                    if not chunk:
                        break
                    free -= len(chunk)
                    running.append(pool.submit(self._prepared, chunk, max_pixels))
                if not running and not ready:
                    break
                for item in running.popleft().result() if running else ():
                    ready.append(item)
                    usable += not isinstance(item, Failure)
                    if usable == batch_size:
                        yield from self._classified(ready, top_k)
                        free += len(ready)
                        ready, usable = [], 0
                if not running:  # no more may be taken, or there are no more
                    yield from self._classified(ready, top_k)
                    free += len(ready)
                    ready, usable = [], 0
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepared(self, chunk: list[tuple[str, Taken | Failure]], max_pixels: int) -> list[_Prepared]:
        """Decodes and preprocesses what was taken."""
        results: list[_Prepared] = []
        for name, taken in chunk:
            if isinstance(taken, Failure):
                results.append(taken)
                continue
            try:
                image = taken if isinstance(taken, np.ndarray) else decode(taken, max_pixels=max_pixels, name=name)
                results.append((name, self.metadata.preprocess.pixels(image[None])[0]))
            except ShiftViTError as error:
                results.append(_failure(name, error))
        return results

    def _classified(self, items: list[_Prepared], top_k: int) -> Iterator[Prediction | Failure]:
        pixels = [item[1] for item in items if not isinstance(item, Failure)]
        probabilities = iter(self._graph.run(np.stack(pixels)) if pixels else ())
        for item in items:
            yield item if isinstance(item, Failure) else self._prediction(item[0], next(probabilities), top_k)

    def _prediction(self, path: str, row: NDArray[np.float32], top_k: int) -> Prediction:
        check_finite(row[None], f"the model {self._graph.model!r}", [path])
        # Stable: of equal probabilities the first class wins, as in `evaluate`.
        order = np.argsort(-row, kind="stable")[:top_k]
        top = tuple((self.labels[index], float(row[index])) for index in order)
        return Prediction(path, *top[0], top, row)


def _taken(number: int, source: Any, max_pixels: int) -> tuple[str, Taken | Failure]:
    """Returns an image's name, and what it holds now or why it cannot be taken."""
    path = isinstance(source, str | os.PathLike)
    name = os.fsdecode(source) if path else f"image {number}"
    try:
        return name, take(source, name, max_pixels)
    except ShiftViTError as error:
        return name, _failure(name, error)


def _failure(name: str, error: ShiftViTError) -> Failure:
    text = str(error)
    return Failure(name, text if name in text else f"{name}: {text}")
