"""docs/scaling.md: its commands run, and its plan follows from the committed measurements."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from train_processes import SETTINGS, find_free_port, write_pictures

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import scaling_plan  # noqa: E402


def read_commands(page: str) -> list[list[str]]:
    lines = [line.strip() for line in (ROOT / page).read_text("utf-8").splitlines() if "torchrun --" in line]
    return [shlex.split(line) for line in lines if not line.startswith("|")]


def test_readme_and_document_have_the_same_commands() -> None:
    readme, document = read_commands("README.md"), read_commands("docs/scaling.md")
    assert len(readme) == 2
    assert [words for words in document if words in readme] == readme
    assert [words[1:] for words in document if words not in readme] == [readme[0]]
    assert document[1][0] == "KERAS_BACKEND=jax"


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_documented_commands_run(tmp_path: Path, number: int) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    command = read_commands("README.md")[number]
    for name in ("pets", "imagenet/train", "imagenet/val"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(pictures)
    small = {**SETTINGS, "train.epochs": 1, "data.test": 0}
    if "imagenet" in command:  # it has validation images and crops of its own
        del small["data.validation"], small["augment.pad"]
    sets = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    words = [{"HOST": "127.0.0.1", "8": "1"}.get(word, word) for word in command]
    nodes = 2 if "--nnodes" in words else 1
    started = []
    port = find_free_port()
    try:
        for node in range(nodes):
            own = [f"{node}" if words[place - 1] == "--node-rank" else word for place, word in enumerate(words)]
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--master-port", str(port)]
            with (tmp_path / f"output{node}").open("w") as file:
                environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
                process = subprocess.Popen(
                    [*torchrun, *own[1:], *sets], env=environment, cwd=tmp_path, stdout=file, stderr=file
                )
                started.append(process)
        for process in started:
            process.wait(150)
    finally:
        for process in started:
            process.terminate()
            process.wait(40)
    output = "".join((tmp_path / f"output{node}").read_text() for node in range(nodes))
    assert [process.returncode for process in started] == [0] * nodes, output
    assert output.count("run folder: ") == 1
    (metrics,) = (tmp_path / "runs").glob("*/metrics.json")
    assert json.loads(metrics.read_text())["train"]["epochs"] == 1


def test_document_shows_the_committed_plan() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    (name,) = re.findall(r"\(\.\./benchmarks/results/(scaling_plan-[\w.-]+\.json)\)", text)
    result = json.loads((ROOT / "benchmarks" / "results" / name).read_text("utf-8"))
    assert scaling_plan.make_table(result) in text
    assert {key: value for key, value in result.items() if key in scaling_plan.make_plan()} == scaling_plan.make_plan()
    assert f"{result['measured_step']['share_of_peak']:.0%}" in text


def test_ring_reduction_takes_the_computed_time() -> None:
    # 8 processes, 8 MB: 14 messages of 1 MB each at 1 MB/s.
    assert scaling_plan.compute_reduction_seconds(8e6, 8, 8e6, 0.0) == pytest.approx(14.0)
    needed = scaling_plan.count_images_needed(8e6, 1.1e9, 1e9, 8e6, 0.0)  # of 1.1 s per image
    assert 1.1 * needed / (1.1 * needed + 14.0) >= 0.9
    assert 1.1 * (needed - 1) / (1.1 * (needed - 1) + 14.0) < 0.9
