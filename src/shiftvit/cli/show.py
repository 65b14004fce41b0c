"""`shiftvit info`, `shiftvit recipes` and `shiftvit report`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shiftvit import files
from shiftvit.cli.tables import Json, list_examples, print_json, show, show_pairs

app = typer.Typer()


@app.command(epilog=list_examples("shiftvit info", "shiftvit info shiftvit_tiny_r2", "shiftvit info runs/mine"))
def info(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[PRESET|RUN|BUNDLE|EXPORT]", help="Model to describe (default: list the presets)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a model's stages, their size and their cost.

    Of an export, verify the files.
    """
    from shiftvit.bundle import describe

    found: Any = describe.list_presets() if name is None else describe.describe(name)
    if as_json:
        print_json(found)
    elif name is None:
        show(found, "Presets")
    else:
        if found["stages"]:
            show(found["stages"], found["title"])
        show_pairs(found["notes"])


@app.command("recipes")
def list_recipes() -> None:
    """List the recipes and what to expect from each."""
    from shiftvit import recipes

    for index, name in enumerate(recipes.list_names()):
        print(("\n" if index else "") + name)
        for line in recipes.read_head(name).splitlines():
            print(f"  {line}")


@app.command(epilog=list_examples("shiftvit report runs/mine --out mine.html"))
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Page to write (default: RUN/report.html).")] = None,
) -> None:
    """Write a run as one HTML page, figures included."""
    from shiftvit.evaluation.report import write_report

    if out is not None:
        files.check_file(out, (".html", ".htm"))
    print(f"wrote {write_report(run, out)}")
