"""The moving average of the weights and of batch norm's statistics, against one that NumPy computes from each step."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sample import make_tiny_recipe
from shiftvit import Recipe, train
from shiftvit.data.load import load_data
from shiftvit.errors import Interrupted
from shiftvit.model.network import ShiftViT
from shiftvit.model.weights import find_stage
from shiftvit.training import fit
from shiftvit.training.averages import find_statistics
from shiftvit.training.callbacks import Watch
from shiftvit.training.checkpoint import LAST, Progress, load_checkpoint, save_checkpoint
from shiftvit.training.finetune import freeze_stages
from shiftvit.training.setup import build, resolve
from tensors import to_numpy

MOMENTUM = 0.8
STEPS = 5  # in an epoch
Arrays = dict[str, np.ndarray]

on_both_loops = pytest.mark.parametrize(
    "loop",
    [
        "fit",
        pytest.param(
            "device",
            marks=pytest.mark.skipif(keras.config.backend() == "tensorflow", reason="the loop is for jax and torch"),
        ),
    ],
)


def make_recipe(**settings: Any) -> Recipe:
    return make_tiny_recipe(**{"model.norm": "batch"}, ema=MOMENTUM, **settings)


@pytest.fixture(autouse=True)
def _one_step_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shiftvit.training.device.choose_chunk_length", lambda _: 1)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Arrays]:
    """The values of all variables of the model after each step."""
    values: list[Arrays] = []
    begin, validate = Watch.on_train_batch_begin, fit.validate

    def record(model: Any) -> None:
        if hasattr(model, "jax_state_sync"):  # within an epoch, jax keeps the state outside the variables
            model.jax_state_sync()
        values.append({one.path: to_numpy(one).astype(np.float64) for one in model.variables})

    def record_step(self: Watch, batch: int, logs: Any = None) -> None:
        if batch:  # the step before it; Keras calls the end of a batch from another thread
            record(self.model)
        begin(self, batch, logs)

    def record_last(model: Any, *others: Any) -> Any:
        record(model)
        return validate(model, *others)

    monkeypatch.setattr(Watch, "on_train_batch_begin", record_step)
    monkeypatch.setattr(fit, "validate", record_last)
    return values


def average(values: list[Arrays]) -> Arrays:
    """Returns the moving average, which begins with the values after the first step."""
    found = dict(values[0])
    for step in values[1:]:
        found = {path: MOMENTUM * found[path] + (1 - MOMENTUM) * value for path, value in step.items()}
    return found


def load_state(run: Path) -> Arrays:
    stored = load_file(run / "checkpoints" / LAST)
    return {name: value for name, value in stored.items() if not name.startswith("generator/")}


@pytest.mark.slow
@pytest.mark.usefixtures("plain_figures")
@on_both_loops
@pytest.mark.parametrize(("parts", "select"), [(1, "last"), (2, "best")])
def test_model_has_the_average_of_weights_and_statistics(
    tmp_path: Path,
    sample: Any,
    recorded: list[Arrays],
    monkeypatch: pytest.MonkeyPatch,
    loop: str,
    parts: int,
    select: str,
) -> None:
    monkeypatch.setattr("shiftvit.training.epoch._is_best", lambda _, progress: progress.best_top1 is None)
    recipe = make_recipe(loop=loop, accumulate=parts, select=select)
    run = train(recipe, out=tmp_path / "run", data=sample)
    assert len(recorded) == 2 * STEPS
    kept, row = (recorded, run.history[1]) if select == "last" else (recorded[:STEPS], run.history[0])
    expected, weights = average(kept), run.bundle.weights
    statistics = [path for path in weights if path.endswith(("moving_mean", "moving_variance"))]
    assert len(statistics) >= 6
    for path, value in weights.items():
        np.testing.assert_allclose(value, expected[path], rtol=2e-5, atol=1e-6, err_msg=path)
    assert max(np.abs(weights[path] - kept[-1][path]).max() for path in statistics) > 1e-2
    # The epoch was validated with the same values.
    for key in ("loss", "top1"):
        assert row[f"val_{key}"] == pytest.approx(run.metrics["val"][key], rel=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("plain_figures")
@on_both_loops
def test_stopped_run_ends_with_the_same_averages(
    tmp_path: Path, sample: Any, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    train(make_recipe(loop=loop), out=tmp_path / "whole", data=sample)
    begin = Watch.on_train_batch_begin

    def stop(self: Watch, batch: int, logs: Any = None) -> None:
        if self.progress.epoch == 1 and self.first_step + batch == 3:
            self.signal = signal.SIGTERM
        begin(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_train_batch_begin", stop)
        with pytest.raises(Interrupted):
            train(make_recipe(loop=loop), out=tmp_path / "stopped", data=sample)
    train(resume=tmp_path / "stopped", data=sample)
    state = load_state(tmp_path / "stopped")
    for name, value in load_state(tmp_path / "whole").items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


def build_model(sample: Any) -> Any:
    recipe = make_recipe()
    dataset = load_data(recipe, sample)
    return build(resolve(recipe, dataset), dataset)[0]


def test_averages_that_an_old_checkpoint_lacks_begin_with_the_statistics(tmp_path: Path, sample: Any) -> None:
    model, path = build_model(sample), tmp_path / LAST
    count, generator = len(find_statistics(model)), np.random.default_rng(0)
    for variable in model.optimizer.variables[-count:] + find_statistics(model):
        variable.assign(generator.random(variable.shape))
    save_checkpoint(path, model, Progress(epoch=1))
    content, expected = path.read_bytes(), [to_numpy(one) for one in model.optimizer.variables]
    statistics = [to_numpy(one) for one in find_statistics(model)]
    stored = load_file(path)
    lacking = sorted(name for name in stored if name.startswith("optimizer/"))[-count:]

    for whole in (True, False):
        path.write_bytes(content)
        if not whole:
            from safetensors import safe_open

            with safe_open(path, framework="numpy") as file:
                header = file.metadata()
            save_file({name: value for name, value in stored.items() if name not in lacking}, path, header)
            expected[-count:] = statistics
        other = build_model(sample)
        assert load_checkpoint(path, other).epoch == 1
        for variable, value in zip(other.optimizer.variables, expected, strict=True):
            np.testing.assert_array_equal(to_numpy(variable), value)


def test_statistics_of_frozen_stages_are_not_averaged() -> None:
    model = ShiftViT((16, 16, 3), num_classes=5, embed_dim=24, depths=(1, 1), norm="batch")
    assert {one.name for one in find_statistics(model)} == {"moving_mean", "moving_variance"}
    assert {find_stage(one.path) for one in find_statistics(model)} == {1, 2, None}
    freeze_stages(model, 1)
    assert {find_stage(one.path) for one in find_statistics(model)} == {2, None}
