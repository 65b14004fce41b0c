"""Opens an ONNX graph in ONNX Runtime."""

from __future__ import annotations

from typing import Any

from shiftvit.telemetry import import_silently


def open_session(content: bytes, threads: int) -> Any:
    """Returns an `onnxruntime.InferenceSession` of a serialised graph on the processor."""
    onnxruntime = import_silently("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Otherwise its threads spin while they wait for the next batch, on the cores that decode it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # No fallback, which would be announced on standard output: there is only this provider.
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
