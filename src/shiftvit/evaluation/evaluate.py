"""`evaluate`: how accurate a model is, how certain that figure is, and where the model fails."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit import files
from shiftvit.bundle.bundle import Bundle
from shiftvit.console import Bar
from shiftvit.data.find.dataset import Split
from shiftvit.data.load import find_test, say_counts
from shiftvit.data.read import read_dataset
from shiftvit.errors import ShiftViTError
from shiftvit.evaluation import metrics
from shiftvit.evaluation.corruptions import CORRUPTIONS, corrupt
from shiftvit.evaluation.logits import predict_logits
from shiftvit.evaluation.metrics import confusion, measure, softmax
from shiftvit.preprocess import Preprocess
from shiftvit.recipes.recipe import Recipe

REPORT = "evaluation.json"
# Test images to corrupt, 85 times each; chance then moves an accuracy by about one point.
_CORRUPTED = 1000
_MISTAKES = 25


def evaluate(
    bundle: Bundle | str | Path,
    data: str | None = None,
    *,
    out: str | Path | None = None,
    corruptions: bool = False,
) -> dict[str, Any]:
    """Evaluates a trained model on test images.

    Args:
        bundle: a `Bundle`, or the path of one or of a run folder.
        data: a data set's name, or the path of your own images: their test split, else their validation split, else all
            of them. None: the test images of the run; for anything but a run folder, those of CIFAR-10.
        out: a folder for `evaluation.json` and the figures: confusion matrix, reliability, the worst mistakes.
        corruptions: also measure 17 common corruptions at five severities (Hendrycks and Dietterich, 2019).

    Returns:
        "data", "split", "n", "seconds", "images_per_second"; "loss", "top1", "top5" and "macro" (precision, recall, F1,
        balanced accuracy), shares from 0 to 1; "intervals", their bootstrap 95% intervals; "classes", a row each;
        "confusion", rows are true classes; "temperature", and "calibration" at that temperature; "mistakes", the most
        confident ones; and "corruptions", a row for each corruption and severity, if asked for.

    Raises:
        ShiftViTError: the bundle or data does not exist, the classes are not the model's, or `out` cannot be written.
    """
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    run = None
    if data is None:
        data, run = _find_own_data(bundle)
    name, split = _read_test(loaded, data, run)
    labels = split.labels
    model = loaded.build()
    began = time.perf_counter()
    with Bar("evaluating", len(split)) as bar:
        logits = predict_logits(model, split.images, split.preprocess, told=bar.advance)
    seconds = time.perf_counter() - began
    model_name = "the model" if isinstance(bundle, Bundle) else f"the model {str(bundle)!r}"
    metrics.check_finite(logits, model_name, [split.path(n) or f"image {n + 1}" for n in range(len(split))])
    probabilities = softmax(logits / np.float32(loaded.temperature))
    report = {
        "data": data,
        "split": name,
        **measure(logits, labels),
        "macro": metrics.macro(logits, labels),
        "intervals": metrics.intervals(logits, labels),
        "classes": metrics.class_rows(logits, labels, loaded.labels),
        "confusion": confusion(logits, labels).tolist(),
        "temperature": loaded.temperature,
        "calibration": metrics.calibration(probabilities, labels),
        "mistakes": _mistakes(logits, probabilities, split, loaded.labels),
        "seconds": round(seconds, 3),
        "images_per_second": round(len(logits) / seconds, 1),
    }
    if corruptions:
        report["corruptions"] = _measure_corrupted(model, split)
    if out is not None:
        _write(Path(out), report, split, logits, probabilities, loaded)
    return report


def _find_own_data(bundle: Bundle | str | Path) -> tuple[str, Path | None]:
    """Returns what a model was trained on, and its run folder; CIFAR-10 and None for anything but a run folder."""
    run = None if isinstance(bundle, Bundle) else Path(bundle)
    if run is None or not (run / "recipe.toml").is_file():
        return "cifar10", None
    return Recipe.load(run / "recipe.toml").data.name, run


def _read_test(loaded: Bundle, name: str, run: Path | None) -> tuple[str, Split]:
    """Returns which split is evaluated, and its images with labels as the model numbers them."""
    data = find_test(name, run)
    places = _places(loaded, data.class_names, name)
    preprocess = loaded.preprocess
    if data.path is not None:
        height, width = loaded.config.image_shape[:2]
        if height is not None and width is not None:
            preprocess = preprocess.fitted(height, width)
    data = read_dataset(data, preprocess)
    if data.path is not None:
        say_counts(data)
    ((title, split),) = data.splits.items()
    return title, replace(split, labels=places[split.labels])


def _places(loaded: Bundle, class_names: tuple[str, ...], data: str) -> NDArray[np.int64]:
    """Returns the model's index of each class of the data; the order may differ.

    Raises:
        ShiftViTError: the classes differ.
    """
    if sorted(class_names) != sorted(loaded.labels):
        raise ShiftViTError(
            f"the model has {len(loaded.labels)} classes ({', '.join(loaded.labels[:3])} ...) but {data} has "
            f"{len(class_names)} others ({', '.join(class_names[:3])} ...); evaluate on data with the model's classes"
        )
    return np.array([loaded.labels.index(name) for name in class_names], np.int64)


def _mistakes(
    logits: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    split: Split,
    names: tuple[str, ...],
) -> list[dict[str, Any]]:
    return [
        {
            "image": split.path(index) or int(index),
            "label": names[int(split.labels[index])],
            "predicted": names[int(logits[index].argmax())],
            "confidence": round(float(probabilities[index].max()), 4),
        }
        for index in metrics.mistakes(logits, split.labels, _MISTAKES)
    ]


def _measure_corrupted(model: Any, split: Split) -> list[dict[str, Any]]:
    """Returns a row for each corruption and severity; severity 0 is the original images."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(split))[:_CORRUPTED])
    clean, truth, rule = split.images[chosen], split.labels[chosen], split.preprocess
    rows = [{"corruption": "none", "family": "none", "severity": 0, **_short(model, clean, truth, rule)}]
    with Bar("corrupting", 5 * len(CORRUPTIONS)) as bar:
        for name, family in CORRUPTIONS.items():
            for severity in range(1, 6):
                bar.update(len(rows) - 1, what=f"corrupting: {name}, severity {severity}")
                found = _short(model, corrupt(clean, name, severity), truth, rule)
                rows.append({"corruption": name, "family": family, "severity": severity, **found})
    return rows


def _short(model: Any, images: Any, labels: NDArray[Any], rule: Preprocess) -> dict[str, Any]:
    found = measure(predict_logits(model, images, rule), labels)
    return {key: found[key] for key in ("top1", "loss", "n")}


def _write(
    out: Path,
    report: dict[str, Any],
    split: Split,
    logits: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    loaded: Bundle,
) -> None:
    from shiftvit.figures.evaluation import mistakes_figure, reliability_figure
    from shiftvit.figures.run import confusion_matrix
    from shiftvit.figures.run import corruptions as corruptions_figure

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.unwritable(out, error) from error
    files.write_json(out / REPORT, report)
    confusion_matrix(np.asarray(report["confusion"]), loaded.labels, out / "confusion_matrix.png")
    plain = metrics.calibration(softmax(logits), split.labels)
    reliability_figure(plain, out / "reliability.png", report["calibration"] if loaded.temperature != 1.0 else None)
    worst = metrics.mistakes(logits, split.labels, _MISTAKES)
    predicted, confidence = logits[worst].argmax(axis=1), probabilities[worst].max(axis=1)
    figure = out / "mistakes.png"
    mistakes_figure(split.images[worst], split.labels[worst], predicted, confidence, loaded.labels, figure)
    if "corruptions" in report:
        corruptions_figure(report["corruptions"], out / "corruptions.png")
