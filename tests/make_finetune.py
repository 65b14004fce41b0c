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
from shiftvit.data.find.dataset import Dataset, Split

GOLDEN = Path(__file__).parent / "golden"
NEW = ("cat", "dog")
TRAIN, TEST = 500, 400
SMALL = {"model.embed_dim": 32, "train.epochs": 30, "data.validation": 2000}


def take_classes(data: Dataset, names: tuple[str, ...]) -> Dataset:
    """Returns the images of some classes."""
    old = [data.class_names.index(name) for name in names]
    splits = {}
    for name, split in data.splits.items():
        kept = np.flatnonzero(np.isin(split.labels, old))
        splits[name] = Split(np.searchsorted(old, split.labels[kept]), images=split.images[kept])
    return Dataset(splits, names, "-".join(names))


def main() -> None:
    data = named.load("cifar10")
    others = take_classes(data, tuple(name for name in data.class_names if name not in NEW))
    with tempfile.TemporaryDirectory() as place:
        run = train("quick", out=Path(place) / "run", data=others, **SMALL)
        run.bundle.halved().save(GOLDEN / "eight_classes.zip")
    few = take_classes(data, NEW)
    chosen = np.random.default_rng(0).permutation(len(few.train.labels))[:TRAIN]
    np.savez_compressed(
        GOLDEN / "cats_dogs.npz",
        x_train=few.train.images[chosen],
        y_train=few.train.labels[chosen].astype(np.uint8),
        x_test=few.test.images[:TEST],
        y_test=few.test.labels[:TEST].astype(np.uint8),
    )


if __name__ == "__main__":
    main()
