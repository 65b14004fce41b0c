"""What to do when memory runs out in training: compute each batch in twice as many parts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import keras

from shiftvit.config import TrainConfig
from shiftvit.errors import ShiftViTError, notice
from shiftvit.evaluation.logits import BATCH_SIZE
from shiftvit.recipes.recipe import Recipe

# Doublings of `train.accumulate` in one go.
TRIES = 3

# How torch (on CUDA, on a processor), jax and tensorflow, each in its own words, tell it.
_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "RESOURCE_EXHAUSTED", "ALLOC_FAILED")
_NAMES = ("OutOfMemoryError", "ResourceExhaustedError")


class OutOfMemory(Exception):
    """Too little memory was found."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy, torch, jax or tensorflow says that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ in _NAMES:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


@contextmanager
def told_apart() -> Iterator[None]:
    """Raises `OutOfMemory` in place of what a framework raises; any other error stays as it is."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # Without the cause: its frames hold the very tensors that must go.
        raise OutOfMemory(" ".join(str(error).split())[:200]) from None


def in_smaller_parts(recipe: Recipe, tries: int) -> Recipe:
    """Returns the recipe with `train.accumulate` doubled, and says so.

    Args:
        recipe: resolved, with which memory ran out.
        tries: how often it has been doubled already.

    Raises:
        ShiftViTError: the recipe does not allow it, or it has been done often enough.
    """
    settings = recipe.train
    height, width = recipe.model.image_shape[:2]
    at_once = -(-settings.batch_size // settings.accumulate)
    fault = f"out of memory with {at_once} images of {height} x {width} pixels at once"
    if not settings.auto_batch:
        raise ShiftViTError(
            f"{fault}; go on in smaller parts: shiftvit train --resume RUN --auto-batch, or begin anew with a smaller "
            "train.batch_size or preprocess.resize"
        )
    if tries == TRIES or at_once == 1:
        raise ShiftViTError(
            f"{fault}, after {tries} halvings; lower train.batch_size={settings.batch_size}, the resolution "
            "(preprocess.resize and crop) or the model's size"
        )
    parts = min(2 * settings.accumulate, settings.batch_size)
    notice(f"{fault}; going on with {-(-settings.batch_size // parts)}, {parts} parts a batch")
    return recipe.model_copy(update={"train": settings.model_copy(update={"accumulate": parts})})


def evaluated_at_once(settings: TrainConfig) -> int | None:
    """Returns how many images to evaluate at a time: where batches are in parts, no more than are in one."""
    return None if settings.accumulate == 1 else min(BATCH_SIZE, -(-settings.batch_size // settings.accumulate))


def free() -> None:
    """Gives back what no longer has an owner; models are in cycles, which only the collector ends."""
    gc.collect()
    if keras.config.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
