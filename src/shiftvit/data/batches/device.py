"""Keeps the training images on the accelerator, and cuts and mixes the batches of an epoch there.

The batches are those of `EpochBatches`, from the same draws: once an epoch, NumPy draws a few numbers for each image,
and only these go to the device. Native indexing and `keras.ops` make one definition for torch and jax.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from shiftvit.augment.augment import Augment
from shiftvit.data.batches.host import plan_epoch
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess

# Tensors on the device by name: what is the same in every epoch, such as the images, or the draws of an epoch.
Tensors = dict[str, Any]

# The number of images that are resized at a time, so that their floats take little memory.
_CHUNK = 1024


def check_changes(augment: Augment) -> None:
    """Raises ShiftViTError if the augmentation has a change that only the host can make."""
    if augment.on_host_only:
        name = augment.on_host_only[0]
        raise ShiftViTError(
            f"augment.{name}={getattr(augment, name)} works only on the host; leave it at its default, or set "
            "train.loop=fit"
        )


class ResidentImages:
    """All training images on the device.

    Args:
        images: uint8 (N, H, W, 3).
        labels: whole numbers (N,).
        preprocess, augment, classes: as for `EpochBatches`.

    Raises:
        ShiftViTError: as for `EpochBatches`, or a change that only the host can make.

    Attributes:
        constants: the tensors for `make_batch` that are the same in every epoch.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[Any], preprocess: Preprocess, augment: Augment, classes: int
    ) -> None:
        preprocess.check(images)
        check_changes(augment)
        self._preprocess, self._augment, self._classes = preprocess, augment, classes
        self._count, self._shape = len(images), images.shape
        if preprocess.resize:
            images = self._resize(images)
        size = preprocess.output_shape(*self._shape[1:3])
        self.constants: Tensors = {
            "images": _to_device(images),
            "labels": _to_device(labels.astype(np.int32)),
            "mean": _to_device(np.broadcast_to(np.asarray(preprocess.mean, np.float32), 3)),
            "std": _to_device(np.broadcast_to(np.asarray(preprocess.std, np.float32), 3)),
            "rows": _to_device(np.arange(size[0], dtype=np.int32)),
            "columns": _to_device(np.arange(size[1], dtype=np.int32)),
            "classes": _to_device(np.eye(classes, dtype=np.float32)),
        }

    def _resize(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        # Rounded images are stored as bytes. Cropping and mirroring only move pixels, so they may come afterwards.
        rule = self._preprocess
        parts = []
        for first in range(0, len(images), _CHUNK):
            part = rule.resized(images[first : first + _CHUNK])
            parts.append(rule.rounded(part).astype(np.uint8) if rule.round_pixels else part)
        return np.concatenate(parts)

    def draw(self, seed: int, epoch: int) -> Tensors:
        """Returns an epoch's draws on the device: the order of the images, their crops, mirroring and mixing."""
        plan = plan_epoch(self._shape, self._preprocess, self._augment, seed, epoch)
        draws = {"order": plan.order, "top": plan.draws.top, "left": plan.draws.left, "flip": plan.draws.flip}
        if plan.mix is not None:
            size = self._preprocess.output_shape(*self._shape[1:3])
            draws |= {"share": plan.mix.share.astype(np.float32), "bounds": plan.mix.compute_bounds(*size)}
        narrow = {np.dtype(np.int64): np.int32, np.dtype(bool): np.int32}
        return {name: _to_device(value.astype(narrow.get(value.dtype, value.dtype))) for name, value in draws.items()}

    def make_batch(self, constants: Tensors, draws: Tensors, places: Any) -> tuple[Any, Any]:
        """Makes a batch on the device. It may be compiled, because it reads only the values of its arguments.

        Args:
            constants: the attribute of that name.
            draws: the result of `draw`.
            places: the places of the batch's images in the epoch, whole numbers (B,).

        Returns:
            float32 (B, h, w, 3), and int32 labels (B,), or if the augmentation mixes images, the share of each class in
            their labels, float32 (B, classes).
        """
        index = draws["order"][places]
        images = self._cut(constants, draws, index)
        images = (ops.cast(images, "float32") - constants["mean"]) / constants["std"]
        labels = constants["labels"][index]
        if "share" not in draws:
            return images, labels
        return self._mix(constants, images, labels, draws["share"][index], draws["bounds"][index])

    def _mix(self, constants: Tensors, images: Any, labels: Any, share: Any, bounds: Any) -> tuple[Any, Any]:
        """Mixes each image with the one before it in the batch, and their classes in the same proportion.

        Args:
            constants: as for `make_batch`.
            images, labels: float32 (B, h, w, 3) and int32 (B,).
            share: the weight of an image outside its box, float32 (B,): below 1 for MixUp, 1 for CutMix.
            bounds: the box that the other image fills, int32 (B, 4): first and end row, first and end column.
        """
        first_row, end_row, first_column, end_column = (bounds[:, side, None] for side in range(4))
        in_rows = (constants["rows"] >= first_row) & (constants["rows"] < end_row)  # (B, h)
        in_columns = (constants["columns"] >= first_column) & (constants["columns"] < end_column)  # (B, w)
        outside = ~(in_rows[:, :, None] & in_columns[:, None, :])  # (B, h, w)
        kept = (share[:, None, None] * outside)[..., None]  # of each pixel, (B, h, w, 1)
        images = images * kept + ops.roll(images, 1, axis=0) * (1 - kept)
        kept = ops.mean(kept, axis=(1, 2))  # of each image, (B, 1)
        shares = constants["classes"][labels]  # (B, classes)
        return images, shares * kept + ops.roll(shares, 1, axis=0) * (1 - kept)

    def _cut(self, constants: Tensors, draws: Tensors, index: Any) -> Any:
        """Crops and mirrors, by the source of each pixel of the result."""
        height, width = constants["images"].shape[1:3]
        flip = draws["flip"][index][:, None]
        columns = constants["columns"]
        columns = columns * (1 - flip) + (len(columns) - 1 - columns) * flip  # (B, w)
        columns = columns + draws["left"][index][:, None] - self._augment.pad
        rows = constants["rows"] + draws["top"][index][:, None] - self._augment.pad  # (B, h)
        inside = None
        if self._augment.pad and self._augment.pad_mode == "zeros":
            inside = _is_within(rows, height)[:, :, None] & _is_within(columns, width)[:, None, :]
        rows, columns = _reflect(rows, height), _reflect(columns, width)
        images = constants["images"][index[:, None, None], rows[:, :, None], columns[:, None, :]]
        return images if inside is None else images * inside[..., None]


def _is_within(lines: Any, extent: int) -> Any:
    return (lines >= 0) & (lines < extent)


def _reflect(lines: Any, extent: int) -> Any:
    """Maps lines outside the image to lines 0..extent-1, as if the image was mirrored at its edges again and again."""
    period = max(2 * extent - 2, 1)
    folded = abs(lines) % period
    return folded + (folded >= extent) * (period - 2 * folded) if extent > 1 else lines * 0


def _to_device(value: NDArray[Any]) -> Any:
    return ops.convert_to_tensor(np.ascontiguousarray(value))
