"""Published weights give the published outputs; files that are incomplete or do not fit are refused."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import parity
from attack import LIE, Attack, bounded_memory, write_liar
from parity import GOLDEN
from shiftvit.errors import ShiftViTError
from shiftvit.model.convert import load_keras_example, load_official
from shiftvit.model.network import ShiftViT, ShiftViTBackbone
from shiftvit.model.tensors import read_weights
from tensors import draw_normal, set_random_weights, to_numpy

Weights = dict[str, np.ndarray]


def load_golden(name: str) -> tuple[dict[str, Any], Weights]:
    """Returns the recorded configuration and weights of an official model."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        config = json.loads(str(archive["config"]))
        return config, {key[2:]: archive[key] for key in archive.files if key.startswith("w/")}


CONFIG, OFFICIAL = load_golden("official_gn1")
ARGUMENTS = {
    "image_shape": (64, 64, 3),
    "embed_dim": CONFIG["embed_dim"],
    "depths": CONFIG["depths"],
    "mlp_ratio": CONFIG["mlp_ratio"],
    "num_div": CONFIG["n_div"],
}
X = draw_normal(2, 64, 64, 3)


@pytest.fixture(scope="module")
def model() -> ShiftViT:
    return ShiftViT(**ARGUMENTS, num_classes=CONFIG["num_classes"])


@pytest.fixture(scope="module")
def expected(model: ShiftViT) -> np.ndarray:
    return to_numpy(load_official(model, OFFICIAL)(X))


@pytest.mark.parametrize("name", ["official_gn1", "official_bn_relu"])
def test_official_models_match_recorded_stages_and_logits(name: str) -> None:
    differences = parity.compare_official(name)
    assert differences.keys() == {"stage1", "stage2", "stage3", "stage4", "logits"}
    assert max(differences.values()) <= 2e-4, differences


def test_keras_example_matches_recorded_logits() -> None:
    differences = parity.compare_example()
    assert differences.keys() == {"preprocessed", "logits"}
    assert max(differences.values()) <= 2e-4, differences


def test_keras_example_differs_with_true_shifts() -> None:
    assert parity.compare_example(shift_mode="shift")["logits"] == pytest.approx(0.32, abs=0.005)


def convert_to_torch(weights: Weights) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    return {name: torch.nn.Parameter(torch.tensor(value)) for name, value in weights.items()}


def save_torch(state: Any, path: Path) -> Path:
    pytest.importorskip("torch").save(state, path)
    return path


def save_npz(weights: Weights, path: Path) -> Path:
    np.savez(path, **weights)
    return path


def save_safetensors(weights: Weights, path: Path) -> Path:
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, path)
    return path


SOURCES: dict[str, Callable[[Path], Any]] = {
    "mapping": lambda _: OFFICIAL,
    "mapping of torch tensors": lambda _: convert_to_torch(OFFICIAL),
    ".npz": lambda folder: save_npz(OFFICIAL, folder / "weights.npz"),
    "golden .npz": lambda _: str(GOLDEN / "official_gn1.npz"),
    ".safetensors": lambda folder: save_safetensors(OFFICIAL, folder / "weights.safetensors"),
    ".SAFETENSORS": lambda folder: save_safetensors(OFFICIAL, folder / "WEIGHTS.SAFETENSORS"),
    ".pth": lambda folder: save_torch(convert_to_torch(OFFICIAL), folder / "weights.pth"),
    ".pt checkpoint": lambda folder: save_torch({"model": convert_to_torch(OFFICIAL)}, folder / "weights.pt"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_model(kind: str, tmp_path: Path, model: ShiftViT, expected: np.ndarray) -> None:
    set_random_weights(model)
    assert load_official(model, SOURCES[kind](tmp_path)) is model
    np.testing.assert_array_equal(to_numpy(model(X)), expected)


def test_bfloat16_torch_tensors_are_read(model: ShiftViT, expected: np.ndarray) -> None:
    narrow = {name: value.bfloat16() for name, value in convert_to_torch(OFFICIAL).items()}
    set_random_weights(model)
    found = to_numpy(load_official(model, narrow)(X))
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_backbone_loads_all_but_the_head(model: ShiftViT) -> None:
    load_official(model, OFFICIAL)
    backbone = load_official(ShiftViTBackbone(**ARGUMENTS), OFFICIAL)
    np.testing.assert_array_equal(to_numpy(backbone(X)), to_numpy(model.backbone(X)))


def test_counters_of_batch_norms_are_ignored() -> None:
    config, weights = load_golden("official_bn_relu")
    small = ShiftViT(
        (64, 64, 3),
        num_classes=config["num_classes"],
        embed_dim=config["embed_dim"],
        depths=config["depths"],
        mlp_ratio=config["mlp_ratio"],
        num_div=config["n_div"],
        norm="batch",
        activation="relu",
    )
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.array(7)
        for name in weights
        if name.endswith("running_mean")
    }
    assert len(counters) > 2
    expected = to_numpy(load_official(small, weights)(X))
    set_random_weights(small)
    np.testing.assert_array_equal(to_numpy(load_official(small, weights | counters)(X)), expected)


def test_one_error_lists_all_faults_and_nothing_is_loaded(model: ShiftViT) -> None:
    wrong = dict(OFFICIAL)
    missing = [name for name in wrong if name.endswith("fc1.bias")][:2]
    for name in missing:
        del wrong[name]
    wrong["head.weight"] = wrong["head.weight"][:, :-1]
    wrong["patch_embed.norm.weight"] = wrong["patch_embed.norm.weight"][:5]
    wrong["optimizer.step"] = np.zeros(3)
    set_random_weights(model)
    before = [to_numpy(weight) for weight in model.weights]

    with pytest.raises(ShiftViTError) as caught:
        load_official(model, wrong)
    message = str(caught.value)
    assert "5 faults" in message
    for name in missing:
        assert f"{name}: missing" in message
    assert f"head.weight: shape {wrong['head.weight'].shape} does not give" in message
    assert "patch_embed.norm.weight: shape (5,) does not give (24,)" in message
    assert "optimizer.step: surplus" in message
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), value)


def test_weights_of_another_configuration_are_refused(model: ShiftViT) -> None:
    _, weights = load_golden("official_bn_relu")
    with pytest.raises(ShiftViTError, match=r"do not fit this model.*running_mean: surplus"):
        load_official(model, weights)


@pytest.mark.parametrize("zipped", [False, True])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, model: ShiftViT, zipped: bool) -> None:
    pytest.importorskip("torch")
    mark, path = tmp_path / "mark", tmp_path / "weights.pth"
    if zipped:  # as torch.save writes since 1.6
        save_torch({"model": Attack(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Attack(mark)}))
    with pytest.raises(ShiftViTError, match=r"cannot read weights from .*weights\.pth"):
        load_official(model, path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Attack(mark)))
    assert mark.read_text() == "executed", "the attack does not work at all"


def test_pickled_objects_in_an_npz_are_refused_and_not_run(tmp_path: Path, model: ShiftViT) -> None:
    mark = tmp_path / "mark"
    np.savez(tmp_path / "weights.npz", head=np.array([Attack(mark)], dtype=object))
    with pytest.raises(ShiftViTError, match=r"cannot read weights from .*weights\.npz"):
        load_official(model, tmp_path / "weights.npz")
    assert not mark.exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_npz_that_lies_about_its_size_is_refused(tmp_path: Path, method: int) -> None:
    """Its header is stated to have as many bytes as the entry, and the entry to have 100."""
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", LIE)
    write_liar(tmp_path / "weights.npz", method, "head.npy", header)
    with bounded_memory(), pytest.raises(ShiftViTError, match=r"cannot read weights from .*weights\.npz"):
        read_weights(tmp_path / "weights.npz")


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {"epoch": 3}])
def test_checkpoint_without_state_dict_is_refused(tmp_path: Path, model: ShiftViT, content: Any) -> None:
    with pytest.raises(ShiftViTError, match="holds no state dict"):
        load_official(model, save_torch(content, tmp_path / "weights.pth"))


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".pth"])
def test_truncated_file_is_named(tmp_path: Path, model: ShiftViT, ending: str) -> None:
    write = {
        ".npz": save_npz,
        ".safetensors": save_safetensors,
        ".pth": lambda w, p: save_torch(convert_to_torch(w), p),
    }[ending]
    path = write(OFFICIAL, tmp_path / f"weights{ending}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ShiftViTError, match=rf"cannot read weights from .*weights\{ending}"):
        load_official(model, path)


def test_missing_files_and_unknown_suffixes_are_refused(tmp_path: Path, model: ShiftViT) -> None:
    with pytest.raises(ShiftViTError, match=r"there is no file '.*absent\.npz'"):
        load_official(model, tmp_path / "absent.npz")
    with pytest.raises(ShiftViTError, match="there is no file"):
        load_official(model, tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"no matter")
    with pytest.raises(ShiftViTError, match=r"its suffix is '\.h5'; give \.npz"):
        load_official(model, tmp_path / "weights.h5")


# The smallest model that has every layer of the example.
EXAMPLE = {
    "image_shape": (16, 16, 3),
    "num_classes": 3,
    "embed_dim": 8,
    "depths": (1, 2),
    "shift_channels": 1,
    "mlp_ratio": 2.0,
}


def make_example_model() -> ShiftViT:
    return ShiftViT.from_preset("keras_example", **EXAMPLE)


def make_example_weights(first_number: int = 0) -> Weights:
    """Returns weights in the order of the example's `model.weights`.

    `first_number` is the number of the first layer of each kind, as in a process that has made layers before.
    """
    random = np.random.default_rng(0)
    counts: dict[str, int] = {}

    def number_layer(kind: str) -> str:
        counts[kind] = counts.get(kind, first_number - 1) + 1
        return f"{kind}_{counts[kind]}" if counts[kind] else kind

    weights: Weights = {}

    def add(kind: str, **shapes: tuple[int, ...]) -> None:
        name = number_layer(kind)
        for leaf, shape in shapes.items():
            weights[f"shift_vi_t_model/{name}/{leaf}"] = random.normal(size=shape).astype(np.float32)

    def add_block(c: int) -> None:
        add("layer_normalization", gamma=(c,), beta=(c,))
        add("dense", kernel=(c, 2 * c), bias=(2 * c,))
        add("dense", kernel=(2 * c, c), bias=(c,))

    add("conv2d", kernel=(4, 4, 3, 8), bias=(8,))
    add_block(8)
    add("conv2d", kernel=(2, 2, 8, 16))
    add("layer_normalization", gamma=(8,), beta=(8,))
    add_block(16)
    add_block(16)
    add("dense", kernel=(16, 3), bias=(3,))
    return weights


def test_keras_example_loads_with_any_layer_numbers(tmp_path: Path) -> None:
    x, weights = draw_normal(2, 16, 16, 3), make_example_weights()
    model = load_keras_example(make_example_model(), weights)
    found = {variable.path: to_numpy(variable) for variable in model.weights}
    kernels = [value for name, value in weights.items() if "dense" in name and name.endswith("kernel")]
    np.testing.assert_array_equal(found["stage2_block2/mlp/fc1/kernel"], kernels[4])
    np.testing.assert_array_equal(found["head/kernel"], kernels[6])
    merge = weights["shift_vi_t_model/conv2d_1/kernel"]
    np.testing.assert_array_equal(found["stage1_merge/reduction/kernel"], merge.reshape(32, 16))
    expected = to_numpy(model(x))

    later = make_example_weights(first_number=9)
    assert not later.keys() & weights.keys()
    np.testing.assert_array_equal(to_numpy(load_keras_example(make_example_model(), later)(x)), expected)

    # A file may list its entries in any order. Prefixed numbers restore it, sorted by value and not as text.
    numbered = {f"{index}/{name}": value for index, (name, value) in enumerate(later.items())}
    shuffled = dict(sorted(numbered.items()))
    assert list(shuffled) != list(numbered)
    for source in (
        shuffled,
        save_npz(shuffled, tmp_path / "w.npz"),
        save_safetensors(shuffled, tmp_path / "w.safetensors"),
    ):
        np.testing.assert_array_equal(to_numpy(load_keras_example(make_example_model(), source)(x)), expected)


def test_one_error_lists_keras_example_faults_and_nothing_is_loaded() -> None:
    weights = make_example_weights()
    names = list(weights)
    weights[names[2]] = np.zeros(5, np.float32)
    del weights[names[-1]]
    model = make_example_model()
    before = [to_numpy(weight) for weight in model.weights]
    with pytest.raises(ShiftViTError, match=r"2 faults.*stage1_block1/norm/gamma: shape \(5,\).*head/bias: missing"):
        load_keras_example(model, weights)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), value)


def test_keras_example_is_refused_by_another_configuration() -> None:
    model = ShiftViT(**EXAMPLE)
    with pytest.raises(ShiftViTError, match="patch_embed/norm/gamma: not in the source"):
        load_keras_example(model, make_example_weights())
