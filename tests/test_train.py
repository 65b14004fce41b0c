"""Training on real images: the loss falls, the model can overfit, and impossible settings are reported."""

from __future__ import annotations

import itertools
import json
import resource
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from logs import read_log
from sample import replace_splits
from shiftvit import Bundle, Recipe, ShiftViTError, evaluate, recipes, train
from shiftvit.config import ModelConfig
from shiftvit.data import named
from shiftvit.data.batches.host import EpochBatches
from shiftvit.data.find.dataset import Dataset
from shiftvit.data.load import load_data
from shiftvit.errors import Interrupted
from shiftvit.evaluation.metrics import measure
from shiftvit.preprocess import Preprocess
from shiftvit.presets import PRESETS
from shiftvit.stages import list_stages
from shiftvit.training import callbacks
from shiftvit.training.callbacks import ProgressBar, Watch
from shiftvit.training.checkpoint import Progress, load_checkpoint, save_checkpoint, settle_best
from shiftvit.training.epoch import finish_epoch
from shiftvit.training.finetune import apply_start
from shiftvit.training.runfolder import BEST, LAST, NEW_BEST, open_run
from shiftvit.training.setup import build, choose_size, make_batches, resolve

pytestmark = pytest.mark.usefixtures("plain_figures")

TINY = {
    "model": {"patch_size": 4, "embed_dim": 24, "depths": [1, 1], "norm": "layer", "drop_path": 0.1, "dropout": 0.1},
    "data": {"validation": 50},
    "preprocess": {"mean": 120.0, "std": 64.0},
    "augment": {"pad": 4},
    "train": {
        "epochs": 3,
        "batch_size": 50,
        "precision": "float32",
        "ema": 0.9,
        "optimizer": {"learning_rate": 3e-3},
    },
}


def make_recipe(**train_settings) -> Recipe:
    tree = json.loads(json.dumps(TINY))
    tree["train"].update(train_settings)
    return Recipe.model_validate(tree)


def build_tiny(sample, **train_settings):
    wanted = make_recipe(**train_settings)
    splits = load_data(wanted, sample)
    return build(resolve(wanted, splits), splits)


def load_final_state(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "checkpoints" / "last.safetensors")


@pytest.fixture(scope="module")
def finished_run_and_figures(tmp_path_factory, sample, plain_figures):
    before = len(plain_figures)
    run = train(make_recipe(), out=tmp_path_factory.mktemp("run") / "run", data=sample)
    return run, plain_figures[before:]


@pytest.fixture(scope="module")
def finished_run(finished_run_and_figures):
    return finished_run_and_figures[0]


def test_loss_falls(finished_run):
    rows = read_log(finished_run.path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["loss"] < rows[0]["loss"] < 2.6
    assert {"loss", "top1", "val_loss", "val_top1", "learning_rate", "images_per_second"} <= rows[0].keys()


def test_run_folder_is_complete(finished_run, sample):
    run = finished_run.path
    for name in ("recipe.toml", "environment.json", "log.jsonl", "metrics.json", "model.keras", "bundle/bundle.json"):
        assert (run / name).is_file(), name
    for name in ("learning_curves", "confusion_matrix", "predictions"):
        with Image.open(run / "figures" / f"{name}.png") as picture:
            picture.verify()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics == finished_run.metrics
    assert metrics["test"].keys() == {"loss", "top1", "top5", "n"}
    assert metrics["test"]["n"] == len(sample.test.images)
    assert metrics["val"]["n"] == 50
    assert metrics["train"]["epochs"] == 3
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["keras"] == keras.__version__
    assert Recipe.load(run / "recipe.toml") == finished_run.recipe
    assert finished_run.recipe.model.image_shape == (32, 32, 3)
    assert not list(run.rglob("*.tmp*"))


def test_figures_show_the_run(finished_run_and_figures, sample):
    run, (curves, confusion) = finished_run_and_figures
    rows = read_log(run.path)
    for axes, name, factor in zip(curves.axes, ("loss", "top1"), (1, 100), strict=False):
        for line, key in zip(axes.lines, (name, f"val_{name}"), strict=True):
            assert list(line.get_xdata()) == [1, 2, 3]
            assert list(line.get_ydata()) == [factor * row[key] for row in rows]
    shares = confusion.axes[0].images[0].get_array()
    counts = np.bincount(sample.test.labels)
    assert np.diag(shares) @ counts / counts.sum() == pytest.approx(100 * run.metrics["test"]["top1"])
    # The real images in a grid, enlarged.
    with Image.open(run.path / "figures" / "predictions.png") as picture:
        shown = {tuple(pixel) for pixel in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}
    assert {tuple(pixel) for pixel in sample.test.images[0].reshape(-1, 3).tolist()} <= shown


def test_saved_models_agree_with_the_recorded_metrics(finished_run, sample, monkeypatch):
    monkeypatch.setitem(named._LOADERS, "cifar10", lambda: sample)
    found = evaluate(finished_run.path)
    assert {key: found[key] for key in finished_run.metrics["test"]} == finished_run.metrics["test"]
    images = finished_run.bundle.preprocess(sample.test.images[:8])
    ours = finished_run.bundle.build().predict_on_batch(images)
    np.testing.assert_allclose(
        ours, keras.models.load_model(finished_run.path / "model.keras").predict_on_batch(images)
    )


@pytest.mark.slow
def test_same_seed_gives_the_same_run(finished_run, tmp_path, sample):
    again = train(make_recipe(), out=tmp_path / "again", data=sample)
    first, second = load_final_state(finished_run.path), load_final_state(again.path)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    assert {**again.metrics, "train": None} == {**finished_run.metrics, "train": None}
    other = train(make_recipe(seed=1, epochs=1), out=tmp_path / "other", data=sample)
    assert read_log(other.path)[0]["loss"] != read_log(finished_run.path)[0]["loss"]


@pytest.mark.slow
def test_long_epoch_is_saved_after_its_steps(tmp_path, sample, monkeypatch):
    saved = []
    monkeypatch.setattr(
        "shiftvit.training.callbacks.save_checkpoint", lambda *arguments: saved.append(arguments[2].step)
    )
    train(make_recipe(epochs=1, checkpoint_minutes=1e-9), out=tmp_path / "run", data=sample)
    assert saved == [0, 1, 2, 3, 4]


def test_time_to_the_next_save_counts_from_the_last_one(tmp_path, monkeypatch):
    now, saved = 0.0, []
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(callbacks, "save_checkpoint", lambda *arguments: saved.append(arguments[2].step))
    for name in ("set_generators", "collect_generators"):
        monkeypatch.setattr(callbacks, name, lambda *_: {})
    watch = Watch(tmp_path, Progress(), seed=0, save_every=60)
    for step in range(7):
        now = 40.0 * step
        watch.on_train_batch_begin(step)
    assert saved == [2, 4, 6]


@pytest.mark.slow
def test_best_or_last_epoch_is_selected(tmp_path, sample, monkeypatch):
    scores = iter([0.3, 0.9, 0.5])
    weights = []

    def validate(model, *_):
        weights.append(np.array(model.get_layer("head").kernel.numpy()))
        return {"val_loss": 1.0, "val_top1": next(scores), "val_top5": 1.0}

    monkeypatch.setattr("shiftvit.training.fit.validate", validate)
    best = train(make_recipe(ema=None), out=tmp_path / "best", data=sample)
    assert best.metrics["train"]["best_epoch"] == 2
    np.testing.assert_array_equal(best.bundle.weights["head/kernel"], weights[1])
    scores = iter([0.3, 0.9, 0.5])
    last = train(make_recipe(ema=None, select="last"), out=tmp_path / "last", data=sample)
    np.testing.assert_array_equal(last.bundle.weights["head/kernel"], weights[-1])


def test_bundle_has_the_averaged_weights(finished_run):
    state = load_final_state(finished_run.path)
    trained = state["model/0000"]  # the patch embedding's kernel
    kept = finished_run.bundle.weights["patch_embed/projection/kernel"]
    assert kept.shape == trained.shape
    assert np.abs(kept - trained).max() > 0
    averages = [value for name, value in state.items() if name.startswith("optimizer/") and value.shape == kept.shape]
    assert any(np.array_equal(kept, value) for value in averages)


def test_impossible_settings_leave_no_folder(tmp_path, sample):
    for overrides, message in [
        ({"model.preset": "nope"}, "there is no preset 'nope'"),
        ({"model.num_classes": 100}, r"model.num_classes=100 does not fit the data, which needs 10"),
        ({"model.image_shape": [64, 64, 3]}, r"image_shape=\(64, 64, 3\) does not fit the data"),
        ({"preprocess.crop": 40}, "crop=40 is larger"),
        ({"data.validation": 400}, "validation"),
        ({"model.embed_dim": 8}, "num_div=12 leaves no channel"),
        ({"augment.pad": 40, "augment.pad_mode": "reflect"}, "pad=40"),
    ]:
        with pytest.raises(ShiftViTError, match=message):
            train("quick", out=tmp_path / "run", data=sample, **{"data.validation": 50, **overrides})
        assert not (tmp_path / "run").exists()
    nothing = replace_splits(sample, test=sample.test.take([]))
    with pytest.raises(ShiftViTError, match="has no test images"):
        train(make_recipe(), out=tmp_path / "run", data=nothing)


def test_two_processes_cannot_train_in_one_folder(tmp_path, sample):
    data = load_data(make_recipe(), sample)
    wanted = resolve(make_recipe(), data)
    with (
        open_run(tmp_path / "run", wanted, data),
        pytest.raises(ShiftViTError, match="another process is training in"),
        open_run(tmp_path / "run", wanted, data),
    ):
        pass


def test_run_of_another_backend_is_not_resumed(tmp_path, sample, monkeypatch):
    model, _ = build_tiny(sample)
    save_checkpoint(tmp_path / "state", model, Progress())
    monkeypatch.setattr("shiftvit.training.checkpoint.keras.config.backend", lambda: "abacus")
    with pytest.raises(ShiftViTError, match="set KERAS_BACKEND="):
        load_checkpoint(tmp_path / "state", model)


@pytest.mark.slow
def test_model_overfits_64_images(tmp_path, sample):
    chosen = np.arange(0, 4 * 64, 4)
    # Each image comes eight times in an epoch, since each epoch costs an evaluation and a save.
    splits = {"train": sample.train.take(np.tile(chosen, 8)), "test": sample.train.take(chosen)}
    few = Dataset(splits, sample.class_names, "few")
    settings = {
        "model": {"patch_size": 4, "embed_dim": 48, "depths": [2, 2], "norm": "layer", "drop_path": 0.0},
        "preprocess": {"mean": 120.0, "std": 64.0},
        "data": {"validation": 0},
        "augment": {"random_crop": False, "flip": False},
        "train": {"epochs": 16, "batch_size": 64, "precision": "float32", "optimizer": {"learning_rate": 2e-3}},
    }
    run = train(Recipe.model_validate(settings), out=tmp_path / "run", data=few)
    assert run.metrics["test"]["top1"] == 1.0


@pytest.mark.parametrize(
    ("shape", "scale", "epochs", "sizes"),
    [
        ((32, 32), 1.0, 2, [(32, 32)] * 2),
        ((32, 32), 0.75, 3, [(24, 24), (32, 32), (32, 32)]),
        ((32, 32), 0.5, 3, [(16, 16), (24, 24), (32, 32)]),
        ((32, 32), 0.5, 1, [(32, 32)]),
        ((32, 32), 0.75, 6, [(24, 24)] * 3 + [(32, 32)] * 3),
        ((20, 36), 0.01, 3, [(8, 8), (8, 16), (20, 36)]),
        ((320, 320), 0.7, 2, [(224, 224), (320, 320)]),
        ((34, 35), 1.0, 2, [(34, 35)] * 2),  # no multiples of the stride
        ((34, 35), 0.5, 3, [(16, 16), (24, 24), (34, 35)]),
    ],
)
def test_images_grow_to_their_whole_size(shape, scale, epochs, sizes):
    model = {"image_shape": (*shape, 3), "num_classes": 2, "patch_size": 2, "embed_dim": 24, "depths": (1, 1, 1)}
    recipe = Recipe(model=model, train={"initial_scale": scale, "epochs": epochs})
    assert [choose_size(recipe, epoch) for epoch in range(epochs)] == sizes


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_whole_images_of_any_size_are_trained_on(sample, scale):
    recipe = make_recipe(initial_scale=scale, epochs=2)
    recipe = recipe.model_copy(update={"preprocess": Preprocess(resize=(33, 34))})
    data = load_data(recipe, sample)
    recipe = resolve(recipe, data)
    model, _ = build(recipe, data)
    for epoch, shape in enumerate([(33, 34) if scale == 1 else (16, 16), (33, 34)]):
        batches = make_batches(recipe, data, epoch)
        assert batches[0][0].shape[1:3] == shape
        model.fit(batches, verbose=0)


@pytest.mark.parametrize(
    ("sizes", "done", "total"),
    [
        ([(32, 32)] * 3, 4 + 3, 3 * 4),  # steps
        ([(24, 24), (32, 32), (32, 32)], 4 * 9 + 3 * 16, 4 * (9 + 16 + 16)),
    ],
)
def test_time_left_follows_the_pixels(tmp_path, monkeypatch, sizes, done, total):
    made = []
    monkeypatch.setattr("shiftvit.training.callbacks.Bar", lambda what, total, done: made.append((what, total, done)))
    ProgressBar(sizes, 4, 50, Watch(tmp_path, Progress(epoch=1, step=3), 0, 60))
    ProgressBar(sizes, 4, 50, Watch(tmp_path, Progress(epoch=3), 0, 60))
    assert made == [("epoch 1/3", total, done), ("epoch 1/3", total, total)]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_model_learns_from_growing_images(tmp_path, sample, monkeypatch, accumulate):
    seen, real = [], EpochBatches.__getitem__
    monkeypatch.setattr(EpochBatches, "__getitem__", lambda *entry: seen.append(real(*entry)) or seen[-1])
    recipe = make_recipe(epochs=3, initial_scale=0.5, accumulate=accumulate)
    run = train(recipe, out=tmp_path / "run", data=sample)
    # The stride is 8, so a half, three quarters and the whole are multiples of it.
    assert [shape[1:] for shape, _ in itertools.groupby(images.shape for images, _ in seen)] == [
        (16, 16, 3),
        (24, 24, 3),
        (32, 32, 3),
    ]
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    # The model is made for images of the whole size, and its figures are of these.
    assert run.bundle.config.image_shape == (32, 32, 3)
    logits = run.bundle.build("float32").predict(run.bundle.prepare(sample.test.images), verbose=0)
    assert measure(logits, sample.test.labels) == pytest.approx(run.metrics["test"], abs=1e-5)


@pytest.mark.slow
def test_muon_with_averaged_weights_lowers_the_loss(tmp_path, sample):
    optimizer = {"name": "muon", "learning_rate": 0.01, "adam_learning_rate": 3e-3}
    run = train(make_recipe(optimizer=optimizer, label_smoothing=0.1), out=tmp_path / "run", data=sample)
    rows = read_log(run.path)
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize(("settings", "last"), [({}, 20), ({"whole_steps": False}, 16)])
def test_smaller_last_batch_may_count_as_a_fraction_of_a_step(settings, last, sample):
    """The Keras example counts `int(images / batch_size * epochs)` steps, and `fit` takes whole ones in each epoch."""
    few = replace(sample, splits={**sample.splits, "train": sample.train.take(np.arange(130))})
    model, steps = build_tiny(few, epochs=10, drop_remainder=False, schedule=settings)  # 80 images remain
    schedule = model.optimizer._learning_rate
    assert steps == 2
    assert schedule.total_steps == last
    assert schedule.warmup_steps == int(0.15 * last)


# Large models are replaced by ones with few and narrow blocks. All other settings are those of the recipes.
NARROW = {"model.embed_dim": 24, "model.depths": [1, 1]}
SMALLER = {
    **dict.fromkeys(("accurate", "cifar10", "cifar10_long", "photos", "quick_gpu"), NARROW),
    "keras_example": {
        "model.embed_dim": 48,
        "model.depths": [1, 1, 1, 1],
        "preprocess.resize": 26,
        "preprocess.crop": 24,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*recipes.list_names()} - {"imagenet"}))  # imagenet has a test file of its own
def test_every_recipe_trains(name, tmp_path, sample):
    small = {"data.validation": 50, "data.limit": 100, "train.batch_size": 50, "train.epochs": 1}
    if name == "probe":  # it only fits a head
        small = {key: value for key, value in small.items() if not key.startswith("train.")}
    run = train(name, out=tmp_path / "run", data=sample, **small, **SMALLER.get(name, {}))
    assert run.metrics["test"]["n"] == len(sample.test.images)
    wanted = apply_start(Recipe.load(name))
    kept = Recipe.load(run.path / "recipe.toml")
    for part in ("augment", "start"):
        assert getattr(kept, part) == getattr(wanted, part)
    assert kept.train.optimizer == wanted.train.optimizer
    assert kept.train.schedule == wanted.train.schedule
    arguments = {
        **(PRESETS[wanted.model.preset].arguments if wanted.model.preset else {}),
        **wanted.model.get_arguments(),
    }
    if wanted.start.source is not None:
        arguments = Bundle.load(wanted.start.source).config.get_arguments() | wanted.model.get_arguments()
    smaller = {"image_shape", *(key.removeprefix("model.") for key in SMALLER.get(name, {}))}
    found = run.bundle.config.get_arguments()
    assert {key: found[key] for key in arguments.keys() - smaller} == {
        key: value for key, value in arguments.items() if key not in smaller
    }


@pytest.mark.parametrize("name", sorted({*recipes.list_names()} - {"imagenet", "finetune", "photos", "probe"}))
def test_every_recipe_builds_its_preset(name, sample):
    recipe = Recipe.load(name, **{"data.validation": 50})
    found = resolve(recipe, load_data(recipe, sample)).model
    parameters = sum(row["parameters"] for row in list_stages(found))
    preset = Recipe.load(name).model.preset
    assert parameters == sum(row["parameters"] for row in list_stages(ModelConfig(**PRESETS[preset].arguments)))


@pytest.mark.slow
@pytest.mark.parametrize("before", [False, True])
def test_tensorboard_gets_every_epoch_once_and_the_test(tmp_path, sample, monkeypatch, before):
    """The run stops in its second epoch; the first part has TensorBoard or not."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    begin = Watch.on_train_batch_begin

    def stop_in_second_epoch(self, batch, logs=None):
        if self.progress.epoch == 1:
            self.signal = signal.SIGTERM
        begin(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_train_batch_begin", stop_in_second_epoch)
        with pytest.raises(Interrupted):
            train(make_recipe(epochs=3), out=tmp_path / "run", data=sample, tensorboard=before)
    run = train(resume=tmp_path / "run", data=sample, tensorboard=True)
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((tmp_path / "run" / "tensorboard").iterdir()):
        events = accumulator.EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["tensors"]:
            found.setdefault(tag, []).extend(
                (one.step, float(one.tensor_proto.float_val[0])) for one in events.Tensors(tag)
            )
    for key in ("loss", "val_top1", "learning_rate"):
        assert found[key] == [(row["epoch"], pytest.approx(row[key], rel=1e-6)) for row in run.history], key
    for key in ("loss", "top1", "top5"):
        assert found[f"test_{key}"] == [(3, pytest.approx(run.metrics["test"][key], rel=1e-6))]


@pytest.mark.slow
def test_early_stopping_stops_and_keeps_the_best(tmp_path, sample):
    # A rate of practically zero: no epoch is more accurate than the first.
    run = train(
        make_recipe(epochs=9, early_stopping=2, ema=None, optimizer={"learning_rate": 1e-12}),
        out=tmp_path / "run",
        data=sample,
    )
    assert run.metrics["train"]["epochs"] == 3
    losses = [row["val_loss"] for row in run.history]
    assert run.metrics["train"]["best_epoch"] == 1 + losses.index(min(losses))


def test_non_finite_loss_stops_the_run(tmp_path, sample):
    optimizer = {"learning_rate": 1e30, "weight_decay": 0.0}
    with pytest.raises(ShiftViTError, match=r"not finite|the loss is (nan|inf)") as caught:
        train(make_recipe(optimizer=optimizer, schedule={"warmup": 0}), out=tmp_path / "run", data=sample)
    assert "epoch 1" in str(caught.value)
    assert "lower train.optimizer.learning_rate" in str(caught.value)
    assert "last good state" not in str(caught.value)  # there is none
    assert not (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()


@pytest.mark.slow
def test_batch_with_a_non_finite_loss_is_reported(tmp_path, sample, monkeypatch):
    original, expected, epochs = EpochBatches.__getitem__, {}, []

    def return_nan(self, index):
        images, labels = original(self, index)
        epochs.append(index)
        if index == 2 and epochs.count(2) == 2:
            expected["names"] = [f"training image {number}" for number in self.find_indices(index)]
            images = images * np.nan
        return images, labels

    monkeypatch.setattr(EpochBatches, "__getitem__", return_nan)
    with pytest.raises(ShiftViTError, match=r"the loss is nan after a batch with training image \d+") as caught:
        train(make_recipe(), out=tmp_path / "run", data=sample)
    assert "epoch 2, step 3;" in str(caught.value)
    assert "last good state" in str(caught.value)
    report = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert report == {"epoch": 2, "step": 3, "loss": "nan", "images": expected["names"]}
    monkeypatch.setattr(EpochBatches, "__getitem__", original)
    assert train(resume=tmp_path / "run", data=sample).metrics["train"]["epochs"] == 3


def test_non_finite_weights_are_never_saved(tmp_path, sample):
    model, _ = build_tiny(sample)
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, model, Progress(epoch=1))
    model.trainable_variables[0].assign(np.full(model.trainable_variables[0].shape, np.nan))
    with pytest.raises(ShiftViTError, match=r"a weight is not finite at the end of epoch 2; .*the last good state"):
        save_checkpoint(path, model, Progress(epoch=2))
    assert load_checkpoint(path, model).epoch == 1


def test_non_finite_validation_names_the_epoch_that_ended(tmp_path, sample, monkeypatch):
    monkeypatch.setattr(
        "shiftvit.training.epoch.predict_together",
        lambda _processes, _model, split, _settings: np.full((len(split), 10), np.nan, np.float32),
    )
    with pytest.raises(ShiftViTError, match=r"^the validation loss is not finite at the end of epoch 1; lower"):
        train(make_recipe(epochs=1), out=tmp_path / "run", data=sample)


def test_existing_run_folder_is_not_changed(finished_run, tmp_path, sample):
    with pytest.raises(ShiftViTError, match="is not an empty folder"):
        train(make_recipe(), out=finished_run.path, data=sample)
    with pytest.raises(ShiftViTError, match="is complete"):
        train(resume=finished_run.path, data=sample)
    with pytest.raises(ShiftViTError, match="not a run folder"):
        train(resume=tmp_path, data=sample)
    for changes in ({"out": tmp_path / "x"}, {"recipe": "cifar10"}):
        with pytest.raises(ShiftViTError, match="keeps its folder and recipe"):
            train(resume=finished_run.path, **changes)


def test_damaged_or_foreign_checkpoint_is_refused(tmp_path, sample):
    model, _ = build_tiny(sample)
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, model, Progress(epoch=2, history=[{"epoch": 1}]))
    assert load_checkpoint(path, model) == Progress(epoch=2, history=[{"epoch": 1}])
    other, _ = build_tiny(sample, ema=None)
    with pytest.raises(ShiftViTError, match="belongs to a different model or optimizer"):
        load_checkpoint(path, other)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ShiftViTError, match="cannot read the checkpoint"):
        load_checkpoint(path, model)
    with pytest.raises(ShiftViTError, match="cannot read the checkpoint"):
        load_checkpoint(tmp_path / "missing", model)


def test_full_disk_keeps_the_last_checkpoint(tmp_path, sample):
    model, _ = build_tiny(sample)
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, model, Progress(epoch=1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so the write fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(ShiftViTError, match=r"cannot write .*File too large"):
            save_checkpoint(path, model, Progress(epoch=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert load_checkpoint(path, model).epoch == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("written", [True, False])
def test_best_state_is_of_the_epoch_that_the_last_state_names(tmp_path, sample, monkeypatch, written):
    model, _ = build_tiny(sample)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    finish_epoch(tmp_path, model, Progress(epoch=1), {"val_top1": 0.5, "val_loss": 1.0})

    def fill_disk(path, *arguments):
        if path.name == LAST and not written:
            raise ShiftViTError("the disk is full")
        save_checkpoint(path, *arguments)

    monkeypatch.setattr("shiftvit.training.epoch.save_checkpoint", fill_disk)
    second = Progress(epoch=2, best_top1=0.5, best_loss=1.0, best_epoch=1)
    if written:
        finish_epoch(tmp_path, model, second, {"val_top1": 0.6, "val_loss": 1.0})
    else:
        with pytest.raises(ShiftViTError, match="disk is full"):
            finish_epoch(tmp_path, model, second, {"val_top1": 0.6, "val_loss": 1.0})
    kept = load_checkpoint(folder / LAST, model)
    settle_best(folder, kept)  # as a resumed run does
    assert kept.best_epoch == load_checkpoint(folder / BEST, model).epoch == (2 if written else 1)
    assert not (folder / NEW_BEST).exists()


def test_loss_decides_between_epochs_of_equal_accuracy(tmp_path, sample):
    model, _ = build_tiny(sample)
    (tmp_path / "checkpoints").mkdir()
    progress = Progress()
    rows = [(0.5, 2.0, 1), (0.5, 1.5, 2), (0.5, 1.8, 2), (0.5, 1.5, 2), (0.6, 3.0, 5)]
    for epoch, (top1, loss, best) in enumerate(rows, start=1):
        progress.epoch = epoch
        finish_epoch(tmp_path, model, progress, {"val_top1": top1, "val_loss": loss})
        assert progress.best_epoch == best
        assert load_checkpoint(tmp_path / "checkpoints" / BEST, model).epoch == best


@pytest.mark.parametrize("last", [1, 2, None])
def test_best_state_from_before_a_crash_is_used_or_deleted(tmp_path, sample, last):
    model, _ = build_tiny(sample)
    save_checkpoint(tmp_path / BEST, model, Progress(epoch=1, best_epoch=1))
    save_checkpoint(tmp_path / NEW_BEST, model, Progress(epoch=2, best_epoch=2))
    settle_best(tmp_path, Progress(best_epoch=last))
    assert load_checkpoint(tmp_path / BEST, model).best_epoch == (last or 1)
    (tmp_path / NEW_BEST).write_bytes(b"damaged")
    settle_best(tmp_path, Progress(best_epoch=last))
    assert [file.name for file in tmp_path.iterdir()] == [BEST]


def test_labels_must_name_every_class(finished_run):
    with pytest.raises(ShiftViTError, match="3 labels do not name 10 classes"):
        Bundle.from_model(finished_run.bundle.build(), ("a", "b", "c"), finished_run.bundle.preprocess)
