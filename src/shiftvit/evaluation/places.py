"""The folders of a run's evaluations: `evaluation/` for its own test images, and subfolders for other images."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

from shiftvit import files
from shiftvit.bundle.stored.find import is_name
from shiftvit.errors import ShiftViTError
from shiftvit.replacement import find_current

FOLDER = "evaluation"
REPORT = "evaluation.json"


def find_run(model: str | Path) -> Path | None:
    """Returns the run folder of a model that is a run folder, or the bundle in one; else None.

    The folder of an unfinished run may have the name of a model; it has none itself, so the name means that model.
    """
    if is_name(str(model)):
        return None
    path = Path(model)
    places = [path, path.parent] if path.name == "bundle" else [path]
    return next((place for place in places if (place / "recipe.toml").is_file()), None)


def choose_place(run: Path, data: str, split: str, *, own_test: bool) -> Path:
    """Returns the folder for an evaluation, always the same for the same images.

    Args:
        run: the run folder.
        data: the name of the evaluated data set, or the absolute path of a user's own images.
        split: the evaluated split.
        own_test: whether these are the run's own test images.
    """
    folder = run / FOLDER
    if own_test:
        return folder
    for place, found in list_evaluations(run):
        if place != folder and (found.get("data"), found.get("split")) == (data, split):
            return place
    last = Path(data).stem if Path(data).is_file() else Path(data).name
    name = re.sub(r"[^\w.-]+", "-", last).strip("-.") or "images"
    name = name if split == "all" else f"{name}-{split}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(folder / free for free in names if not (folder / free).exists())


def list_evaluations(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Returns the folder and the content of each evaluation in a run folder, sorted by name.

    Raises:
        ShiftViTError: an evaluation is not valid JSON.
    """
    folder = run / FOLDER
    inner = (place for place in folder.glob("*") if place.is_dir() and not place.is_symlink())
    places = [folder, *sorted(inner)]
    found = [(place, find_current(place / REPORT)) for place in places]
    return [(place, _read(report)) for place, report in found if report.is_file()]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(files.read_unlinked(path))
    except (OSError, ValueError) as error:
        raise ShiftViTError(f"{str(path)!r} cannot be read ({error}); evaluate again, or delete it") from error
    if not isinstance(found, dict):
        raise ShiftViTError(f"{str(path)!r} is not an evaluation; evaluate again, or delete it")
    return found
