"""Metrics against scikit-learn, closed forms and planted cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, classification_report, f1_score

from pace import limit_time
from shiftvit import ShiftViTError
from shiftvit.evaluation import metrics
from shiftvit.evaluation.metrics import (
    count_confusion,
    estimate_intervals,
    find_mistakes,
    fit_temperature,
    measure,
    measure_calibration,
    measure_classes,
    measure_macro,
)

seeds = st.integers(0, 2**32 - 1)


def draw_calibrated(seed, count=200, classes=10, scale=2.0):
    """Returns logits, and labels drawn from their softmax: a calibrated classifier."""
    random = np.random.default_rng(seed)
    logits = (scale * random.normal(size=(count, classes))).astype(np.float32)
    noise = random.gumbel(size=(count, classes))
    return logits, (logits + noise).argmax(axis=1)


def make_one_hot_logits(labels, classes=10, scale=30.0):
    return np.float32(scale) * np.eye(classes, dtype=np.float32)[labels]


@given(seeds, st.integers(1, 60), st.integers(2, 12))
def test_class_rows_equal_the_report_of_scikit_learn(seed, count, classes):
    logits, labels = draw_calibrated(seed, count, classes)
    names = [f"class {index}" for index in range(classes)]
    rows = measure_classes(logits, labels, names)
    report = classification_report(
        labels, logits.argmax(1), labels=range(classes), target_names=names, output_dict=True, zero_division=0
    )
    assert [row["class"] for row in rows] == names
    for row in rows:
        expected = report[row["class"]]
        found = [row["precision"], row["recall"], row["f1"], row["support"]]
        assert found == pytest.approx([expected[key] for key in ("precision", "recall", "f1-score", "support")])


def test_class_rows_by_hand():
    """Of three cats two are found, and one dog is called a cat; nothing is called a bird."""
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 0, 1, 1])
    cat, dog, bird = measure_classes(make_one_hot_logits(predicted, 3), labels, ["cat", "dog", "bird"])
    assert cat == pytest.approx({"class": "cat", "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert dog == pytest.approx({"class": "dog", "precision": 1 / 3, "recall": 1 / 2, "f1": 0.4, "support": 2})
    assert bird == {"class": "bird", "precision": 0, "recall": 0, "f1": 0, "support": 1}


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
@given(seeds, st.integers(1, 40))
def test_balanced_accuracy_equals_scikit_learn(seed, count):
    logits, labels = draw_calibrated(seed, count, 5)
    expected = balanced_accuracy_score(labels, logits.argmax(1))
    assert measure_macro(logits, labels)["balanced_accuracy"] == pytest.approx(expected)


@given(seeds, st.integers(1, 40))
def test_macro_metrics_are_means_over_classes_with_images(seed, count):
    logits, labels = draw_calibrated(seed, count, 5)
    found = measure_macro(logits, labels)
    rows = [row for row in measure_classes(logits, labels, list("abcde")) if row["support"]]
    for key in ("precision", "recall", "f1"):
        assert found[key] == pytest.approx(np.mean([row[key] for row in rows]))


def test_predicted_classes_without_images_do_not_count():
    """Of two cats one is found and one is taken for a bird; there are no birds."""
    labels, predicted = np.array([0, 0, 1]), np.array([0, 2, 1])
    found = measure_macro(make_one_hot_logits(predicted, 3), labels)
    assert found == pytest.approx({"precision": 1, "recall": 3 / 4, "f1": 5 / 6, "balanced_accuracy": 3 / 4})
    low, high = estimate_intervals(make_one_hot_logits(predicted, 3), labels)["macro_f1"]
    assert low <= 5 / 6 <= high == 1


def test_absent_classes_do_not_lower_the_means():
    labels = np.array([0, 0, 1])
    assert measure_macro(make_one_hot_logits(labels), labels) == {
        "precision": 1,
        "recall": 1,
        "f1": 1,
        "balanced_accuracy": 1,
    }


def test_calibration_by_hand():
    """Confidences .95, .85 (wrong), .55 and .6 (wrong) in five bins, each with its upper edge."""
    first = np.array([0.95, 0.85, 0.55, 0.6])
    probabilities = np.stack([first, 1 - first], axis=1)
    found = measure_calibration(probabilities, np.array([0, 1, 0, 1]), bins=5)
    empty = {"count": 0, "confidence": None, "accuracy": None}
    assert found["bins"][0] == {"lower": 0, "upper": pytest.approx(0.2), **empty}
    assert [row["count"] for row in found["bins"]] == [0, 0, 2, 0, 2]
    assert found["bins"][2]["confidence"] == pytest.approx(0.575)
    assert found["bins"][4] == pytest.approx(
        {"lower": 0.8, "upper": 1.0, "count": 2, "confidence": 0.9, "accuracy": 0.5}
    )
    assert found["ece"] == pytest.approx((2 * abs(0.5 - 0.575) + 2 * abs(0.5 - 0.9)) / 4)
    assert found["mce"] == pytest.approx(0.4)


def test_confidence_between_two_bins_counts_in_the_lower_one():
    found = measure_calibration(np.array([[0.5, 0.5]]), np.array([0]), bins=2)
    assert [row["count"] for row in found["bins"]] == [1, 0]


@pytest.mark.parametrize(("hits", "ece"), [(1.0, 0.0), (0.0, 1.0), (0.75, 0.25)])
def test_calibration_of_a_classifier_that_is_always_certain(hits, ece):
    labels = np.zeros(100, int)
    predicted = np.where(np.arange(100) < 100 * hits, 0, 1)
    found = measure_calibration(np.eye(2)[predicted], labels)
    assert (found["ece"], found["mce"]) == (pytest.approx(ece), pytest.approx(ece))
    assert found["bins"][-1]["count"] == 100


@given(seeds, st.integers(1, 100), st.integers(1, 30))
def test_ece_equals_its_definition(seed, count, bins):
    logits, labels = draw_calibrated(seed, count, 4)
    probabilities = softmax(logits, axis=1)
    found = measure_calibration(probabilities, labels, bins)
    confidence, hits = probabilities.max(1).astype(float), probabilities.argmax(1) == labels
    total = 0.0
    for index in range(bins):
        within = (confidence > index / bins) & (confidence <= (index + 1) / bins)
        total += within.sum() / count * abs(hits[within].mean() - confidence[within].mean()) if within.any() else 0
    assert found["ece"] == pytest.approx(total, abs=1e-9)
    assert found["ece"] <= found["mce"] + 1e-12 <= 1 + 1e-9
    assert sum(row["count"] for row in found["bins"]) == count


def test_ece_with_one_bin_is_the_difference_of_the_means():
    logits, labels = draw_calibrated(1, 5000)
    probabilities = softmax(logits, axis=1)
    difference = abs((probabilities.argmax(1) == labels).mean() - probabilities.max(1).mean())
    assert measure_calibration(probabilities, labels, 1)["ece"] == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize("planted", [0.3, 1.0, 2.5, 7.0])
def test_planted_temperature_is_recovered(planted):
    logits, labels = draw_calibrated(3, 60_000)
    assert fit_temperature(logits * planted, labels) == pytest.approx(planted, rel=0.02)


@given(seeds, st.integers(1, 40), st.floats(0.01, 100))
def test_temperature_never_raises_the_loss(seed, count, scale):
    logits, labels = draw_calibrated(seed, count, 5, 1.0)
    logits = logits * np.float32(scale)
    temperature = fit_temperature(logits, labels)
    assert 0.0499 < temperature < 20.001
    before, after = measure(logits, labels)["loss"], measure(logits.astype(float) / temperature, labels)["loss"]
    assert after <= before + 1e-9
    for other in (0.06, 0.4, 3.0, 15.0):
        assert after <= measure(logits.astype(float) / other, labels)["loss"] + 1e-9


def test_temperature_lowers_the_ece_of_an_overconfident_classifier():
    logits, labels = draw_calibrated(5, 20_000)
    sure = logits * 3
    assert measure_calibration(softmax(sure, axis=1), labels)["ece"] > 0.1
    assert measure_calibration(softmax(sure / fit_temperature(sure, labels), axis=1), labels)["ece"] < 0.02


@pytest.mark.parametrize("scale", [0.5, 10.0, 1e4])
def test_temperature_stops_at_its_bounds(scale):
    labels = np.arange(50) % 10
    assert fit_temperature(make_one_hot_logits(labels, scale=scale), labels) == pytest.approx(0.05)
    assert fit_temperature(make_one_hot_logits((labels + 1) % 10, scale=scale), labels) == pytest.approx(20)


def test_equal_logits_give_temperature_1():
    assert fit_temperature(np.full((5, 3), 7.0), np.array([0, 1, 2, 0, 1])) == 1.0


@pytest.mark.parametrize("accuracy", [0.5, 0.9])
def test_top1_interval_is_binomial(accuracy):
    count = 4000
    labels = np.arange(count) % 10
    predicted = np.where(np.arange(count) < accuracy * count, labels, (labels + 1) % 10)
    low, high = estimate_intervals(make_one_hot_logits(predicted), labels, repeats=2000)["top1"]
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / count)
    assert low == pytest.approx(accuracy - half, abs=0.15 * half)
    assert high == pytest.approx(accuracy + half, abs=0.15 * half)


@given(seeds, st.integers(1, 200))
@settings(max_examples=30)
def test_intervals_contain_the_point_estimate(seed, count):
    logits, labels = draw_calibrated(seed, count)
    found = estimate_intervals(logits, labels, repeats=200, seed=seed)
    point = measure(logits, labels)
    for name in ("top1", "top5", "loss"):
        low, high = found[name]
        assert low - 1e-9 <= point[name] <= high + 1e-9
    assert 0 <= found["macro_f1"][0] <= found["macro_f1"][1] <= 1


def test_macro_f1_interval_against_scikit_learn():
    """The reference is an independent bootstrap with another random generator."""
    logits, labels = draw_calibrated(7, 1500, 4)
    predicted, random = logits.argmax(1), np.random.RandomState(1)
    scores = []
    for _ in range(400):
        chosen = random.randint(0, len(labels), len(labels))
        scores.append(f1_score(labels[chosen], predicted[chosen], average="macro"))
    expected = np.percentile(scores, [2.5, 97.5])
    width = expected[1] - expected[0]
    np.testing.assert_allclose(estimate_intervals(logits, labels)["macro_f1"], expected, rtol=0, atol=0.15 * width)
    assert expected[0] < measure_macro(logits, labels)["f1"] < expected[1]


def test_macro_f1_interval_covers_the_truth_with_many_classes():
    """The truth is the macro F1 of all images, from the shares of right answers of each class."""
    random, classes, each = np.random.default_rng(0), 200, 5
    shares = random.uniform(0.3, 1, classes)
    # A wrong answer is any other class, each as often.
    answers = shares + ((1 - shares).sum() - (1 - shares)) / (classes - 1)
    truth, covered, labels = (2 * shares / (1 + answers)).mean(), 0, np.repeat(np.arange(classes), each)
    for _ in range(40):
        others = (labels + random.integers(1, classes, len(labels))) % classes
        predicted = np.where(random.random(len(labels)) < shares[labels], labels, others)
        logits = make_one_hot_logits(predicted, classes)
        low, high = estimate_intervals(logits, labels, repeats=200)["macro_f1"]
        assert low < measure_macro(logits, labels)["f1"] < high
        covered += low < truth < high
    assert covered >= 35  # 95% of 40 are 38


@pytest.mark.parametrize("count", [1, 5, 30])
def test_intervals_where_all_or_no_answers_are_right(count):
    labels = (np.arange(count) % 10).astype(np.uint8)
    found = estimate_intervals(make_one_hot_logits(labels), labels, repeats=100)
    # Wilson's interval (1927) of n hits in n trials
    square = 1.959964**2
    assert found["top1"] == found["top5"] == pytest.approx((count / (count + square), 1), abs=1e-6)
    assert found["loss"] == pytest.approx((0, 0), abs=1e-9)
    wrong = estimate_intervals(make_one_hot_logits((labels + 1) % 10), labels, repeats=100)
    assert wrong["top1"] == pytest.approx((0, square / (count + square)), abs=1e-6)


def test_intervals_depend_on_the_seed():
    logits, labels = draw_calibrated(0)
    assert estimate_intervals(logits, labels, seed=3) == estimate_intervals(logits, labels, seed=3)
    assert estimate_intervals(logits, labels, seed=3) != estimate_intervals(logits, labels, seed=4)


def test_intervals_of_ten_thousand_images_are_fast():
    logits, labels = draw_calibrated(0, 10_000)
    with limit_time(100):
        estimate_intervals(logits, labels)


def test_most_confident_mistakes_come_first():
    """Confidences that round to 1 are still ordered, ties keep their order, and correct answers are left out."""
    margins = np.array([5.0, 80.0, 60.0, 1.0, 60.0, 99.0])
    logits = np.stack([margins, np.zeros(6), np.zeros(6)], axis=1).astype(np.float32)
    labels = np.array([1, 2, 1, 1, 2, 0])
    assert find_mistakes(logits, labels).tolist() == [1, 2, 4, 0, 3]
    assert find_mistakes(logits, labels, 2).tolist() == [1, 2]
    assert find_mistakes(logits[5:], labels[5:]).tolist() == []
    assert find_mistakes(logits, labels, 0).tolist() == []


def test_mistakes_are_sorted_by_the_confidence_at_the_temperature():
    """One close rival costs more confidence than four distant ones at temperature 1, and less at temperature 4."""
    logits = -np.array([[0, 1, 50, 50, 50], [0, 2.4, 2.4, 2.4, 2.4]], np.float32)
    for temperature in (1.0, 4.0):
        confidence = softmax(logits / temperature, axis=1).max(axis=1)
        expected = np.argsort(-confidence).tolist()
        assert find_mistakes(logits, np.array([1, 1]), temperature=temperature).tolist() == expected
    assert expected == [0, 1]


@given(seeds, st.integers(1, 60))
def test_mistakes_are_wrong_and_sorted(seed, count):
    logits, labels = draw_calibrated(seed, count, 4)
    found = find_mistakes(logits, labels, 10)
    wrong = np.flatnonzero(logits.argmax(1) != labels)
    assert found.dtype == np.int64
    assert len(found) == min(10, len(wrong))
    assert set(found) <= set(wrong)
    confidence = softmax(logits, axis=1).max(1).astype(float)
    assert (np.diff(confidence[found]) <= 1e-6).all()
    assert confidence[list(set(wrong) - set(found))].max(initial=0) <= confidence[found].min(initial=1) + 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure_classes(np.zeros((0, 3)), np.zeros(0, int), "abc"), "0 images"),
        (lambda: measure_classes(np.zeros((1, 3)), np.zeros(1, int), "ab"), "2 class names for 3 classes"),
        (lambda: measure_macro(np.zeros((2, 3)), np.array([0, 3])), "0 to 3, do not fit"),
        (lambda: measure_calibration(np.zeros((0, 3)), np.zeros(0, int)), "0 images"),
        (lambda: measure_calibration(np.array([[2.0, -1.0]]), np.array([0])), r"give softmax\(logits\)"),
        (lambda: measure_calibration(np.array([[np.nan, 1.0]]), np.array([0])), "not probabilities"),
        (lambda: fit_temperature(np.zeros((0, 3)), np.zeros(0, int)), "0 images"),
        (lambda: fit_temperature(np.zeros((2, 3)), np.zeros(3, int)), "do not fit"),
        (lambda: fit_temperature(np.array([[np.nan, 1.0]]), np.array([0])), "NaN or infinity for image 1"),
        (lambda: measure(np.array([[0.0, 1.0], [np.inf, 1.0]]), np.array([0, 1])), "NaN or infinity for image 2"),
        (lambda: estimate_intervals(np.zeros((2, 3)), np.array([-1, 0])), "do not fit"),
        *(
            (
                lambda call=call: call(np.array([[0.0, np.nan], [2.0, 1.0]]), np.array([1, 0])),
                "NaN or infinity for image 1",
            )
            for call in (estimate_intervals, measure_macro, count_confusion, find_mistakes)
        ),
        (lambda: measure_classes(np.array([[np.nan, 0]]), np.array([0]), "ab"), "NaN or infinity for image 1"),
    ],
)
def test_wrong_arguments_raise_one_line_errors(call, message):
    with pytest.raises(ShiftViTError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_metrics_do_not_depend_on_the_chunk_size(monkeypatch):
    logits, labels = draw_calibrated(3, count=90, classes=7)
    logits[4] = 0

    def compute():
        return (
            measure(logits, labels),
            fit_temperature(logits, labels),
            find_mistakes(logits, labels).tolist(),
            measure_calibration(softmax(logits, axis=1), labels),
            estimate_intervals(logits, labels, repeats=20),
        )

    whole = compute()
    monkeypatch.setattr(metrics, "_AT_A_TIME", 20)
    assert compute() == whole


def test_confusion_matrix_of_many_classes_takes_little_memory():
    """A dense matrix would take 7 GB."""
    classes = 30_000
    logits = np.zeros((4, classes), np.float32)
    logits[np.arange(4), [5, 5, 29_999, 7]] = 1
    found = count_confusion(logits, np.array([6, 6, 29_999, 7]))
    assert found.shape == (classes, classes)
    assert [found.row.tolist(), found.col.tolist(), found.data.tolist()] == [[6, 7, 29_999], [5, 7, 29_999], [2, 1, 1]]
    assert found.trace() == 2
