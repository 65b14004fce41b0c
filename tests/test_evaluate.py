"""Metrics against scikit-learn and closed forms, and the rule for ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from shiftvit import Preprocess, ShiftViT, ShiftViTError
from shiftvit.evaluation.logits import predict_logits
from shiftvit.evaluation.metrics import count_confusion, measure


@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(6, 20))
def test_metrics_equal_scikit_learn(seed, count, classes):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)).astype(np.float32) * 5
    labels = rng.integers(classes, size=count)
    found = measure(logits, labels)
    exact = np.exp(logits.astype(np.float64))
    probabilities = exact / exact.sum(axis=1, keepdims=True)
    every = list(range(classes))
    assert found["top1"] == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=every))
    assert found["loss"] == pytest.approx(log_loss(labels, probabilities, labels=every), rel=1e-6)
    assert found["n"] == count
    matrix = count_confusion(logits, labels)
    assert matrix.sum() == count
    assert np.trace(matrix) == round(found["top1"] * count)


def test_tied_logits_are_not_counted_as_hits():
    logits = np.zeros((10, 10), np.float32)
    found = measure(logits, np.arange(10))
    assert (found["top1"], found["top5"]) == (0.1, 0.5)
    assert found["loss"] == pytest.approx(np.log(10))


def test_huge_logits_do_not_overflow():
    logits = np.array([[1e30, 0.0, -1e30]], np.float32)
    assert measure(logits, np.array([0]))["loss"] == 0.0


def test_top5_of_fewer_than_five_classes_is_1():
    assert measure(np.zeros((2, 3), np.float32), np.array([0, 2]))["top5"] == 1.0


def test_unsuitable_labels_are_refused():
    with pytest.raises(ShiftViTError, match="0 images"):
        measure(np.zeros((0, 10), np.float32), np.zeros(0, int))
    with pytest.raises(ShiftViTError, match="do not fit"):
        measure(np.zeros((2, 3), np.float32), np.array([0, 3]))
    with pytest.raises(ShiftViTError, match="none, do not fit"):
        measure(np.zeros((2, 3), np.float32), np.array([], int))
    with pytest.raises(ShiftViTError, match="do not fit"):
        measure(np.zeros((2, 3), np.float32), np.array([0, 1, 2]))


def test_predictions_do_not_depend_on_the_batch_size():
    model = ShiftViT((16, 16, 3), num_classes=4, embed_dim=24, depths=(1, 1))
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)
    whole = predict_logits(model, images, Preprocess(), batch_size=3)
    assert whole.shape == (7, 4)
    for size in (1, 7, 100):
        np.testing.assert_allclose(predict_logits(model, images, Preprocess(), batch_size=size), whole, atol=1e-5)
    assert predict_logits(model, images[:0], Preprocess()).shape == (0, 4)
