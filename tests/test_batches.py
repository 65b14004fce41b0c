"""The batches of an epoch: complete, reproducible, in order, and independent of the number of workers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftvit.augment.augment import Augment
from shiftvit.data.batches.host import EpochBatches, count_batches, draw_order
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess, shrink

GOLDEN = Path(__file__).parent / "golden" / "cifar10_sample.npz"
NO_AUGMENTATION = Augment(random_crop=False, flip=False)


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    with np.load(GOLDEN) as data:
        return data["x_train"], data["y_train"]


def make_batches(images: np.ndarray, labels: np.ndarray, **changes: Any) -> EpochBatches:
    settings = {
        "preprocess": Preprocess(),
        "augment": Augment(pad=4),
        "batch_size": 32,
        "seed": 1,
        "epoch": 2,
    }
    return EpochBatches(images, labels, **(settings | changes))


def test_sample_is_balanced(sample: tuple[np.ndarray, np.ndarray]) -> None:
    assert sample[0].shape == (300, 32, 32, 3)
    assert np.bincount(sample[1]).tolist() == [30] * 10


def test_epoch_has_each_image_once_with_its_label(sample: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = sample
    epoch = make_batches(images, labels, augment=NO_AUGMENTATION, drop_remainder=False)
    parts = [epoch[index] for index in range(len(epoch))]
    assert [len(part[1]) for part in parts] == [32] * 9 + [12]
    seen, seen_labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    assert (seen.dtype, seen_labels.dtype) == (np.float32, np.int32)
    order = draw_order(1, 2, 300)
    assert sorted(order) == list(range(300))
    np.testing.assert_array_equal(seen, (images.astype(np.float32) / 255)[order])
    np.testing.assert_array_equal(seen_labels, labels[order])


def test_images_are_cropped_flipped_and_normalised(sample: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = sample
    mean, std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
    epoch = make_batches(images, labels, preprocess=Preprocess(mean=mean, std=std))
    draws, order = Augment(pad=4).draw(1, 2, 300, 32, 32), draw_order(1, 2, 300)
    for position, result in zip(order[64:96], epoch[2][0], strict=True):
        padded = np.pad(images[position], ((4, 4), (4, 4), (0, 0)))
        top, left = draws.top[position], draws.left[position]
        window = padded[top : top + 32, left : left + 32]
        if draws.flip[position]:
            window = window[:, ::-1]
        np.testing.assert_allclose(result, (window - np.array(mean)) / std, atol=1e-5)


@pytest.mark.parametrize("rounds", [True, False])
def test_resized_images_are_cropped_at_random(sample: tuple[np.ndarray, np.ndarray], rounds: bool) -> None:
    images, labels = sample
    preprocess = Preprocess(resize=52, crop=48, round_pixels=rounds)
    epoch = make_batches(images, labels, preprocess=preprocess, augment=Augment())
    draws, order = Augment().draw(1, 2, 300, 52, 52, (48, 48)), draw_order(1, 2, 300)
    assert set(draws.top) == set(draws.left) == set(range(5))
    for position, result in zip(order[:32], epoch[0][0], strict=True):
        top, left = draws.top[position], draws.left[position]
        window = preprocess.resized(images[[position]])[0, top : top + 48, left : left + 48]
        window = np.rint(window) if rounds else window
        np.testing.assert_array_equal(result, (window[:, ::-1] if draws.flip[position] else window) / 255)


@pytest.mark.parametrize("position", ["top_left", "center"])
def test_without_augmentation_batches_equal_inference_inputs(
    sample: tuple[np.ndarray, np.ndarray], position: str
) -> None:
    images, labels = sample
    preprocess = Preprocess(resize=52, crop=48, crop_position=position)
    epoch = make_batches(images, labels, preprocess=preprocess, augment=NO_AUGMENTATION)
    np.testing.assert_array_equal(epoch[1][0], preprocess(images[draw_order(1, 2, 300)[32:64]]))


def test_finished_images_are_shrunk(sample: tuple[np.ndarray, np.ndarray]) -> None:
    augment = Augment(pad=4, cutmix=1.0)
    whole, small = (make_batches(*sample, augment=augment, size=size) for size in ((32, 32), (24, 16)))
    for (images, shares), (shrunk, same) in zip(whole, small, strict=True):
        np.testing.assert_array_equal(shrunk, shrink(images, 24, 16))
        np.testing.assert_array_equal(shares, same)


@settings(max_examples=20)
@given(order=st.permutations(range(9)), start=st.integers(0, 9))
def test_batch_depends_only_on_its_number(order: list[int], start: int) -> None:
    with np.load(GOLDEN) as data:
        images, labels = data["x_train"], data["y_train"]
    whole, rest = make_batches(images, labels), make_batches(images, labels, start=start)
    assert len(rest) == 9 - start
    for index in order:
        if index < len(rest):
            for a, b in zip(rest[index], whole[start + index], strict=True):
                np.testing.assert_array_equal(a, b)


def test_threads_get_the_same_batches(sample: tuple[np.ndarray, np.ndarray]) -> None:
    epoch = make_batches(*sample)
    alone = [epoch[index][0] for index in range(len(epoch))]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: epoch[index][0], range(len(epoch))))
    np.testing.assert_array_equal(together, alone)


# Keras on PyTorch hands tensors to NumPy in a way that NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("workers", [1, 2])
def test_predict_gets_batches_in_order(sample: tuple[np.ndarray, np.ndarray], workers: int) -> None:
    epoch = make_batches(*sample, workers=workers, start=3)
    same = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Activation("linear")])
    expected = np.concatenate([epoch[index][0] for index in range(len(epoch))])
    np.testing.assert_array_equal(same.predict(epoch, verbose=0), expected)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("start", [0, 3])
def test_fit_gets_each_batch_once_and_in_order(workers: int, start: int) -> None:
    """`fit` looks at a batch before it begins; that must not shift the order, even in its first call."""
    images, numbers, seen = np.zeros((144, 8, 8, 3), np.uint8), np.arange(144), []

    class Spy(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.head = keras.layers.Dense(144)

        def call(self, x: Any) -> Any:
            return self.head(keras.ops.mean(x, axis=(1, 2)))

        def train_step(self, *arguments: Any) -> dict[str, float]:
            seen.append(int(arguments[-1][1][0]))
            return {"loss": 0.0}

    if keras.config.backend() != "torch":
        pytest.skip("other backends trace the step, so Python code in it does not run for each batch")
    model = Spy()
    model.compile(loss="sparse_categorical_crossentropy")
    for epoch in range(2):
        shared = {"augment": NO_AUGMENTATION, "batch_size": 8, "epoch": epoch, "start": start, "classes": 144}
        plain, several = (make_batches(images, numbers, **shared, workers=number) for number in (1, workers))
        seen.clear()
        model.fit(several, initial_epoch=epoch, epochs=epoch + 1, verbose=0, shuffle=False)
        assert seen == [int(plain[index][1][0]) for index in range(18 - start)]


@pytest.mark.parametrize("change", [{"seed": 9}, {"epoch": 3}])
def test_seed_and_epoch_change_the_order(sample: tuple[np.ndarray, np.ndarray], change: dict[str, int]) -> None:
    assert (make_batches(*sample)[0][0] != make_batches(*sample, **change)[0][0]).mean() > 0.5
    seeds = {"seed": 1, "epoch": 2} | change
    assert (draw_order(1, 2, 300) != draw_order(**seeds, count=300)).mean() > 0.9


def test_order_is_independent_of_other_settings(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels = make_batches(*sample)[0][1]
    other = make_batches(*sample, batch_size=16, augment=NO_AUGMENTATION, preprocess=Preprocess(resize=20))
    np.testing.assert_array_equal(np.concatenate([other[0][1], other[1][1]]), labels)


@pytest.mark.parametrize(
    ("count", "size", "drop", "expected"),
    [(64, 32, True, 2), (70, 32, True, 2), (70, 32, False, 3), (20, 32, True, 1), (20, 32, False, 1)],
)
def test_number_of_batches(
    sample: tuple[np.ndarray, np.ndarray], count: int, size: int, drop: bool, expected: int
) -> None:
    assert count_batches(count, size, drop) == expected
    epoch = make_batches(sample[0][:count], sample[1][:count], batch_size=size, drop_remainder=drop)
    assert len(epoch) == expected
    assert len(epoch[expected - 1][1]) == (size if drop and count > size else count - size * (expected - 1))


@pytest.mark.parametrize(
    ("count", "labels", "changes", "message"),
    [
        (0, 0, {}, "0 images"),
        (5, 4, {}, r"\(4,\)"),
        (300, 300, {"start": 10}, r"start=10 .* 0\.\.9"),
        (300, 300, {"start": -1}, "start=-1"),
        (300, 300, {"batch_size": 0}, "batch_size=0"),
        (300, 300, {"preprocess": Preprocess(crop=40)}, "crop=40"),
    ],
)
def test_invalid_arguments_fail(
    sample: tuple[np.ndarray, np.ndarray], count: int, labels: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ShiftViTError, match=message):
        make_batches(sample[0][:count], sample[1][:labels], **changes)


def test_index_beyond_the_last_batch_fails(sample: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(IndexError, match="batch 9"):
        make_batches(*sample)[9]


def test_mixed_batches_have_soft_labels_and_are_reproducible(sample: tuple[np.ndarray, np.ndarray]) -> None:
    augment = Augment(pad=2, mixup=0.8, cutmix=1.0)
    first, again = (make_batches(*sample, augment=augment, classes=12)[3] for _ in range(2))
    assert first[1].shape == (32, 12)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    resumed = make_batches(*sample, augment=augment, classes=12, start=3)[0]
    np.testing.assert_array_equal(first[0], resumed[0])
