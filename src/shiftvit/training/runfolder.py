"""The run folder: its files, and how it is opened, written and read.

recipe.toml        every setting, resolved; a recipe that `train` takes
changes.jsonl      settings that changed when the run was resumed: old value, new value and date
splits.csv         for a user's own images: the split of each
images.json        for arrays: a digest of each split
environment.json   versions, processor, backend, git commit, command
log.jsonl          a row for each epoch
checkpoints/       last.safetensors, best.safetensors: the whole training state
bundle/            the trained model: weights and JSON
model.keras        the same model in Keras' own format
metrics.json       test, validation and training figures
figures/           learning curves, confusion matrix, a grid of predictions
evaluation/        results of `shiftvit evaluate` on the test images, and a folder for each other data set
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
from shiftvit.config import flatten
from shiftvit.data import named
from shiftvit.data.find.dataset import Dataset
from shiftvit.data.find.kept import DIGESTS, SPLITS_TABLE, check_digests, save_digests, save_splits
from shiftvit.errors import ShiftViTError, check_path, notice
from shiftvit.recipes.recipe import Recipe
from shiftvit.training.processes import ALONE, Processes

RECIPE = "recipe.toml"
ENVIRONMENT = "environment.json"
# In `checkpoints/`: the state of the last epoch, and of the best one. NEW_BEST becomes BEST once LAST, which names the
# best epoch, is written too.
LAST, BEST, NEW_BEST = "last.safetensors", "best.safetensors", "new_best.safetensors"
# Settings, or the beginnings of their keys, that cannot change in a resumed run, because its state, its splits or its
# steps depend on them.
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
# The exceptions.
_FREE = {"data.workers", "model.dropout", "model.drop_path"}


def choose_run(
    recipe: Recipe | str | Path | None,
    out: str | Path | None,
    resume: str | Path | None,
    overrides: dict[str, Any],
    processes: Processes = ALONE,
) -> tuple[Recipe, Path]:
    """Returns the recipe, and the run folder to create or to continue in. Nothing is written yet.

    With several processes, process 0 chooses for all, because the folder's name contains the time.

    Raises:
        ShiftViTError: a setting is wrong, the folder is in use, or the run cannot be resumed.
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
    for name, value in (("out", out), ("resume", resume)):
        if value is not None:
            check_path(name, value)
    if resume is not None:
        return _choose_resumed(Path(resume), recipe, out, overrides)
    if isinstance(recipe, Recipe) and overrides:
        raise ShiftViTError(
            f"overrides ({', '.join(overrides)}) need a recipe's name or file; set them in the Recipe instead"
        )
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load("quick" if recipe is None else recipe, **overrides)
    files.check_folder(Path("runs") if out is None else Path(out))
    if out is None:
        stamp = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        return recipe, _find_unused(Path("runs") / f"{recipe.name}-{stamp}")
    run = Path(out)
    if run.exists() and not _can_begin_in(run):
        raise ShiftViTError(
            f"{str(run)!r} exists and is not an empty folder; choose another with --out, or continue that run with "
            f"--resume {shlex.quote(str(run))}"
        )
    return recipe, run


@contextlib.contextmanager
def open_run(run: Path, recipe: Recipe, dataset: Dataset) -> Iterator[None]:
    """Locks the run folder against other processes; creates it with its first files if it is new.

    Raises:
        ShiftViTError: the folder is not writable, or another process trains in it.
    """
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "figures").mkdir(exist_ok=True)
        lock = (run / ".lock").open("a")
    except OSError as error:
        raise files.explain_unwritable(run, error) from error
    with lock:
        if files.lock(lock, wait=False) is False:
            raise ShiftViTError(
                f"another process is training in {str(run)!r}; wait for it, or choose another folder with --out"
            )
        files.delete_abandoned(run / "checkpoints", alone=True)
        last = find_checkpoint(run)
        if (run / RECIPE).is_file():
            change_recipe(run, recipe)
            if recipe.probe is None and not last.is_file():
                notice(f"{str(run)!r} has no checkpoint {last.name}, so the run begins anew")
        else:
            _write_recipe(run, recipe)  # the first file: with it, a run that is stopped can be resumed
        _keep_environment(run)
        _keep_splits(run, dataset, begun=last.is_file())
        yield


def _keep_splits(run: Path, dataset: Dataset, *, begun: bool) -> None:
    """Records the images and their splits, or checks that they are those of the record."""
    table, digests, path = run / SPLITS_TABLE, run / DIGESTS, dataset.path
    # A run that has begun may have lost its table, and then nobody knows its splits.
    if path is not None and not table.is_file() and not begun:
        save_splits(dataset, table)
    if path is not None and path.suffix.lower() != ".npz":
        return  # the table names files
    if not digests.is_file():
        if not begun:
            save_digests(dataset, digests)
        return
    try:
        check_digests(dataset, digests)
    except ShiftViTError as error:
        mend = "give them: shiftvit.train(resume=..., data=...)" if path is None else "restore the archive"
        raise ShiftViTError(f"{error}; {mend}") from error


def _keep_environment(run: Path) -> None:
    """Describes the machine in `environment.json`, unless that was done when the run began."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(json.loads((run / ENVIRONMENT).read_text("utf-8")), dict):
            return
    files.write_json(run / ENVIRONMENT, environment.describe_environment())


def find_checkpoint(run: Path, name: str = LAST) -> Path:
    """Returns where a run keeps a state, even if there is none."""
    return run / "checkpoints" / name


def change_recipe(run: Path, recipe: Recipe) -> None:
    """Stores the recipe with which a run continues, and records the changed settings in `changes.jsonl`."""
    changes = compare_recipes(Recipe.load(run / RECIPE), recipe)
    if not changes:
        return
    for key, (old, new) in changes.items():
        notice(f"{key} changes from {old} to {new}")
    path = run / "changes.jsonl"
    earlier = path.read_bytes() if path.is_file() else b""
    row = {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "changed": changes}
    content = earlier + f"{json.dumps(row)}\n".encode()
    files.write_file(path, lambda temporary: temporary.write_bytes(content))
    _write_recipe(run, recipe)


def compare_recipes(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ, by dotted key: the old and the new value."""
    old, new = (dict(flatten(recipe.model_dump(mode="json"))) for recipe in (before, after))
    return {key: (old.get(key), value) for key, value in new.items() if value != old.get(key)}


def write_log(run: Path, history: list[dict[str, Any]]) -> None:
    """Writes `log.jsonl`, a row for each epoch."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in history)
    files.write_file(run / "log.jsonl", lambda temporary: temporary.write_text(text, "utf-8"))


def read_log(run: Path) -> list[dict[str, Any]]:
    """Returns the rows of `log.jsonl`, or none if the run has no such file.

    Raises:
        ShiftViTError: the file is damaged.
    """
    path = run / "log.jsonl"
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
    except (OSError, ValueError) as error:
        raise ShiftViTError(f"{str(path)!r} cannot be read ({error}); restore it") from error


def _choose_resumed(
    run: Path, recipe: Recipe | str | Path | None, out: str | Path | None, overrides: dict[str, Any]
) -> tuple[Recipe, Path]:
    given = [option for option, value in (("--out", out), ("--recipe", recipe)) if value is not None]
    if given:
        raise ShiftViTError(
            f"a resumed run keeps its folder and recipe, so {' and '.join(given)} cannot be given; leave out "
            f"{' and '.join(given)}. To change settings, use --set KEY=VALUE"
        )
    if not (run / RECIPE).is_file():
        raise ShiftViTError(
            f"{str(run)!r} is not a run folder (it has no {RECIPE}); give the folder that training created"
        )
    if (run / "metrics.json").is_file():
        raise ShiftViTError(
            f"the run {str(run)!r} is complete; evaluate it, or start a new run from its weights: "
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
                f"the images of the run were in {own!r}, which no longer exists; give their new location: "
                f"shiftvit train --resume {shlex.quote(str(run))} --data PATH"
            )
        named.check_name(name)
        if named.is_path(name):  # the images may have moved; reading them checks that they are the same
            resumed = resumed.model_copy(update={"data": resumed.data.model_copy(update={"name": named.locate(name)})})
            free = free | {"data.name"}
    begun = _count_begun_epochs(run)
    if resumed.train.epochs < begun:
        raise ShiftViTError(
            f"train.epochs={resumed.train.epochs} is less than the {begun} epochs that the run {str(run)!r} has begun; "
            f"use at least {begun}"
        )
    for key, (old, new) in compare_recipes(stored, resumed).items():
        # A rate of 0 cannot change to another or back: only with dropout or drop path has the state seeds for it.
        if key.startswith(_FIXED) and not (key in free and bool(old) == bool(new)):
            raise ShiftViTError(
                f"{key} is {old} in the run {str(run)!r} and cannot change to {new} mid-run; keep its "
                "value, or start a new run"
            )
    return resumed, run


def _count_begun_epochs(run: Path) -> int:
    """Returns how many epochs a run has begun; 0 if its checkpoint is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(find_checkpoint(run), framework="numpy") as file:
            progress = json.loads(file.metadata()["progress"])
        return int(progress["epoch"] + (progress["step"] > 0))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):  # `load_checkpoint` reports it
        return 0


def _write_recipe(run: Path, recipe: Recipe) -> None:
    text = tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))
    files.write_file(run / RECIPE, lambda temporary: temporary.write_text(text, "utf-8"))


def _can_begin_in(folder: Path) -> bool:
    """Returns whether a folder is empty, or has only what `open_run` makes before the recipe."""
    return folder.is_dir() and all(
        path.name == ".lock"
        or (path.name in ("checkpoints", "figures") and path.is_dir() and not any(path.iterdir()))
        or path.match(f".{RECIPE}.*.tmp")  # of a process that was killed while it wrote the recipe
        for path in folder.iterdir()
    )


def _find_unused(path: Path) -> Path:
    candidates = [path, *(path.with_name(f"{path.name}-{os.getpid()}-{i}") for i in range(100))]
    return next(candidate for candidate in candidates if not candidate.exists())
