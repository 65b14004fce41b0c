"""Measures every export format in every precision: size, agreement, accuracy and images/s, from the gate's reports.

    python benchmarks/exports.py

Exports the packaged model, compares the exports on all 10,000 test images of CIFAR-10, and writes
benchmarks/results/exports-DATE.json and the table in docs/export.md.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from document import ROOT, replace_table
from record import write_record
from shiftvit.exports.export import REPORT, export
from shiftvit.exports.formats import FORMATS

DOCUMENT = ROOT / "docs" / "export.md"
IMAGES = 10_000
# Entries that are equal in all reports.
_SHARED = ("processor", "instructions", "threads", "versions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="cifar10", help="run folder, bundle or the name of a model")
    model = parser.parse_args().model
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        for name, row in FORMATS.items():
            for precision in row.precisions:
                out = Path(folder) / f"{name}-{precision}"
                export(model, name, precision, out=out, data="cifar10", images=IMAGES)
                reports.append(json.loads((out / REPORT).read_text("utf-8")))
    result = {
        "model": model,
        "exports": [{key: value for key, value in report.items() if key not in _SHARED} for report in reports],
    }
    path = write_record("exports", result, ran_on={key: reports[0][key] for key in _SHARED})
    text = DOCUMENT.read_text("utf-8")
    text = replace_table(text, "table", make_table(result))
    text = re.sub(r"exports-\d{4}-\d\d-\d\d\.json", path.name, text)
    DOCUMENT.write_text(text, "utf-8")
    print(make_table(result))
    print("wrote the table in", DOCUMENT.name)


def make_table(result: dict[str, Any]) -> str:
    """Returns the Markdown table of a result."""
    lines = [
        "| format | precision | MB | largest difference | same class | top-1 | change | images/s, 1 | images/s, 64 |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["exports"]:
        rates = row["images_per_second"]
        cells = [
            row["format"],
            row["precision"],
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['max_difference']:.0e}",
            f"{row['top1_agreement']:.2%}",
            f"{row['top1']:.2%}",
            f"{row['top1_change']:+.2f}",
            f"{rates['1']:,.0f}",
            f"{rates['64']:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
