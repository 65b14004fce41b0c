"""Makes the batches of a training epoch for Keras `fit`."""

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
from shiftvit.preprocess import Floats, Preprocess, shrink

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
    """Returns the order of an epoch's images, int64 (count,), which depends on these three numbers alone."""
    return np.random.default_rng([seed, epoch, _STREAM]).permutation(count)


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The random decisions of an epoch.

    Attributes:
        order: the order of its images, int64 (N,).
        draws: the crop and the flip of each copy of an image; those of copy `c` of image `i` are at `c * N + i`.
        mix: the mixing of each copy, in the same places.
    """

    order: NDArray[np.int64]
    draws: Draws
    mix: Mix | None

    def find_slots(self, number: int, batch_size: int, repeats: int = 1) -> NDArray[np.int64]:
        """Returns the places of a batch's images among the draws, int64 (B,): the batch is [a b c ... a b c ...].

        A batch has `batch_size / repeats` different images, rounded up, and an epoch 1 / `repeats` of all images.
        Copies that do not fit into a batch begin the next one. Neighbours are mixed, so copies are not neighbours; only
        in batches of a few images may the first and the last be. Source: Hoffer et al., "Augment Your Batch" (2020),
        section 3; the length of an epoch is that of Touvron et al., "DeiT" (2021).
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
        draws = augment.draw(seed, epoch, copies, *crop)  # a random resized crop already has the final size
    else:
        # A crop that is not random is that of inference.
        draws = augment.draw(seed, epoch, copies, *resized, crop, preprocess.crop_origin(*resized))
    return EpochPlan(draw_order(seed, epoch, count), draws, Mix.draw(augment, seed, epoch, copies))


class EpochBatches(keras.utils.PyDataset):
    """The batches of one training epoch, for `model.fit(batches, shuffle=False, epochs=1)`.

    Item `i` is batch `start + i` of the epoch: float32 images (B, h, w, 3) and int32 labels (B,), or each image's
    shares of the classes, float32 (B, classes), if the augmentation mixes images. It depends only on the images, the
    settings, `seed`, `epoch` and its number, not on the workers or the order of access, so an epoch can be resumed at
    any batch.

    Args:
        images: uint8 (N, H, W, 3), N at least 1; or `pictures.Originals`, to cut random resized crops from.
        labels: whole numbers (N,).
        preprocess: resizes and normalises (mean and std are per channel); its crop is the size of the result.
        augment: the steps are, in this order: crop (the resized image, or a random resized crop of the original),
            mirror, change colours, normalise, erase, mix. Changed colours are whole levels, whatever `round_pixels` is.
        classes: the number of classes, which only mixing needs. None: the largest label plus one.
        batch_size: images per batch. If there are fewer images, all are one batch.
        seed, epoch: 0 or more; they determine the order and the augmentation.
        start: the number of batches to skip at the beginning of the epoch.
        drop_remainder: leave out the last batch if it is smaller.
        size: (height, width) in pixels that the finished images are shrunk to; None: they are not.
        share: (rank, count): an item is only part `rank` of its batch, which is divided into `count` equal parts.
        workers: threads, which prepare as many batches ahead and one more; 1: no batch is prepared ahead.

    Raises:
        ShiftViTError: there are no images, images or labels have another shape or dtype, or `start` is beyond the
            epoch.
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
        size: tuple[int, int] | None = None,
        share: tuple[int, int] = (0, 1),
        workers: int = 1,
    ) -> None:
        # Keras' own workers are not used: it takes a first batch to build the model, then begins again, and its queue
        # would go on behind the batches that were prepared.
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
        whole = preprocess.output_shape(*images.shape[1:3])
        self._changes = PictureChanges(augment, preprocess, seed, epoch, whole)
        self._size = None if size == whole else size
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

    def find_indices(self, index: int) -> NDArray[np.int64]:
        """Returns the indices of all images in batch `start + index`, int64 (B,)."""
        slots = self._plan.find_slots(self._start + index, self._batch_size, self._augment.repeats)
        return slots % len(self._images)

    @property
    def images_per_second(self) -> float:
        """The images per second that the workers can prepare, as measured so far; 0 before the first batch.

        That is the speed of one worker while it works, times the number of workers that can run at once: `workers`, or
        the number of cores if that is smaller. Other work on the same processor, such as training, makes it lower.
        """
        with self._lock:
            alone = self._made / self._seconds if self._seconds else 0.0
        return alone * min(self._threads, count_cores())

    def _prepare(self, number: int) -> Batch:
        images, labels = self._prepare_whole(number)
        return (images if self._size is None else shrink(images, *self._size)), labels

    def _prepare_whole(self, number: int) -> Batch:
        rule, changes, mix = self._preprocess, self._changes, self._plan.mix
        slots = self._take_share(self._plan.find_slots(number, self._batch_size, self._augment.repeats))
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

    def _take_share(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns this share of a batch's slots. If images are mixed, the slot before it comes first."""
        if self._shares == 1:
            return slots
        count = len(slots)
        first, end = self._rank * count // self._shares, (self._rank + 1) * count // self._shares
        return slots[np.arange(first - (self._plan.mix is not None), end) % count]
