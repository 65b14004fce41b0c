"""The run folder: what lies where, and how it is opened, written and read.

recipe.toml        every setting, resolved; can be trained again as it is
changes.jsonl      of a run that went on with other settings: which, from what to what, and when
splits.csv         of a user's own images: which are for training, validation and test
environment.json   versions, processor, backend, git commit, command
log.jsonl          a row an epoch
checkpoints/       last.safetensors, best.safetensors: the whole training state
bundle/            the trained model: weights and JSON
model.keras        the same model in Keras' own format
metrics.json       test, validation and training figures
figures/           learning curves, confusion matrix, a grid of predictions
evaluation/        what `shiftvit evaluate` found on the test images, and on other data in a folder each
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w

from shiftvit import environment, files
from shiftvit.data import named
from shiftvit.data.find.dataset import Dataset
from shiftvit.data.find.kept import SPLITS_TABLE, save_splits
from shiftvit.errors import ShiftViTError, notice
from shiftvit.recipes.recipe import Recipe
from shiftvit.training.processes import ALONE, Processes

RECIPE = "recipe.toml"
# What a run's saved state, its splits or its count of steps depend on, ...
_FIXED = (
    "name",
    "model.",
    "data.",
    "preprocess.",
    "start.",
    "augment.repeats",
    "train.batch_size",
    "train.drop_remainder",
    "train.ema",
    "train.optimizer.name",
    "train.schedule.whole_steps",
    "train.seed",
)
# ... apart from these.
_FREE = {"data.workers", "model.dropout", "model.drop_path"}


def choose_run(
    recipe: Recipe | str | Path | None,
    out: str | Path | None,
    resume: str | Path | None,
    overrides: dict[str, Any],
    processes: Processes = ALONE,
) -> tuple[Recipe, Path]:
    """Returns the recipe and the run folder to make or to go on with; nothing is written yet.

    Of several processes, process 0 chooses: the folder's name has the time in it, and may soon be taken.

    Raises:
        ShiftViTError: settings that are wrong, a folder that is in use, or a run that cannot be resumed.
    """

    def choose() -> dict[str, Any]:
        chosen, run = _choose(recipe, out, resume, overrides)
        return {"recipe": chosen.model_dump(mode="json", exclude_unset=True), "run": str(run)}

    if processes.count == 1:
        return _choose(recipe, out, resume, overrides)
    found = processes.first(choose)
    return Recipe.model_validate(found["recipe"]), Path(found["run"])


def _choose(
    recipe: Recipe | str | Path | None, out: str | Path | None, resume: str | Path | None, overrides: dict[str, Any]
) -> tuple[Recipe, Path]:
    if resume is not None:
        return _choose_resumed(Path(resume), recipe, out, overrides)
    if isinstance(recipe, Recipe) and overrides:
        raise ShiftViTError(
            f"overrides ({', '.join(overrides)}) need a recipe's name or file; build them into the Recipe"
        )
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load("quick" if recipe is None else recipe, **overrides)
    files.check_folder(Path("runs") if out is None else Path(out))
    if out is None:
        stamp = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        return recipe, _unused(Path("runs") / f"{recipe.name}-{stamp}")
    run = Path(out)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ShiftViTError(
            f"{str(run)!r} exists and is not an empty folder; name another with --out, or go on with "
            f"--resume {shlex.quote(str(run))}"
        )
    return recipe, run


@contextlib.contextmanager
def open_run(run: Path, recipe: Recipe, dataset: Dataset) -> Iterator[None]:
    """Makes the run folder with its first files if it is new, and keeps other processes out of it while it is open.

    Raises:
        ShiftViTError: a folder that cannot be written, or that another process trains in.
    """
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "figures").mkdir(exist_ok=True)
        lock = (run / ".lock").open("a")
    except OSError as error:
        raise files.unwritable(run, error) from error
    with lock:
        if files.lock(lock, wait=False) is False:
            raise ShiftViTError(
                f"another process trains in {str(run)!r}; wait for it, or name another folder with --out"
            )
        files.delete_all(run / "checkpoints", ".*.tmp*")  # of a run that was killed while it saved
        if not (run / RECIPE).is_file():
            files.write_json(run / "environment.json", environment.describe_environment())
            if dataset.path is not None:
                save_splits(dataset, run / SPLITS_TABLE)
            _write_recipe(run, recipe)
        else:
            change_recipe(run, recipe)
        yield


def change_recipe(run: Path, recipe: Recipe) -> None:
    """Stores the recipe that a run goes on with, and records in `changes.jsonl` what differs from the stored one."""
    changes = compare_recipes(Recipe.load(run / RECIPE), recipe)
    if not changes:
        return
    for key, (old, new) in changes.items():
        notice(f"{key} was {old} and is {new} from here on")
    path = run / "changes.jsonl"
    earlier = path.read_text("utf-8") if path.is_file() else ""
    row = {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "changed": changes}
    text = f"{earlier}{json.dumps(row)}\n"
    files.write_file(path, lambda temporary: temporary.write_text(text, "utf-8"))
    _write_recipe(run, recipe)


def compare_recipes(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ, by dotted key: what they were and what they are."""
    old, new = (dict(_flatten(recipe.model_dump(mode="json"))) for recipe in (before, after))
    return {key: (old.get(key), value) for key, value in new.items() if value != old.get(key)}


def write_log(run: Path, history: list[dict[str, Any]]) -> None:
    """Writes `log.jsonl`, a row an epoch."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in history)
    files.write_file(run / "log.jsonl", lambda temporary: temporary.write_text(text, "utf-8"))


def read_log(run: Path) -> list[dict[str, Any]]:
    """Returns the rows of `log.jsonl`; none of a probe, which has no epochs."""
    path = run / "log.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def _choose_resumed(
    run: Path, recipe: Recipe | str | Path | None, out: str | Path | None, overrides: dict[str, Any]
) -> tuple[Recipe, Path]:
    given = [*(["--out"] if out is not None else []), *(["--recipe"] if recipe is not None else [])]
    if given:
        raise ShiftViTError(
            f"a resumed run keeps its folder and its recipe, so {' and '.join(given)} cannot be given; leave it out, "
            "and name what you want to change: --set KEY=VALUE"
        )
    if not (run / RECIPE).is_file():
        raise ShiftViTError(f"{str(run)!r} is no run folder (it has no {RECIPE}); give the folder that training made")
    if (run / "metrics.json").is_file():
        raise ShiftViTError(
            f"the run {str(run)!r} is complete; evaluate it, or train on from its weights in a new one: "
            f"--recipe finetune --set {shlex.quote(f'start.source={run}')}"
        )
    files.check_folder(run)
    stored = Recipe.load(run / RECIPE)
    resumed = Recipe.load(run / RECIPE, **overrides)
    name, own = resumed.data.name, stored.data.name
    free = _FREE
    if (run / SPLITS_TABLE).is_file():
        if name == own and not Path(own).exists():
            raise ShiftViTError(
                f"the images of the run lay in {own!r}, which does not exist any more; name their new place: "
                f"shiftvit train --resume {shlex.quote(str(run))} --data PATH"
            )
        named.check_name(name)
        if named.is_path(name):  # they may have moved; whether these are the same is seen when they are read
            resumed = resumed.model_copy(
                update={"data": resumed.data.model_copy(update={"name": str(Path(name).resolve())})}
            )
            free = free | {"data.name"}
    _check_epochs(run, resumed.train.epochs)
    for key, (old, new) in compare_recipes(stored, resumed).items():
        if key.startswith(_FIXED) and key not in free:
            raise ShiftViTError(
                f"{key} is {old} in the run {str(run)!r} and cannot change to {new} mid-run; leave it out, "
                "or start a new run"
            )
    return resumed, run


def _check_epochs(run: Path, epochs: int) -> None:
    """Raises ShiftViTError if more epochs have begun than are asked for."""
    from safetensors import SafetensorError, safe_open

    from shiftvit.training.checkpoint import LAST

    begun = 0
    # A checkpoint that is missing or damaged is told of where it is read.
    with contextlib.suppress(OSError, SafetensorError, KeyError, TypeError, ValueError):
        with safe_open(run / "checkpoints" / LAST, framework="numpy") as file:
            progress = json.loads(file.metadata()["progress"])
        begun = progress["epoch"] + (progress["step"] > 0)
    if epochs < begun:
        raise ShiftViTError(
            f"train.epochs={epochs} is less than the {begun} that the run {str(run)!r} has begun; use more"
        )


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _write_recipe(run: Path, recipe: Recipe) -> None:
    text = tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))
    files.write_file(run / RECIPE, lambda temporary: temporary.write_text(text, "utf-8"))


def _unused(path: Path) -> Path:
    candidates = [path, *(path.with_name(f"{path.name}-{os.getpid()}-{i}") for i in range(100))]
    return next(candidate for candidate in candidates if not candidate.exists())
