"""Makes what `tests/test_finetune.py` needs: a model that never saw cats and dogs, and real images of these.

    SHIFTVIT_CACHE=... KERAS_BACKEND=torch python tests/make_finetune.py

A small ShiftViT is trained on CIFAR-10's other eight classes and kept with float16 weights; 500 training and 400 test
images of cats and dogs are stored as they are.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from shiftvit import train
from shiftvit.data import named
from shiftvit.data.named import ImageData

GOLDEN = Path(__file__).parent / "golden"
NEW = ("cat", "dog")
TRAIN, TEST = 500, 400
SMALL = {"model.embed_dim": 32, "train.epochs": 30, "data.validation": 2000}


def only(data: ImageData, names: tuple[str, ...]) -> ImageData:
    """Returns the images of some classes."""
    old = [data.class_names.index(name) for name in names]
    parts = []
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        kept = np.flatnonzero(np.isin(labels, old))
        parts += [images[kept], np.searchsorted(old, labels[kept])]
    return ImageData(*parts, names, "-".join(names))


def main() -> None:
    data = named.load("cifar10")
    others = only(data, tuple(name for name in data.class_names if name not in NEW))
    with tempfile.TemporaryDirectory() as place:
        run = train("quick", out=Path(place) / "run", data=others, **SMALL)
        run.bundle.halved().save(GOLDEN / "eight_classes.zip")
    few = only(data, NEW)
    chosen = np.random.default_rng(0).permutation(len(few.train_labels))[:TRAIN]
    np.savez_compressed(
        GOLDEN / "cats_dogs.npz",
        x_train=few.train_images[chosen],
        y_train=few.train_labels[chosen].astype(np.uint8),
        x_test=few.test_images[:TEST],
        y_test=few.test_labels[:TEST].astype(np.uint8),
    )


if __name__ == "__main__":
    main()
