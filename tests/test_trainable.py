"""Frozen layers stay frozen through saving and loading, as in Keras' own models."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from shiftvit import ShiftViT
from tensors import to_numpy

IMAGES = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
LABELS = np.arange(8) % 3


def build_model():
    return ShiftViT((16, 16, 3), num_classes=3, embed_dim=24, depths=(1, 2), norm="batch", drop_path=0.0)


def freeze_backbone(model):
    model.backbone.trainable = False


def freeze_a_block(model):
    model.backbone.get_layer("stage2_block1").trainable = False


def freeze_norms(model):
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def freeze_all_but_a_block(model):
    model.backbone.trainable = False
    model.backbone.trainable = True
    for layer in model.backbone.layers:
        layer.trainable = layer.name == "stage1_block1"


def freeze_everything(model):
    model.trainable = False


FREEZE_FUNCTIONS = [freeze_backbone, freeze_a_block, freeze_norms, freeze_all_but_a_block, freeze_everything]


@pytest.mark.parametrize("freeze", FREEZE_FUNCTIONS)
def test_trainable_variables_survive_loading(freeze, tmp_path):
    model = build_model()
    everything = len(model.trainable_variables)
    freeze(model)
    model.save(tmp_path / "model.keras")
    for twin in (keras.saving.load_model(tmp_path / "model.keras"), ShiftViT.from_config(model.get_config())):
        assert [v.path for v in twin.trainable_variables] == [v.path for v in model.trainable_variables]
        assert len(twin.trainable_variables) < everything
        assert twin.get_config() == model.get_config()


def test_config_without_frozen_layers_is_unchanged():
    assert "trainable_layers" not in build_model().get_config()


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [freeze_backbone, freeze_norms])
def test_loaded_model_trains_like_the_saved_one(freeze, tmp_path):
    model = build_model()
    freeze(model)
    model.compile(keras.optimizers.AdamW(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(IMAGES, LABELS, batch_size=8, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    before = {variable.path: to_numpy(variable) for variable in model.variables}
    twin = keras.saving.load_model(tmp_path / "model.keras")
    assert [v.path for v in twin.optimizer.variables] == [v.path for v in model.optimizer.variables]
    for each in (model, twin):
        each.fit(IMAGES, LABELS, batch_size=8, epochs=1, verbose=0)
    for mine, theirs in zip(model.weights, twin.weights, strict=True):
        np.testing.assert_allclose(to_numpy(theirs), to_numpy(mine), atol=1e-5, err_msg=mine.path)
    still = [v.path for v in twin.variables if np.array_equal(to_numpy(v), before[v.path])]
    learned = {variable.path for variable in twin.trainable_variables}
    assert learned.isdisjoint(still)
    # The moving statistics of frozen norms stay unchanged too.
    assert [path for path in still if "moving" in path]


def test_image_data_format_of_keras_is_ignored():
    expected = build_model().get_config()
    keras.config.set_image_data_format("channels_first")
    try:
        model = build_model()
        assert model.get_config() == expected
        assert model.get_layer("head").kernel.shape == (48, 3)
        twin = ShiftViT.from_config(model.get_config())
        twin.set_weights(model.get_weights())
        output = to_numpy(model(IMAGES))
    finally:
        keras.config.set_image_data_format("channels_last")
    plain = build_model()
    plain.set_weights(model.get_weights())
    np.testing.assert_allclose(to_numpy(plain(IMAGES)), output, atol=1e-6)
