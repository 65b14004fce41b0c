"""The progress of long work: a bar on standard error, if that is a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from shiftvit.errors import is_quiet, print_error

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """A progress bar with the time left; use it in a `with` statement.

    Args:
        what: the work, in a word or two.
        total: number of units; 0: unknown.
        done: number of units that are already done.
        size: whether the units are bytes; the bar then shows megabytes and speed.
        shown: whether to show the bar if standard error is a terminal.
    """

    def __init__(self, what: str, total: int, *, done: int = 0, size: bool = False, shown: bool = True) -> None:
        self._what, self._total, self._done, self._size, self._wanted = what, total, done, size, shown
        self._live: Progress | None = None

    @property
    def columns(self) -> int:
        """The width of the terminal; 0 if there is no bar."""
        return self._live.console.width if self._live else 0

    def advance(self, count: int = 1) -> None:
        """Counts further units as done."""
        self.update(self._done + count)

    def update(self, done: int, state: str = "", what: str | None = None, total: int | None = None) -> None:
        """Redraws the bar.

        Args:
            done: units that are done.
            state: the text beside the bar; "": the number of units.
            what: a new name of the work; None: the name stays.
            total: a new number of units; None: it stays.
        """
        self._done, self._what = done, self._what if what is None else what
        self._total = self._total if total is None else total
        if self._live:
            counts = f"{done:,}/{self._total:,}" if self._total else f"{done:,}"
            self._live.update(
                self._task, total=self._total or None, completed=done, description=self._what, state=state or counts
            )

    @property
    def done(self) -> int:
        """The units that are done."""
        return self._done

    def print(self, text: str) -> None:
        """Prints a line on standard error, above the bar."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not is_quiet():
            print_error(text)

    def __enter__(self) -> Self:
        if not self._wanted or is_quiet() or sys.stderr is None or not sys.stderr.isatty():
            return self
        from rich import progress
        from rich.console import Console

        state = progress.TextColumn("{task.fields[state]}", markup=False)
        columns = [progress.DownloadColumn(), progress.TransferSpeedColumn()] if self._size else [state]
        self._live = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=None),
            *columns,
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("left"),
            console=Console(stderr=True, emoji=False),
            transient=True,
            redirect_stdout=False,
            expand=True,
        )
        self._task = self._live.add_task(self._what, total=self._total or None, state="")
        self._live.start()
        self.update(self._done)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None
