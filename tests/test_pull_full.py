"""The README's commands for published weights, with random weights of the smallest model at its full size."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import official
from file_server import serve_file
from shiftvit.bundle.stored.published import MIRROR, read_imagenet_classes

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
def test_pull_predict_explain_and_export(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    weights = official.make_state_dict(MODEL)
    torch.save(official.make_checkpoint(weights), tmp_path / "served.pth")
    environment = {**os.environ, "SHIFTVIT_DATA": str(tmp_path / "data"), "SHIFTVIT_CACHE": str(tmp_path / "cache")}

    def run_command(*arguments: str, base: bool = False, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BASE_INSTALL] if base else [sys.executable, "-m", "shiftvit"]
        result = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == status, result.stderr
        return result

    output = run_command("predict", "--model", MODEL, base=True, status=2).stderr
    assert output == f"shiftvit: the weights of {MODEL!r} are not on this machine yet; run: shiftvit pull {MODEL}\n"
    with serve_file((tmp_path / "served.pth").read_bytes()) as server:
        environment |= {MIRROR: server.url, "no_proxy": "127.0.0.1"}
        server.stop_after = 30_000_000  # so the download must resume
        output = run_command("pull", MODEL).stdout
        assert len(server.requests) == 3
    folder = tmp_path / "data" / "models" / MODEL
    assert output.startswith(f"bundle: {folder}\n")
    assert not (tmp_path / "served.pth.json").exists()
    environment[MIRROR] = "http://127.0.0.1:9"  # from here on there is no network

    run_command("predict", "--model", MODEL, "--format", "csv", "--out", "rows.csv", base=True)
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
        run_command("predict", *samples, "--model", model, "--format", "json", "--out", out, base=True)
    answers = [json.loads((tmp_path / name).read_text("utf-8")) for name in ("a.json", "b.json")]
    np.testing.assert_allclose(*([row["confidence"] for row in rows] for rows in answers), atol=1e-4)
