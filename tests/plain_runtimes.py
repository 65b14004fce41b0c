"""Runs the programs of docs/export.md on exported graphs, in a process that cannot import shiftvit.

    python -I tests/plain_runtimes.py FORMAT IMAGES.npy ANSWERS.npz ARTIFACT...

For artifact number i it writes the answers to 1 and to 257 images as `i/1` and `i/257`, the metadata as `i/shiftvit`,
and further values that depend on the format.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (1, 257)
DOCUMENT = Path(__file__).parents[1] / "docs" / "export.md"


def read_program(part: str) -> str:
    """Returns the only program of the document that contains `part`."""
    programs = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    (found,) = [program for program in programs if part in program]
    return found


def run_program(artifact: Path, images: np.ndarray) -> dict[str, Any]:
    """Runs an artifact's program in its folder; returns the program's variables."""
    os.chdir(artifact.parent)
    variables: dict[str, Any] = {"images": images}
    exec(read_program(f'"{artifact.name}"'), variables)
    return variables


def describe_onnx(variables: dict[str, Any], _: Path) -> Iterator[tuple[str, Any]]:
    session = variables["session"]
    yield "labels", session.get_modelmeta().custom_metadata_map["labels"]
    (entry,), (result, _map) = session.get_inputs(), session.get_outputs()
    yield "signature", [entry.name, entry.type, str(entry.shape), result.name, result.type]


def describe_openvino(variables: dict[str, Any], _: Path) -> Iterator[tuple[str, Any]]:
    model = variables["model"]
    yield "labels", model.get_rt_info(["model_info", "labels"]).astype(str)
    entry, result = model.input("images"), model.output("probabilities")
    yield "signature", [str(entry.element_type), str(entry.partial_shape), str(result.element_type)]


def describe_saved_model(variables: dict[str, Any], artifact: Path) -> Iterator[tuple[str, Any]]:
    import keras

    serve = variables["serve"]
    entry = serve.structured_input_signature[1]["images"]
    yield "signature", [entry.dtype.name, str(entry.shape), serve.structured_outputs["probabilities"].dtype.name]
    layer, batch = keras.layers.TFSMLayer(str(artifact), call_endpoint="serving_default"), variables["images"]
    yield f"other/{len(batch)}", layer(batch)["probabilities"].numpy()


def describe_litert(variables: dict[str, Any], artifact: Path) -> Iterator[tuple[str, Any]]:
    with zipfile.ZipFile(artifact) as archive:
        yield "labels", archive.read("labels.txt").decode()
    interpreter, batch = variables["Interpreter"](str(artifact)), variables["images"]
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    shapes = str(entry["shape"].tolist()), str(entry["shape_signature"].tolist())
    yield "signature", [entry["name"], entry["dtype"].__name__, *shapes, result["dtype"].__name__]
    interpreter.resize_tensor_input(entry["index"], batch.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], batch)
    interpreter.invoke()
    yield f"other/{len(batch)}", interpreter.get_tensor(result["index"])


def describe_torch(_: dict[str, Any], __: Path) -> Iterator[tuple[str, Any]]:
    yield from ()


def main(kind: str, images_file: str, answers_file: str, artifacts: list[str]) -> None:
    warnings.simplefilter("ignore")
    sys.modules["shiftvit"] = None  # type: ignore[assignment]  # from here on, importing shiftvit fails
    images, answers = np.load(images_file), {}
    place, paths = Path(answers_file).absolute(), [Path(artifact).absolute() for artifact in artifacts]
    for index, artifact in enumerate(paths):
        for size in SIZES:
            variables = run_program(artifact, images[:size])
            found = {str(size): variables["probabilities"], "shiftvit": variables["metadata"]}
            found |= globals()[f"describe_{kind}"](variables, artifact)
            answers |= {f"{index}/{name}": np.asarray(value) for name, value in found.items()}
    assert not [name for name in sys.modules if name.startswith("shiftvit.")]
    np.savez(place, **answers)


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4:])
