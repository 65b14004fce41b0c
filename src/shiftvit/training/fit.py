"""`train`: from a recipe to a run folder. Reads once, downward."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from shiftvit.bundle.bundle import Bundle
from shiftvit.data.dataset import Dataset
from shiftvit.data.load import load_data
from shiftvit.errors import notice
from shiftvit.evaluation.logits import predict_logits
from shiftvit.evaluation.metrics import fit_temperature, measure
from shiftvit.recipes.recipe import Recipe
from shiftvit.training import runfolder
from shiftvit.training.callbacks import ProgressBar, TensorBoardLog, Watch
from shiftvit.training.checkpoint import BEST, LAST, Progress, load_checkpoint
from shiftvit.training.device import DeviceLoop, make_loop
from shiftvit.training.epoch import finish_epoch, fit_epoch, validate
from shiftvit.training.memory import OutOfMemory, evaluated_at_once, free, in_smaller_parts, told_apart
from shiftvit.training.optimizer import averaged_weights, learning_rates
from shiftvit.training.setup import build, resolve
from shiftvit.training.start import started

# Validation images that the temperature is fitted on at least; of fewer, chance would decide it.
_ENOUGH = 100


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


def train(
    recipe: Recipe | str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    tensorboard: bool = False,
    data: Dataset | None = None,
    **overrides: Any,
) -> Run:
    """Trains, evaluates and keeps a model.

    Args:
        recipe: a `Recipe`, the name of a shipped one, or the path of a TOML file; default `quick`.
        out: the run folder to make; default `runs/<recipe>-<date>`.
        resume: a run folder to continue; its own recipe is used and the other arguments must be left out.
        tensorboard: also write TensorBoard's event files, to `tensorboard/` in the run folder.
        data: images in place of the data set that the recipe names.
        overrides: settings by dotted key, as in `**{"train.epochs": 3}`.

    Returns:
        the finished run.

    Raises:
        ShiftViTError: a wrong setting or path, a loss that is not finite, no space.
        shiftvit.errors.Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    recipe, run = runfolder.choose_run(recipe, out, resume, overrides)
    board = TensorBoardLog(run) if tensorboard else None
    recipe = started(recipe)
    dataset = load_data(recipe, data, run)
    recipe = resolve(recipe, dataset)
    # Before there is a folder, so that what cannot work leaves none; in a list, so that only who uses it holds it.
    prepared = [_prepared(recipe, dataset)]
    with runfolder.held(run, recipe, dataset):
        for tries in itertools.count():
            with contextlib.suppress(OutOfMemory), told_apart():
                return _trained(run, recipe, dataset, prepared.pop(), board)
            free()
            before, recipe = recipe, in_smaller_parts(recipe, tries)
            runfolder.record_changes(run, runfolder.changed(before, recipe))
            runfolder.write_recipe(run, recipe)
            prepared.append(_prepared(recipe, dataset))
    raise AssertionError("in_smaller_parts ends the loop")


def _prepared(recipe: Recipe, dataset: Dataset) -> tuple[Any, int, DeviceLoop | None]:
    """Returns the model of a resolved recipe with its first weights, the steps an epoch, and the loop on the device."""
    keras.utils.set_random_seed(recipe.train.seed)
    model, steps = build(recipe, dataset)
    return model, steps, make_loop(model, recipe, dataset, steps)


def _trained(
    run: Path,
    recipe: Recipe,
    dataset: Dataset,
    prepared: tuple[Any, int, DeviceLoop | None],
    board: TensorBoardLog | None,
) -> Run:
    """Trains from the run folder's checkpoint on, or from the beginning, and keeps the result."""
    settings = recipe.train
    model, steps, loop = prepared
    progress = Progress()
    if (run / "checkpoints" / LAST).is_file():
        progress = load_checkpoint(run / "checkpoints" / LAST, model)
        notice(f"resuming {run} at epoch {progress.epoch + 1}, step {progress.step}")
    watch = Watch(run, progress, settings.seed, settings.checkpoint_minutes * 60)
    bar = ProgressBar(settings.epochs, steps, settings.batch_size, watch)
    with watch.catching_signals():
        with bar:
            while progress.epoch < settings.epochs and not _out_of_patience(settings.early_stopping, progress):
                row = fit_epoch(model, recipe, dataset, watch, [bar], loop)
                row |= validate(model, recipe, dataset, watch)
                finish_epoch(run, model, progress, row)
                bar.epoch_line(row)
                if board is not None:
                    board.write(row)
                watch.stop_if_asked()
        notice(f"evaluating on {len(dataset.test):,} test images")
        return keep(run, recipe, dataset, model, steps, progress)


def keep(run: Path, recipe: Recipe, dataset: Dataset, model: Any, steps: int, progress: Progress) -> Run:
    """Evaluates the selected weights on the test images and writes the model, the metrics and the figures."""
    best = run / "checkpoints" / BEST
    if recipe.train.select == "best" and best.is_file():
        load_checkpoint(best, model)
    preprocess = recipe.preprocess
    with averaged_weights(model):
        bundle = Bundle.from_model(model, dataset.class_names, preprocess)
    final = bundle.build()  # as it will be used: float32, from the stored form
    each = min(steps * recipe.train.batch_size, len(dataset.train))
    at_once = evaluated_at_once(recipe.train)
    seen = progress.epoch * each
    metrics: dict[str, Any] = {
        "train": {
            "seconds": round(progress.seconds, 2),
            "images_per_second": round(seen / max(progress.fit_seconds, 1e-9), 1),
            "epochs": progress.epoch,
            "images": len(dataset.train),
            "best_epoch": progress.best_epoch,
        }
    }
    if dataset.validation is not None and not dataset.test_is_validation:
        images, labels = dataset.validation.images, dataset.validation.labels
        logits = predict_logits(final, images, dataset.validation.preprocess, batch_size=at_once)
        metrics["val"] = measure(logits, labels)
        if len(labels) >= _ENOUGH:
            bundle = dataclasses.replace(bundle, temperature=round(fit_temperature(logits, labels), 4))
    logits = predict_logits(final, dataset.test.images, dataset.test.preprocess, batch_size=at_once)
    metrics["test"] = measure(logits, dataset.test.labels)
    schedule = (learning_rates(model, steps * recipe.train.epochs), steps)
    runfolder.write_results(run, recipe, final, bundle, metrics, progress.history, schedule, dataset, logits)
    return Run(run, recipe, metrics)


def _out_of_patience(patience: int | None, progress: Progress) -> bool:
    if patience is None or progress.best_epoch is None or "val_top1" not in progress.history[-1]:
        return False
    return progress.epoch - progress.best_epoch >= patience
