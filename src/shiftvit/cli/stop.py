"""SIGTERM ends a long command as Ctrl-C does."""

import contextlib
import signal
from collections.abc import Iterator

import typer

from shiftvit.errors import complain


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def _terminate(*_: object) -> None:
    raise Terminated


@contextlib.contextmanager
def catch_sigterm() -> Iterator[None]:
    """Raises `Terminated` at SIGTERM, so that temporary files are removed and child processes end.

    Raises:
        typer.Exit: with status 143, if nothing else catches `Terminated`.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except Terminated:
        complain("terminated")
        raise typer.Exit(143) from None
    finally:
        signal.signal(signal.SIGTERM, before)
