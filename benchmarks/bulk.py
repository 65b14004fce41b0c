"""Measures from how many files on `shiftvit predict --engine ray` is faster than one process, and the memory of Ray.

    python benchmarks/bulk.py                                # the packaged model, PNG files of CIFAR-10's test images
    python benchmarks/bulk.py shiftvit_tiny_r2 --images 512  # JPEG photographs of 500x375 pixels

Both engines classify few and many files, in turn, each in a process. The difference gives the rate, and the rest of the
time is the cost of starting. All figures are medians of the rounds. The number of files for clusters of several such
machines is calculated from them, as if the rate grew with the number of machines. The result goes to
benchmarks/results/bulk-MODEL-DATE.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from predict import make_photographs
from record import write_record
from shiftvit.data import named
from shiftvit.environment import count_cores

FEW = 16
MACHINES = (1, 2, 4, 10)


def list_processes(pid: int) -> list[int]:
    """Returns a process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(entry.name))
    found, new = [], [pid]
    while new:
        found.append(new.pop())
        new += parents.get(found[-1], [])
    return found


def measure_memory(pid: int) -> int:
    """Returns the bytes of memory of a process and all its descendants; shared memory counts once."""
    total = 0
    for each in list_processes(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text("ascii").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def run(arguments: list[str]) -> tuple[float, int]:
    """Returns the seconds of a command from start to end, and its peak memory."""
    began, most = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, "-m", "shiftvit", *arguments], stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            most = max(most, measure_memory(process.pid))
            time.sleep(0.3)
        seconds = time.perf_counter() - began
        assert process.stderr is not None
        if process.returncode:
            raise SystemExit(process.stderr.read())
    return seconds, most


def fit_line(seconds: dict[int, float]) -> tuple[float, float]:
    """Returns the seconds to start, and the images per second after that.

    Args:
        seconds: number of images to seconds, for two runs.
    """
    (few, first), (many, last) = sorted(seconds.items())
    rate = (many - few) / (last - first)
    return first - few / rate, rate


def count_to_gain(result: dict[str, dict[str, float]], machines: int) -> int | None:
    """Returns the number of images from which on Ray on several machines is faster than one process; None: never."""
    here, there = result["local"], result["ray"]
    saved = 1 / here["images_per_second"] - 1 / (machines * there["images_per_second"])
    return round((there["start_seconds"] - here["start_seconds"]) / saved) if saved > 0 else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="cifar10")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[str, dict[int, list[float]]] = {engine: {FEW: [], options.images: []} for engine in ("local", "ray")}
    memory = dict.fromkeys(seconds, 0)
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as place:
        folders = {count: Path(place) / f"{count}" for count in (FEW, options.images)}
        for count, folder in folders.items():
            folder.mkdir()
            if options.model == "cifar10":
                for index, image in enumerate(named.load("cifar10").test.images[:count]):
                    Image.fromarray(image).save(folder / f"{index:05}.png")
            else:
                for index, picture in enumerate(make_photographs(count, 500, 375)):
                    picture.save(folder / f"{index:05}.jpg", quality=90)
        for number in range(options.rounds):
            for engine, found in seconds.items():
                for count, folder in folders.items():
                    out = f"{place}/{engine}-{count}-{number}" + (".jsonl" if engine == "local" else "")
                    took, most = run(
                        ["predict", str(folder), "--model", options.model, "--engine", engine, "--out", out]
                    )
                    found[count].append(took)
                    memory[engine] = max(memory[engine], most)
    rounds = [
        {engine: fit_line({count: took[number] for count, took in found.items()}) for engine, found in seconds.items()}
        for number in range(options.rounds)
    ]
    result = {
        engine: {
            "start_seconds": statistics.median(each[engine][0] for each in rounds),
            "images_per_second": statistics.median(each[engine][1] for each in rounds),
            "peak_bytes": memory[engine],
        }
        for engine in seconds
    }
    pays = {machines: count_to_gain(result, machines) for machines in MACHINES}
    figures = {
        "model": options.model,
        "images": options.images,
        "cores": count_cores(),
        "rounds": options.rounds,
        "load_average_before": load,
        "seconds": seconds,
        **result,
        "pays_from_images_calculated_by_machines": pays,
    }
    write_record(f"bulk-{options.model}", figures)


if __name__ == "__main__":
    main()
