"""The results of a finished run: the model, its metrics on validation and test images, the card and the figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit import files
from shiftvit.backend import hide_tensorflow
from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.card import Facts, write_card
from shiftvit.data.find.dataset import Dataset
from shiftvit.evaluation.metrics import count_confusion, estimate_intervals, fit_temperature, measure, measure_macro
from shiftvit.figures.grid import Tile, draw_predictions
from shiftvit.figures.run import draw_confusion_matrix, draw_learning_curves
from shiftvit.recipes.recipe import Recipe
from shiftvit.training.averages import use_averaged_weights
from shiftvit.training.checkpoint import Progress, load_checkpoint
from shiftvit.training.memory import predict_together
from shiftvit.training.optimizer import compute_learning_rates
from shiftvit.training.processes import ALONE, Processes
from shiftvit.training.runfolder import BEST, ENVIRONMENT, find_checkpoint

# The fewest validation images that a temperature is fitted on; with fewer it would be mostly noise.
_ENOUGH = 100
# Images in the grid of predictions.
_SHOWN = 24


def finish_run(
    run: Path,
    recipe: Recipe,
    dataset: Dataset,
    model: Any,
    steps: int,
    progress: Progress,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Evaluates the selected weights on the test images and writes the model, the metrics and the figures.

    Args:
        run: the run folder.
        recipe: resolved.
        dataset: the images.
        model: trained and compiled; it gets the weights of the best epoch where the recipe selects them.
        steps: in an epoch.
        progress: the position at the end of training.
        processes: the processes that trained it; process 0 writes.

    Returns:
        The metrics. `metrics.json` is written last, so a run that has it is complete.
    """
    if recipe.train.select == "best" and progress.best_epoch is not None:
        processes.together(lambda: load_checkpoint(find_checkpoint(run, BEST), model))
    with use_averaged_weights(model):
        bundle = Bundle.from_model(model, dataset.class_names, recipe.preprocess)
    # A model of images that grow takes any size, but it is made for full-size images.
    config = bundle.config.model_copy(update={"image_shape": recipe.model.image_shape})
    bundle = dataclasses.replace(bundle, config=config)
    final = bundle.build("float32")  # the model that users will load, from the stored weights
    measured = ["test"] if dataset.validation is None or dataset.test_is_validation else ["validation", "test"]
    logits = {
        name: predict_together(processes, final, split, recipe.train)
        for name, split in dataset.splits.items()
        if name in measured
    }

    def write() -> dict[str, Any]:
        rates = compute_learning_rates(model, steps * recipe.train.epochs)
        curves = run / "figures" / "learning_curves.png"
        draw_learning_curves(progress.history, rates, curves, title=f"Recipe {recipe.name}", steps=steps)
        training = _describe_training(recipe, dataset, steps, progress)
        return keep_results(run, recipe, dataset, bundle=bundle, final=final, training=training, logits=logits)

    return processes.first(write)


def keep_results(
    run: Path,
    recipe: Recipe,
    dataset: Dataset,
    *,
    bundle: Bundle,
    final: Any,
    training: dict[str, Any],
    logits: dict[str, NDArray[np.float32]],
) -> dict[str, Any]:
    """Writes the model, the metrics, the card and the figures of the test images; returns the metrics.

    Args:
        run, recipe, dataset: as for `finish_run`.
        bundle: the trained model.
        final: the same, built.
        training: the entry "train" of the metrics.
        logits: of the split "test" and, if it was measured, "validation".
    """
    metrics: dict[str, Any] = {"train": training}
    validation, test = dataset.validation, dataset.test
    if validation is not None and not dataset.test_is_validation:
        metrics["val"] = measure(logits["validation"], validation.labels)
        if len(validation) >= _ENOUGH:
            temperature = round(fit_temperature(logits["validation"], validation.labels), 4)
            bundle = dataclasses.replace(bundle, temperature=temperature)
    metrics["test"] = measure(logits["test"], test.labels)
    bundle = dataclasses.replace(bundle, metrics=metrics)
    bundle = dataclasses.replace(bundle, card=write_card(bundle, _collect_facts(run, recipe, dataset, logits["test"])))
    bundle.save(run / "bundle")
    with hide_tensorflow():
        files.write_file(run / "model.keras", final.save)
    _draw_test_figures(run / "figures", dataset, logits["test"], bundle)
    files.write_json(run / "metrics.json", metrics)
    return metrics


def _describe_training(recipe: Recipe, dataset: Dataset, steps: int, progress: Progress) -> dict[str, Any]:
    images = len(dataset.train)
    seen = progress.epoch * min(steps * recipe.train.batch_size, images)
    return {
        "seconds": round(progress.seconds, 2),
        "images_per_second": round(seen / max(progress.fit_seconds, 1e-9), 1),
        "epochs": progress.epoch,
        "images": images,
        "best_epoch": progress.best_epoch,
    }


def _collect_facts(run: Path, recipe: Recipe, dataset: Dataset, logits: Any) -> Facts:
    """Returns the facts of the model card that the bundle does not hold."""
    classes, truth = len(dataset.class_names), dataset.test.labels
    apart = [name for name in dataset.splits if not (name == "validation" and dataset.test_is_validation)]
    return Facts(
        recipe,
        counts={name: np.bincount(dataset.splits[name].labels, minlength=classes).tolist() for name in apart},
        intervals=estimate_intervals(logits, truth),
        macro_f1=measure_macro(logits, truth)["f1"],
        environment=json.loads((run / ENVIRONMENT).read_text("utf-8")),
    )


def _draw_test_figures(folder: Path, dataset: Dataset, logits: Any, bundle: Bundle) -> None:
    """Draws the confusion matrix, and the predictions for some of the test images."""
    images, labels = dataset.test.images, dataset.test.labels
    draw_confusion_matrix(count_confusion(logits, labels), bundle.labels, folder / "confusion_matrix.png")
    # Evenly spaced, because own images are sorted by class.
    shown = np.linspace(0, len(labels) - 1, min(_SHOWN, len(labels))).astype(int)
    rows = bundle.probabilities(logits[shown])
    tiles = [
        Tile(image, bundle.labels[row.argmax()], float(row.max()), bundle.labels[int(label)])
        for image, row, label in zip(images[shown], rows, labels[shown], strict=True)
    ]
    hits = sum(bool(tile.right) for tile in tiles)
    draw_predictions(tiles, folder / "predictions.png", f"{len(tiles)} of the test images: {hits} right")
