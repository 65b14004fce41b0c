"""A run that is killed ten times, at moments that chance decides, ends as one left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sample import load_sample
from shiftvit import Recipe, train

WORKER = Path(__file__).with_name("train_worker.py")
KILLS = 10
# It saves after every step, so about half of its time goes into saves, and many a kill falls into one.
RECIPE = Recipe.model_validate(
    {
        "model": {
            "patch_size": 4,
            "embed_dim": 24,
            "depths": [1, 1],
            "norm": "layer",
            "drop_path": 0.1,
            "dropout": 0.1,
        },
        "data": {"validation": 50},
        "preprocess": {"mean": 120.0, "std": 64.0},
        "augment": {"pad": 4, "cutmix": 1.0, "mix_probability": 0.5},
        "train": {
            "epochs": 12,
            "batch_size": 50,
            "precision": "float32",
            "ema": 0.9,
            "checkpoint_minutes": 1e-6,
            "optimizer": {"name": "muon", "learning_rate": 3e-3},
        },
    }
)


def kill_at_random(command: list[str], saved: Path, chance: np.random.Generator) -> bool:
    """Starts a process, kills it a while after it has saved for the first time, and returns whether it was killed."""
    before = saved.stat().st_mtime_ns if saved.exists() else 0
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if saved.exists() and saved.stat().st_mtime_ns != before:
            time.sleep(float(chance.uniform(0, 0.1)))
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_as_one_left_alone(tmp_path: Path) -> None:
    alone = train(RECIPE, out=tmp_path / "alone", data=load_sample())
    run, config = tmp_path / "killed", tmp_path / "recipe.json"
    config.write_text(RECIPE.model_dump_json(exclude_unset=True))
    chance = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    saved = run / "checkpoints" / "last.safetensors"
    kills = 0
    start = [sys.executable, str(WORKER), str(config), str(run)]
    again = [sys.executable, str(WORKER), "--resume", str(run)]
    while kills < KILLS and not (run / "metrics.json").exists():
        kills += kill_at_random(again if run.exists() else start, saved, chance)
        load_file(saved)  # whatever the moment, what lies there is whole
    assert kills == KILLS
    if not (run / "metrics.json").exists():
        subprocess.run(again, check=True, stderr=subprocess.DEVNULL)
    expected = load_file(alone.path / "checkpoints" / "last.safetensors")
    found = load_file(saved)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert not list((run / "checkpoints").glob(".*"))
