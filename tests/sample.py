"""The committed sample of real CIFAR-10 images, as a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shiftvit.data.cifar10 import CLASS_NAMES
from shiftvit.data.sources import ImageData


def load_sample() -> ImageData:
    with np.load(Path(__file__).parent / "golden" / "cifar10_sample.npz") as arrays:
        return ImageData(
            arrays["x_train"],
            arrays["y_train"].astype(np.int64),
            arrays["x_test"],
            arrays["y_test"].astype(np.int64),
            tuple(CLASS_NAMES),
            "cifar10",
        )
