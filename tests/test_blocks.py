"""Every layer: its config restores it, its output has the computed shape, and its values match NumPy or Keras."""

from __future__ import annotations

import inspect
import json
import math
from typing import Any

import keras
import numpy as np
import pytest

from shiftvit.errors import ShiftViTError
from shiftvit.model.blocks import MLP, DropPath, PatchEmbed, PatchMerging, ShiftBlock, fold
from shiftvit.model.primitives import TORCH, GroupNorm, LayerNorm, Linear, make_norm
from shiftvit.model.shift import Shift
from tensors import compute_input_gradient, compute_weight_gradients, draw_normal, set_random_weights, to_numpy

# Each layer with other values than the defaults, so that the tests notice a lost argument.
BLOCK = {
    "mlp_ratio": 1.5,
    "num_div": 5,
    "shift_pixels": 2,
    "shift_channels": 2,
    "shift_mode": "mask",
    "norm": "layer",
    "activation": "relu",
    "dropout": 0.1,
    "drop_path": 0.2,
    "epsilon": 1e-3,
}
LAYERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "Shift": (Shift, {"num_div": 5, "shift_pixels": 2, "shift_channels": 2, "mode": "mask"}),
    "DropPath": (DropPath, {"rate": 0.3, "seed": 5}),
    "MLP": (MLP, {"mlp_ratio": 1.5, "activation": "relu", "dropout": 0.1}),
    "ShiftBlock": (ShiftBlock, BLOCK),
    "ShiftBlock-batch": (ShiftBlock, {**BLOCK, "norm": "batch"}),
    "PatchEmbed": (PatchEmbed, {"embed_dim": 7, "patch_size": 3, "norm": "batch", "epsilon": 1e-3}),
    "PatchEmbed-bare": (PatchEmbed, {"embed_dim": 7, "norm": None}),
    "PatchMerging": (PatchMerging, {"norm": "layer", "padding": "same", "epsilon": 1e-3}),
    "PatchMerging-valid": (PatchMerging, {}),
    "Linear": (Linear, {"units": 7, "activation": "gelu", "use_bias": False, "kernel_initializer": "ones"}),
    "Linear-bias": (Linear, {"units": 7, "bias_initializer": "ones"}),
    "LayerNorm": (LayerNorm, {"epsilon": 1e-2, "gamma_initializer": "zeros"}),
    "LayerNorm-bare": (LayerNorm, {"center": False, "scale": False}),
    "GroupNorm": (GroupNorm, {"epsilon": 1e-2}),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
X = draw_normal(2, 7, 5, 10)


def make_layer(name: str, **more: Any) -> Any:
    kind, arguments = LAYERS[name]
    return kind(**arguments, name="one", **more)


@every_layer
def test_layer_is_restored_from_config(name: str) -> None:
    layer = make_layer(name)
    out = layer(X)
    set_random_weights(layer)
    out = to_numpy(layer(X))

    config = layer.get_config()
    restored = type(layer).from_config(json.loads(json.dumps(config)))
    assert restored.get_config() == config
    restored.build(X.shape)
    assert [weight.shape for weight in restored.weights] == [weight.shape for weight in layer.weights]
    restored.set_weights(layer.get_weights())
    np.testing.assert_array_equal(to_numpy(restored(X)), out)


@every_layer
def test_config_holds_every_argument(name: str) -> None:
    kind, arguments = LAYERS[name]
    parameters = inspect.signature(kind.__init__).parameters.values()
    expected = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"}
    if kind is Linear:
        # Keras' Dense never stores the first of these, and the others only if they are used.
        expected -= {"activity_regularizer", "lora_rank", "lora_alpha"}
    config = kind(**arguments).get_config()
    assert expected <= config.keys()
    for key, value in arguments.items():
        found = config[key]
        assert found == value or found["class_name"].lower() == value


@every_layer
@pytest.mark.parametrize("shape", [(2, 7, 5, 10), (1, 8, 4, 12), (3, 4, 9, 8)])
def test_output_shape_matches_computed_shape(name: str, shape: tuple[int, ...]) -> None:
    layer = make_layer(name)
    out = layer(draw_normal(*shape))
    assert layer.compute_output_shape(shape) == tuple(out.shape)
    open_shape = layer.compute_output_shape((None, None, None, shape[-1]))
    assert open_shape == (None, None, None, out.shape[-1])


@every_layer
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_bfloat16_output_is_close_to_float32(name: str, policy: str) -> None:
    layer, narrow = make_layer(name), make_layer(name, dtype=policy)
    layer(X), narrow(X)
    set_random_weights(layer)
    narrow.set_weights(layer.get_weights())
    out = narrow(X)
    assert keras.backend.standardize_dtype(out.dtype) == "bfloat16"
    expected = to_numpy(layer(X))
    # bfloat16 has 8 significant bits, several layers round, and the variance of the batch norm may be small.
    np.testing.assert_allclose(to_numpy(out), expected, atol=0.03 * np.abs(expected).max())


def compute_gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def normalise(kind: str, x: np.ndarray, gamma: Any, beta: Any, epsilon: float) -> np.ndarray:
    x = x.astype(np.float64)
    axes = {"group": (1, 2, 3), "layer": -1}[kind]
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


@pytest.mark.parametrize("kind", ["group", "layer"])
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_norms_match_numpy(kind: str, epsilon: float) -> None:
    x = 5 + 3 * draw_normal(3, 6, 7, 10)
    norm = make_norm(kind, epsilon, dtype="float32", name="norm")
    norm.build(x.shape)
    set_random_weights(norm)
    expected = normalise(kind, x, *norm.get_weights(), epsilon)
    np.testing.assert_allclose(to_numpy(norm(x)), expected, rtol=1e-5, atol=1e-5)


def test_layer_norm_without_scale_and_offset() -> None:
    norm = LayerNorm(epsilon=1e-5, center=False, scale=False)
    np.testing.assert_allclose(to_numpy(norm(X)), normalise("layer", X, 1, 0, 1e-5), rtol=1e-5, atol=1e-5)


def test_group_norm_matches_keras_with_one_group() -> None:
    ours, theirs = GroupNorm(1e-3), keras.layers.GroupNormalization(groups=1, epsilon=1e-3)
    ours.build(X.shape), theirs.build(X.shape)
    set_random_weights(ours)
    theirs.set_weights(ours.get_weights())
    np.testing.assert_allclose(to_numpy(ours(X)), to_numpy(theirs(X)), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not TORCH, reason="the form of the norm is chosen on torch")
@pytest.mark.parametrize(
    ("dtype", "mean", "tolerance"), [("float32", 0, 1e-6), ("float32", 300, 1e-4), ("bfloat16", 0, 0.015)]
)
def test_group_norm_and_its_gradients_are_accurate(dtype: str, mean: float, tolerance: float) -> None:
    import torch

    x = (mean + draw_normal(256, 6, 5, 8)).astype(np.float32)
    norm = GroupNorm(1e-5, dtype="mixed_bfloat16" if dtype == "bfloat16" else dtype)
    norm.build(x.shape)
    set_random_weights(norm)
    inputs = torch.tensor(x).to(getattr(torch, dtype)).requires_grad_()
    slope = torch.tensor(draw_normal(256, 6, 5, 8))
    out = norm(inputs)
    out.backward(slope.to(out.dtype))
    found = [out, inputs.grad, *(weight.value.grad for weight in norm.weights)]
    # The closed form in float64, of the same rounded inputs, weights and slopes.
    tensors = (inputs, *(weight.value for weight in norm.weights))
    exact = [tensor.detach().to(inputs.dtype).double().requires_grad_() for tensor in tensors]
    centred = exact[0] - exact[0].mean((1, 2, 3), keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean((1, 2, 3), keepdim=True) + 1e-5)
    expected = normed * exact[1] + exact[2]
    expected.backward(slope.to(out.dtype).double())
    for mine, theirs in zip(found, (expected, *(tensor.grad for tensor in exact)), strict=True):
        assert torch.linalg.norm(mine.double() - theirs) <= tolerance * torch.linalg.norm(theirs)


def test_batch_norm_momentum_is_0_9() -> None:
    norm = make_norm("batch", 1e-5, dtype="float32", name="norm")
    x = 5 + 3 * draw_normal(4, 6, 7, 10)
    trained = to_numpy(norm(x, training=True))
    np.testing.assert_allclose(trained.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(to_numpy(norm.moving_mean), 0.1 * x.mean((0, 1, 2)), rtol=1e-4)
    moving = [to_numpy(norm.moving_mean), to_numpy(norm.moving_variance)]
    expected = (x - moving[0]) / np.sqrt(moving[1] + 1e-5)
    np.testing.assert_allclose(to_numpy(norm(x, training=False)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_block_matches_paper(norm: str) -> None:
    block = ShiftBlock(mlp_ratio=1.5, num_div=5, norm=norm, drop_path=0.5)
    block.build(X.shape)
    set_random_weights(block)
    weights = {weight.path.split("/", 1)[1]: to_numpy(weight) for weight in block.weights}
    assert weights["mlp/fc1/kernel"].shape == (10, 15)
    x = to_numpy(Shift(5)(X)).astype(np.float64)
    hidden = normalise(norm, x, weights["norm/gamma"], weights["norm/beta"], 1e-5)
    hidden = compute_gelu(hidden @ weights["mlp/fc1/kernel"] + weights["mlp/fc1/bias"])
    expected = x + hidden @ weights["mlp/fc2/kernel"] + weights["mlp/fc2/bias"]
    np.testing.assert_allclose(to_numpy(block(X)), expected, rtol=1e-4, atol=1e-4)


def test_mlp_dropout_acts_only_in_training() -> None:
    mlp = MLP(dropout=0.5)
    at_inference = to_numpy(mlp(X))
    np.testing.assert_array_equal(to_numpy(mlp(X, training=False)), at_inference)
    trained = to_numpy(mlp(X, training=True))
    assert 0.4 < np.mean(trained == 0) < 0.6  # the second dropout is the last operation
    assert not np.array_equal(to_numpy(mlp(X, training=True)), trained)


def test_mlp_without_hidden_channels_is_refused() -> None:
    with pytest.raises(ShiftViTError, match=r"mlp_ratio=0.05 of 10 channels is less than one hidden channel"):
        MLP(0.05).build(X.shape)


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
def test_drop_path_drops_whole_images_and_keeps_the_mean(rate: float, seed: int | None) -> None:
    n = 20_000
    keras.utils.set_random_seed(0)
    out = to_numpy(DropPath(rate, seed)(np.ones((n, 2, 1, 3), np.float32), training=True))
    assert (out == out[:, :1, :1, :1]).all()
    np.testing.assert_allclose(np.unique(out), [0, 1 / (1 - rate)], rtol=1e-6)
    deviation = math.sqrt(rate / (1 - rate) / n)
    assert abs(out[:, 0, 0, 0].mean() - 1) < 4 * deviation


@pytest.mark.parametrize("seed", [None, 1])
def test_drop_path_differs_between_calls_and_repeats_for_a_seed(seed: int | None) -> None:
    x = np.ones((64, 1, 1, 1), np.float32)
    keras.utils.set_random_seed(0)
    first = DropPath(0.5, seed)
    draws = [to_numpy(first(x, training=True)) for _ in range(3)]
    keras.utils.set_random_seed(0)
    second = DropPath(0.5, seed)
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[1], draws[2])
    for draw in draws:
        np.testing.assert_array_equal(to_numpy(second(x, training=True)), draw)


@pytest.mark.parametrize(("rate", "training"), [(0.9, False), (0.0, True)])
def test_drop_path_is_identity_at_inference_and_at_rate_0(rate: float, training: bool) -> None:
    np.testing.assert_array_equal(to_numpy(DropPath(rate)(X, training=training)), X)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_drop_path_refuses_invalid_rates(rate: float) -> None:
    with pytest.raises(ShiftViTError, match=f"rate={rate}"):
        DropPath(rate)


def test_fold_flattens_squares_row_by_row() -> None:
    x = np.arange(2 * 5 * 7 * 3).reshape(2, 5, 7, 3).astype(np.float32)
    out = to_numpy(fold(x, 2))
    assert out.shape == (2, 2, 3, 12)
    for row in range(2):
        for column in range(3):
            square = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(out[:, row, column], square.reshape(2, 12))


@pytest.mark.parametrize("patch_size", [1, 2, 3, 4])
def test_patch_embedding_matches_convolution(patch_size: int) -> None:
    images = draw_normal(2, 13, 11, 3)
    embed = PatchEmbed(8, patch_size, norm=None)
    convolution = keras.layers.Conv2D(8, patch_size, strides=patch_size)
    embed.build(images.shape), convolution.build(images.shape)
    set_random_weights(embed)
    kernel, bias = embed.get_weights()
    convolution.set_weights([kernel.reshape(patch_size, patch_size, 3, 8), bias])
    np.testing.assert_allclose(to_numpy(embed(images)), to_numpy(convolution(images)), rtol=1e-5, atol=1e-5)


def test_patch_embedding_normalises_its_output() -> None:
    embed, bare = PatchEmbed(8, 4, "layer"), PatchEmbed(8, 4, None)
    images = draw_normal(2, 8, 8, 3)
    embed(images), bare(images)
    set_random_weights(embed)
    weights = embed.get_weights()
    bare.set_weights(weights[:2])
    expected = normalise("layer", to_numpy(bare(images)), *weights[2:], 1e-5)
    np.testing.assert_allclose(to_numpy(embed(images)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (5, 3), (2, 3)])
def test_merging_matches_norm_and_convolution(size: tuple[int, int], padding: str) -> None:
    x = draw_normal(2, *size, 10)
    merging = PatchMerging("layer", padding)
    norm = keras.layers.LayerNormalization(epsilon=1e-5)
    convolution = keras.layers.Conv2D(20, 2, strides=2, padding=padding, use_bias=False)
    for layer in (merging, norm, convolution):
        layer.build(x.shape)
    set_random_weights(merging)
    weights = {weight.path.split("/", 1)[1]: to_numpy(weight) for weight in merging.weights}
    assert len(weights) == 3
    norm.set_weights([weights["norm/gamma"], weights["norm/beta"]])
    convolution.set_weights([weights["reduction/kernel"].reshape(2, 2, 10, 20)])
    expected = to_numpy(convolution(norm(x)))
    np.testing.assert_allclose(to_numpy(merging(x)), expected, rtol=1e-4, atol=1e-4)


def test_merging_refuses_unknown_padding() -> None:
    with pytest.raises(ShiftViTError, match="padding='full'"):
        PatchMerging(padding="full")


@pytest.mark.parametrize("shape", [(3, 10), (2, 5, 10), (2, 3, 4, 10)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_linear_matches_matrix_product_on_last_axis(shape: tuple[int, ...], use_bias: bool) -> None:
    linear = Linear(7, activation="relu", use_bias=use_bias)
    x = draw_normal(*shape)
    linear.build(shape)
    set_random_weights(linear)
    kernel, bias = (*linear.get_weights(), 0.0)[:2]
    expected = np.maximum(x.astype(np.float64) @ kernel + bias, 0)
    np.testing.assert_allclose(to_numpy(linear(x)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 10), (2, 5, 10), (2, 3, 4, 10), (2, 1, 1, 10), (1, 3, 1, 10)])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("form", ["convolution", "matrix product"])
def test_linear_forms_match_numpy_values_and_gradients_in_training(
    shape: tuple[int, ...], use_bias: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if TORCH:  # the others have one form
        monkeypatch.setattr("shiftvit.model.products.CAN_CONVOLVE", form == "convolution")
    linear = Linear(7, use_bias=use_bias)
    x, cotangent = draw_normal(*shape), draw_normal(*shape[:-1], 7, seed=1)
    linear.build(shape)
    set_random_weights(linear)
    kernel, bias = (*linear.get_weights(), 0.0)[:2]
    flat_input, flat_cotangent = x.reshape(-1, 10).astype(np.float64), cotangent.reshape(-1, 7).astype(np.float64)

    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(to_numpy(linear(x, training=True)), x.astype(np.float64) @ kernel + bias, **close)
    found = compute_input_gradient(lambda x: linear(x, training=True), x, cotangent)
    np.testing.assert_allclose(found, cotangent.astype(np.float64) @ kernel.T, **close)
    gradients = list(compute_weight_gradients(linear, x, cotangent).values())
    np.testing.assert_allclose(gradients[0], flat_input.T @ flat_cotangent, **close)
    assert len(gradients) == 1 + use_bias
    if use_bias:
        np.testing.assert_allclose(gradients[1], flat_cotangent.sum(0), **close)


@pytest.mark.skipif(not TORCH, reason="only torch has the convolution form")
def test_convolution_form_accepts_transposed_input_and_frozen_weights() -> None:
    import torch

    from shiftvit.model import products

    x = torch.tensor(draw_normal(2, 10, 3, 4)).permute(0, 2, 3, 1).requires_grad_()
    kernel, bias = torch.tensor(draw_normal(10, 7)), torch.tensor(draw_normal(7)).requires_grad_()
    out = products.linear(x, kernel, bias)
    torch.testing.assert_close(out, x @ kernel + bias)
    found = torch.autograd.grad(out.square().sum(), (x, bias), create_graph=True)
    expected = torch.autograd.grad((x @ kernel + bias).square().sum(), (x, bias), create_graph=True)
    torch.testing.assert_close(found, expected)
    second = [torch.autograd.grad(gradients[0].square().sum(), x)[0] for gradients in (found, expected)]
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(not TORCH, reason="only torch has the convolution form")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch.func.jvp itself
def test_convolution_form_works_under_torch_func() -> None:
    import torch

    from shiftvit.model import products

    x, kernel, bias = (torch.tensor(draw_normal(*shape)) for shape in ((2, 3, 4, 10), (10, 7), (7,)))

    def convolve(x: Any, kernel: Any, bias: Any) -> Any:
        return products.linear(x, kernel, bias).square().sum()

    def multiply(x: Any, kernel: Any, bias: Any) -> Any:
        return (x @ kernel + bias).square().sum()

    def compute(form: Any) -> Any:
        every = (0, 1, 2)
        one_by_one = torch.func.vmap(lambda image: torch.func.grad(form, every)(image[None], kernel, bias))(x)
        along = torch.func.jvp(form, (x, kernel, bias), (2 * x, kernel.cos(), bias.sin()))
        only_image = torch.func.jvp(lambda image: form(image, kernel, bias), (x,), (x,))
        return torch.func.grad(form, every)(x, kernel, bias), one_by_one, along, only_image

    torch.testing.assert_close(compute(convolve), compute(multiply), rtol=1e-4, atol=1e-3)
