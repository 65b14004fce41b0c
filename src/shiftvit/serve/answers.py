"""Answers in JSON, and `Refused`: a request that is answered with an error, `{"error": "..."}`."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response


class Json(Response):
    """A JSON answer in ASCII, which any label survives."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
        status: the HTTP status.
        message: one line for the client; it never names a path of the server.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}

    def response(self) -> Json:
        return Json({"error": self.message}, self.status, self.headers)


def refuse_full() -> Refused:
    """Returns the refusal of a request for which the server has no room now."""
    return Refused(503, "the server is overloaded; try again in a second", {"Retry-After": "1"})
