"""Makes the files of `tests/test_finetune.py`: a model that never saw cats and dogs, and real images of these.

    SHIFTVIT_CACHE=... KERAS_BACKEND=torch python tests/make_finetune.py

A small ShiftViT is trained on the other eight classes of CIFAR-10 and saved with float16 weights. 500 training and 400
test images of cats and dogs are stored unchanged.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from shiftvit import train
from shiftvit.data import named
from shiftvit.data.find.dataset import Dataset, Split

GOLDEN = Path(__file__).parent / "golden"
NEW_CLASSES = ("cat", "dog")
TRAIN_COUNT, TEST_COUNT = 500, 400
SETTINGS = {"model.embed_dim": 32, "train.epochs": 30, "data.validation": 2000}


def take_classes(data: Dataset, names: tuple[str, ...]) -> Dataset:
    """Returns a data set with the images of these classes only."""
    old = [data.class_names.index(name) for name in names]
    splits = {}
    for name, split in data.splits.items():
        kept = np.flatnonzero(np.isin(split.labels, old))
        splits[name] = Split(np.searchsorted(old, split.labels[kept]), images=split.images[kept])
    return Dataset(splits, names, "-".join(names))


def main() -> None:
    data = named.load("cifar10")
    others = take_classes(data, tuple(name for name in data.class_names if name not in NEW_CLASSES))
    with tempfile.TemporaryDirectory() as place:
        run = train("quick", out=Path(place) / "run", data=others, **SETTINGS)
        run.bundle.halved().save(GOLDEN / "eight_classes.zip")
    few = take_classes(data, NEW_CLASSES)
    chosen = np.random.default_rng(0).permutation(len(few.train.labels))[:TRAIN_COUNT]
    np.savez_compressed(
        GOLDEN / "cats_dogs.npz",
        x_train=few.train.images[chosen],
        y_train=few.train.labels[chosen].astype(np.uint8),
        x_test=few.test.images[:TEST_COUNT],
        y_test=few.test.labels[:TEST_COUNT].astype(np.uint8),
    )


if __name__ == "__main__":
    main()
