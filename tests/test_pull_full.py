"""The README's commands for published weights, with random weights of the smallest model at its full size."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import command_line
import official
from exported import run_step
from file_server import serve_file
from shiftvit.bundle.stored.published import MIRROR, read_imagenet_classes
from shiftvit.exports import export

MODEL = "shiftvit_tiny_light"

# The base install lacks these packages: importing one fails.
BASE_INSTALL = """
import sys
for name in ("torch", "jax", "tensorflow", "onnx", "onnxscript"):
    sys.modules[name] = None
from shiftvit.cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pull_predict_explain_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    weights = official.make_state_dict(MODEL)
    torch.save(official.make_checkpoint(weights), tmp_path / "served.pth")
    monkeypatch.setenv("SHIFTVIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SHIFTVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(export, "_run_step", run_step)  # in processes that other tests have started

    def run_command(*arguments: str) -> str:
        """Runs a command that needs a framework, which this process has imported, and returns its output."""
        result = command_line.run(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return result.stdout.decode()

    def predict(*arguments: str, status: int = 0) -> str:
        """Runs `predict` in the base install and returns what it said."""
        command = [sys.executable, "-c", BASE_INSTALL, "predict", *arguments]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == status, result.stderr
        return result.stderr

    output = predict("--model", MODEL, status=2)
    assert output == f"shiftvit: the weights of {MODEL!r} are not on this machine yet; run: shiftvit pull {MODEL}\n"
    with serve_file((tmp_path / "served.pth").read_bytes()) as server:
        monkeypatch.setenv(MIRROR, server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        server.stop_after = 30_000_000  # so the download must resume
        output = run_command("pull", MODEL)
        assert len(server.requests) == 3
    folder = tmp_path / "data" / "models" / MODEL
    assert output.startswith(f"bundle: {folder}\n")
    assert not (tmp_path / "served.pth.json").exists()
    monkeypatch.setenv(MIRROR, "http://127.0.0.1:9")  # from here on there is no network

    predict("--model", MODEL, "--format", "csv", "--out", "rows.csv")
    with (tmp_path / "rows.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    assert {row["label"] for row in rows} <= {*read_imagenet_classes()[0]}
    samples = sorted({row["path"] for row in rows})[:2]
    run_command("explain", *samples, "--model", MODEL, "--method", "grad-cam", "--out", "why.png")
    assert (tmp_path / "why.png").stat().st_size > 10_000
    run_command("export", MODEL, "--format", "onnx", "--out", "deployed")
    report = json.loads((tmp_path / "deployed" / "report.json").read_text("utf-8"))
    assert report["max_difference"] < 1e-4
    for model, out in (("deployed", "a.json"), (MODEL, "b.json")):
        predict(*samples, "--model", model, "--format", "json", "--out", out)
    answers = [json.loads((tmp_path / name).read_text("utf-8")) for name in ("a.json", "b.json")]
    np.testing.assert_allclose(*([row["confidence"] for row in rows] for rows in answers), atol=1e-4)
