"""The learning rate against its closed form in NumPy, at every step."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shiftvit
from shiftvit.errors import ShiftViTError
from shiftvit.training.schedule import SCHEDULES, WarmUpCosine, WarmUpLinear
from tensors import to_numpy

every_schedule = pytest.mark.parametrize("kind", SCHEDULES.values())


def compute_rate(
    kind: type[Any], start: float, peak: float, warmup: int, total: int, step: float, end: float = 0.0
) -> float:
    if step > total:
        return end
    if step < warmup:
        return start + (peak - start) * step / warmup
    progress = (step - warmup) / (total - warmup) if total > warmup else 0.0
    return end + (peak - end) * (1 - progress if kind is WarmUpLinear else (1 + math.cos(math.pi * progress)) / 2)


@every_schedule
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 20), (1, 20), (7, 20), (19, 20), (20, 20), (1, 1), (0, 0)])
def test_every_step_matches_closed_form(kind: type[Any], warmup: int, total: int) -> None:
    schedule = kind(lr_start=2e-5, lr_max=3e-3, warmup_steps=warmup, total_steps=total)
    found = [to_numpy(schedule(step)) for step in range(total + 5)]
    expected = [compute_rate(kind, 2e-5, 3e-3, warmup, total, step) for step in range(total + 5)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-9)


@settings(max_examples=60)
@given(
    kind=st.sampled_from([WarmUpCosine, WarmUpLinear]),
    warmup=st.integers(0, 10_000),
    fall=st.integers(0, 100_000),
    peak=st.floats(1e-5, 1.0),
    fraction=st.floats(0, 1),
    end=st.floats(0, 1),
    data=st.data(),
)
def test_any_step_matches_closed_form(
    kind: type[Any], warmup: int, fall: int, peak: float, fraction: float, end: float, data: st.DataObject
) -> None:
    total = warmup + fall
    step = data.draw(st.integers(0, total + 10))
    found = to_numpy(kind(fraction * peak, peak, warmup, total, end * peak)(step))
    expected = compute_rate(kind, fraction * peak, peak, warmup, total, step, end * peak)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * peak)


@every_schedule
def test_landmarks(kind: type[Any]) -> None:
    schedule = kind(lr_start=0.1, lr_max=0.5, warmup_steps=4, total_steps=10)
    landmarks = {0: 0.1, 2: 0.3, 4: 0.5, 7: 0.25, 10: 0.0, 11: 0.0, 10_000: 0.0}
    for step, rate in landmarks.items():
        assert float(to_numpy(schedule(step))) == pytest.approx(rate, abs=1e-7)


@every_schedule
def test_landmarks_with_an_end_above_0(kind: type[Any]) -> None:
    schedule = kind(lr_start=0.1, lr_max=0.5, warmup_steps=4, total_steps=10, lr_end=0.1)
    landmarks = {0: 0.1, 2: 0.3, 4: 0.5, 7: 0.3, 10: 0.1, 11: 0.1, 10_000: 0.1}
    for step, rate in landmarks.items():
        assert float(to_numpy(schedule(step))) == pytest.approx(rate, abs=1e-7)


@every_schedule
@pytest.mark.parametrize("end", [-0.1, 0.6])
def test_end_above_the_peak_or_below_0_is_refused(kind: type[Any], end: float) -> None:
    with pytest.raises(ShiftViTError, match=rf"lr_end={end} must be from 0 to lr_max=0.5"):
        kind(0.1, 0.5, 4, 10, end)


@every_schedule
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("lr_start", -1.0), ("lr_start", math.nan), ("lr_max", math.inf), ("lr_max", "1")),
        *(("warmup_steps", -2), ("warmup_steps", 0.2), ("total_steps", 9.5), ("total_steps", None)),
    ],
)
def test_other_arguments_are_refused(kind: type[Any], name: str, value: Any) -> None:
    arguments = {"lr_start": 0.0, "lr_max": 1.0, "warmup_steps": 1, "total_steps": 5, name: value}
    with pytest.raises(ShiftViTError, match=rf"^{name}={re.escape(repr(value))} must be a"):
        kind(**arguments)


@every_schedule
def test_step_may_be_a_number_or_a_tensor_of_any_type(kind: type[Any]) -> None:
    schedule = kind(0.1, 0.5, 4, 10)
    expected = compute_rate(kind, 0.1, 0.5, 4, 10, 6)
    variable = keras.Variable(6, dtype="int32", trainable=False)
    for step in (6, 6.0, np.int64(6), keras.ops.convert_to_tensor(6, dtype="int32"), variable):
        rate = schedule(step)
        assert keras.backend.standardize_dtype(rate.dtype) == "float32"
        assert float(to_numpy(rate)) == pytest.approx(expected, rel=1e-5)


@every_schedule
def test_warm_up_longer_than_total_is_refused(kind: type[Any]) -> None:
    with pytest.raises(ShiftViTError, match="total_steps=9 must be at least warmup_steps=10"):
        kind(0.0, 1.0, 10, 9)


@every_schedule
def test_falling_warm_up_is_refused(kind: type[Any]) -> None:
    with pytest.raises(ShiftViTError, match=r"lr_start=0.2 must be at most lr_max=0.1"):
        kind(0.2, 0.1, 1, 10)
    kind(0.2, 0.1, 0, 10)  # without a warm-up the start is not used


@every_schedule
def test_schedule_is_restored_after_serialisation(kind: type[Any]) -> None:
    schedule = kind(lr_start=0.1, lr_max=0.5, warmup_steps=4, total_steps=10, lr_end=0.05)
    stored = json.loads(json.dumps(keras.optimizers.schedules.serialize(schedule)))
    restored = keras.optimizers.schedules.deserialize(stored)
    assert type(restored) is kind
    assert restored.get_config() == schedule.get_config()
    assert restored.get_config() == {
        "lr_start": 0.1,
        "lr_max": 0.5,
        "warmup_steps": 4,
        "total_steps": 10,
        "lr_end": 0.05,
    }


def test_public_names() -> None:
    assert shiftvit.WarmUpCosine is WarmUpCosine is SCHEDULES["cosine"]
    assert SCHEDULES["linear"] is WarmUpLinear
