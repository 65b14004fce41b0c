"""The options of the command line that make a recipe: `--recipe`, `--set KEY=VALUE`, `--data`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shiftvit.errors import ShiftViTError

if TYPE_CHECKING:
    from shiftvit.recipes.recipe import Recipe

RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", help="A name (see `shiftvit recipes`) or a .toml file; default quick, or photos."),
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="PATH|NAME", help="Your own images (folder, CSV, .npz, Parquet), or a data set by name."
    ),
]


def read_overrides(items: Sequence[str] | None, data: str | None = None) -> dict[str, Any]:
    """Returns what `--set` and `--data` were given, key -> value, as `Recipe.load` takes it.

    Raises:
        ShiftViTError: an item without "=".
    """
    overrides: dict[str, Any] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ShiftViTError(f"--set {item!r} has no value; write --set KEY=VALUE, as in --set train.epochs=3")
        overrides[key.strip()] = value.strip()
    if data is not None:
        overrides["data.name"] = json.dumps(data)  # quoted, or a folder called 2026 would be a number
    return overrides


def recipe_for(data: str | None) -> str:
    """Returns the recipe where none is named: `photos` for a user's own images, else `quick`."""
    from shiftvit.data import named

    return "photos" if data is not None and named.is_path(data) else "quick"


def load_recipe(recipe: str | None, changes: Sequence[str] | None, data: str | None) -> Recipe:
    """Returns the recipe that the options stand for, with data that are there.

    Raises:
        ShiftViTError: no such recipe or data, or a wrong setting.
    """
    from shiftvit.data import named
    from shiftvit.recipes.recipe import Recipe

    chosen = Recipe.load(recipe or recipe_for(data), **read_overrides(changes, data))
    named.check_name(chosen.data.name)
    return chosen
