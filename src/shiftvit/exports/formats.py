"""The table of export formats."""

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
        modules: the modules to be installed, by import name.
        quantizer: the modules that only int8 needs.
        precisions: the precisions offered. "f32": float32. "bf16": weights and products in bfloat16; in ONNX, whose
            runtime computes in float32 on processors, only the weights. "int8": static quantization of weights and
            activations after calibration.
        files: patterns of the files of an export besides its report; a new export may replace these.
    """

    artifact: str
    runtime: str
    backend: str
    modules: tuple[str, ...]
    precisions: tuple[str, ...]
    files: tuple[str, ...]
    quantizer: tuple[str, ...] = ()

    @property
    def top(self) -> set[str]:
        """The names of an export's files and folders at the top level, besides its report."""
        return {pattern.split("/")[0] for pattern in self.files}

    def list_modules(self, precision: str) -> tuple[str, ...]:
        """Returns the modules that an export in a precision needs."""
        return (*self.modules, *self.quantizer) if precision == "int8" else self.modules


# Other libraries' names for float16.
_HALF = ("f16", "fp16", "float16", "half")
_ONNX = ("torch", "onnx", "onnxscript", "onnxruntime")

FORMATS = {
    "onnx": Format(
        artifact="model.onnx",
        runtime="onnxruntime",
        backend="torch",
        modules=_ONNX,
        precisions=("f32", "bf16", "int8"),
        files=("model.onnx",),
    ),
    "openvino": Format(
        artifact="model.xml",
        runtime="openvino",
        backend="torch",
        modules=(*_ONNX, "openvino"),
        precisions=("f32", "bf16", "int8"),
        files=("model.xml", "model.bin"),
        quantizer=("nncf",),
    ),
    "saved_model": Format(
        artifact="saved_model",
        runtime="tensorflow",
        backend="tensorflow",
        modules=("tensorflow",),
        precisions=("f32", "bf16"),
        files=("saved_model/*.pb", "saved_model/variables/variables.*", "saved_model/assets.extra/shiftvit.json"),
    ),
    "litert": Format(
        artifact="model.tflite",
        runtime="litert",
        backend="tensorflow",
        modules=("tensorflow", "ai_edge_litert"),
        precisions=("f32", "int8"),
        files=("model.tflite",),
    ),
    "torch": Format(
        artifact="model.pt2",
        runtime="torch",
        backend="torch",
        modules=("torch",),
        precisions=("f32", "bf16"),
        files=("model.pt2",),
    ),
}


def find_format(name: str, precision: str) -> Format:
    """Returns a row by name.

    Raises:
        ShiftViTError: there is no such format, it lacks that precision, or a package is not installed.
    """
    if not isinstance(name, str) or name not in FORMATS:
        raise ShiftViTError(f"there is no format {name!r}; {suggest(name, FORMATS)}")
    row = FORMATS[name]
    if precision in _HALF:
        raise ShiftViTError(
            f"{precision} is not offered as a precision; for ONNX weights in float16, run `shiftvit pack MODEL DIR "
            f"--half` and export DIR in f32, or choose one of: {', '.join(row.precisions)}"
        )
    if precision not in row.precisions:
        raise ShiftViTError(f"{name} has no precision {precision!r}; {suggest(precision, row.precisions)}")
    needed = row.list_modules(precision)
    missing = [module for module in needed if importlib.util.find_spec(module) is None]
    if missing:
        raise ShiftViTError(f"exporting to {name} needs {', '.join(missing)}; {suggest_install(*missing)}")
    return row
