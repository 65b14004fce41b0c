"""Writes a run as one HTML page that contains its figures."""

from __future__ import annotations

import base64
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from shiftvit import files
from shiftvit.bundle.card import shows_top5
from shiftvit.config import flatten
from shiftvit.errors import ShiftViTError, describe_error
from shiftvit.evaluation.places import FOLDER, list_evaluations
from shiftvit.replacement import find_current
from shiftvit.templates import render

_TRAINING = ("learning_curves", "predictions")
_EVALUATION = ("confusion_matrix", "reliability", "mistakes", "corruptions")


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a finished run, including the results of `shiftvit evaluate`.

    Args:
        run: a run folder.
        out: the file to write; None: `report.html` in the run folder.

    Returns:
        the file: one HTML page that needs neither other files nor the network.

    Raises:
        ShiftViTError: `run` is not a finished run, or the file cannot be written.
    """
    run = Path(run)
    try:
        page = _make_page(run)
    except ShiftViTError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:
        fault = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ShiftViTError(
            f"a file of the run {str(run)!r} is damaged ({fault}): metrics.json, environment.json, changes.jsonl or an "
            "evaluation; restore it, or evaluate again"
        ) from error
    path = Path(out) if out is not None else run / "report.html"
    # The name of a folder may not be UTF-8.
    files.write_file(path, lambda temporary: temporary.write_text(page, "utf-8", "replace"))
    return path


def _make_page(run: Path) -> str:
    recipe, metrics = _read_text(run / "recipe.toml"), {"val": None, **_read_json(run / "metrics.json")}
    settings = _parse_settings(recipe)
    evaluation: dict[str, Any] = {}
    others = []
    for folder, found in list_evaluations(run):
        if folder == run / FOLDER and _is_own_test(found, settings, metrics["test"]["n"]):
            evaluation = found
        else:
            name = folder.name if folder.parent.name == FOLDER else Path(str(found.get("data"))).name
            known = {"without_images": (), "trained_on": 0, **found}
            others.append({**known, "name": name, "figures": _read_figures(folder, _EVALUATION)})
    # Training draws a confusion matrix too, but that of an evaluation fits its table of classes.
    place = run / (FOLDER if evaluation else "figures")
    environment = dict(flatten(_read_json(run / "environment.json")))
    words = {key: " ".join(map(str, value)) for key, value in environment.items() if isinstance(value, list)}
    return render(
        "report.html",
        name=run.resolve().name,
        metrics=metrics,
        evaluation=evaluation,
        others=others,
        top5=shows_top5(settings.get("model", {}).get("num_classes", 1000)),
        recipe=recipe,
        environment=environment | words,
        changes=_read_changes(run / "changes.jsonl"),
        figures=_read_figures(run / "figures", _TRAINING) | _read_figures(place, _EVALUATION),
    )


def _read_changes(path: Path) -> list[tuple[str, Any, Any, str]]:
    """Returns the settings that were changed on resuming: key, value before, value after, date."""
    rows = map(json.loads, _read_text(path).splitlines()) if path.is_file() else ()
    return [(key, old, new, row["date"]) for row in rows for key, (old, new) in row["changed"].items()]


def _is_own_test(found: dict[str, Any], settings: dict[str, Any], images: int) -> bool:
    """Returns whether an evaluation is of the run's own test images, which older versions did not record."""
    if "own_test" in found:
        return bool(found["own_test"])
    own = settings.get("data", {}).get("name")
    return bool(found.get("data", own) == own and found.get("n", images) == images)


def _parse_settings(recipe: str) -> dict[str, Any]:
    try:
        return {key: part for key, part in tomllib.loads(recipe).items() if isinstance(part, dict)}
    except tomllib.TOMLDecodeError:
        return {}


def _read_figures(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Returns the figures that exist, encoded in base64."""
    paths = {name: find_current(folder / f"{name}.png") for name in names}
    return {name: base64.b64encode(_read_bytes(path)).decode("ascii") for name, path in paths.items() if path.exists()}


def _read_json(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise ShiftViTError(f"{str(path)!r} is not valid JSON ({error}); evaluate or train the run again") from error


def _read_text(path: Path) -> str:
    try:
        return _read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ShiftViTError(f"{str(path)!r} is not UTF-8 text ({error.reason}); restore it") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return files.read_unlinked(path)  # not through links, because users share the page
    except OSError as error:
        raise ShiftViTError(
            f"{str(path)!r} cannot be read ({describe_error(error)}); give the folder of a finished run"
        ) from error
