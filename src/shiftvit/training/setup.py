"""Prepares training from a recipe and its data: decides every setting, makes batches and compiles the model."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np

from shiftvit import environment
from shiftvit.config import ModelConfig
from shiftvit.data import named
from shiftvit.data.batches.host import EpochBatches, count_batches
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.errors import ShiftViTError, notice, pluralize
from shiftvit.model.network import ShiftViT
from shiftvit.presets import find_preset
from shiftvit.recipes.recipe import Recipe
from shiftvit.training.averages import find_statistics
from shiftvit.training.finetune import freeze_stages, take_weights
from shiftvit.training.loss import SmoothedCrossentropy, Top1, balance_classes
from shiftvit.training.optimizer import build_optimizer
from shiftvit.training.parts import PartwiseShiftViT
from shiftvit.training.processes import ALONE, Processes


def resolve(recipe: Recipe, dataset: Dataset, processes: Processes = ALONE) -> Recipe:
    """Returns the recipe with all settings that it leaves to the preset, the data or the machine filled in.

    Raises:
        ShiftViTError: the preset does not exist, the model does not fit the images or classes, the splits have images
            of different sizes, a batch has more parts than images, or several processes cannot share the batches.
    """
    if recipe.train.accumulate > recipe.train.batch_size:
        raise ShiftViTError(
            f"train.accumulate={recipe.train.accumulate} is more than train.batch_size={recipe.train.batch_size}, and "
            f"each part needs an image; use 1 to {recipe.train.batch_size}"
        )
    preset = recipe.model.preset
    arguments = {**(find_preset(preset).arguments if preset else {}), **recipe.model.get_arguments()}
    explicit = recipe.model.model_fields_set
    shape = (*_find_size(dataset.train), 3)
    dataset.check_sizes({name: _find_size(split) for name, split in dataset.splits.items()})
    classes = len(dataset.class_names)
    for key, fitting in (("image_shape", shape), ("num_classes", classes)):
        if key in explicit and arguments[key] != fitting:
            raise ShiftViTError(
                f"model.{key}={arguments[key]} does not fit the data, which needs {fitting}; leave out model.{key}"
            )
        arguments[key] = fitting
    precision = choose_precision(recipe).train.precision
    loop, scale = _choose_loop(recipe, dataset, processes), recipe.train.initial_scale
    if loop == "device" and recipe.train.loop == "auto" and scale < 1:
        notice(
            "the device loop keeps all images at full size, so train.initial_scale is ignored; to start with smaller "
            "images, set train.loop=fit"
        )
        scale = 1.0
    preprocess, data = recipe.preprocess, recipe.data
    if dataset.path is not None:
        preprocess = preprocess.model_copy(update={"round_pixels": True})  # training keeps the images as bytes
        data = data.model_copy(update={"name": named.locate(dataset.path)})
    resolved = recipe.model_copy(
        update={
            "preprocess": preprocess,
            "data": data,
            "model": ModelConfig(**{**ModelConfig().model_dump(exclude={"preset"}), **arguments}),
            "train": recipe.train.model_copy(update={"precision": precision, "loop": loop, "initial_scale": scale}),
        }
    )
    _check_shares(resolved, dataset, processes)
    return resolved


def choose_precision(recipe: Recipe, processes: Processes = ALONE) -> Recipe:
    """Returns the recipe with bfloat16 or float32 in place of `train.precision=auto`, the same in all processes.

    It is bfloat16 if every process has a processor or GPU that is fast at it.
    """
    if recipe.train.precision != "auto":
        return recipe
    fast = processes.meet(float(environment.computes_bfloat16()))
    precision = "mixed_bfloat16" if fast.all() else "float32"
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})


def _check_shares(recipe: Recipe, dataset: Dataset, processes: Processes) -> None:
    """Raises ShiftViTError if several processes cannot train a resolved recipe."""
    count, settings, images = processes.count, recipe.train, len(dataset.train)
    if count == 1:
        return
    if settings.batch_size % count:
        lower = settings.batch_size // count * count
        sizes = " or ".join(str(size) for size in (lower, lower + count) if size)
        raise ShiftViTError(
            f"train.batch_size={settings.batch_size} cannot be divided among {count} processes; use {sizes}, or start "
            "another number of processes"
        )
    rest = images % settings.batch_size
    if rest % count and (images < settings.batch_size or not settings.drop_remainder):
        mend = (
            "train.drop_remainder=true"
            if images >= settings.batch_size
            else f"train.batch_size={images // count * count}"
        )
        raise ShiftViTError(
            f"the last batch, with {pluralize(rest, 'image')} of {pluralize(images, 'training image')}, cannot be "
            f"divided among {count} processes; set {mend}, or start another number of processes"
        )
    if keras.config.backend() != "torch":
        return
    if recipe.model.norm == "batch":
        raise ShiftViTError(
            f"on torch, model.norm=batch computes its statistics from each process's share of a batch, so {count} "
            "processes would train different models; set model.norm=group or layer, or KERAS_BACKEND=jax"
        )
    if recipe.model.dropout or recipe.model.drop_path:
        notice(
            f"each of the {count} processes draws its own dropout and drop path, so the result depends on their number"
        )


def check_alone(recipe: Recipe, processes: Processes) -> None:
    """Raises ShiftViTError if several processes were started for a probe, which needs one."""
    if processes.count > 1:
        raise ShiftViTError(
            f"the recipe {recipe.name} fits a head in one process, and {processes.count} were started; start it "
            "without torchrun"
        )


def check_same_images(dataset: Dataset, processes: Processes) -> None:
    """Raises ShiftViTError if the processes found different images, classes or splits."""
    if processes.count == 1:
        return
    digest = hashlib.sha256(repr(dataset.class_names).encode())
    for name, split in dataset.splits.items():
        names = [Path(path).name for path in split.paths or []]
        digest.update(f"{name} {split.images.shape} {names}".encode() + np.ascontiguousarray(split.labels).tobytes())
    processes.check_same("the processes read different images (SHA-256 of their names and labels)", digest.hexdigest())


def check_same_start(recipe: Recipe, model: Any, processes: Processes) -> None:
    """Raises ShiftViTError if the processes took different weights from `start.source`, which may be a local file."""
    if processes.count == 1 or recipe.start.source is None:
        return
    digest = hashlib.sha256()
    for weight in model.backbone.weights:  # not the head, which may be new
        digest.update(np.ascontiguousarray(weight.numpy()).data)
    processes.check_same(
        f"the processes read different weights from start.source={recipe.start.source!r} (their SHA-256)",
        digest.hexdigest(),
    )


def _find_size(split: Split) -> tuple[int, int]:
    """Returns the (height, width) of a split's images after preprocessing."""
    return split.preprocess.output_shape(*split.images.shape[1:3])


def _choose_loop(recipe: Recipe, dataset: Dataset, processes: Processes) -> str:
    """Returns "device" if `training.device` can run the recipe and would be faster, else "fit"."""
    settings = recipe.train
    if processes.count > 1:
        if settings.loop == "device":
            notice(f'train.loop="device" works in one process only; these {processes.count} train with "fit"')
        return "fit"
    if settings.loop != "auto":
        return settings.loop
    even = settings.drop_remainder or len(dataset.train) % settings.batch_size == 0
    possible = even and not recipe.augment.on_host_only and isinstance(dataset.train.images, np.ndarray)
    accelerated = keras.config.backend() in ("torch", "jax") and environment.find_device_name() not in ("cpu", "mps")
    return "device" if possible and accelerated else "fit"


def choose_size(recipe: Recipe, epoch: int) -> tuple[int, int]:
    """Returns the (height, width) of an epoch's training images, from `train.initial_scale` to the whole size.

    Both grow linearly to the last epoch, in multiples of the model's stride, so that there are few sizes to compile.
    Source: Tan and Le, "EfficientNetV2" (2021), section 4, without its change of the augmentation.
    """
    settings, (height, width) = recipe.train, recipe.model.image_shape[:2]
    assert height is not None and width is not None  # noqa: PT018  (a resolved recipe)
    if settings.initial_scale == 1 or epoch >= settings.epochs - 1:
        return height, width  # even if it is no multiple of the stride
    passed = epoch / (settings.epochs - 1)
    scale = settings.initial_scale + (1 - settings.initial_scale) * passed
    stride = recipe.model.patch_size * 2 ** (len(recipe.model.depths) - 1)
    # Halves are rounded up, whatever the rounding errors.
    grown = [min(side, stride * max(1, math.floor(scale * side / stride + 0.5 + 1e-6))) for side in (height, width)]
    return grown[0], grown[1]


def make_batches(
    recipe: Recipe, dataset: Dataset, epoch: int, start: int = 0, processes: Processes = ALONE
) -> EpochBatches:
    """Returns this process's share of an epoch's training batches, beginning with batch `start`."""
    settings = recipe.train
    return EpochBatches(
        dataset.train.images,
        dataset.train.labels,
        preprocess=dataset.train.preprocess,
        augment=recipe.augment,
        batch_size=settings.batch_size,
        classes=len(dataset.class_names),
        seed=settings.seed,
        epoch=epoch,
        start=start,
        drop_remainder=settings.drop_remainder,
        size=choose_size(recipe, epoch) if settings.initial_scale < 1 else None,
        share=(processes.rank, processes.count),
        workers=recipe.data.workers,
    )


def build(recipe: Recipe, dataset: Dataset, *, begun: bool = False, processes: Processes = ALONE) -> tuple[Any, int]:
    """Returns the compiled model of a resolved recipe and the number of steps per epoch.

    Args:
        recipe: resolved.
        dataset: the images.
        begun: the caller will load a checkpoint, so no weights are copied from `start.source`.
        processes: the processes that train it together.
    """
    settings = recipe.train
    if environment.find_device_name() == "cpu":
        environment.keep_freed_memory()
    # On jax, only the step of `PartwiseShiftViT` passes the statistics of a batch norm to the optimizer.
    averages_statistics = settings.ema is not None and recipe.model.norm == "batch"
    partwise = settings.accumulate > 1 or (averages_statistics and keras.config.backend() == "jax")
    kind = PartwiseShiftViT if partwise else ShiftViT
    any_size = {"image_shape": (None, None, 3)} if settings.initial_scale < 1 else {}
    model: Any = kind(**{**recipe.model.get_arguments(), **any_size}, dtype=settings.precision)
    if isinstance(model, PartwiseShiftViT):
        model.parts = settings.accumulate
    if not begun:
        take_weights(model, recipe, dataset.class_names)
    freeze_stages(model, recipe.start.freeze)
    steps = count_batches(len(dataset.train), settings.batch_size, settings.drop_remainder)
    whole = settings.schedule.whole_steps or settings.drop_remainder
    span = steps if whole else len(dataset.train) / settings.batch_size
    optimizer = build_optimizer(
        settings,
        max(1, int(span * settings.epochs)),
        bfloat16=settings.precision == "mixed_bfloat16",
        head_steps=steps * min(settings.freeze_epochs, settings.epochs // 3),
    )
    optimizer.reduce_gradients = processes.average
    statistics = find_statistics(model) if averages_statistics else []
    optimizer.list_statistics = lambda: statistics
    optimizer.build(model.trainable_variables)
    classes = len(dataset.class_names)
    weights = balance_classes(dataset.train.labels, classes) if settings.class_weights == "balanced" else None
    model.compile(
        optimizer=optimizer,
        loss=SmoothedCrossentropy(settings.label_smoothing, weights),
        metrics=[Top1()],
    )
    return model, steps
