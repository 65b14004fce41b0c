"""Evaluates a model: how accurate it is, how certain that figure is, and where the model fails."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit import files
from shiftvit.bundle.bundle import Bundle, pack_weights
from shiftvit.bundle.stored.container import hash_content
from shiftvit.bundle.stored.find import find_bundle
from shiftvit.bundle.stored.manifest import WEIGHTS, read_manifest
from shiftvit.console import Bar
from shiftvit.data import named
from shiftvit.data.evaluated import find_evaluated
from shiftvit.data.find.dataset import Split
from shiftvit.environment import describe_environment
from shiftvit.errors import ShiftViTError, check_path
from shiftvit.evaluation import metrics
from shiftvit.evaluation.corruptions import EXTRAS
from shiftvit.evaluation.images import read_images
from shiftvit.evaluation.logits import ENDINGS, predict_logits, write_logits
from shiftvit.evaluation.metrics import count_confusion, measure
from shiftvit.evaluation.places import REPORT, choose_place, find_run
from shiftvit.evaluation.robustness import average_corruptions, measure_corrupted
from shiftvit.replacement import check_free, find_current, write_folder

_MISTAKES = 25
# The files in an evaluation's folder.
_FILES = (REPORT, "confusion_matrix.png", "reliability.png", "mistakes.png", "corruptions.png")


def evaluate(
    bundle: Bundle | str | Path,
    data: str | None = None,
    *,
    split: str | None = None,
    out: str | Path | None = None,
    keep: bool = False,
    corruptions: bool = False,
    logits: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluates a trained model.

    Args:
        bundle: a `Bundle`, or the path of one or of a run folder.
        data: a data set's name, or the path of your own images, which may have only some of the model's classes. For
            the images that the run was trained on, even if they were moved, the run's splits are used. None: the data
            of the run or, without a run folder, the data set with the model's classes.
        split: "train", "validation", "test" or "all". None: the test images, or the validation images if there are
            none, or else all. All splits are prepared as for a prediction, except that for a model with
            `round_pixels=False` the pixels of arrays are not rounded.
        out: a folder for `evaluation.json` and the figures: confusion matrix, reliability, the worst mistakes.
        keep: if `out` is None, write them to `evaluation/` in the run folder, or to a subfolder of it if the images are
            not the run's own test images.
        corruptions: also measure 17 common corruptions at five severities: the 15 of the benchmark of Hendrycks and
            Dietterich (2019), and two of their extra ones.
        logits: an `.npz` file to write, without pickle: `logits` float32 (N, C), `labels` int64 (N,), the names
            `classes`, and `paths`, or `index` if the images have no paths, all in the order of the split.

    Returns:
        "data", "split", "n", "seconds", "images_per_second"; "own_test", whether these are the run's own test images;
        "trained_on", how many of them the model was trained on; "loss", "top1", "top5" and "macro" (precision, recall,
        F1, balanced accuracy), shares from 0 to 1; "intervals", their 95% intervals; "classes", a row each;
        "without_images", the classes without images, which the macro figures leave out while top-1 and top-5 count
        predictions of all classes; "among_others", if there are such classes, the figures of predictions among the
        other classes only; "confusion", rows are true classes, or of more than 2,000 classes a dictionary of
        the lists "true", "predicted" and "count"; "temperature", and "calibration" at that temperature;
        "mistakes", the most confident ones; with `corruptions`, "corruptions", a row for each corruption and severity,
        and "corruption_means", the mean top-1 over the 15, by severity and by family; "model", its "path" or name as
        given, None for a `Bundle`, and the "sha256" of its weights' file; "environment", as in a run's
        `environment.json`; and "folder", where all this was written, or None.

    Raises:
        ShiftViTError: the bundle or data does not exist, the data have a class that the model does not have, or `out`
            or `logits` is not writable.
    """
    for argument, value in (("out", out), ("logits", logits)):
        if value is not None:
            check_path(argument, value)
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    run = None if isinstance(bundle, Bundle) else find_run(bundle)
    if data is None and run is None:
        data = named.find_by_classes(loaded.labels)
    found = find_evaluated(data, split, run)
    name = found.data.name if found.data.path is None else named.locate(found.data.path)
    if logits is not None:
        files.check_file(Path(logits), ENDINGS, [] if found.data.path is None else [found.data.path])
    if out is None and keep and run is not None:
        out = choose_place(run, name, found.split, own_test=found.own_test)
    if out is not None:
        if found.data.path is not None and Path(out).resolve() == found.data.path.resolve():
            raise ShiftViTError(f"{str(out)!r} holds the images, not evaluations; name another folder")
        files.check_folder(Path(out))
        if not find_current(Path(out, REPORT)).is_file():
            check_free(Path(out), _FILES if corruptions else _FILES[:-1])
    images = read_images(loaded, found.data).splits[found.split]
    labels = images.labels
    model = loaded.build("float32")  # whatever the global policy is, as a prediction
    began = time.perf_counter()
    with Bar("evaluating", len(images)) as bar:
        outputs = predict_logits(model, images.images, images.preprocess, on_batch=bar.advance)
    seconds = time.perf_counter() - began
    model_name = "the model" if isinstance(bundle, Bundle) else f"the model {str(bundle)!r}"
    metrics.check_finite(outputs, model_name, [images.path(n) or f"image {n + 1}" for n in range(len(images))])
    if logits is not None:
        write_logits(Path(logits), outputs, images, loaded.labels)
    probabilities = loaded.probabilities(outputs)
    counts = np.bincount(labels, minlength=len(loaded.labels))
    report = {
        "data": name,
        "split": found.split,
        "own_test": found.own_test,
        "trained_on": found.trained_on,
        **measure(outputs, labels),
        "macro": metrics.measure_macro(outputs, labels),
        "intervals": metrics.estimate_intervals(outputs, labels),
        "classes": metrics.measure_classes(outputs, labels, loaded.labels),
        "without_images": [label for label, n in zip(loaded.labels, counts, strict=True) if not n],
        **_measure_among_others(outputs, labels, counts),
        "confusion": _list_confusion(count_confusion(outputs, labels)),
        "temperature": loaded.temperature,
        "calibration": metrics.measure_calibration(probabilities, labels),
        "mistakes": _list_mistakes(outputs, probabilities, images, loaded),
        "seconds": round(seconds, 3),
        "images_per_second": round(len(outputs) / seconds, 1),
        "model": _identify(bundle),
        "environment": describe_environment(),
    }
    if corruptions:
        report["corruptions"] = measure_corrupted(model, images)
        report["corruption_means"] = average_corruptions(report["corruptions"])
    if out is not None:
        _write(Path(out), report, images, outputs, probabilities, loaded)
    return {**report, "folder": None if out is None else str(out)}


def _identify(bundle: Bundle | str | Path) -> dict[str, str | None]:
    """Returns the path of a model as given, or None, and the SHA-256 that its `bundle.json` has or would have."""
    if isinstance(bundle, Bundle):
        return {"path": None, "sha256": hash_content(pack_weights(bundle.weights))}
    return {"path": str(bundle), "sha256": read_manifest(find_bundle(bundle)).files[WEIGHTS]}


def _list_confusion(matrix: Any) -> list[list[int]] | dict[str, list[int]]:
    if isinstance(matrix, np.ndarray):
        rows: list[list[int]] = matrix.tolist()
        return rows
    return {"true": matrix.row.tolist(), "predicted": matrix.col.tolist(), "count": matrix.data.tolist()}


def _measure_among_others(
    logits: NDArray[np.float32], labels: NDArray[np.int64], counts: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Returns the figures of predictions among the classes with images; {} if these are all classes, or one."""
    present = np.flatnonzero(counts)
    if len(present) in (1, len(counts)):
        return {}
    found = measure(logits[:, present], np.searchsorted(present, labels))
    return {"among_others": {**found, "classes": len(present)}}


def _list_mistakes(
    logits: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    split: Split,
    loaded: Bundle,
) -> list[dict[str, Any]]:
    return [
        {
            "image": split.path(index) or int(index),
            "label": loaded.labels[int(split.labels[index])],
            "predicted": loaded.labels[int(logits[index].argmax())],
            "confidence": round(float(probabilities[index].max()), 4),
        }
        for index in metrics.find_mistakes(logits, split.labels, _MISTAKES, loaded.temperature)
    ]


def _write(
    out: Path,
    report: dict[str, Any],
    split: Split,
    logits: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    loaded: Bundle,
) -> None:
    from scipy.special import softmax

    from shiftvit.figures.evaluation import draw_mistakes, draw_reliability
    from shiftvit.figures.run import draw_confusion_matrix, draw_corruptions

    def write(folder: Path) -> None:
        files.write_json(folder / REPORT, report)
        draw_confusion_matrix(count_confusion(logits, split.labels), loaded.labels, folder / "confusion_matrix.png")
        plain = metrics.measure_calibration(softmax(logits, axis=1), split.labels)
        fitted = report["calibration"] if loaded.temperature != 1.0 else None
        draw_reliability(plain, folder / "reliability.png", fitted)
        worst = metrics.find_mistakes(logits, split.labels, _MISTAKES, loaded.temperature)
        predicted, confidence = logits[worst].argmax(axis=1), probabilities[worst].max(axis=1)
        shown = split.images[worst], split.labels[worst], predicted, confidence, loaded.labels
        draw_mistakes(*shown, folder / "mistakes.png")
        if "corruptions" in report:
            mean = report["corruption_means"]["top1"]
            draw_corruptions(report["corruptions"], mean, EXTRAS, folder / "corruptions.png")

    write_folder(out, write, _FILES, keep=() if find_current(out / REPORT).is_file() else _FILES)
