"""From images to features: the pooled output of a model, which its head takes, without Keras where there is a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.metadata import KEY, Metadata
from shiftvit.bundle.session import add_features, open_session
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess

# Maps uint8 (N, H, W, 3) of the model's input size to float32 (N, D); N at least 1.
Extract = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def graph_features(content: bytes, threads: int, origin: str) -> tuple[Metadata, Extract]:
    """Returns the metadata of a serialised ONNX graph, and what computes its features in ONNX Runtime.

    Raises:
        ShiftViTError: the graph is damaged, has no metadata or no linear layer at its end; the message begins with
            `origin`.
    """
    try:
        longer, output = add_features(content)
        session = open_session(longer, threads)
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ShiftViTError(f"{origin} gives no features ({reason}); restore it, or export it again") from error
    metadata = Metadata.parse(session.get_modelmeta().custom_metadata_map.get(KEY), origin)
    entry = session.get_inputs()[0].name
    found = session.run([output], {entry: np.zeros((1, *metadata.input_shape), np.uint8)})[0]
    if found.ndim != 2 or found.dtype != np.float32:
        raise ShiftViTError(f"{origin} has no pooled features before its head ({found.shape}); export it again")
    return metadata, lambda pixels: session.run([output], {entry: pixels})[0]


def keras_features(model: Any, preprocess: Preprocess) -> Extract:
    """Returns what computes the features of a `ShiftViT` in float32; `preprocess` normalises."""
    import keras

    pooled = keras.Model(model.input, model.get_layer("pool").output)
    return lambda pixels: np.asarray(
        keras.ops.convert_to_numpy(pooled.predict_on_batch(preprocess.normalised(pixels))), np.float32
    )
