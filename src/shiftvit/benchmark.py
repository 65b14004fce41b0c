"""Images per second, and their share of this machine's peak, measured in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from shiftvit.backend import limit_threads
from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.stored.find import is_model
from shiftvit.bundle.stored.published import PUBLISHED
from shiftvit.config import ModelConfig, TrainConfig
from shiftvit.environment import computes_bfloat16, describe_environment, find_device_name, measure_rates
from shiftvit.errors import ShiftViTError, check_at_least, suggest
from shiftvit.presets import PRESETS
from shiftvit.stages import list_stages

# Rows and columns of the matrices that measure the peak: large enough that overhead does not count.
_SIDE = 2048
_ACCELERATED_SIDE = 8192
# A backward pass has two matrix products for each one of the forward pass.
_TRAINING_FACTOR = 3
_PRECISIONS = get_args(TrainConfig.model_fields["precision"].annotation)


def benchmark(
    model: str = "cifar10",
    *,
    train: bool = False,
    batch_sizes: Sequence[int] = (1, 64),
    repeats: int = 5,
    seconds: float = 1.0,
    runtime: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> dict[str, Any]:
    """Measures a model on this machine.

    Args:
        model: a preset, a run folder, a bundle or the name of a packaged model; for prediction also an export.
        train: measure training steps (forward, backward, update) on the Keras backend, not prediction.
        batch_sizes: images per step.
        repeats: measurements for each batch size, after a warm-up.
        seconds: the least duration of each measurement.
        runtime: the prediction runtime; see `shiftvit.inference.runtimes`.
        precision: for training: "float32", "mixed_bfloat16" or "auto".
        threads: CPU threads of the model and of the peak. Backends other than torch cannot be limited. None: those of
            the runtime and the backend.

    Returns:
        `{"model", "mode", "runtime", "precision", "threads", "repeats", "peak_gflops", "gflop_per_image", "rows",
        "environment"}`; a row has `batch_size`, `images_per_second` (median), `minimum`, `maximum` and `share_of_peak`.
        The peak is that of square matrix products on the Keras backend, in the precision of training or float32. An
        export does not say what an image costs, so its `peak_gflops`, `gflop_per_image` and `share_of_peak` are None.

    Raises:
        ShiftViTError: there is no such model or precision, the model takes images of any size, or a batch size,
            `repeats` or `threads` is below 1.
    """
    if precision not in _PRECISIONS:
        raise ShiftViTError(f"there is no precision {precision!r}; {suggest(precision, _PRECISIONS)}")
    for size in batch_sizes:
        check_at_least("batch_size", size, 1, optional=False)
    check_at_least("repeats", repeats, 1, optional=False)
    check_at_least("threads", threads, 1)
    if threads is not None:
        limit_threads(threads)
    if train:
        config, shape, name, used, make_call = _prepare_training(model, precision)
    else:
        config, shape, name, used, make_call = _prepare_prediction(model, runtime, threads)
    if None in shape:
        raise ShiftViTError(f"{model!r} takes images of any size, so its cost is unknown; choose one with a fixed size")
    peak: float | None = None
    gflop: float | None = None
    if config is not None:
        peak = measure_peak_gflops("bfloat16" if used == "mixed_bfloat16" else "float32")
        products = [row["multiply_adds"] for row in list_stages(config)]
        gflop = 2 * sum(products) * (_TRAINING_FACTOR if train else 1) / 1e9
    rows = []
    for size in batch_sizes:
        rates = measure_rates(make_call(size), size, repeats, seconds)
        median = statistics.median(rates)
        rows.append(
            {
                "batch_size": size,
                "images_per_second": round(median, 1),
                "minimum": round(min(rates), 1),
                "maximum": round(max(rates), 1),
                "share_of_peak": None if peak is None or gflop is None else round(median * gflop / peak, 4),
            }
        )
    return {
        "model": model,
        "mode": "train" if train else "predict",
        "runtime": name,
        "precision": used,
        "threads": threads,
        "repeats": repeats,
        "peak_gflops": None if peak is None else round(peak, 1),
        "gflop_per_image": None if gflop is None else round(gflop, 4),
        "rows": rows,
        "environment": describe_environment(),
    }


def measure_peak_gflops(dtype: str, repeats: int = 5) -> float:
    """Returns the median rate of square matrix products on the Keras backend, in 1e9 operations per second."""
    from keras import ops

    side = _SIDE if find_device_name() == "cpu" else _ACCELERATED_SIDE
    a, b = (ops.cast(np.random.default_rng(seed).normal(size=(side, side)), dtype) for seed in (0, 1))

    def multiply() -> None:
        np.asarray(ops.convert_to_numpy(ops.cast(ops.matmul(a, b)[0, :1], "float32")))  # waits for the result

    rates = measure_rates(multiply, 1, repeats, 0.3)
    return statistics.median(rates) * 2 * side**3 / 1e9


# A model's configuration, or None for an export; the shape of an image; the runtime; the precision; and a function that
# for a batch size returns what is measured.
Prepared = tuple[ModelConfig | None, tuple[int | None, ...], str, str, Callable[[int], Callable[[], Any]]]


def _prepare_prediction(model: str, runtime: str, threads: int | None) -> Prepared:
    from shiftvit.inference.runtimes import identify, load_graph

    if model in PRESETS and not is_model(model):
        there = f", or run first: shiftvit pull {model}" if model in PUBLISHED else ""
        raise ShiftViTError(
            f"{model!r} is a preset, which has no weights to predict with; measure it with --train{there}"
        )
    graph = load_graph(model, runtime, threads)
    place, precision = identify(model)[1], graph.metadata.precision
    config = None if isinstance(place, Path) else Bundle.load(place.where).config

    def make_call(size: int) -> Callable[[], Any]:
        pixels = np.random.default_rng(0).integers(0, 256, (size, *graph.metadata.example_shape), np.uint8)
        return lambda: graph.run(pixels)

    return config, graph.metadata.input_shape, graph.runtime, "float32" if precision == "f32" else precision, make_call


def _prepare_training(model: str, precision: str) -> Prepared:
    import keras

    from shiftvit.model.network import ShiftViT
    from shiftvit.training.loss import SmoothedCrossentropy
    from shiftvit.training.optimizer import build_optimizer

    config = ModelConfig(**PRESETS[model].arguments) if model in PRESETS else Bundle.load(model).config
    used = ("mixed_bfloat16" if computes_bfloat16() else "float32") if precision == "auto" else precision
    net = ShiftViT(**config.get_arguments(), dtype=used)
    net.compile(optimizer=build_optimizer(TrainConfig(), 1_000_000), loss=SmoothedCrossentropy(0.1))

    def make_call(size: int) -> Callable[[], Any]:
        generator = np.random.default_rng(0)
        shape: tuple[Any, ...] = (size, *config.image_shape)
        images = generator.normal(size=shape).astype(np.float32)
        labels = generator.integers(0, config.num_classes, size)
        return lambda: net.train_on_batch(images, labels)  # returns the loss, so it waits for the step

    return config, config.image_shape, str(keras.config.backend()), used, make_call
