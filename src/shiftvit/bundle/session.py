"""ONNX graphs in ONNX Runtime: a session, and a second output with the features that the head takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Field numbers of onnx.proto: of a model, a graph, a value and a node.
_GRAPH, _NODE, _OUTPUT, _NAME = 7, 1, 12, 1
_INPUTS, _OUTPUTS, _KIND = 1, 2, 4
_BYTES_OF = {1: 8, 5: 4}  # fields of fixed length, by their wire type
_HEADS = {b"Gemm", b"MatMul"}


def open_session(content: bytes, threads: int) -> Any:
    """Returns an `onnxruntime.InferenceSession` of a serialised graph on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Its threads would spin while waiting for the next batch, on the cores that decode it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # No second try, which it would announce on standard output: there is only this provider.
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def add_features(content: bytes) -> tuple[bytes, str]:
    """Gives a serialised classifier a further output: what its last linear layer takes, float32 (N, D).

    A parser merges a message that is there twice (protobuf, "Encoding", "Last One Wins"), so that a second graph with
    nothing but an output adds this to the first one. The package `onnx` is not needed.

    Returns:
        the changed graph and the output's name.

    Raises:
        ValueError: the content is no such graph.
    """
    graphs = [value for field, value in _fields(memoryview(content)) if field == _GRAPH]
    if len(graphs) != 1:
        raise ValueError("it holds no graph")
    makers: dict[bytes, dict[int, list[bytes]]] = {}
    outputs = []
    for field, value in _fields(graphs[0]):
        if field == _NODE:
            node: dict[int, list[bytes]] = {}
            for key, part in _fields(value):
                if key in (_INPUTS, _OUTPUTS, _KIND):
                    node.setdefault(key, []).append(bytes(part))
            makers |= dict.fromkeys(node.get(_OUTPUTS, []), node)
        elif field == _OUTPUT:
            outputs += [bytes(part) for key, part in _fields(value) if key == _NAME]
    (name,) = outputs
    for _ in makers:
        node = makers[name]
        # Of a sum of product and bias, the one that is computed.
        name = next((part for part in node[_INPUTS] if part in makers), node[_INPUTS][0])
        if node[_KIND][0] in _HEADS:
            added = _field(_GRAPH, _field(_OUTPUT, _field(_NAME, name)))
            return content + added, name.decode()
    raise ValueError("it has no linear layer")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields the number and the content of each field of a protobuf message that has a length."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("it ends too early")
            yield tag >> 3, message[at : at + length]
            at += length
        elif kind == 0:
            _, at = _varint(message, at)
        else:
            at += _BYTES_OF[kind]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Returns a number of variable length, and where the next field begins."""
    value = 0
    for place in range(10):
        byte = message[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise ValueError("it has a number of more than 10 bytes")


def _field(number: int, content: bytes) -> bytes:
    """Returns a field with a length."""
    length, rest = bytearray(), len(content)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return bytes([number << 3 | 2, *length, rest]) + content
