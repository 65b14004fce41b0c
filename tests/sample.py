"""The committed sample of real CIFAR-10 images, as a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from shiftvit.data.cifar10.cache import CLASS_NAMES
from shiftvit.data.find.dataset import Dataset, Split


def load_sample() -> Dataset:
    with np.load(Path(__file__).parent / "golden" / "cifar10_sample.npz") as arrays:
        splits = {
            name: Split(arrays[f"y_{name}"].astype(np.int64), images=arrays[f"x_{name}"]) for name in ("train", "test")
        }
    return Dataset(splits, tuple(CLASS_NAMES), "cifar10")


def write_tree(root: Path, per_class: int = 20) -> Path:
    """Writes real pictures of different sizes and formats as a user has them: a folder a class."""
    data = load_sample()
    for name in ("cat", "dog", "ship"):
        folder = root / name
        folder.mkdir(parents=True)
        for number, index in enumerate(np.flatnonzero(data.train.labels == CLASS_NAMES.index(name))[:per_class]):
            image = Image.fromarray(data.train.images[index]).resize((40 + number, 50), Image.Resampling.BICUBIC)
            image.save(folder / f"{number:03}.{('png', 'jpg')[number % 2]}")
    return root
