"""From a recipe to what training works on: the splits of the data, and the compiled model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from shiftvit import environment
from shiftvit.config import ModelConfig
from shiftvit.data import named
from shiftvit.data.batches.host import EpochBatches, batches_per_epoch
from shiftvit.data.find.dataset import FoundData
from shiftvit.data.find.splits import split
from shiftvit.data.load import SPLITS, load_own
from shiftvit.errors import ShiftViTError
from shiftvit.model.network import ShiftViT
from shiftvit.preprocess import Preprocess
from shiftvit.presets import find_preset
from shiftvit.recipes.recipe import Recipe
from shiftvit.training.loss import SmoothedCrossentropy, Top1, balanced_weights
from shiftvit.training.optimizer import build_optimizer
from shiftvit.training.parts import PartwiseShiftViT
from shiftvit.training.start import take_weights


@dataclass(frozen=True)
class Splits:
    """What a run works on.

    Attributes:
        train, validation, test: images, uint8 (N, H, W, 3), an array or `Pictures`, and whole-number labels (N,).
        class_names: in the order of the labels.
        train_rule, test_rule: what is left to do to the images of training, and of validation and test.
        found: where they are a user's own, the files of each split.
    """

    train: tuple[Any, Any]
    validation: tuple[Any, Any] | None
    test: tuple[Any, Any]
    class_names: tuple[str, ...]
    train_rule: Preprocess
    test_rule: Preprocess
    found: FoundData | None = None


def load_splits(recipe: Recipe, data: named.ImageData | None = None, run: Path | None = None) -> Splits:
    """Loads the recipe's images (or takes `data`) and splits validation images off the training ones.

    Where they are a user's own, the splits that an earlier start kept in the folder `run` are taken again.
    """
    rule = recipe.preprocess
    if data is None and named.is_path(recipe.data.name):
        kept = run / SPLITS if run is not None else None
        own = load_own(recipe.data, rule, kept, boxes=recipe.augment.resized_crop > 0)
        return Splits(
            own.parts["train"],
            own.parts.get("validation"),
            own.parts["test"],
            own.found.class_names,
            own.train_rule,
            own.test_rule,
            own.found,
        )
    images = data if data is not None else named.load(recipe.data.name)
    settings = recipe.data
    train, validation = split(
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
        train_rule=rule,
        test_rule=rule,
    )


def resolve(recipe: Recipe, splits: Splits) -> Recipe:
    """Returns the recipe with everything decided that it leaves to the preset, the data and the machine.

    Raises:
        ShiftViTError: no such preset, a model that does not fit the images or the classes, or a batch in more parts
            than it has images.
    """
    if recipe.train.accumulate > recipe.train.batch_size:
        raise ShiftViTError(
            f"train.accumulate={recipe.train.accumulate} is more parts than the {recipe.train.batch_size} images of "
            f"train.batch_size; use 1 to {recipe.train.batch_size}"
        )
    preset = recipe.model.preset
    arguments = {**(find_preset(preset).arguments if preset else {}), **recipe.model.arguments()}
    explicit = recipe.model.model_fields_set
    shape = (*splits.train_rule.output_shape(*splits.train[0].shape[1:3]), 3)
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
    preprocess, data = recipe.preprocess, recipe.data
    if splits.found is not None:
        preprocess = preprocess.model_copy(update={"round_pixels": True})  # pictures are kept as bytes
        data = data.model_copy(update={"name": str(Path(data.name).resolve())})  # to be found from everywhere
    return recipe.model_copy(
        update={
            "preprocess": preprocess,
            "data": data,
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
    possible = even and not recipe.augment.on_host_only
    accelerated = keras.config.backend() in ("torch", "jax") and environment.device_name() not in ("cpu", "mps")
    return "device" if possible and accelerated else "fit"


def epoch_batches(recipe: Recipe, splits: Splits, epoch: int, start: int = 0) -> EpochBatches:
    """Returns an epoch's training batches, from batch `start` on."""
    settings = recipe.train
    return EpochBatches(
        *splits.train,
        preprocess=splits.train_rule,
        augment=recipe.augment,
        batch_size=settings.batch_size,
        classes=len(splits.class_names),
        seed=settings.seed,
        epoch=epoch,
        start=start,
        drop_remainder=settings.drop_remainder,
        workers=recipe.data.workers,
    )


def build(recipe: Recipe, splits: Splits) -> tuple[Any, int]:
    """Returns the compiled model of a resolved recipe and the number of steps an epoch."""
    settings = recipe.train
    if environment.device_name() == "cpu":
        environment.keep_freed_memory()
    kind = ShiftViT if settings.accumulate == 1 else PartwiseShiftViT
    model: Any = kind(**recipe.model.arguments(), dtype=settings.precision)
    if isinstance(model, PartwiseShiftViT):
        model.parts = settings.accumulate
    take_weights(model, recipe, splits.class_names)
    steps = batches_per_epoch(len(splits.train[0]), settings.batch_size, settings.drop_remainder)
    optimizer = build_optimizer(settings, steps * settings.epochs, bfloat16=settings.precision == "mixed_bfloat16")
    optimizer.build(model.trainable_variables)
    classes = len(splits.class_names)
    weights = balanced_weights(splits.train[1], classes) if settings.class_weights == "balanced" else None
    model.compile(
        optimizer=optimizer,
        loss=SmoothedCrossentropy(settings.label_smoothing, weights),
        metrics=[Top1()],
    )
    return model, steps
