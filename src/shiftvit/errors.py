"""Messages for the user: errors that the caller can fix, a stopped run, notices."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


class ShiftViTError(ValueError):
    """An error that the caller can fix.

    Its message is one line: the value, the rule that it breaks, and the fix. The command line prints it and exits with
    status 2; Python code may catch it as a `ValueError`.
    """


class Interrupted(Exception):
    """A run was stopped (Ctrl-C or SIGTERM) after saving its state.

    Attributes:
        status: the conventional exit status, 130 or 143.
        run: the run folder, to resume from.
    """

    def __init__(self, number: int, run: Path) -> None:
        command = f"shiftvit train --resume {shlex.quote(str(run))}"
        super().__init__(f"stopped; the state is saved. To resume: {command}")
        self.status = 128 + number
        self.run = run


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns the end of an error message: the closest valid name, if one is close, then all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(names)}."


def notice(text: str) -> None:
    """Prints a line on standard error."""
    print(f"shiftvit: {text}", file=sys.stderr, flush=True)


def install_hint(*packages: str) -> str:
    """Returns the command that installs packages that are missing, in the versions that shiftvit needs.

    It names the packages and not an extra, as in `shiftvit[hub]`: for that pip would look for shiftvit itself in the
    index, wherever it was installed from.
    """
    from importlib import metadata

    try:
        lines = [line.split(";")[0].strip() for line in metadata.requires("shiftvit") or ()]
    except metadata.PackageNotFoundError:  # imported from a source folder
        lines = []
    needed = {re.split(r"[^\w.-]", line)[0].replace("-", "_").lower(): line for line in lines}
    return "pip install " + shlex.join(needed.get(name.replace("-", "_").lower(), name) for name in packages)


def join_words(words: Sequence[str]) -> str:
    """Returns `a`, `a and b` or `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """Returns `1 image`, `2 images` or `1,000 images`; of other plurals the word, as in `2 classes`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
