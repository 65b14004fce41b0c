"""`Predictor`: from images to labels, in any runtime."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from shiftvit.data.decode.images import MAX_PIXELS, decode
from shiftvit.environment import cores
from shiftvit.errors import ShiftViTError
from shiftvit.inference.runtimes import Graph, load_graph
from shiftvit.preprocess import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

    # A path, an encoded file's bytes, uint8 (H, W), (H, W, 3) or (H, W, 4), or a Pillow image.
    Source = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Image

BATCH_SIZE = 64
# Files that a thread prepares at a time; enough to make the handover cheap.
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


# An image that is ready for the model, uint8 (h, w, 3), with its name; or why it is not.
Prepared = Failure | tuple[str, NDArray[np.uint8]]


def stream_pixels(
    sources: Iterable[Source], rule: Preprocess, batch_size: int, threads: int | None, max_pixels: int
) -> Generator[list[Prepared]]:
    """Yields what a model takes at once, in order and in bounded memory; see `Predictor.stream`.

    Files are read, decoded and preprocessed in other threads while the caller works on a batch.

    Raises:
        ShiftViTError: a setting is out of range.
    """
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value is not None and value < 1:
            raise ShiftViTError(f"{name}={value} must be at least 1")
    return _batches(sources, rule, batch_size, threads or min(8, cores()), max_pixels)


def _batches(
    sources: Iterable[Source], rule: Preprocess, batch_size: int, threads: int, max_pixels: int
) -> Generator[list[Prepared]]:
    numbered = enumerate(sources, start=1)
    # Prepare enough images for the next batch while this one runs, and no more.
    ahead = threads + 1 + 2 * batch_size // _CHUNK
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    running: deque[Future[list[Prepared]]] = deque()
    ready: list[Prepared] = []
    usable = 0
    try:
        while True:
            while len(running) < ahead and (chunk := list(itertools.islice(numbered, _CHUNK))):
                running.append(pool.submit(_prepare, chunk, rule, max_pixels))
            if not running:
                break
            for item in running.popleft().result():
                ready.append(item)
                usable += not isinstance(item, Failure)
                if usable == batch_size or len(ready) == 4 * batch_size:
                    yield ready
                    ready, usable = [], 0
        if ready:
            yield ready
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(chunk: list[tuple[int, Source]], rule: Preprocess, max_pixels: int) -> list[Prepared]:
    """Decodes and preprocesses sources."""
    results: list[Prepared] = []
    for number, source in chunk:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else f"image {number}"
        try:
            image = decode(_pillow(source, name), max_pixels=max_pixels, name=name, srgb=rule.srgb)
            results.append((name, rule.pixels(image[None])[0]))
        except ShiftViTError as error:
            text = str(error)
            results.append(Failure(name, text if name in text else f"{name}: {text}"))
    return results


def as_sources(images: Source | Iterable[Source]) -> Any:
    """Returns an iterable of images, whether one is given or many."""
    single = isinstance(images, str | os.PathLike | bytes) or hasattr(images, "getbands")
    single = single or (isinstance(images, np.ndarray) and images.ndim in (2, 3))
    return [images] if single else images


def answers(
    items: list[Prepared], run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
) -> Iterator[Failure | tuple[str, NDArray[np.float32]]]:
    """Yields each failure of a batch, and (name, row of what `run` returns) for each image."""
    pixels = [item[1] for item in items if not isinstance(item, Failure)]
    rows = iter(run(np.stack(pixels)) if pixels else ())
    for item in items:
        yield item if isinstance(item, Failure) else (item[0], next(rows))


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
            images: paths, encoded bytes, uint8 arrays (H, W, 3), Pillow images, or a mix of them; or one of
                these alone, or an array (N, H, W, 3).
            top_k: how many classes `Prediction.top` has.
            batch_size: images per batch.

        Raises:
            ShiftViTError: an image cannot be read. `stream` continues after such images.
        """
        results = []
        for result in self.stream(as_sources(images), top_k=top_k, batch_size=batch_size):
            if isinstance(result, Failure):
                raise ShiftViTError(result.error)
            results.append(result)
        return results

    def stream(
        self,
        sources: Iterable[Source],
        *,
        top_k: int = 5,
        batch_size: int = BATCH_SIZE,
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Iterator[Prediction | Failure]:
        """Yields a result for each image, in order, in bounded memory.

        Files are read and decoded in other threads while the model runs. An image that cannot be read yields a
        `Failure`. Each thread needs a stream of its own.

        Args:
            sources: as in `__call__`; consumed lazily.
            top_k: how many classes `Prediction.top` has.
            batch_size: images per batch.
            threads: decoding threads; None: one per core, at most 8.
            max_pixels: images with more pixels are rejected before decoding.

        Raises:
            ShiftViTError: a setting is out of range.
        """
        if top_k < 1:
            raise ShiftViTError(f"top_k={top_k} must be at least 1")
        batches = stream_pixels(sources, self.metadata.preprocess, batch_size, threads, max_pixels)
        return self._predictions(batches, top_k)

    def _predictions(self, batches: Generator[list[Prepared]], top_k: int) -> Iterator[Prediction | Failure]:
        with contextlib.closing(batches):
            for batch in batches:
                for answer in answers(batch, self._graph.run):
                    yield answer if isinstance(answer, Failure) else self._prediction(answer[0], answer[1], top_k)

    def _prediction(self, path: str, row: NDArray[np.float32], top_k: int) -> Prediction:
        # Stable: of equal probabilities the first class wins, as in `evaluate`.
        order = np.argsort(-row, kind="stable")[:top_k]
        top = tuple((self.labels[index], float(row[index])) for index in order)
        return Prediction(path, *top[0], top, row)


def _pillow(source: Any, name: str) -> Any:
    """Returns a source that `decode` takes: arrays become Pillow images."""
    if not isinstance(source, np.ndarray):
        return source
    channels = source.shape[2] if source.ndim == 3 else None
    if source.dtype != np.uint8 or source.ndim not in (2, 3) or channels not in (None, 3, 4) or not source.size:
        raise ShiftViTError(
            f"{name} is an array of {source.dtype} {source.shape}; give uint8 (H, W, 3), (H, W, 4) or (H, W) with "
            "values from 0 to 255"
        )
    from PIL import Image

    return Image.fromarray(source)
