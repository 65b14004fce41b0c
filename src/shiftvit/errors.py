"""The one exception that means: the input is at fault, and the message says what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ShiftViTError(ValueError):
    """A fault that the caller can mend.

    Its message is one line that names the value, the rule that it breaks and the mend. The command line prints
    that line and exits with status 2; Python code may catch it as a `ValueError`.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns the tail of an error message: the closest valid name if one is near, then all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(names)}."
