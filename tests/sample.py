"""The committed sample of real CIFAR-10 images, as a data set."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shiftvit import Recipe
from shiftvit.config import DataConfig
from shiftvit.data.cifar10.cache import CLASS_NAMES
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.data.find.splits import split_as

# Settings that train a tiny model on small pictures for one epoch of about a second.
SMALL: dict[str, Any] = {
    "train.epochs": 1,
    "train.batch_size": 16,
    "train.precision": "float32",
    "model.depths": (1, 1),
    "model.embed_dim": 24,
    "preprocess.resize": 24,
    "preprocess.crop": 20,
}
# A tiny recipe that uses everything random or stateful: dropout, drop path, shifted and mixed images, averaged weights.
TINY: dict[str, dict[str, Any]] = {
    "model": {"patch_size": 4, "embed_dim": 24, "depths": [1, 1], "norm": "layer", "drop_path": 0.1, "dropout": 0.1},
    "data": {"validation": 50},
    "preprocess": {"mean": 120.0, "std": 64.0},
    "augment": {"pad": 4, "cutmix": 1.0, "mix_probability": 0.5},
    "train": {
        "epochs": 2,
        "batch_size": 50,
        "precision": "float32",
        "ema": 0.9,
        "optimizer": {"name": "muon", "learning_rate": 3e-3, "clipnorm": 1.0, "weight_decay": 0.1},
    },
}


def make_tiny_recipe(**changes: Any) -> Recipe:
    """Returns `TINY` with changes; a name without a section is one of "train": `make_tiny_recipe(epochs=1)`."""
    tree = copy.deepcopy(TINY)
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        tree.setdefault(section or "train", {})[key] = value
    return Recipe.model_validate(tree)


def load_sample() -> Dataset:
    with np.load(Path(__file__).parent / "golden" / "cifar10_sample.npz") as arrays:
        splits = {
            name: Split(arrays[f"y_{name}"].astype(np.int64), images=arrays[f"x_{name}"]) for name in ("train", "test")
        }
    return Dataset(splits, tuple(CLASS_NAMES), "cifar10")


def split_data(data: Dataset, *, seed: int, **settings: Any) -> Dataset:
    """Returns the data set split by settings of `DataConfig`, which are not validated."""
    return split_as(DataConfig.model_construct(split_seed=seed, **settings), data)


def replace_splits(data: Dataset, **splits: Split) -> Dataset:
    """Returns a data set with some of its splits replaced or added."""
    return replace(data, splits={**data.splits, **splits})


def write_tree(root: Path, per_class: int = 20) -> Path:
    """Writes real pictures of different sizes and formats, one folder per class."""
    data = load_sample()
    for name in ("cat", "dog", "ship"):
        folder = root / name
        folder.mkdir(parents=True)
        for number, index in enumerate(np.flatnonzero(data.train.labels == CLASS_NAMES.index(name))[:per_class]):
            image = Image.fromarray(data.train.images[index]).resize((40 + number, 50), Image.Resampling.BICUBIC)
            image.save(folder / f"{number:03}.{('png', 'jpg')[number % 2]}")
    return root
