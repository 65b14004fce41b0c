"""Writes the tables of docs/performance.md from the newest results in benchmarks/results.

    python benchmarks/document.py

Each table stands between `<!-- NAME -->` and `<!-- end -->`; `tests/test_readme.py` compares them with the results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "performance.md"
Result = dict[str, Any]

# The data sets of `alternatives.py`.
NAMED = {"cifar10": "CIFAR-10", "pictures": "cats and dogs"}


def find_newest(pattern: str) -> tuple[str, Result] | None:
    """Returns name and content of the newest result whose name matches, or None."""
    paths = sorted(
        path for path in RESULTS.glob("*.json") if re.fullmatch(pattern + r"-\d{4}-\d\d-\d\d\.json", path.name)
    )
    return (paths[-1].name, json.loads(paths[-1].read_text("utf-8"))) if paths else None


def make_link(name: str) -> str:
    """Returns a link from the document to a result."""
    return f"[json](../benchmarks/results/{name})"


def tabulate_steps() -> list[str]:
    """Tabulates training steps of the Keras example's model and of plain Keras."""
    lines = [
        "| model, backend | this package | plain Keras | ratio | share of the peak | result |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for backend in ("torch", "jax", "tensorflow"):
        for suffix, words in (("-drop_path0-dropout0", "dropout and drop path off"), ("", "as published, with both")):
            found = find_newest(f"steps-keras_example{suffix}-{backend}")
            if found is None:
                lines.append(f"| {words}, {backend} | not measured | not measured | | | |")
                continue
            name, result = found
            ours, plain = result["images_per_second"].values()
            share = result["share_of_peak"]["shiftvit"]
            lines.append(
                f"| {words}, {backend}, {result['precision'].removeprefix('mixed_')} | {ours:.0f} images/s | "
                f"{plain:.0f} images/s | {result['ratio']:.2f} | {share:.0%} of {result['peak_gflops']:.0f} GFLOP/s | "
                f"{make_link(name)} |"
            )
    return [*lines, "| any, a GPU | not measured | not measured | | | |"]


def tabulate_accelerators() -> list[str]:
    """Tabulates training steps on an accelerator."""
    lines = [
        "| backend, accelerator | model | batch | training | share of the peak | result |",
        "|---|---|---:|---:|---:|---|",
    ]
    for backend in ("jax", "torch"):
        found = find_newest(f"accelerators-{backend}")
        if found is None:
            lines.append(f"| {backend} | ours, Swin-T and ConvNeXt-T | | not measured | | |")
            continue
        name, result = found
        where = f"{backend}, {result['environment']['device']}"
        for row in result["rows"]:
            share = (
                f"{row['share_of_peak']:.0%} of {result['peak_gflops'] / 1e3:.0f} TFLOP/s"
                if "share_of_peak" in row
                else ""
            )
            lines.append(
                f"| {where} | {row['model']}, {row['pixels']} px | {row['batch']} | "
                f"{row['images_per_second']:,.0f} images/s | {share} | {make_link(name)} |"
            )
    return lines


def tabulate_choices(result: Result) -> list[str]:
    """Tabulates what each choice for speed gains."""
    lines = ["| choice | step without | step with | ratio | spread |", "|---|---:|---:|---:|---:|"]
    for words, row in result["choices"].items():
        low, high = row["ratio_spread"]
        times = f"{row['without_ms']:.0f} ms | {row['with_ms']:.0f} ms"
        lines.append(f"| {words} | {times} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} |")
    return lines


def tabulate_peers(result: Result) -> list[str]:
    """Tabulates inference of peers."""
    batches = [key for key in result["models"][0] if key.startswith("batch_")]
    heads = " | ".join(f"{key.replace('_', ' ')} | to ours" for key in batches)
    lines = [f"| model | {heads} |", "|---|" + "---:|---:|" * len(batches)]
    for row in result["models"]:
        cells = " | ".join(
            f"{row[k]['images_per_second']:.1f} images/s | {row[k]['ratio_to_ours']:.2f}" for k in batches
        )
        lines.append(f"| {row['model']} | {cells} |")
    return lines


def tabulate_alternatives(result: Result) -> list[str]:
    """Tabulates accuracy after the same wall time."""
    cells = {(row["data"], row["budget"], row["contender"]): row for row in result["rows"]}
    columns = sorted({key[:2] for key in cells})
    best = {column: max(row["test_top1"] for key, row in cells.items() if key[:2] == column) for column in columns}
    data = {column: next(row for key, row in cells.items() if key[:2] == column) for column in columns}
    heads = [f"{row['train_images']:,} of {NAMED[row['data']]}, {row['budget'] / 60:.3g} min" for row in data.values()]
    lines = [f"| contender | parameters | {' | '.join(heads)} |", "|---|---:|" + "---:|" * len(columns)]
    names = dict.fromkeys(row["contender"] for row in result["rows"])
    for contender in sorted(names, key=lambda name: not name.startswith("shiftvit")):
        rows = [cells.get((*column, contender)) for column in columns]
        parameters = next((row["parameters"] for row in rows if row and row["parameters"]), None)
        shown = []
        for column, row in zip(columns, rows, strict=True):
            text = "" if row is None else f"{row['test_top1']:.1%}"
            if row and row["std"] is not None:
                text += f" ± {100 * row['std']:.1f}"
            if row and max(row["seconds"]) < 0.8 * row["budget"]:
                text += f" ({max(row['seconds']):.0f} s)"
            elif row and row["over_budget"]:
                text += f" (late: {max(row['seconds']):.0f} s)"
            shown.append(f"**{text}**" if row and row["test_top1"] == best[column] else text)
        size = f"{parameters / 1e6:.2f} M" if parameters else ""
        lines.append(f"| {contender} | {size} | {' | '.join(shown)} |")
    counts = ", ".join({f"{row['test_images']:,} of {NAMED[row['data']]}": None for row in data.values()})
    cores = "one core" if result["cores_each"] == 1 else f"{result['cores_each']} cores"
    ran_on = result["environment"]["processor"]
    return [
        *lines,
        "",
        f"Test images: {counts}. Each training run had {cores} of an {ran_on}; {result['at_once']} ran at once.",
    ]


def tabulate_files(result: Result) -> list[str]:
    """Tabulates images/s and memory of `shiftvit predict` for each number of files."""
    lines = ["| PNG files | images/s | spread | peak memory |", "|---:|---:|---:|---:|"]
    for row in result["files"]:
        low, high = row["spread"]
        rate = f"{row['images_per_second']:,.0f} | {low:,.0f} to {high:,.0f}"
        lines.append(f"| {row['files']:,} | {rate} | {row['peak_megabytes']:.0f} MB |")
    return lines


def tabulate_cost(result: Result) -> list[str]:
    """Tabulates time and memory of a step for each resolution and depth."""
    head = f"batch {result['batch_size']}"
    lines = [f"| {head} | training step | of the peak | prediction step | peak memory |", "|---|---:|---:|---:|---:|"]
    for key, words in (("resolution", "{side} x {side} pixels"), ("depth", "blocks per stage: {blocks_a_stage}")):
        for row in result[key]:
            share = row["train_gflop"] / row["train_seconds"] / result["peak_gflops"]
            lines.append(
                f"| {words.format(**row)} | {1e3 * row['train_seconds']:.0f} ms | {share:.0%} | "
                f"{1e3 * row['predict_seconds']:.0f} ms | {row['peak_megabytes']:,.0f} MB |"
            )
    return lines


def tabulate(pattern: str, make: Callable[[Result], list[str]], *, source: bool = True) -> list[str]:
    """Returns the table of the newest result whose name matches, with its command and a link to it."""
    found = find_newest(pattern)
    if found is None:
        return ["not measured"]
    name, result = found
    return [*make(result), *(["", f"`{result['command']}`, {make_link(name)}."] if source else [])]


TABLES: dict[str, Callable[[], list[str]]] = {
    "steps": tabulate_steps,
    "accelerators": tabulate_accelerators,
    "choices": partial(tabulate, "choices", tabulate_choices),
    "peers": partial(tabulate, "peers", tabulate_peers),
    "alternatives": partial(tabulate, "alternatives", tabulate_alternatives),
    "files": partial(tabulate, "scaling", tabulate_files),
    "cost": partial(tabulate, "scaling", tabulate_cost, source=False),
}


def replace_table(text: str, name: str, table: str) -> str:
    """Returns a document with a new table between `<!-- NAME -->` and `<!-- end -->`."""
    start, end = f"<!-- {name} -->\n", "\n<!-- end -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    assert found, f"the document has no table {name!r}"
    return f"{before}{start}{table}{end}{after}"


def update(text: str) -> str:
    """Returns the document with every table as the results have it."""
    for name, make in TABLES.items():
        text = replace_table(text, name, "\n".join(make()))
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(update(DOCUMENT.read_text("utf-8")), "utf-8")
    print("wrote the tables of", DOCUMENT.name)
