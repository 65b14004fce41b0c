"""Metrics of logits and labels: accuracy, per-class figures, calibration, intervals, the worst mistakes.

Logits are float `(N, C)`, labels whole numbers below C `(N,)`. Shares and probabilities run from 0 to 1, losses are in
nats. No framework is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.errors import ShiftViTError, pluralize

TEMPERATURES = 0.05, 20.0
# Bootstrap samples per matrix product; with 10,000 images that takes 5 MB.
_CHUNK = 64
# The most classes of a confusion matrix that is an array: one of 10,000 classes would take 800 MB, most of it zeros.
_DENSE = 2000
# Logits that are computed with at a time, so that memory does not grow with images times classes.
_AT_A_TIME = 2**22


def check_labels(logits: NDArray[Any], labels: NDArray[Any]) -> None:
    """Raises ShiftViTError unless there is an image, and logits and labels match."""
    if not len(logits):
        raise ShiftViTError("there are 0 images to evaluate; give at least 1")
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.min() < 0 or labels.max() >= logits.shape[1]:
        extent = f"{labels.min()} to {labels.max()}" if labels.size else "none"
        raise ShiftViTError(
            f"labels of shape {labels.shape}, {extent}, do not fit logits of shape "
            f"{logits.shape}; is this the data that the model was trained for?"
        )


def check_finite(outputs: NDArray[Any], model: str = "the model", names: Sequence[str] | None = None) -> None:
    """Raises ShiftViTError unless a model's outputs `(N, ...)` are finite.

    Args:
        outputs: logits, probabilities or other outputs for N images.
        model: the model's name for the message.
        names: the images' names for the message; None: their numbers, from 1.
    """
    finite = np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1) if outputs.size else np.ones(0, bool)
    if finite.all():
        return
    first = int(finite.argmin())
    image = f"image {first + 1}" if names is None else repr(names[first])
    raise ShiftViTError(
        f"{model} returns NaN or infinity for {image}; its weights are damaged or its training diverged: "
        "train it again, or use another model"
    )


def _check(logits: NDArray[Any], labels: NDArray[Any]) -> None:
    check_labels(logits, labels)
    check_finite(logits)


def measure(logits: NDArray[np.float32], labels: NDArray[Any]) -> dict[str, Any]:
    """Returns `{"loss", "top1", "top5", "n"}`: mean cross-entropy in nats, and accuracies from 0 to 1.

    A label is among the top k if fewer than k classes have a larger logit (of equal logits, the first counts as
    larger). With fewer than five classes top-5 is 1.

    Raises:
        ShiftViTError: there are no images, the labels do not fit the logits, or a logit is not finite.
    """
    _check(logits, labels)
    top1, top5, losses = _score_images(logits, labels)
    return {"loss": float(losses.mean()), "top1": float(top1.mean()), "top5": float(top5.mean()), "n": len(labels)}


def count_confusion(logits: NDArray[np.float32], labels: NDArray[Any]) -> Any:
    """Returns the confusion matrix `(C, C)`, int64: rows are true classes, columns predicted ones.

    It is an array, or of more than 2,000 classes a sparse `scipy.sparse.coo_array` with each place once. Raises as
    `measure`.
    """
    from scipy.sparse import coo_array

    _check(logits, labels)
    classes = logits.shape[1]
    counts = coo_array((np.ones(len(labels), np.int64), (labels, logits.argmax(axis=1))), shape=(classes, classes))
    counts.sum_duplicates()
    return counts if classes > _DENSE else counts.toarray()


def measure_classes(logits: NDArray[Any], labels: NDArray[Any], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a row for each class: `{"class", "precision", "recall", "f1", "support"}`.

    Undefined shares are 0: the precision of a class that is never predicted, the recall of a class without images.

    Raises:
        ShiftViTError: there are no images, labels or names do not fit the logits, or a logit is not finite.
    """
    from sklearn.metrics import precision_recall_fscore_support

    _check(logits, labels)
    count = logits.shape[1]
    if len(class_names) != count:
        raise ShiftViTError(
            f"{pluralize(len(class_names), 'class name')} for {pluralize(count, 'class', 'classes')}; give one for each"
        )
    columns = precision_recall_fscore_support(labels, logits.argmax(axis=1), labels=np.arange(count), zero_division=0)
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(support)}
        for name, p, r, f, support in zip(class_names, *columns, strict=True)
    ]


def measure_macro(logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Returns `{"precision", "recall", "f1", "balanced_accuracy"}`, each class counting the same.

    They are means over the classes that have images; balanced accuracy is the mean recall (Brodersen et al., ICPR
    2010). A class without images has no recall, but predicting it wrongly lowers the recall of other classes.

    Raises:
        ShiftViTError: there are no images, the labels do not fit the logits, or a logit is not finite.
    """
    from sklearn.metrics import precision_recall_fscore_support

    _check(logits, labels)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, logits.argmax(axis=1), labels=np.unique(labels), average="macro", zero_division=0
    )
    shares = {"precision": precision, "recall": recall, "f1": f1, "balanced_accuracy": recall}
    return {name: float(share) for name, share in shares.items()}


def measure_calibration(probabilities: NDArray[Any], labels: NDArray[Any], bins: int = 15) -> dict[str, Any]:
    """Compares confidence with accuracy in bins of equal width over the top-1 confidence.

    Args:
        probabilities: `(N, C)`, each row a distribution.
        labels: whole numbers below C, `(N,)`.
        bins: number of bins. A bin includes its upper edge but not its lower one; the first includes both.

    Returns:
        "ece", the expected calibration error (Naeini et al., AAAI 2015; Guo et al., ICML 2017, equation 3): the mean
        of |accuracy - confidence| over the bins, weighted by their images; "mce", its maximum (equation 5);
        "bins": rows of "lower", "upper", "count", "confidence", "accuracy", the last two None in an empty bin.

    Raises:
        ShiftViTError: there are no images, the labels do not fit, or a row is not a distribution.
    """
    check_labels(probabilities, labels)
    sums = np.concatenate([probabilities[rows].astype(np.float64).sum(axis=1) for rows in _cut(probabilities)])
    if not (probabilities.min() >= 0 and np.abs(sums - 1).max() <= 1e-3):
        raise ShiftViTError("the rows are not probabilities (0 or more, with the sum 1); give softmax(logits)")
    confidence = probabilities.max(axis=1).astype(np.float64)
    hits = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    shares = np.maximum(counts, 1)
    confidences = np.bincount(place, confidence, bins) / shares
    accuracies = np.bincount(place, hits, bins) / shares
    gaps = np.abs(accuracies - confidences)
    rows = [
        {
            "lower": float(edges[index]),
            "upper": float(edges[index + 1]),
            "count": int(counts[index]),
            "confidence": float(confidences[index]) if counts[index] else None,
            "accuracy": float(accuracies[index]) if counts[index] else None,
        }
        for index in range(bins)
    ]
    return {"ece": float(counts @ gaps / len(labels)), "mce": float(gaps.max()), "bins": rows}


def fit_temperature(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Returns the T in [0.05, 20] that minimises the mean cross-entropy of `logits / T`.

    Temperature scaling (Guo et al., ICML 2017, section 4.2): it changes confidences, not predictions. Fit it on
    validation images. If the loss falls all the way to a bound, as with perfectly separated data, that bound is
    returned; if it is the same everywhere, as with equal logits, 1.

    Raises:
        ShiftViTError: there are no images, the labels do not fit, or a logit is not finite.
    """
    from scipy.optimize import minimize_scalar

    _check(logits, labels)
    if (logits == logits[:, :1]).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        losses = []
        for rows in _cut(logits):
            exact = logits[rows].astype(np.float64)
            exact -= exact.max(axis=1, keepdims=True)
            right = exact[np.arange(len(exact)), labels[rows]]
            losses.append(np.log(np.exp(exact * scale).sum(axis=1)) - right * scale)
        return float(np.concatenate(losses).mean())

    low, high = np.log(TEMPERATURES)
    # The loss is convex in 1 / T, so it has one valley in log T as well.
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x
    # The search never tries its bounds. 0 is added so that the result is no worse than T = 1.
    return float(np.exp(min((low, high, float(found), 0.0), key=loss)))


def estimate_intervals(
    logits: NDArray[Any], labels: NDArray[Any], *, repeats: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Returns the 95% intervals `(low, high)` of "top1", "top5", "loss" and "macro_f1".

    Those of top-1 and top-5 are Wilson's score intervals (1927), which also hold for few images and where all answers
    are right. The others are bootstrapped (Efron, 1979): the images are resampled with replacement. For the loss, the
    middle 95% of the results is kept. For macro F1, it is the figure plus and minus 1.96 standard deviations of the
    results, because with many classes these lie below the figure: each sample lacks some of a class's images. The
    intervals show how much figures depend on the choice of test images, not how much training runs differ.

    Args:
        logits: `(N, C)`.
        labels: whole numbers below C, `(N,)`.
        repeats: the number of samples.
        seed: the same seed gives the same intervals.

    Raises:
        ShiftViTError: there are no images, the labels do not fit, or a logit is not finite.
    """
    from scipy.stats import binomtest  # only here, because importing it takes time

    _check(logits, labels)
    count, classes = logits.shape
    labels = labels.astype(np.int64)  # uint8, the type in some data sets, would overflow
    top1, top5, loss = _score_images(logits, labels)
    predicted = logits.argmax(axis=1)
    random = np.random.default_rng(seed)
    losses: list[float] = []
    scores: list[float] = []
    for first in range(0, repeats, _CHUNK):
        samples = [random.integers(count, size=count) for _ in range(min(_CHUNK, repeats - first))]
        times = np.stack([np.bincount(sample, minlength=count) for sample in samples]).astype(np.float64)
        losses += (times @ loss / count).tolist()
        scores += [_average_f1(labels, predicted, weights, classes) for weights in times]
    low, high = np.quantile(losses, [0.025, 0.975])
    score = _average_f1(labels, predicted, np.ones(count), classes)
    half = 1.96 * float(np.std(scores))
    wilson = [binomtest(int(hits.sum()), count).proportion_ci(0.95, "wilson") for hits in (top1, top5)]
    return {
        **{name: (float(found.low), float(found.high)) for name, found in zip(("top1", "top5"), wilson, strict=True)},
        "loss": (float(low), float(high)),
        "macro_f1": (max(0.0, score - half), min(1.0, score + half)),
    }


def find_mistakes(
    logits: NDArray[Any], labels: NDArray[Any], count: int = 25, temperature: float = 1.0
) -> NDArray[np.int64]:
    """Returns the indices of up to `count` wrong predictions, the most confident first.

    Equally confident ones keep their order. The confidences are softmax(logits / temperature); with more than two
    classes, their order depends on the temperature.

    Raises:
        ShiftViTError: there are no images, the labels do not fit, or a logit is not finite.
    """
    _check(logits, labels)
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    rest = np.empty(len(wrong))
    for rows in _cut(logits):
        exact = np.sort(logits[wrong[rows]].astype(np.float64), axis=1)
        # The odds of the other classes against the predicted one, which also order confidences that round to 1.
        rest[rows] = np.exp((exact[:, :-1] - exact[:, -1:]) / temperature).sum(axis=1)
    return wrong[np.argsort(rest, kind="stable")[:count]].astype(np.int64)


def _cut(logits: NDArray[Any]) -> Iterator[slice]:
    """Yields slices of rows with no more than `_AT_A_TIME` values each, or of one row."""
    step = max(1, _AT_A_TIME // max(1, logits.shape[1]))
    return (slice(first, first + step) for first in range(0, len(logits), step))


def _score_images(logits: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Returns top-1 hits, top-5 hits and cross-entropies, `(N,)` each; the first of equal logits is the larger."""
    parts = []
    for rows in _cut(logits):
        exact, truth = logits[rows].astype(np.float64), labels[rows]
        exact -= exact.max(axis=1, keepdims=True)
        losses = np.log(np.exp(exact).sum(axis=1)) - exact[np.arange(len(truth)), truth]
        order = np.argsort(-logits[rows], axis=1, kind="stable")[:, :5]
        hits = order == truth[:, None].astype(order.dtype)
        parts.append((hits[:, 0], hits.any(axis=1), losses))
    top1, top5, all_losses = zip(*parts, strict=True)
    return np.concatenate(top1), np.concatenate(top5), np.concatenate(all_losses)


def _average_f1(labels: NDArray[Any], predicted: NDArray[Any], weights: NDArray[np.float64], classes: int) -> float:
    """Returns the mean F1 of the classes that have images, each image (N,) counted `weights` times."""
    true_positives = np.bincount(labels, weights * (predicted == labels), classes)
    images = np.bincount(labels, weights, classes)
    f1 = 2 * true_positives / np.maximum(images + np.bincount(predicted, weights, classes), 1)
    return float(f1[images > 0].mean())
