"""The server's log on standard error."""

from __future__ import annotations

import asyncio
import logging
import sys


class JoiningHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes the lines of one pass of the event loop at once. A write for each took a fifth of the server's time."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))
        if len(self._lines) == 1:
            try:
                asyncio.get_running_loop().call_soon(self.flush)
            except RuntimeError:  # there is no loop in this thread
                self.flush()

    def flush(self) -> None:
        """Writes the waiting lines; `logging` also calls it at the end of the process."""
        self.acquire()
        try:
            lines, self._lines = self._lines, []
            if lines:
                super().emit(logging.makeLogRecord({"msg": "\n".join(lines)}))  # which calls this again
            else:
                super().flush()
        finally:
            self.release()


def log_requests() -> None:
    """Writes a line for each request, and failures, to standard error."""
    handler = JoiningHandler()
    for name, level in (("shiftvit.serve", logging.INFO), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
