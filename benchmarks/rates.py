"""Compares the images/s of several exports, in turn in one process.

    python benchmarks/rates.py EXPORT... [--rounds 9]

Each round runs each EXPORT for a moment in batches of 1 and of 64, so that a change of the machine's speed affects all
alike. Writes the medians and their range to benchmarks/results/rates-DATE.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from record import write_record
from shiftvit.inference.runtimes import Graph, load_graph

SIZES = (1, 64)
SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("exports", nargs="+", type=Path, metavar="EXPORT")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    graphs = [load_graph(export) for export in options.exports]
    rates: dict[tuple[int, int], list[float]] = {}
    for _ in range(options.rounds):
        for number, graph in enumerate(graphs):
            for size in SIZES:
                rates.setdefault((number, size), []).append(measure_rate(graph, size, SECONDS))
    rows: list[dict[str, Any]] = []
    for number, (export, graph) in enumerate(zip(options.exports, graphs, strict=True)):
        row: dict[str, Any] = {"export": export.name, "runtime": graph.runtime, "precision": graph.metadata.precision}
        for size in SIZES:
            found = rates[number, size]
            row[f"batch_{size}"] = {
                "images_per_second": round(statistics.median(found), 1),
                "minimum": round(min(found), 1),
                "maximum": round(max(found), 1),
            }
        rows.append(row)
        print(row)
    result = {"rounds": options.rounds, "exports": rows}
    write_record("rates", result, command=f"python benchmarks/rates.py EXPORT... --rounds {options.rounds}")


def measure_rate(graph: Graph, size: int, seconds: float) -> float:
    """Returns images/s of a graph on pixels in memory, in batches of `size`."""
    pixels = np.random.default_rng(0).integers(0, 256, (size, *graph.metadata.example_shape), np.uint8)
    graph.run(pixels)
    began, count = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        graph.run(pixels)
        count += size
    return count / took


if __name__ == "__main__":
    main()
