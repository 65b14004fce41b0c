"""Opens an ONNX graph in ONNX Runtime."""

from __future__ import annotations

from typing import Any

from shiftvit.bundle.metadata import KEY, MAP, Metadata
from shiftvit.errors import ShiftViTError
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


def open_graph(content: bytes, threads: int, origin: str, *, with_map: bool = False) -> tuple[Any, str, Metadata]:
    """Returns the session of a serialised graph, the name of its input, and its metadata.

    Raises:
        ShiftViTError: it has no metadata or, if asked, no output for the last feature map; the message begins with
            `origin`.
        Exception: nearly anything, if the graph is damaged.
    """
    session = open_session(content, threads)
    metadata = Metadata.parse(session.get_modelmeta().custom_metadata_map.get(KEY), origin)
    if with_map and MAP not in {output.name for output in session.get_outputs()}:
        raise ShiftViTError(
            f"{origin} has no output for the last feature map, because an older shiftvit wrote it; export it again, or "
            "write it with `shiftvit pack --onnx`"
        )
    return session, session.get_inputs()[0].name, metadata
