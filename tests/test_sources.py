"""Data sets by name and the validation split."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftvit.data import sources
from shiftvit.errors import ShiftViTError

LABELS = np.repeat(np.arange(10), 30)


def test_load_gives_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(Path(__file__).parent / "golden" / "cifar10_sample.npz") as data:
        arrays = tuple(data[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    monkeypatch.setattr(sources, "load_cifar10", lambda: arrays)
    data = sources.load("cifar10")
    assert data.name == "cifar10"
    assert data.train_images is arrays[0]
    assert data.test_images is arrays[2]
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    np.testing.assert_array_equal(data.test_labels, arrays[3])
    assert " ".join(data.class_names) == "airplane automobile bird cat deer dog frog horse ship truck"


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ShiftViTError, match="'cifar_10'; did you mean 'cifar10'"):
        sources.load("cifar_10")


@settings(max_examples=40, deadline=None)
@given(validation=st.integers(10, 290), seed=st.integers(0, 2**32 - 1), stratify=st.booleans())
def test_a_split_is_exact_complete_and_repeatable(validation: int, seed: int, stratify: bool) -> None:
    train, held_out = sources.split(LABELS, validation, stratify=stratify, seed=seed)
    assert len(held_out) == validation
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()
    assert sorted([*train, *held_out]) == list(range(300))
    again, _ = sources.split(LABELS, validation, stratify=stratify, seed=seed)
    np.testing.assert_array_equal(train, again)
    if stratify:
        counts = np.bincount(LABELS[held_out], minlength=10)
        assert counts.max() - counts.min() <= 1


def test_shares_counts_and_none() -> None:
    assert len(sources.split(LABELS, 0.1)[1]) == 30
    assert len(sources.split(LABELS, 30.0)[1]) == 30
    train, held_out = sources.split(LABELS, 0)
    np.testing.assert_array_equal(train, np.arange(300))
    assert len(held_out) == 0
    assert held_out.dtype == train.dtype


def test_unequal_classes_keep_their_proportions() -> None:
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    assert np.bincount(labels[sources.split(labels, 50)[1]]).tolist() == [25, 15, 10]


def test_another_seed_is_another_split() -> None:
    assert (sources.split(LABELS, 100, seed=0)[1] != sources.split(LABELS, 100, seed=1)[1]).any()


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
        sources.split(labels, validation, seed=seed)
    assert "\n" not in str(caught.value)


def test_without_strata_small_parts_are_allowed() -> None:
    assert len(sources.split(LABELS, 5, stratify=False)[1]) == 5


def test_importing_loads_nothing_heavy() -> None:
    modules = ["keras", "torch", "jax", "tensorflow", "PIL", "sklearn", "rich", "urllib.request"]
    code = (
        "import sys; import shiftvit.data.sources, shiftvit.data.cifar10.cache, shiftvit.preprocess; "
        f"import shiftvit.augment.augment; print([name for name in {modules} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
