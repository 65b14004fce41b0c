"""The server's log on standard error."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time


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


class JsonFormatter(logging.Formatter):
    """Formats a request as JSON, and all else, such as a traceback, as text."""

    def format(self, record: logging.LogRecord) -> str:
        entry = getattr(record, "request", None)
        if entry is None:
            return super().format(record)
        return json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **entry})


def log_requests(log_format: str) -> None:
    """Writes a line for each request, as "text" or "json", and failures as text, to standard error."""
    handler = JoiningHandler()
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    for name, level in (("shiftvit.serve", logging.INFO), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
