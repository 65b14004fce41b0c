"""The channels-first network, which becomes an ONNX graph: it equals the Keras model, and its norms are folded."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from shiftvit import Bundle, Preprocess, ShiftViT
from shiftvit.bundle.stored.find import PRETRAINED
from tensors import BACKEND, set_random_weights

if BACKEND != "torch":
    pytest.skip("the graph is traced with torch", allow_module_level=True)

import torch

from shiftvit.exports import channels_first

PREPROCESS = Preprocess(mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 70.0))
OPTIONS = {
    "group": {},
    "group-same": {"merge_padding": "same", "image_shape": (28, 21, 3)},
    "group-valid": {"image_shape": (29, 22, 3)},
    "layer": {"norm": "layer"},
    "layer-same": {"norm": "layer", "merge_padding": "same", "image_shape": (28, 21, 3), "patch_norm": False},
    "batch": {"norm": "batch", "activation": "relu"},
    "batch-same": {"norm": "batch", "merge_padding": "same", "image_shape": (28, 21, 3)},
    "no patch and final norm": {"patch_norm": False, "final_norm": False},
    "mask": {"shift_mode": "mask"},
    "no shift": {"shift_channels": 0},
    "shift 3 pixels": {"shift_pixels": 3, "shift_channels": 5},
    "shift 4 pixels": {"shift_pixels": 4},
    "softmax activation": {"activation": "softmax"},
    "other sizes": {"activation": "silu", "embed_dim": 26, "mlp_ratio": 1.5, "patch_size": 2},
}


@pytest.fixture
def float64():
    """Makes float64 the default dtype, in which mathematically equal networks differ by almost nothing."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_model(dtype=None, **options):
    arguments = {"image_shape": (32, 24, 3), "num_classes": 5, "embed_dim": 24, "depths": (1, 1, 1), **options}
    model = ShiftViT(**arguments, dtype=dtype)
    set_random_weights(model)
    return model


@pytest.mark.usefixtures("float64")
def test_scalar_mean_and_std_apply_to_all_channels():
    model = make_model("float64")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 24, 3), np.uint8))
    rules = Preprocess(mean=10.0, std=255.0), Preprocess(mean=(10.0,) * 3, std=(255.0,) * 3)
    with torch.no_grad():
        one, three = (channels_first.Network(model, rule)(images)[0] for rule in rules)
    assert torch.equal(one, three)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("option", OPTIONS)
def test_network_equals_the_keras_model_in_float64(option):
    model = make_model("float64", **OPTIONS[option])
    images = np.random.default_rng(0).integers(0, 256, (3, *model.settings.image_shape), np.uint8)
    with torch.no_grad():
        logits, features = channels_first.Network(model, PREPROCESS)(torch.from_numpy(images))
        expected = torch.from_numpy((images - np.array(PREPROCESS.mean)) / PREPROCESS.std)
        for layer in model.backbone.layers[1:]:  # one by one: a whole model's input would be cast to float32
            expected = layer(expected)
    kernel, bias = (np.asarray(value, np.float64) for value in model.get_layer("head").get_weights())
    assert logits.dtype == features.dtype == torch.float64
    expected = expected.numpy()
    assert np.ptp(expected, axis=0).max() > 1e-3
    # Keras' batch norm computes in float32.
    exact = {"rtol": 1e-4, "atol": 1e-4} if model.settings.norm == "batch" else {"rtol": 1e-11, "atol": 1e-12}
    np.testing.assert_allclose(features.numpy(), expected, **exact)
    np.testing.assert_allclose(logits.numpy(), expected.mean(axis=(1, 2)) @ kernel + bias, **exact)


def count_operations(norm):
    """Counts the operations on maps in the traced network of a model with 3 blocks."""
    network = channels_first.Network(make_model(norm=norm), PREPROCESS).eval()
    images = torch.zeros((2, 32, 24, 3), dtype=torch.uint8)
    traced = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    nodes = [node for node in traced.graph.nodes if node.op == "call_function" and "aten" in str(node.target)]
    # Values that depend on weights alone have a fixed first axis, and runtimes compute them once.
    dynamic = [node for node in nodes if not isinstance(getattr(node.meta["val"], "shape", [0])[0], int)]
    return collections.Counter(str(node.target).split(".")[1] for node in dynamic)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "multiplications", "permutes"),
    # Only the norms of the patch embedding and of the last map have no linear layer after them. A layer norm moves the
    # channels to the back and to the front again; the two other permutes are those of the pixels and of the last map.
    [("group", 2, 2), ("layer", 0, 2 + 2 * 7), ("batch", 2, 2)],
)
def test_norms_are_folded_into_linear_layers(norm, multiplications, permutes):
    counts = count_operations(norm)
    assert counts["mul"] == multiplications
    assert counts["add"] == multiplications + 3  # and one for each block, which adds its input
    assert counts["permute"] == permutes
    # Patch embedding, two reductions, the head; in each block the shift and two linear layers.
    assert counts["conv2d"] == 4 + 3 * 3
    assert not {"div", "sub", "linear", "matmul", "reshape", "view"} & counts.keys()


def test_packaged_graph_is_folded():
    onnx = pytest.importorskip("onnx")
    bundle = Bundle.load("cifar10")
    counts = collections.Counter(node.op_type for node in onnx.load_from_string(bundle.graph).graph.node)
    blocks = sum(bundle.config.depths)
    norms = blocks + 2 + 1
    assert counts["LayerNormalization"] == norms
    assert counts["Transpose"] == 2 + 2 * norms
    assert counts["Conv"] == 3 * blocks + 4
    assert counts["Add"] == blocks
    assert counts["Reshape"] == 1
    assert not {"Mul", "Gemm", "MatMul", "Sub"} & counts.keys()
    assert sum(path.stat().st_size for path in (PRETRAINED / "cifar10").iterdir()) <= 8e6
