"""Makes pictures of heat maps, which the page lays over an image."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shiftvit.figures.evaluation import make_heat_layer
from shiftvit.preprocess import Preprocess

# Pixels of the longer side.
_SIDE = 224


def lay_out(heat: NDArray[np.float32], preprocess: Preprocess, height: int, width: int) -> dict[str, Any]:
    """Returns a heat map as a picture, and the region of the image that it covers.

    Args:
        heat: (h, w), from 0 to 1.
        preprocess: the preprocessing of the image.
        height, width: the size of the upright image, in pixels.

    Returns:
        `heatmap`: a PNG in base64, coloured, and transparent where nothing supports the class; `region`: left, top,
        width and height of the part that the model saw, as fractions of the image.
    """
    resized = preprocess.resized_shape(height, width)
    seen = preprocess.output_shape(height, width)
    top, left = preprocess.crop_origin(*resized)
    region = [left / resized[1], top / resized[0], seen[1] / resized[1], seen[0] / resized[0]]
    scale = _SIDE / max(seen)
    layer = make_heat_layer(heat, max(1, round(seen[0] * scale)), max(1, round(seen[1] * scale)))
    stream = io.BytesIO()
    Image.fromarray(layer).save(stream, "PNG")
    return {"heatmap": base64.b64encode(stream.getvalue()).decode("ascii"), "region": region}
