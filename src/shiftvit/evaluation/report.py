"""A run as one HTML page with its figures inside, to read, send and keep."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from shiftvit import files
from shiftvit.errors import ShiftViTError
from shiftvit.templates import render

_TRAINING = ("learning_curves", "predictions")
_EVALUATION = ("confusion_matrix", "reliability", "mistakes", "corruptions")


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a finished run, including what `shiftvit evaluate` found if it has run.

    Args:
        run: a run folder.
        out: the file to write; None: `report.html` in the run folder.

    Returns:
        the file: one HTML page that needs neither other files nor the network.

    Raises:
        ShiftViTError: `run` is not a finished run, or the file cannot be written.
    """
    run = Path(run)
    evaluation = _json(run / "evaluation" / "evaluation.json", optional=True)
    # Training draws a confusion matrix too; an evaluation's is as new as its table of classes.
    place = run / ("evaluation" if evaluation else "figures")
    page = render(
        "report.html",
        name=run.resolve().name,
        metrics={"val": None, **_json(run / "metrics.json")},
        evaluation=evaluation,
        recipe=_text(run / "recipe.toml"),
        environment=_flat(_json(run / "environment.json")),
        changes=_changes(run / "changes.jsonl"),
        figures={
            **{name: _figure(run / "figures" / f"{name}.png") for name in _TRAINING},
            **{name: _figure(place / f"{name}.png") for name in _EVALUATION},
        },
    )
    path = Path(out) if out is not None else run / "report.html"
    files.write_file(path, lambda temporary: temporary.write_text(page, "utf-8"))
    return path


def _changes(path: Path) -> list[tuple[str, Any, Any, str]]:
    """Returns the settings that were changed on resuming: key, value before, value after, date."""
    rows = map(json.loads, _text(path).splitlines()) if path.is_file() else ()
    return [(key, old, new, row["date"]) for row in rows for key, (old, new) in row["changed"].items()]


def _figure(path: Path) -> str | None:
    return base64.b64encode(_bytes(path)).decode("ascii") if path.exists() else None


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
    text = _text(path)
    try:
        return json.loads(text)  # type: ignore[no-any-return]
    except ValueError as error:
        raise ShiftViTError(f"{str(path)!r} is not valid JSON ({error}); evaluate or train the run again") from error


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8")


def _bytes(path: Path) -> bytes:
    try:
        return files.read_unlinked(path)  # the page is to be sent on
    except OSError as error:
        raise ShiftViTError(
            f"{str(path)!r} cannot be read ({error.strerror}); give the folder of a finished run"
        ) from error
