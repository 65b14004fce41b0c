"""Time to accuracy: trains a recipe with several seeds and writes what came out.

    python benchmarks/accuracy.py quick --seeds 0 1 2

Each seed is a process of its own, so the seconds include what a user waits for. The result, with environment, every
run's metrics, mean and standard deviation, goes to benchmarks/results/accuracy-RECIPE-DATE.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", help="a recipe's name or a .toml file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    runs, environment = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            out = Path(folder) / f"seed{seed}"
            command = [sys.executable, "-m", "shiftvit", "train", "--recipe", arguments.recipe, "--out", str(out)]
            for item in [f"train.seed={seed}", *arguments.overrides]:
                command += ["--set", item]
            began = time.perf_counter()
            subprocess.run(command, check=True)
            wall = time.perf_counter() - began
            metrics = json.loads((out / "metrics.json").read_text("utf-8"))
            environment = json.loads((out / "environment.json").read_text("utf-8"))
            runs.append({"seed": seed, "process_seconds": round(wall, 2), **metrics})
    environment.pop("command", None)
    top1 = [run["test"]["top1"] for run in runs]
    seconds = [run["train"]["seconds"] for run in runs]
    result = {
        "command": f"python benchmarks/accuracy.py {' '.join(sys.argv[1:])}",
        "date": datetime.date.today().isoformat(),
        "recipe": Path(arguments.recipe).stem,
        "n": len(runs),
        "test_top1_mean": statistics.mean(top1),
        "test_top1_std": statistics.stdev(top1) if len(top1) > 1 else None,
        "train_seconds_mean": statistics.mean(seconds),
        "train_seconds_max": max(seconds),
        "environment": environment,
        "runs": runs,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"accuracy-{result['recipe']}-{result['date']}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(f"{result['recipe']}: top-1 {result['test_top1_mean']:.2%}, n = {result['n']}, wrote {path.name}")


if __name__ == "__main__":
    main()
