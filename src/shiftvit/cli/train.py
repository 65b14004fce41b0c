"""`shiftvit train` and `shiftvit evaluate`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from shiftvit.cli.tables import Json
from shiftvit.errors import ShiftViTError


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: shiftvit train | shiftvit train --recipe cifar10 --out runs/mine | "
        "shiftvit train --set train.optimizer.learning_rate=0.005 --epochs 5 | shiftvit train --resume runs/mine"
    )(train)
    app.command(epilog="Example: shiftvit evaluate runs/mine")(evaluate)


def train(
    recipe: Annotated[
        str | None, typer.Option(help="A recipe's name (see `shiftvit recipes`) or a .toml file; default quick.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs to train; short for --set train.epochs=N.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set; short for --set data.name=NAME.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make; default runs/RECIPE-DATE.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to go on with.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard files.")] = False,
) -> None:
    """Train, evaluate and keep a model in a run folder."""
    overrides: dict[str, Any] = {}
    for item in set_ or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ShiftViTError(f"--set {item!r} has no value; write --set KEY=VALUE, as in --set train.epochs=3")
        overrides[key.strip()] = value.strip()
    if epochs is not None:
        overrides["train.epochs"] = epochs
    if data is not None:
        overrides["data.name"] = data

    from shiftvit.data import sources

    prepare_backend()
    from shiftvit.training.runfolder import choose_run

    # What is wrong is told at once, before a framework is loaded.
    chosen, _ = choose_run(recipe, out, resume, overrides)
    sources.check_name(chosen.data.name)
    from shiftvit.training.fit import train as run_training

    run = run_training(recipe, out=out, resume=resume, tensorboard=tensorboard, **overrides)
    test, spent = run.metrics["test"], run.metrics["train"]
    print(f"test loss {test['loss']:.4f}  top-1 {test['top1']:.2%}  top-5 {test['top5']:.2%}  ({test['n']:,} images)")
    print(f"trained {spent['epochs']} epochs in {spent['seconds']:.0f} s at {spent['images_per_second']:,.0f} images/s")
    print(f"run folder: {run.path} (model in bundle/, figures in figures/)")


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder or a bundle.")],
    data: Annotated[str, typer.Option(help="Data set whose test images are used.")] = "cifar10",
    as_json: Json = False,
) -> None:
    """Evaluate a trained model on test images."""
    from shiftvit.bundle import find_bundle

    find_bundle(run)
    prepare_backend()
    from shiftvit.evaluation import evaluate as run_evaluation

    found = run_evaluation(run, data)
    if as_json:
        print(json.dumps(found))
        return
    print(f"{found['data']} {found['split']} images: {found['n']:,}")
    print(f"loss {found['loss']:.4f}  top-1 {found['top1']:.2%}  top-5 {found['top5']:.2%}")
    print(f"{found['seconds']:.1f} s, {found['images_per_second']:,.0f} images/s")


def prepare_backend() -> None:
    """Chooses the backend and keeps its start-up chatter off the screen."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from shiftvit.backend import ensure_backend

    ensure_backend()
