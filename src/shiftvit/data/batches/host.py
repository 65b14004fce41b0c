"""The batches of a training epoch for Keras `fit`."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from shiftvit.augment.augment import Augment, Draws
from shiftvit.augment.changes import PictureChanges
from shiftvit.augment.mix import Mix
from shiftvit.environment import count_cores
from shiftvit.errors import ShiftViTError, pluralize
from shiftvit.preprocess import Floats, Preprocess

Batch = tuple[Floats, NDArray[np.int32] | Floats]

# Keeps the order apart from other draws of the same seed and epoch.
_STREAM = 0


def count_batches(count: int, batch_size: int, drop_remainder: bool = True) -> int:
    """Returns how many batches an epoch of `count` images has.

    A last, smaller batch counts only if `drop_remainder` is false or it is the only one.
    """
    whole, rest = divmod(count, batch_size)
    return whole + (rest > 0 and (whole == 0 or not drop_remainder))


def draw_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Returns the order of an epoch's images, int64 (count,): it depends on these three numbers alone."""
    return np.random.default_rng([seed, epoch, _STREAM]).permutation(count)


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """What chance decides in an epoch.

    Attributes:
        order: of its images, int64 (N,).
        draws, mix: of each copy of an image the crop and the flip, and the mixing: of copy `c` of image `i` at
            `c * N + i`.
    """

    order: NDArray[np.int64]
    draws: Draws
    mix: Mix | None

    def slots(self, number: int, batch_size: int, repeats: int = 1) -> NDArray[np.int64]:
        """Returns where a batch's images are among the draws, int64 (B,): the batch is [a b c ... a b c ...].

        A batch has `batch_size / repeats` different images, rounded up, and an epoch 1 / `repeats` of all. What a batch
        has no room for begins the next one. Copies are not neighbours, which are mixed, unless a batch has one image
        alone. Source: Hoffer et al., "Augment Your Batch" (2020), section 3; an epoch's length is that of Touvron et
        al., "DeiT" (2021).
        """
        count = len(self.order)
        places = np.arange(number * batch_size, min((number + 1) * batch_size, count))
        different = -(-batch_size // repeats)
        block, within = np.divmod(places, different * repeats)
        copy, which = np.divmod(within, different)
        slots: NDArray[np.int64] = self.order[block * different + which] + copy * count
        return slots


def plan_epoch(shape: tuple[int, ...], preprocess: Preprocess, augment: Augment, seed: int, epoch: int) -> EpochPlan:
    """Draws an epoch of images of the shape (N, H, W, 3), before resizing, from the seed and the epoch alone."""
    count, size = shape[0], shape[1:3]
    copies = count * augment.repeats
    resized, crop = preprocess.resized_shape(*size), preprocess.output_shape(*size)
    if augment.resized_crop:
        draws = augment.draw(seed, epoch, copies, *crop)  # what is cut has the crop's size already
    else:
        # Where the crop is not random, it is that of inference.
        draws = augment.draw(seed, epoch, copies, *resized, crop, preprocess.crop_origin(*resized))
    return EpochPlan(draw_order(seed, epoch, count), draws, Mix.draw(augment, seed, epoch, copies))


class EpochBatches(keras.utils.PyDataset):
    """The batches of one training epoch, for `model.fit(batches, shuffle=False, epochs=1)`.

    Item `i` is batch `start + i` of the epoch: float32 images (B, h, w, 3) and int32 labels (B,), or each image's
    shares of the classes, float32 (B, classes), where the augmentation mixes images. It is a pure function of the
    images, the settings, `seed`, `epoch` and that number, the same whatever the workers and the order of access, so an
    epoch can be taken up again at any batch.

    Args:
        images: uint8 (N, H, W, 3), N at least 1; or `pictures.Originals`, which a random resized crop is cut from.
        labels: whole numbers (N,).
        preprocess: resizes and normalises (mean and std are per channel); its crop is the size of the result.
        augment: in this order crops (of what is resized, or a random resized crop of what is not), mirrors, changes
            colours, normalises, erases and mixes. Changed colours are whole levels, whatever `round_pixels` says.
        classes: how many there are; only mixing needs it. None: the largest label and one.
        batch_size: images in a batch; fewer images than that make one batch of all.
        seed, epoch: 0 or more; they choose the order and the augmentation.
        start: batches of the epoch to leave out from its beginning.
        drop_remainder: leave out the last batch if it is smaller.
        share: (rank, count): an item is only that part of its batch, of `count` equal ones that make it up.
        workers: threads that prepare so many batches ahead, and one more; 1: none is prepared ahead.

    Raises:
        ShiftViTError: no images, images or labels of another shape or dtype, or `start` beyond the epoch.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.integer[Any]],
        *,
        preprocess: Preprocess,
        augment: Augment,
        batch_size: int,
        classes: int | None = None,
        seed: int,
        epoch: int,
        start: int = 0,
        drop_remainder: bool = True,
        share: tuple[int, int] = (0, 1),
        workers: int = 1,
    ) -> None:
        # Keras is told of no workers: it takes a first batch to build the model with, begins again, and its own queue
        # then goes on from the batches that were ready.
        super().__init__(workers=1, use_multiprocessing=False)
        preprocess.check(images)
        if labels.shape != images.shape[:1]:
            raise ShiftViTError(
                f"labels have the shape {labels.shape}; {len(images)} images need ({len(images)},), one for each"
            )
        if not len(images):
            raise ShiftViTError("there are 0 images to train on; give at least 1")
        if batch_size < 1:
            raise ShiftViTError(f"batch_size={batch_size} holds no images; use at least 1")
        total = count_batches(len(images), batch_size, drop_remainder)
        if not 0 <= start <= total:
            raise ShiftViTError(
                f"start={start} is outside the epoch of {pluralize(total, 'batch', 'batches')}; use 0..{total}"
            )
        self._images, self._labels = images, labels
        self._preprocess, self._augment = preprocess, augment
        self._batch_size, self._start, self._total = batch_size, start, total
        self._rank, self._shares = share
        self._plan = plan_epoch(images.shape, preprocess, augment, seed, epoch)
        size = preprocess.output_shape(*images.shape[1:3])
        self._changes = PictureChanges(augment, preprocess, seed, epoch, size)
        self._threads = workers
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[Batch]] = {}
        self._lock, self._made, self._seconds = threading.Lock(), 0, 0.0
        self._classes = int(labels.max()) + 1 if classes is None else classes

    def __len__(self) -> int:
        """Returns how many batches are left, counted from `start`."""
        return self._total - self._start

    def __getitem__(self, index: int) -> Batch:
        """Returns batch `start + index`: float32 (B, h, w, 3) and int32 (B,) or float32 (B, classes)."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} is not among the {len(self)} left; use 0..{len(self) - 1}")
        if self._threads == 1:
            return self._prepare_timed(index)
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="batch")
            wanted = range(index, min(index + 1 + self._threads, len(self)))
            for early in self._ahead.keys() - set(wanted):
                self._ahead.pop(early).cancel()
            for number in wanted:
                if number not in self._ahead:
                    self._ahead[number] = self._pool.submit(self._prepare_timed, number)
            ready = self._ahead.pop(index)
            if index == len(self) - 1:
                self._pool.shutdown(wait=False)
                self._pool = None
        return ready.result()

    def _prepare_timed(self, index: int) -> Batch:
        began = time.perf_counter()
        batch = self._prepare(self._start + index)
        with self._lock:
            self._seconds += time.perf_counter() - began
            self._made += len(batch[0])
        return batch

    def indices(self, index: int) -> NDArray[np.int64]:
        """Returns which of the images are in batch `start + index`, all of it, int64 (B,)."""
        slots = self._plan.slots(self._start + index, self._batch_size, self._augment.repeats)
        return slots % len(self._images)

    @property
    def images_per_second(self) -> float:
        """How many images a second the workers can prepare, as measured so far; 0 before the first batch.

        It is what one worker does while it works (waiting for its turn does not count), times the workers
        that can run at once: `workers`, or the cores where these are fewer. Work beside them, such as the training on
        the same processor, slows them and shows in it.
        """
        with self._lock:
            alone = self._made / self._seconds if self._seconds else 0.0
        return alone * min(self._threads, count_cores())

    def _prepare(self, number: int) -> Batch:
        rule, changes, mix = self._preprocess, self._changes, self._plan.mix
        slots = self._own(self._plan.slots(number, self._batch_size, self._augment.repeats))
        indices = slots % len(self._images)
        images: NDArray[Any]
        if changes.cuts:
            images = changes.cut(self._images, indices, slots)
        else:
            images = self._images[indices]
            if rule.resize:
                images = rule.resized(images)
        images = self._augment(images, self._plan.draws[slots])
        if rule.round_pixels or changes.recolours:
            images = rule.rounded(images)
        if changes.recolours:
            changes.recolour(images, slots)
        normalised, labels = rule.normalised(images), self._labels[indices].astype(np.int32)
        if changes.erases:
            changes.erase(normalised, slots)
        if mix is None:
            return normalised, labels
        mixed, shares = mix(normalised, labels, slots, self._classes)
        return (mixed, shares) if self._shares == 1 else (mixed[1:], shares[1:])

    def _own(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns this share of a batch's slots; where images are mixed, led by that of the one before it."""
        if self._shares == 1:
            return slots
        count = len(slots)
        first, end = self._rank * count // self._shares, (self._rank + 1) * count // self._shares
        return slots[np.arange(first - (self._plan.mix is not None), end) % count]
