"""The options that choose and change a recipe (`--recipe`, `--set KEY=VALUE`, `--data`); the choice of the backend."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shiftvit.errors import ShiftViTError

if TYPE_CHECKING:
    from shiftvit.recipes.recipe import Recipe

RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Recipe name (see `shiftvit recipes`) or .toml file (default: quick, or photos for your own images).",
    ),
]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="PATH|NAME", help="Your own images (folder, CSV, .npz or Parquet), or a data set name."
    ),
]


def read_overrides(items: Sequence[str] | None, data: str | None = None) -> dict[str, Any]:
    """Returns the settings from `--set` and `--data`, by dotted key, as `Recipe.load` takes them.

    Raises:
        ShiftViTError: an item has no "=".
    """
    overrides: dict[str, Any] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ShiftViTError(f"--set {item!r} has no value; write --set KEY=VALUE, as in --set train.epochs=3")
        overrides[key.strip()] = value.strip()
    if data is not None:
        # Quoted: a folder named 2026 must not become a number. TOML has no surrogate pairs, and DEL only escaped.
        overrides["data.name"] = json.dumps(data, ensure_ascii=False).replace("\x7f", "\\u007f")
    return overrides


def choose_recipe(data: str | None) -> str:
    """Returns the default recipe: `photos` for a user's own images, else `quick`."""
    from shiftvit.data import named

    return "photos" if data is not None and named.is_path(data) else "quick"


def check_figure(path: Path, data: str) -> None:
    """Raises ShiftViTError if a figure of a data set cannot be written, or would replace one of its images."""
    from shiftvit import files
    from shiftvit.data import named
    from shiftvit.figures.style import ENDINGS

    files.check_file(path, ENDINGS)
    if path.exists() and named.is_path(data):
        from shiftvit.data.find.find import find_data

        files.check_file(path, ENDINGS, find_data(data, training=False).list_paths())


def load_recipe(recipe: str | None, changes: Sequence[str] | None, data: str | None) -> Recipe:
    """Returns the recipe that the options describe.

    Raises:
        ShiftViTError: the recipe, its data or a setting is wrong or missing.
    """
    from shiftvit.data import named
    from shiftvit.recipes.recipe import Recipe

    chosen = Recipe.load(recipe or choose_recipe(data), **read_overrides(changes, data))
    named.check_name(chosen.data.name)
    return chosen


def prepare_backend() -> None:
    """Chooses the backend and silences its start-up messages."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from shiftvit.backend import ensure_backend

    ensure_backend()
