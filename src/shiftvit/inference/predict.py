"""`Predictor`: from images to labels, in any runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shiftvit.data.decode.images import MAX_PIXELS
from shiftvit.errors import ShiftViTError, check_at_least
from shiftvit.inference.batches import BATCH_SIZE, run_batches, stream_pixels
from shiftvit.inference.runtimes import Graph, load_graph
from shiftvit.inference.sources import Failure as Failure  # users import it from here
from shiftvit.inference.sources import Source


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


Result = Prediction | Failure


def to_row(result: Result) -> dict[str, Any]:
    """Returns a row of the JSON output: path, label, confidence and top, or path and error."""
    if isinstance(result, Failure):
        return {"path": result.path, "error": result.error}
    return {
        "path": result.path,
        "label": result.label,
        "confidence": round(result.confidence, 6),
        "top": [[label, round(share, 6)] for label, share in result.top],
    }


def rank_classes(row: NDArray[np.float32], top_k: int) -> NDArray[np.intp]:
    """Returns the numbers of the most probable classes of an image, from its probabilities (C,)."""
    # A stable sort: between equal probabilities the first class wins, as in `evaluate`.
    return np.argsort(-row, kind="stable")[:top_k]


class Predictor:
    """Classifies images with a trained model, in any runtime.

        predictor = Predictor.from_pretrained("cifar10")
        for prediction in predictor(["cat.jpg", "dog.png"]):
            print(prediction.path, prediction.label, prediction.confidence)

    Any number of threads may share a predictor. It can be pickled, for example to send it to a worker process: the
    pickle holds the model's path and the options, and the worker loads the model again. A forked process must load its
    own predictor, because the threads of the runtimes do not survive a fork and waiting for them never ends. The same
    is true of `multiprocessing` with the start method "fork"; "spawn" and "forkserver" are safe.

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
            model: the name of a model that was pulled or comes with the package, a run folder, a bundle, or an
                export.
            runtime: a key of `shiftvit.inference.runtimes.RUNTIMES`; "auto": the fastest one installed.
            threads: CPU threads; None: one per core.

        Raises:
            ShiftViTError: the model or runtime does not exist, or they do not fit together.
        """
        return cls(load_graph(model, runtime, threads))

    def __call__(
        self, images: Source | Iterable[Source], *, top_k: int = 5, batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """Classifies images.

        Args:
            images: one image, an array of several, uint8 (N, H, W, 3), or an iterable of both. An image is a path, the
                bytes of an image file, an open binary file, a PIL image, or a uint8 array (H, W, 3), (H, W, 4) or
                (H, W). Arrays are RGB. OpenCV's are BGR: give `image[..., ::-1]`.
            top_k: how many classes `Prediction.top` has.
            batch_size: images per batch.

        Raises:
            ShiftViTError: `images` is none of these, a setting is out of range, an image cannot be read, or the model
                returns NaN. `stream` continues after an image that cannot be read.
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
    ) -> Iterator[Result]:
        """Yields a result for each image, in order, in bounded memory.

        Files are read and decoded in other threads. An image that cannot be read yields a `Failure`. Each thread needs
        its own stream.

        Images are fetched from `sources` one by one, and the buffer of an image may be reused once the next one is
        fetched. At any time, at most `batch_size + ahead` images are fetched without a result. So with `batch_size=1`
        and `ahead=0`, an iterator may wait for the result of one image before it yields the next.

        Args:
            sources: as in `__call__`.
            top_k: how many classes `Prediction.top` has.
            batch_size: images per batch; for a model that takes any size, fewer if together they had over 2^22 pixels.
            threads: decoding threads; None: one per core, at most 8.
            max_pixels: images with more pixels are rejected before decoding.
            ahead: number of images to fetch and decode while the model runs; None: enough to keep all threads busy for
                a sequence, 0 for any other iterable.

        Raises:
            ShiftViTError: `sources` holds no images, a setting is out of range or, while the results are read, the
                model returns NaN.
        """
        check_at_least("top_k", top_k, 1, optional=False)
        batches = stream_pixels(sources, self.metadata, batch_size, threads, max_pixels, ahead)
        answers = run_batches(batches, self._graph.run, self._graph.model)
        return (
            answer if isinstance(answer, Failure) else self._make_prediction(*answer, top_k=top_k) for answer in answers
        )

    def _make_prediction(self, path: str, row: NDArray[np.float32], top_k: int) -> Prediction:
        top = tuple((self.labels[index], float(row[index])) for index in rank_classes(row, top_k))
        return Prediction(path, *top[0], top, row)
