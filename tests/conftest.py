"""Shared by all tests: chooses the backend before anything imports Keras, and limits the threads."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

import shared

# Keras' own default is tensorflow, whatever is installed; a run for another backend sets the variable.
os.environ.setdefault("KERAS_BACKEND", "torch")
# The processor is the same everywhere, and each worker would take a share of the only GPU; see `test_accelerator.py`.
if not os.environ.get("SHIFTVIT_TEST_ACCELERATOR"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
# TensorFlow greets on stderr, where the tests look for messages of their own.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many workers as cores: more threads would only wait for each other. What the tests start inherits it.
    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ.setdefault(f"{name}_NUM_THREADS", "1")
    for name in ("INTRAOP", "INTEROP"):
        os.environ.setdefault(f"TF_NUM_{name}_THREADS", "1")
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

# A shell ignores SIGINT in what it runs in the background, and children inherit that: tests that send it would wait.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The time of an example depends on the machine. A failing example is printed so that it can be run again.
settings.register_profile("shiftvit", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("shiftvit")

# The slowest files, the slowest first. If one of them started last, the other workers would be idle meanwhile.
LONGEST = (
    *("test_exports", "test_processes", "test_backends", "test_bulk", "test_pull_full", "test_stopped", "test_gate"),
    *("test_readme", "test_demo", "test_train", "test_finetune", "test_lesson"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_configure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:  # the one process, or the one that starts the workers after this
        os.environ[shared.VARIABLE] = tempfile.mkdtemp(prefix="shiftvit-tests-")
        # Not where whoever runs them keeps pulled models.
        os.environ["SHIFTVIT_DATA"] = str(shared.find_folder() / "data")
        # The processes on jax compile the same functions, most of them small; each is compiled once in a run.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(shared.find_folder() / "jax")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        # With a limit, the processes lock what they read and write.
        os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**30)


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(shared.find_folder(), ignore_errors=True)


@pytest.fixture(scope="module")
def sample() -> Any:
    """The committed CIFAR-10 images, a data set."""
    from sample import load_sample

    return load_sample()


@pytest.fixture(scope="module")
def images(sample: Any) -> Any:
    """Its test images."""
    return sample.test.images


@pytest.fixture(scope="module")
def predictor() -> Any:
    """The bundled model as it answers by default."""
    from shiftvit import Predictor

    return Predictor.from_pretrained("cifar10")


@pytest.fixture(scope="module")
def plain_figures() -> Iterator[list[Any]]:
    """Saves a white point instead of each figure, for tests of other things; returns the figures."""
    from matplotlib.figure import Figure

    figures: list[Any] = []

    def savefig(self: Figure, path: Path, **_: Any) -> None:
        figures.append(self)
        Image.new("RGB", (1, 1), "white").save(path, "PNG")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield figures


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures of matplotlib that are saved from here on."""
    from matplotlib.figure import Figure

    found: list[Any] = []
    original = Figure.savefig

    def savefig(self: Figure, *arguments: Any, **named: Any) -> None:
        found.append(self)
        original(self, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found
