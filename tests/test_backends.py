"""torch, jax and tensorflow compute the same, read each other's files, and train: one process for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shiftvit.backend import BACKENDS, installed_backends

WORKER = Path(__file__).parent / "backend_worker.py"
NORMS = ("group", "layer", "batch")
every_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the worker found on each installed backend, or the end of what it said when it failed."""
    folder = tmp_path_factory.mktemp("backends")
    workers = {}
    for backend in installed_backends():
        with (folder / f"{backend}.log").open("w") as log:
            workers[backend] = subprocess.Popen(
                [sys.executable, str(WORKER), str(folder)],
                env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
    try:
        # Each loads what the others saved, so all of them save first.
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
    found = {}
    for backend in workers:
        path = folder / f"{backend}.json"
        if path.is_file():
            found[backend] = json.loads(path.read_text("utf-8"))
        else:
            found[backend] = (folder / f"{backend}.log").read_text("utf-8", "replace")[-3000:]
    return found


def of(results: dict[str, Any], backend: str) -> dict[str, Any]:
    if backend not in results:
        pytest.skip(f"{backend} is not installed")
    assert isinstance(results[backend], dict), f"the worker on {backend} failed:\n{results[backend]}"
    return results[backend]


@every_backend
def test_published_numbers_come_out(results: dict[str, Any], backend: str) -> None:
    parity = of(results, backend)["parity"]
    assert parity.keys() == {"official_gn1", "official_bn_relu", "keras_example"}
    assert all(difference <= 2e-4 for found in parity.values() for difference in found.values()), parity


@pytest.mark.parametrize("form", ["bundle", "keras"])
@pytest.mark.parametrize("writer", BACKENDS)
@every_backend
def test_saved_models_are_the_same_everywhere(results: dict[str, Any], backend: str, writer: str, form: str) -> None:
    loaded, written = of(results, backend)["loaded"], of(results, writer)["logits"]
    for norm in NORMS:
        logits = np.array(loaded[f"{writer}/{form}/{norm}"])
        assert np.ptp(logits) > 0.1
        np.testing.assert_allclose(logits, written[norm], rtol=0, atol=1e-4)


@every_backend
def test_training_lowers_the_loss(results: dict[str, Any], backend: str) -> None:
    training = of(results, backend)["training"]
    losses = training["losses"]
    assert len(losses) == 4
    assert np.isfinite([*losses, training["test"]]).all()
    assert losses[-1] < losses[0] - 0.05, losses
