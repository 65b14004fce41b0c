"""The split of a data set's labels in two: exact, complete, by class, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftvit.data.find.splits import split
from shiftvit.errors import ShiftViTError

LABELS = np.repeat(np.arange(10), 30)


@settings(max_examples=40)
@given(validation=st.integers(10, 290), seed=st.integers(0, 2**32 - 1), stratify=st.booleans())
def test_a_split_is_exact_complete_and_repeatable(validation: int, seed: int, stratify: bool) -> None:
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


def test_shares_counts_and_none() -> None:
    assert len(split(LABELS, 0.1)[1]) == 30
    assert len(split(LABELS, 30.0)[1]) == 30
    train, held_out = split(LABELS, 0)
    np.testing.assert_array_equal(train, np.arange(300))
    assert len(held_out) == 0
    assert held_out.dtype == train.dtype


def test_unequal_classes_keep_their_proportions() -> None:
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    assert np.bincount(labels[split(labels, 50)[1]]).tolist() == [25, 15, 10]


def test_another_seed_is_another_split() -> None:
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
        (LABELS, 0.001, 0, "is 0; both parts"),
        (LABELS, 5, 0, "10 classes"),
        (LABELS, 295, 0, "10 classes"),
        (LABELS, 30, -1, "seed=-1"),
        (LABELS, 30, 2**32, "seed=4294967296"),
        (LABELS[:271], 30, 0, "class 9 has 1 image"),
        (LABELS[:0], 1, 0, "of 0 images"),
        (LABELS[:, None], 30, 0, r"\(300, 1\)"),
    ],
)
def test_impossible_splits_are_named(labels: np.ndarray, validation: float, seed: int, message: str) -> None:
    with pytest.raises(ShiftViTError, match=message) as caught:
        split(labels, validation, seed=seed)
    assert "\n" not in str(caught.value)


def test_without_strata_small_parts_are_allowed() -> None:
    assert len(split(LABELS, 5, stratify=False)[1]) == 5
