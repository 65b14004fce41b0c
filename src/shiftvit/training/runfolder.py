"""The run folder: what lies where, and how it is opened, written and read.

recipe.toml        every setting, resolved; can be trained again as it is
environment.json   versions, processor, backend, git commit, command
log.jsonl          a row an epoch
checkpoints/       last.safetensors, best.safetensors: the whole training state
bundle/            the trained model: weights and JSON
model.keras        the same model in Keras' own format
metrics.json       test, validation and training figures
figures/           learning curves, confusion matrix, a grid of predictions
"""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import tomli_w

from shiftvit import environment, files, plots
from shiftvit.bundle import Bundle
from shiftvit.config import Recipe
from shiftvit.errors import ShiftViTError
from shiftvit.evaluation import confusion

RECIPE = "recipe.toml"


def open_run(
    recipe: Recipe | str | Path, out: str | Path | None, resume: str | Path | None, overrides: dict[str, Any]
) -> tuple[Recipe, Path]:
    """Makes a new run folder with its recipe and environment, or opens the one to resume.

    Raises:
        ShiftViTError: a folder that is in use or cannot be written, or a run that cannot be resumed.
    """
    if resume is not None:
        return _open_resumed(Path(resume), out, overrides)
    if isinstance(recipe, Recipe):
        if overrides:
            raise ShiftViTError(
                f"overrides ({', '.join(overrides)}) need a recipe's name or file; build them into the Recipe"
            )
    else:
        recipe = Recipe.load(recipe, **overrides)
    stamp = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    run = Path(out) if out is not None else _unused(Path("runs") / f"{recipe.name}-{stamp}")
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ShiftViTError(
            f"{str(run)!r} exists and is not an empty folder; name another with --out, or go on with --resume {run}"
        )
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.unwritable(run, error) from error
    text = tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True, exclude={"model"}) | _model_table(recipe))
    files.write_json(run / "environment.json", environment.describe_environment())
    files.write_file(run / RECIPE, lambda temporary: temporary.write_text(text, "utf-8"))
    return recipe, run


def append_log(run: Path, row: dict[str, Any]) -> None:
    """Adds an epoch's row to `log.jsonl`."""
    line = json.dumps(row, allow_nan=False) + "\n"
    try:
        with (run / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise files.unwritable(run / "log.jsonl", error) from error


def read_log(run: Path) -> list[dict[str, Any]]:
    """Returns the rows of `log.jsonl`; the last of each epoch, where a resumed run repeated one."""
    try:
        lines = (run / "log.jsonl").read_text("utf-8").splitlines()
    except OSError as error:
        raise ShiftViTError(f"{str(run)!r} has no log to read ({error.strerror}); is it a run folder?") from error
    rows = [json.loads(line) for line in lines if line.strip()]
    return list({row["epoch"]: row for row in rows}.values())


def write_results(
    run: Path,
    recipe: Recipe,
    model: Any,
    bundle: Bundle,
    metrics: dict[str, Any],
    history: list[dict[str, Any]],
    schedule: tuple[Any, int],
    test: tuple[Any, Any],
    logits: Any,
) -> None:
    """Writes the model, the figures and, last, `metrics.json`, whose presence says that the run is complete."""
    Bundle(bundle.config, bundle.labels, bundle.preprocess, bundle.weights, metrics, bundle.versions).save(
        run / "bundle"
    )
    files.write_file(run / "model.keras", model.save)
    images, labels = test
    try:
        (run / "figures").mkdir(exist_ok=True)
    except OSError as error:
        raise files.unwritable(run / "figures", error) from error
    matrix = confusion(logits, labels)
    rates, steps = schedule
    curves = run / "figures" / "learning_curves.png"
    plots.learning_curves(history, rates, curves, title=f"Recipe {recipe.name}", steps=steps)
    plots.confusion_matrix(matrix, bundle.labels, run / "figures" / "confusion_matrix.png")
    plots.prediction_grid(images, logits, labels, bundle.labels, run / "figures" / "predictions.png")
    files.write_json(run / "metrics.json", metrics)


def _open_resumed(run: Path, out: str | Path | None, overrides: dict[str, Any]) -> tuple[Recipe, Path]:
    if out is not None or overrides:
        named = ", ".join([*overrides, *(["--out"] if out is not None else [])])
        raise ShiftViTError(
            f"a resumed run keeps its settings, so {named} cannot be changed; leave it out, or start a new run"
        )
    if not (run / RECIPE).is_file():
        raise ShiftViTError(f"{str(run)!r} is no run folder (it has no {RECIPE}); give the folder that training made")
    if (run / "metrics.json").is_file():
        raise ShiftViTError(f"the run {str(run)!r} is complete; evaluate it, or start a new one for more epochs")
    recipe = Recipe.load(run / RECIPE)
    if not (run / "checkpoints" / "last.safetensors").is_file():
        raise ShiftViTError(f"the run {str(run)!r} stopped before its first checkpoint; start it anew")
    return recipe, run


def _model_table(recipe: Recipe) -> dict[str, Any]:
    # Only what was set: the rest follows from the preset, as it did the first time.
    return {"model": recipe.model.model_dump(mode="json", exclude_unset=True, exclude_none=True)}


def _unused(path: Path) -> Path:
    candidates = [path, *(path.with_name(f"{path.name}-{os.getpid()}-{i}") for i in range(100))]
    return next(candidate for candidate in candidates if not candidate.exists())
