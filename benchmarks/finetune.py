"""Compares fine-tuning with training from scratch, on two classes that the first training never saw.

    KERAS_BACKEND=torch python benchmarks/finetune.py

The model of `quick` is trained on CIFAR-10 without cats and dogs. Then 500 images of these two are learnt from its
weights (the recipe `finetune`), also with its first stage frozen, and from random weights with the rates of `quick`,
for the same number of epochs and for four times as many. The test images are the 2,000 of cats and dogs. The result
goes to benchmarks/results/finetune-DATE.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from record import write_record
from shiftvit import train
from shiftvit.data import named
from shiftvit.data.find.dataset import Dataset, Split

NEW = ("cat", "dog")
IMAGES, EPOCHS, SEEDS = 500, 15, (0, 1, 2)
SIZE = {"preprocess.resize": "none", "preprocess.crop": "none"}


def main() -> None:
    data = named.load("cifar10")
    new = [data.class_names.index(name) for name in NEW]
    old = [label for label in range(10) if label not in new]
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        learned = select_classes(data, old, None)
        whole: dict[str, Any] = {"train.initial_scale": 1.0}
        first = train("quick", out=Path(place) / "first", data=learned, **whole)
        ways: dict[str, tuple[str, dict[str, Any]]] = {
            "fine-tuned": ("finetune", {"start.source": str(first.path)}),
            "fine-tuned, first stage frozen": ("finetune", {"start.source": str(first.path), "start.freeze": 1}),
            "from scratch": ("quick", {}),
            "from scratch, four times the epochs": ("quick", {"train.epochs": 4 * EPOCHS}),
        }
        for seed in SEEDS:
            few = select_classes(data, new, IMAGES, seed)
            for number, (name, (recipe, changes)) in enumerate(ways.items()):
                settings: dict[str, Any] = {
                    **whole,
                    "train.epochs": EPOCHS,
                    "train.batch_size": 32,
                    "data.validation": 50,
                    "train.seed": seed,
                }
                settings |= {**(SIZE if recipe == "finetune" else {}), "augment.pad": 4, **changes}
                run = train(recipe, out=Path(place) / f"{number}-{seed}", data=few, **settings)
                rows.setdefault(name, []).append(run.metrics["test"]["top1"])
    result = {
        "n": len(SEEDS),
        "first_test_top1": first.metrics["test"]["top1"],
        "train_images": IMAGES,
        "test_images": len(few.test.labels),
        "test_top1": {name: {"mean": statistics.mean(v), "std": statistics.stdev(v)} for name, v in rows.items()},
    }
    print(json.dumps(result["test_top1"], indent=1))
    write_record("finetune", result)


def select_classes(data: Dataset, labels: list[int], count: int | None, seed: int = 0) -> Dataset:
    """Returns the images of some classes, `count` of them for training, drawn with the seed."""
    names = tuple(data.class_names[label] for label in labels)
    place = {label: index for index, label in enumerate(labels)}
    splits = {}
    for name, split in data.splits.items():
        chosen = np.flatnonzero(np.isin(split.labels, labels))
        if name == "train" and count is not None:
            chosen = np.random.default_rng(seed).permutation(chosen)[:count]
        numbers = np.array([place[int(label)] for label in split.labels[chosen]])
        splits[name] = Split(numbers, images=split.images[chosen])
    return Dataset(splits, names, "-".join(names))


if __name__ == "__main__":
    main()
