"""`train`: from a recipe to a run folder. Reads once, downward."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from shiftvit import environment
from shiftvit.bundle import Bundle
from shiftvit.config import Recipe
from shiftvit.data import sources
from shiftvit.data.augment import Augment
from shiftvit.data.pipeline import EpochBatches, batches_per_epoch
from shiftvit.data.preprocess import Preprocess
from shiftvit.evaluate import measure, predict_logits
from shiftvit.model.network import ShiftViT
from shiftvit.train import runfolder
from shiftvit.train.callbacks import ProgressBar, Watch, say
from shiftvit.train.checkpoint import BEST, LAST, Progress, load_checkpoint, save_checkpoint
from shiftvit.train.optimizer import SmoothedCrossentropy, averaged_weights, build_optimizer


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the run folder.
        recipe: its resolved recipe.
        metrics: the content of its `metrics.json`.
    """

    path: Path
    recipe: Recipe
    metrics: dict[str, Any]

    @property
    def bundle(self) -> Bundle:
        """The trained model."""
        return Bundle.load(self.path / "bundle")


@dataclass(frozen=True)
class Splits:
    """The arrays that a run works on: uint8 images (N, H, W, 3) and whole-number labels (N,) for each purpose."""

    train: tuple[Any, Any]
    validation: tuple[Any, Any] | None
    test: tuple[Any, Any]
    class_names: tuple[str, ...]


def train(
    recipe: Recipe | str | Path = "quick",
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    tensorboard: bool = False,
    data: sources.ImageData | None = None,
    **overrides: Any,
) -> Run:
    """Trains, evaluates and keeps a model.

    Args:
        recipe: a `Recipe`, the name of a shipped one, or the path of a TOML file.
        out: the run folder to make; default `runs/<recipe>-<date>`.
        resume: a run folder to continue; its own recipe is used and the other arguments must be left out.
        tensorboard: also write TensorBoard's event files, to `tensorboard/` in the run folder.
        data: images in place of the data set that the recipe names.
        overrides: settings by dotted key, as in `**{"train.epochs": 3}`.

    Returns:
        the finished run.

    Raises:
        ShiftViTError: a wrong setting or path, a loss that is not finite, no space.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    recipe, run = runfolder.open_run(recipe, out, resume, overrides)
    settings = recipe.train
    splits = load_splits(recipe, data)
    keras.utils.set_random_seed(settings.seed)
    model, steps = build(recipe, splits)
    progress = Progress()
    if resume is not None:
        progress = load_checkpoint(run / "checkpoints" / LAST, model)
        say(f"resuming {run} at epoch {progress.epoch + 1}, step {progress.step}")

    watch = Watch(run, progress, settings.checkpoint_minutes * 60)
    bar = ProgressBar(settings.epochs, steps, settings.batch_size, watch)
    extra = [keras.callbacks.TensorBoard(run / "tensorboard")] if tensorboard else []
    with watch.catching_signals():
        try:
            while progress.epoch < settings.epochs and not _out_of_patience(settings.early_stopping, progress):
                row = fit_epoch(model, recipe, splits, progress, [watch, bar, *extra])
                if splits.validation and _validates(settings, progress.epoch):
                    row |= validate(model, recipe, splits.validation)
                finish_epoch(run, model, progress, row)
                bar.epoch_line(row)
        finally:
            bar.close()
    return keep(run, recipe, splits, model, progress)


def load_splits(recipe: Recipe, data: sources.ImageData | None = None) -> Splits:
    """Loads the recipe's data set (or takes `data`) and splits validation images off the training ones."""
    images = data if data is not None else sources.load(recipe.data.name)
    settings = recipe.data
    train, validation = sources.split(
        images.train_labels, settings.validation, stratify=settings.stratify, seed=settings.split_seed
    )
    train = train[: settings.limit]
    taken = (images.train_images[validation], images.train_labels[validation]) if len(validation) else None
    return Splits(
        train=(images.train_images[train], images.train_labels[train]),
        validation=taken,
        test=(images.test_images, images.test_labels),
        class_names=tuple(images.class_names),
    )


def build(recipe: Recipe, splits: Splits) -> tuple[Any, int]:
    """Returns the compiled model and the number of steps an epoch."""
    settings = recipe.train
    arguments = recipe.model.arguments()
    height, width = Preprocess.from_config(recipe.preprocess).output_shape(*splits.train[0].shape[1:3])
    arguments.setdefault("image_shape", (height, width, 3))
    arguments.setdefault("num_classes", len(splits.class_names))
    precision = settings.precision
    if precision == "auto":
        precision = "mixed_bfloat16" if environment.computes_bfloat16() else "float32"
    arguments["dtype"] = precision
    preset = recipe.model.preset
    model = ShiftViT.from_preset(preset, **arguments) if preset else ShiftViT(**arguments)

    steps = batches_per_epoch(len(splits.train[0]), settings.batch_size, settings.drop_remainder)
    optimizer = build_optimizer(settings, steps * settings.epochs)
    optimizer.build(model.trainable_variables)
    model.compile(
        optimizer=optimizer,
        loss=SmoothedCrossentropy(settings.label_smoothing),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="top1")],
    )
    return model, steps


def fit_epoch(
    model: Any, recipe: Recipe, splits: Splits, progress: Progress, callbacks: list[Any]
) -> dict[str, Any]:
    """Trains what is left of an epoch and returns its figures."""
    settings = recipe.train
    batches = EpochBatches(
        *splits.train,
        preprocess=Preprocess.from_config(recipe.preprocess),
        augment=Augment.from_config(recipe.augment),
        batch_size=settings.batch_size,
        seed=settings.seed,
        epoch=progress.epoch,
        start=progress.step,
        drop_remainder=settings.drop_remainder,
        workers=recipe.data.workers,
    )
    began = time.perf_counter()
    epoch = progress.epoch
    history = model.fit(
        batches, initial_epoch=epoch, epochs=epoch + 1, callbacks=callbacks, verbose=0, shuffle=False
    )
    seconds = time.perf_counter() - began
    seen = min(len(batches) * settings.batch_size, len(splits.train[0]))
    callbacks[0].check_finite()
    progress.epoch, progress.step = epoch + 1, 0
    progress.seconds += seconds
    progress.fit_seconds += seconds
    progress.images += seen
    return {
        "epoch": epoch + 1,
        "loss": float(history.history["loss"][-1]),
        "top1": float(history.history["top1"][-1]),
        "learning_rate": float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)),
        "images_per_second": round(seen / seconds, 1),
        "seconds": round(seconds, 3),
    }


def validate(model: Any, recipe: Recipe, split: tuple[Any, Any]) -> dict[str, Any]:
    """Returns the validation figures, with the averaged weights where the recipe keeps some."""
    began = time.perf_counter()
    with averaged_weights(model):
        logits = predict_logits(model, split[0], Preprocess.from_config(recipe.preprocess))
    found = measure(logits, split[1])
    return {**{f"val_{key}": found[key] for key in ("loss", "top1", "top5")}, "val_seconds": time.perf_counter() - began}


def finish_epoch(run: Path, model: Any, progress: Progress, row: dict[str, Any]) -> None:
    """Records an epoch and saves the state; a new best validation top-1 is saved as such."""
    progress.seconds += row.pop("val_seconds", 0.0)
    progress.history.append(row)
    top1 = row.get("val_top1")
    better = top1 is not None and (progress.best_top1 is None or top1 > progress.best_top1)
    if better:
        progress.best_top1, progress.best_epoch = top1, progress.epoch
        save_checkpoint(run / "checkpoints" / BEST, model, progress)
    save_checkpoint(run / "checkpoints" / LAST, model, progress)
    runfolder.append_log(run, row)


def keep(run: Path, recipe: Recipe, splits: Splits, model: Any, progress: Progress) -> Run:
    """Evaluates the selected weights on the test images and writes the model, the metrics and the figures."""
    best = run / "checkpoints" / BEST
    if recipe.train.select == "best" and best.is_file():
        load_checkpoint(best, model)
    preprocess = Preprocess.from_config(recipe.preprocess)
    with averaged_weights(model):
        bundle = Bundle.from_model(model, splits.class_names, preprocess)
    final = bundle.build()  # as it will be used: float32, from the stored form
    metrics: dict[str, Any] = {
        "train": {
            "seconds": round(progress.seconds, 2),
            "images_per_second": round(progress.images / max(progress.fit_seconds, 1e-9), 1),
            "epochs": progress.epoch,
            "images": len(splits.train[0]),
            "best_epoch": progress.best_epoch,
        }
    }
    if splits.validation:
        metrics["val"] = measure(predict_logits(final, splits.validation[0], preprocess), splits.validation[1])
    logits = predict_logits(final, splits.test[0], preprocess)
    metrics["test"] = measure(logits, splits.test[1])
    runfolder.write_results(run, recipe, final, bundle, metrics, progress.history, splits, np.asarray(logits))
    return Run(run, recipe, metrics)


def _validates(settings: Any, epoch: int) -> bool:
    return bool(epoch % settings.validation_every == 0 or epoch == settings.epochs)


def _out_of_patience(patience: int | None, progress: Progress) -> bool:
    return patience is not None and progress.best_epoch is not None and progress.epoch - progress.best_epoch >= patience
