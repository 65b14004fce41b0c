"""`shiftvit predict` from PNG files to a written CSV, against what the runtime alone can do.

    python benchmarks/predict.py

10,000 files of CIFAR-10's test images, and the packaged model on the same images in memory, in turn; medians of 5. The
result goes to benchmarks/results/predict-DATE.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from record import write_record
from shiftvit.data import named
from shiftvit.inference.predict import BATCH_SIZE
from shiftvit.inference.runtimes import load_graph

ROUNDS = 5


def main() -> None:
    images = named.load("cifar10").test.images
    graph = load_graph("cifar10")
    graph.run(images[:BATCH_SIZE])
    pure, inner, whole = [], [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{index:05}.png")
        command = [
            sys.executable,
            "-m",
            "shiftvit",
            "predict",
            str(folder),
            "--format",
            "csv",
            "--out",
            f"{place}/rows",
        ]
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for first in range(0, len(images), BATCH_SIZE):
                graph.run(images[first : first + BATCH_SIZE])
            pure.append(len(images) / (time.perf_counter() - began))
            began = time.perf_counter()
            said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            whole.append(len(images) / (time.perf_counter() - began))
            inner.append(float(said.split(" images/s")[0].split()[-1].replace(",", "")))
    result = {
        "n": ROUNDS,
        "files": len(images),
        "runtime": graph.runtime,
        "runtime_alone": round(statistics.median(pure), 1),
        "files_to_csv": round(statistics.median(inner), 1),
        "whole_process": round(statistics.median(whole), 1),
        "share": round(statistics.median(a / b for a, b in zip(inner, pure, strict=True)), 4),
        "share_of_whole_process": round(statistics.median(a / b for a, b in zip(whole, pure, strict=True)), 4),
    }
    print(result)
    write_record("predict", result)


if __name__ == "__main__":
    main()
