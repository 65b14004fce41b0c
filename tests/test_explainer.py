"""Class activation maps that are computed without a framework are exact."""

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from shiftvit import ShiftViTError
from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.metadata import MAP
from shiftvit.evaluation.explain import class_activation_map
from shiftvit.inference.explainer import Explainer
from shiftvit.serve.heat import lay_out

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load("cifar10")


@pytest.fixture(scope="module")
def explainer():
    return Explainer.from_pretrained("cifar10", threads=1)


def test_head_on_the_pooled_map_gives_the_probabilities(bundle, explainer):
    probabilities, maps = explainer.run(PIXELS)
    logits = maps.mean(axis=(1, 2)) @ bundle.weights["head/kernel"] + bundle.weights["head/bias"]
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / bundle.temperature)
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), probabilities, atol=1e-6)


@pytest.mark.slow
def test_map_equals_that_of_the_keras_model(bundle, explainer):
    import keras

    network = bundle.build("float32")
    before_pooling = keras.Model(network.input, network.get_layer("pool").input)
    expected = np.asarray(before_pooling.predict_on_batch(explainer.metadata.preprocess.normalised(PIXELS)))
    np.testing.assert_allclose(explainer.run(PIXELS)[1], expected, atol=2e-4)


def test_mean_of_a_heat_map_is_the_logit_without_bias():
    rng = np.random.default_rng(1)
    maps = rng.random((3, 4, 5, 7), np.float32)  # no negative values, so nothing is clipped
    weights = rng.random((3, 7), np.float32)
    heat = class_activation_map(maps, weights)
    logits = np.einsum("nk,nk->n", maps.mean(axis=(1, 2)), weights)
    largest = np.einsum("nhwk,nk->nhw", maps, weights).max(axis=(1, 2))
    np.testing.assert_allclose(heat.mean(axis=(1, 2)) * largest, logits, rtol=1e-5)
    assert heat.shape == (3, 4, 5)
    assert heat.max() == 1


def test_map_without_positive_evidence_is_zero():
    heat = class_activation_map(np.ones((1, 2, 2, 3), np.float32), np.full((1, 3), -1, np.float32))
    np.testing.assert_array_equal(heat, 0)


def test_predicted_or_given_class_is_explained(explainer):
    probabilities, heat = explainer(PIXELS)
    predicted = probabilities.argmax(axis=1)
    np.testing.assert_array_equal(heat, explainer(PIXELS, predicted)[1])
    assert np.abs(heat - explainer(PIXELS, (predicted + 1) % 10)[1]).max() > 0.1


def test_memory_does_not_grow_with_the_number_of_images(explainer, monkeypatch):
    class Session:
        def __init__(self, session):
            self.get_outputs, self.session, self.sizes = session.get_outputs, session, []

        def run(self, names, given):
            self.sizes += map(len, given.values())
            return self.session.run(names, given)

    whole = explainer.run(PIXELS)
    monkeypatch.setattr(explainer, "_session", session := Session(explainer._session))
    monkeypatch.setattr("shiftvit.bundle.metadata.BATCH_PIXELS", 2 * 32 * 32)
    for found, expected in zip(explainer.run(PIXELS), whole, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert session.sizes == [2, 2, 1]


def test_bundle_without_a_suitable_graph_is_refused(bundle, tmp_path):
    import dataclasses

    import onnx

    bare = dataclasses.replace(bundle, graph=None).save(tmp_path / "bare")
    with pytest.raises(ShiftViTError, match="pack --onnx"):
        Explainer.from_pretrained(bare)
    model = onnx.load_from_string(bundle.graph)
    others = [output for output in model.graph.output if output.name != MAP]
    del model.graph.output[:]
    model.graph.output.extend(others)
    old = dataclasses.replace(bundle, graph=model.SerializeToString()).save(tmp_path / "old")
    with pytest.raises(ShiftViTError, match="older shiftvit"):
        Explainer.from_pretrained(old)
    for head in ({}, {"head/kernel": np.zeros((256, 3), np.float32)}):
        weights = {name: value for name, value in bundle.weights.items() if name != "head/kernel"} | head
        odd = dataclasses.replace(bundle, weights=weights).save(tmp_path / "odd")
        with pytest.raises(ShiftViTError, match="do not fit its own model configuration; restore the bundle"):
            Explainer.from_pretrained(odd)


@pytest.mark.slow
def test_command_works_without_a_framework(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    program = (
        "import importlib.util as found, sys\n"
        "real = found.find_spec\n"
        "found.find_spec = lambda name, *rest: None if name in ('torch', 'jax', 'tensorflow') else real(name, *rest)\n"
        "sys.argv = ['shiftvit', 'explain', 'a.png', '--json']\n"
        "from shiftvit.cli.main import _run\n"
        "assert _run(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'jax', 'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    (row,) = json.loads(answer.stdout)
    assert np.array(row["cam"]["map"]).shape == (4, 4)
    assert np.asarray(Image.open(tmp_path / "explain.png")).std() > 0


def test_region_is_what_the_model_saw():
    import base64
    import io

    from shiftvit.preprocess import Preprocess

    preprocess = Preprocess(resize=40, crop=32, crop_position="center")
    found = lay_out(np.eye(4, dtype=np.float32), preprocess, 80, 160)
    # The shorter side becomes 40, the longer one 80; 32 of them in the middle remain.
    assert found["region"] == [24 / 80, 4 / 40, 32 / 80, 32 / 40]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["heatmap"]))))
    assert picture.shape == (224, 224, 4)
    # Warm on the diagonal, transparent far from it.
    assert picture[10, 10, 3] == 255
    assert picture[10, -10, 3] == 0


@pytest.mark.parametrize(
    "pixels", ["cat.png", None, PIXELS.astype(np.float32), PIXELS[0], PIXELS[:, :16], PIXELS[..., :1]]
)
def test_unsuitable_pixels_are_refused(explainer, pixels):
    with pytest.raises(ShiftViTError, match=r"^pixels are .*; give preprocessed images, uint8 \(N, 32, 32, 3\)"):
        explainer(pixels)


@pytest.mark.parametrize("classes", [[0], [0, 1, 2, 3, 10], [-1, 0, 0, 0, 0], 3, "cat", [0.5] * 5, ["cat"] * 5])
def test_unknown_classes_are_refused(explainer, classes):
    with pytest.raises(ShiftViTError, match="must be 5 whole numbers, 0 to 9: one for each image"):
        explainer(PIXELS, classes)


@pytest.mark.parametrize("threads", [0, -1, "2"])
def test_threads_out_of_range_are_refused(threads):
    with pytest.raises(ShiftViTError, match=r"threads=.* must be"):
        Explainer.from_pretrained("cifar10", threads=threads)


def test_explainer_can_be_pickled_and_copied(explainer):
    expected = explainer(PIXELS)[1]
    for copied in (pickle.loads(pickle.dumps(explainer)), copy.deepcopy(explainer)):
        np.testing.assert_array_equal(copied(PIXELS)[1], expected)
