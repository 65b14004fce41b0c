"""Splits of arrays in two: exact, complete, stratified, and the same for the same seed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sample import split_data
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.errors import ShiftViTError

LABELS = np.repeat(np.arange(10), 30)
CIFAR = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
UNEVEN = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [100, 60, 40]))


def split(
    labels: np.ndarray, validation: float, *, stratify: bool = True, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices for training and for validation."""
    numbers = Split(labels, images=np.arange(len(labels)))
    data = Dataset({"train": numbers, "test": numbers}, tuple(map(str, range(10))), "arrays")
    result = split_data(data, validation=validation, test=0.5, seed=seed, stratify=stratify)
    assert result.test is numbers
    for part in result.splits.values():
        np.testing.assert_array_equal(part.labels, labels[part.images])
    return result.train.images, result.validation.images if result.validation else result.train.images[:0]


@pytest.mark.parametrize(
    ("labels", "validation", "stratify", "seed", "digest"),
    [
        (CIFAR, 5000, True, 0, "55c8daa46b98fa87"),
        (CIFAR, 5000, True, 1, "629a7e781f498877"),
        (CIFAR, 5000, False, 0, "ffe02f783bf67904"),
        (CIFAR, 5000, False, 7, "a103cf8bf32c79eb"),
        (CIFAR, 0.1, True, 0, "55c8daa46b98fa87"),
        (CIFAR, 0.02, True, 3, "509f43895f3e2c8c"),
        (CIFAR, 0.25, False, 2**32 - 1, "24b59809d9ccc2da"),
        (CIFAR, 10, True, 5, "c605c5bac7ad30a3"),
        (CIFAR, 1, False, 5, "10f931cd3d24f2a9"),
        (CIFAR, 0, True, 0, "33236cc6bd19fa6b"),
        (CIFAR, 49990, True, 0, "c2f704918d959125"),
        (UNEVEN, 50, True, 0, "903525ceb8dfc103"),
        (UNEVEN, 0.3, True, 2, "c865198ada098106"),
        (UNEVEN, 50, False, 0, "f2db5ea44bd11b83"),
    ],
)
def test_splits_match_release_0_1_0(
    labels: np.ndarray, validation: float, stratify: bool, seed: int, digest: str
) -> None:
    """A resumed run must get the images that it began with. The digests were recorded with that release."""
    indices = np.concatenate(split(labels, validation, stratify=stratify, seed=seed)).astype("<i8")
    assert hashlib.sha256(indices.tobytes()).hexdigest()[:16] == digest


@settings(max_examples=40)
@given(validation=st.integers(10, 290), seed=st.integers(0, 2**32 - 1), stratify=st.booleans())
def test_split_is_exact_complete_and_repeatable(validation: int, seed: int, stratify: bool) -> None:
    train, held_out = split(LABELS, validation, stratify=stratify, seed=seed)
    assert len(held_out) == validation
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()
    assert sorted([*train, *held_out]) == list(range(300))
    again, _ = split(LABELS, validation, stratify=stratify, seed=seed)
    np.testing.assert_array_equal(train, again)
    if stratify:
        counts = np.bincount(LABELS[held_out], minlength=10)
        assert counts.max() - counts.min() <= 1


def test_validation_is_a_fraction_a_count_or_zero() -> None:
    assert len(split(LABELS, 0.1)[1]) == 30
    assert len(split(LABELS, 30.0)[1]) == 30
    train, held_out = split(LABELS, 0)
    np.testing.assert_array_equal(train, np.arange(300))
    assert len(held_out) == 0
    assert held_out.dtype == train.dtype


def test_unequal_classes_keep_their_proportions() -> None:
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    assert np.bincount(labels[split(labels, 50)[1]]).tolist() == [25, 15, 10]


def test_small_fraction_takes_one_image_of_each_class() -> None:
    assert np.bincount(LABELS[split(LABELS, 0.001)[1]]).tolist() == [1] * 10
    assert len(split(LABELS, 0.01, stratify=False)[1]) == 3


def test_seed_changes_the_split() -> None:
    assert (split(LABELS, 100, seed=0)[1] != split(LABELS, 100, seed=1)[1]).any()


@pytest.mark.parametrize(
    ("labels", "validation", "seed", "message"),
    [
        (LABELS, 300, 0, "validation=300 of 300 images is 300"),
        (LABELS, 1e300, 0, "validation=1e"),
        (LABELS, -1, 0, "validation=-1"),
        (LABELS, float("nan"), 0, "validation=nan"),
        (LABELS, float("inf"), 0, "validation=inf"),
        (LABELS, 2.5, 0, r"validation=2\.5"),
        (LABELS, 5, 0, "10 classes"),
        (LABELS, 295, 0, "10 classes"),
        (LABELS, 30, -1, "seed=-1"),
        (LABELS, 30, 2**32, "seed=4294967296"),
        (LABELS[:271], 30, 0, "class '9' has 1 image, too few for 2 splits"),
        (LABELS[:0], 1, 0, "of 0 images"),
        (LABELS[:, None], 30, 0, r"\(300, 1\)"),
    ],
)
def test_impossible_splits_fail(labels: np.ndarray, validation: float, seed: int, message: str) -> None:
    with pytest.raises(ShiftViTError, match=message) as caught:
        split(labels, validation, seed=seed)
    assert "\n" not in str(caught.value)


def test_small_splits_work_without_stratification() -> None:
    assert len(split(LABELS, 5, stratify=False)[1]) == 5
    with pytest.raises(ShiftViTError, match=r"and both it and the rest \(0\) need 1 image"):
        split(LABELS, 300, stratify=False)
