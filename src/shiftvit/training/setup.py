"""From a recipe to what training works on: the splits of the data, and the compiled model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from shiftvit import environment
from shiftvit.config import ModelConfig, Recipe
from shiftvit.data import sources
from shiftvit.data.pipeline import batches_per_epoch
from shiftvit.data.preprocess import Preprocess
from shiftvit.errors import ShiftViTError
from shiftvit.model.network import ShiftViT
from shiftvit.presets import find_preset
from shiftvit.training.optimizer import SmoothedCrossentropy, Top1, build_optimizer


@dataclass(frozen=True)
class Splits:
    """The arrays that a run works on: uint8 images (N, H, W, 3) and whole-number labels (N,) for each purpose."""

    train: tuple[Any, Any]
    validation: tuple[Any, Any] | None
    test: tuple[Any, Any]
    class_names: tuple[str, ...]


def load_splits(recipe: Recipe, data: sources.ImageData | None = None) -> Splits:
    """Loads the recipe's data set (or takes `data`) and splits validation images off the training ones."""
    images = data if data is not None else sources.load(recipe.data.name)
    settings = recipe.data
    train, validation = sources.split(
        images.train_labels, settings.validation, stratify=settings.stratify, seed=settings.split_seed
    )
    train = train[: settings.limit]
    if not len(images.test_images):
        raise ShiftViTError(f"the data set {images.name} has 0 test images, which a run ends with; give at least 1")
    taken = (images.train_images[validation], images.train_labels[validation]) if len(validation) else None
    return Splits(
        train=(images.train_images[train], images.train_labels[train]),
        validation=taken,
        test=(images.test_images, images.test_labels),
        class_names=tuple(images.class_names),
    )


def resolve(recipe: Recipe, splits: Splits) -> Recipe:
    """Returns the recipe with everything decided that it leaves to the preset, the data and the machine.

    Raises:
        ShiftViTError: no such preset, or a model that does not fit the images or the classes.
    """
    preset = recipe.model.preset
    arguments = {**(find_preset(preset).arguments if preset else {}), **recipe.model.arguments()}
    explicit = recipe.model.model_fields_set
    shape = (*Preprocess.from_config(recipe.preprocess).output_shape(*splits.train[0].shape[1:3]), 3)
    classes = len(splits.class_names)
    for key, fitting in (("image_shape", shape), ("num_classes", classes)):
        if key in explicit and arguments[key] != fitting:
            raise ShiftViTError(
                f"model.{key}={arguments[key]} does not fit the data, which gives {fitting}; leave it out"
            )
        arguments[key] = fitting
    precision = recipe.train.precision
    if precision == "auto":
        precision = "mixed_bfloat16" if environment.computes_bfloat16() else "float32"
    return recipe.model_copy(
        update={
            "model": ModelConfig(**{**ModelConfig().model_dump(exclude={"preset"}), **arguments}),
            "train": recipe.train.model_copy(update={"precision": precision, "loop": _loop(recipe, splits)}),
        }
    )


def _loop(recipe: Recipe, splits: Splits) -> str:
    """Returns "device" where `training.device` can be used and the device is worth it, else "fit"."""
    settings = recipe.train
    if settings.loop != "auto":
        return settings.loop
    even = settings.drop_remainder or len(splits.train[0]) % settings.batch_size == 0
    accelerated = keras.config.backend() in ("torch", "jax") and environment.device_name() not in ("cpu", "mps")
    return "device" if even and accelerated else "fit"


def build(recipe: Recipe, splits: Splits) -> tuple[Any, int]:
    """Returns the compiled model of a resolved recipe and the number of steps an epoch."""
    settings = recipe.train
    if environment.device_name() == "cpu":
        environment.keep_freed_memory()
    model = ShiftViT(**recipe.model.arguments(), dtype=settings.precision)
    steps = batches_per_epoch(len(splits.train[0]), settings.batch_size, settings.drop_remainder)
    optimizer = build_optimizer(settings, steps * settings.epochs, bfloat16=settings.precision == "mixed_bfloat16")
    optimizer.build(model.trainable_variables)
    model.compile(
        optimizer=optimizer,
        loss=SmoothedCrossentropy(settings.label_smoothing),
        metrics=[Top1()],
    )
    return model, steps
