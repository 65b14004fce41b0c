"""Settings from the command line: `--set KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shiftvit.errors import ShiftViTError


def read_overrides(items: Sequence[str] | None) -> dict[str, Any]:
    """Returns what `--set` was given, key -> value, as `Recipe.load` takes it.

    Raises:
        ShiftViTError: an item without "=".
    """
    overrides: dict[str, Any] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ShiftViTError(f"--set {item!r} has no value; write --set KEY=VALUE, as in --set train.epochs=3")
        overrides[key.strip()] = value.strip()
    return overrides
