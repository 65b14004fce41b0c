"""Set-up of all tests: chooses the backend before anything imports Keras, limits threads, and defines fixtures."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

import shared

# Keras defaults to TensorFlow even where it is not installed. Set KERAS_BACKEND to test another backend than torch.
os.environ.setdefault("KERAS_BACKEND", "torch")
# Tests run on the CPU, which every machine has, and where workers do not share one GPU. See `test_accelerator.py`.
if not os.environ.get("SHIFTVIT_TEST_ACCELERATOR"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
# TensorFlow logs to stderr, where tests look for shiftvit's messages.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if "PYTEST_XDIST_WORKER" in os.environ:
    # There are as many workers as cores, so more threads would only wait. Child processes inherit these settings.
    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ.setdefault(f"{name}_NUM_THREADS", "1")
    for name in ("INTRAOP", "INTEROP"):
        os.environ.setdefault(f"TF_NUM_{name}_THREADS", "1")
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

# A shell makes background jobs ignore SIGINT, and children inherit that. Tests that send SIGINT would wait forever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline, because times depend on the machine. `print_blob` prints how to run a failing example again.
settings.register_profile("shiftvit", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("shiftvit")

# The slowest test files, slowest first. If one of them started last, the other workers would be idle meanwhile.
LONGEST = (
    *("test_exports", "test_processes", "test_backends", "test_bulk", "test_demo", "test_stopped", "test_pull_full"),
    *("test_accumulation", "test_train", "test_docs", "test_explain", "test_lesson", "test_gate", "test_readme"),
    *("test_scaling", "test_finetune", "test_page", "test_imagenet", "test_cli_predict", "test_device", "test_start"),
    "test_network",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    # Each training begins with a garbage collection, which would otherwise visit all objects of the frameworks.
    gc.collect()
    gc.freeze()


def pytest_configure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:  # the only process, or the one that starts the workers
        os.environ[shared.VARIABLE] = tempfile.mkdtemp(prefix="shiftvit-tests-")
        # Not the folder where the user keeps pulled models.
        os.environ["SHIFTVIT_DATA"] = str(shared.find_folder() / "data")
        # Processes on jax compile the same functions, most of them small. Each is compiled once in a run.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(shared.find_folder() / "jax")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        # Processes lock the cache only if its size is limited.
        os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**30)


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(shared.find_folder(), ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _hidden_tensorflow() -> Iterator[None]:
    """Keeps Keras from importing TensorFlow to set a seed and to save a layer, which takes seconds."""
    if "keras" not in sys.modules:  # of the test files that were collected, none needs it
        yield
        return
    from shiftvit.backend import hide_tensorflow

    with hide_tensorflow():
        yield


@pytest.fixture(scope="module", autouse=True)
def _frozen_imports() -> Iterator[None]:
    """Keeps garbage collections from visiting what a test file imported, such as another framework."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 100:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="module")
def sample() -> Any:
    """The data set of the committed CIFAR-10 images."""
    from sample import load_sample

    return load_sample()


@pytest.fixture(scope="module")
def images(sample: Any) -> Any:
    """The test images of the sample."""
    return sample.test.images


@pytest.fixture(scope="module")
def predictor() -> Any:
    """A predictor of the bundled model with the default settings."""
    from shiftvit import Predictor

    return Predictor.from_pretrained("cifar10")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures for the bulk engine, some of them damaged."""
    from bulk_runs import write_photos

    return write_photos(tmp_path_factory.mktemp("bulk") / "photos")


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file of pictures for the bulk engine."""
    from bulk_runs import write_shard

    return write_shard(tmp_path_factory.mktemp("shards") / "train.parquet")


@pytest.fixture(scope="module")
def plain_figures() -> Iterator[list[Any]]:
    """The figures that were saved, for tests of other things: each file holds one white pixel, which is fast."""
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
    """The matplotlib figures that were saved. They are written as usual."""
    from matplotlib.figure import Figure

    saved: list[Any] = []
    original = Figure.savefig

    def savefig(self: Figure, *arguments: Any, **named: Any) -> None:
        saved.append(self)
        original(self, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved
