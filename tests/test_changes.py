"""Augmentation of single pictures within the batches of an epoch: reproducible, in order, and each copy counted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sample import load_sample
from shiftvit.augment.augment import Augment
from shiftvit.augment.boxes import cut, draw_box
from shiftvit.augment.changes import PictureChanges
from shiftvit.augment.randaugment import RandAugment
from shiftvit.data.batches.device import ResidentImages
from shiftvit.data.batches.host import EpochBatches, EpochPlan, draw_order
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess

SAMPLE = load_sample()
IMAGES, LABELS = SAMPLE.train.images[:96], SAMPLE.train.labels[:96]
RULE = Preprocess(mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))
ALL_CHANGES: dict[str, Any] = {
    "resized_crop": 0.08,
    "rand_augment": 9.0,
    "color_jitter": 0.4,
    "erasing": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
}


def make_batches(augment: dict[str, Any], **changes: Any) -> EpochBatches:
    usual = {"preprocess": RULE, "augment": Augment(**augment), "batch_size": 16, "classes": 10, "seed": 1, "epoch": 2}
    return EpochBatches(IMAGES, LABELS, **(usual | changes))


def collect_pictures(epoch: EpochBatches) -> dict[int, list[np.ndarray]]:
    """Returns slot -> the augmented images, for an epoch that does not mix images."""
    found: dict[int, list[np.ndarray]] = {}
    for number in range(len(epoch)):
        slots = epoch._plan.find_slots(number, epoch._batch_size, epoch._augment.repeats)
        for slot, image in zip(slots.tolist(), epoch[number][0], strict=True):
            found.setdefault(slot, []).append(image)
    return found


@pytest.mark.parametrize("repeats", [1, 2])
def test_batches_do_not_depend_on_start_workers_or_order(repeats: int) -> None:
    augment = {**ALL_CHANGES, "repeats": repeats}
    whole, resumed = make_batches(augment), make_batches(augment, start=2, workers=2)
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(whole.__getitem__, reversed(range(6))))[::-1]
    for number, (images, labels) in enumerate(together):
        np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
        assert (images.dtype, images.shape, labels.dtype) == (np.float32, (16, 32, 32, 3), np.float32)
        assert np.isfinite(images).all()
        if number >= 2:
            for mine, theirs in zip(resumed[number - 2], (images, labels), strict=True):
                np.testing.assert_array_equal(mine, theirs)
    other = make_batches(augment, epoch=3)
    assert (other[0][0] != together[0][0]).mean() > 0.9


def test_changes_do_not_depend_on_the_batch_size() -> None:
    augment = {key: value for key, value in ALL_CHANGES.items() if key not in ("mixup", "cutmix")}
    small, large = (
        collect_pictures(make_batches(augment, batch_size=4)),
        collect_pictures(make_batches(augment, batch_size=48)),
    )
    assert sorted(small) == sorted(large) == list(range(96))
    for index, images in small.items():
        np.testing.assert_array_equal(images, large[index])


@pytest.mark.parametrize("off", ["resized_crop", "rand_augment", "color_jitter", "erasing"])
def test_disabling_one_change_leaves_the_others(off: str) -> None:
    """A picture that a change did not touch is the same with and without that change."""
    augment = {"resized_crop": 0.3, "rand_augment": 9.0, "color_jitter": 0.3, "erasing": 0.3}
    with_it, without = (collect_pictures(make_batches(changes)) for changes in (augment, {**augment, off: 0.0}))
    alike = np.mean([np.array_equal(with_it[index], without[index]) for index in with_it])
    # RandAugment leaves about a quarter of the pictures alone, erasing about seven tenths.
    expected = {
        "resized_crop": (0, 0.02),
        "rand_augment": (0.12, 0.4),
        "color_jitter": (0, 0.1),
        "erasing": (0.5, 0.85),
    }
    assert expected[off][0] <= alike <= expected[off][1]


def test_changes_are_applied_in_order() -> None:
    """Crop, flip, RandAugment, normalise: repeated here one by one with the same random numbers."""
    changes = {"resized_crop": 0.2, "rand_augment": 9.0}
    epoch, flips = make_batches(changes), Augment(**changes).draw(1, 2, 96, 32, 32).flip
    assert 0.3 < flips.mean() < 0.7
    augment = RandAugment(9.0, 0.5, 2, (125, 123, 114), Image.Resampling.BILINEAR)
    for index, (found,) in collect_pictures(epoch).items():
        box = draw_box(np.random.default_rng([1, 2, 3, index]), 32, 32, 0.2)
        picture = cut(IMAGES[index], box, (32, 32), "bilinear")
        picture = picture[:, ::-1] if flips[index] else picture
        changed = augment(Image.fromarray(np.ascontiguousarray(picture)), np.random.default_rng([1, 2, 4, index]))
        np.testing.assert_array_equal(found, RULE.normalised(np.asarray(changed)[None])[0])


def test_erasing_writes_noise_after_normalisation() -> None:
    plain, erased = (collect_pictures(make_batches({"flip": False, "erasing": share})) for share in (0.0, 1.0))
    noise = np.concatenate([erased[i][0][erased[i][0] != plain[i][0]] for i in plain])
    assert noise.mean() == pytest.approx(0, abs=0.03)
    assert noise.std() == pytest.approx(1, abs=0.03)
    shares = [np.mean((erased[i][0] != plain[i][0]).any(axis=2)) for i in plain]
    assert 0.01 < min(shares) < 0.1
    assert 0.25 < max(shares) < 0.36


@pytest.mark.parametrize("rule", [RULE, Preprocess(resize=40, crop=(36, 30), round_pixels=False)])
def test_disabled_changes_give_the_same_result_as_before(rule: Preprocess) -> None:
    augment = Augment(pad=2)
    epoch = make_batches({"pad": 2, "rand_augment_std": 0.9, "rand_augment_layers": 5}, preprocess=rule)
    size, crop = rule.resized_shape(32, 32), rule.output_shape(32, 32)
    draws, order = augment.draw(1, 2, 96, *size, crop), draw_order(1, 2, 96)
    for number in range(6):
        indices = order[number * 16 : (number + 1) * 16]
        resized = rule.resized(IMAGES[indices]) if rule.resize else IMAGES[indices]
        expected = rule.normalised(augment(resized, draws[indices]))
        np.testing.assert_array_equal(epoch[number][0], expected)
        np.testing.assert_array_equal(epoch[number][1], LABELS[indices])


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 6), st.integers(0, 99))
def test_repeated_images_are_counted_and_not_adjacent(count: int, size: int, repeats: int, seed: int) -> None:
    different = -(-size // repeats)
    plan = EpochPlan(draw_order(seed, 0, count), None, None)  # type: ignore[arg-type]
    slots = [plan.find_slots(number, size, repeats) for number in range(-(-count // size))]
    assert sum(len(part) for part in slots) == count  # copies do not make an epoch longer
    everything = np.concatenate(slots)
    assert len(set(everything.tolist())) == count  # no slot comes twice
    for part in slots:
        indices, copies = part % count, part // count
        assert copies.max() < repeats
        if len(part) == size == different * repeats:
            assert sorted(np.unique(indices, return_counts=True)[1]) == [repeats] * different
        if different > 1:  # neighbours are different images
            assert (indices[1:] != indices[:-1]).all()
    full = everything[: count // (different * repeats) * different * repeats] % count
    assert (np.unique(full, return_counts=True)[1] == repeats).all()  # every image has all its copies
    if repeats == 1:
        np.testing.assert_array_equal(everything, plan.order)


def test_each_copy_is_changed_differently() -> None:
    augment = {"flip": False, "resized_crop": 0.2, "color_jitter": 0.3, "erasing": 0.3, "repeats": 4}
    epoch = make_batches(augment)
    images, labels = epoch[1]
    np.testing.assert_array_equal(labels, np.tile(labels[:4], 4))
    assert len(np.unique(images.reshape(16, -1), axis=0)) == 16
    once = collect_pictures(make_batches({**augment, "repeats": 1}))
    several = collect_pictures(epoch)
    first = [slot for slot in several if slot < 96]
    assert len(first) == len({slot % 96 for slot in several}) == 24
    for slot in first:
        np.testing.assert_array_equal(several[slot], once[slot])


def test_fewer_images_than_the_batch_size() -> None:
    epoch = EpochBatches(
        IMAGES[:10], LABELS[:10], preprocess=RULE, augment=Augment(repeats=4), batch_size=16, seed=0, epoch=0
    )
    assert len(epoch) == 1
    assert len(np.unique(epoch._plan.find_slots(0, 16, 4) % 10)) == 4
    assert epoch[0][0].shape == (10, 32, 32, 3)


def test_rand_augment_fills_with_the_mean_colour() -> None:
    changes = PictureChanges(Augment(rand_augment=9.0), Preprocess(mean=300.0), 0, 0, (8, 8))
    assert changes._rand_augment.fill == (255, 255, 255)
    changes = PictureChanges(Augment(rand_augment=9.0), RULE, 0, 0, (8, 8))
    assert changes._rand_augment.fill == (125, 123, 114)


@pytest.mark.parametrize(
    ("name", "value"), [("resized_crop", 0.5), ("rand_augment", 9.0), ("erasing", 0.2), ("repeats", 2)]
)
def test_device_loop_rejects_unsupported_changes(name: str, value: float) -> None:
    with pytest.raises(ShiftViTError, match=rf"augment\.{name}={value} .* set train\.loop=fit"):
        ResidentImages(IMAGES, LABELS, RULE, Augment(**{name: value}), 10)


def test_images_per_second_counts_workers_up_to_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = make_batches(ALL_CHANGES, workers=2)
    assert epoch.images_per_second == 0
    clock = iter(np.arange(0, 100, 0.5).tolist())  # each batch of 16 takes half a second
    monkeypatch.setattr("shiftvit.data.batches.host.time.perf_counter", lambda: next(clock))
    for cores, rate in ((1, 32), (2, 64), (8, 64)):
        monkeypatch.setattr("shiftvit.data.batches.host.count_cores", lambda cores=cores: cores)
        epoch._prepare_timed(0)
        assert epoch.images_per_second == pytest.approx(rate)
