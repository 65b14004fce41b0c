"""Measures how cost grows: images/s with the number of files, time and memory with resolution and depth.

    python benchmarks/scaling.py

`shiftvit predict` classifies folders of 1,000 to 50,000 PNG files, which are links to CIFAR-10's test images. Training
and prediction steps run at 32 to 224 pixels and with 1 to 16 blocks per stage, in the precision that training uses on
this machine. The result, with peak memory and the machine's peak rate, goes to benchmarks/results/scaling-DATE.json and
is drawn in docs/figures/scaling.png.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import run_command, write_record

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "scaling.png"
COUNTS = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
REPEATS = 3
RESOLUTIONS = (32, 64, 96, 128, 160, 192, 224)
DEPTHS = (1, 2, 4, 8, 16)
_BATCH = 16

# This runs in a separate process, whose peak memory it measures.
STEP = """
import json, sys, time, statistics
import numpy as np
from shiftvit.model.network import ShiftViT
from shiftvit.training.loss import SmoothedCrossentropy
from shiftvit.training.optimizer import build_optimizer
from shiftvit.config import TrainConfig
from shiftvit.environment import computes_bfloat16, keep_freed_memory
from shiftvit.stages import list_stages
keep_freed_memory()
side, depth, batch = map(int, sys.argv[1:])
model = ShiftViT((side, side, 3), num_classes=10, patch_size=4, embed_dim=48, depths=(depth,) * 3,
    dtype="mixed_bfloat16" if computes_bfloat16() else "float32")
model.compile(optimizer=build_optimizer(TrainConfig(), 1000), loss=SmoothedCrossentropy())
images = np.random.default_rng(0).normal(size=(batch, side, side, 3)).astype("float32")
labels = np.zeros(batch, int)
def median(call):
    call()
    seconds = []
    for _ in range(5):
        began = time.perf_counter(); call(); seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
train = median(lambda: model.train_on_batch(images, labels))
predict = median(lambda: model.predict_on_batch(images))
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
gflop = 6 * batch * sum(row["multiply_adds"] for row in list_stages(model.settings)) / 1e9
print(json.dumps({"train_seconds": train, "predict_seconds": predict, "peak_megabytes": peak, "train_gflop": gflop,
    "precision": model.policy.name}))
"""


def main() -> None:
    result: dict[str, Any] = {"files": list(measure_files())}
    result["resolution"] = [{"side": side, **measure_step(side, 2)} for side in RESOLUTIONS]
    result["depth"] = [{"blocks_a_stage": depth, **measure_step(64, depth)} for depth in DEPTHS]
    result["batch_size"] = _BATCH
    from shiftvit.benchmark import measure_peak_gflops

    bfloat16 = result["depth"][0]["precision"] == "mixed_bfloat16"
    result["peak_gflops"] = round(measure_peak_gflops("bfloat16" if bfloat16 else "float32"), 1)
    write_record("scaling", result)
    draw(result, FIGURE)


def measure_files() -> Any:
    """Yields images/s and peak memory for each number of files."""
    from PIL import Image

    from shiftvit.data import named

    images = named.load("cifar10").test.images
    with tempfile.TemporaryDirectory() as place:
        first = Path(place) / "first"
        first.mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image).save(first / f"{index:05}.png")
        names = sorted(first.iterdir())
        for count in COUNTS:
            folder = Path(place) / str(count)
            folder.mkdir()
            for index in range(count):
                os.link(names[index % len(names)], folder / f"{index:05}.png")
            rates, peaks = zip(*(predict(folder, Path(place) / "rows.csv") for _ in range(REPEATS)), strict=True)
            row = {
                "files": count,
                "images_per_second": round(statistics.median(rates), 1),
                "spread": [min(rates), max(rates)],
                "peak_megabytes": round(max(peaks), 1),
            }
            print(row, flush=True)
            yield row


def predict(folder: Path, out: Path) -> tuple[float, float]:
    """Returns the images/s that the command reports, and its peak memory in megabytes."""
    messages, peak = run_command(["predict", str(folder), "--format", "csv", "--out", str(out)])
    (rate,) = re.findall(r"([\d,]+) images/s", messages)
    return float(rate.replace(",", "")), peak


def measure_step(side: int, depth: int) -> dict[str, Any]:
    """Returns the seconds of a training and of a prediction step, and the peak memory of the process."""
    command = [sys.executable, "-c", STEP, str(side), str(depth), str(_BATCH)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    print(side, depth, row, flush=True)
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws images/s against files, and a training step's time and memory against its arithmetic."""
    from shiftvit.figures.style import make_figure, save_figure

    figure = make_figure(12, 3.6)
    axes = figure.subplots(1, 3)
    rows = result["files"]
    counts, rates = [row["files"] for row in rows], [row["images_per_second"] for row in rows]
    axes[0].semilogx(counts, rates, "o-", label="images/s")
    axes[0].fill_between(counts, *zip(*(row["spread"] for row in rows), strict=True), alpha=0.2)
    axes[0].semilogx(counts, [row["peak_megabytes"] for row in rows], "s--", color="tab:gray", label="peak memory (MB)")
    axes[0].set(ylim=(0, None), xlabel="PNG files", title="shiftvit predict FOLDER")
    axes[0].legend()
    for key, mark in (("resolution", "o-"), ("depth", "s-")):
        gflop = [row["train_gflop"] for row in result[key]]
        label = {"resolution": "32 to 224 pixels", "depth": "1 to 16 blocks a stage"}[key]
        axes[1].semilogx(gflop, [row["train_gflop"] / row["train_seconds"] for row in result[key]], mark, label=label)
        axes[2].semilogx(gflop, [row["peak_megabytes"] for row in result[key]], mark, label=label)
    axes[1].axhline(result["peak_gflops"], color="black", linewidth=1, label="this machine's peak")
    axes[1].set(xlabel="GFLOP a training step", ylabel="GFLOP/s", title="training: rate")
    axes[2].set(xlabel="GFLOP a training step", ylabel="MB", ylim=(0, None), title="training: peak memory")
    axes[1].legend(fontsize=8)
    axes[2].legend(fontsize=8)
    save_figure(figure, path)
    print("wrote", path.name)


if __name__ == "__main__":
    main()
