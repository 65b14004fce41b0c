"""Measures memory and time to check a folder of 100,000 pictures, to train on it and to evaluate.

    python benchmarks/streaming.py

It writes CIFAR-10's training images, and their mirror images, as JPEG files of 160x120 pixels in class folders. Then it
runs `shiftvit data check`, one epoch of `shiftvit train --recipe photos` and `shiftvit evaluate`, each in a process
whose peak memory it records. Training decodes the files anew in each epoch, because they do not fit into the memory
that shiftvit uses for pictures. The result goes to benchmarks/results/streaming-DATE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from record import RESULTS, run_command, write_record
from shiftvit.data import named
from shiftvit.environment import count_cores

SIZE = (160, 120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    chosen = parser.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "torch")
    with tempfile.TemporaryDirectory() as place:
        folder, run = Path(place) / "pictures", Path(place) / "run"
        size = write_tree(folder, chosen.files)
        commands = {
            "check": (["data", "check", str(folder), "--json"], (0, 3)),
            "train": (["train", "--recipe", "photos", "--data", str(folder), "--epochs", "1", "--out", str(run)], (0,)),
            "evaluate": (["evaluate", str(run), "--json"], (0,)),
        }
        rows = {name: measure(arguments, allowed) for name, (arguments, allowed) in commands.items()}
        (epoch,) = map(json.loads, (run / "log.jsonl").read_text("utf-8").splitlines())
    result = {"files": chosen.files, "bytes": size, "picture": list(SIZE), **rows, "epoch": epoch}
    print(json.dumps({**rows, "epoch": epoch}, indent=1))
    write_record("streaming", result, folder=chosen.out)


def write_tree(folder: Path, count: int) -> int:
    """Writes `count` files in class folders; returns their bytes."""
    names = named.load("cifar10").class_names
    for name in names:
        (folder / name).mkdir(parents=True)
    parts = np.array_split(np.arange(count), 8 * count_cores())
    with ProcessPoolExecutor(count_cores()) as pool:
        return sum(pool.map(_write, [folder] * len(parts), [part.tolist() for part in parts]))


def _write(folder: Path, numbers: list[int]) -> int:
    data = named.load("cifar10")
    images, labels = data.train.images, data.train.labels
    total = 0
    for number in numbers:
        image = Image.fromarray(images[number % len(images)]).resize(SIZE, Image.Resampling.BICUBIC)
        path = folder / data.class_names[labels[number % len(images)]] / f"{number:06}.jpg"
        (ImageOps.mirror(image) if number // len(images) % 2 else image).save(path, quality=90)
        total += path.stat().st_size
    return total


def measure(arguments: list[str], allowed: tuple[int, ...]) -> dict[str, Any]:
    """Runs a command; returns its seconds and its peak memory in megabytes."""
    began = time.perf_counter()
    _, peak = run_command(arguments, allowed)
    row = {"seconds": round(time.perf_counter() - began, 1), "peak_megabytes": round(peak, 1)}
    print(arguments[:2], row, flush=True)
    return row


if __name__ == "__main__":
    main()
