"""The models in programs of Keras users: scopes, names, precision, other images, LoRA, and loading saved models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from shiftvit import Bundle, Preprocess, ShiftViTError, WarmUpCosine, convert
from shiftvit.model.network import ShiftViT, ShiftViTBackbone
from tensors import draw_normal, set_random_weights, to_numpy

SMALL: dict[str, Any] = {"num_classes": 3, "embed_dim": 16, "depths": (1, 1), "patch_size": 2, "num_div": 4}
LABELS = ("a", "b", "c")


def make_model(channels: int = 3, **arguments: Any) -> ShiftViT:
    model = ShiftViT((16, 16, channels), **{**SMALL, **arguments})
    set_random_weights(model)
    return model


@pytest.mark.parametrize(("takes", "given"), [(1, 3), (1, 4), (3, 1)])
def test_images_with_other_channels_are_refused(takes: int, given: int) -> None:
    model = make_model(takes)
    images = draw_normal(4, 16, 16, given)
    with pytest.raises(ShiftViTError, match=f"the images have {given} channels?, but this model takes {takes}"):
        model(images)
    with pytest.raises(ShiftViTError, match=f"takes {takes}"):
        model.predict(images, verbose=0)


def test_images_with_other_channels_are_refused_after_several_shapes() -> None:
    """tensorflow then has a graph that knows no shape."""
    model = ShiftViT((None, None, 1), **SMALL)
    for batch, side in ((4, 16), (3, 20), (2, 24)):
        assert model.predict(draw_normal(batch, side, side, 1), verbose=0).shape == (batch, 3)
    with pytest.raises(Exception, match=r"channel|shape"):
        model.predict(draw_normal(4, 28, 28, 4), verbose=0)


@pytest.mark.parametrize(("side", "depths"), [(8, (1, 1, 1, 1)), (1, (1,))])
def test_images_too_small_for_a_model_of_any_size_are_refused(side: int, depths: tuple[int, ...]) -> None:
    model = ShiftViT((None, None, 3), **{**SMALL, "depths": depths})
    with pytest.raises(ShiftViTError, match="the images are too small for this model"):
        model(draw_normal(2, side, side, 3))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_model_has_the_policy_of_its_dtype(policy: str) -> None:
    """Keras scales the loss of a float16 model, whose small gradients would otherwise become 0."""
    model = make_model(dtype=policy)
    assert model.dtype_policy.name == model.backbone.dtype_policy.name == policy
    model.compile("adam", "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    assert ShiftViT.from_config(model.get_config()).dtype_policy.name == policy


def test_config_has_the_arguments_of_the_constructor() -> None:
    model = make_model(trainable=False, name="mine")
    assert model.trainable_weights == []
    again = ShiftViT(**model.get_config())
    assert again.get_config() == model.get_config()
    assert again.trainable_weights == []


def test_two_models_of_presets_in_one_network() -> None:
    images = keras.Input((32, 32, 3))
    backbones = [ShiftViTBackbone.from_preset("shiftvit_cifar_tiny", name=name) for name in ("left", "right")]
    features = keras.layers.Concatenate()([backbone(images) for backbone in backbones])
    model = keras.Model(images, features)
    pixels = draw_normal(1, 32, 32, 3)
    expected = np.concatenate([to_numpy(backbone(pixels)) for backbone in backbones], axis=-1)
    np.testing.assert_allclose(to_numpy(model(pixels)), expected, rtol=0, atol=1e-6)


class Around(keras.layers.Layer):
    """Makes a model as a part of itself."""

    def build(self, _: Any) -> None:
        self.model = ShiftViT((16, 16, 3), **SMALL)

    def call(self, x: Any) -> Any:
        return self.model(x)


def make_in_a_scope() -> ShiftViT:
    with keras.name_scope("encoder"):
        return ShiftViT((16, 16, 3), **SMALL)


def make_in_a_layer() -> ShiftViT:
    layer = Around()
    layer.build((None, 16, 16, 3))
    return layer.model


@pytest.mark.parametrize("make", [ShiftViT, make_in_a_scope, make_in_a_layer])
@pytest.mark.parametrize("lora", [False, True])
def test_bundle_keeps_a_model_wherever_it_was_made(make: Any, lora: bool, tmp_path: Path) -> None:
    model = make((16, 16, 3), **SMALL) if make is ShiftViT else make()
    if lora:
        model.backbone.get_layer("stage1_block1").mlp.fc1.enable_lora(2)
    set_random_weights(model)
    Bundle.from_model(model, LABELS, Preprocess()).save(tmp_path / "bundle")
    images = draw_normal(2, 16, 16, 3)
    found = Bundle.load(tmp_path / "bundle").build()(images)
    np.testing.assert_allclose(to_numpy(found), to_numpy(model(images)), rtol=0, atol=1e-5)


def test_bundle_of_a_grey_model_is_refused() -> None:
    with pytest.raises(ShiftViTError, match=r"image_shape=\(16, 16, 1\) is not of RGB images"):
        Bundle.from_model(make_model(1), LABELS, Preprocess())


@pytest.mark.parametrize("model", [None, keras.Sequential([keras.layers.Dense(1)])])
@pytest.mark.parametrize("load", [convert.load_official, convert.load_keras_example])
def test_weights_are_loaded_only_into_these_models(load: Any, model: Any) -> None:
    with pytest.raises(ShiftViTError, match=f"has the type {type(model).__name__}; give a ShiftViT"):
        load(model, {})


@pytest.mark.slow
@pytest.mark.parametrize("program", ["import keras, shiftvit", "import keras\nfrom shiftvit import ShiftViT"])
def test_saved_model_loads_after_the_import_of_the_package(program: str, tmp_path: Path) -> None:
    model = make_model()
    model.compile(keras.optimizers.SGD(WarmUpCosine(0.0, 1.0, 1, 5)), "mse")
    model.save(tmp_path / "model.keras")
    program += (
        "\nmodel = keras.saving.load_model('model.keras')\nprint(type(model).__name__, float(model.optimizer.lr))"
    )
    program = program.replace("float(model.optimizer.lr)", "type(model.optimizer._learning_rate).__name__")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.split()[-2:] == ["ShiftViT", "WarmUpCosine"]
