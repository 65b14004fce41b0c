"""The device loop gives the same images, weights and metrics as Keras' `fit` with the host's batches."""

from __future__ import annotations

import contextlib
import functools
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from logs import read_log
from sample import make_tiny_recipe, write_tree
from shiftvit import Recipe, ShiftViTError, train
from shiftvit.augment.augment import Augment
from shiftvit.config import DataConfig, ModelConfig
from shiftvit.data.batches.device import ResidentImages
from shiftvit.data.batches.host import EpochBatches, draw_order
from shiftvit.data.batches.pictures import read_pictures
from shiftvit.data.load import load_data
from shiftvit.errors import Interrupted
from shiftvit.preprocess import Preprocess
from shiftvit.training.callbacks import Watch
from shiftvit.training.device import TorchLoop, choose_chunk_length
from shiftvit.training.setup import resolve

pytestmark = [
    pytest.mark.skipif(keras.config.backend() == "tensorflow", reason="the device loop is for jax and torch"),
    pytest.mark.usefixtures("plain_figures"),
]

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 9, 12, 3), np.uint8)
LABELS = np.arange(40) % 5
BATCH = 10


@pytest.mark.parametrize(
    ("preprocess", "augment"),
    [
        ({}, {"flip": False, "random_crop": False}),
        ({"mean": (120.0, 110.0, 100.0), "std": (60.0, 61.0, 62.0)}, {"pad": 4}),
        ({"mean": 100.0, "std": 50.0}, {"pad": 8, "pad_mode": "reflect"}),
        ({"crop": (7, 8), "crop_position": "center"}, {"random_crop": False}),
        ({"crop": (7, 8)}, {"pad": 30}),
        ({"resize": (20, 14), "crop": (16, 13), "interpolation": "bicubic"}, {}),
        ({"resize": (20, 14), "round_pixels": False}, {"pad": 2}),
        ({"mean": 100.0, "std": 50.0}, {"pad": 1, "cutmix": 1.0, "mixup": 0.8, "mix_probability": 0.7}),
    ],
)
def test_device_batches_equal_host_batches(preprocess: dict, augment: dict) -> None:
    rules = Preprocess(**preprocess), Augment(**augment)
    host = EpochBatches(
        *(PIXELS, LABELS), preprocess=rules[0], augment=rules[1], batch_size=BATCH, classes=5, seed=3, epoch=2
    )
    resident = ResidentImages(PIXELS, LABELS, *rules, 5)
    drawn = resident.draw(3, 2)
    for number in range(4):
        places = keras.ops.arange(number * BATCH, (number + 1) * BATCH)
        images, labels = (
            keras.ops.convert_to_numpy(part) for part in resident.make_batch(resident.constants, drawn, places)
        )
        expected_images, expected_labels = host[number]
        np.testing.assert_allclose(images, expected_images, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(labels, expected_labels, atol=1e-6)
        assert labels.dtype == expected_labels.dtype


def make_recipe(**settings: Any) -> Recipe:
    return make_tiny_recipe(**{"model.dropout": 0.0}, **settings)


def load_weights(run: Path) -> dict[str, np.ndarray]:
    stored = load_file(run / "checkpoints" / "last.safetensors")
    return {name: value for name, value in stored.items() if not name.startswith("generator/")}


@pytest.fixture(scope="module")
def device_run(tmp_path_factory, sample):
    return train(make_recipe(loop="device"), out=tmp_path_factory.mktemp("device") / "run", data=sample)


@pytest.fixture(scope="module")
def train_with_fit(tmp_path_factory, sample):
    """Trains a run with Keras' loop, once for each batch size."""

    @functools.cache
    def train_once(batch_size):
        out = tmp_path_factory.mktemp("fit") / "run"
        return train(make_recipe(loop="fit", batch_size=batch_size), out=out, data=sample)

    return train_once


@pytest.mark.slow
def test_device_loop_matches_fit(device_run, train_with_fit):
    fitted = train_with_fit(50)
    assert device_run.recipe.train.loop == "device"
    expected = load_weights(fitted.path)
    for name, value in load_weights(device_run.path).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=2e-5, err_msg=name)
    for mine, theirs in zip(read_log(device_run.path), read_log(fitted.path), strict=True):
        for key in ("loss", "val_loss", "learning_rate", "top1", "val_top1"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-3), key


class FakeCuda:
    """Replaces what graph capture needs of `torch.cuda` on a machine without a GPU; a replay runs the step."""

    loop: Any = None

    def wait_stream(self, other: Any) -> None:
        pass

    def replay(self) -> None:
        FakeCuda.loop._step()


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for name in ("Stream", "CUDAGraph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, FakeCuda)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, contextlib.nullcontext)
    for name in ("get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, getattr(torch, name))


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() != "torch", reason="only the torch loop captures CUDA graphs")
@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize(
    ("batch_size", "jit_compile"),
    [(250, False), (125, False), (50, False), (50, True)],  # one, two and five steps per epoch
)
def test_graph_capture_stays_within_the_epoch(tmp_path, sample, train_with_fit, monkeypatch, batch_size, jit_compile):
    """Reading past the end of an epoch fails on CUDA; short epochs and a resumed last epoch come close to that."""
    import torch

    fitted = train_with_fit(batch_size)

    # Run the recorded function without compiling it, which takes minutes on a CPU.
    recordings = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: recordings.append(function) or function)
    captured, initialize, begin = [], TorchLoop.__init__, Watch.on_train_batch_begin

    def force_capturing(self, *arguments):
        initialize(self, *arguments)
        self.capturing, FakeCuda.loop = True, self
        captured.append(self)

    def stop_in_second_epoch(self, batch, logs=None):
        if self.progress.epoch == 1 and len(captured) == 1:
            self.signal = 15
        begin(self, batch, logs)

    monkeypatch.setattr(TorchLoop, "__init__", force_capturing)
    monkeypatch.setattr(Watch, "on_train_batch_begin", stop_in_second_epoch)
    with pytest.raises(Interrupted):
        train(
            make_recipe(loop="device", batch_size=batch_size, jit_compile=jit_compile),
            out=tmp_path / "run",
            data=sample,
        )
    run = train(resume=tmp_path / "run", data=sample)
    assert [loop.graph is not None for loop in captured] == [True, True]
    assert len(recordings) == (2 if jit_compile else 0)
    expected = load_weights(fitted.path)
    for name, value in load_weights(run.path).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() != "torch", reason="only the torch loop captures CUDA graphs")
@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize(("words", "said"), [((), "RuntimeError"), (("not permitted\nmore",), "not permitted")])
def test_training_continues_without_a_graph(tmp_path, sample, monkeypatch, capfd, words, said):
    import torch

    def fail(_: Any) -> None:
        raise RuntimeError(*words)

    initialize = TorchLoop.__init__

    def force_capturing(self, *arguments):
        initialize(self, *arguments)
        self.capturing = True

    monkeypatch.setattr(torch.cuda, "graph", fail)
    monkeypatch.setattr(TorchLoop, "__init__", force_capturing)
    run = train(make_recipe(loop="device", epochs=1), out=tmp_path / "run", data=sample)
    assert len(read_log(run.path)) == 1
    assert f"cannot be captured as a CUDA graph ({said}); continuing without one" in capfd.readouterr().err


@pytest.mark.slow
def test_auto_chooses_fit_on_a_cpu(tmp_path, sample):
    run = train(make_recipe(loop="auto", epochs=1), out=tmp_path / "run", data=sample)
    assert run.recipe.train.loop == "fit"


@pytest.mark.parametrize(
    ("augment", "loop"),
    [
        ({"pad": 4, "mixup": 0.8}, "device"),
        ({"resized_crop": 0.5}, "fit"),
        ({"rand_augment": 9.0}, "fit"),
        ({"color_jitter": 0.4}, "fit"),
        ({"erasing": 0.25}, "fit"),
        ({"repeats": 2}, "fit"),
    ],
)
def test_auto_chooses_fit_for_host_only_augmentation(monkeypatch, sample, augment, loop):
    monkeypatch.setattr("shiftvit.training.setup.environment.find_device_name", lambda: "an accelerator")
    recipe = make_recipe(loop="auto").model_copy(update={"augment": Augment(**augment)})
    assert resolve(recipe, load_data(recipe, sample)).train.loop == loop


@pytest.mark.slow
def test_images_that_stay_in_their_files_need_the_host(tmp_path, monkeypatch):
    monkeypatch.setattr("shiftvit.data.read.read_pictures", partial(read_pictures, budget=0))
    tree = write_tree(tmp_path / "pets", per_class=10)
    small = {"model": ModelConfig(embed_dim=24, depths=(1, 1)), "preprocess": Preprocess(resize=16, crop=16)}
    recipe = make_recipe(loop="auto", epochs=1, batch_size=8).model_copy(
        update={**small, "data": DataConfig(name=str(tree), validation=0.2, test=0.2)}
    )
    with pytest.raises(ShiftViTError, match=r'loop="device" needs all images in memory, but those of .*pets stay in'):
        train(
            recipe.model_copy(update={"train": recipe.train.model_copy(update={"loop": "device"})}),
            out=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("shiftvit.training.setup.environment.find_device_name", lambda: "an accelerator")
    assert train(recipe, out=tmp_path / "run").recipe.train.loop == "fit"


@pytest.mark.parametrize("auto_batch", [pytest.param(True, marks=pytest.mark.slow), False])
def test_images_that_do_not_fit_on_the_device(tmp_path, sample, monkeypatch, capfd, auto_batch):
    """Splitting the batch would not help, because the device must hold all images."""

    def fail(value):
        raise RuntimeError(f"RESOURCE_EXHAUSTED: Out of memory allocating {value.nbytes} bytes.")

    monkeypatch.setattr("shiftvit.data.batches.device._to_device", fail)
    recipe = make_recipe(loop="device", epochs=1, auto_batch=auto_batch)
    if auto_batch:
        run = train(recipe, out=tmp_path / "run", data=sample)
        assert run.recipe.train.accumulate == 1
        assert "out of memory for 250 images on the device; continuing with train.loop=fit" in capfd.readouterr().err
    else:
        with pytest.raises(
            ShiftViTError, match="out of memory with 50 images of 32 x 32 pixels at once; continue in smal"
        ):
            train(recipe, out=tmp_path / "run", data=sample)


def test_images_on_the_device_do_not_grow(monkeypatch, tmp_path, sample, capfd):
    with pytest.raises(ShiftViTError, match=r"initial_scale cannot be below 1; set it to 1, or set train\.loop=fit"):
        train(make_recipe(loop="device", initial_scale=0.5), out=tmp_path / "run", data=sample)
    monkeypatch.setattr("shiftvit.training.setup.environment.find_device_name", lambda: "an accelerator")
    for loop, chosen, scale, notices in (("fit", "fit", 0.5, 0), ("auto", "device", 1.0, 1)):
        recipe = make_recipe(loop=loop, initial_scale=0.5)
        resolved = resolve(recipe, load_data(recipe, sample)).train
        assert (resolved.loop, resolved.initial_scale) == (chosen, scale)
        assert capfd.readouterr().err.count("keeps all images at full size") == notices


def test_batches_of_different_sizes_fail(tmp_path, sample):
    with pytest.raises(ShiftViTError, match=r"cannot be divided by train\.batch_size=48"):
        train(make_recipe(loop="device", batch_size=48, drop_remainder=False), out=tmp_path / "run", data=sample)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("steps", "length"), [(192, 64), (195, 39), (1, 1), (31, 31), (200, 50), (0, 0)])
def test_choose_chunk_length(steps: int, length: int) -> None:
    assert choose_chunk_length(steps) == length


def test_device_order_equals_host_order() -> None:
    resident = ResidentImages(PIXELS, LABELS, Preprocess(), Augment(), 5)
    order = keras.ops.convert_to_numpy(resident.draw(1, 4)["order"])
    np.testing.assert_array_equal(order, draw_order(1, 4, 40))
