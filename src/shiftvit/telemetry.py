"""Imports libraries that report how they are used, so that they report nothing."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

# OpenVINO and NNCF report through this package, and report nothing if it is missing.
_REPORTER = "openvino_telemetry"


def import_silently(name: str) -> Any:
    """Imports ONNX Runtime, OpenVINO or NNCF and returns it.

    By default, these libraries keep a number for the user in the home folder and send events to their makers. A user
    who sets `ORT_DISABLE_TELEMETRY=0` keeps ONNX Runtime's telemetry, and one whose program has imported the library
    before keeps all of it.

    Raises:
        ImportError: the library is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if _REPORTER in sys.modules:
        return importlib.import_module(name)
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # importing it then raises ImportError
    try:
        return importlib.import_module(name)
    finally:
        sys.modules.pop(_REPORTER, None)
