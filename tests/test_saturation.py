"""int8 exports are exact on every processor: shown by arithmetic, and on an emulated one without VNNI."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exported import find_artifact, load_answers, make_export
from shiftvit import ShiftViTError, environment
from shiftvit.bundle.metadata import KEY, Metadata
from shiftvit.exports import gate
from shiftvit.exports.arrays import save_arrays
from shiftvit.exports.formats import FORMATS
from shiftvit.exports.saturation import Product, find_saturation, read_products
from shiftvit.inference.runtimes import load_graph

INT8_FORMATS = [name for name, row in FORMATS.items() if "int8" in row.precisions]


def add_pair(activations, weights):
    """Returns the result of VPMADDUBSW: the sum of two products, saturated to 16 bits."""
    return np.clip((activations.astype(np.int64) * weights).sum(), -(2**15), 2**15 - 1)


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=6))
def test_accepted_weights_are_exact_for_every_pair(row):
    weights = np.array([row], np.int8)
    fault = find_saturation([Product("mine", weights, wide=False)])
    worst = [
        (activations, np.array(pair, np.int64))
        for i, first in enumerate(row)
        for pair in [(first, second) for second in row[i + 1 :]] or [(first, 0)]
        for activations in (np.array([255, 255]), np.array([255, 0]), np.array([0, 255]))
    ]
    exact = all(add_pair(values, pair) == (values * pair).sum() for values, pair in worst)
    assert (fault is None) == exact
    assert fault is None or fault.startswith("the product 'mine' can saturate on processors without VNNI")


def test_weights_of_seven_bits_and_kernels_with_one_weight_are_exact():
    seven_bits = np.array([[64, 64, -64, -64], [-63, 1, 0, 2]], np.int8)
    one_weight = np.array([[0, 127, 0], [0, 0, 1]], np.int8)
    assert find_saturation([Product("a", seven_bits, False), Product("b", one_weight, False)]) is None
    too_large = Product("c", np.array([[1, 2], [64, 65]], np.int8), False)
    assert "two of its weights add up to 129" in find_saturation([Product("a", seven_bits, False), too_large])
    # Weights of opposite signs cancel each other.
    assert find_saturation([Product("d", np.array([[127, -127]], np.int8), False)]) is None


def test_wide_sums_fit_into_32_bits():
    assert find_saturation([Product("a", np.full((1, 33_025), 255, np.uint8), True)]) is None
    assert "adds 33,026 values" in find_saturation([Product("a", np.full((1, 33_026), 255, np.uint8), True)])


@pytest.mark.slow
@pytest.mark.parametrize("name", INT8_FORMATS)
def test_every_int8_export_is_exact_on_every_processor(name):
    products = read_products(find_artifact(name, "int8"), name)
    # Each linear layer is a product, but LiteRT's head is float32. OpenVINO quantizes the shifts' convolutions too.
    linear = [product for product in products if product.weights.shape[1] > 9]
    assert len(linear) == (25 if name == "litert" else 26)
    assert find_saturation(products) is None
    report = json.loads((make_export(name, "int8") / "report.json").read_text("utf-8"))
    assert report["int8_products"] == len(products)
    assert load_graph(make_export(name, "int8")).metadata.saturates is False


def quantize_signed(target):
    """Writes the packaged model's ONNX graph with weights of signed 8 bits in full range."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    plain = target.with_name("plain.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # folds the weights' casts
    options.optimized_model_filepath = str(plain)
    onnxruntime.InferenceSession(find_artifact("onnx"), options, providers=["CPUExecutionProvider"])

    class Reader(CalibrationDataReader):
        batches = iter([{"images": load_answers().images[:64]}])

        def get_next(self):
            return next(self.batches, None)

    quantize_static(
        plain,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_gate_refuses_signed_weights_in_full_range(tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    target = tmp_path / "model.onnx"
    quantize_signed(target)
    model = onnx.load(target)
    metadata = load_graph(make_export("onnx", "int8")).metadata
    onnx.helper.set_model_props(model, {KEY: metadata.dump()})
    onnx.save(model, target)
    answers = load_answers()
    save_arrays(tmp_path / "images", {"images": answers.images, "labels": answers.labels})
    np.savez(tmp_path / "reference.npz", probabilities=answers.probabilities.astype(np.float32))
    job = {
        **{"artifact": str(target), "format": "onnx", "precision": "int8", "runtime": "onnxruntime", "threads": 1},
        **{"images": str(tmp_path / "images"), "reference": str(tmp_path / "reference.npz")},
        "metadata": metadata.dump(),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    gate.main(str(tmp_path / "job.json"))
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["int8_products"] == 26 + 11  # the linear layers and the shifts
    assert "'node_conv2d" in report["faults"][-1]
    assert "can saturate on processors without VNNI" in report["faults"][-1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_openvino_graph_without_the_overflow_fix_is_refused(tmp_path):
    nncf, openvino = pytest.importorskip("nncf"), pytest.importorskip("openvino")
    model = openvino.Core().read_model(find_artifact("openvino"))
    images = load_answers().images[:4]
    quantized = nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in images]),
        subset_size=len(images),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.DISABLE),
    )
    openvino.save_model(quantized, tmp_path / "model.xml")
    assert "can saturate" in find_saturation(read_products(tmp_path / "model.xml", "openvino"))


@pytest.mark.slow
def test_float_artifact_has_no_products():
    for name in INT8_FORMATS:
        with pytest.raises(ShiftViTError, match="has no quantized products"):
            read_products(find_artifact(name), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_export_that_was_not_examined_needs_vnni(name, tmp_path, monkeypatch):
    folder = shutil.copytree(make_export(name, "int8"), tmp_path / "old")
    (folder / "report.json").unlink()  # it has the SHA-256 of the files
    for path in folder.iterdir():  # as version 0.1.0 wrote its metadata
        content = path.read_bytes()
        for quote in (b'"', b"&quot;"):
            content = content.replace(
                quote + b"saturates" + quote + b":false", quote + b"saturates" + quote + b":null "
            )
        path.write_bytes(content)
    flags = {"plain": "avx avx2 fma", "vnni": "avx512f avx512_vnni", "unknown": ""}
    for kind, text in flags.items():
        monkeypatch.setattr(environment, "_read_cpuinfo", lambda text=text: f"flags\t\t: {text}\n")
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        if kind == "vnni":
            assert load_graph(folder).metadata.saturates is None
        else:
            with pytest.raises(ShiftViTError, match=r"which has no VNNI instructions; export it again"):
                load_graph(folder)
        assert load_graph(make_export(name, "int8")).metadata.saturates is False
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert load_graph(folder).metadata.saturates is None


def test_metadata_of_earlier_versions_is_read():
    metadata = Metadata.model_validate_json(
        '{"format": 1, "labels": ["a", "b"], "preprocess": {}, "input_shape": [8, 8, 3], "precision": "int8"}'
    )
    assert metadata.saturates is None


PREDICT_SCRIPT = """
import sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
np.save(sys.argv[3], session.run(None, {"images": np.load(sys.argv[2])})[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="no qemu-x86_64 (Debian's package qemu-user)")
def test_emulated_processor_without_vnni_gives_the_same_answers(tmp_path):
    np.save(tmp_path / "images.npy", load_answers().images[:40])
    found = []
    for emulator in ([], ["qemu-x86_64", "-cpu", "Haswell"]):
        out = tmp_path / f"{len(emulator)}.npy"
        arguments = ["-I", "-c", PREDICT_SCRIPT, find_artifact("onnx", "int8"), tmp_path / "images.npy", out]
        subprocess.run([*emulator, sys.executable, *map(str, arguments)], check=True, capture_output=True, timeout=300)
        found.append(np.load(out))
    # Another kernel computes the norms, so some values may round the other way.
    assert (found[0].argmax(axis=1) == found[1].argmax(axis=1)).mean() >= 0.95
    np.testing.assert_allclose(found[0], found[1], atol=0.1)
