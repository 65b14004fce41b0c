"""Calculates what training in several processes sends, and from which batch size on it pays. It measures nothing.

    python benchmarks/scaling_plan.py

A step's gradients, float32, are reduced in a ring: each process sends `2 (n - 1) / n` times their size, in `2 (n - 1)`
messages. The calculation assumes no overlap with arithmetic, so the efficiency is `step / (step + reduction)`. The
arithmetic of a step is counted from the configuration (three times the forward pass), and takes the share of the
processor's peak that `benchmarks/scaling.py` measured for a training step at 224 pixels. The result goes to
benchmarks/results/scaling_plan-DATE.json; `make_table` makes the table of docs/scaling.md.
"""

from __future__ import annotations

import math
from typing import Any

from document import find_newest
from record import write_record
from shiftvit.config import ModelConfig
from shiftvit.presets import PRESETS
from shiftvit.stages import list_stages

PROCESSES = 8
EFFICIENCY = 0.9
# Nominal bits a second, and an assumed delay of a message in seconds.
LINKS = {"1 Gbit/s": (1e9, 50e-6), "10 Gbit/s": (10e9, 30e-6), "100 Gbit/s": (100e9, 10e-6)}
# Peak in FLOP/s: this machine's two cores as measured, and an assumed accelerator.
ACCELERATOR = 100e12


def compute_reduction_seconds(size: float, processes: int, bits: float, delay: float) -> float:
    """Returns how long a ring takes to reduce `size` bytes."""
    return 2 * (processes - 1) * (size / processes * 8 / bits + delay)


def count_images_needed(size: float, flop: float, rate: float, bits: float, delay: float) -> int:
    """Returns the images per process from which on training reaches `EFFICIENCY`.

    Args:
        size: bytes that are reduced.
        flop: of an image's training step.
        rate: FLOP/s of a process.
        bits, delay: of the link.
    """
    least = compute_reduction_seconds(size, PROCESSES, bits, delay) * EFFICIENCY / (1 - EFFICIENCY)
    return math.ceil(least * rate / flop)


def make_plan() -> dict[str, Any]:
    """Returns what is assumed and a row for each preset."""
    found = find_newest("scaling")
    assert found is not None
    name, measured = found
    largest = measured["resolution"][-1]
    rate = largest["train_gflop"] / largest["train_seconds"] * 1e9
    share = rate / 1e9 / measured["peak_gflops"]
    rates = {"processor": rate, "accelerator": share * ACCELERATOR}
    rows = []
    for preset, described in PRESETS.items():
        stages = list_stages(ModelConfig(**described.arguments))
        size = 4 * sum(row["parameters"] for row in stages)
        flop = 6 * sum(row["multiply_adds"] for row in stages)
        rows.append(
            {
                "preset": preset,
                "reduced_bytes": size,
                "sent_bytes": round(2 * (PROCESSES - 1) / PROCESSES * size),
                "gflop_an_image": round(flop / 1e9, 3),
                "images": {
                    where: {link: count_images_needed(size, flop, rate, *LINKS[link]) for link in LINKS}
                    for where, rate in rates.items()
                },
            }
        )
    return {
        "kind": "a calculation, not a measurement",
        "measured_step": {"result": name, "flop_per_second": round(rate), "share_of_peak": round(share, 3)},
        "assumed": {
            "processes": PROCESSES,
            "efficiency": EFFICIENCY,
            "accelerator_peak_flop_per_second": ACCELERATOR,
            "links": {name: {"bits_per_second": bits, "delay": delay} for name, (bits, delay) in LINKS.items()},
        },
        "rows": rows,
    }


def make_table(result: dict[str, Any]) -> str:
    """Returns the plan as a table of Markdown."""
    names = [*result["assumed"]["links"]]
    kinds = {"processor": "two cores", "accelerator": "accelerator"}
    heads = [f"{words}, {name}" for words in kinds.values() for name in names]
    lines = [
        f"| preset | sent a step | {' | '.join(heads)} |",
        f"|---|---:|{'---:|' * len(heads)}",
    ]
    for row in result["rows"]:
        counts = [f"{row['images'][kind][name]:,}" for kind in kinds for name in names]
        lines.append(f"| `{row['preset']}` | {row['sent_bytes'] / 1e6:,.1f} MB | {' | '.join(counts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    write_record("scaling_plan", make_plan())
