"""Exports of the packaged model, each made once for all tests, and the answers to compare them with."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import shared
from sample import load_sample, replace_splits
from shiftvit import Bundle
from shiftvit.data import named
from shiftvit.data.find.dataset import Split
from shiftvit.environment import find_device_name
from shiftvit.exports import export
from shiftvit.exports.formats import FORMATS
from tensors import BACKEND

# The backend whose graphs this process can build. Graphs are built on the CPU only.
BUILDS = BACKEND if find_device_name() == "cpu" else None

COMBINATIONS = [(name, precision) for name, row in FORMATS.items() for precision in row.precisions]
SINGLE = [name for name, row in FORMATS.items() if "f32" in row.precisions]


@dataclass(frozen=True, eq=False)
class Answers:
    """Images uint8 (N, 32, 32, 3), their labels (N,), and the model's probabilities (N, 10)."""

    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


def compute_probabilities(bundle: Bundle, images: np.ndarray) -> np.ndarray:
    """Returns the model's answers in float64 from its float32 logits, without any code of the exports."""
    mean, std = (np.asarray(value, np.float32) for value in (bundle.preprocess.mean, bundle.preprocess.std))
    model = bundle.build("float32")
    parts = np.array_split(images, -(-len(images) // 400))
    logits = np.concatenate([np.asarray(model.predict_on_batch((part - mean) / std)) for part in parts])
    powers = np.exp((logits.astype(np.float64) - logits.max(axis=1, keepdims=True)) / bundle.temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@functools.cache
def load_answers() -> Answers:
    """Returns the 2,000 images that the model is surest about, of the sample and its mirrored and shifted copies.

    Rounding alone hardly ever changes the predicted class of these, so a difference points to a fault. The cost of a
    precision is measured on the real test images.
    """

    def make(place: Path) -> None:
        answers = _choose_answers()
        np.savez(
            place / "arrays.npz", images=answers.images, labels=answers.labels, probabilities=answers.probabilities
        )

    with np.load(shared.make_once("answers", make) / "arrays.npz") as arrays:
        return Answers(**arrays)


def _choose_answers() -> Answers:
    sample = load_sample()
    images = np.concatenate([sample.train.images, sample.test.images])
    images = np.concatenate([images, images[:, :, ::-1]])
    images = np.concatenate([images, np.roll(images, 1, axis=1), np.roll(images, -1, axis=2)])
    labels = np.resize(np.concatenate([sample.train.labels, sample.test.labels]), len(images))
    probabilities = compute_probabilities(Bundle.load("cifar10"), images)
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    chosen = np.sort(np.argsort(second - first, kind="stable")[:2000])
    return Answers(images[chosen], labels[chosen], probabilities[chosen])


def skip_if_missing(name: str, precision: str = "f32") -> None:
    """Skips the test if a package that a format needs is not installed."""
    missing = [module for module in FORMATS[name].list_modules(precision) if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")


def make_export(name: str, precision: str = "f32") -> Path:
    """Returns the folder of an export of the packaged model, made by `export.export`. Tests must not change it.

    Each is made once in a test run. One process for each backend builds them, and another one runs the gate.
    `test_gate.py` shows that `export.export` itself starts two processes each time.
    """
    skip_if_missing(name, precision)
    return shared.make_once(f"{name}-{precision}", functools.partial(_write_export, name, precision)) / "export"


def _write_export(name: str, precision: str, place: Path) -> None:
    data = replace_splits(load_sample(), test=Split(load_answers().labels, images=load_answers().images))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(named._LOADERS, "cifar10", lambda: data)
        patch.setattr(export, "_run_step", run_step)
        export.export("cifar10", name, precision, out=place / "export")


def run_step(step: str, job: Path, backend: str) -> str:
    """Runs a step in a process that may have run others, and whose current folder may be another."""
    settings = json.loads(job.read_text("utf-8"))
    settings |= {name: str(Path(settings[name]).absolute()) for name in ("bundle", "artifact")}
    settings["seconds"] = min(settings.get("seconds", 0.01), 0.01)  # measures the speed as usual, but briefly
    job.write_text(json.dumps(settings), "utf-8")
    process = _start_process(*(("gate", "torch") if step == "gate" else (step, backend)))
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{step} {job}\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline() or "{}")
    except BrokenPipeError:
        answer = {}
    if "said" not in answer:
        if not answer:  # the process died, so the next step starts another
            _start_process.cache_clear()
        raise AssertionError(f"{step} failed: {answer.get('fault', 'its process ended')}")
    return str(answer["said"])


@functools.cache
def _start_process(kind: str, backend: str) -> subprocess.Popen[str]:
    """Starts a process for building under a backend, or for the gate."""
    with (shared.find_folder() / f"{kind}-{backend}-{os.getpid()}.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("export_steps.py"))],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    atexit.register(process.communicate)  # the process ends with its input
    return process


def find_artifact(name: str, precision: str = "f32") -> Path:
    return make_export(name, precision) / FORMATS[name].artifact
