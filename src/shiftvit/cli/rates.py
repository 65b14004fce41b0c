"""`shiftvit find-rate`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from shiftvit.cli.settings import Changes, Data, RecipeName, check_figure, load_recipe, prepare_backend
from shiftvit.cli.tables import Json, list_examples, print_json
from shiftvit.console import Bar
from shiftvit.errors import notice

app = typer.Typer()


@app.command(
    "find-rate",
    epilog=list_examples(
        "shiftvit find-rate",
        "shiftvit find-rate --recipe cifar10 --figure rates.png",
        "shiftvit find-rate --data photos/ --set train.batch_size=64 --json",
    ),
)
def find_rate(
    recipe: RecipeName = None,
    changes: Changes = None,
    data: Data = None,
    steps: Annotated[int, typer.Option(help="Training steps from the lowest to the highest rate.")] = 100,
    low: Annotated[float, typer.Option(help="Lowest rate.")] = 1e-6,
    high: Annotated[float, typer.Option(help="Highest rate.")] = 10.0,
    figure: Annotated[
        Path | None, typer.Option(help="Plot the loss against the rate into this file (.png, .pdf, .svg).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Suggest a learning rate from one short run.

    Exits with status 1 if the loss did not fall.
    """
    wanted = load_recipe(recipe, changes, data)
    if figure is not None:
        check_figure(figure, wanted.data.name)
    prepare_backend()
    from shiftvit.figures.run import draw_rate_search
    from shiftvit.training import rate_finder

    with Bar("find-rate", steps) as bar:

        def tell(done: int, loss: float) -> None:
            bar.update(done, f"step {done}  loss {loss:.3f}")

        found = rate_finder.find_rate(wanted, low=low, high=high, steps=steps, on_step=tell)
    if figure is not None:
        title = f"Learning rates of the recipe {wanted.name}"
        curves = (found.rates, found.losses, found.smoothed)
        draw_rate_search(*curves, found.suggestion, found.recipe_rate, figure, title=title)
    if as_json:
        fields = dataclasses.asdict(found)
        lists = {key: fields[key].tolist() for key in ("rates", "losses", "smoothed")}
        print_json({**fields, **lists, "settings": found.settings})
    elif found.suggestion is not None:
        print(" ".join(f"--set {key}={value:g}" for key, value in found.settings.items()))
    if found.suggestion is None:
        last = found.rates[-1] if len(found.rates) else low
        notice(
            f"the loss did not fall between the rates {low:g} and {last:g}; use more --steps, a larger "
            "train.batch_size or another range (--low, --high)"
        )
        raise typer.Exit(1)
