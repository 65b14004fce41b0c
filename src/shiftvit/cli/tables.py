"""Tables on the screen, or JSON in their place."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def show(rows: list[dict[str, Any]], title: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    from rich.console import Console

    # Piped output has no width of its own; rich would cut at 80.
    Console(width=None if sys.stdout.isatty() else 120).print(_table(rows, title))


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for key in rows[0]:
        numeric = isinstance(rows[0][key], int)
        table.add_column(key.replace("_", " "), justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(key, value) for key, value in row.items()))
    return table


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "" if key == "top1" else "?"
    if key == "multiply_adds":
        return f"{value / 1e6:,.1f} M"
    return f"{value:,}" if isinstance(value, int) else str(value)
