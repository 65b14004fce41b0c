"""`train`: from a recipe to a run folder. Read it from the top down."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from shiftvit.backend import hide_tensorflow
from shiftvit.bundle.bundle import Bundle
from shiftvit.data.find.dataset import Dataset
from shiftvit.data.load import load_data
from shiftvit.errors import ShiftViTError, notice, pluralize
from shiftvit.recipes.recipe import Recipe
from shiftvit.training import runfolder
from shiftvit.training.callbacks import ProgressBar, TensorBoardLog, Watch
from shiftvit.training.checkpoint import Progress, load_checkpoint, settle_best
from shiftvit.training.device import check_loop, make_loop
from shiftvit.training.epoch import finish_epoch, fit_epoch, validate
from shiftvit.training.finetune import apply_start
from shiftvit.training.groups import join_processes
from shiftvit.training.memory import free_memory, halve_parts, is_out_of_memory
from shiftvit.training.probe import run_probe
from shiftvit.training.processes import ALONE, Processes
from shiftvit.training.results import finish_run
from shiftvit.training.setup import (
    build,
    check_alone,
    check_same_images,
    check_same_start,
    choose_precision,
    choose_size,
    make_batches,
    resolve,
)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the run folder.
        recipe: its resolved recipe.
        metrics: the content of its `metrics.json`.
    """

    path: Path
    recipe: Recipe
    metrics: dict[str, Any]

    @property
    def bundle(self) -> Bundle:
        """The trained model."""
        return Bundle.load(self.path / "bundle")

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row for each epoch, as in its `log.jsonl`: "epoch", "loss", "top1", "val_loss" and so on."""
        return runfolder.read_log(self.path)


def train(
    recipe: Recipe | str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    tensorboard: bool = False,
    data: Dataset | None = None,
    **overrides: Any,
) -> Run:
    """Trains, evaluates and saves a model.

    Args:
        recipe: a `Recipe`, the name of a shipped one, or the path of a TOML file; default `quick`.
        out: the run folder to create; default `runs/<recipe>-<date>`.
        resume: a run folder to continue, with its own recipe; `recipe` and `out` must be left out.
        tensorboard: also write TensorBoard's event files, to `tensorboard/` in the run folder.
        data: images to use instead of the data set that the recipe names.
        overrides: settings by dotted key, as in `**{"train.epochs": 3}`. A resumed run accepts those that may change,
            such as `data.name` after its images were moved.

    Returns:
        the finished run.

    Raises:
        ShiftViTError: a setting or path is wrong, the loss is not finite, or the disk is full.
        shiftvit.errors.Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    with join_processes() as processes:
        recipe, run = runfolder.choose_run(recipe, out, resume, overrides, processes)
        return train_in(run, recipe, tensorboard=tensorboard, data=data, processes=processes)


def train_in(
    run: Path,
    recipe: Recipe,
    *,
    tensorboard: bool = False,
    data: Dataset | None = None,
    processes: Processes = ALONE,
) -> Run:
    """Trains in a run folder, which is new or holds a run to continue.

    Args:
        run, recipe: as returned by `choose_run`.
        tensorboard, data: as for `train`.
        processes: the processes that train together; each of them must call this.

    Raises:
        ShiftViTError: as `train`.
        shiftvit.errors.Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    board = processes.together(lambda: _open_board(run, recipe, processes.rank) if tensorboard else None)
    if recipe.probe is not None:
        processes.together(lambda: check_alone(recipe, processes))
        return Run(run, *run_probe(run, apply_start(recipe), data))
    recipe = choose_precision(recipe, processes)
    # Prepare before the folder is created, so that a run that cannot start leaves none behind.
    recipe, dataset, model, steps = processes.together(lambda: prepare(run, recipe, data, processes))
    check_same_images(dataset, processes)
    if not processes.first(runfolder.find_checkpoint(run).is_file):
        check_same_start(recipe, model, processes)
    with contextlib.ExitStack() as opened:
        processes.first(lambda: opened.enter_context(runfolder.open_run(run, recipe, dataset)))
        halvings = 0
        while True:
            try:
                metrics = train_model(run, recipe, dataset, model, steps, board, processes)
                return Run(run, recipe, metrics)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                processes.report_memory_fault(error)
            # Not in the handler, because its traceback holds the tensors of the failed step.
            recipe = processes.together(functools.partial(halve_parts, recipe, halvings, count=processes.count))
            halvings += 1
            processes.first(functools.partial(runfolder.change_recipe, run, recipe))
            del model
            free_memory()
            begun = processes.first(runfolder.find_checkpoint(run).is_file)
            model, steps = build_model(recipe, dataset, begun, processes)


def prepare(run: Path, recipe: Recipe, data: Dataset | None, processes: Processes) -> tuple[Recipe, Dataset, Any, int]:
    """Returns the resolved recipe, the images, the compiled model and the number of steps per epoch."""
    # Then the weights come from the checkpoint, and no source is needed.
    begun = runfolder.find_checkpoint(run).is_file()
    recipe = recipe if begun else apply_start(recipe)
    dataset = load_data(recipe, data, run)
    recipe = resolve(recipe, dataset, processes)
    make_batches(recipe, dataset, 0, 0, processes)  # raises if the augmentation does not fit the images
    return recipe, dataset, *build_model(recipe, dataset, begun, processes)


def build_model(recipe: Recipe, dataset: Dataset, begun: bool, processes: Processes = ALONE) -> tuple[Any, int]:
    """Returns the compiled model of a resolved recipe, and the number of steps per epoch.

    The model has its initial weights. If the run has `begun`, the caller loads those of the checkpoint.
    """
    check_loop(recipe, dataset)
    free_memory()  # of a model that this process trained before
    with hide_tensorflow():
        keras.utils.set_random_seed(recipe.train.seed)
    return build(recipe, dataset, begun=begun, processes=processes)


def train_model(
    run: Path,
    recipe: Recipe,
    dataset: Dataset,
    model: Any,
    steps: int,
    board: TensorBoardLog | None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Trains from the run's last checkpoint, or from the beginning, and returns the metrics of the selected weights."""
    settings = recipe.train
    loop = make_loop(model, recipe, dataset, steps)
    progress = Progress()
    if processes.first(runfolder.find_checkpoint(run).is_file):
        progress = processes.together(lambda: load_checkpoint(runfolder.find_checkpoint(run), model))
        notice(f"resuming {run} at epoch {progress.epoch + 1}, step {progress.step}")
        # If the disk was full, it may lack the last row.
        processes.first(lambda: runfolder.write_log(run, progress.history))
    processes.first(lambda: settle_best(run / "checkpoints", progress))
    watch = Watch(run, progress, settings.seed, settings.checkpoint_minutes * 60, processes)
    sizes = [choose_size(recipe, epoch) for epoch in range(settings.epochs)]
    bar = ProgressBar(sizes, steps, settings.batch_size, watch)
    if board is not None:
        board.begin(progress.history)
    with watch.catch_signals():
        with bar.bar:
            while progress.epoch < settings.epochs and not _is_out_of_patience(settings.early_stopping, progress):
                row = fit_epoch(model, recipe, dataset, watch, [bar], loop)
                row |= validate(model, recipe, dataset, watch)
                finish_epoch(run, model, progress, row, processes)
                bar.print_epoch(row)
                if board is not None:
                    board.write(row)
                watch.agree()
                watch.stop_if_asked()
        # Several processes would wait for the one that stops.
        watch.is_finishing = processes.count == 1
        notice(f"evaluating on {pluralize(len(dataset.test), 'test image')}")
        metrics = finish_run(run, recipe, dataset, model, steps, progress, processes)
        if board is not None:
            test = {f"test_{key}": metrics["test"][key] for key in ("loss", "top1", "top5")}
            board.write({"epoch": progress.epoch, **test})
        return metrics


def _open_board(run: Path, recipe: Recipe, rank: int) -> TensorBoardLog | None:
    """Returns the log of process 0. Raises ShiftViTError for a probe, which has no epochs to log."""
    if recipe.probe is not None:
        raise ShiftViTError(
            f"--tensorboard logs the epochs of a run, and the recipe {recipe.name} has none; leave it out, and read "
            "log.jsonl, which has the figures of each C"
        )
    return TensorBoardLog(run) if rank == 0 else None


def _is_out_of_patience(patience: int | None, progress: Progress) -> bool:
    if patience is None or progress.best_top1 is None or "val_top1" not in progress.history[-1]:
        return False
    # Equal accuracies do not count as progress, even if the loss falls.
    first = next(row["epoch"] for row in progress.history if row.get("val_top1") == progress.best_top1)
    return bool(progress.epoch - first >= patience)
