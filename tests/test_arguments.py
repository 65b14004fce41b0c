"""A wrong argument of a public function raises a one-line error that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import shiftvit
from sample import load_sample
from shiftvit import Bundle, Embedder, Predictor, Recipe, ShiftViT, ShiftViTError
from shiftvit.inference.explainer import Explainer

WRONG_TYPES = [None, 5, b"cifar10", ["cifar10"], object()]
PIXELS = np.zeros((1, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("value", WRONG_TYPES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "call",
    [
        Predictor.from_pretrained,
        Embedder.from_pretrained,
        Explainer.from_pretrained,
        Bundle.load,
        shiftvit.evaluate,
        lambda value: shiftvit.export(value, "onnx"),
        Recipe.load,
    ],
)
def test_model_or_recipe_must_be_a_path(call: Callable[[Any], Any], value: object) -> None:
    with pytest.raises(ShiftViTError, match=rf"(model|recipe) has the type {type(value).__name__}; give a str"):
        call(value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Predictor.from_pretrained("cifar10", runtime=None), "there is no runtime None"),
        (lambda: Predictor.from_pretrained("cifar10", runtime=["torch"]), "there is no runtime"),
        (lambda: Embedder.from_pretrained("cifar10", runtime=None), "cannot compute features in None"),
        (lambda: Predictor.from_pretrained("cifar10")(PIXELS, batch_size=None), "batch_size=None must be"),
        (lambda: Predictor.from_pretrained("cifar10")(PIXELS, top_k=None), "top_k=None must be"),
        (lambda: [*Predictor.from_pretrained("cifar10").stream(PIXELS, max_pixels=None)], "max_pixels=None must be"),
        (lambda: shiftvit.export("cifar10", None), "there is no format None"),
        (lambda: shiftvit.export("cifar10", ["onnx"]), "there is no format"),
        (lambda: shiftvit.export("cifar10", "onnx", None), "onnx has no precision None"),
        (lambda: shiftvit.export("cifar10", "onnx", images="5"), "images='5' must be a whole number"),
        (lambda: shiftvit.export("cifar10", "onnx", out=5), "out has the type int"),
        (lambda: shiftvit.evaluate("cifar10", out=5), "out has the type int"),
        (lambda: shiftvit.evaluate("cifar10", logits=5), "logits has the type int"),
        (lambda: shiftvit.evaluate("cifar10", "cifar10", split=5), "there is no split 5"),
        (lambda: shiftvit.evaluate("cifar10", "cifar10", split=["test"]), "there is no split"),
        (lambda: ShiftViT.from_preset(None), "there is no preset None"),
        (lambda: ShiftViT.from_preset(["shiftvit_cifar"]), "there is no preset"),
        (lambda: shiftvit.load_data("quick"), "recipe has the type str; give a Recipe"),
        (lambda: shiftvit.train({"train.epochs": 1}), "recipe has the type dict"),
        (lambda: shiftvit.train(out=5), "out has the type int"),
        (lambda: shiftvit.train(resume=5), "resume has the type int"),
        (lambda: shiftvit.train("quick", **{"train.epochs": 10**30}), "train.epochs = 10* ?: Input should be less"),
        (lambda: shiftvit.train("quick", **{"data.name": "x" * 5000}), "there is no data set 'xxx"),
    ],
)
def test_other_wrong_arguments_are_refused(
    call: Callable[[], Any], message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShiftViTError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("data", ["pets", Path("pets"), PIXELS, (PIXELS, [0])], ids=["str", "Path", "array", "tuple"])
def test_train_refuses_data_that_is_not_a_dataset(data: object, tmp_path: Path) -> None:
    with pytest.raises(ShiftViTError, match=r"data has the type .*; give a Dataset, .*'data.name': 'PATH'"):
        shiftvit.train("quick", out=tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_evaluation_ignores_the_global_dtype_policy(tmp_path: Path) -> None:
    test, names = load_sample().test, np.array(Bundle.load("cifar10").labels)
    path = tmp_path / "x.npz"
    np.savez(path, images=test.images[:20], labels=test.labels[:20], class_names=names)
    expected = shiftvit.evaluate("cifar10", str(path))["loss"]
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert shiftvit.evaluate("cifar10", str(path))["loss"] == expected
    finally:
        keras.config.set_dtype_policy(before)
