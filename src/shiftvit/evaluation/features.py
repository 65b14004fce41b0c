"""Computes the features of images, the pooled output of a model, in ONNX Runtime or in Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.metadata import MAP, Metadata
from shiftvit.bundle.session import open_graph
from shiftvit.errors import ShiftViTError, describe_error
from shiftvit.preprocess import Preprocess

# Maps pixels, uint8 (N, H, W, 3) of the model's input size, to features, float32 (N, D), for N of at least 1.
Extract = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def load_graph_features(content: bytes, threads: int, origin: str) -> tuple[Metadata, Extract]:
    """Returns the metadata of a serialised ONNX graph, and a function that computes its features in ONNX Runtime.

    Raises:
        ShiftViTError: the graph is damaged, or has no metadata or no output for the last feature map; the message
            begins with `origin`.
    """
    try:
        session, entry, metadata = open_graph(content, threads, origin, with_map=True)
    except ShiftViTError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise ShiftViTError(
            f"{origin} cannot compute features ({describe_error(error)}); restore it, or export it again"
        ) from error
    return metadata, lambda pixels: session.run([MAP], {entry: pixels})[0].mean(axis=(1, 2))


def load_keras_features(model: Any, preprocess: Preprocess) -> Extract:
    """Returns a function that computes the features of a `ShiftViT` in float32, after normalisation by `preprocess`."""
    import keras

    pooled = keras.Model(model.input, model.get_layer("pool").output)
    return lambda pixels: np.asarray(
        keras.ops.convert_to_numpy(pooled.predict_on_batch(preprocess.normalised(pixels))), np.float32
    )
