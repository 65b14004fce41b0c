"""Frozen layers stay frozen through saving and loading, as in Keras' own models."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from shiftvit import ShiftViT
from tensors import to_numpy

IMAGES = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
LABELS = np.arange(8) % 3


def build():
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


def freeze_the_whole(model):
    model.trainable = False


WAYS = [freeze_backbone, freeze_a_block, freeze_norms, freeze_all_but_a_block, freeze_the_whole]


@pytest.mark.parametrize("freeze", WAYS)
def test_the_trainable_variables_are_the_same_after_loading(freeze, tmp_path):
    model = build()
    everything = len(model.trainable_variables)
    freeze(model)
    model.save(tmp_path / "model.keras")
    for twin in (keras.saving.load_model(tmp_path / "model.keras"), ShiftViT.from_config(model.get_config())):
        assert [v.path for v in twin.trainable_variables] == [v.path for v in model.trainable_variables]
        assert len(twin.trainable_variables) < everything
        assert twin.get_config() == model.get_config()


def test_a_model_with_nothing_frozen_has_the_configuration_of_earlier_versions():
    assert "trainable_layers" not in build().get_config()


@pytest.mark.parametrize("freeze", [freeze_backbone, freeze_norms])
def test_a_loaded_model_trains_on_as_the_saved_one(freeze, tmp_path):
    model = build()
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
    # The frozen norms' moving figures stay as they were, too.
    assert [path for path in still if "moving" in path]


def test_the_layout_in_keras_json_is_of_no_account():
    expected = build().get_config()
    keras.config.set_image_data_format("channels_first")
    try:
        model = build()
        assert model.get_config() == expected
        assert model.get_layer("head").kernel.shape == (48, 3)
        twin = ShiftViT.from_config(model.get_config())
        twin.set_weights(model.get_weights())
        there = to_numpy(model(IMAGES))
    finally:
        keras.config.set_image_data_format("channels_last")
    here = build()
    here.set_weights(model.get_weights())
    np.testing.assert_allclose(to_numpy(here(IMAGES)), there, atol=1e-6)
