"""Builds an artifact and the answers that it must give; runs as its own process, under the right backend.

    python -m shiftvit.exports.build JOB.json

The job names the bundle, the format, the precision, the artifact to write, and an .npz with uint8 images at the model's
input size: `images` to answer, and `calibration` ones for int8. The model's own
answers are written to another .npz, `reference`.
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
from shiftvit.bundle.metadata import FILE, KEY, MAP, Metadata, graph_metadata
from shiftvit.evaluation.logits import BATCH_SIZE
from shiftvit.exports import onnx_graphs
from shiftvit.exports.any_size import accept_any_size

Pixels = NDArray[np.uint8]
# From pixels, uint8 (N, H, W, 3), to logits (N, K) and the map whose mean the head takes, (N, h, w, C); on torch.
Network = Callable[[Any], tuple[Any, Any]]


def main(job_file: str) -> None:
    """Runs the job."""
    job = json.loads(Path(job_file).read_text("utf-8"))
    # The libraries' warnings are not ours to fix; the gate checks the result.
    warnings.simplefilter("ignore")
    bundle = Bundle.load(job["bundle"])
    metadata = graph_metadata(bundle, job["precision"])
    with np.load(job["images"]) as arrays:
        images, calibration = arrays["images"], arrays["calibration"]
    np.savez(job["reference"], probabilities=reference(bundle, metadata, images))
    artifact = Path(job["artifact"])
    BUILDERS[job["format"]](bundle, metadata, calibration, artifact)
    if job.get("any_size"):
        accept_any_size(artifact, metadata.preprocess, Metadata.parse(job["metadata"], "the job"))


def reference(bundle: Bundle, metadata: Metadata, images: Pixels) -> NDArray[np.float32]:
    """Returns the Keras model's float32 probabilities (N, C) for uint8 images of its input size."""
    model = bundle.build("float32")
    parts = [
        np.asarray(model.predict_on_batch(metadata.preprocess.normalised(images[first : first + BATCH_SIZE])))
        for first in range(0, len(images), BATCH_SIZE)
    ]
    return bundle.probabilities(np.concatenate(parts))


def _policy(metadata: Metadata) -> str:
    return "bfloat16" if metadata.precision == "bf16" else "float32"


def _keras_network(bundle: Bundle, metadata: Metadata, policy: str) -> Network:
    """Returns the Keras model itself."""
    import keras
    import torch

    model = bundle.build(policy)
    network = keras.Model(model.input, [model.output, model.get_layer("pool").input])
    mean, std = (torch.tensor(getattr(metadata.preprocess, name), dtype=torch.float32) for name in ("mean", "std"))
    return lambda images: network((images.to(torch.float32) - mean) / std, training=False)


def _program(network: Network, bundle: Bundle, metadata: Metadata, *, with_map: bool = False) -> Any:
    """Returns the torch program from uint8 pixels to probabilities, with a variable batch size.

    With `with_map` it also returns the map.
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


def _torch(bundle: Bundle, metadata: Metadata, calibration: Pixels, path: Path) -> None:  # noqa: ARG001
    import torch

    program = _program(_keras_network(bundle, metadata, _policy(metadata)), bundle, metadata)
    torch.export.save(program, path, extra_files={FILE: metadata.dump()})


def _onnx_graph(network: Network, bundle: Bundle, metadata: Metadata, path: Path, *, with_map: bool = False) -> None:
    import torch

    exported = torch.onnx.export(
        _program(network, bundle, metadata, with_map=with_map),
        dynamo=True,
        opset_version=20,
        input_names=["images"],
        output_names=["probabilities", MAP][: 1 + with_map],
        verbose=False,
    )
    exported.save(str(path))


def _onnx(bundle: Bundle, metadata: Metadata, calibration: Pixels, path: Path) -> None:
    from shiftvit.exports import channels_first

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        if metadata.precision == "int8":
            # ONNX Runtime has integer kernels that are exact everywhere for matrix products (see `saturation`).
            _onnx_graph(_keras_network(bundle, metadata, "float32"), bundle, metadata, plain, with_map=True)
            onnx_graphs.quantize(plain, calibration)
        else:  # its weights are narrowed afterwards
            network = channels_first.Network(bundle.build("float32"), metadata.preprocess)
            _onnx_graph(network, bundle, metadata, plain, with_map=True)
        onnx_graphs.finish(plain, path, metadata)


def _openvino(bundle: Bundle, metadata: Metadata, calibration: Pixels, path: Path) -> None:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        _onnx_graph(_keras_network(bundle, metadata, "float32"), bundle, metadata, plain)
        model = openvino.convert_model(plain)
        if metadata.precision == "int8":
            import nncf

            # Smoothing would move the activations' range into the weights, which costs this model accuracy. The
            # overflow fix keeps weights within 7 bits, so that no processor's sums saturate (see `saturation`).
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
        # Where OpenVINO's Model API looks.
        model.set_rt_info(" ".join(label.replace(" ", "_") for label in metadata.labels), ["model_info", "labels"])
        model.set_rt_info("Classification", ["model_info", "model_type"])
        # Weights of products in 16 bits; the runtime converts them to bfloat16.
        openvino.save_model(model, path, compress_to_fp16=metadata.precision == "bf16")


def _saved_model(bundle: Bundle, metadata: Metadata, calibration: Pixels, path: Path) -> None:  # noqa: ARG001
    import tensorflow as tf

    model = bundle.build(_policy(metadata))
    mean, std = (np.asarray(getattr(metadata.preprocess, name), np.float32) for name in ("mean", "std"))

    def serve(images: Any) -> dict[str, Any]:
        normalised = (tf.cast(images, tf.float32) - mean) / std
        return {"probabilities": tf.nn.softmax(model(normalised, training=False) / bundle.temperature)}

    module = tf.Module()
    module.variables_of_model = [variable.value for variable in model.variables]
    signature = [tf.TensorSpec((None, *metadata.input_shape), tf.uint8, name="images")]
    served = tf.function(serve, input_signature=signature).get_concrete_function()
    tf.saved_model.save(module, str(path), signatures={"serving_default": served})
    # TensorFlow's place for extra files.
    (path / "assets.extra").mkdir()
    (path / "assets.extra" / FILE).write_text(metadata.dump(), "utf-8")


def _litert(bundle: Bundle, metadata: Metadata, calibration: Pixels, path: Path) -> None:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "saved_model"
        _saved_model(bundle, metadata, calibration, saved)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
        if metadata.precision == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([image[None]] for image in calibration)
        path.write_bytes(converter.convert())
    # The format's own way to carry files: a zip archive after the model, which interpreters ignore.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(FILE, metadata.dump())
        archive.writestr("labels.txt", "\n".join(metadata.labels) + "\n")


Builder = Callable[[Bundle, Metadata, Pixels, Path], None]
BUILDERS: dict[str, Builder] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "saved_model": _saved_model,
    "litert": _litert,
    "torch": _torch,
}

if __name__ == "__main__":
    main(sys.argv[1])
