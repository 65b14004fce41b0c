"""A batch computed in parts gives the same weights and metrics, and training continues when memory runs out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from logs import read_log
from shiftvit import Recipe, ShiftViTError, train
from shiftvit.data.load import load_data
from shiftvit.training import memory
from shiftvit.training.loss import SmoothedCrossentropy, Top1
from shiftvit.training.parts import PartwiseShiftViT
from shiftvit.training.setup import build, resolve

BACKEND = keras.config.backend()
pytestmark = pytest.mark.usefixtures("plain_figures")

# Without batch norm and drop path, the results do not depend on which images are computed together.
ONE_BY_ONE = {"embed_dim": 24, "depths": [1, 1], "norm": "layer", "drop_path": 0.0}
needs_device_loop = pytest.mark.skipif(BACKEND == "tensorflow", reason="the device loop is for jax and torch")


def make_recipe(model: dict[str, Any] | None = None, **settings: Any) -> Recipe:
    """Mixing, clipping, decay and a moving average are on: each must happen once a batch."""
    return Recipe.model_validate(
        {
            "model": model or ONE_BY_ONE,
            "data": {"validation": 50, "limit": 106},
            "preprocess": {"mean": 120.0, "std": 64.0},
            "augment": {"pad": 4, "cutmix": 1.0, "mixup": 0.8, "mix_probability": 0.5},
            "train": {
                "epochs": 2,
                "batch_size": 48,
                "precision": "float32",
                "ema": 0.8,
                "loop": "fit",
                "optimizer": {
                    "learning_rate": 2e-3,
                    # With a small epsilon Adam takes a full step along a gradient that is only rounding error.
                    "epsilon": 1e-3,
                    "weight_decay": 0.1,
                    "clipnorm": 0.5,
                },
                **settings,
            },
        }
    )


def load_state(run: Path) -> dict[str, np.ndarray]:
    stored = load_file(run / "checkpoints" / "last.safetensors")
    return {name: value for name, value in stored.items() if not name.startswith("generator/")}


def assert_same_run(found: Path, expected: Path, rtol: float = 1e-3, atol: float = 2e-5) -> None:
    expected_weights = load_state(expected)
    weights = load_state(found)
    assert weights.keys() == expected_weights.keys()
    for name, value in weights.items():
        # The integers may differ: jax advances the seeds of dropout even if its rate is 0.
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, expected_weights[name], rtol=rtol, atol=atol, err_msg=name)
    for row, other in zip(read_log(found), read_log(expected), strict=True):
        for key in ("loss", "val_loss", "learning_rate", "top1"):
            assert row[key] == pytest.approx(other[key], rel=1e-3), key


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, sample: Any) -> Path:
    """A run that computes its batches of 48, 48 and 10 images whole."""
    return train(make_recipe(drop_remainder=False), out=tmp_path_factory.mktemp("whole") / "run", data=sample).path


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory, sample: Any) -> Path:
    """The same with two whole batches of 48 images; the last 10 images are dropped."""
    return train(make_recipe(), out=tmp_path_factory.mktemp("default") / "run", data=sample).path


# 48 is not divisible by 5, and the last batch has fewer than 12 images.
@pytest.mark.slow
@pytest.mark.parametrize("parts", [5, 12])
def test_parts_match_whole_batches(parts: int, whole_run: Path, tmp_path: Path, sample: Any) -> None:
    run = train(make_recipe(drop_remainder=False, accumulate=parts), out=tmp_path / "run", data=sample)
    assert run.recipe.train.accumulate == parts
    assert_same_run(run.path, whole_run)
    stored = load_state(run.path)
    assert int(stored["optimizer/0000"]) == 6  # updates: three batches in two epochs


@pytest.mark.slow
def test_parts_match_whole_batches_with_muon(tmp_path: Path, sample: Any) -> None:
    rule = {"name": "muon", "learning_rate": 3e-3, "adam_learning_rate": 2e-3, "epsilon": 1e-3, "stage_decay": 0.5}
    runs = [
        train(make_recipe(optimizer=rule, accumulate=parts), out=tmp_path / f"{parts}", data=sample).path
        for parts in (1, 3)
    ]
    assert_same_run(runs[1], runs[0], rtol=3e-3, atol=1e-4)


@pytest.mark.slow
@needs_device_loop
def test_parts_in_device_loop_match_fit(default_run: Path, tmp_path: Path, sample: Any) -> None:
    run = train(make_recipe(accumulate=3, loop="device"), out=tmp_path / "run", data=sample)
    assert run.recipe.train.loop == "device"
    assert_same_run(run.path, default_run)


@pytest.mark.skipif(BACKEND != "torch", reason="only torch calls the model anew for each part")
def test_parts_have_balanced_sizes(monkeypatch: pytest.MonkeyPatch, sample: Any) -> None:
    recipe = make_recipe(accumulate=4, batch_size=50)
    splits = load_data(recipe, sample)
    model, steps = build(resolve(recipe, splits), splits)
    assert isinstance(model, PartwiseShiftViT)
    assert steps == 2
    sizes = []
    original = PartwiseShiftViT.call

    def call(self: Any, images: Any, *arguments: Any, **named: Any) -> Any:
        if not getattr(images, "is_meta", False):  # with meta tensors Keras only asks for shapes
            sizes.append(len(images))
        return original(self, images, *arguments, **named)

    monkeypatch.setattr(PartwiseShiftViT, "call", call)
    model.train_on_batch(splits.train.preprocess(splits.train.images[:50]), splits.train.labels[:50])
    assert sizes == [12, 13, 12, 13]


def train_on_few(parts: int) -> list[np.ndarray]:
    """Returns all variables after two batches of three images in `parts` parts, with batch norm and no randomness."""
    keras.utils.set_random_seed(0)
    model = PartwiseShiftViT(
        image_shape=(8, 8, 3), num_classes=2, embed_dim=24, depths=(1, 1), norm="batch", drop_path=0
    )
    model.parts = parts
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=SmoothedCrossentropy(0.1), metrics=[Top1()])
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    for _ in range(2):
        model.train_on_batch(images, np.array([0, 1, 1], np.int32))
    return [keras.ops.convert_to_numpy(variable) for variable in model.variables]


SPREAD_STEP = """
import jax, keras, numpy as np
import shiftvit
from shiftvit.training.parts import compute_jax_gradients

devices = keras.distribution.DataParallel(devices=["cpu:0", "cpu:1"], auto_shard_dataset=False)
keras.distribution.set_distribution(devices)
size = {"patch_size": 2, "embed_dim": 12, "depths": (1, 1)}
model = shiftvit.ShiftViT((8, 8, 3), num_classes=4, norm="layer", drop_path=0.0, **size)
model.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True, reduction=None))
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
def put(array, *axes):
    return jax.device_put(array, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)))
weights = [[put(np.asarray(variable.value)) for variable in group]
           for group in (model.trainable_variables, model.non_trainable_variables)]
draw = np.random.default_rng(0)
for count, parts in ((16, 4), (18, 4), (12, 5)):  # a scan, shares of 9 in uneven parts, parts of one or two
    images = put(draw.normal(size=(count, 8, 8, 3)).astype(np.float32), "batch")
    labels = put(np.eye(4, dtype=np.float32)[draw.integers(0, 4, count)], "batch")
    found = []
    for number in (1, parts):
        step = jax.jit(lambda a, b, c, d: compute_jax_gradients(model, a, b, c, d, number)[0])
        compiled = step.lower(*weights, images, labels).compile()
        for operation in ("all-gather", "all-to-all", "collective-permute"):
            assert operation not in compiled.as_text(), (count, number, operation)
        found.append(compiled(*weights, images, labels))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), *found)
"""


@pytest.mark.slow
def test_parts_stay_on_the_devices_of_their_images() -> None:
    """No device computes, or gets, images of another, and loss, logits and gradients are those of the whole batch."""
    flags = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SPREAD_STEP], env=os.environ | flags, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_parts_of_several_processes_are_parts_of_their_shares(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe({**ONE_BY_ONE, "image_shape": [32, 32, 3]}, accumulate=6, auto_batch=True)
    halved = memory.halve_parts(recipe, 0, count=4)
    assert halved.train.accumulate == 12
    notice = "with 2 images of 32 x 32 pixels at once; continuing with 1 image at a time, in 12 parts"
    assert notice in capsys.readouterr().err
    with pytest.raises(ShiftViTError, match=r"out of memory with 1 image .* lower train.batch_size=48"):
        memory.halve_parts(halved, 1, count=4)


def test_no_part_is_empty() -> None:
    """The batch norm of an empty part would give NaN. `test_backends` runs this on every backend."""
    for few, many in zip(train_on_few(3), train_on_few(8), strict=True):
        assert np.isfinite(many).all()
        np.testing.assert_allclose(many, few, rtol=1e-5, atol=1e-6)


def test_more_parts_than_images_are_refused(tmp_path: Path, sample: Any) -> None:
    with pytest.raises(ShiftViTError, match=r"train\.accumulate=49 is more than train\.batch_size=48"):
        train(make_recipe(accumulate=49), out=tmp_path / "run", data=sample)
    assert not (tmp_path / "run").exists()


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's error, by which it is recognised."""


@pytest.fixture
def memory_limit(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Simulates memory for parts of at most `images` images after the first `from_step` steps of the test."""
    limit = {"images": 16, "from_step": 0, "steps": 0}
    fit = keras.Model.fit

    def fit_with_limit(self: Any, batches: Any, **arguments: Any) -> Any:
        parts = getattr(self, "parts", 1)

        def begin(batch: int, logs: Any = None) -> None:  # noqa: ARG001
            limit["steps"] += 1
            if limit["steps"] > limit["from_step"] and -(-48 // parts) > limit["images"]:
                raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        callback = keras.callbacks.LambdaCallback(on_train_batch_begin=begin)
        arguments["callbacks"] = [*arguments["callbacks"], callback]
        return fit(self, batches, **arguments)

    monkeypatch.setattr(keras.Model, "fit", fit_with_limit)
    monkeypatch.setattr("shiftvit.model.network.ShiftViT.fit", fit_with_limit)
    return limit


@pytest.mark.slow
@pytest.mark.parametrize("from_step", [0, 3])  # from the start, and in the middle of the second epoch
def test_out_of_memory_continues_in_smaller_parts(
    from_step: int,
    default_run: Path,
    tmp_path: Path,
    sample: Any,
    memory_limit: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    memory_limit["from_step"] = from_step
    run = train(make_recipe(auto_batch=True), out=tmp_path / "run", data=sample)
    errors = capfd.readouterr().err
    assert (
        "out of memory with 48 images of 32 x 32 pixels at once; "
        "continuing with 24 images at a time, in 2 parts per batch" in errors
    )
    assert (
        "out of memory with 24 images of 32 x 32 pixels at once; "
        "continuing with 12 images at a time, in 4 parts per batch" in errors
    )
    assert run.recipe.train.accumulate == 4
    assert "accumulate = 4\n" in (run.path / "recipe.toml").read_text("utf-8")  # so that it can be resumed
    assert Recipe.load(run.path / "recipe.toml") == run.recipe
    assert_same_run(run.path, default_run)
    assert [row["epoch"] for row in read_log(run.path)] == [1, 2]
    changes = [json.loads(line)["changed"] for line in (run.path / "changes.jsonl").read_text("utf-8").splitlines()]
    assert changes == [{"train.accumulate": [1, 2]}, {"train.accumulate": [2, 4]}]


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "size"), [(1.0, "32 x 32"), (0.5, "up to 32 x 32")])
def test_too_little_memory_for_any_part_is_one_line(
    tmp_path: Path, sample: Any, memory_limit: dict[str, Any], scale: float, size: str
) -> None:
    memory_limit["images"] = 1
    with pytest.raises(ShiftViTError) as caught:
        train(make_recipe(auto_batch=True, initial_scale=scale), out=tmp_path / "run", data=sample)
    message = str(caught.value)
    assert message.startswith(f"out of memory with 6 images of {size} pixels at once, even after 3 halvings; lower")
    assert "train.batch_size=48" in message
    assert "preprocess.resize" in message
    assert "\n" not in message


@pytest.mark.slow
def test_out_of_memory_in_evaluation_makes_smaller_parts(
    tmp_path: Path, sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = keras.Model.predict_on_batch

    def predict_with_limit(self: Any, images: Any) -> Any:
        if len(images) > 16:
            raise OutOfMemoryError("CUDA out of memory")
        return predict(self, images)

    monkeypatch.setattr("shiftvit.model.network.ShiftViT.predict_on_batch", predict_with_limit)
    run = train(make_recipe(auto_batch=True, epochs=1), out=tmp_path / "run", data=sample)
    assert run.recipe.train.accumulate == 4
    assert run.metrics["test"]["n"] == len(sample.test.images)


def test_out_of_memory_without_auto_batch_suggests_it(
    tmp_path: Path, sample: Any, memory_limit: dict[str, Any]
) -> None:
    del memory_limit
    with pytest.raises(ShiftViTError, match=r"^out of memory with 48 images .* --resume RUN --auto-batch") as caught:
        train(make_recipe(), out=tmp_path / "run", data=sample)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (np._core._exceptions._ArrayMemoryError((10,), np.dtype("float32")), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (type("ResourceExhaustedError", (Exception,), {})("OOM when allocating tensor with shape[256]"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_out_of_memory_errors_are_recognised(error: BaseException, expected: bool) -> None:
    assert memory.is_out_of_memory(error) is expected


def test_failed_allocation_is_recognised() -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each backend has its own error
        keras.ops.convert_to_numpy(keras.ops.zeros((10**15,))[:1])
    assert memory.is_out_of_memory(caught.value)
