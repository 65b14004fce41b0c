"""Training on a GPU: the device loop against `fit`, resuming, compiling, a folder of images, and lack of memory.

    SHIFTVIT_TEST_ACCELERATOR=1 KERAS_BACKEND=torch python -m pytest tests/test_accelerator.py

All other tests run on the processor, even on a machine with a GPU (`conftest.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from logs import read_log
from sample import make_tiny_recipe, write_tree
from shiftvit import train
from shiftvit.environment import find_device_name
from shiftvit.errors import Interrupted
from shiftvit.training.callbacks import Watch
from shiftvit.training.memory import free_memory

BACKEND = keras.config.backend()
pytestmark = [
    pytest.mark.skipif(
        BACKEND == "tensorflow"
        or not os.environ.get("SHIFTVIT_TEST_ACCELERATOR")
        or find_device_name() in ("cpu", "mps"),
        reason="needs a GPU, SHIFTVIT_TEST_ACCELERATOR=1 and KERAS_BACKEND=jax or torch",
    ),
    pytest.mark.usefixtures("plain_figures"),
]


@pytest.fixture(autouse=True)
def _full_float32():
    """Turns off TF32, which rounds the factors of float32 products to 10 bits."""
    if BACKEND == "torch":
        import torch

        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        yield
        torch.backends.cudnn.allow_tf32 = before
    else:
        import jax

        with jax.default_matmul_precision("highest"):
            yield


def load_weights(run: Path) -> dict[str, Any]:
    stored = load_file(run / "checkpoints" / "last.safetensors")
    return {name: value for name, value in stored.items() if name.startswith("model/")}


def assert_close_weights(one: Path, other: Path, atol: float) -> None:
    expected = load_weights(other)
    for name, value in load_weights(one).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=atol, err_msg=name)


def make_recipe(**settings: Any) -> Any:
    return make_tiny_recipe(**{"precision": "float32", **settings})


@pytest.mark.parametrize("frozen", [0, 1])
def test_device_loop_matches_fit(tmp_path, sample, capfd, frozen):
    settings = {"model.dropout": 0.0, "model.drop_path": 0.0, "batch_size": 50}
    if frozen:
        source = train(make_recipe(**settings), out=tmp_path / "source", data=sample)
        settings |= {"start.source": str(source.path), "freeze_epochs": frozen, "epochs": 3}
    runs = {
        loop: train(make_recipe(**settings, loop=loop), out=tmp_path / loop, data=sample) for loop in ("auto", "fit")
    }
    assert "cannot be captured" not in capfd.readouterr().err
    assert runs["auto"].recipe.train.loop == "device"
    assert_close_weights(runs["auto"].path, runs["fit"].path, 1e-4)
    for device, fitted in zip(read_log(runs["auto"].path), read_log(runs["fit"].path), strict=True):
        for key in ("loss", "val_loss", "learning_rate"):
            assert device[key] == pytest.approx(fitted[key], rel=1e-3), key


@pytest.mark.parametrize("batch_size", [250, 125, 2])  # 1, 2 and 125 steps an epoch; one call computes several
def test_resumed_run_matches_uninterrupted_run(tmp_path, sample, monkeypatch, batch_size):
    """Dropout and drop path draw the same numbers again, also from the middle of an epoch."""
    settings = make_recipe(loop="device", batch_size=batch_size)
    uninterrupted = train(settings, out=tmp_path / "uninterrupted", data=sample)
    begin = Watch.on_train_batch_begin

    def stop_midway(self, batch, logs=None):
        if self.progress.epoch == 1 and self.progress.step + batch >= 64 % max(250 // batch_size, 1):
            self.signal = 15
        begin(self, batch, logs)

    monkeypatch.setattr(Watch, "on_train_batch_begin", stop_midway)
    with pytest.raises(Interrupted):
        train(settings, out=tmp_path / "run", data=sample)
    monkeypatch.setattr(Watch, "on_train_batch_begin", begin)
    train(resume=tmp_path / "run", data=sample)
    assert_close_weights(tmp_path / "run", uninterrupted.path, 1e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="jax always compiles")
def test_compiled_step_matches_plain_step(tmp_path, sample, capfd):
    no_dropout = {"model.dropout": 0.0, "model.drop_path": 0.0, "loop": "device"}
    plain = train(make_recipe(**no_dropout), out=tmp_path / "plain", data=sample)
    compiled = train(make_recipe(**no_dropout, jit_compile=True), out=tmp_path / "compiled", data=sample)
    assert "cannot be captured" not in capfd.readouterr().err
    assert_close_weights(compiled.path, plain.path, 1e-4)


def test_training_on_image_folder(tmp_path):
    changes = {"batch_size": 16, "data.name": str(write_tree(tmp_path / "photos"))}
    run = train(make_recipe(**changes, **{"preprocess.resize": 36, "preprocess.crop": 32}), out=tmp_path / "run")
    assert run.recipe.train.loop == "device"
    assert np.isfinite(read_log(run.path)[-1]["loss"])


@pytest.mark.skipif(BACKEND != "torch", reason="only torch can limit its own memory to a fraction")
def test_out_of_memory_continues_in_smaller_parts(tmp_path, sample, capfd):
    import torch

    free_memory()
    settings = make_recipe(auto_batch=True, batch_size=250, loop="device", **{"model.embed_dim": 384})
    torch.cuda.reset_peak_memory_stats()
    train(settings, out=tmp_path / "free", data=sample)
    needed, whole = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    free_memory()
    capfd.readouterr()
    try:
        torch.cuda.set_per_process_memory_fraction(0.75 * needed / whole)
        run = train(settings, out=tmp_path / "short", data=sample)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with 250 images of 32 x 32 pixels at once" in capfd.readouterr().err
    assert run.recipe.train.loop == "device"
    assert np.isfinite(read_log(run.path)[-1]["loss"])
