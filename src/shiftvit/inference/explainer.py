"""`Explainer`: shows which parts of an image a prediction comes from, without a framework."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.metadata import MAP, fit_batch
from shiftvit.bundle.session import open_graph
from shiftvit.bundle.stored.container import Container
from shiftvit.bundle.stored.find import find_bundle
from shiftvit.bundle.stored.manifest import GRAPH, MISFIT, read_checked, read_manifest, read_tensors
from shiftvit.environment import count_cores
from shiftvit.errors import ShiftViTError, check_at_least
from shiftvit.evaluation.explain import check_classes, class_activation_map


class Explainer:
    """Finds the parts of an image that a class's logit comes from.

        explainer = Explainer.from_pretrained("cifar10")
        probabilities, heat = explainer(pixels)

    The head of a ShiftViT is a mean over all positions and a linear layer, so the class activation map (Zhou et al.,
    CVPR 2016) is exact: its mean is the logit without the bias. Any number of threads may share an explainer. Like a
    predictor, it can be pickled.

    Attributes:
        metadata: the model's labels, preprocessing and input size.
        digest: the SHA-256 of its graph.
    """

    def __init__(self, container: Container, threads: int | None = None) -> None:
        check_at_least("threads", threads, 1)
        manifest = read_manifest(container)
        origin = f"{GRAPH!r} in {str(container.where)!r}"
        if GRAPH not in manifest.files:
            raise ShiftViTError(f"{str(container.where)!r} has no graph; add it with `shiftvit pack --onnx`")
        content = read_checked(container, manifest, GRAPH)
        self._session, self._entry, self.metadata = open_graph(content, threads or count_cores(), origin, with_map=True)
        self.metadata.check_labels(manifest.labels, origin)
        self.digest = manifest.files[GRAPH]
        self._model, self._threads = str(container.where.absolute()), threads
        weights = np.asarray(read_tensors(container, manifest).get("head/kernel", ()), np.float32)  # (K, C)
        if weights.ndim != 2 or weights.shape[1] != len(self.metadata.labels):
            raise ShiftViTError(f"{str(container.where)!r}: {MISFIT}; restore the bundle")
        self._weights = weights

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self).from_pretrained, self._model, threads=self._threads), ()

    @classmethod
    def from_pretrained(cls, model: str | Path = "cifar10", *, threads: int | None = None) -> Self:
        """Loads a model.

        Args:
            model: the name of a model, a run folder or a bundle; it must have a graph.
            threads: CPU threads; None: one per core.

        Raises:
            ShiftViTError: the model does not exist, or has no graph that returns the last feature map; `threads` is
                below 1.
        """
        return cls(find_bundle(model), threads)

    def __call__(
        self, pixels: NDArray[np.uint8], classes: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns probabilities (N, C), and heat maps (N, h, w) from 0 to 1, each with the maximum 1.

        Args:
            pixels: preprocessed, uint8 (N, H, W, 3).
            classes: the class to explain for each image, (N,); None: the predicted ones.

        Raises:
            ShiftViTError: the pixels or classes do not fit the model.
        """
        probabilities, maps = self.run(pixels)
        return probabilities, self.compute_heat(maps, probabilities.argmax(axis=1) if classes is None else classes)

    def run(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns probabilities (N, C) and the maps that `compute_heat` takes, (N, h, w, K).

        Large numbers of images are run in batches, so that memory is bounded except for the results.

        Raises:
            ShiftViTError: the pixels do not fit the model.
        """
        shape = self.metadata.input_shape
        fits = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 4
        if not fits or any(side not in (None, has) for side, has in zip(shape, pixels.shape[1:], strict=True)):
            found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise ShiftViTError(
                f"pixels are {found}; give preprocessed images, uint8 (N, {', '.join(map(str, shape))}), as "
                "`explainer.metadata.preprocess.pixels(images)` returns them"
            )
        wanted, size = [self._session.get_outputs()[0].name, MAP], fit_batch(*pixels.shape[1:3])
        parts = [
            self._session.run(wanted, {self._entry: pixels[first : first + size]})
            for first in range(0, max(1, len(pixels)), size)
        ]
        probabilities, maps = (np.concatenate(part) for part in zip(*parts, strict=True))
        return probabilities, maps

    def compute_heat(self, maps: NDArray[np.float32], classes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the heat maps (N, h, w) of a class for each image.

        Raises:
            ShiftViTError: there is not one class for each image, or no such class.
        """
        chosen = check_classes(classes, len(maps), len(self.metadata.labels))
        return class_activation_map(maps, self._weights.T[chosen])
