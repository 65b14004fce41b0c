"""The benchmark: its rates are consistent, and the models that it compares are equivalent."""

from __future__ import annotations

import datetime
import itertools
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from shiftvit import Recipe, ShiftViT, ShiftViTError
from shiftvit.benchmark import benchmark, measure_peak_gflops
from shiftvit.bundle.session import open_session
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.bundle.stored.manifest import GRAPH
from shiftvit.cli.main import app
from shiftvit.config import ModelConfig
from shiftvit.presets import PRESETS
from tensors import to_numpy

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from accuracy import claim_folder
from contenders import CNNS, build_cnn
from contest import SIDE, Budget, give_task
from plain_keras import build_plain_model
from record import write_record

SMALL = {"image_shape": (24, 24, 3), "embed_dim": 24, "depths": (1, 2), "num_classes": 5}


@pytest.mark.parametrize(
    "arguments",
    [
        {**PRESETS["keras_example"].arguments, **SMALL, "shift_channels": 3},
        {**PRESETS["shiftvit_cifar"].arguments, **SMALL, "drop_path": 0.1},
    ],
)
def test_plain_model_has_the_same_outputs(arguments):
    config = ModelConfig(**arguments)
    ours, plain = ShiftViT(**config.get_arguments()), build_plain_model(config, "float32")
    generator = np.random.default_rng(0)
    assert len(ours.weights) == len(plain.weights)
    for mine, theirs in zip(ours.weights, plain.weights, strict=True):
        value = generator.normal(size=theirs.shape, scale=0.2).astype(np.float32)
        theirs.assign(value)
        mine.assign(value.reshape(mine.shape))  # ours stores a convolution whose stride is its kernel size as a matrix
    images = generator.normal(size=(3, *config.image_shape)).astype(np.float32)
    np.testing.assert_allclose(to_numpy(ours(images)), to_numpy(plain(images)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("recipe", "side"), [("quick", SIDE), ("photos", 64)])
def test_contenders_get_whole_pictures(recipe, side, tmp_path):
    for index in range(24):
        place = tmp_path / "pictures" / ("cat", "dog")[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(place / f"{index}.png")
    task = give_task(recipe, "pictures", tmp_path / "pictures", seed=0, seconds=60, test_images=None)
    sizes = {images.shape[1:3] for epoch in itertools.islice(task.batches(), 2) for images, _ in epoch}
    assert sizes == {(side, side)}


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "classes"), [("quick", 10), ("cifar10", 10), ("cifar10", 2)])
def test_baseline_cnns_have_as_many_parameters_as_our_models(recipe, classes):
    assert set(CNNS) == {"quick", "cifar10"}
    preset = Recipe.load(recipe).model.preset
    ours = ShiftViT.from_preset(preset, num_classes=classes)
    assert build_cnn(recipe, classes).count_params() == pytest.approx(ours.count_params(), rel=0.05)


class Clock:
    """A fake clock that advances only with training steps."""

    now = 0.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(("step", "steps"), [(0.1, 20), (1.0, 2), (3.0, 7), (0.01, 500)])
def test_planned_epochs_use_most_of_the_budget(step, steps):
    clock = Clock()
    budget = Budget(120.0, clock)
    variants = {"slow": lambda: clock.advance(2 * step), "fast": lambda: clock.advance(step)}
    chosen, epochs = budget.plan(variants, steps)
    assert chosen == "fast"
    assert clock.now <= 0.05 * 120 + 10 * step
    for _ in range(epochs * steps):
        clock.advance(step)
    assert 0.05 * 120 - 1e-6 <= budget.left() < 0.05 * 120 + steps * step + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("model", "train"), [("cifar10", False), ("shiftvit_cifar_tiny", True)])
def test_share_of_peak_matches_the_rate(model, train, monkeypatch):
    monkeypatch.setattr("shiftvit.benchmark.measure_peak_gflops", partial(measure_peak_gflops, repeats=1))
    found = benchmark(model, train=train, batch_sizes=[1, 3], repeats=2, seconds=0.05)
    assert found["mode"] == ("train" if train else "predict")
    assert [row["batch_size"] for row in found["rows"]] == [1, 3]
    for row in found["rows"]:
        assert 0 < row["minimum"] <= row["images_per_second"] <= row["maximum"]
        per_image = found["gflop_per_image"] / found["peak_gflops"]
        # The rate is rounded to 0.1, which is much of it on a slow machine, and the share to 0.0001.
        tolerance = 0.06 * per_image + 1e-4
        assert row["share_of_peak"] == pytest.approx(row["images_per_second"] * per_image, rel=0.02, abs=tolerance)


@pytest.mark.slow
def test_gflop_per_image_matches_the_published_value(monkeypatch):
    """The published value for training this model is 0.62 GFLOP per image."""
    monkeypatch.setattr("shiftvit.benchmark.measure_peak_gflops", lambda _: 100.0)  # takes seconds, and is not needed
    found = benchmark("keras_example", train=True, batch_sizes=[1], repeats=1, seconds=0.01)
    assert found["gflop_per_image"] == pytest.approx(0.62, abs=0.03)


def test_export_has_rates_without_a_share(tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("the peak is of no use without the cost of an image")

    monkeypatch.setattr("shiftvit.benchmark.measure_peak_gflops", fail)
    shutil.copyfile(PRETRAINED / "cifar10" / GRAPH, tmp_path / "model.onnx")
    for model in (tmp_path, tmp_path / "model.onnx"):
        found = benchmark(str(model), batch_sizes=[2], repeats=1, seconds=0.01)
        assert (found["precision"], found["peak_gflops"], found["gflop_per_image"]) == ("float32", None, None)
        (row,) = found["rows"]
        assert row["images_per_second"] > 0
        assert row["share_of_peak"] is None
    monkeypatch.setattr("shiftvit.benchmark.benchmark", lambda *_, **__: found)
    answer = CliRunner().invoke(app, ["benchmark", str(tmp_path)])
    assert answer.exit_code == 0, answer.output
    assert "an export's operations are not counted" in answer.output
    assert "share of peak" not in answer.output


@pytest.mark.slow
def test_threads_are_those_of_the_graph_and_of_the_peak(tmp_path, monkeypatch):
    shutil.copyfile(PRETRAINED / "cifar10" / GRAPH, tmp_path / "model.onnx")
    opened, limits = [], []
    monkeypatch.setattr(
        "shiftvit.bundle.session.open_session", lambda *given: opened.append(given[1]) or open_session(*given)
    )
    monkeypatch.setattr("shiftvit.benchmark.limit_threads", limits.append)
    arguments = ["benchmark", str(tmp_path), "--batch-size", "1", "--repeats", "1", "--json"]
    answer = CliRunner().invoke(app, [*arguments, "--threads", "3"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["threads"] == 3
    assert (opened, limits) == ([3], [3])
    assert benchmark(str(tmp_path), repeats=1, seconds=0.01)["threads"] is None
    assert limits == [3]


def test_invalid_arguments_fail():
    with pytest.raises(ShiftViTError, match=r"there is no precision 'bf16'; .*valid: auto, float32, mixed_bfloat16"):
        benchmark("shiftvit_cifar", train=True, precision="bf16")
    with pytest.raises(ShiftViTError, match="batch_size=0 must be at least 1"):
        benchmark(batch_sizes=[0])
    with pytest.raises(ShiftViTError, match="repeats=0 must be at least 1"):
        benchmark(repeats=0)
    with pytest.raises(ShiftViTError, match="threads=0 must be at least 1"):
        benchmark(threads=0)
    with pytest.raises(ShiftViTError, match="is a preset, which has no weights"):
        benchmark("shiftvit_cifar")


def test_kept_runs_belong_to_one_set_of_arguments(tmp_path):
    asked = {"recipe": "quick", "settings": ["train.epochs=1"], "avx2": False}
    claim_folder(tmp_path / "new", asked)
    claim_folder(tmp_path / "new", asked)
    with pytest.raises(SystemExit, match="not of"):
        claim_folder(tmp_path / "new", {**asked, "recipe": "cifar10"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "seed0").mkdir()
    with pytest.raises(SystemExit, match="no benchmark wrote it"):
        claim_folder(tmp_path / "mine", asked)


def test_record_has_the_command_and_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/steps.py", "keras_example", "--set", "a b=0"])
    monkeypatch.setattr("record._BACKEND", "jax")
    path = write_record("steps-x", {"n": 3}, folder=tmp_path / "results")
    found = json.loads(path.read_text("utf-8"))
    assert found["command"] == "KERAS_BACKEND=jax python benchmarks/steps.py keras_example --set 'a b=0'"
    assert path.name == f"steps-x-{found['date']}.json"
    assert datetime.date.fromisoformat(found["date"])
    assert found["n"] == 3
    assert found["environment"]["versions"]["shiftvit"]
    assert "command" not in found["environment"]
    assert path.name in capsys.readouterr().out
    other = write_record("other", {}, command="python x", ran_on={"processor": "P"}, folder=tmp_path)
    assert (
        json.loads(other.read_text("utf-8")).items()
        >= {"command": "python x", "environment": {"processor": "P"}}.items()
    )
