"""Checks from an int8 artifact alone whether its integer products are exact on every processor.

x86 processors without VNNI multiply unsigned by signed 8-bit values and add two neighbouring products in 16 bits, which
saturate: the sum is clipped and the answers are silently wrong. ONNX Runtime's page on quantization and OpenVINO's on
the "saturation (overflow) issue" describe it. An artifact that is correct on the machine that made it can therefore
lose accuracy on another. These checks are arithmetic, so one machine can check for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.errors import ShiftViTError
from shiftvit.telemetry import import_silently

_ACTIVATION = 255  # the largest unsigned 8-bit activation
_INT16, _INT32 = 2**15 - 1, 2**31 - 1
_MEND = "export in f32, or report the model to the developers"


@dataclass(frozen=True)
class Product:
    """A quantized matrix product or convolution.

    Attributes:
        name: its name in the artifact.
        weights: the stored integers, (outputs, inputs): each row is summed over.
        wide: whether the runtime widens to 16 bits before it multiplies, and adds in 32, on every processor.
    """

    name: str
    weights: NDArray[np.integer[Any]]
    wide: bool


def read_products(path: Path, format: str) -> list[Product]:
    """Returns the quantized products of an int8 artifact.

    Raises:
        ShiftViTError: it has none, or one with unknown arithmetic.
    """
    products = list(_READERS[format](path))
    if not products:
        raise ShiftViTError(f"{path.name!r} has no quantized products; export it again with --precision int8")
    return products


def find_saturation(products: Iterable[Product]) -> str | None:
    """Describes the first product that could saturate on some processor; None if none can.

    Whichever two products of a row a kernel adds first, the two largest weights of one sign give the largest sum:
    255 x (w1 + w2) must fit into 16 bits, so w1 + w2 may be at most 128. This holds if no weight exceeds 64, and for
    rows with a single weight. If the runtime widens first, only the whole sum matters, which has 32 bits.
    """
    for product in products:
        if product.wide:
            largest = _ACTIVATION * 255 * product.weights.shape[1]
            if largest > _INT32:
                return (
                    f"the product {product.name!r} adds {product.weights.shape[1]:,} values, which can overflow 32 bits"
                )
            continue
        ordered = np.sort(product.weights.astype(np.int64), axis=1)
        pairs = np.maximum(ordered, 0)[:, -2:].sum(axis=1), -np.minimum(ordered, 0)[:, :2].sum(axis=1)
        largest = int(np.max(pairs))
        if _ACTIVATION * largest > _INT16:
            return (
                f"the product {product.name!r} can saturate on processors without VNNI: two of its weights add up to "
                f"{largest}, and 16 bits hold at most 255 x {_INT16 // _ACTIVATION}"
            )
    return None


def _read_onnx(path: Path) -> Iterator[Product]:
    import onnx

    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if "Integer" in node.op_type or node.op_type.startswith(("QLinear", "QGemm", "DynamicQuantize")):
            raise ShiftViTError(
                f"the arithmetic of the operation {node.op_type} in {path.name!r} is not known; {_MEND}"
            )
        sources = [producers.get(name) for name in node.input[:2]]
        if node.op_type not in ("MatMul", "Gemm", "Conv") or not all(
            source is not None and source.op_type == "DequantizeLinear" for source in sources
        ):
            continue
        stored = constants.get(sources[1].input[0])  # type: ignore[union-attr]
        if stored is None:
            raise ShiftViTError(f"the weights of {node.name!r} in {path.name!r} are not constant; {_MEND}")
        weights = onnx.numpy_helper.to_array(stored)
        transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
        outputs_first = node.op_type == "Conv" or transposed
        # On processors without VNNI, ONNX Runtime's kernels widen unsigned weights before they multiply, but not signed
        # weights.
        yield Product(node.name, _flatten(weights if outputs_first else weights.T, 1), weights.dtype == np.uint8)


def _read_openvino(path: Path) -> Iterator[Product]:
    openvino = import_silently("openvino")
    for node in openvino.Core().read_model(path).get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("MatMul", "Convolution", "GroupConvolution"):
            continue
        source = node.input_value(1).get_node()
        while source.get_type_name() in ("Convert", "Multiply", "Subtract", "Reshape", "Transpose"):
            source = source.input_value(0).get_node()
        if source.get_type_name() != "Constant" or source.get_element_type() not in (
            openvino.Type.i8,
            openvino.Type.u8,
        ):
            continue
        weights = source.data
        if kind == "MatMul" and not node.get_attributes()["transpose_b"]:
            weights = weights.T
        # A grouped convolution has two axes, group and output, before those that are summed over.
        yield Product(node.get_friendly_name(), _flatten(weights, 2 if kind == "GroupConvolution" else 1), wide=False)


def _read_litert(path: Path) -> Iterator[Product]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    kinds = (schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.CONV_2D)
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            kind = max(code.builtinCode, code.deprecatedBuiltinCode)
            if kind == schema.BuiltinOperator.BATCH_MATMUL:
                raise ShiftViTError(
                    f"the arithmetic of the operation BATCH_MATMUL in {path.name!r} is not known; {_MEND}"
                )
            tensor = graph.tensors[operator.inputs[1]] if kind in kinds else None
            if tensor is None or tensor.type != schema.TensorType.INT8:
                continue
            content = np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(np.int8).reshape(tensor.shape)
            # The kernels of XNNPACK and of LiteRT itself extend signed values to 16 bits before they multiply.
            yield Product(tensor.name.decode(), _flatten(content, 1), wide=True)


def _flatten(weights: NDArray[Any], outputs: int) -> NDArray[Any]:
    """Returns weights, whose first `outputs` axes are outputs, as (outputs, inputs)."""
    return weights.reshape(int(np.prod(weights.shape[:outputs])), -1)


_READERS = {"onnx": _read_onnx, "openvino": _read_openvino, "litert": _read_litert}
