"""Messages for the user: errors that the caller can fix, interrupted runs and notices."""

from __future__ import annotations

import contextlib
import difflib
import operator
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# The most valid names that a message lists; a model may have thousands of classes.
_LISTED = 40
# Characters without width that Persian and Indic words and emoji need. Python does not count them as printable.
JOINERS = "\u200c\u200d"


class ShiftViTError(ValueError):
    """An error that the caller can fix.

    Its message is one line: the value, the rule that it breaks, and the fix. The command line prints it and exits with
    status 2; Python code may catch it as a `ValueError`.
    """


class Elsewhere(ShiftViTError):
    """An error that another process of the same training reports to the user."""


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


def suggest(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """Returns the end of an error message: the closest valid name, if one is close, then all, or of many the first.

    It follows a semicolon. `prefix` is put before each valid name.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {prefix + close[0]!r}? Valid" if close else "valid"
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return f"{hint}: {', '.join(prefix + name for name in names[:_LISTED])}{more}."


def to_one_line(text: str) -> str:
    """Returns text on one line, with runs of white space and unprintable characters, except joiners, as a space."""
    return " ".join(_replace_unprintable(text).split())


def describe_error(error: object) -> str:
    """Returns what an exception of Python or another library says as one short line, or its type if it says nothing.

    Of an `OSError` that is the system's reason alone, without a number and a path, if it has one: many have none.
    """
    return to_one_line(str(getattr(error, "strerror", None) or error))[:200] or type(error).__name__


def take_first_line(error: object) -> str:
    """Returns the first line of what another library says at length, or the error's type if it says nothing."""
    return next(filter(None, map(to_one_line, str(error).splitlines())), type(error).__name__)[:200]


def check_at_least(name: str, value: Any, least: int, *, optional: bool = True) -> None:
    """Raises ShiftViTError unless a setting is a whole number of at least `least`, or None if that is allowed."""
    try:
        whole = None if value is None and optional else operator.index(value)
    except TypeError:
        raise ShiftViTError(f"{name}={value!r} must be a whole number of at least {least}") from None
    if whole is not None and whole < least:
        raise ShiftViTError(f"{name}={value} must be at least {least}")


def check_path(name: str, value: Any) -> None:
    """Raises ShiftViTError unless an argument is text or a path."""
    if not isinstance(value, str) and not (isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)):
        raise ShiftViTError(f"{name} has the type {type(value).__name__}; give a str or a pathlib.Path")


_QUIET = False


def be_quiet(quiet: bool) -> None:
    """Silences `notice`, or not. Of several processes that train together, only one prints."""
    global _QUIET
    _QUIET = quiet


def is_quiet() -> bool:
    """Returns whether another process prints for this one."""
    return _QUIET


def notice(text: str) -> None:
    """Prints a line on standard error, unless another process does so for this one."""
    if not _QUIET:
        complain(text)


def report_skipped(faults: Sequence[str], advice: str = "") -> None:
    """Prints notices of the first five images that cannot be used, and of the number of the others."""
    for fault in faults[:5]:
        notice(f"skipped: {fault}")
    if len(faults) > 5:
        notice(f"skipped {len(faults) - 5:,} more{advice}")


def complain(text: str) -> None:
    """Prints a line on standard error, from any process."""
    print_error(f"shiftvit: {_replace_unprintable(text)}")


def print_error(text: str) -> None:
    """Prints a line on standard error. If that fails, the line is dropped and the work goes on."""
    if sys.stderr is not None:  # print(file=None) would write to standard output
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def suggest_install(*packages: str) -> str:
    """Returns the command that installs packages that are missing, in the versions that shiftvit needs.

    It names the packages instead of an extra such as `shiftvit[hub]`, because for an extra pip would look for shiftvit
    itself in the index, even if it was installed from elsewhere.
    """
    from importlib import metadata

    try:
        lines = [line.split(";")[0].strip() for line in metadata.requires("shiftvit") or ()]
    except metadata.PackageNotFoundError:  # imported from a source folder
        lines = []
    needed = {_parse_distribution(line): line for line in lines}
    return "pip install " + shlex.join(needed.get(_parse_distribution(name), name) for name in packages)


def _parse_distribution(requirement: str) -> str:
    """Returns the name in a requirement, without version and extras."""
    return re.split(r"[^\w.-]", requirement)[0].replace("-", "_").lower()


def join_words(words: Sequence[str]) -> str:
    """Returns `a`, `a and b` or `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def list_some(words: Iterable[str], most: int = 3) -> str:
    """Returns the first words and the number of the others: `a, b, c and 5 more`."""
    words = list(words)
    others = [f"{len(words) - most:,} more"] if len(words) > most else []
    return join_words([*words[:most], *others])


def pluralize(number: int, noun: str, plural: str | None = None) -> str:
    """Returns `1 image`, `2 images` or `1,000 images`, or with an irregular `plural`, `2 classes`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def _replace_unprintable(text: str) -> str:
    """Replaces unprintable characters by spaces, because those in a file's name could control the terminal."""
    return "".join(letter if letter.isprintable() or letter in JOINERS else " " for letter in text)
