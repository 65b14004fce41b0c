"""Compares `shiftvit predict`, from image files to a CSV, with the runtime alone.

    python benchmarks/predict.py                                     # the packaged model, 10,000 PNG files of CIFAR-10
    python benchmarks/predict.py shiftvit_tiny_r2 --images 256       # JPEG photographs of 500x375 pixels
    python benchmarks/predict.py shiftvit_tiny_r2 --images 256 --size 4032x3024

It measures the files, and the model on as many images in memory, in turn, and takes medians of the rounds. Speed does
not depend on the weights, so a checkpoint with random values, pulled with --from, serves as well. The result goes to
benchmarks/results/predict-DATE.json, or predict-MODEL-SIZE-DATE.json.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from record import write_record
from shiftvit.data import named
from shiftvit.environment import count_cores
from shiftvit.inference.batches import BATCH_SIZE
from shiftvit.inference.runtimes import load_graph


def make_photographs(count: int, width: int, height: int) -> Iterator[Image.Image]:
    """Yields pictures with as much detail as photographs: a JPEG has about two bits per pixel."""
    random = np.random.default_rng(0)
    for _ in range(count):
        coarse, fine = (
            Image.fromarray(random.integers(0, 256, (height // part, width // part, 3), np.uint8)) for part in (40, 4)
        )
        size = width, height
        yield Image.blend(coarse.resize(size, Image.Resampling.BICUBIC), fine.resize(size), 0.15)


def measure_processor_seconds(whose: int) -> float:
    """Returns the processor time of this process, or of the children that have ended."""
    usage = resource.getrusage(whose)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="cifar10")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", default="500x375", help="of the photographs, WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    graph = load_graph(options.model)
    packaged = options.model == "cifar10"
    pure, inner, whole = [], [], []
    spent: dict[str, list[float]] = {"runtime_alone": [], "whole_process": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        if packaged:
            images = named.load("cifar10").test.images[: options.images]
            for index, image in enumerate(images):
                Image.fromarray(image).save(folder / f"{index:05}.png")
        else:
            width, height = map(int, options.size.split("x"))
            for index, picture in enumerate(make_photographs(options.images, width, height)):
                picture.save(folder / f"{index:05}.jpg", quality=90)
            shape = [options.images, *(side or 224 for side in graph.metadata.input_shape)]
            images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        stored = sum(entry.stat().st_size for entry in folder.iterdir()) // len(images)
        graph.run(images[:BATCH_SIZE])
        command = [sys.executable, "-m", "shiftvit", "predict", str(folder), "--model", options.model]
        command += ["--format", "csv", "--out", f"{place}/rows"]
        for _ in range(options.rounds):
            began, used = time.perf_counter(), measure_processor_seconds(resource.RUSAGE_SELF)
            for first in range(0, len(images), BATCH_SIZE):
                graph.run(images[first : first + BATCH_SIZE])
            pure.append(len(images) / (time.perf_counter() - began))
            spent["runtime_alone"].append(measure_processor_seconds(resource.RUSAGE_SELF) - used)
            began, used = time.perf_counter(), measure_processor_seconds(resource.RUSAGE_CHILDREN)
            said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            whole.append(len(images) / (time.perf_counter() - began))
            spent["whole_process"].append(measure_processor_seconds(resource.RUSAGE_CHILDREN) - used)
            inner.append(len(images) / float(said.split(" images in ")[1].split(" s,")[0]))
    result = {
        "n": options.rounds,
        "model": options.model,
        "files": len(images),
        "bytes_per_file": stored,
        **({} if packaged else {"size": options.size}),
        "runtime": graph.runtime,
        "cores": count_cores(),
        "runtime_alone": round(statistics.median(pure), 1),
        "files_to_csv": round(statistics.median(inner), 1),
        "whole_process": round(statistics.median(whole), 1),
        "rounds": {
            "runtime_alone": [round(rate, 1) for rate in pure],
            "files_to_csv": [round(rate, 1) for rate in inner],
        },
        # Of all cores; what else runs on the machine changes it less than the rates.
        "processor_ms_per_image": {
            name: [round(1000 * seconds / len(images), 1) for seconds in times] for name, times in spent.items()
        },
        "share": round(statistics.median(a / b for a, b in zip(inner, pure, strict=True)), 4),
        "share_of_whole_process": round(statistics.median(a / b for a, b in zip(whole, pure, strict=True)), 4),
    }
    print(result)
    write_record("predict" if packaged else f"predict-{options.model}-{options.size}", result)


if __name__ == "__main__":
    main()
