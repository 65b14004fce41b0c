"""Measures the accuracy and the training time of a recipe with several seeds.

    python benchmarks/accuracy.py quick --seeds 0 1 2

Each seed is a process, so the seconds include everything that a user waits for. After each, the machine's peak rate in
matrix products is measured; `times_arithmetic` is the training's time over what its products would take at that rate,
with smaller images where the recipe has them.
The result, with the environment, the metrics of every run, mean and standard deviation, goes to
benchmarks/results/accuracy-RECIPE-DATE.json. `--avx2` limits torch to float32 and to the instructions of a processor
with only AVX2, as most laptops and older servers have. `--keep FOLDER` keeps the runs, and the same command continues
them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import write_record
from shiftvit import Recipe
from shiftvit.training.setup import choose_size

# torch's own kernels, and those of oneDNN and MKL, which it computes products with.
_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", help="a recipe's name or a .toml file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--avx2", action="store_true", help="use no instructions beyond AVX2, and float32")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the run folders there, and go on from them")
    parser.add_argument("--label", help="what is special about these settings, for the result's name")
    arguments = parser.parse_args()
    overrides = [*arguments.overrides, *(["train.precision=float32"] if arguments.avx2 else [])]
    if len(set(arguments.seeds)) < len(arguments.seeds):
        parser.error(f"--seeds {' '.join(map(str, arguments.seeds))} names a seed twice; name each once")
    if Recipe.load(arguments.recipe).probe is not None:
        parser.error(f"{arguments.recipe} trains only a head, without steps to time; name another recipe")
    if arguments.keep:
        claim_folder(arguments.keep, {"recipe": arguments.recipe, "settings": overrides, "avx2": arguments.avx2})
    variables = {**os.environ, **(_AVX2 if arguments.avx2 else {})}
    runs, environment = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            out = (arguments.keep or Path(folder)) / f"seed{seed}"
            started, finished = (out / "recipe.toml").is_file(), (out / "metrics.json").is_file()
            command = [sys.executable, "-m", "shiftvit", "train"]
            command += ["--resume", str(out)] if started else ["--recipe", arguments.recipe, "--out", str(out)]
            for item in [] if started else [f"train.seed={seed}", *overrides]:
                command += ["--set", item]
            began = time.perf_counter()
            if not finished:
                subprocess.run(command, check=True, env=variables)
            wall = None if started else round(time.perf_counter() - began, 2)
            metrics = json.loads((out / "metrics.json").read_text("utf-8"))
            environment = json.loads((out / "environment.json").read_text("utf-8"))
            rows = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
            rates = [row["images_per_second"] for row in rows]
            spread = {"minimum": min(rates), "median": statistics.median(rates), "maximum": max(rates)}
            recipe = Recipe.load(out / "recipe.toml")
            peak, gflop = measure_arithmetic(out, recipe, variables)
            pixels = [math.prod(choose_size(recipe, epoch)) for epoch in range(metrics["train"]["epochs"])]
            passes = sum(pixels) / math.prod(choose_size(recipe, recipe.train.epochs - 1))  # of the whole image
            done = passes * metrics["train"]["images"] * gflop
            arithmetic = {
                "peak_gflops": peak,
                "gflop_per_image": gflop,
                "times_arithmetic": round(metrics["train"]["seconds"] * peak / done, 3),
            }
            runs.append(
                {"seed": seed, "process_seconds": wall, "images_per_second_of_epochs": spread, **arithmetic, **metrics}
            )
    environment.pop("command", None)
    top1 = [run["test"]["top1"] for run in runs]
    seconds = [run["train"]["seconds"] for run in runs]
    result = {
        "recipe": Path(arguments.recipe).stem,
        "settings": overrides,
        "held_to": "AVX2" if arguments.avx2 else None,
        "n": len(runs),
        "test_top1_mean": statistics.mean(top1),
        "test_top1_std": statistics.stdev(top1) if len(top1) > 1 else None,
        "train_seconds_mean": statistics.mean(seconds),
        "train_seconds_max": max(seconds),
        "times_arithmetic_mean": round(statistics.mean(run["times_arithmetic"] for run in runs), 3),
        "runs": runs,
    }
    print(f"{result['recipe']}: top-1 {result['test_top1_mean']:.2%}, n = {result['n']}")
    kind = "-".join([result["recipe"], *filter(None, [arguments.label, arguments.avx2 and "avx2"])])
    write_record(f"accuracy-{kind}", result, ran_on=environment)


def claim_folder(folder: Path, asked: dict[str, Any]) -> None:
    """Keeps what was asked for with the runs, and stops if the runs of a folder are others."""
    place = folder / "accuracy.json"
    if not place.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise SystemExit(f"{folder} is not empty, and no benchmark wrote it; name another folder with --keep")
        folder.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(asked), "utf-8")
    found = json.loads(place.read_text("utf-8"))
    if found != asked:
        raise SystemExit(f"{folder} has runs of {found}, not of {asked}; name another folder with --keep")


def measure_arithmetic(run: Path, recipe: Recipe, variables: dict[str, str]) -> tuple[float, float]:
    """Returns the machine's peak in the precision of a run, GFLOP/s, and what a whole image costs, GFLOP."""
    command = [sys.executable, "-m", "shiftvit", "benchmark", str(run), "--train"]
    command += ["--precision", recipe.train.precision]
    command += ["--batch-size", "1", "--repeats", "1", "--json"]
    found = json.loads(subprocess.run(command, check=True, env=variables, stdout=subprocess.PIPE).stdout)
    return found["peak_gflops"], found["gflop_per_image"]


if __name__ == "__main__":
    main()
