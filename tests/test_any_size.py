"""Graphs that resize images themselves, against Pillow and against the predictor."""

import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exported import run_step
from shiftvit import Bundle, Prediction, Predictor, Preprocess, ShiftViT, ShiftViTError
from shiftvit.bundle.metadata import KEY, LONGEST_SIDE, Metadata
from shiftvit.data.decode.images import decode
from shiftvit.exports import export
from shiftvit.exports.any_size import accept_any_size, make_images, remove_size
from shiftvit.exports.gate import MAX_DIFFERENCE_OF_SIZES, compare
from shiftvit.serve.limits import Limits

# Each kind of preprocessing: resizing the shorter side or both, with and without a crop, at both positions.
RULES = [
    Preprocess(resize=32, crop=(32, 32), crop_position="center"),
    Preprocess(resize=40, crop=(32, 24), crop_position="center", interpolation="bicubic"),
    Preprocess(resize=36, crop=32, crop_position="top_left", interpolation="nearest"),
    Preprocess(resize=(20, 31), interpolation="bicubic"),
    Preprocess(resize=(40, 48), crop=(31, 33), crop_position="center"),
    # Enlarged further until a crop of unequal sides is covered.
    Preprocess().fitted(24, 20),
    Preprocess(resize=22, crop=(20, 31), interpolation="nearest"),
]


def make_resizing_session(rule, folder):
    """Returns a session whose graph only resizes, crops and rounds."""
    import onnxruntime

    height, width = rule.output_shape(64, 64)
    inner = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        inner (uint8[batch, {height}, {width}, 3] images) => (uint8[batch, {height}, {width}, 3] probabilities) {{
          probabilities = Identity(images)
        }}"""
    )
    path = folder / "graph.onnx"
    onnx.save(inner, path)
    metadata = Metadata(labels=("a",), preprocess=rule, input_shape=(height, width, 3))
    accept_any_size(path, rule, remove_size(metadata))
    session = onnxruntime.InferenceSession(path)
    assert Metadata.parse(session.get_modelmeta().custom_metadata_map[KEY], "it").input_shape == (None, None, 3)
    return session


@pytest.fixture(scope="module", params=RULES, ids=str)
def rule_and_session(request, tmp_path_factory):
    return request.param, make_resizing_session(request.param, tmp_path_factory.mktemp("any"))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 9))
def test_graph_resizes_like_pillow(rule_and_session, height, width, seed):
    rule, session = rule_and_session
    images = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    found = session.run(None, {"images": images})[0]
    expected = rule.pixels(images)
    assert found.shape == expected.shape
    if rule.interpolation == "nearest":
        np.testing.assert_array_equal(found, expected)
    # A value midway between two levels may be rounded to either.
    exact = np.clip(rule.cropped(rule.resized(images)), 0, 255)
    assert np.abs(found - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_loading_a_graph_logs_nothing(rule, tmp_path, capfd):
    make_resizing_session(rule, tmp_path)
    assert capfd.readouterr().err == ""


def test_graph_resizes_a_very_elongated_image(tmp_path):
    """Resized before it is cropped, it would take gigabytes."""
    session = make_resizing_session(RULES[0], tmp_path)
    assert session.run(None, {"images": np.full((1, 1, 200_000, 3), 7, np.uint8)})[0].max() == 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_run_step", run_step)  # in processes that other tests have started
        return export.export("cifar10", "onnx", any_size=True, out=tmp_path_factory.mktemp("any") / "graph")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_graph_agrees_with_the_predictor(folder, runtime):
    usual = Predictor.from_pretrained("cifar10", runtime="onnxruntime", threads=1)
    graph = Predictor.from_pretrained(folder, runtime=runtime, threads=1)
    assert graph.metadata.input_shape == (None, None, 3)
    images = make_images(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    images += [image for image in images[:3] for _ in range(2)]  # several of one size share a batch
    for found, expected in zip(graph(images), usual(images), strict=True):
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=2e-3)
        assert found.label == expected.label


@pytest.mark.slow
def test_server_accepts_any_size(folder):
    from serving import make_picture, run_server
    from shiftvit.inference.runtimes import load_graph

    usual = Predictor.from_pretrained("cifar10", runtime="onnxruntime", threads=1)
    with run_server(graph=load_graph(folder, "onnxruntime", 1), limits=Limits()) as server:
        for size in ((32, 32), (90, 50)):
            content = make_picture(1, size)
            status, rows = server.post("/v1/classify?top_k=10", content)
            assert status == 200
            expected = dict(usual([content], top_k=10)[0].top)
            assert {row["label"]: row["score"] for row in rows} == pytest.approx(expected, abs=2e-3)
            tensor = {
                "name": "images",
                "datatype": "UINT8",
                "shape": [1, *size, 3],
                "data": decode(content).ravel().tolist(),
            }
            status, answer = server.post("/v2/models/cifar10/infer", json.dumps({"inputs": [tensor]}))
            assert status == 200
            assert answer["outputs"][0]["data"] == pytest.approx([expected[name] for name in usual.labels], abs=2e-3)
        assert json.loads(server.ask("GET", "/v2/models/cifar10")[2])["inputs"][0]["shape"] == [-1, -1, -1, 3]


@pytest.mark.parametrize(("form", "precision"), [("openvino", "f32"), ("onnx", "int8"), ("litert", "f32")])
def test_any_size_needs_onnx_in_f32(form, precision, tmp_path):
    with pytest.raises(ShiftViTError, match="cannot take images of any size; choose onnx in f32"):
        export.export("cifar10", form, precision, any_size=True, out=tmp_path / "x")


def test_any_size_needs_a_model_that_resizes(tmp_path):
    model = ShiftViT(image_shape=(16, 16, 3), num_classes=2, embed_dim=12, depths=(1, 1))
    Bundle.from_model(model, ("a", "b"), Preprocess(crop=16, crop_position="center")).save(tmp_path / "model")
    with pytest.raises(ShiftViTError, match=r"--any-size needs a model that resizes its images \(preprocess.resize\)"):
        export.export(tmp_path / "model", "onnx", any_size=True, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_gate_accepts_rounding_but_no_other_class():
    expected = np.array([[0.7, 0.3], [0.5005, 0.4995]], np.float32)
    for change, faults in ((0.0015, 1), (0.0001, 0), (0.01, 2)):
        found = expected + np.array([-change, change], np.float32)
        report = compare(found, expected, None, "f32", limit=MAX_DIFFERENCE_OF_SIZES)
        assert len(report["faults"]) == faults, report
    assert compare(found, expected, None, "f32")["faults"] != []


@pytest.mark.slow
def test_image_that_is_too_elongated_is_refused(folder):
    from serving import make_picture, run_server
    from shiftvit.inference.runtimes import load_graph

    longest = np.zeros((1, LONGEST_SIDE, 3), np.uint8)
    images = [longest, np.zeros((LONGEST_SIDE + 1, 1, 3), np.uint8)]
    fits, refused = Predictor.from_pretrained(folder, threads=1).stream(images)
    assert isinstance(fits, Prediction)
    assert "has 32769 x 1 pixels, and a model that takes any size takes at most 32,768 on a side" in refused.error
    with run_server(graph=load_graph(folder, "onnxruntime", 1), limits=Limits()) as server:
        shape = [1, 1, LONGEST_SIDE + 1, 3]
        tensor = {"name": "images", "datatype": "UINT8", "shape": shape, "data": [0] * 3 * (LONGEST_SIDE + 1)}
        for route, body in (
            ("/v1/classify", make_picture(0, (1, LONGEST_SIDE + 1))),
            ("/v2/models/cifar10/infer", json.dumps({"inputs": [tensor]})),
        ):
            status, answer = server.post(route, body)
            assert status == 422
            assert "at most 32,768 on a side" in answer["error"]
