"""Builds an artifact, and computes the answers that it must give. It runs in its own process, with the right backend.

    python -m shiftvit.exports.build JOB.json

The job names the bundle, the format, the precision, the artifact to write, and a folder with uint8 images at the
model's input size: `images.npy` to compare on, and `calibration.npy` for int8. The model's own answers are written to
an .npz, `reference`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.metadata import FILE, KEY, MAP, Metadata, make_metadata
from shiftvit.evaluation.logits import predict_logits
from shiftvit.exports import quantization
from shiftvit.exports.any_size import accept_any_size
from shiftvit.exports.arrays import open_arrays
from shiftvit.exports.labels import join_labels
from shiftvit.telemetry import import_silently

Pixels = NDArray[np.uint8]
# Maps pixels, uint8 (N, H, W, 3), to logits (N, K) and the last feature map, (N, h, w, C); on torch.
Network = Callable[[Any], tuple[Any, Any]]


def main(job_file: str) -> None:
    """Runs the job."""
    job = json.loads(Path(job_file).read_text("utf-8"))
    # Users do not need the warnings of the libraries, because the gate checks the result.
    warnings.simplefilter("ignore")
    bundle = Bundle.load(job["bundle"])
    metadata = make_metadata(bundle, job["precision"])
    arrays = open_arrays(job["images"])
    np.savez(job["reference"], probabilities=compute_reference(bundle, metadata, arrays["images"]))
    artifact = Path(job["artifact"])
    BUILDERS[job["format"]](bundle, metadata, arrays["calibration"], artifact)
    if job.get("any_size"):
        accept_any_size(artifact, metadata.preprocess, Metadata.parse(job["metadata"], "the job"))


def compute_reference(bundle: Bundle, metadata: Metadata, images: Pixels) -> NDArray[np.float32]:
    """Returns the Keras model's float32 probabilities (N, C) for uint8 images of its input size."""
    return bundle.probabilities(predict_logits(bundle.build("float32"), images, metadata.preprocess.rest))


def _choose_policy(metadata: Metadata) -> str:
    return "bfloat16" if metadata.precision == "bf16" else "float32"


def _wrap_keras(bundle: Bundle, metadata: Metadata, policy: str) -> Network:
    """Returns the Keras model with its preprocessing."""
    import keras
    import torch

    model = bundle.build(policy)
    network = keras.Model(model.input, [model.output, model.get_layer("pool").input])
    mean, std = (torch.tensor(getattr(metadata.preprocess, name), dtype=torch.float32) for name in ("mean", "std"))
    return lambda images: network((images.to(torch.float32) - mean) / std, training=False)


def _trace(network: Network, bundle: Bundle, metadata: Metadata, *, with_map: bool = False) -> Any:
    """Traces a torch program that maps uint8 pixels to probabilities, with a variable batch size.

    With `with_map` it also returns the last feature map.
    """
    import torch

    class Serving(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Any) -> Any:
            logits, features = self.network(images)
            probabilities = torch.softmax(logits / bundle.temperature, dim=-1)
            return (probabilities, features) if with_map else probabilities

    example = (torch.zeros((2, *metadata.input_shape), dtype=torch.uint8),)
    with torch.no_grad():
        return torch.export.export(Serving().eval(), example, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def _build_torch(bundle: Bundle, metadata: Metadata, calibration: Pixels, path: Path) -> None:  # noqa: ARG001
    import torch

    program = _trace(_wrap_keras(bundle, metadata, _choose_policy(metadata)), bundle, metadata)
    torch.export.save(program, path, extra_files={FILE: metadata.dump()})


def _write_onnx(network: Network, bundle: Bundle, metadata: Metadata, path: Path, *, with_map: bool = False) -> None:
    import torch

    exported = torch.onnx.export(
        _trace(network, bundle, metadata, with_map=with_map),
        dynamo=True,
        opset_version=20,
        input_names=["images"],
        output_names=["probabilities", MAP][: 1 + with_map],
        verbose=False,
    )
    exported.save(str(path))


def _build_onnx(bundle: Bundle, metadata: Metadata, calibration: Pixels, path: Path) -> None:
    from shiftvit.exports import channels_first

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        if metadata.precision == "int8":
            # ONNX Runtime has integer kernels that are exact everywhere for matrix products (see `saturation`).
            _write_onnx(_wrap_keras(bundle, metadata, "float32"), bundle, metadata, plain, with_map=True)
            quantization.quantize(plain, calibration)
        else:  # `finish` stores its weights in 16 bits if asked
            network = channels_first.Network(bundle.build("float32"), metadata.preprocess)
            _write_onnx(network, bundle, metadata, plain, with_map=True)
        quantization.finish(plain, path, metadata)


def _build_openvino(bundle: Bundle, metadata: Metadata, calibration: Pixels, path: Path) -> None:
    openvino = import_silently("openvino")
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        _write_onnx(_wrap_keras(bundle, metadata, "float32"), bundle, metadata, plain)
        model = openvino.convert_model(plain)
        if metadata.precision == "int8":
            nncf = import_silently("nncf")
            # Smoothing moves the range of the activations into the weights, which costs this model accuracy. The
            # overflow fix keeps weights within 7 bits, so that sums saturate on no processor (see `saturation`).
            smoothing = nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
            model = nncf.quantize(
                model,
                nncf.Dataset([image[None] for image in calibration]),
                subset_size=len(calibration),
                model_type=nncf.ModelType.TRANSFORMER,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    smooth_quant_alphas=smoothing, overflow_fix=nncf.OverflowFix.ENABLE
                ),
            )
        model.set_rt_info(metadata.dump(), [KEY])
        # For OpenVINO's Model API.
        if labels := join_labels(metadata.labels, " "):
            model.set_rt_info(labels, ["model_info", "labels"])
        model.set_rt_info("Classification", ["model_info", "model_type"])
        # Stores the weights of products in float16; the runtime converts them to bfloat16.
        openvino.save_model(model, path, compress_to_fp16=metadata.precision == "bf16")


def _write_saved_model(bundle: Bundle, metadata: Metadata, path: Path) -> None:
    import tensorflow as tf

    model = bundle.build(_choose_policy(metadata))
    mean, std = (np.asarray(getattr(metadata.preprocess, name), np.float32) for name in ("mean", "std"))

    def serve(images: Any) -> dict[str, Any]:
        normalised = (tf.cast(images, tf.float32) - mean) / std
        return {"probabilities": tf.nn.softmax(model(normalised, training=False) / bundle.temperature)}

    module = tf.Module()
    module.variables_of_model = [variable.value for variable in model.variables]
    signature = [tf.TensorSpec((None, *metadata.input_shape), tf.uint8, name="images")]
    served = tf.function(serve, input_signature=signature).get_concrete_function()
    tf.saved_model.save(module, str(path), signatures={"serving_default": served})


def _build_saved_model(bundle: Bundle, metadata: Metadata, calibration: Pixels, path: Path) -> None:  # noqa: ARG001
    _write_saved_model(bundle, metadata, path)
    # TensorFlow's folder for extra files.
    (path / "assets.extra").mkdir()
    (path / "assets.extra" / FILE).write_text(metadata.dump(), "utf-8")


def _build_litert(bundle: Bundle, metadata: Metadata, calibration: Pixels, path: Path) -> None:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "saved_model"
        _write_saved_model(bundle, metadata, saved)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
        path.write_bytes(
            _quantize_litert(converter, calibration) if metadata.precision == "int8" else converter.convert()
        )
    # LiteRT's convention for extra files: a zip archive after the model, which interpreters ignore.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(FILE, metadata.dump())
        if labels := join_labels(metadata.labels, "\n"):
            archive.writestr("labels.txt", labels + "\n")


def _quantize_litert(converter: Any, calibration: Pixels) -> bytes:
    """Quantizes all but the head and the softmax: with 256 values, logits tie and probabilities do not add up to 1."""
    import tensorflow as tf
    from ai_edge_litert import schema_py_generated as schema

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in calibration)
    # TensorFlow's interface for selective quantization. It leaves operations out by kind or by their output's name.
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=["SOFTMAX"])
    debugger = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_options=options)
    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs(debugger.calibrated_model)).subgraphs[0]
    (result,) = graph.outputs
    producers = {output: operator for operator in graph.operators for output in operator.outputs}
    head = graph.tensors[producers[result].inputs[0]].name.decode()
    debugger.options = tf.lite.experimental.QuantizationDebugOptions(
        denylisted_ops=options.denylisted_ops, denylisted_nodes=[head]
    )
    return bytes(debugger.get_nondebug_quantized_model())


Builder = Callable[[Bundle, Metadata, Pixels, Path], None]
BUILDERS: dict[str, Builder] = {
    "onnx": _build_onnx,
    "openvino": _build_openvino,
    "saved_model": _build_saved_model,
    "litert": _build_litert,
    "torch": _build_torch,
}

if __name__ == "__main__":
    main(sys.argv[1])
