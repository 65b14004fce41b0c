"""Writes the sample images that the package comes with: the first CIFAR-10 test image of each class, and two more.

    python docs/make_samples.py

They are taken in the order of the data set, whatever the model says of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from shiftvit.data import named

SAMPLES = Path(__file__).parents[1] / "src" / "shiftvit" / "pretrained" / "samples"
COUNT = 12


def main() -> None:
    data = named.load("cifar10")
    _, first = np.unique(data.test.labels, return_index=True)
    others = [index for index in range(100) if index not in first]
    for index in sorted([*first, *others[: COUNT - len(first)]]):
        folder = SAMPLES / data.class_names[data.test.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.test.images[index]).save(folder / f"test_{index:05d}.png", optimize=True)


if __name__ == "__main__":
    main()
