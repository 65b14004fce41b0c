"""Continues a training that ran out of memory, by computing each batch in twice as many parts."""

from __future__ import annotations

import gc
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from shiftvit.config import TrainConfig
from shiftvit.data.find.dataset import Split
from shiftvit.errors import ShiftViTError, notice, pluralize
from shiftvit.evaluation.logits import BATCH_SIZE, predict_logits
from shiftvit.recipes.recipe import Recipe
from shiftvit.training.processes import Processes

_MOST_HALVINGS = 3

# How torch (on CUDA and on a processor), jax and tensorflow report it.
_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "RESOURCE_EXHAUSTED", "ALLOC_FAILED")
_NAMES = ("OutOfMemoryError", "ResourceExhaustedError")


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that memory ran out, in Python, NumPy, torch, jax or tensorflow."""
    if isinstance(error, MemoryError) or type(error).__name__ in _NAMES:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def halve_parts(recipe: Recipe, halvings: int, *, how: str = "shiftvit train --resume RUN --auto-batch") -> Recipe:
    """Returns the recipe with `train.accumulate` doubled, so that a part has half the images, and prints a notice.

    Args:
        recipe: the resolved recipe with which memory ran out.
        halvings: how many times its parts were halved before.
        how: what allows it, for the message.

    Raises:
        ShiftViTError: the recipe does not allow it (`train.auto_batch`), the parts were already halved 3 times, or a
            part has a single image.
    """
    settings = recipe.train
    height, width = recipe.model.image_shape[:2]
    at_once = -(-settings.batch_size // settings.accumulate)
    most = "up to " if settings.initial_scale < 1 else ""
    fault = f"out of memory with {pluralize(at_once, 'image')} of {most}{height} x {width} pixels at once"
    if not settings.auto_batch:
        raise ShiftViTError(
            f"{fault}; continue in smaller parts with {how}, or start again with a smaller train.batch_size or "
            "preprocess.resize"
        )
    if halvings == _MOST_HALVINGS or at_once == 1:
        raise ShiftViTError(
            f"{fault}, even after {halvings} halvings; lower train.batch_size={settings.batch_size}, the resolution "
            "(preprocess.resize and crop) or the model's size"
        )
    parts = min(2 * settings.accumulate, settings.batch_size)
    fewer = pluralize(-(-settings.batch_size // parts), "image")
    notice(f"{fault}; continuing with {fewer} at a time, in {parts} parts per batch")
    return recipe.model_copy(update={"train": settings.model_copy(update={"accumulate": parts})})


def predict_together(processes: Processes, model: Any, split: Split, settings: TrainConfig) -> NDArray[np.float32]:
    """Returns a model's logits of a split, float32 (N, classes); each process computes its share of the images.

    If training computes a batch in parts, this evaluates no more images at once than a part has.
    """
    in_parts = settings.accumulate > 1
    logits = predict_logits(
        processes.local(model),
        split.images,
        split.preprocess,
        batch_size=min(BATCH_SIZE, -(-settings.batch_size // settings.accumulate)) if in_parts else None,
        rows=processes.share(len(split)),
    )
    return processes.gather(logits)


def free_memory() -> None:
    """Frees the memory of unused models, whose reference cycles hold it until the garbage collector runs."""
    gc.collect()
    if keras.config.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
