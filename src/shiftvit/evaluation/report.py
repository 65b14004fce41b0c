"""A run as one HTML file with its figures inside, to look at, send and keep."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shiftvit import files
from shiftvit.errors import ShiftViTError

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: .6rem 0; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
th { color: #555; font-weight: 600; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; display: block; margin: .8rem 0; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: 13px; }
.large { font-size: 2.2rem; font-weight: 600; }
"""


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a finished run; what `shiftvit evaluate` found is in it where it has run.

    Args:
        run: a run folder.
        out: the file to write; None: `report.html` in the run folder.

    Returns:
        the file: one HTML page that needs nothing else, neither files nor the network.

    Raises:
        ShiftViTError: no finished run there, or no way to write the file.
    """
    run = Path(run)
    metrics = _json(run / "metrics.json")
    evaluation = _json(run / "evaluation" / "evaluation.json", optional=True)
    environment = _json(run / "environment.json")
    recipe = _text(run / "recipe.toml")
    title = f"ShiftViT run {run.resolve().name}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        *_summary(metrics, evaluation),
        "<h2>Training</h2>",
        _figure(run / "figures" / "learning_curves.png"),
        *_evaluated(run, evaluation),
        "<h2>Predictions</h2>",
        _figure(run / "figures" / "predictions.png"),
        "<h2>Settings</h2>",
        f"<pre>{html.escape(recipe)}</pre>",
        *_changes(run / "changes.jsonl"),
        "<h2>Environment</h2>",
        _pairs(_flat(environment)),
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )
    path = Path(out) if out is not None else run / "report.html"
    files.write_file(path, lambda temporary: temporary.write_text(page, "utf-8"))
    return path


def _summary(metrics: dict[str, Any], evaluation: dict[str, Any]) -> list[str]:
    test, spent = metrics["test"], metrics["train"]
    rows = {"test images": f"{test['n']:,}", "top-5": f"{test['top5']:.2%}", "loss": f"{test['loss']:.4f}"}
    if evaluation:
        low, high = evaluation["intervals"]["top1"]
        rows["top-1, 95 % interval"] = f"{low:.2%} to {high:.2%}"
        rows["macro F1"] = f"{evaluation['macro']['f1']:.2%}"
        rows["calibration error"] = f"{evaluation['calibration']['ece']:.2%}"
    if "val" in metrics:
        rows["validation top-1"] = f"{metrics['val']['top1']:.2%} ({metrics['val']['n']:,} images)"
    rows["training"] = f"{spent['epochs']} epochs of {spent['images']:,} images in {spent['seconds']:,.0f} s"
    return [f'<p><span class="large">{test["top1"]:.2%}</span> test top-1</p>', _pairs(rows)]


def _evaluated(run: Path, evaluation: dict[str, Any]) -> list[str]:
    """Returns the sections of an evaluation, or the confusion matrix that training drew."""
    if not evaluation:
        return ["<h2>Confusion</h2>", _figure(run / "figures" / "confusion_matrix.png")]
    place = run / "evaluation"
    shares = ("precision", "recall", "f1")
    rows = [
        [row["class"], *(f"{row[key]:.1%}" for key in shares), f"{row['support']:,}"] for row in evaluation["classes"]
    ]
    parts = ["<h2>Classes</h2>", _table(["class", *shares, "images"], rows)]
    for heading, name in (
        ("Confusion", "confusion_matrix"),
        ("Confidence", "reliability"),
        ("The most confident mistakes", "mistakes"),
        ("Common corruptions", "corruptions"),
    ):
        if figure := _figure(place / f"{name}.png"):
            parts += [f"<h2>{heading}</h2>", figure]
    return parts


def _changes(path: Path) -> list[str]:
    """Returns the section on settings that were changed when the run went on."""
    if not path.is_file():
        return []
    rows = [
        [key, str(old), str(new), row["date"]]
        for row in map(json.loads, path.read_text("utf-8").splitlines())
        for key, (old, new) in row["changed"].items()
    ]
    return ["<h2>Changed on the way</h2>", _table(["setting", "was", "became", "date"], rows)]


def _figure(path: Path) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{html.escape(path.stem.replace("_", " "))}" src="data:image/png;base64,{data}">'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = ""
    for first, *rest in rows:
        numbers = "".join(f'<td class="number">{html.escape(cell)}</td>' for cell in rest)
        body += f"<tr><td>{html.escape(first)}</td>{numbers}</tr>\n"
    return f"<table><tr>{top}</tr>\n{body}</table>"


def _pairs(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>\n" for key, value in values.items()
    )
    return f"<table>{rows}</table>"


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns nested values in one row each: versions.numpy and so on."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": deeper for inner, deeper in _flat(value).items()}
        else:
            found[key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return found


def _json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        return json.loads(_text(path))  # type: ignore[no-any-return]
    except ValueError as error:
        raise ShiftViTError(f"{str(path)!r} is no valid JSON ({error}); evaluate or train the run again") from error


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ShiftViTError(
            f"{str(path)!r} cannot be read ({error.strerror}); give the folder of a finished run"
        ) from error
