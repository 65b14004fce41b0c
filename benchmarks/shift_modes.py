"""Does the shift matter? Trains the recipe `quick` with the shift, with the published example's mask, with neither, and
with random directions.

    python benchmarks/shift_modes.py --seeds 0 1 2 3 4 --work runs/shift_modes

All four models have the same parameters and cost. For one seed they have the same initial weights, batches and
augmentation, so differences are computed by seed. Each training is a process. Finished ones in the folder `--work` are
not repeated, and interrupted ones are continued; `--only MODE SEED` runs a single one. Each training evaluates on the
test images once. The result goes to benchmarks/results/shift_modes-DATE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy import stats

from record import write_record

# The settings of each mode. Random directions are no setting of the model: `move_at_random` replaces its shift.
MODES: dict[str, dict[str, Any]] = {
    "shift": {},
    "mask": {"model.shift_mode": "mask"},
    "none": {"model.shift_channels": 0},
    "random": {},
}
NEIGHBOURS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Does the shift matter?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--work", type=Path, default=Path("runs/shift_modes"), help="the folder of the runs")
    parser.add_argument("--only", nargs=2, metavar=("MODE", "SEED"), help="run a single training and write no result")
    arguments = parser.parse_args()
    if arguments.only:
        mode, seed = arguments.only
        train_one(mode, int(seed), arguments.work)
        return
    for seed in arguments.seeds:
        for mode in MODES:
            command = [sys.executable, __file__, "--work", str(arguments.work), "--only", mode, str(seed)]
            subprocess.run(command, check=True)
    write(arguments.seeds, arguments.work)


def train_one(mode: str, seed: int, work: Path) -> None:
    """Trains the recipe in one mode and with one seed, unless that run is finished."""
    import shiftvit

    run = work / f"{mode}-{seed}"
    if (run / "metrics.json").is_file():
        return
    if mode == "random":
        move_at_random(seed)
    if run.exists():
        shiftvit.train(resume=run)
    else:
        settings = {"train.seed": seed, "train.initial_scale": 1.0, **MODES[mode]}
        shiftvit.train("quick", out=run, **settings)


def draw_directions(seed: int) -> list[tuple[int, int]]:
    """Draws four of the eight neighbours, in (rows, columns), from which the four groups take their values."""
    drawn = np.random.default_rng(seed).choice(len(NEIGHBOURS), 4, replace=False)
    return [NEIGHBOURS[index] for index in drawn]


def move_at_random(seed: int) -> None:
    """Replaces the shift of all blocks that are built from now on by one in the drawn directions."""
    from keras import ops

    from shiftvit.model import blocks
    from shiftvit.model.shift import Shift

    class RandomShift(Shift):
        def call(self, x: Any) -> Any:
            channels = x.shape[-1]
            kernel = np.zeros((3, 3, channels, 1), np.float32)  # a convolution whose kernels hold a single 1
            for index, (row, column) in enumerate(draw_directions(seed)):
                kernel[1 + row, 1 + column, index * self.group : (index + 1) * self.group] = 1.0
            kernel[1, 1, 4 * self.group :] = 1.0
            return ops.depthwise_conv(x, ops.cast(kernel, x.dtype), padding="same")

    mock.patch.object(blocks, "Shift", RandomShift).start()


def write(seeds: list[int], work: Path) -> None:
    """Writes means and paired differences with their 95 % t-intervals."""
    runs = {
        mode: [json.loads((work / f"{mode}-{seed}" / "metrics.json").read_text("utf-8")) for seed in seeds]
        for mode in MODES
    }
    for metrics in (metrics for found in runs.values() for metrics in found):
        del metrics["train"]  # its seconds say more about what else the machine did
    top1 = {mode: [metrics["test"]["top1"] for metrics in found] for mode, found in runs.items()}
    result = {
        "recipe": "quick",
        "n": len(seeds),
        "seeds": seeds,
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "interval": "95 %, Student's t with n - 1 degrees of freedom; differences are paired by seed",
        "modes": {mode: {"test_top1": values, **estimate_interval(values)} for mode, values in top1.items()},
        "minus_shift": {
            mode: estimate_interval([a - b for a, b in zip(values, top1["shift"], strict=True)])
            for mode, values in top1.items()
            if mode != "shift"
        },
        "random_minus_none": estimate_interval([a - b for a, b in zip(top1["random"], top1["none"], strict=True)]),
        "random_directions": {str(seed): draw_directions(seed) for seed in seeds},
        "runs": runs,
    }
    environment = json.loads((work / f"shift-{seeds[0]}" / "environment.json").read_text("utf-8"))
    environment.pop("command", None)
    command = f"python benchmarks/shift_modes.py --seeds {' '.join(map(str, seeds))}"
    write_record("shift_modes", result, command=command, ran_on=environment)


def estimate_interval(values: list[float]) -> dict[str, Any]:
    """Returns the mean, and half of the 95 % t-interval's width."""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": statistics.mean(values), "half_width": float(half)}


if __name__ == "__main__":
    main()
