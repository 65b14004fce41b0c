"""`shiftvit info`, `shiftvit recipes` and `shiftvit report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shiftvit.cli.tables import Json, show


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Examples: shiftvit info shiftvit_tiny_r2 | shiftvit info runs/mine | shiftvit info")(info)
    app.command("recipes")(list_recipes)
    app.command(epilog="Example: shiftvit report runs/mine --out mine.html")(report)


def info(
    name: Annotated[str | None, typer.Argument(metavar="[PRESET|RUN|BUNDLE]", help="Left out: all presets.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a model is made of, stage by stage."""
    from shiftvit.bundle import describe

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


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page to write; default RUN/report.html.")
    ] = None,
) -> None:
    """Write a run as one HTML page with its figures inside."""
    from shiftvit.evaluation.report import write_report

    print(f"wrote {write_report(run, out)}")


def list_recipes() -> None:
    """List the recipes and what to expect of each."""
    from shiftvit import recipes

    for index, name in enumerate(recipes.names()):
        print(("\n" if index else "") + name)
        for line in recipes.head(name).splitlines():
            print(f"  {line}")
