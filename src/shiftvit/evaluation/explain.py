"""Explains predictions by Grad-CAM, occlusion and class activation.

Grad-CAM uses gradients, at the coarse resolution of a stage's map. Occlusion runs the model again with a part of the
image covered. Where both agree, the explanation is more reliable than either alone. A class activation map is exact and
cheap for a linear head, and needs no framework.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.metadata import fit_batch
from shiftvit.errors import ShiftViTError, suggest, to_one_line
from shiftvit.evaluation.metrics import check_finite

Floats = NDArray[np.float32]
Classes = Sequence[int] | NDArray[np.integer[Any]]

# The most images in a batch; fewer if they are large.
BATCH_SIZE = 128


def grad_cam(model: Any, images: Floats, classes: Classes | None = None, stage: str | None = None) -> Floats:
    """Returns how much each place of a stage's map supports a class (Selvaraju et al., ICCV 2017, equations 1 and 2).

    The map is the sum of the stage's channels, each weighted by the mean gradient of the class's logit; negative
    values are set to 0.

    Args:
        model: a `ShiftViT` with a head.
        images: preprocessed, float32 `(N, H, W, 3)`.
        classes: the class to explain for each image, `(N,)`; None: the predicted classes.
        stage: a name of `model.backbone.pyramid_outputs`, such as "P3"; None: the last, with the coarsest map.

    Returns:
        float32 `(N, h, w)`, the size of the stage's map, from 0 to 1. The maximum of each image is 1, or 0 if nothing
        supports the class.

    Raises:
        ShiftViTError: images or classes do not fit the model, there is no such stage, the model has no head, or it
            returns NaN.
    """
    chosen = _check(model, images, classes)
    body, tail = split_model(model, stage)
    if chosen is None:
        chosen = predict_probabilities(model, images).argmax(axis=1)
    weights = np.eye(model.output_shape[-1], dtype=np.float32)[chosen]  # (N, C)
    gradient = _make_gradient(tail)
    found = []
    size = _choose_size(images, len(images))
    for batch, wanted in zip(_cut_batches(images, size), _cut_batches(weights, size), strict=True):
        maps = np.asarray(body.predict_on_batch(batch), np.float32)  # (B, h, w, K)
        importance = gradient(maps, wanted).mean(axis=(1, 2), keepdims=True)  # equation 1: (B, 1, 1, K)
        found.append(np.maximum((maps * importance).sum(axis=-1), 0))  # equation 2: (B, h, w)
    if not found:
        return np.zeros((0, *body.output_shape[1:3]), np.float32)
    return _scale(np.concatenate(found)[: len(images)])


def class_activation_map(maps: Floats, weights: Floats) -> Floats:
    """Returns how much each position contributes to a class's logit (Zhou et al., CVPR 2016, equation 2).

    The head takes the mean of the maps over all positions, so the mean of the contributions is the logit without its
    bias. Unlike Grad-CAM this needs no gradient. Negative values are set to 0.

    Args:
        maps: the last feature map, float32 `(N, h, w, K)`.
        weights: the head's weights for each image's class, float32 `(N, K)`.

    Returns:
        float32 `(N, h, w)`, scaled as by `grad_cam`.
    """
    return _scale(np.maximum(np.einsum("nhwk,nk->nhw", maps, weights), 0))


def occlusion(
    model: Any,
    images: Floats,
    classes: Classes | None = None,
    *,
    patch: int = 8,
    stride: int = 4,
    fill: float = 0.0,
    temperature: float = 1.0,
) -> Floats:
    """Returns how much a class's probability drops where the image is covered (Zeiler and Fergus, ECCV 2014, 4.2).

    A square covers the image at every `stride` pixels and at the far edges. A pixel's value is the mean drop over the
    squares that cover it; it is negative where covering makes the class more probable.

    Args:
        model: a `ShiftViT` with a head.
        images: preprocessed, float32 `(N, H, W, 3)`.
        classes: the class to explain for each image, `(N,)`; None: the predicted classes.
        patch: the square's side in pixels.
        stride: how far the square moves, in pixels, at most `patch`.
        fill: the square's value, in preprocessed units: 0 is the mean.
        temperature: the bundle's; divides the logits.

    Returns:
        float32 `(N, H, W)`, from -1 to 1.

    Raises:
        ShiftViTError: images or classes do not fit the model, the square does not fit the image, or the model
            returns NaN.
    """
    chosen = _check(model, images, classes)
    count, height, width, _ = images.shape
    if not 1 <= patch <= min(height, width):
        raise ShiftViTError(f"patch={patch} must be from 1 to {min(height, width)}, the image's shorter side")
    if not 1 <= stride <= patch:
        raise ShiftViTError(f"stride={stride} must be from 1 to patch={patch}, so that no pixel is skipped")
    corners = [
        (top, left) for top in _find_starts(height, patch, stride) for left in _find_starts(width, patch, stride)
    ]

    def cover() -> Iterator[Floats]:
        for image in images:
            for top, left in corners:
                copy = image.copy()
                copy[top : top + patch, left : left + patch] = fill
                yield copy

    # One stream, so that all batches have the same size and jax and tensorflow compile once.
    runs = count * (1 + len(corners))
    outputs = predict_probabilities(
        model, itertools.chain(images, cover()), runs, size=_choose_size(images, runs), temperature=temperature
    )
    check_finite(outputs)
    if chosen is None:
        chosen = outputs[:count].argmax(axis=1)
    rows = np.arange(count)
    hidden = outputs[count:].reshape(count, len(corners), outputs.shape[1])[rows, :, chosen]  # (N, corners)
    drops = outputs[rows, chosen][:, None] - hidden
    total = np.zeros((count, height, width))
    covers = np.zeros((height, width))
    for (top, left), drop in zip(corners, drops.T, strict=True):
        total[:, top : top + patch, left : left + patch] += drop[:, None, None]
        covers[top : top + patch, left : left + patch] += 1
    return np.asarray(total / covers, np.float32)


def split_model(model: Any, stage: str | None = None) -> tuple[Any, Callable[[Any], Any]]:
    """Splits a classifier after a stage.

    Args:
        model: a `ShiftViT` with a head.
        stage: a name of `model.backbone.pyramid_outputs`; None: the last.

    Returns:
        a `keras.Model` from images `(N, H, W, 3)` to the stage's map `(N, h, w, C)`, and a function from tensors of
        such maps to logits `(N, num_classes)` at inference. Both share the model's weights.

    Raises:
        ShiftViTError: there is no such stage.
    """
    import keras

    backbone = model.backbone
    stages = list(backbone.pyramid_outputs)
    if stage is not None and stage not in stages:
        raise ShiftViTError(f"there is no stage {stage!r}; {suggest(stage, stages)}")
    number = stages.index(stage) + 1 if stage else len(stages)
    body = keras.Model(backbone.input, backbone.pyramid_outputs[stages[number - 1]])
    names = [layer.name for layer in backbone.layers]
    last = names.index(f"stage{number}_block{backbone.settings.depths[number - 1]}")
    behind = [*backbone.layers[last + 1 :], *(model.get_layer(name) for name in ("pool", "head", "logits"))]

    # A function, because a second `keras.Model` would add nodes to the layers at every call.
    def tail(maps: Any) -> Any:
        for layer in behind:
            maps = layer(maps)
        return maps

    return body, tail


def predict_probabilities(
    model: Any,
    images: Iterable[Floats],
    count: int | None = None,
    *,
    size: int | None = None,
    temperature: float = 1.0,
) -> Floats:
    """Returns the classes' probabilities, float32 `(N, C)`, for preprocessed images `(N, H, W, 3)`.

    Args:
        model: a `ShiftViT` with a head.
        images: an array or, with `count` and `size`, an iterable of float32 (H, W, 3).
        count: number of images; None: `len(images)`.
        size: images in a batch; None: as many as bounded memory allows.
        temperature: the bundle's; divides the logits.
    """
    from scipy.special import softmax

    count = len(images) if count is None else count  # type: ignore[arg-type]
    logits = [np.zeros((0, model.output_shape[-1]), np.float32)]
    size = _choose_size(images, count) if size is None else size  # type: ignore[arg-type]
    logits += [np.asarray(model.predict_on_batch(batch), np.float32) for batch in _cut_batches(images, size)]
    result: Floats = softmax(np.concatenate(logits)[:count] / np.float32(temperature), axis=1)
    return result


def _scale(heat: Floats) -> Floats:
    """Divides each map (N, h, w) by its maximum, unless that is 0."""
    check_finite(heat)
    largest = heat.max(axis=(1, 2), keepdims=True)
    return np.asarray(heat / np.where(largest > 0, largest, 1), np.float32)


def check_classes(classes: Classes, images: int, number: int) -> NDArray[np.int64]:
    """Returns the class to explain for each image as an array (N,).

    Raises:
        ShiftViTError: there is not one class for each of so many `images`, or one is not among the `number` of classes.
    """
    chosen = np.asarray(classes)
    fits = chosen.shape == (images,) and (chosen.dtype.kind in "iu" or not chosen.size)
    if not fits or (chosen.size and not 0 <= chosen.min() <= chosen.max() < number):
        raise ShiftViTError(
            f"classes={to_one_line(np.array2string(chosen, threshold=8))} must be {images} whole numbers, 0 to "
            f"{number - 1}: one for each image"
        )
    return chosen.astype(np.int64)


def _check(model: Any, images: Any, classes: Classes | None) -> NDArray[np.int64] | None:
    """Checks the arguments; returns the classes as an array, if given."""
    number = model.settings.num_classes
    if not number:
        raise ShiftViTError("the model has no classes (num_classes=0), so nothing can be explained; train a head")
    size = model.input_shape[1:]
    fits = isinstance(images, np.ndarray) and images.dtype == np.float32 and images.ndim == 4
    if not fits or not all(side in (None, given) for side, given in zip(size, images.shape[1:], strict=True)):
        kind = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        takes = ", ".join("any" if side is None else str(side) for side in size)
        raise ShiftViTError(f"images are {kind}; the model takes float32 (N, {takes}); pass the output of Preprocess")
    return None if classes is None else check_classes(classes, len(images), number)


def _choose_size(images: Floats, count: int) -> int:
    """Returns how many of `count` images of this size a batch has, so that its memory is bounded."""
    return min(BATCH_SIZE, fit_batch(*images.shape[1:3]), count)


def _cut_batches(rows: Iterable[Floats], size: int) -> Iterator[Floats]:
    """Stacks rows into batches. The last one is padded with zeros, because another size would be compiled again."""
    remaining = iter(rows)
    while batch := list(itertools.islice(remaining, size)):
        yield np.stack(batch + [np.zeros_like(batch[0])] * (size - len(batch)))


def _find_starts(extent: int, patch: int, stride: int) -> list[int]:
    """Returns the positions of squares along a side: every `stride` pixels, and at the far edge."""
    return sorted({*range(0, extent - patch + 1, stride), extent - patch})


def _make_gradient(tail: Callable[[Any], Any]) -> Callable[[Floats, Floats], Floats]:
    """Returns a function that computes the gradient of `sum(tail(maps) * weights)` with respect to the maps."""
    import keras

    def score(maps: Any, weights: Any) -> Any:
        return keras.ops.sum(tail(maps) * weights)

    if keras.config.backend() == "jax":
        import jax

        compiled = jax.jit(jax.grad(score))
        return lambda maps, weights: np.asarray(compiled(maps, weights))

    def gradient(maps: Floats, weights: Floats) -> Floats:
        tensor = keras.ops.convert_to_tensor(maps)
        if keras.config.backend() == "torch":
            import torch

            tensor.requires_grad_(True)
            with torch.enable_grad():
                (found,) = torch.autograd.grad(score(tensor, keras.ops.convert_to_tensor(weights)), tensor)
        else:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                tape.watch(tensor)
                total = score(tensor, weights)
            found = tape.gradient(total, tensor)
        return np.asarray(keras.ops.convert_to_numpy(found))

    return gradient
