"""Trains in several processes of this machine, and collects what each leaves."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from logs import read_log

WORKER = Path(__file__).with_name("process_worker.py")
SETTINGS = {
    "data.validation": 0.2,
    "data.test": 0.2,
    "preprocess.resize": 18,
    "preprocess.crop": 16,
    "model.patch_size": 4,
    "model.embed_dim": 24,
    "model.depths": "[1, 1]",
    "model.dropout": 0.0,
    "model.drop_path": 0.0,
    "augment.pad": 2,
    "augment.mixup": 0.4,
    "augment.cutmix": 1.0,
    "train.epochs": 2,
    "train.batch_size": 12,
    "train.precision": "float32",
    "train.ema": 0.9,
    "train.optimizer.name": "muon",
    "train.optimizer.learning_rate": 0.003,
    "train.optimizer.clipnorm": 1.0,
    "train.select": "last",
}
# The entries of the log and the metrics that differ from run to run.
VARYING_KEYS = {
    "seconds",
    "images_per_second",
    "input_images_per_second",
    "reduced_bytes_per_step",
    "waited_seconds_per_step",
}


@dataclass
class Outcome:
    """What ended processes leave: their exit statuses, their outputs, and what each recorded."""

    status: list[int]
    outputs: list[str]
    run: Path
    seconds_after_fault: float | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    weights: list[dict[str, Any]] = field(default_factory=list)

    def load_log(self) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key not in VARYING_KEYS} for row in read_log(self.run)]

    def load_metrics(self) -> dict[str, Any]:
        found = json.loads((self.run / "metrics.json").read_text())
        found["train"] = {key: value for key, value in found["train"].items() if key not in VARYING_KEYS}
        return found

    def list_images(self) -> dict[str, list[str]]:
        """Returns the hashes of the images and labels of each batch of each epoch, those of process 0 first."""
        keys = self.records[0]["images"]
        return {key: [image for record in self.records for image in record["images"][key]] for key in keys}


def find_free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class ForkServer:
    """Forks processes that have already imported torch or jax. It starts with the first training."""

    process: subprocess.Popen[str] | None = None

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def run(self, job: dict[str, Any], during: Callable[[Path], None]) -> list[int]:
        """Starts the processes of a job, calls `during` with their folder, and returns their statuses at the end."""
        if self.process is None:
            command = [sys.executable, str(WORKER)]
            environment = {**os.environ, "KERAS_BACKEND": self.backend, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        try:
            during(Path(job["settings"]).parent)
        finally:  # otherwise the next job would get this answer
            status: list[int] = json.loads(self.process.stdout.readline())
        return status

    def stop(self) -> None:
        if self.process is not None:
            self.process.communicate()
            self.process = None


fork_servers = {backend: ForkServer(backend) for backend in ("torch", "jax")}


def train_in(
    count: int,
    run: Path,
    arguments: Sequence[str],
    *,
    fault: dict[str, Any] | None = None,
    backend: str = "torch",
    timeout: float = 240,
    networks: Sequence[str] = (),
    during: Callable[[Path], None] = lambda _: None,
    environment: dict[str, str] | None = None,
) -> Outcome:
    """Trains in `count` processes of this machine. Kills them after a time limit, or when only stopped ones remain.

    `fault` names the rank, the epoch and step, and the kind of a fault that the process causes itself: "signal" (with
    the number as "signal"), "nan", "memory", or "wait" for the test. `networks` names the network namespace of each
    process, and `during` is called with the folder of the records while they run.
    """
    place = run.parent / f"{run.name}-record-{time.monotonic_ns()}"
    place.mkdir(parents=True)
    settings = {"run": str(run), "record": str(place), "arguments": [*arguments], "fault": fault}
    (place / "settings.json").write_text(json.dumps(settings))
    shared = {
        "KERAS_BACKEND": backend,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_port()),
        **(environment or {}),
    }
    files = [place / f"output{rank}" for rank in range(count)]
    job = {
        "settings": str(place / "settings.json"),
        "outputs": [*map(str, files)],
        "environment": shared,
        "timeout": timeout,
        "networks": [*networks],
    }
    status = fork_servers[backend].run(job, during)
    # Leaves out the greetings of libraries.
    outputs = [
        re.sub(r"(?m)^(WARNING: All log|[IWE]\d{4} |\[W\d{4} |\[Gloo\]).*\n", "", path.read_text()) for path in files
    ]
    found = Outcome(status, outputs, run)
    if (place / "fault").is_file():
        found.seconds_after_fault = time.time() - (place / "fault").stat().st_mtime
    for rank in range(count):
        if (place / f"record{rank}.json").is_file():
            found.records.append(json.loads((place / f"record{rank}.json").read_text()))
        if (place / f"weights{rank}.npz").is_file():
            found.weights.append(dict(np.load(place / f"weights{rank}.npz")))
    return found


# How far the weights may be from those of one process.
TOLERANCE = {"torch": 1e-4, "jax": 1e-5}


def compute_max_difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    assert first.keys() == second.keys()
    return max(float(np.abs(first[key] - second[key]).max()) for key in first)


def write_pictures(folder: Path) -> Path:
    """Writes 24 small pictures of each of three colours, one folder per colour."""
    generator = np.random.default_rng(0)
    for place in range(3):
        (folder / f"class{place}").mkdir(parents=True)
        for number in range(24):
            pixels = generator.integers(0, 150, (18, 18, 3), np.uint8)
            pixels[..., place] += 100
            Image.fromarray(pixels).save(folder / f"class{place}" / f"{number}.png")
    return folder


def make_arguments(pictures: Path, run: Path, **changes: Any) -> list[str]:
    settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in changes.items()}}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["--recipe", "photos", "--data", str(pictures), "--out", str(run), *sets]


Train = Callable[..., Outcome]
