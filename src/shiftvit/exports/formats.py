"""The one table of export formats."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from shiftvit.errors import ShiftViTError, suggest, suggest_install


@dataclass(frozen=True)
class Format:
    """A row of the table.

    Attributes:
        artifact: the file's (or folder's) name within the export.
        runtime: the runtime that the gate uses.
        backend: the Keras backend that builds it, in its own process.
        modules: the modules that must be installed, by import name.
        precisions: the precisions offered. "f32": float32. "bf16": weights and products in bfloat16; in ONNX, whose
            runtime computes in float32 on processors, only the weights. "int8": static quantization of weights and
            activations after calibration.
        description: one line.
        files: patterns of the files of an export besides its report; a new export may replace these.
    """

    artifact: str
    runtime: str
    backend: str
    modules: tuple[str, ...]
    precisions: tuple[str, ...]
    description: str
    files: tuple[str, ...]

    @property
    def top(self) -> set[str]:
        """The names of an export's files and folders at the top level, besides its report."""
        return {pattern.split("/")[0] for pattern in self.files}


_ONNX = ("torch", "onnx", "onnxscript", "onnxruntime")

FORMATS = {
    "onnx": Format(
        "model.onnx",
        "onnxruntime",
        "torch",
        _ONNX,
        ("f32", "bf16", "int8"),
        "for ONNX Runtime and most other engines",
        ("model.onnx",),
    ),
    "openvino": Format(
        "model.xml",
        "openvino",
        "torch",
        (*_ONNX, "openvino", "nncf"),
        ("f32", "bf16", "int8"),
        "for Intel's and other processors",
        ("model.xml", "model.bin"),
    ),
    "saved_model": Format(
        "saved_model",
        "tensorflow",
        "tensorflow",
        ("tensorflow",),
        ("f32", "bf16"),
        "for TensorFlow and TF Serving",
        ("saved_model/*.pb", "saved_model/variables/variables.*", "saved_model/assets.extra/shiftvit.json"),
    ),
    "litert": Format(
        "model.tflite",
        "litert",
        "tensorflow",
        ("tensorflow", "ai_edge_litert"),
        ("f32", "int8"),
        "for phones and small devices",
        ("model.tflite",),
    ),
    "torch": Format(
        "model.pt2", "torch", "torch", ("torch",), ("f32", "bf16"), "a torch.export program", ("model.pt2",)
    ),
}


def find_format(name: str, precision: str) -> Format:
    """Returns a row by name.

    Raises:
        ShiftViTError: there is no such format, it lacks that precision, or a package is not installed.
    """
    if name not in FORMATS:
        raise ShiftViTError(f"there is no format {name!r}; {suggest(name, FORMATS)}")
    row = FORMATS[name]
    if precision not in row.precisions:
        raise ShiftViTError(f"{name} has no precision {precision!r}; {suggest(precision, row.precisions)}")
    missing = [module for module in row.modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ShiftViTError(f"exporting to {name} needs {', '.join(missing)}; {suggest_install(*missing)}")
    return row
