"""The packaged model's exports, each made once for all tests that look at it, and what they are compared with."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import logging
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sample import load_sample
from shiftvit import Bundle
from shiftvit.data import named
from shiftvit.data.find.dataset import Split
from shiftvit.environment import device_name
from shiftvit.exports import build, driver
from shiftvit.exports.formats import FORMATS
from tensors import BACKEND

# The backend whose graphs this process can build: they are built on the processor.
BUILDS = BACKEND if device_name() == "cpu" else None

_fresh_child = driver._child
COMBINATIONS = [(name, precision) for name, row in FORMATS.items() for precision in row.precisions]
SINGLE = [name for name, row in FORMATS.items() if "f32" in row.precisions]


@dataclass(frozen=True, eq=False)
class Answers:
    """Images uint8 (N, 32, 32, 3), their labels (N,), and the model's probabilities (N, 10)."""

    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


def probabilities(bundle: Bundle, images: np.ndarray) -> np.ndarray:
    """The model's answers in float64 around its own float32 logits: nothing of the exports' code takes part."""
    mean, std = (np.asarray(value, np.float32) for value in (bundle.preprocess.mean, bundle.preprocess.std))
    model = bundle.build("float32")
    parts = np.array_split(images, -(-len(images) // 400))
    logits = np.concatenate([np.asarray(model.predict_on_batch((part - mean) / std)) for part in parts])
    powers = np.exp((logits.astype(np.float64) - logits.max(axis=1, keepdims=True)) / bundle.temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@functools.cache
def answers() -> Answers:
    """2,000 images of which the model is surest among the sample's, mirrored and moved by a pixel.

    What a precision costs is measured on the real test images. Here it is told that nothing else goes wrong, best where
    a rounding does not decide.
    """
    sample = load_sample()
    images = np.concatenate([sample.train.images, sample.test.images])
    images = np.concatenate([images, images[:, :, ::-1]])
    images = np.concatenate([images, np.roll(images, 1, axis=1), np.roll(images, -1, axis=2)])
    labels = np.resize(np.concatenate([sample.train.labels, sample.test.labels]), len(images))
    found = probabilities(Bundle.load("cifar10"), images)
    second, first = np.sort(found, axis=1)[:, -2:].T
    surest = np.sort(np.argsort(second - first, kind="stable")[:2000])
    return Answers(images[surest], labels[surest], found[surest])


def exported(name: str, precision: str = "f32") -> Path:
    """Returns the folder of an export of the packaged model, made by `driver.export`; not to be changed.

    What this process can build it does, having imported half of what that takes; the gate has a fresh one, as always.
    """
    return _made(name, precision)


@functools.cache
def _made(name: str, precision: str) -> Path:
    missing = [module for module in FORMATS[name].modules if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    data = load_sample().with_splits(test=Split(answers().labels, images=answers().images))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(named, "load", lambda _: data)
        patch.setattr(driver, "_child", _child)
        return driver.export("cifar10", name, precision, out=_root() / f"{name}-{precision}")


def _child(step: str, job: Path, backend: str) -> str:
    if (step, backend) != ("build", BUILDS):
        return _fresh_child(step, job, backend)
    level = logging.getLogger().level
    with warnings.catch_warnings():
        build.main(str(job))
    logging.getLogger().setLevel(level)
    return ""


def artifact(name: str, precision: str = "f32") -> Path:
    return exported(name, precision) / FORMATS[name].artifact


@functools.cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="exported"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root
