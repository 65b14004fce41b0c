"""Measures the accuracy of int8 exports on another processor, which is emulated, and the share of equal answers.

    python benchmarks/processors.py EXPORT... [--cpu Haswell] [--images 2000]

Each EXPORT is a folder that `shiftvit export cifar10 --precision int8` made. It classifies the first test images of
CIFAR-10 on this machine, and under QEMU's user-mode emulation of a processor with AVX2 and without VNNI (Debian's
package qemu-user). The emulation gives the results of that processor, slowly, so it says nothing about time. Writes
benchmarks/results/processors-DATE.json and the table in docs/export.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from document import ROOT, make_link, replace_table
from record import write_record
from shiftvit import Bundle
from shiftvit.bundle.metadata import make_metadata
from shiftvit.data import named
from shiftvit.exports.build import compute_reference
from shiftvit.inference.runtimes import load_graph

DOCUMENT = ROOT / "docs" / "export.md"
BATCH = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("exports", nargs="+", type=Path, metavar="EXPORT")
    parser.add_argument("--cpu", default="Haswell", help="a processor that `qemu-x86_64 -cpu help` lists")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--answer", nargs=2, type=Path, metavar=("IMAGES", "ANSWERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        write_answers(options.exports[0], *options.answer)
        return
    data = named.load("cifar10")
    images, labels = data.test.images[: options.images], data.test.labels[: options.images]
    bundle = Bundle.load("cifar10")
    own = compute_reference(bundle, make_metadata(bundle), images).argmax(axis=1)
    emulator = ["qemu-x86_64", "-cpu", options.cpu]
    rows = []
    for export in options.exports:
        here, there = predict_classes(export, images, []), predict_classes(export, images, emulator)
        report = json.loads((export / "report.json").read_text("utf-8"))
        rows.append(
            {
                "format": report["format"],
                "precision": report["precision"],
                "examined": "int8_products" in report,
                "top1_here": float((here == labels).mean()),
                "top1_emulated": float((there == labels).mean()),
                "same_class": float((here == there).mean()),
                "same_class_as_model": float((there == own).mean()),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "emulated": options.cpu,
        "emulator": subprocess.run(["qemu-x86_64", "--version"], capture_output=True, text=True).stdout.splitlines()[0],
        "images": len(images),
        "top1_model": float((own == labels).mean()),
        "exports": rows,
    }
    command = f"python benchmarks/processors.py EXPORT... --cpu {options.cpu} --images {options.images}"
    path = write_record("processors", result, command=command)
    text = replace_table(DOCUMENT.read_text("utf-8"), "processors", make_table(result, path.name))
    DOCUMENT.write_text(text, "utf-8")
    print("wrote the table in", DOCUMENT.name)


def make_table(result: dict[str, Any], file: str) -> str:
    """Returns the Markdown table of a result, with its source."""
    lines = ["| int8 export | top-1 with VNNI | top-1 with AVX2 alone | same class on both |", "|---|---:|---:|---:|"]
    lines += [
        f"| {row['format']}{'' if row['examined'] else ', as version 0.1.0 wrote it'} | {row['top1_here']:.2%} | "
        f"{row['top1_emulated']:.2%} | {row['same_class']:.2%} |"
        for row in result["exports"]
    ]
    lines += [
        "",
        f"{result['images']:,} images; the model itself: {result['top1_model']:.2%}. "
        f"`python benchmarks/processors.py EXPORT...`, {make_link(file)}.",
    ]
    return "\n".join(lines)


def predict_classes(export: Path, images: np.ndarray[Any, Any], emulator: list[str]) -> np.ndarray[Any, Any]:
    """Returns the classes that an export predicts for images, in a process under `emulator`."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "images.npy", Path(folder) / "answers.npy"
        np.save(given, images)
        arguments = [str(export), "--answer", str(given), str(found)]
        subprocess.run([*emulator, sys.executable, __file__, *arguments], stderr=subprocess.DEVNULL, check=True)
        answers: np.ndarray[Any, Any] = np.load(found).argmax(axis=1)
        return answers


def write_answers(export: Path, images: Path, answers: Path) -> None:
    """Writes an export's answers, computed with one thread: emulated threads are slow to hand over."""
    graph, pixels = load_graph(export, threads=1), np.load(images)
    np.save(answers, np.concatenate([graph.run(pixels[at : at + BATCH]) for at in range(0, len(pixels), BATCH)]))


if __name__ == "__main__":
    main()
