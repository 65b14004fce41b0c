"""From how many files on `shiftvit predict --engine ray` is quicker than one process, and the memory that Ray takes.

    python benchmarks/bulk.py                                # the packaged model, PNG files of CIFAR-10's test images
    python benchmarks/bulk.py shiftvit_tiny_r2 --images 512  # JPEG photographs of 500x375 pixels

Both engines classify few and many files, in turn, each as a process of its own: the difference gives the rate, and what
the rate leaves unexplained is the cost of starting. Medians of the rounds. For clusters of several such machines the
number of files is calculated from these, as if the rate grew with their number. The result goes to
benchmarks/results/bulk-MODEL-DATE.json.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from predict import photographs
from record import write_record
from shiftvit.data import named
from shiftvit.environment import cores

FEW = 16
MACHINES = (1, 2, 4, 10)


def tree_of(pid: int) -> list[int]:
    """Returns a process and all that it started, by their parents."""
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


def memory_of(pid: int) -> int:
    """Returns the bytes of memory that a process and all that it started take; what they share counts once."""
    total = 0
    for each in tree_of(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text("ascii").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def run(arguments: list[str]) -> tuple[float, int]:
    """Returns the seconds of a command from start to end, and the most memory that it was seen to take."""
    began, most = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, "-m", "shiftvit", *arguments], stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            most = max(most, memory_of(process.pid))
            time.sleep(0.3)
        seconds = time.perf_counter() - began
        assert process.stderr is not None
        if process.returncode:
            raise SystemExit(process.stderr.read())
    return seconds, most


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="cifar10")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[str, dict[int, list[float]]] = {engine: {FEW: [], options.images: []} for engine in ("local", "ray")}
    memory = dict.fromkeys(seconds, 0)
    with tempfile.TemporaryDirectory() as place:
        folders = {count: Path(place) / f"{count}" for count in (FEW, options.images)}
        for count, folder in folders.items():
            folder.mkdir()
            if options.model == "cifar10":
                for index, image in enumerate(named.load("cifar10").test.images[:count]):
                    Image.fromarray(image).save(folder / f"{index:05}.png")
            else:
                for index, picture in enumerate(photographs(count, 500, 375)):
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
    result = {}
    for engine, found in seconds.items():
        few, many = (statistics.median(found[count]) for count in (FEW, options.images))
        rate = (options.images - FEW) / (many - few)
        result[engine] = {"start_seconds": few - FEW / rate, "images_per_second": rate, "peak_bytes": memory[engine]}
    here, there = result["local"], result["ray"]
    pays = {}
    for machines in MACHINES:
        saved = 1 / here["images_per_second"] - 1 / (machines * there["images_per_second"])
        pays[machines] = round((there["start_seconds"] - here["start_seconds"]) / saved) if saved > 0 else None
    figures = {
        "model": options.model,
        "images": options.images,
        "cores": cores(),
        "rounds": options.rounds,
        "seconds": seconds,
        **result,
        "pays_from_images_calculated_by_machines": pays,
    }
    write_record(f"bulk-{options.model}", figures)


if __name__ == "__main__":
    main()
