"""Text as Markdown shows it: escaped, in tables, under a front matter of YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def escaped(text: str) -> str:
    """Returns text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|&#~$])", r"\\\1", plain(text))


def plain(text: str) -> str:
    """Returns text on one line, with a space for each run of spaces and of what cannot be printed."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; the cells are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(summary: str, text: str) -> str:
    """Returns text that a reader unfolds by a click on its summary."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def front_matter(tree: Mapping[str, Any]) -> str:
    """Returns the YAML that begins a file: dicts with words as keys, lists, strings and numbers, none of them empty."""
    return "\n".join(["---", *_yaml(tree, ""), "---"])


def _yaml(value: Any, indent: str) -> list[str]:
    if isinstance(value, Mapping):
        items = [(f"{key}:", item) for key, item in value.items()]
    else:
        items = [("-", item) for item in value]
    lines = []
    for head, item in items:
        if isinstance(item, Mapping) and head == "-":
            first, *rest = _yaml(item, indent + "  ")
            lines += [f"{indent}- {first.lstrip()}", *rest]
        elif isinstance(item, Mapping | list):
            lines += [indent + head, *_yaml(item, indent + "  ")]
        else:
            lines.append(f"{indent}{head} {_scalar(item)}")
    return lines


def _scalar(value: str | float) -> str:
    # As in JSON, with its quotes, so that no word is taken for a number, a date or a "no".
    text = json.dumps(plain(value) if isinstance(value, str) else value, ensure_ascii=False)
    # Without a point YAML 1.1 takes a number with an exponent for a word.
    return text.replace("e", ".0e") if isinstance(value, float) and "." not in text else text
