"""`Explainer`: shows which parts of an image a prediction comes from, without a framework."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.metadata import KEY, MAP, Metadata
from shiftvit.bundle.session import open_session
from shiftvit.bundle.stored.container import Container
from shiftvit.bundle.stored.find import find_bundle
from shiftvit.bundle.stored.manifest import GRAPH, read_checked, read_manifest, read_tensors
from shiftvit.environment import count_cores
from shiftvit.errors import ShiftViTError
from shiftvit.evaluation.explain import class_activation_map


class Explainer:
    """Finds the parts of an image that a class's logit comes from.

        explainer = Explainer.from_pretrained("cifar10")
        probabilities, heat = explainer(pixels)

    The head of a ShiftViT is a mean over all positions and a linear layer, so the class activation map (Zhou et al.,
    CVPR 2016) is exact: its mean is the logit without the bias. Any number of threads may share an explainer.

    Attributes:
        metadata: the model's labels, preprocessing and input size.
    """

    def __init__(self, container: Container, threads: int | None = None) -> None:
        manifest = read_manifest(container)
        origin = f"{GRAPH!r} in {str(container.where)!r}"
        if GRAPH not in manifest.files:
            raise ShiftViTError(f"{str(container.where)!r} has no graph; add it with `shiftvit pack --onnx`")
        self._session = open_session(read_checked(container, manifest, GRAPH), threads or count_cores())
        self.metadata = Metadata.parse(self._session.get_modelmeta().custom_metadata_map.get(KEY), origin)
        if MAP not in {output.name for output in self._session.get_outputs()}:
            raise ShiftViTError(
                f"{origin} has no output for the last feature map, because an older shiftvit wrote it; "
                "write it again with `shiftvit pack --onnx`"
            )
        self._entry = self._session.get_inputs()[0].name
        self._weights = np.asarray(read_tensors(container, manifest)["head/kernel"], np.float32)  # (K, C)

    @classmethod
    def from_pretrained(cls, model: str | Path = "cifar10", *, threads: int | None = None) -> Self:
        """Loads a model.

        Args:
            model: the name of a model, a run folder or a bundle; it must have a graph.
            threads: processor threads; None: one per core.

        Raises:
            ShiftViTError: the model does not exist, or has no graph that returns the last feature map.
        """
        return cls(find_bundle(model), threads)

    def __call__(
        self, pixels: NDArray[np.uint8], classes: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns probabilities (N, C), and heat maps (N, h, w) from 0 to 1, each with the maximum 1.

        Args:
            pixels: preprocessed, uint8 (N, H, W, 3).
            classes: the class to explain for each image, (N,); None: the predicted ones.
        """
        probabilities, maps = self.run(pixels)
        return probabilities, self.compute_heat(maps, probabilities.argmax(axis=1) if classes is None else classes)

    def run(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns probabilities (N, C) and the maps that `compute_heat` takes, (N, h, w, K)."""
        probabilities, maps = self._session.run([self._session.get_outputs()[0].name, MAP], {self._entry: pixels})
        return probabilities, maps

    def compute_heat(self, maps: NDArray[np.float32], classes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the heat maps (N, h, w) of a class for each image."""
        return class_activation_map(maps, self._weights.T[classes])
