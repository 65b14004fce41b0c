"""The task of a contender of `benchmarks/alternatives.py`: images, a recipe for the batches, and a budget of time.

There are two data sets: a subset of CIFAR-10, as arrays, and a user's own pictures, as PNG files in class folders.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.data import named
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.data.load import load_data
from shiftvit.recipes.recipe import Recipe
from shiftvit.training.setup import make_batches

SIDE = 32
SUBSET, PICTURES = 500, 250  # training images of a class
PICTURE_CLASSES = ("cat", "dog")
# The share of the budget for measuring the rate, and a reserve, because the rate varies.
_MEASURING, _SPARE = 0.04, 0.05


class Budget:
    """A number of seconds of wall time from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.time) -> None:
        self.seconds, self.clock, self.began = seconds, clock, clock()

    def spent(self) -> float:
        return self.clock() - self.began

    def left(self) -> float:
        return self.seconds - self.spent()

    def plan(self, ways: dict[str, Callable[[], Any]], steps: int) -> tuple[str, int]:
        """Times training steps of each way to compute them, and then more steps of the fastest way.

        Returns the fastest way, and how many epochs of `steps` steps end within the rest of the time; at least 1.
        """
        seconds = {}
        for way, step in ways.items():
            step()  # this one also allocates
            began = self.clock()
            step()
            seconds[way] = self.clock() - began
        best = min(seconds, key=lambda way: seconds[way])
        began, done = self.clock(), 0
        while not done or self.clock() - began < _MEASURING * self.seconds:
            ways[best]()
            done += 1
        epoch = steps * (self.clock() - began) / done
        return best, max(1, int((self.left() - _SPARE * self.seconds) / epoch))


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of a contender.

    Attributes:
        recipe: images, augmentation, batch size, loss and seed.
        dataset: its images, read already. Only this package reads files in its own time.
        budget: how long it may train.
        arrays: the images in place of those that the recipe names; None: files.
    """

    recipe: Recipe
    dataset: Dataset
    budget: Budget
    arrays: Dataset | None

    @property
    def classes(self) -> int:
        return len(self.dataset.class_names)

    def batches(self, first_epoch: int = 0) -> Iterator[Any]:
        """Yields the batches of each epoch from `first_epoch` on: a sequence of float32 images and labels."""
        return (make_batches(self.recipe, self.dataset, epoch) for epoch in itertools.count(first_epoch))

    def trial_batches(self) -> Iterator[Any]:
        """Yields single batches for measuring the rate, from epochs that no training reaches."""
        return (epoch[index] for epoch in self.batches(10**6) for index in range(len(epoch)))

    def flatten(self, split: Split) -> NDArray[np.float32]:
        """Returns a split's raw pixels, float32 (N, values), from -1 to 1."""
        images = np.asarray(split.images[np.arange(len(split))], np.float32)
        return images.reshape(len(images), -1) / 127.5 - 1.0


def give_task(recipe: str, data: str, pictures: Path, seed: int, seconds: float, test_images: int | None) -> Task:
    """Reads the images, "cifar10" or those in the folder "pictures", and starts the clock."""
    settings: dict[str, Any] = {"data.validation": 0, "train.select": "last", "train.seed": seed}
    settings["train.initial_scale"] = 1.0  # all contenders get the same images, and all epochs take as long
    if recipe != "photos":
        settings["train.batch_size"] = 250 if data == "cifar10" else 50
    if data == "pictures":
        settings["data.name"] = str(pictures)
        if recipe != "photos":
            settings["preprocess.resize"] = settings["preprocess.crop"] = SIDE
    resolved = Recipe.load(recipe, **settings)
    arrays = take_subset(test_images) if data == "cifar10" else None
    dataset = load_data(resolved, arrays)
    return Task(resolved, dataset, Budget(seconds), arrays)


def take_subset(test_images: int | None) -> Dataset:
    """Returns the first images of each class of CIFAR-10 for training, and its test images, all or the first ones."""
    whole = named.load("cifar10")
    chosen = [np.flatnonzero(whole.train.labels == label)[:SUBSET] for label in range(10)]
    tested = np.arange(len(whole.test))[:test_images]
    splits = {"train": whole.train.take(np.sort(np.concatenate(chosen))), "test": whole.test.take(tested)}
    return dataclasses.replace(whole, splits=splits)


def write_pictures(folder: Path, test_images: int | None) -> None:
    """Writes cats and dogs as class folders of PNG files: for training those after the images of `take_subset`."""
    from PIL import Image

    whole = named.load("cifar10")
    for name in PICTURE_CLASSES:
        label = whole.class_names.index(name)
        for split, span in (("train", slice(SUBSET, SUBSET + PICTURES)), ("test", slice(test_images))):
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for index in np.flatnonzero(whole.splits[split].labels == label)[span]:
                Image.fromarray(whole.splits[split].images[index]).save(place / f"{index:05d}.png")
