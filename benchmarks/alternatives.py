"""Compares this package with a plain Keras network, timm's models and scikit-learn at equal wall time.

    python benchmarks/alternatives.py --minutes 2 10 --cores 1 --parallel 16 --out runs/alternatives
    python benchmarks/alternatives.py --collect runs/alternatives

Every contender (`contenders.py`) gets the same images (`contest.py`), its own cores, and the same time from images in
memory to a trained model. The time for imports and for the evaluation on the test images does not count. No contender
chooses anything on the test images. The packaged model does not take part, because it was trained on all of CIFAR-10.

Each training is a process, which writes its result when it ends. If the command is repeated, it continues with the
missing ones. It runs all trainings of the first number of minutes, then all of the next. `--collect` writes the record
of the results, benchmarks/results/alternatives-DATE.json. timm is optional: without it, its rows are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from record import write_record

DATA = ("cifar10", "pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0, 10.0])
    parser.add_argument("--seconds", type=float, nargs="+", help="in place of minutes, for trials")
    parser.add_argument("--cores", type=int, default=1, help="of each training")
    parser.add_argument("--parallel", type=int, help="trainings at once; default: as many as there are cores for")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", default="", help="only contenders whose name matches this regular expression")
    parser.add_argument("--test-images", type=int, help="only so many (of each class, of pictures), for trials")
    parser.add_argument("--out", type=Path, default=Path("runs/alternatives"))
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="only make the record of the results there")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a single training, as JSON: what a process is given
    arguments = parser.parse_args()
    if arguments.one:
        train_one(**json.loads(arguments.one))
    elif arguments.collect:
        collect(arguments.collect)
    else:
        run_all(arguments)


def run_all(arguments: argparse.Namespace) -> None:
    """Runs the trainings that have no result yet, several at a time."""
    os.environ["KERAS_BACKEND"] = "torch"  # of the trainings too
    from contenders import CONTENDERS
    from contest import write_pictures

    free = sorted(os.sched_getaffinity(0))
    places: queue.Queue[list[int]] = queue.Queue()
    for index in range(min(arguments.parallel or len(free), len(free) // arguments.cores)):
        places.put(free[index * arguments.cores : (index + 1) * arguments.cores])
    if places.empty():
        raise SystemExit(f"--cores {arguments.cores} is more than the {len(free)} of this machine")
    out = arguments.out
    for name in ("results", "logs"):
        (out / name).mkdir(parents=True, exist_ok=True)
    write_pictures(out / "pictures", arguments.test_images)
    command = shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])
    plan = {"command": command, "cores_each": arguments.cores, "at_once": places.qsize(), "cores_there": len(free)}
    (out / "plan.json").write_text(json.dumps(plan), "utf-8")
    names = [name for name in CONTENDERS if re.search(arguments.only, name)]
    for package, word in (("timm", "timm"), ("sklearn", "scikit-learn")):
        tried = subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, text=True)
        if tried.returncode and any(name.startswith(word) for name in names):
            print(f"without {word}, which cannot be imported: {tried.stderr.strip().splitlines()[-1]}")
            names = [name for name in names if not name.startswith(word)]

    def run(task: dict[str, Any]) -> None:
        cores = places.get()
        try:
            print(run_one(task, cores, out), flush=True)
        finally:
            places.put(cores)

    for seconds in arguments.seconds or [60 * minutes for minutes in arguments.minutes]:
        with ThreadPoolExecutor(places.qsize()) as pool:
            for seed in arguments.seeds:
                for name in names:
                    for data in DATA:
                        if name == "shiftvit, recipe photos" and data != "pictures":
                            continue
                        task = {"contender": name, "data": data, "budget": seconds, "seed": seed}
                        pool.submit(run, {**task, "out": str(out), "test_images": arguments.test_images})


def run_one(task: dict[str, Any], cores: list[int], out: Path) -> str:
    """Runs one training as a process on these cores, unless there is a result; returns a line about it."""
    name = re.sub(r"\W+", "-", "{contender} {data} {budget:g} {seed}".format(**task))
    result, log = out / "results" / f"{name}.json", out / "logs" / f"{name}.txt"
    if not result.is_file():
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(len(cores)))
        variables = {**os.environ, **threads, "CUDA_VISIBLE_DEVICES": ""}
        given = json.dumps({**task, "cores": cores, "result": str(result)})
        with log.open("w", encoding="utf-8") as stream:
            command, limit = [sys.executable, __file__, "--one", given], 2 * task["budget"] + 600
            try:
                subprocess.run(command, env=variables, stdout=stream, stderr=stream, check=True, timeout=limit)
            except subprocess.SubprocessError as fault:
                last = (log.read_text("utf-8", "replace").strip().splitlines() or [""])[-1]
                ended = f"was stopped after {limit:g} s" if isinstance(fault, subprocess.TimeoutExpired) else "failed"
                return f"{name} {ended}: {last} (all of it: {log})"
    found = json.loads(result.read_text("utf-8"))
    return f"{name}: {found['test_top1']:.2%} after {found['seconds']:.1f} s"


def train_one(
    contender: str,
    data: str,
    budget: float,
    seed: int,
    test_images: int | None,
    out: str,
    cores: list[int],
    result: str,
) -> None:
    """Trains one contender and writes its result."""
    os.sched_setaffinity(0, cores)  # before anything counts them
    import torch

    from contenders import CONTENDERS, RECIPES
    from contest import give_task
    from shiftvit.environment import describe_environment

    torch.set_num_threads(len(cores))
    versions = {}
    if contender.startswith("timm"):
        import timm

        versions["timm"] = timm.__version__
    else:
        import sklearn  # noqa: F401
    recipe = RECIPES.get(contender, "cifar10")
    task = give_task(recipe, data, Path(out) / "pictures", seed, budget, test_images)
    top1, found = CONTENDERS[contender](task)
    environment = describe_environment()
    del environment["command"]
    environment["versions"].update(versions)
    row = {
        "contender": contender,
        "data": data,
        "budget": budget,
        "seed": seed,
        "test_top1": top1,
        "test_images": len(task.dataset.test),
        "train_images": len(task.dataset.train),
        **{**found, "seconds": round(found["seconds"], 2)},
        "environment": environment,
    }
    temporary = Path(result).with_suffix(".part")
    temporary.write_text(json.dumps(row, indent=1), "utf-8")
    temporary.rename(result)


def collect(folder: Path) -> None:
    """Writes the record of the results in a folder."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted((folder / "results").glob("*.json"))]
    if not found:
        raise SystemExit(f"there are no results in {folder / 'results'}")
    plan = json.loads((folder / "plan.json").read_text("utf-8"))
    environments = [row.pop("environment") for row in found]
    environment = environments[0]
    for other in environments:  # timm's processes know its version
        environment["versions"].update(other["versions"])
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(found, key=lambda row: (row["data"], row["budget"], row["contender"], row["seed"])):
        groups.setdefault((row["data"], row["budget"], row["contender"]), []).append(row)
    rows = []
    for (data, budget, contender), runs in groups.items():
        top1 = [run["test_top1"] for run in runs]
        row = {"data": data, "budget": budget, "contender": contender, "n": len(runs)}
        row |= {"test_top1": statistics.mean(top1), "std": statistics.stdev(top1) if len(top1) > 1 else None}
        row |= {"parameters": runs[0].get("parameters"), "seconds": [run["seconds"] for run in runs]}
        row |= {"test_images": runs[0]["test_images"], "train_images": runs[0]["train_images"]}
        rows.append({**row, "over_budget": max(row["seconds"]) > 1.02 * budget})
        print(f"{data} {budget:g} s {contender}: {row['test_top1']:.2%}, n = {row['n']}")
    command = re.sub(r"--out \S+", "--out FOLDER", plan.pop("command"))
    write_record("alternatives", {**plan, "rows": rows, "runs": found}, command=command, ran_on=environment)


if __name__ == "__main__":
    main()
