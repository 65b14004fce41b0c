"""Measures what each choice for speed gains: a training step with it and without it, in turn.

    KERAS_BACKEND=torch python benchmarks/choices.py

The model, optimizer and batch are those of the recipe `cifar10`, and for dropout those of the Keras example. Each round
times both variants once, so that other work on the machine affects both alike; a ratio is the median of the rounds'
ratios. Keeping freed memory concerns the whole process, so it is measured in separate processes, in turn. The result
goes to benchmarks/results/choices-DATE.json.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import keras
import numpy as np

from record import write_record
from shiftvit.config import ModelConfig
from shiftvit.environment import computes_bfloat16, keep_freed_memory
from shiftvit.model import blocks, products, shift
from shiftvit.model.network import ShiftViT
from shiftvit.presets import find_preset
from shiftvit.recipes.recipe import Recipe
from shiftvit.training import optimizer
from shiftvit.training.loss import SmoothedCrossentropy

ROUNDS, STEPS = 9, 4


def main() -> None:
    if sys.argv[1:]:
        if sys.argv[1] == "kept":
            assert keep_freed_memory()
        step = make_step("shiftvit_cifar")
        print(time_steps(step, 4 * STEPS))
        return
    # Each context switches a choice off: the shift in slices, linear layers as matrix products, Keras' own dropout.
    by_slices = partial(mock.patch.object, shift, "_shift_by_convolution", shift._shift_by_slices)
    by_products = partial(mock.patch.object, products, "CAN_CONVOLVE", False)
    keras_dropout = partial(mock.patch.object, blocks, "Dropout", keras.layers.Dropout)
    found = {
        "all variables at once": compare("shiftvit_cifar", one_by_one),
        "the shift as a convolution": compare("shiftvit_cifar", by_slices),
        "ReLU for GELU": compare(
            "shiftvit_cifar", other=lambda: make_step("shiftvit_cifar", activation="relu"), flip=True
        ),
        "linear layers as convolutions": compare("shiftvit_cifar", by_products, precision="float32"),
        "linear layers as convolutions, quick": compare("shiftvit_cifar_tiny", by_products, precision="float32"),
        "cheap dropout": compare("keras_example", keras_dropout, batch=128),
        "freed memory kept": compare_processes(),
    }
    write_record("choices", {"n": ROUNDS, "choices": found})


def make_step(preset: str, batch: int = 250, precision: str | None = None, **changes: Any) -> Callable[[], Any]:
    """Returns a training step of a freshly built model, by default in the precision that training uses here."""
    config = ModelConfig(**{**find_preset(preset).arguments, **changes})
    precision = precision or ("mixed_bfloat16" if computes_bfloat16() else "float32")
    model = ShiftViT(**config.get_arguments(), dtype=precision)
    settings = Recipe.load("cifar10").train
    rule = optimizer.build_optimizer(settings, 1_000_000, bfloat16=precision != "float32")
    model.compile(optimizer=rule, loss=SmoothedCrossentropy(0.1))
    shape = [side or 224 for side in config.image_shape]
    generator = np.random.default_rng(0)
    images = generator.normal(size=(batch, *shape)).astype(np.float32)
    labels = generator.integers(0, config.num_classes, batch)
    for _ in range(3):
        model.train_on_batch(images, labels)
    return lambda: model.train_on_batch(images, labels)


@contextlib.contextmanager
def one_by_one() -> Iterator[None]:
    """Makes the optimizer update the variables one by one, as Keras does."""
    names = ("_backend_update_step", "_apply_weight_decay")
    before = {name: getattr(optimizer.Muon, name) for name in names}
    for name in names:
        setattr(optimizer.Muon, name, getattr(keras.optimizers.Muon, name))
    try:
        yield
    finally:
        for name in names:
            delattr(optimizer.Muon, name)
        assert {name: getattr(optimizer.Muon, name) for name in names} == before


def compare(
    preset: str,
    without: Callable[[], Any] = contextlib.nullcontext,
    *,
    other: Callable[[], Any] | None = None,
    flip: bool = False,
    batch: int = 250,
    precision: str | None = None,
) -> dict[str, Any]:
    """Times steps with a choice and without it; the ratio says how much faster it makes them."""
    ours = make_step(preset, batch, precision)
    with without():
        theirs = other() if other else make_step(preset, batch, precision)
    pairs = []
    for _ in range(ROUNDS):
        mine = time_steps(ours, STEPS)
        with without():
            pairs.append((mine, time_steps(theirs, STEPS)))
    return summarize([(b, a) if flip else (a, b) for a, b in pairs])


def compare_processes() -> dict[str, Any]:
    """Times steps in processes that keep freed memory and that do not."""
    pairs = []
    for _ in range(5):
        pair = []
        for word in ("kept", "freed"):
            command = [sys.executable, __file__, word]
            answer = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
            pair.append(float(answer.stdout.split()[-1]))
        pairs.append((pair[0], pair[1]))
    return summarize(pairs)


def time_steps(step: Callable[[], Any], count: int) -> float:
    """Returns the mean seconds of a step."""
    began = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - began) / count


def summarize(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Returns medians in milliseconds and the median of the ratios."""
    row = {
        "with_ms": round(1e3 * statistics.median(a for a, _ in pairs), 1),
        "without_ms": round(1e3 * statistics.median(b for _, b in pairs), 1),
        "ratio": round(statistics.median(b / a for a, b in pairs), 3),
        "ratio_spread": [round(min(b / a for a, b in pairs), 3), round(max(b / a for a, b in pairs), 3)],
        "n": len(pairs),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
