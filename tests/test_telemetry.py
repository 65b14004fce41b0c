"""The runtimes report nothing: they leave no identity in the home folder and load no package that would send events."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exported import find_artifact, skip_if_missing
from shiftvit.telemetry import import_silently

# Predicts, then prints the reporting packages that were loaded.
_PROGRAM = """
import sys
import numpy as np
from shiftvit import Predictor
predictor = Predictor.from_pretrained(sys.argv[1], runtime=sys.argv[2], threads=1)
predictor(np.zeros((2, 32, 32, 3), np.uint8))
print(*[name for name in sys.modules if name.startswith("openvino_telemetry")])
"""


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_prediction_leaves_nothing_in_the_home_folder(tmp_path: Path, runtime: str) -> None:
    skip_if_missing("onnx")
    if runtime == "openvino":
        pytest.importorskip("openvino")
    dropped = {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_DATA_HOME", "CI"}
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(find_artifact("onnx")), runtime],
        env={**environment, "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
    assert done.stderr == ""
    assert [*tmp_path.iterdir()] == []


def test_a_program_that_loaded_the_reporter_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert import_silently("json") is sys.modules["json"]
    assert "openvino_telemetry" not in sys.modules
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    reporter = object()
    monkeypatch.setitem(sys.modules, "openvino_telemetry", reporter)  # type: ignore[arg-type]
    import_silently("json")
    assert sys.modules["openvino_telemetry"] is reporter
