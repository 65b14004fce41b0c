"""Results of torch, jax and tensorflow, computed once per test run, in one process each."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shared
from shiftvit.backend import list_installed_backends

WORKER = Path(__file__).with_name("backend_worker.py")


def read_results(backend: str) -> dict[str, Any]:
    """Returns the worker's JSON, with its arrays by name under `explain`."""
    if backend not in list_installed_backends():
        pytest.skip(f"{backend} is not installed")
    return _read(shared.make_once("backends", _run_workers), backend)


@functools.cache
def _read(folder: Path, backend: str) -> dict[str, Any]:
    path = folder / f"{backend}.json"
    if not path.is_file():
        log = (folder / f"{backend}.log").read_text("utf-8", "replace")
        pytest.fail(f"the worker on {backend} failed:\n{log[-3000:]}")
    with np.load(folder / f"{backend}.npz") as arrays:
        return {**json.loads(path.read_text("utf-8")), "explain": dict(arrays)}


def _run_workers(folder: Path) -> None:
    workers = {}
    for backend in list_installed_backends():
        with (folder / f"{backend}.log").open("w") as stream:
            workers[backend] = subprocess.Popen(
                [sys.executable, str(WORKER), str(folder)],
                env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
    try:
        # Each worker loads the files of the others, so all save before any goes on.
        saved = [backend for backend, worker in workers.items() if "saved\n" in iter(worker.stdout.readline, "")]
        for backend in saved:
            workers[backend].stdin.write(" ".join(saved) + "\n")
            workers[backend].stdin.flush()
        for worker in workers.values():
            worker.communicate()
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
