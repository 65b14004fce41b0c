"""Prints the output of commands: tables, JSON, and aligned lines. Formats the examples in their help."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shiftvit.errors import JOINERS

if TYPE_CHECKING:
    from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
# The width of output that does not go to a terminal, in columns.
_WIDE = 10_000


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Prints a table under its title."""
    if sys.stdout is None:  # closed by the shell
        return
    from rich.console import Console

    # Without a terminal, rich would cut lines at 80 columns. Names are text: `[copy]` is no markup, `:cat:` no emoji.
    console = Console(width=None if sys.stdout.isatty() else _WIDE, markup=False, emoji=False, highlight=False)
    console.print(escape_unprintable(title), style="bold", soft_wrap=True)
    console.print(_make_table(rows))


def print_json(content: Any) -> None:
    """Prints JSON in ASCII, with null for NaN and infinity."""
    print(json.dumps(_replace_nonfinite(content), allow_nan=False))


def _replace_nonfinite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _replace_nonfinite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_replace_nonfinite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def show_pairs(pairs: dict[str, str]) -> None:
    """Prints a line for each name and its value, aligned; on a terminal, long values wrap between words."""
    margin = max(map(len, pairs), default=0) + 2
    width = shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else _WIDE
    for name, value in pairs.items():
        lines = textwrap.wrap(
            escape_unprintable(value), max(20, width - margin), break_long_words=False, break_on_hyphens=False
        )
        print(f"{name:{margin}}" + f"\n{'':{margin}}".join(lines))


def escape_unprintable(text: str) -> str:
    """Returns text with control characters and the like escaped, so that it stays on one line and controls no terminal.

    Spaces of all kinds stay, and the joiners that Persian and Indic words need.
    """
    if text.isprintable():
        return text
    import unicodedata  # only here, because few texts need it

    shown = (letter.isprintable() or letter in JOINERS or unicodedata.category(letter) == "Zs" for letter in text)
    return "".join(letter if kept else repr(letter)[1:-1] for letter, kept in zip(text, shown, strict=True))


def list_examples(*commands: str) -> str:
    """Returns the end of a command's help: its examples, each on its own line."""
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in commands)])


def _make_table(rows: list[dict[str, Any]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for key in rows[0]:
        numeric = isinstance(rows[0][key], int)
        table.add_column(key.replace("_", " "), justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_format_cell(key, value) for key, value in row.items()))
    return table


def _format_cell(key: str, value: Any) -> str:
    if value is None:
        return "" if key == "top1" else "?"
    if key == "multiply_adds":
        return f"{value / 1e6:,.1f} M"
    return f"{value:,}" if isinstance(value, int) else escape_unprintable(str(value))
