"""One epoch: train its remaining steps, validate, record."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.data.batches.host import count_batches
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.evaluation.metrics import measure
from shiftvit.recipes.recipe import Recipe
from shiftvit.training import runfolder
from shiftvit.training.averages import use_averaged_weights
from shiftvit.training.callbacks import Watch
from shiftvit.training.checkpoint import (
    Progress,
    make_divergence_error,
    save_checkpoint,
    settle_best,
)
from shiftvit.training.device import DeviceLoop
from shiftvit.training.memory import predict_together
from shiftvit.training.processes import ALONE, Processes
from shiftvit.training.setup import make_batches

Row = dict[str, Any]


def fit_epoch(
    model: Any, recipe: Recipe, dataset: Dataset, watch: Watch, callbacks: list[Any], loop: DeviceLoop | None
) -> Row:
    """Trains the remaining steps of an epoch, advances the position and returns the epoch's figures."""
    settings, progress = recipe.train, watch.progress
    began = time.perf_counter()
    epoch, start = progress.epoch, progress.step
    watched = [watch, *callbacks]
    figures = _run(model, loop, watched, progress) if loop else _fit(model, recipe, dataset, watched, watch)
    watch.agree()
    watch.count_time()
    seconds = time.perf_counter() - began
    steps = count_batches(len(dataset.train), settings.batch_size, settings.drop_remainder)
    seen = min((steps - start) * settings.batch_size, len(dataset.train))
    progress.epoch, progress.step = epoch + 1, 0
    # A plain mean is right, because every process had the same number of images.
    shared = watch.processes.meet(figures["loss"], figures["top1"], watch.input_rate() if watch.input_rate else 0.0)
    loss, top1, _ = shared.mean(axis=0).tolist()
    return {
        "epoch": epoch + 1,
        "loss": loss,
        "top1": top1,
        "learning_rate": float(model.optimizer.learning_rate),
        "images_per_second": round(seen / seconds, 1),
        **({"input_images_per_second": round(float(shared[:, 2].sum()), 1)} if watch.input_rate else {}),
        "seconds": round(seconds, 3),
        **watch.processes.take_cost(),
    }


def _fit(model: Any, recipe: Recipe, dataset: Dataset, callbacks: list[Any], watch: Watch) -> dict[str, float]:
    """Trains with Keras' `fit`."""
    progress = watch.progress
    start, train = progress.step, dataset.train
    processes = watch.processes
    batches = processes.together(lambda: make_batches(recipe, dataset, progress.epoch, start, processes))
    watch.input_rate = lambda: batches.images_per_second
    watch.images_of = lambda number: [
        train.path(index) or f"training image {index}" for index in batches.find_indices(number - start)
    ]
    history = model.fit(
        batches,
        initial_epoch=progress.epoch,
        epochs=progress.epoch + 1,
        callbacks=callbacks,
        verbose=0,
        shuffle=False,  # `EpochBatches` already shuffles
    )
    return {key: float(history.history[key][-1]) for key in ("loss", "top1")}


def _run(model: Any, loop: DeviceLoop, callbacks: list[Any], progress: Progress) -> dict[str, float]:
    """Trains with the device loop, which calls the callbacks only every few dozen steps."""
    for callback in callbacks:
        callback.set_model(model)
        callback.on_epoch_begin(progress.epoch)
    loop.begin(progress.epoch)
    start = progress.step
    while progress.step < loop.steps:
        batch = progress.step - start
        for callback in callbacks:
            callback.on_train_batch_begin(batch)
        count = min(loop.at_once, loop.steps - progress.step)
        loop.run(progress.step, count)
        progress.step += count
        logs = loop.read_figures()
        for callback in callbacks:
            callback.on_train_batch_end(batch + count - 1, logs)
    return loop.read_figures()


def validate(model: Any, recipe: Recipe, dataset: Dataset, watch: Watch) -> Row:
    """Returns the validation figures, of the averaged weights if there are any; {} if no validation is due."""
    progress, processes, settings, held_out = watch.progress, watch.processes, recipe.train, dataset.validation
    is_due = progress.epoch % settings.validation_every == 0 or progress.epoch == settings.epochs
    if held_out is None or not is_due:
        return {}
    began = time.perf_counter()
    with use_averaged_weights(model):
        logits = predict_together(processes, model, held_out, settings)
    progress.seconds += time.perf_counter() - began
    found = processes.first(lambda: _measure(logits, held_out, progress, watch))
    return {f"val_{key}": found[key] for key in ("loss", "top1", "top5")}


def _measure(logits: NDArray[np.float32], held_out: Split, progress: Progress, watch: Watch) -> Row:
    if not np.isfinite(logits).all():
        raise make_divergence_error("the validation loss is not finite", progress, watch.last.parent)
    return measure(logits, held_out.labels)


def finish_epoch(run: Path, model: Any, progress: Progress, row: Row, processes: Processes = ALONE) -> None:
    """Records an epoch and saves the state, also as the best one if its validation top-1 is the highest so far.

    Between equal ones, the lower validation loss decides. With few validation images, equal ones are common.
    """
    progress.history.append(row)
    folder, kept = run / "checkpoints", [runfolder.LAST]
    if _is_best(row, progress):
        progress.best_top1, progress.best_loss, progress.best_epoch = row["val_top1"], row["val_loss"], progress.epoch
        kept = [runfolder.NEW_BEST, runfolder.LAST]

    def write() -> None:
        for name in kept:
            save_checkpoint(folder / name, model, progress)
        settle_best(folder, progress)
        runfolder.write_log(run, progress.history)

    processes.first(write)


def _is_best(row: Row, progress: Progress) -> bool:
    if "val_top1" not in row or progress.best_top1 is None:
        return "val_top1" in row
    if row["val_top1"] != progress.best_top1:
        return bool(row["val_top1"] > progress.best_top1)
    # A run that an older version began has no best loss.
    return progress.best_loss is not None and bool(row["val_loss"] < progress.best_loss)
