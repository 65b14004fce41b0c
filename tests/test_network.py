"""The models: presets, configs, saving, gradients, sizes, and features for detectors."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from shiftvit import presets
from shiftvit.config import ModelConfig
from shiftvit.errors import ShiftViTError
from shiftvit.model.blocks import PatchMerging, ShiftBlock
from shiftvit.model.network import ShiftViT, ShiftViTBackbone
from shiftvit.presets import PRESETS
from shiftvit.stages import list_stages
from tensors import compute_weight_gradients, draw_normal, set_random_weights, to_numpy

# Numbers of trainable parameters: of the official registry's models, counted there; of the Keras example; of our own.
PARAMETER_COUNTS = {
    "shiftvit_tiny_light": 19_608_328,
    "shiftvit_small_light": 33_796_360,
    "shiftvit_base_light": 59_708_776,
    "shiftvit_tiny_r4": 31_426_312,
    "shiftvit_small_r4": 51_523_336,
    "shiftvit_base_r4": 87_271_528,
    "shiftvit_tiny_r2": 28_566_664,
    "shiftvit_small_r2": 50_304_136,
    "shiftvit_base_r2": 89_026_408,
    "keras_example": 11_690_602,
    "shiftvit_cifar": 1_980_618,
    "shiftvit_cifar_tiny": 777_866,
    "shiftvit_cifar_large": 10_325_258,
}
every_preset = pytest.mark.parametrize("name", PARAMETER_COUNTS)
SMALL: dict[str, Any] = {"image_shape": (16, 16, 3), "num_classes": 5, "embed_dim": 24, "depths": (1, 1)}
KINDS = (ShiftViT, ShiftViTBackbone)


def make_small_model(**arguments: Any) -> ShiftViT:
    model = ShiftViT(**{**SMALL, **arguments})
    set_random_weights(model)
    return model


def get_defaults(kind: type[Any]) -> dict[str, Any]:
    return {name: field.default for name, field in ModelConfig.model_fields.items() if name in kind._accepted}


@pytest.fixture
def zero_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialises with zeros: in building a large model, only drawing 90 million numbers takes time."""
    zeros = keras.initializers.Zeros()
    kind = keras.initializers.TruncatedNormal
    monkeypatch.setattr(kind, "__call__", lambda self, shape, dtype=None: zeros(shape, dtype))  # noqa: ARG005


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_are_the_fields_of_the_config(kind: type[Any]) -> None:
    signature = inspect.signature(kind).parameters
    found = {name: p.default for name, p in signature.items() if name not in ("dtype", "name", "trainable")}
    left_out = {"preset"} if kind is ShiftViT else {"preset", "num_classes"}
    expected = {name: f.default for name, f in ModelConfig.model_fields.items() if name not in left_out}
    assert found == expected
    assert list(signature) == [*found, "dtype", "name", "trainable"]


def test_omitted_arguments_have_their_defaults() -> None:
    model = ShiftViT((32, 32, 3), depths=(1, 1))
    expected = {**get_defaults(ShiftViT), "image_shape": (32, 32, 3), "depths": (1, 1)}
    assert {key: getattr(model.settings, key) for key in expected} == expected
    assert model.output_shape == (None, 1000)


def test_every_preset_is_listed_here() -> None:
    assert PRESETS.keys() == PARAMETER_COUNTS.keys()


def test_drop_path_rates_are_the_official_ones() -> None:
    found = {name: preset.arguments.get("drop_path", 0.2) for name, preset in PRESETS.items()}
    assert found == {
        **{f"shiftvit_tiny_{kind}": 0.2 for kind in ("light", "r4", "r2")},
        **{f"shiftvit_small_{kind}": 0.4 for kind in ("light", "r4", "r2")},
        **{"shiftvit_base_light": 0.5, "shiftvit_base_r4": 0.5, "shiftvit_base_r2": 0.6},
        "keras_example": 0.2,
        "shiftvit_cifar": 0.0,
        "shiftvit_cifar_tiny": 0.0,
        "shiftvit_cifar_large": 0.0,
    }


@every_preset
def test_parameter_count_computed_from_the_config(name: str) -> None:
    rows = list_stages(ModelConfig(**PRESETS[name].arguments))
    assert sum(row["parameters"] for row in rows) == PARAMETER_COUNTS[name]


@pytest.mark.slow
@every_preset
@pytest.mark.usefixtures("zero_weights")
def test_parameter_count_of_the_built_model(name: str) -> None:
    model = ShiftViT.from_preset(name)
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == PARAMETER_COUNTS[name]
    assert len(model.weights) == len(model.trainable_variables)


OVERRIDES: dict[str, Any] = {
    "image_shape": (40, 24, 3),
    "num_classes": 7,
    "patch_size": 5,
    "embed_dim": 80,
    "depths": (1, 2),
    "mlp_ratio": 1.5,
    "num_div": 8,
    "shift_pixels": 2,
    "shift_channels": 5,
    "norm": "batch",
    "activation": "silu",
    "dropout": 0.15,
    "drop_path": 0.45,
    "epsilon": 1e-3,
}
CHOICES = {
    "shift_mode": ("shift", "mask"),
    "patch_norm": (True, False),
    "final_norm": (True, False),
    "merge_padding": ("valid", "same"),
    "drop_path_mode": ("global", "per_stage"),
}


@every_preset
def test_every_override_reaches_the_model(name: str) -> None:
    own = {**get_defaults(ShiftViT), **PRESETS[name].arguments}
    others = {key: next(value for value in choice if value != own[key]) for key, choice in CHOICES.items()}
    overrides = {**OVERRIDES, **others}
    assert overrides.keys() == own.keys()
    assert not [key for key, value in overrides.items() if value == own[key]], "these overrides change nothing"

    model = ShiftViT.from_preset(name, **overrides)
    assert {key: getattr(model.settings, key) for key in overrides} == overrides
    assert model.input_shape == (None, 40, 24, 3)
    assert model.output_shape == (None, 7)
    assert model.backbone.output_shape == (None, 4, 2, 160)
    block = model.backbone.get_layer("stage2_block2")
    assert block.settings == {
        **{key: overrides[key] for key in block.settings if key != "drop_path"},
        "drop_path": 0.45,
    }
    assert isinstance(block.norm, keras.layers.BatchNormalization)
    merge = model.backbone.get_layer("stage1_merge")
    assert (merge.padding, merge.epsilon) == (others["merge_padding"], 1e-3)
    assert (model.backbone.get_layer("patch_embed").norm is not None) == others["patch_norm"]
    assert any(layer.name == "norm" for layer in model.backbone.layers) == others["final_norm"]


@every_preset
@pytest.mark.parametrize("kind", KINDS)
def test_overrides_keep_the_rest_of_the_preset(name: str, kind: type[Any]) -> None:
    overrides = {"image_shape": (32, 32, 3), "depths": (1,), "drop_path": 0.3}
    model = kind.from_preset(name, **overrides)
    expected = {**get_defaults(kind), **PRESETS[name].arguments, **overrides}
    assert {key: getattr(model.settings, key) for key in get_defaults(kind)} == {
        key: value for key, value in expected.items() if key in kind._accepted
    }


@pytest.mark.parametrize("kind", KINDS)
def test_config_rebuilds_the_same_model(kind: type[Any]) -> None:
    overrides = {key: value for key, value in OVERRIDES.items() if key in kind._accepted}
    model = kind(**overrides, merge_padding="same", dtype="mixed_bfloat16", name="mine")
    config = model.get_config()
    assert config.keys() == {*get_defaults(kind), "name", "trainable", "dtype"}
    twin = kind.from_config(json.loads(json.dumps(config)))
    assert twin.get_config() == config
    assert twin.name == "mine"
    assert [(w.path, w.shape) for w in twin.weights] == [(w.path, w.shape) for w in model.weights]
    twin.set_weights(model.get_weights())
    x = draw_normal(2, 40, 24, 3)
    np.testing.assert_array_equal(to_numpy(twin(x)), to_numpy(model(x)))


def test_config_keeps_the_model_frozen() -> None:
    model = make_small_model()
    model.trainable = False
    assert ShiftViT.from_config(model.get_config()).trainable_variables == []


RELOAD = """
import sys
import numpy as np
from shiftvit import ShiftViT
import keras
folder = sys.argv[1]
x = np.load(f"{folder}/x.npy")
for path in sys.argv[2:]:
    model = keras.saving.load_model(path)
    assert type(model) is ShiftViT, type(model)
    np.save(f"{path}.npy", keras.ops.convert_to_numpy(model(x)))
"""


@pytest.mark.slow
def test_saved_model_gives_the_same_logits_in_another_process(tmp_path: Path) -> None:
    x = draw_normal(2, 16, 16, 3)
    np.save(tmp_path / "x.npy", x)
    outputs = {}
    for norm in ("group", "layer", "batch"):
        model = make_small_model(norm=norm, merge_padding="same", dropout=0.1)
        path = tmp_path / f"{norm}.keras"
        model.save(path)
        outputs[str(path)] = to_numpy(model(x))
    subprocess.run([sys.executable, "-c", RELOAD, str(tmp_path), *outputs], check=True, env=os.environ)
    for path, expected in outputs.items():
        np.testing.assert_allclose(np.load(f"{path}.npy"), expected, rtol=0, atol=1e-6)


FAMILIES = {
    "group": {},
    "layer": {"norm": "layer"},
    "batch": {"norm": "batch"},
    "r4": {"mlp_ratio": 4.0},
    "base": {"embed_dim": 32, "num_div": 16},
    "keras_example": {**PRESETS["keras_example"].arguments, "embed_dim": 48},
}


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_finite_gradient(family: str, policy: str) -> None:
    sizes = {"image_shape": (32, 32, 3), "num_classes": 5, "depths": (1, 2), "drop_path": 0.1}
    model = ShiftViT(**{**SMALL, **FAMILIES[family], **sizes}, dtype=policy)
    x = draw_normal(4, 32, 32, 3)
    logits = to_numpy(model(x))
    assert logits.shape == (4, 5)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()

    gradients = compute_weight_gradients(model, x, draw_normal(4, 5, seed=1))
    assert len(gradients) == len(model.trainable_variables)
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        # A batch norm cancels the bias before it.
        if not (family == "batch" and path == "patch_embed/projection/bias"):
            assert np.any(gradient != 0), path


def test_mixed_precision_keeps_the_logits() -> None:
    model, mixed = make_small_model(), make_small_model(dtype="mixed_bfloat16")
    assert {variable.dtype for variable in mixed.weights} == {"float32"}
    assert mixed.output.dtype == "float32"
    x = draw_normal(2, 16, 16, 3)
    expected = to_numpy(model(x))
    np.testing.assert_allclose(to_numpy(mixed(x)), expected, rtol=0.03)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_image_size_may_be_undefined(padding: str) -> None:
    arguments = {"depths": (1, 1, 1), "merge_padding": padding}
    model = make_small_model(**arguments, image_shape=(None, None, 3))
    assert model.input_shape == (None, None, None, 3)
    assert model.backbone.output_shape == (None, None, None, 96)
    for size in [(16, 16), (21, 37)]:
        fixed = make_small_model(**arguments, image_shape=(*size, 3))
        x = draw_normal(2, *size, 3)
        np.testing.assert_allclose(model.predict(x, verbose=0), to_numpy(fixed(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["group", "layer", "batch"])
def test_images_of_a_batch_are_independent(norm: str) -> None:
    model = make_small_model(norm=norm)
    x = draw_normal(3, 16, 16, 3)
    together = to_numpy(model(x))
    for index in range(3):
        alone = to_numpy(model(x[index : index + 1]))
        np.testing.assert_allclose(alone[0], together[index], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
def test_any_number_of_stages(stages: int) -> None:
    model = make_small_model(image_shape=(64, 64, 3), depths=(1,) * stages, embed_dim=12)
    side, channels = 16 // 2 ** (stages - 1), 12 * 2 ** (stages - 1)
    assert model.backbone.output_shape == (None, side, side, channels)
    assert sum(isinstance(layer, PatchMerging) for layer in model.backbone.layers) == stages - 1
    assert to_numpy(model(draw_normal(1, 64, 64, 3))).shape == (1, 5)


def test_model_without_classes_returns_pooled_features() -> None:
    model = make_small_model(num_classes=0)
    x = draw_normal(2, 16, 16, 3)
    assert model.output_shape == (None, 48)
    assert not any(variable.path.startswith("head") for variable in model.weights)
    expected = to_numpy(model.backbone(x)).mean((1, 2))
    np.testing.assert_allclose(to_numpy(model(x)), expected, rtol=1e-5, atol=1e-5)


def test_head_is_linear_on_the_pooled_features() -> None:
    model = make_small_model()
    x = draw_normal(2, 16, 16, 3)
    pooled = to_numpy(model.backbone(x)).mean((1, 2))
    kernel, bias = (to_numpy(weight) for weight in model.get_layer("head").weights)
    np.testing.assert_allclose(to_numpy(model(x)), pooled @ kernel + bias, rtol=1e-4, atol=1e-4)


def list_drop_path_rates(**arguments: Any) -> list[float]:
    backbone = ShiftViTBackbone((64, 64, 3), embed_dim=12, **arguments)
    return [layer.settings["drop_path"] for layer in backbone.layers if isinstance(layer, ShiftBlock)]


def test_drop_path_ramps_over_all_blocks() -> None:
    found = list_drop_path_rates(depths=(2, 1, 3), drop_path=0.4)
    np.testing.assert_allclose(found, [0.4 * block / 5 for block in range(6)])


def test_drop_path_ramps_within_each_stage() -> None:
    found = list_drop_path_rates(depths=(3, 1, 2), drop_path=0.4, drop_path_mode="per_stage")
    np.testing.assert_allclose(found, [0, 0.2, 0.4, 0, 0, 0.4])


def test_blocks_have_their_drop_rates() -> None:
    backbone = ShiftViTBackbone((16, 16, 3), embed_dim=12, depths=(2, 2), drop_path=0.3, dropout=0.2)
    blocks = [layer for layer in backbone.layers if isinstance(layer, ShiftBlock)]
    np.testing.assert_allclose([block.drop_path.rate for block in blocks], [0, 0.1, 0.2, 0.3])
    assert {block.mlp.drop1.rate for block in blocks} == {0.2}


@pytest.mark.parametrize(("patch_size", "levels"), [(1, "P0 P1 P2"), (2, "P1 P2 P3"), (3, "P1 P2 P3"), (4, "P2 P3 P4")])
def test_pyramid_levels_are_named_by_their_stride(patch_size: int, levels: str) -> None:
    side = 16 * patch_size
    backbone = ShiftViTBackbone((side, side, 3), patch_size=patch_size, embed_dim=12, depths=(1, 2, 1))
    shapes = {level: tuple(output.shape) for level, output in backbone.pyramid_outputs.items()}
    assert list(shapes) == levels.split()
    assert list(shapes.values()) == [(None, 16, 16, 12), (None, 8, 8, 24), (None, 4, 4, 48)]


def test_pyramid_outputs_are_the_features_of_the_stages() -> None:
    model = make_small_model(depths=(2, 1), norm="layer")
    backbone, x = model.backbone, draw_normal(2, 16, 16, 3)
    features = keras.Model(backbone.input, backbone.pyramid_outputs)(x)
    predicted = keras.Model(backbone.input, backbone.pyramid_outputs).predict(x, verbose=0)

    features_so_far: Any = x
    expected = {}
    for name, level in [
        ("patch_embed", None),
        ("stage1_block1", None),
        ("stage1_block2", "P2"),
        ("stage1_merge", None),
        ("stage2_block1", "P3"),
    ]:
        features_so_far = backbone.get_layer(name)(features_so_far)
        if level:
            expected[level] = to_numpy(features_so_far)
    assert features.keys() == predicted.keys() == expected.keys()
    for level, value in predicted.items():
        np.testing.assert_allclose(value, expected[level], atol=1e-5)
    for level, value in expected.items():
        np.testing.assert_allclose(to_numpy(features[level]), value, rtol=1e-5, atol=1e-5)
    last = to_numpy(backbone.get_layer("norm")(expected["P3"]))
    np.testing.assert_allclose(to_numpy(backbone(x)), last, rtol=1e-5, atol=1e-5)


def test_quantization_by_keras_is_refused() -> None:
    with pytest.raises(ShiftViTError, match="export it instead: shiftvit export MODEL --format onnx --precision int8"):
        make_small_model().quantize("int8")


def test_keras_detector_accepts_the_backbone() -> None:
    models = pytest.importorskip("keras_hub", exc_type=ImportError).models
    backbone = ShiftViTBackbone((None, None, 3), embed_dim=12, depths=(1, 1, 1, 1))
    retina = models.RetinaNetBackbone(
        image_encoder=backbone, min_level=3, max_level=7, use_p5=False, image_shape=(128, 96, 3)
    )
    pyramid = retina(draw_normal(1, 128, 96, 3))
    assert {level: tuple(features.shape) for level, features in pyramid.items()} == {
        "P3": (1, 16, 12, 256),
        "P4": (1, 8, 6, 256),
        "P5": (1, 4, 3, 256),
        "P6": (1, 2, 2, 256),
        "P7": (1, 1, 1, 256),
    }
    assert all(np.isfinite(to_numpy(features)).all() for features in pyramid.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 0}, "ShiftViT: embed_dim = 0: .* greater than or equal to 1"),
        ({"depths": ()}, "ShiftViT: depths"),
        ({"depths": (1, 0)}, "ShiftViT: depths"),
        ({"norm": "instance"}, "ShiftViT: norm = 'instance': .*'group', 'layer' or 'batch'"),
        ({"drop_path": 1.0}, "ShiftViT: drop_path = 1.0: .* less than 1"),
        ({"mlp_ratio": float("nan")}, "ShiftViT: mlp_ratio = nan"),
        ({"merge_padding": "full"}, "ShiftViT: merge_padding = 'full'"),
        ({"activation": "gelo"}, "activation='gelo' is not a Keras activation"),
        ({"embed_dim": 8}, "num_div=12 leaves no channel to move out of 8; "),
        ({"shift_channels": 7}, "shift_channels=7 needs 28 channels .* 24; use 0 to 6"),
        ({"image_shape": (16, 3, 3)}, r"3 pixels of width are too few .* use at least 8"),
        ({"image_shape": (16, 16, 3), "depths": (1, 1, 1, 1)}, r"16 pixels of height .* use at least 32"),
        ({"image_shape": (3, 16, 3), "merge_padding": "same"}, r"3 pixels of height .* use at least 4"),
        ({"image_shape": (16, 16)}, "ShiftViT: image_shape"),
        ({"num_classes": -1}, "ShiftViT: num_classes = -1"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ShiftViTError, match=message):
        ShiftViT(**{**SMALL, **arguments})


@pytest.mark.parametrize("size", [(8, 8), (4, 4)])
def test_minimum_size_of_the_message_works(size: tuple[int, int]) -> None:
    padding = "valid" if size == (8, 8) else "same"
    model = ShiftViT(**{**SMALL, "image_shape": (*size, 3), "merge_padding": padding})
    assert model.backbone.output_shape == (None, 1, 1, 48)


@pytest.mark.parametrize(
    ("kind", "argument"), [(ShiftViT, "depth"), (ShiftViT, "preset"), (ShiftViTBackbone, "num_classes")]
)
def test_unknown_argument_is_a_type_error(kind: type[Any], argument: str) -> None:
    with pytest.raises(TypeError, match=f"{kind.__name__}.. got an unexpected keyword argument '{argument}'"):
        kind((16, 16, 3), **{argument: 1})
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{argument}'"):
        kind.from_preset("shiftvit_tiny_light", **{argument: 1})


def test_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(ShiftViTError, match="'shiftvit_tiny_lite'; did you mean 'shiftvit_tiny_light'"):
        ShiftViT.from_preset("shiftvit_tiny_lite")
    with pytest.raises(ShiftViTError, match="valid: keras_example, "):
        presets.find_preset("resnet")
