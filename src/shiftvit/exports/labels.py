"""Writes class names as lists for other programs, which split a text."""

from __future__ import annotations

from collections.abc import Sequence


def join_labels(labels: Sequence[str], separator: str) -> str | None:
    """Returns the names as a text to split at `separator`, or None if the parts would not be as many different names.

    White space in a name becomes one space, or "_" if the separator is a space.
    """
    names = [("_" if separator == " " else " ").join(label.split()) for label in labels]
    text = separator.join(names)
    parts = {part.strip() for part in text.split(separator)}
    return text if len(parts) == len(labels) == text.count(separator) + 1 and "" not in parts else None
