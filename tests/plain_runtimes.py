"""Runs exported graphs with their runtime alone, as a program without shiftvit does.

    python -I tests/plain_runtimes.py FORMAT IMAGES.npy ANSWERS.npz ARTIFACT...

For artifact number i it writes the answers to 1 and to 257 images as `i/1` and `i/257`, and further values that depend
on the format.
"""

from __future__ import annotations

import sys
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

SIZES = (1, 257)


def run_onnx(path: str, batches: list[np.ndarray]) -> Iterator[tuple[str, Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    yield from session.get_modelmeta().custom_metadata_map.items()
    (entry,), (result, _) = session.get_inputs(), session.get_outputs()  # the other is the feature map
    yield "signature", [entry.name, entry.type, str(entry.shape), result.name, result.type]
    for batch in batches:
        yield str(len(batch)), session.run(["probabilities"], {"images": batch})[0]


def run_openvino(path: str, batches: list[np.ndarray]) -> Iterator[tuple[str, Any]]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    yield "shiftvit", model.get_rt_info(["shiftvit"]).astype(str)
    yield "labels", model.get_rt_info(["model_info", "labels"]).astype(str)
    entry, result = model.input("images"), model.output("probabilities")
    yield "signature", [str(entry.element_type), str(entry.partial_shape), str(result.element_type)]
    # OpenVINO would otherwise use bfloat16 on processors that have it.
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch in batches:
        yield str(len(batch)), compiled({"images": batch})["probabilities"]


def run_saved_model(path: str, batches: list[np.ndarray]) -> Iterator[tuple[str, Any]]:
    import keras
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    serve = loaded.signatures["serving_default"]
    layer = keras.layers.TFSMLayer(path, call_endpoint="serving_default")
    with open(f"{path}/assets.extra/shiftvit.json", encoding="utf-8") as file:  # noqa: PTH123
        yield "shiftvit", file.read()
    entry = serve.structured_input_signature[1]["images"]
    yield "signature", [entry.dtype.name, str(entry.shape), serve.structured_outputs["probabilities"].dtype.name]
    for batch in batches:
        yield str(len(batch)), serve(images=tf.constant(batch))["probabilities"].numpy()
        yield f"layer/{len(batch)}", layer(batch)["probabilities"].numpy()


def run_litert(path: str, batches: list[np.ndarray]) -> Iterator[tuple[str, Any]]:
    from ai_edge_litert.interpreter import Interpreter

    with zipfile.ZipFile(path) as archive:
        yield "shiftvit", archive.read("shiftvit.json").decode()
        yield "labels", archive.read("labels.txt").decode()
    interpreter = Interpreter(model_path=path)
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    yield "signature", [entry["dtype"].__name__, str(entry["shape_signature"].tolist()), result["dtype"].__name__]
    for batch in batches:
        interpreter.resize_tensor_input(entry["index"], batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry["index"], batch)
        interpreter.invoke()
        yield str(len(batch)), interpreter.get_tensor(result["index"])


def run_torch(path: str, batches: list[np.ndarray]) -> Iterator[tuple[str, Any]]:
    import torch

    extra = {"shiftvit.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    yield "shiftvit", extra["shiftvit.json"]
    for batch in batches:
        yield str(len(batch)), module(torch.from_numpy(batch)).detach().numpy()


def main(kind: str, images_file: str, answers_file: str, artifacts: list[str]) -> None:
    warnings.simplefilter("ignore")
    sys.modules["shiftvit"] = None  # type: ignore[assignment]  # from here on, importing shiftvit fails
    images = np.load(images_file)
    answers = {}
    for index, path in enumerate(artifacts):
        for name, value in globals()[f"run_{kind}"](path, [images[:size] for size in SIZES]):
            answers[f"{index}/{name}"] = np.asarray(value)
    assert not [name for name in sys.modules if name.startswith("shiftvit.")]
    np.savez(answers_file, **answers)


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4:])
