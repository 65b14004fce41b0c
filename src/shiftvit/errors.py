"""What is told to people: faults that they can mend, a run that was stopped, notices."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


class ShiftViTError(ValueError):
    """A fault that the caller can mend.

    Its message is one line that names the value, the rule that it breaks and the mend. The command line prints
    that line and exits with status 2; Python code may catch it as a `ValueError`.
    """


class Interrupted(Exception):
    """A run was asked to stop (Ctrl-C or SIGTERM), and its state is saved.

    Attributes:
        status: the exit status that the convention gives: 130 or 143.
        run: the run folder, to resume from.
    """

    def __init__(self, number: int, run: Path) -> None:
        command = f"shiftvit train --resume {shlex.quote(str(run))}"
        super().__init__(f"stopped; the state is saved. To go on: {command}")
        self.status = 128 + number
        self.run = run


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns the tail of an error message: the closest valid name if one is near, then all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(names)}."


def notice(text: str) -> None:
    """Prints one line for the user on standard error."""
    print(f"shiftvit: {text}", file=sys.stderr, flush=True)


def join_words(words: Sequence[str]) -> str:
    """Returns `a`, `a and b` or `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def count_of(number: int, noun: str) -> str:
    """Returns `1 image`, `2 images` or `1,000 images`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
