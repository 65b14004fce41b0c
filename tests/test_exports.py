"""Every export gives the answers of the model in the program of docs/export.md, which uses only its runtime."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from exported import (
    BUILDS,
    COMBINATIONS,
    compute_probabilities,
    find_artifact,
    load_answers,
    make_export,
    run_step,
    skip_if_missing,
)
from plain_runtimes import DOCUMENT, SIZES
from shiftvit import Bundle, Preprocess, ShiftViT, ShiftViTError
from shiftvit.bundle.metadata import Metadata, make_metadata
from shiftvit.data.cifar10.cache import CLASS_NAMES
from shiftvit.exports import build, export
from shiftvit.exports.arrays import save_arrays
from shiftvit.exports.formats import FORMATS
from shiftvit.inference.runtimes import load_graph
from tensors import set_random_weights

# With an allowance for everything else. In ONNX a bundle's float16 weights stay float16.
MAX_BYTES_PER_WEIGHT = {"f32": 4.6, "bf16": 2.6, "int8": 1.6}

every_export = pytest.mark.parametrize(("name", "precision"), COMBINATIONS)


@functools.cache
def run_plain_program(name):
    """Runs the program of a format on its exports; returns the arrays that it writes, by precision."""
    precisions = FORMATS[name].precisions
    artifacts = [str(find_artifact(name, precision)) for precision in precisions]
    place = make_export(name, precisions[0]).parent
    images, results = place / f"{name}-images.npy", place / f"{name}-answers.npz"
    np.save(images, load_answers().images[: max(SIZES)])
    program = Path(__file__).with_name("plain_runtimes.py")
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.run(
        [sys.executable, "-I", program, name, images, results, *artifacts],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    with np.load(results) as arrays:
        found = dict(arrays)
    return {
        precision: {key.split("/", 1)[1]: value for key, value in found.items() if key.startswith(f"{index}/")}
        for index, precision in enumerate(precisions)
    }


@pytest.mark.slow
@every_export
def test_probabilities_match_the_model_at_every_batch_size(name, precision):
    found = run_plain_program(name)[precision]
    others = [f"other/{size}" for size in SIZES] if name in ("saved_model", "litert") else []
    for key in [*map(str, SIZES), *others]:
        probabilities = found[key]
        expected = load_answers().probabilities[: len(probabilities)]
        assert probabilities.shape == (int(key.split("/")[-1]), 10)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
        difference = np.abs(probabilities - expected)
        if precision == "f32":
            assert difference.max() <= 1e-4
        else:
            assert difference.max() <= 0.3
            assert difference.mean() <= 0.02 or len(probabilities) == 1
            assert (probabilities.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.98


@pytest.mark.slow
def test_litert_has_no_steps_in_int8():
    """A softmax or logits in int8 have 256 values: probabilities become 0, and the order of classes is arbitrary."""
    probabilities = run_plain_program("litert")["int8"][str(max(SIZES))]
    assert probabilities.min() > 0  # as in float32
    assert load_answers().probabilities.astype(np.float32).min() > 0
    assert all(len(set(row)) == len(row) for row in probabilities.tolist())


@pytest.mark.slow
@every_export
def test_report_is_correct(name, precision):
    folder = make_export(name, precision)
    report = json.loads((folder / export.REPORT).read_text("utf-8"))
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != export.REPORT]
    assert report["bytes"] == sum(path.stat().st_size for path in files)
    assert report["sha256"] == {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    weights = sum(value.size for value in Bundle.load("cifar10").weights.values())
    assert report["bytes"] / weights < MAX_BYTES_PER_WEIGHT[precision]
    assert (report["format"], report["precision"]) == (name, precision)
    assert report["images_per_second"].keys() == {"1", "64"}
    assert min(report["images_per_second"].values()) > 0
    if precision == "f32":
        assert report["max_difference"] <= 1e-4
        assert report["top1_agreement"] == 1
    else:
        model_top1 = (load_answers().probabilities.argmax(axis=1) == load_answers().labels).mean()
        assert report["images"] == 2000
        assert report["top1_model"] == pytest.approx(model_top1, abs=5e-4)
        assert report["top1_change"] == pytest.approx(100 * (report["top1"] - report["top1_model"]), abs=1e-3)
        assert report["top1_change"] >= -0.5
        assert report["top1_agreement"] >= 0.98


@pytest.mark.slow
@every_export
def test_metadata_are_embedded_as_the_format_expects(name, precision):
    found = run_plain_program(name)[precision]
    metadata = Metadata.parse(str(found["shiftvit"]), name)
    bundle = Bundle.load("cifar10")
    assert metadata.labels == bundle.labels == tuple(CLASS_NAMES)
    assert metadata.precision == precision
    assert metadata.input_shape == (32, 32, 3)
    # The preprocessing is that of the data set, and takes photographs too.
    assert (metadata.preprocess.mean, metadata.preprocess.std) == (bundle.preprocess.mean, bundle.preprocess.std)
    assert metadata.preprocess.output_shape(600, 800) == metadata.input_shape[:2]
    assert metadata.versions["keras"]
    separator = {"onnx": ",", "openvino": " ", "litert": "\n"}.get(name)
    if separator:
        assert str(found["labels"]).strip().split(separator) == list(CLASS_NAMES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("onnx", ["images", "tensor(uint8)", "['batch', 32, 32, 3]", "probabilities", "tensor(float)"]),
        ("openvino", ["<Type: 'uint8_t'>", "[?,32,32,3]", "<Type: 'float32'>"]),
        ("saved_model", ["uint8", "(None, 32, 32, 3)", "float32"]),
        ("litert", ["serving_default_images:0", "uint8", "[1, 32, 32, 3]", "[-1, 32, 32, 3]", "float32"]),
    ],
)
def test_graphs_take_uint8_batches_of_any_size(name, signature):
    for precision, found in run_plain_program(name).items():
        assert found["signature"].tolist() == signature, precision


@pytest.mark.slow
@pytest.mark.parametrize("precision", FORMATS["onnx"].precisions)
def test_onnx_passes_the_checker_and_stores_narrow_weights(precision):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(find_artifact("onnx", precision))
    onnx.checker.check_model(model, full_check=True)
    kinds = {tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) >= 2048}
    kind = onnx.TensorProto
    # As docs/export.md says.
    assert (model.ir_version, [(entry.domain, entry.version) for entry in model.opset_import]) == (10, [("", 20)])
    operators = {node.op_type for node in model.graph.node}
    assert ({"QuantizeLinear", "DequantizeLinear"} <= operators) == (precision == "int8")
    assert {"f32": kind.FLOAT16, "bf16": kind.BFLOAT16, "int8": kind.UINT8}[precision] in kinds
    # The graph says nothing of the machine that traced it.
    assert not [node for node in model.graph.node if node.doc_string or node.metadata_props]
    assert str(Path(build.__file__).parents[2]).encode() not in find_artifact("onnx", precision).read_bytes()


@pytest.mark.slow
def test_command_of_the_document_fixes_the_batch_and_keeps_the_metadata(tmp_path):
    pytest.importorskip("onnx")
    import onnxruntime

    source = find_artifact("onnx")
    text = DOCUMENT.read_text("utf-8")
    (command,) = re.findall(r"^ {4}python (-m onnxruntime\.tools.*) model\.onnx fixed\.onnx$", text, re.MULTILINE)
    subprocess.run([sys.executable, *command.split(), source, tmp_path / "fixed.onnx"], check=True, capture_output=True)
    plain, fixed = (onnxruntime.InferenceSession(path) for path in (source, tmp_path / "fixed.onnx"))
    assert [entry.shape for entry in (*fixed.get_inputs(), *fixed.get_outputs())] == [
        [1, *entry.shape[1:]] for entry in (*plain.get_inputs(), *plain.get_outputs())
    ]
    assert fixed.get_modelmeta().custom_metadata_map == plain.get_modelmeta().custom_metadata_map
    images = load_answers().images[:1]
    np.testing.assert_array_equal(fixed.run(None, {"images": images})[0], plain.run(None, {"images": images})[0])


@pytest.mark.slow
def test_litert_model_is_also_a_zip_archive():
    with zipfile.ZipFile(find_artifact("litert")) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["labels.txt", "shiftvit.json"]


OPTIONS = {
    "group": {},
    "layer-patch_4-two_classes": {"norm": "layer", "patch_size": 4, "image_shape": (32, 24, 3), "num_classes": 2},
    "batch-relu-no_norms": {"norm": "batch", "activation": "relu", "patch_norm": False, "final_norm": False},
    "odd-same-mask": {"image_shape": (21, 19, 3), "patch_size": 2, "merge_padding": "same", "shift_mode": "mask"},
    "odd-valid-shift_2-remainder": {
        **{"image_shape": (23, 17, 3), "patch_size": 2, "depths": (1, 1, 1), "shift_pixels": 2},
        **{"embed_dim": 26, "mlp_ratio": 1.5, "shift_channels": 3},
    },
}


def make_random_bundle(seed=0, **options):
    arguments = {"image_shape": (16, 16, 3), "num_classes": 3, "embed_dim": 24, "depths": (1, 1), **options}
    preset = arguments.pop("preset", None)
    model = ShiftViT.from_preset(preset, **arguments) if preset else ShiftViT(**arguments)
    set_random_weights(model, seed)
    labels = tuple(f"class {index}" for index in range(model.settings.num_classes))
    return Bundle.from_model(model, labels, Preprocess(mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 70.0)))


@pytest.mark.slow
@pytest.mark.skipif(BUILDS != "torch", reason="the graph is traced with torch on the processor")
@pytest.mark.filterwarnings("ignore")  # PyTorch's exporter warns of its own code
@pytest.mark.parametrize("option", [*OPTIONS, "keras_example"])
def test_onnx_supports_every_model_option(option, tmp_path):
    pytest.importorskip("onnxscript")
    example = {"preset": "keras_example", "image_shape": (48, 48, 3), "depths": (1, 1, 1, 1), "shift_channels": 2}
    bundle = make_random_bundle(**OPTIONS.get(option, example))
    metadata = make_metadata(bundle)
    images = np.random.default_rng(1).integers(0, 256, (7, *metadata.input_shape), np.uint8)
    expected = compute_probabilities(bundle, images)
    assert np.ptp(expected, axis=0).max() > 0.01
    build.BUILDERS["onnx"](bundle, metadata, images[:0], tmp_path / "model.onnx")
    graph = load_graph(tmp_path / "model.onnx")
    for size in (7, 1):
        np.testing.assert_allclose(graph.run(images[:size]), expected[:size], atol=1e-4)


@pytest.mark.slow
def test_tensorflow_graphs_support_every_model_option(tmp_path):
    """The gate compares each graph, alone and in batches, with answers that no code of the exports computed."""
    skip_if_missing("saved_model")
    skip_if_missing("litert")
    for option, arguments in OPTIONS.items():
        bundle, place = make_random_bundle(**arguments), tmp_path / option
        bundle.save(place / "bundle")
        images = np.random.default_rng(1).integers(0, 256, (7, *bundle.config.image_shape), np.uint8)
        expected = compute_probabilities(bundle, images)
        assert np.ptp(expected, axis=0).max() > 0.01
        save_arrays(place / "images", {"images": images, "calibration": images[:0]})
        for name in ("saved_model", "litert"):
            job = {
                "bundle": str(place / "bundle"),
                "format": name,
                "precision": "f32",
                "metadata": make_metadata(bundle).dump(),
                "runtime": FORMATS[name].runtime,
                "artifact": str(place / FORMATS[name].artifact),
                "images": str(place / "images"),
                "reference": str(place / "reference.npz"),
                "threads": 1,
                "seconds": 0.0,
            }
            (place / "job.json").write_text(json.dumps(job))
            run_step("build", place / "job.json", FORMATS[name].backend)
            np.savez(place / "reference.npz", probabilities=expected.astype(np.float32))
            report = json.loads(run_step("gate", place / "job.json", FORMATS[name].backend).splitlines()[-1])
            assert (report["images"], report["faults"]) == (7, []), (option, name, report)


@pytest.mark.slow
def test_packed_graph_has_the_packed_weights(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(export, "_run_step", run_step)  # in processes that other tests have started
    make_random_bundle(embed_dim=36).save(tmp_path / "bundle")
    packed = Bundle.load(export.pack(tmp_path / "bundle", tmp_path / "packed.zip", half=True, onnx=True))
    assert {value.dtype.name for value in packed.weights.values()} == {"float16"}
    tensors = onnx.load_from_string(packed.graph).graph.initializer
    half = [tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT16]
    # Tracing multiplies small kernels by their scales, and keeps the product in float32.
    assert sum(np.prod(tensor.dims) for tensor in half) > 0.8 * sum(np.prod(tensor.dims) for tensor in tensors)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    graph = load_graph(tmp_path / "packed.zip", "onnxruntime")
    np.testing.assert_allclose(graph.run(images), compute_probabilities(packed, images), atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "packed.zip"]
    # The weights before the rounding would give other answers.
    assert np.abs(graph.run(images) - compute_probabilities(Bundle.load(tmp_path / "bundle"), images)).max() > 1e-5


@pytest.mark.skipif(os.name == "nt", reason="a shell script in place of Python")
def test_output_of_a_step_may_be_any_bytes(tmp_path, monkeypatch):
    """Python writes UTF-8 in every locale; a library may write anything."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nprintf '%s \\303\\244 \\377' $PYTHONUTF8\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert export._run_step("build", tmp_path / "job.json", "torch") == "1 ä \ufffd"


def test_step_imports_nothing_from_the_current_folder(tmp_path, monkeypatch):
    """A folder that was unpacked from a download may contain a module of any name."""
    (tmp_path / "runpy.py").write_text("open('ran', 'w')")
    (tmp_path / "numpy.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShiftViTError):
        export._run_step("build", tmp_path / "job.json", "torch")  # there is no such file
    assert not (tmp_path / "ran").exists()


def test_export_without_fixed_size_or_classes_is_refused(tmp_path):
    for options, message in (
        ({"image_shape": (None, None, 3)}, "has no fixed size"),
        ({"num_classes": 0}, "has no classes"),
    ):
        make_random_bundle(**options).save(tmp_path / "bundle")
        with pytest.raises(ShiftViTError, match=message):
            export.export(tmp_path / "bundle", "onnx", out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
