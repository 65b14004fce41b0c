"""Changes an ONNX graph after tracing: quantization, narrow weights, metadata, the checker."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.metadata import KEY, Metadata
from shiftvit.exports.labels import join_labels
from shiftvit.telemetry import import_silently

# Smaller constants are not narrowed, because that gains nothing.
_LARGE = 512
_CALIBRATION_BATCH = 32
# Larger constants are not searched for duplicates; a shift kernel of thousands of channels is smaller.
_KERNEL = 2**18


def quantize(path: Path, calibration: NDArray[np.uint8]) -> None:
    """Quantizes a float32 graph statically (QDQ), in place.

    Matrix products get uint8 weights, per output channel, and uint8 activations with ranges from the calibration
    images; with int8 weights ONNX Runtime's sums would saturate on processors without VNNI (see `saturation`). The
    shift, a convolution in the traced graph, stays in float32: it only moves values.
    """
    import_silently("onnxruntime")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._starts = iter(range(0, len(calibration), _CALIBRATION_BATCH))

        def get_next(self) -> dict[str, Any] | None:
            start = next(self._starts, None)
            return None if start is None else {"images": calibration[start : start + _CALIBRATION_BATCH]}

    logging.getLogger().setLevel(logging.ERROR)  # it recommends its own preprocessing, which tracing has already done
    quantize_static(
        path,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QUInt8,
    )


def finish(source: Path, path: Path, metadata: Metadata) -> None:
    """Stores large weights in 16 bits where possible, adds the metadata, checks the graph and writes it."""
    import onnx
    import onnx_ir
    from onnx_ir.passes.common import DeduplicateInitializersPass

    # Tracing gave every block its own copy of the shift kernel.
    model = onnx_ir.to_proto(DeduplicateInitializersPass(size_limit=_KERNEL)(onnx_ir.load(source)).model)
    _narrow(model, metadata.precision == "bf16")
    del model.metadata_props[:]
    labels = join_labels(metadata.labels, ",")
    onnx.helper.set_model_props(model, {KEY: metadata.dump(), **({"labels": labels} if labels else {})})
    model.producer_name = "shiftvit"
    model.graph.name = "shiftvit"
    for node in model.graph.node:  # the tracer's notes: line numbers and Python names
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]  # shapes, which runtimes infer themselves
    for value in [*model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _narrow(model: Any, bfloat16: bool) -> None:
    """Stores large float32 constants in 16 bits, with a cast that runtimes fold when they load the graph.

    In bfloat16 if asked. Otherwise in float16, and only constants that stay exact, such as those of a halved bundle.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < _LARGE:
            continue
        values = numpy_helper.to_array(tensor)
        if bfloat16:
            import ml_dtypes

            narrow, kind = values.astype(ml_dtypes.bfloat16), TensorProto.BFLOAT16
        else:
            with np.errstate(over="ignore"):
                narrow, kind = values.astype(np.float16), TensorProto.FLOAT16
            if not np.array_equal(narrow.astype(np.float32), values):
                continue
        name = tensor.name
        stored = helper.make_tensor(f"{name}.stored", kind, values.shape, narrow.tobytes(), raw=True)
        tensor.CopyFrom(stored)
        casts.append(helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT, name=f"{name}.cast"))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
