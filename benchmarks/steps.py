"""Measures training steps of this package and of the same model in plain Keras layers, in turn in one process.

    KERAS_BACKEND=torch python benchmarks/steps.py keras_example --batch-size 128 --set dropout=0 drop_path=0

Both use AdamW and the same loss, batch and precision, and must have the same number of parameters. Each round times one
after the other, so that other work on the machine affects both alike. The result has medians, and the median of the
rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import keras
import numpy as np

from plain_keras import build_plain_model
from record import write_record
from shiftvit.benchmark import measure_peak_gflops
from shiftvit.config import ModelConfig, TrainConfig, validate
from shiftvit.environment import computes_bfloat16
from shiftvit.model.network import ShiftViT
from shiftvit.presets import find_preset
from shiftvit.stages import list_stages
from shiftvit.training.loss import SmoothedCrossentropy
from shiftvit.training.optimizer import build_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset", nargs="?", default="keras_example")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="a round")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "mixed_bfloat16"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="arguments of the model")
    arguments = parser.parse_args()
    changes = {key: json.loads(value) for key, _, value in (item.partition("=") for item in arguments.set)}
    config = validate(ModelConfig, {**find_preset(arguments.preset).arguments, **changes}, "--set")
    precision = arguments.precision
    if precision == "auto":
        precision = "mixed_bfloat16" if computes_bfloat16() else "float32"
    generator = np.random.default_rng(0)
    shape = [side or 224 for side in config.image_shape]
    images = generator.normal(size=(arguments.batch_size, *shape)).astype(np.float32)
    labels = generator.integers(0, config.num_classes, arguments.batch_size)
    models = {
        "shiftvit": ShiftViT(**config.get_arguments(), dtype=precision),
        "plain Keras": build_plain_model(config, precision),
    }
    counts = {name: model.count_params() for name, model in models.items()}
    assert len(set(counts.values())) == 1, counts
    rates: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.compile(optimizer=build_optimizer(TrainConfig(), 1_000_000), loss=SmoothedCrossentropy())
        for _ in range(2):
            model.train_on_batch(images, labels)
    for _ in range(arguments.rounds):
        for name, model in models.items():
            began = time.perf_counter()
            for _ in range(arguments.steps):
                model.train_on_batch(images, labels)
            rates[name].append(arguments.steps * arguments.batch_size / (time.perf_counter() - began))
    peak = measure_peak_gflops("bfloat16" if precision == "mixed_bfloat16" else "float32")
    gflop = 6 * sum(row["multiply_adds"] for row in list_stages(config)) / 1e9
    medians = {name: statistics.median(values) for name, values in rates.items()}
    suffix = "".join(f"-{key}{value}" for key, value in sorted(changes.items()))
    result = {
        "preset": arguments.preset,
        "changes": changes,
        "precision": precision,
        "batch_size": arguments.batch_size,
        "n": arguments.rounds,
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "spread": {name: [round(min(values), 1), round(max(values), 1)] for name, values in rates.items()},
        "ratio": round(statistics.median(a / b for a, b in zip(*rates.values(), strict=True)), 3),
        "peak_gflops": round(peak, 1),
        "gflop_per_image": round(gflop, 4),
        "share_of_peak": {name: round(value * gflop / peak, 4) for name, value in medians.items()},
    }
    print(json.dumps({key: result[key] for key in ("images_per_second", "ratio", "share_of_peak")}))
    write_record(f"steps-{arguments.preset}{suffix}-{keras.config.backend()}", result)


if __name__ == "__main__":
    main()
